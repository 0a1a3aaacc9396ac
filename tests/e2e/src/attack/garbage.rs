//! Bytes that no protocol has.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use nix::errno::Errno;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::timeout;

use super::report::{Garbage, GarbageEnd};

/// How long the other side is given to end the connection.
const PATIENCE: Duration = Duration::from_secs(3);
/// How many bytes a connection gets.
pub const BYTES: usize = 4096;
/// How long the datagrams are that an address gets: too short for a header, with a header that announces
/// what does not follow, and as long as a packet may be.
pub const DATAGRAMS: [usize; 8] = [0, 1, 11, 12, 13, 100, 512, 1400];

/// Sends garbage to each, one after the other.
pub async fn send(addresses: &[SocketAddr]) -> Vec<Garbage> {
    let mut reports = Vec::with_capacity(addresses.len());
    for address in addresses {
        reports.push(send_to(*address).await);
    }
    reports
}

async fn send_to(address: SocketAddr) -> Garbage {
    let mut report = Garbage {
        address,
        local: None,
        received: 0,
        end: GarbageEnd::Open,
    };
    // Bound first, so that its port is known also of a connection that is reset before it stands.
    let connected = async {
        let (socket, any) = match address {
            SocketAddr::V4(_) => (TcpSocket::new_v4()?, Ipv4Addr::UNSPECIFIED.into()),
            SocketAddr::V6(_) => (TcpSocket::new_v6()?, Ipv6Addr::UNSPECIFIED.into()),
        };
        socket.bind(SocketAddr::new(any, 0))?;
        report.local = Some(socket.local_addr()?);
        socket.connect(address).await
    };
    let mut stream = match timeout(PATIENCE, connected).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionReset => {
            report.end = GarbageEnd::Ended;
            return report;
        }
        Ok(Err(error)) => {
            let errno = error.raw_os_error().map(Errno::from_raw);
            report.end = GarbageEnd::Refused(format!("{errno:?}"));
            return report;
        }
        Err(_) => {
            report.end = GarbageEnd::Refused("no answer".to_owned());
            return report;
        }
    };
    let exchange = async {
        // It may be reset while this is still being sent.
        let _ = stream.write_all(&bytes()).await;
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            report.received += count;
        }
    };
    if timeout(PATIENCE, exchange).await.is_ok() {
        report.end = GarbageEnd::Ended;
    }
    report
}

/// Sends datagrams of garbage to each, see [`DATAGRAMS`].
///
/// # Errors
///
/// If there is no socket to send from.
pub async fn send_datagrams(addresses: &[SocketAddr]) -> std::io::Result<Vec<Garbage>> {
    let mut reports = Vec::with_capacity(addresses.len());
    for address in addresses {
        let any = match address {
            SocketAddr::V4(_) => "0.0.0.0:0",
            SocketAddr::V6(_) => "[::]:0",
        };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(address).await?;
        let mut report = Garbage {
            address: *address,
            local: socket.local_addr().ok(),
            received: 0,
            end: GarbageEnd::Open,
        };
        for length in DATAGRAMS {
            // A port that nobody listens on makes the next call fail.
            let _ = socket.send(&bytes()[..length]).await;
        }
        let answers = async {
            let mut buffer = [0; 65_535];
            loop {
                match socket.recv(&mut buffer).await {
                    Ok(count) => report.received += count,
                    Err(error) => {
                        let errno = error.raw_os_error().map(Errno::from_raw);
                        break report.end = GarbageEnd::Refused(format!("{errno:?}"));
                    }
                }
            }
        };
        let _ = timeout(Duration::from_millis(500), answers).await;
        reports.push(report);
    }
    Ok(reports)
}

/// The same each time, so that a failure can be seen again: a multiplicative generator's output.
fn bytes() -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut bytes = Vec::with_capacity(BYTES);
    while bytes.len() < BYTES {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        bytes.extend(state.to_be_bytes());
    }
    bytes
}
