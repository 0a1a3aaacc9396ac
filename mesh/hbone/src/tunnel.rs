//! One tunnel as a client: handshakes, and the task that drives its connection.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::SystemTime;

use rustls::ClientConfig;
use seine_identity::{Identity, PeerChain, PeerError, peer_identity, server_name};
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tracing::{debug, warn};

use crate::error::OpenError;
use crate::io::Io;
use crate::keepalive::Keepalive;
use crate::pool::TunnelKey;
use crate::queued::Queued;
use crate::read_ahead::ReadAhead;
use crate::settings::Settings;

/// What a [`Connector`] gives: a connection to the other proxy and how to secure it.
#[derive(Debug)]
pub struct Connected {
    /// Connected, from the source pod's netns and address.
    pub io: Io,
    /// Presents the key's source identity and accepts its destination identities only.
    pub tls: Arc<ClientConfig>,
    /// Held for as long as the TLS handshake goes on: what limits how many do.
    pub turn: Option<OwnedSemaphorePermit>,
}

/// Makes connections for a pool. The pool knows nothing of netns and certificates.
pub trait Connector: Send + Sync + 'static {
    /// Connects to `key.peer` from `key.source_address`, as `key.source`. The pool bounds the time.
    fn connect<'a>(
        &'a self,
        key: &'a TunnelKey,
    ) -> Pin<Box<dyn Future<Output = io::Result<Connected>> + Send + 'a>>;

    /// Called before each handshake; what it gives is called with what the peer presented, and watches over
    /// the tunnel. By default peers are trusted for as long as their tunnels live.
    fn watch_trust(&self) -> TrustWatch {
        Box::new(|_| Box::pin(std::future::pending()))
    }
}

/// Done, with the reason, when the peer that presented the chain is no longer trusted: its tunnel then ends at
/// once.
pub type TrustWatch = Box<dyn FnOnce(PeerChain) -> Distrusted + Send>;

/// The end of the trust in a peer, and why.
pub type Distrusted = Pin<Box<dyn Future<Output = Arc<str>> + Send>>;

/// A handle to open streams with; the connection ends when all handles and streams are gone.
pub(crate) type Handle = h2::client::SendRequest<Queued>;

/// A tunnel that stands, and its driver, which has to be spawned.
pub(crate) struct Tunnel<D> {
    pub(crate) handle: Handle,
    /// The end of the peer's certificate, after which no stream may be opened.
    pub(crate) not_after: SystemTime,
    pub(crate) driver: D,
}

/// Connects, authenticates, and starts HTTP/2. The driver ends when the connection does.
pub(crate) async fn establish(
    key: &TunnelKey,
    connector: &dyn Connector,
    settings: &Settings,
) -> Result<Tunnel<impl Future<Output = ()> + Send + use<>>, OpenError> {
    let peer = key.peer;
    let watch_trust = connector.watch_trust();
    let Connected { io, tls, turn } =
        connector
            .connect(key)
            .await
            .map_err(|source| OpenError::Connect {
                peer,
                source: Arc::new(source),
            })?;
    let mut tls = TlsConnector::from(tls)
        .connect(server_name(peer.ip()), ReadAhead::new(io))
        .await
        .map_err(|source| OpenError::Handshake {
            peer,
            source: Arc::new(source),
        })?;
    drop(turn);
    check_identity(key, peer_identity(tls.get_ref().1))?;
    let chain = PeerChain::of_server(tls.get_ref().1).map_err(|error| OpenError::Identity {
        peer,
        found: error.to_string(),
    })?;
    let not_after = chain.not_after();
    tls.get_mut().1.set_buffer_limit(Some(settings.tls_buffer));
    let protocol = |source| OpenError::Protocol {
        peer,
        source: Arc::new(source),
    };
    let (handle, connection) = settings
        .client()
        .handshake::<_, Queued>(tls)
        .await
        .map_err(protocol)?;
    let driver = drive(connection, peer, watch_trust(chain), settings);
    Ok(Tunnel {
        handle,
        not_after,
        driver,
    })
}

/// rustls has checked the same with the configuration that the connector gave; the key is what
/// streams are sorted by, so it is the key's set that has to hold.
fn check_identity(key: &TunnelKey, found: Result<Identity, PeerError>) -> Result<(), OpenError> {
    let found = match found {
        Ok(identity) if key.destinations.contains(&identity) => return Ok(()),
        Ok(identity) => identity.to_string(),
        Err(error) => error.to_string(),
    };
    Err(OpenError::Identity {
        peer: key.peer,
        found,
    })
}

fn drive(
    mut connection: h2::client::Connection<TlsStream<ReadAhead<Io>>, Queued>,
    peer: std::net::SocketAddr,
    mut distrusted: Distrusted,
    settings: &Settings,
) -> impl Future<Output = ()> + Send + use<> {
    let mut keepalive = connection
        .ping_pong()
        .map(|pings| Keepalive::new(pings, settings));
    let mut connection = Box::pin(connection);
    poll_fn(move |cx| {
        if let Poll::Ready(result) = connection.as_mut().poll(cx) {
            match result {
                Ok(()) => debug!(%peer, "tunnel closed"),
                Err(error) => debug!(%peer, %error, "tunnel failed"),
            }
            return Poll::Ready(());
        }
        if keepalive
            .as_mut()
            .is_some_and(|keepalive| keepalive.poll_dead(cx).is_ready())
        {
            debug!(%peer, "tunnel closed: the peer does not answer PINGs");
            return Poll::Ready(());
        }
        if let Poll::Ready(reason) = distrusted.as_mut().poll(cx) {
            warn!(%peer, %reason, "a tunnel is ended: its peer is no longer trusted");
            return Poll::Ready(());
        }
        // A PING that was just asked for goes out in the connection's next poll, for which h2
        // has woken this task.
        Poll::Pending
    })
}
