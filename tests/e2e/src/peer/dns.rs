//! A client of name servers that shows the whole answer, as getaddrinfo does not.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::net::UdpSocket;

use super::report::Resolved;

/// Asks the name server of resolv.conf, or this one, over UDP; several times, as UDP needs it.
pub async fn resolve(name: &str, kind: &str, server: Option<SocketAddr>) -> Result<Resolved> {
    let server = match server {
        Some(server) => server,
        None => of_resolv_conf()?,
    };
    let kind: RecordType = kind.parse().context("a type of record")?;
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name)?, kind));
    let query = message.to_vec()?;
    let any: SocketAddr = if server.is_ipv4() {
        "0.0.0.0:0".parse()?
    } else {
        "[::]:0".parse()?
    };
    for _ in 0..5 {
        let socket = UdpSocket::bind(any).await?;
        socket.connect(server).await?;
        socket.send(&query).await?;
        let mut buffer = vec![0; 4096];
        match tokio::time::timeout(Duration::from_secs(2), socket.recv(&mut buffer)).await {
            Ok(length) => return read(&buffer[..length?]),
            Err(_) => continue,
        }
    }
    bail!("{server} does not answer")
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
    })
}
