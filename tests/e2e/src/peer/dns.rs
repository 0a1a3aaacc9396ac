//! A client of name servers that shows the whole answer, as getaddrinfo does not.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::opt::EdnsOption;
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::report::Resolved;

/// How long a name server may take, once.
const PATIENCE: Duration = Duration::from_secs(2);

/// How to ask.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Way {
    /// Another name server than that of resolv.conf.
    #[arg(long)]
    server: Option<SocketAddr>,
    /// Over TCP.
    #[arg(long)]
    tcp: bool,
    /// Say that answers of so many bytes are taken over UDP (EDNS).
    #[arg(long)]
    takes: Option<u16>,
    /// With so many bytes more than are needed (EDNS padding).
    #[arg(long, requires = "takes")]
    padding: Option<usize>,
}

/// Asks a name server; over UDP several times, as that needs it.
pub async fn resolve(name: &str, kind: &str, way: Way) -> Result<Resolved> {
    let server = match way.server {
        Some(server) => server,
        None => of_resolv_conf()?,
    };
    let query = query(name, kind, way)?;
    let answer = if way.tcp {
        over_tcp(server, &query).await
    } else {
        over_udp(server, &query).await
    };
    read(&answer?)
}

fn query(name: &str, kind: &str, way: Way) -> Result<Vec<u8>> {
    const PADDING: u16 = 12;
    let kind: RecordType = kind.parse().context("a type of record")?;
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name)?, kind));
    if let Some(bytes) = way.takes {
        let mut edns = Edns::new();
        edns.set_max_payload(bytes);
        if let Some(more) = way.padding {
            edns.options_mut()
                .insert(EdnsOption::Unknown(PADDING, vec![0; more]));
        }
        message.set_edns(edns);
    }
    Ok(message.to_vec()?)
}

async fn over_udp(server: SocketAddr, query: &[u8]) -> Result<Vec<u8>> {
    let any: SocketAddr = if server.is_ipv4() {
        "0.0.0.0:0".parse()?
    } else {
        "[::]:0".parse()?
    };
    for _ in 0..5 {
        let socket = UdpSocket::bind(any).await?;
        socket.connect(server).await?;
        socket.send(query).await?;
        let mut buffer = vec![0; 1 << 16];
        match timeout(PATIENCE, socket.recv(&mut buffer)).await {
            Ok(length) => {
                buffer.truncate(length?);
                return Ok(buffer);
            }
            Err(_) => continue,
        }
    }
    bail!("{server} does not answer")
}

async fn over_tcp(server: SocketAddr, query: &[u8]) -> Result<Vec<u8>> {
    let exchange = async {
        let mut stream = TcpStream::connect(server).await?;
        stream.write_u16(query.len().try_into()?).await?;
        stream.write_all(query).await?;
        let mut answer = vec![0; stream.read_u16().await?.into()];
        stream.read_exact(&mut answer).await?;
        Ok(answer)
    };
    match timeout(5 * PATIENCE, exchange).await {
        Ok(answer) => answer,
        Err(_) => bail!("{server} does not answer over TCP"),
    }
}

fn of_resolv_conf() -> Result<SocketAddr> {
    let text = std::fs::read_to_string("/etc/resolv.conf")?;
    let server: IpAddr = text
        .lines()
        .find_map(|line| line.strip_prefix("nameserver "))
        .context("no nameserver in /etc/resolv.conf")?
        .trim()
        .parse()?;
    Ok(SocketAddr::new(server, 53))
}

fn read(answer: &[u8]) -> Result<Resolved> {
    let message = Message::from_vec(answer).context("the answer")?;
    let mut answers: Vec<String> = message
        .answers
        .iter()
        .map(|record| match &record.data {
            RData::SRV(srv) => format!("{} {}", srv.port, srv.target),
            data => data.to_string(),
        })
        .collect();
    answers.sort();
    Ok(Resolved {
        code: format!("{:?}", message.metadata.response_code),
        answers,
        ttl: message.answers.first().map(|record| record.ttl),
        authoritative: message.metadata.authoritative,
        truncated: message.metadata.truncation,
        bytes: answer.len(),
    })
}
