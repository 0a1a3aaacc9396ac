//! The control plane's own server certificate, issued by its CA and renewed by itself.
//!
//! One task renews at half-life; handshakes read the newest certificate without a lock. Clients are
//! authenticated by their tokens, not by TLS.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use futures::Stream;
use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use seine_identity::crypto_provider;
use seine_telemetry::{Lines, limited};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tracing::{debug, info, warn};

use super::CaError;
use super::authority::Authority;

/// How often the certificate is looked at; short, since tests issue for seconds.
const LOOK: Duration = Duration::from_secs(5);

/// A client that doesn't finish its handshake in this time is dropped.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Handshakes and connections that wait to be taken; more are left in the kernel's backlog.
const WAITING: usize = 256;

static LINES: Lines = Lines::new();

/// The configuration of a server whose certificate stays fresh while this lives.
pub struct ServerTls {
    config: Arc<ServerConfig>,
    task: AbortHandle,
}

/// Issues a server certificate for these names and addresses, and keeps it fresh. TLS 1.3, ALPN
/// `h2`. Must be called within a tokio runtime.
///
/// # Errors
///
/// When the first certificate can't be made.
pub fn server_tls(
    authority: &Arc<Authority>,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
) -> Result<ServerTls, CaError> {
    let (first, end) = certificate(authority, &names, &addresses)?;
    let current = Arc::new(Current(ArcSwap::from_pointee(first)));
    let mut config = ServerConfig::builder_with_provider(Arc::clone(crypto_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
    config.alpn_protocols = vec![b"h2".to_vec()];
    let renew = renew(Arc::downgrade(authority), current, names, addresses, end);
    Ok(ServerTls {
        config: Arc::new(config),
        task: tokio::spawn(renew).abort_handle(),
    })
}

impl ServerTls {
    /// For a TLS acceptor.
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// Accepted connections after their handshake, for
    /// `tonic::transport::Server::serve_with_incoming`. Handshakes run beside each other; one that
    /// fails is logged and dropped. The stream keeps the certificate fresh.
    pub fn incoming(self, listener: TcpListener) -> TlsIncoming {
        let (sender, connections) = mpsc::channel(WAITING);
        let acceptor = TlsAcceptor::from(self.config());
        let task = tokio::spawn(accept(listener, acceptor, sender)).abort_handle();
        TlsIncoming {
            connections,
            task,
            _tls: self,
        }
    }
}

impl Drop for ServerTls {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerTls").finish_non_exhaustive()
    }
}

/// See [`ServerTls::incoming`].
#[derive(Debug)]
pub struct TlsIncoming {
    connections: mpsc::Receiver<TlsStream<TcpStream>>,
    task: AbortHandle,
    _tls: ServerTls,
}

impl Stream for TlsIncoming {
    type Item = io::Result<TlsStream<TcpStream>>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(ready!(self.connections.poll_recv(context)).map(Ok))
    }
}

impl Drop for TlsIncoming {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    sender: mpsc::Sender<TlsStream<TcpStream>>,
) {
    loop {
        // A place first: a flood of handshakes waits in the kernel.
        let Ok(place) = sender.clone().reserve_owned().await else {
            return;
        };
        let (connection, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                limited!(LINES, "accept", warn: %error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let _ = connection.set_nodelay(true);
            match timeout(HANDSHAKE, acceptor.accept(connection)).await {
                Ok(Ok(stream)) => drop(place.send(stream)),
                Ok(Err(error)) => debug!(%from, %error, "TLS handshake failed"),
                Err(_) => debug!(%from, "TLS handshake took too long"),
            }
        });
    }
}

async fn renew(
    authority: Weak<Authority>,
    current: Arc<Current>,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    end: SystemTime,
) {
    let left = |end: SystemTime| end.duration_since(SystemTime::now()).unwrap_or_default();
    let mut life = left(end);
    let mut end = end;
    let mut look = LOOK.min(life / 4);
    loop {
        tokio::time::sleep(look).await;
        let Some(authority) = authority.upgrade() else {
            return;
        };
        if left(end) > life / 2 {
            continue;
        }
        match certificate(&authority, &names, &addresses) {
            Ok((certificate, new_end)) => {
                current.0.store(Arc::new(certificate));
                (end, life) = (new_end, left(new_end));
                look = LOOK.min(life / 4);
                info!(
                    seconds_left = life.as_secs(),
                    "own server certificate renewed"
                );
            }
            Err(error) => {
                let seconds_left = left(end).as_secs();
                warn!(%error, seconds_left, "own server certificate can't be renewed");
                look = LOOK;
            }
        }
    }
}

fn certificate(
    authority: &Authority,
    names: &[String],
    addresses: &[IpAddr],
) -> Result<(CertifiedKey, SystemTime), CaError> {
    let (issued, key) = authority.issue_server(names, addresses)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec()));
    let key = crypto_provider().key_provider.load_private_key(key)?;
    Ok((CertifiedKey::new(issued.der, key), issued.not_after))
}

/// The newest certificate.
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the newest server certificate")
    }
}
