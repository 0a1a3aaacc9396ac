//! Clients of one connection, or of two at once.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use socket2::SockRef;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::pattern::{Checker, Pattern};
use super::report::{Asked, Failure, LiveEvent, Received, Stage, Transferred, print};

/// How long one step of a connection may take that should go on.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Without the IPv6 form of IPv4 addresses.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Looks the name up as applications do, and connects to the first address of the family.
pub async fn connect(host: &str, port: u16, family: Option<u8>) -> Result<TcpStream, Failure> {
    let name = host.to_owned();
    // The C library's resolver: /etc/hosts, search list and all.
    let found = tokio::task::spawn_blocking(move || (name, port).to_socket_addrs())
        .await
        .map_err(|_| Failure::named(Stage::Resolve, "PANIC"))?;
    let address = found
        .map_err(|error| Failure::new(Stage::Resolve, &error))?
        .find(|address| match family {
            Some(4) => address.is_ipv4(),
            Some(6) => address.is_ipv6(),
            _ => true,
        })
        .ok_or_else(|| Failure::named(Stage::Resolve, "NONE"))?;
    at(Stage::Connect, TcpStream::connect(address)).await
}

/// Connects, sends, half-closes, and reads to the end.
pub async fn ask(
    host: &str,
    port: u16,
    family: Option<u8>,
    send: &str,
    patience: Duration,
) -> Asked {
    let mut asked = Asked::default();
    let mut bytes = Vec::new();
    let mut stage = Stage::Connect;
    let work = ask_all(host, port, family, send, &mut asked, &mut bytes, &mut stage);
    let result = tokio::time::timeout(patience, work).await;
    asked.failure = match result {
        Ok(result) => result.err(),
        Err(_) => Some(Failure::named(stage, "PATIENCE")),
    };
    asked.received = String::from_utf8_lossy(&bytes).into_owned();
    asked
}

async fn ask_all(
    host: &str,
    port: u16,
    family: Option<u8>,
    send: &str,
    asked: &mut Asked,
    bytes: &mut Vec<u8>,
    stage: &mut Stage,
) -> Result<(), Failure> {
    let mut stream = connect(host, port, family).await?;
    asked.peer = stream.peer_addr().ok().map(canonical);
    asked.local = stream.local_addr().ok().map(canonical);
    *stage = Stage::Send;
    at(Stage::Send, stream.write_all(send.as_bytes())).await?;
    at(Stage::Send, stream.shutdown()).await?;
    *stage = Stage::Receive;
    at(Stage::Receive, stream.read_to_end(bytes)).await?;
    Ok(())
}

/// A step that must not take longer than [`PATIENCE`].
async fn at<T>(stage: Stage, work: impl Future<Output = io::Result<T>>) -> Result<T, Failure> {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(result) => result.map_err(|error| Failure::new(stage, &error)),
        Err(_) => Err(Failure::named(stage, "PATIENCE")),
    }
}

/// The line of standard input on which [`live`] resets its connection.
pub const RESET: &str = "RESET";

/// One connection in the hands of standard input; ends with it.
pub async fn live(host: &str, port: u16, family: Option<u8>) -> Result<()> {
    let stream = match connect(host, port, family).await {
        Ok(stream) => stream,
        Err(failure) => return print(&LiveEvent::Ended(Some(failure))),
    };
    print(&LiveEvent::Connected {
        local: canonical(stream.local_addr()?),
        peer: canonical(stream.peer_addr()?),
    })?;
    let (from, mut to) = stream.into_split();
    tokio::spawn(async move {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if line == RESET {
                let socket: &TcpStream = to.as_ref();
                let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
                // Its last descriptor closes with this process.
                std::process::exit(0);
            }
            // A failure shows in what is received.
            let _ = to.write_all(format!("{line}\n").as_bytes()).await;
        }
        let _ = to.shutdown().await;
        // Closed by dropping it together with the other half.
        std::future::pending::<()>().await;
    });
    let mut lines = BufReader::new(from).lines();
    loop {
        match lines.next_line().await {
            Ok(Some(line)) => print(&LiveEvent::Line(line))?,
            Ok(None) => return print(&LiveEvent::Ended(None)),
            Err(error) => {
                let failure = Failure::new(Stage::Receive, &error);
                return print(&LiveEvent::Ended(Some(failure)));
            }
        }
    }
}

/// Sends and receives at the same time, on two connections.
pub async fn transfer(
    host: &str,
    sink: u16,
    source: u16,
    bytes: u64,
    family: Option<u8>,
) -> Transferred {
    let (sent, received) = tokio::join!(
        upload(host, sink, bytes, family),
        download(host, source, bytes, family)
    );
    let mut transferred = Transferred::default();
    match sent {
        Ok(sent) => transferred.sent = Some(sent),
        Err(failure) => transferred.failures.push(failure),
    }
    match received {
        Ok(received) => transferred.received = Some(received),
        Err(failure) => transferred.failures.push(failure),
    }
    transferred
}

async fn upload(
    host: &str,
    port: u16,
    bytes: u64,
    family: Option<u8>,
) -> Result<Received, Failure> {
    let mut stream = connect(host, port, family).await?;
    let mut pattern = Pattern::default();
    let mut buffer = vec![0; 1 << 16];
    let mut left = bytes;
    while left > 0 {
        let length = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        pattern.fill(&mut buffer[..length]);
        at(Stage::Send, stream.write_all(&buffer[..length])).await?;
        left -= length as u64;
    }
    at(Stage::Send, stream.shutdown()).await?;
    let mut report = Vec::new();
    at(Stage::Receive, stream.read_to_end(&mut report)).await?;
    serde_json::from_slice(&report).map_err(|_| Failure::named(Stage::Receive, "EOF"))
}

async fn download(
    host: &str,
    port: u16,
    bytes: u64,
    family: Option<u8>,
) -> Result<Received, Failure> {
    let mut stream = connect(host, port, family).await?;
    let request = format!("{bytes}\n");
    at(Stage::Send, stream.write_all(request.as_bytes())).await?;
    receive(&mut stream).await
}

async fn receive(stream: &mut TcpStream) -> Result<Received, Failure> {
    let mut checker = Checker::default();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match at(Stage::Receive, stream.read(&mut buffer)).await? {
            0 => return Ok(checker.end()),
            count => checker.take(&buffer[..count]),
        }
    }
}

/// Asks for bytes, says so, and reads them only after a line on standard input.
pub async fn slow(
    host: &str,
    port: u16,
    bytes: u64,
    family: Option<u8>,
    send: Option<String>,
) -> Result<()> {
    let mut stream = connect(host, port, family).await?;
    let request = send.unwrap_or_else(|| format!("{bytes}\n"));
    at(Stage::Send, stream.write_all(request.as_bytes())).await?;
    // The first bytes are under way then.
    let mut first = [0; 1];
    let count = at(Stage::Receive, stream.peek(&mut first)).await?;
    ensure!(count > 0, "nothing came");
    print(&"asked")?;
    let mut line = String::new();
    let mut stdin = BufReader::new(tokio::io::stdin());
    stdin.read_line(&mut line).await?;
    print(&receive(&mut stream).await)
}

/// GETs a page and prints its body.
pub async fn get(server: SocketAddr, path: &str) -> Result<()> {
    let mut stream = TcpStream::connect(server)
        .await
        .with_context(|| format!("connecting to {server}"))?;
    let request = format!("GET {path} HTTP/1.0\r\nhost: {server}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    let status = head.lines().next().unwrap_or_default();
    ensure!(status.contains(" 200"), "{status}: {body}");
    print!("{body}");
    Ok(())
}
