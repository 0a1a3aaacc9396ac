//! Sockets with a mark, as the proxy's own have and as any program with `NET_RAW` can set.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

use crate::peer::report::{Asked, Failure, Stage};

const PATIENCE: Duration = Duration::from_secs(10);

/// Connects with the mark, sends, half-closes, reads to the end.
pub async fn ask(address: SocketAddr, mark: u32, send: &str) -> Result<Asked> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_mark(mark)?;
    socket.set_nonblocking(true)?;
    let mut asked = Asked::default();
    let mut stage = Stage::Connect;
    let exchange = async {
        let mut stream = TcpSocket::from_std_stream(socket.into())
            .connect(address)
            .await?;
        asked.local = stream.local_addr().ok();
        asked.peer = stream.peer_addr().ok();
        stage = Stage::Send;
        stream.write_all(send.as_bytes()).await?;
        stream.shutdown().await?;
        stage = Stage::Receive;
        stream.read_to_string(&mut asked.received).await
    };
    let outcome = tokio::time::timeout(PATIENCE, exchange).await;
    asked.failure = match outcome {
        Ok(Ok(_)) => None,
        Ok(Err(error)) => Some(Failure::new(stage, &error)),
        Err(_) => Some(Failure::named(stage, "PATIENCE")),
    };
    Ok(asked)
}
