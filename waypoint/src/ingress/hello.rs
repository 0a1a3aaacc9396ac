//! The beginning of a TLS connection: which host the client asks for, before it is decided who answers.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// As much of a ClientHello as is read: those with the longest keys take some 2 KiB.
const MAX_HELLO: usize = 32 << 10;

/// The fatal alert `unrecognized_name` (RFC 6066, section 3), as it is before any key is agreed on.
pub(super) const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// A client's first words, and the bytes they were in.
pub(super) struct Hello {
    /// The host, in lower case; empty where none is named.
    pub(super) host: String,
    /// What was read.
    pub(super) bytes: Vec<u8>,
}

/// Reads it; what comes after it may have been read, too.
pub(super) async fn read(tcp: &mut TcpStream) -> io::Result<Hello> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let mut greeting = Greeting::default();
    let mut bytes = Vec::new();
    while bytes.len() < MAX_HELLO {
        let before = bytes.len();
        if tcp.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(host) = greeting.hear(&bytes[before..]).map_err(invalid)? {
            return Ok(Hello { host, bytes });
        }
    }
    Err(invalid("the ClientHello is too long".into()))
}

/// A ClientHello that comes piece by piece.
#[derive(Default)]
pub struct Greeting(Acceptor);

impl Greeting {
    /// Takes the next piece; the host that is asked for once that is known, in lower case, empty where none is named.
    pub fn hear(&mut self, mut piece: &[u8]) -> Result<Option<String>, String> {
        while !piece.is_empty() {
            let taken = self.0.read_tls(&mut piece);
            taken.map_err(|error| error.to_string())?;
            match self.0.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    let host = hello.server_name().unwrap_or_default();
                    return Ok(Some(host.trim_end_matches('.').to_ascii_lowercase()));
                }
                Err((error, _)) => return Err(error.to_string()),
            }
        }
        Ok(None)
    }
}

/// A connection of which some bytes have been read before.
pub(super) struct Rewound {
    read: Vec<u8>,
    at: usize,
    tcp: TcpStream,
}

impl Rewound {
    /// `bytes` come first.
    pub(super) fn new(bytes: Vec<u8>, tcp: TcpStream) -> Self {
        Self {
            read: bytes,
            at: 0,
            tcp,
        }
    }
}

impl AsyncRead for Rewound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let left = &this.read[this.at..];
        if left.is_empty() {
            return Pin::new(&mut this.tcp).poll_read(cx, buf);
        }
        let taken = left.len().min(buf.remaining());
        buf.put_slice(&left[..taken]);
        this.at += taken;
        if this.at == this.read.len() {
            (this.read, this.at) = (Vec::new(), 0);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rewound {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
