//! What a tunnel can stand on: a TCP connection, or a stream of another tunnel.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::stream::Stream;

/// Bytes both ways, below TLS.
pub enum Io {
    /// The usual case.
    Tcp(TcpStream),
    /// A tunnel within a tunnel, through a network gateway.
    Tunnel(Box<Stream>),
    /// Anything else; tests use it for pipes in memory.
    Other(Box<dyn Duplex>),
}

/// An asynchronous byte stream of any kind.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Duplex for T {}

impl From<TcpStream> for Io {
    /// Turns Nagle's algorithm off: HTTP/2 and TLS gather what belongs together themselves.
    fn from(tcp: TcpStream) -> Self {
        // Fails only for a connection that is gone already, which the first read will tell.
        let _ = tcp.set_nodelay(true);
        Self::Tcp(tcp)
    }
}

impl From<Stream> for Io {
    fn from(stream: Stream) -> Self {
        Self::Tunnel(Box::new(stream))
    }
}

impl From<tokio::io::DuplexStream> for Io {
    fn from(pipe: tokio::io::DuplexStream) -> Self {
        Self::Other(Box::new(pipe))
    }
}

impl fmt::Debug for Io {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(tcp) => f.debug_tuple("Tcp").field(tcp).finish(),
            Self::Tunnel(stream) => f.debug_tuple("Tunnel").field(stream).finish(),
            Self::Other(_) => f.write_str("Other"),
        }
    }
}

macro_rules! each {
    ($io:expr, $inner:ident => $call:expr) => {
        match $io {
            Io::Tcp($inner) => $call,
            Io::Tunnel($inner) => $call,
            Io::Other($inner) => $call,
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        each!(self.get_mut(), inner => Pin::new(inner).poll_read(cx, buf))
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), inner => Pin::new(inner).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), inner => Pin::new(inner).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        each!(self, inner => inner.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), inner => Pin::new(inner).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), inner => Pin::new(inner).poll_shutdown(cx))
    }
}
