//! Asking the upstream resolver, byte for byte.
//!
//! Each query has a socket of its own, from a random port, connected to the one server, and an id
//! chosen at random: an answer from elsewhere, to another port, with another id or question, is
//! not taken (RFC 5452).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};

use super::message;
use crate::netns::Netns;
use crate::sockets::MARK;

/// Largest datagram.
const MAX_UDP: usize = 65_535;
/// Datagrams that aren't the answer before a server is given up.
const MAX_STRAY: usize = 32;

/// Makes sockets towards upstream resolvers, in the network namespace of the client.
pub trait UpstreamSockets: Send + Sync + 'static {
    /// A UDP socket bound to a random port of the family of `upstream`, not connected.
    fn udp(&self, upstream: SocketAddr) -> io::Result<UdpSocket>;

    /// A TCP socket of the family of `upstream`, not connected.
    fn tcp(&self, upstream: SocketAddr) -> io::Result<TcpSocket>;
}

/// Sockets in a pod's network namespace.
#[derive(Clone, Debug)]
pub struct PodSockets {
    /// The pod's.
    pub netns: Netns,
    /// Mark them as ztunnel's own, where an agent that redirects by marks wants it.
    pub mark: bool,
}

impl PodSockets {
    fn socket(&self, upstream: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        let domain = Domain::for_address(upstream);
        let socket = self
            .netns
            .run(|| Socket::new(domain, kind, Some(protocol)))??;
        if self.mark {
            socket.set_mark(MARK)?;
        }
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

impl UpstreamSockets for PodSockets {
    fn udp(&self, upstream: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.socket(upstream, Type::DGRAM, Protocol::UDP)?;
        let any: IpAddr = match upstream {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        socket.bind(&SocketAddr::new(any, 0).into())?;
        UdpSocket::from_std(socket.into())
    }

    fn tcp(&self, upstream: SocketAddr) -> io::Result<TcpSocket> {
        let socket = self.socket(upstream, Type::STREAM, Protocol::TCP)?;
        Ok(TcpSocket::from_std_stream(socket.into()))
    }
}

/// Why a query has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// There is nobody to ask.
    #[error("no upstream resolver is configured")]
    NoUpstream,
    /// The query has no whole header.
    #[error("the query is shorter than a DNS header")]
    TooShort,
    /// No server answered.
    #[error("upstream resolver {upstream}: {source}")]
    Upstream {
        /// The last one asked.
        upstream: SocketAddr,
        /// What happened.
        source: io::Error,
    },
}

/// Asks upstream resolvers in order, each for a bounded time.
#[derive(Clone)]
pub struct Forwarder {
    upstreams: Arc<[SocketAddr]>,
    sockets: Arc<dyn UpstreamSockets>,
    timeout: Duration,
}

impl Forwarder {
    /// Asks these, each for at most `timeout`.
    pub fn new(
        upstreams: Arc<[SocketAddr]>,
        sockets: Arc<dyn UpstreamSockets>,
        timeout: Duration,
    ) -> Self {
        Self {
            upstreams,
            sockets,
            timeout,
        }
    }

    /// Forwards a query over UDP. An answer that is marked as truncated is passed on as it is.
    ///
    /// # Errors
    ///
    /// No resolver answered; the error is the last one's.
    pub async fn udp(&self, query: &[u8]) -> Result<Vec<u8>, ForwardError> {
        self.ask(query, false).await
    }

    /// Forwards a query over TCP.
    ///
    /// # Errors
    ///
    /// No resolver answered; the error is the last one's.
    pub async fn tcp(&self, query: &[u8]) -> Result<Vec<u8>, ForwardError> {
        self.ask(query, true).await
    }

    async fn ask(&self, query: &[u8], tcp: bool) -> Result<Vec<u8>, ForwardError> {
        let id = message::id(query).ok_or(ForwardError::TooShort)?;
        let mut last = ForwardError::NoUpstream;
        for &upstream in &*self.upstreams {
            let mut query = query.to_vec();
            message::set_id(&mut query, rand::random());
            let exchange = async {
                if tcp {
                    self.exchange_tcp(upstream, &query).await
                } else {
                    self.exchange_udp(upstream, &query).await
                }
            };
            let answered = tokio::time::timeout(self.timeout, exchange);
            match answered
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            {
                Ok(mut response) => {
                    message::set_id(&mut response, id);
                    return Ok(response);
                }
                Err(source) => last = ForwardError::Upstream { upstream, source },
            }
        }
        Err(last)
    }

    async fn exchange_udp(&self, upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
        let socket = self.sockets.udp(upstream)?;
        // From here on the kernel takes datagrams of this address and port alone.
        socket.connect(upstream).await?;
        socket.send(query).await?;
        let mut buffer = Vec::new();
        for _ in 0..MAX_STRAY {
            // The buffer is there only while there is something to read.
            socket.readable().await?;
            buffer.resize(MAX_UDP, 0);
            let length = match socket.try_recv(&mut buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error),
            };
            if message::answers(&buffer[..length], query) {
                buffer.truncate(length);
                buffer.shrink_to_fit();
                return Ok(buffer);
            }
            buffer = Vec::new();
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "answers to other questions only",
        ))
    }

    async fn exchange_tcp(&self, upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = self.sockets.tcp(upstream)?.connect(upstream).await?;
        write_message(&mut stream, query).await?;
        match read_message(&mut stream).await? {
            Some(response) if message::answers(&response, query) => Ok(response),
            Some(_) => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "answers another question",
            )),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// One message of a TCP stream; none at its end.
pub async fn read_message(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    match stream.read_exact(&mut length).await {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    }
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}

/// Length and message in one write.
pub async fn write_message(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &[u8],
) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| {
        io::Error::new(io::ErrorKind::InvalidInput, "a message of over 65535 bytes")
    })?;
    let mut bytes = Vec::with_capacity(2 + message.len());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(message);
    stream.write_all(&bytes).await
}
