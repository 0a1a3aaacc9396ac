//! Errors: what failed, with whom, whose fault it was, and whether another try can help.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use seine_identity::PeerError;

use crate::request::BadRequest;

/// What was wrong with the peer's certificate, if that was it: rustls shows no more of another's
/// error than its fields.
fn judgement(error: &io::Error) -> String {
    PeerError::from_io(error).map_or_else(|| error.to_string(), |refused| refused.to_string())
}

/// Whose fault an error is, seen from the proxy that reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The side that the connection goes to.
    Upstream,
    /// The side that the connection comes from.
    Downstream,
    /// This process: a limit, a drain, a mistake in its configuration.
    Internal,
}

/// Why a stream through a tunnel could not be opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// The TCP connection to the other proxy could not be made.
    #[error("can't connect to {peer}: {source}")]
    Connect {
        /// The other proxy.
        peer: SocketAddr,
        /// What the kernel or the connector said.
        source: Arc<io::Error>,
    },
    /// TLS or the HTTP/2 preface failed; an identity that wasn't accepted ends here.
    #[error("the TLS handshake with {peer} failed: {}", judgement(.source))]
    Handshake {
        /// The other proxy.
        peer: SocketAddr,
        /// What rustls said.
        source: Arc<io::Error>,
    },
    /// Certified as somebody whom the tunnel's key doesn't accept.
    #[error("{peer} is certified as {found}, which is not accepted for this destination")]
    Identity {
        /// The other proxy.
        peer: SocketAddr,
        /// The identity in its certificate, or why there was none.
        found: String,
    },
    /// The peer does not speak HTTP/2, or closed at once.
    #[error("the HTTP/2 handshake with {peer} failed: {source}")]
    Protocol {
        /// The other proxy.
        peer: SocketAddr,
        /// What h2 said.
        source: Arc<h2::Error>,
    },
    /// No tunnel in time.
    #[error("no tunnel to {peer} within {limit:?}")]
    ConnectTimeout {
        /// The other proxy.
        peer: SocketAddr,
        /// The limit that was passed.
        limit: Duration,
    },
    /// The tunnel stands, but the CONNECT was not answered in time.
    #[error("{peer} did not answer the CONNECT within {limit:?}")]
    ResponseTimeout {
        /// The other proxy.
        peer: SocketAddr,
        /// The limit that was passed.
        limit: Duration,
    },
    /// The other proxy answered, but not with 200.
    #[error("{peer} answered the CONNECT with {status}")]
    Status {
        /// The other proxy.
        peer: SocketAddr,
        /// 400, 401 and 503 are what HBONE defines.
        status: StatusCode,
    },
    /// The tunnel broke before the CONNECT was answered.
    #[error("the tunnel to {peer} broke before the CONNECT was answered: {source}")]
    Tunnel {
        /// The other proxy.
        peer: SocketAddr,
        /// What broke.
        source: StreamError,
        /// The peer has certainly not acted on the CONNECT.
        unsent: bool,
    },
    /// The request can't be put into a CONNECT.
    #[error("the request can't be encoded: {0}")]
    Request(#[from] BadRequest),
    /// The pool is drained, or this source was forgotten while the stream waited.
    #[error("the pool takes no more streams for this source")]
    Draining,
}

impl OpenError {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Request(_) => Fault::Downstream,
            Self::Draining => Fault::Internal,
            _ => Fault::Upstream,
        }
    }

    /// Whether the application at the other end has certainly not been reached, so that another
    /// try, perhaps at another endpoint, is safe.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::Handshake { .. }
            | Self::Identity { .. }
            | Self::Protocol { .. }
            | Self::ConnectTimeout { .. } => true,
            Self::Tunnel { unsent, .. } => *unsent,
            Self::Status { status, .. } => *status == StatusCode::SERVICE_UNAVAILABLE,
            Self::ResponseTimeout { .. } | Self::Request(_) | Self::Draining => false,
        }
    }
}

/// Why an open stream ended other than by both sides finishing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The other side reset the stream (RST_STREAM): to the application, a TCP reset.
    #[error("the peer reset the stream ({0})")]
    Reset(Reason),
    /// This side reset it, or uses it after it was finished.
    #[error("the stream was closed on this side")]
    Closed,
    /// The connection that carried the stream is gone.
    #[error("the tunnel's connection is gone: {0}")]
    TunnelLost(Arc<str>),
    /// The other proxy says that the tunnel ends; it has not acted on this stream.
    #[error("the peer ended the tunnel ({0})")]
    GoAway(Reason),
}

/// An HTTP/2 error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reason(pub h2::Reason);

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.description())
    }
}

impl From<h2::Error> for StreamError {
    fn from(error: h2::Error) -> Self {
        let reason = Reason(error.reason().unwrap_or(h2::Reason::INTERNAL_ERROR));
        if error.is_reset() && error.is_remote() {
            Self::Reset(reason)
        } else if error.is_go_away() && error.is_remote() {
            Self::GoAway(reason)
        } else if error.is_io() || error.is_go_away() {
            Self::TunnelLost(error.to_string().into())
        } else {
            Self::Closed
        }
    }
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        let kind = match error {
            StreamError::Reset(_) => io::ErrorKind::ConnectionReset,
            StreamError::Closed => io::ErrorKind::BrokenPipe,
            StreamError::TunnelLost(_) | StreamError::GoAway(_) => io::ErrorKind::ConnectionAborted,
        };
        Self::new(kind, error)
    }
}

/// Why a connection to the server side ended early.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// TLS failed: a peer without a certificate that is trusted here, or something else that
    /// speaks to the port.
    #[error("the TLS handshake with {peer} failed: {}", judgement(.source))]
    Handshake {
        /// The client.
        peer: SocketAddr,
        /// What rustls said.
        source: io::Error,
    },
    /// The certificate has no SPIFFE identity.
    #[error("{peer} has no usable identity: {reason}")]
    Identity {
        /// The client.
        peer: SocketAddr,
        /// What is wrong with the certificate.
        reason: String,
    },
    /// TLS and the HTTP/2 preface took too long.
    #[error("{peer} did not finish the handshake within {limit:?}")]
    HandshakeTimeout {
        /// The client.
        peer: SocketAddr,
        /// The limit that was passed.
        limit: Duration,
    },
    /// The peer broke the protocol or the connection broke.
    #[error("the tunnel from {peer} failed: {source}")]
    Protocol {
        /// The client.
        peer: SocketAddr,
        /// What h2 said.
        source: h2::Error,
    },
    /// The peer did not answer a PING in time.
    #[error("{peer} did not answer a PING within {limit:?}")]
    Dead {
        /// The client.
        peer: SocketAddr,
        /// The limit that was passed.
        limit: Duration,
    },
    /// The drain's deadline passed with streams still open.
    #[error("the tunnel from {peer} was cut at the drain's deadline")]
    DrainDeadline {
        /// The client.
        peer: SocketAddr,
    },
}

impl ServeError {
    /// A short constant name for why a tunnel was not accepted; nothing for one that was, and ended.
    pub fn refusal(&self) -> Option<&'static str> {
        match self {
            Self::Handshake { source, .. } => {
                Some(PeerError::from_io(source).map_or("tls", |refused| refused.reason()))
            }
            Self::Identity { .. } => Some("no-identity"),
            Self::HandshakeTimeout { .. } => Some("timeout"),
            _ => None,
        }
    }
}
