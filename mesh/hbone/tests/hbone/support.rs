//! A client and a server joined by pipes in memory, with real certificates.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use seine_hbone::{
    Authority, ConnectRequest, Connected, Connector, DrainSignal, DrainTrigger, Incoming, Io,
    OpenError, Opened, Pool, ServeError, Settings, Stream, StreamError, TunnelKey, drain, serve,
};
use seine_identity::testing::{TestCa, TestLeaf};
use seine_identity::{Credentials, Identity, TlsOptions};
use tokio::io::DuplexStream;
use tokio::sync::{mpsc, watch};

pub(crate) const PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), 15008);
pub(crate) const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 4711);

/// The accepting side: every connection of a [`Connector`] of this ends here.
pub(crate) struct Server {
    pub(crate) ca: TestCa,
    pub(crate) settings: Arc<Settings>,
    client: Arc<Credentials>,
    credentials: Arc<Credentials>,
    incoming: mpsc::UnboundedSender<Incoming>,
    ended: mpsc::UnboundedSender<Result<(), ServeError>>,
    signal: Mutex<DrainSignal>,
    /// When true, no byte passes any more and nobody is told.
    pub(crate) frozen: watch::Sender<bool>,
    pub(crate) connections: AtomicUsize,
}

/// What the test sees of the server.
pub(crate) struct Seen {
    pub(crate) incoming: mpsc::UnboundedReceiver<Incoming>,
    pub(crate) ended: mpsc::UnboundedReceiver<Result<(), ServeError>>,
    pub(crate) drain: DrainTrigger,
}

impl Seen {
    pub(crate) async fn accept(&mut self) -> Stream {
        self.incoming.recv().await.unwrap().accept(None).unwrap()
    }
}

pub(crate) fn server(settings: Settings) -> (Arc<Server>, Seen) {
    let hour = Duration::from_secs(3600);
    server_with_lives(settings, hour, hour)
}

/// The same, where the certificates of client and server have so long to live.
pub(crate) fn server_with_lives(
    settings: Settings,
    of_client: Duration,
    of_server: Duration,
) -> (Arc<Server>, Seen) {
    let ca = TestCa::new("cluster.local");
    let credentials = |name: &str, life| {
        let mut leaf = TestLeaf::new(&ca.identity("shop", name));
        leaf.not_after = SystemTime::now() + life;
        let svid = Arc::new(ca.svid_from(&leaf));
        Arc::new(Credentials::new(svid, ca.bundles(), TlsOptions::default()).unwrap())
    };
    let (incoming, seen_incoming) = mpsc::unbounded_channel();
    let (ended, seen_ended) = mpsc::unbounded_channel();
    let (drain, signal) = drain();
    let server = Server {
        client: credentials("web", of_client),
        credentials: credentials("db", of_server),
        ca,
        settings: Arc::new(settings),
        incoming,
        ended,
        signal: Mutex::new(signal),
        frozen: watch::Sender::new(false),
        connections: AtomicUsize::new(0),
    };
    let seen = Seen {
        incoming: seen_incoming,
        ended: seen_ended,
        drain,
    };
    (Arc::new(server), seen)
}

impl Server {
    pub(crate) fn source(&self) -> Identity {
        self.ca.identity("shop", "web")
    }

    pub(crate) fn key(&self) -> Arc<TunnelKey> {
        Arc::new(self.bare_key())
    }

    pub(crate) fn bare_key(&self) -> TunnelKey {
        TunnelKey {
            source: self.source(),
            destinations: self.ca.identity("shop", "db").into(),
            peer: PEER,
            source_address: CLIENT.ip(),
            generation: 0,
        }
    }

    pub(crate) fn connector(self: &Arc<Self>) -> Arc<dyn Connector> {
        Arc::clone(self) as Arc<dyn Connector>
    }

    /// Connections made from now on have a drain of their own.
    pub(crate) fn renew_drain(&self) -> DrainTrigger {
        let (trigger, signal) = drain();
        *self.signal.lock().unwrap() = signal;
        trigger
    }

    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Serves the other end of the pipe that it gives.
    pub(crate) fn dial(&self) -> DuplexStream {
        self.connections.fetch_add(1, Ordering::Relaxed);
        let (client, mut near) = tokio::io::duplex(256 * 1024);
        let (mut far, server) = tokio::io::duplex(256 * 1024);
        let mut frozen = self.frozen.subscribe();
        tokio::spawn(async move {
            let freeze = async {
                // Without the server nobody can freeze it.
                if frozen.wait_for(|frozen| *frozen).await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                () = freeze => {}
            }
            std::future::pending::<()>().await;
        });
        let (incoming, ended) = (self.incoming.clone(), self.ended.clone());
        let (credentials, settings) = (Arc::clone(&self.credentials), Arc::clone(&self.settings));
        let signal = self.signal.lock().unwrap().clone();
        tokio::spawn(async move {
            let handler = move |asked: Incoming| {
                let _ = incoming.send(asked);
                std::future::ready(())
            };
            let io = Io::from(server);
            let result = serve(io, CLIENT, credentials, settings, signal, handler).await;
            let _ = ended.send(result);
        });
        client
    }

    /// An HTTP/2 client that keeps to none of HBONE's rules.
    pub(crate) async fn raw(&self) -> h2::client::SendRequest<Bytes> {
        let accepted = self.ca.identity("shop", "db").into();
        let tls = tokio_rustls::TlsConnector::from(self.client.client_config(&accepted).unwrap());
        let tls = tls
            .connect(seine_identity::server_name(PEER.ip()), self.dial())
            .await
            .unwrap();
        let (handle, connection) = h2::client::Builder::new()
            .initial_max_send_streams(1_000_000)
            .max_concurrent_reset_streams(1_000_000)
            .handshake(tls)
            .await
            .unwrap();
        tokio::spawn(async move {
            let _ = connection.await;
        });
        handle
    }
}

impl Connector for Server {
    fn connect<'a>(
        &'a self,
        key: &'a TunnelKey,
    ) -> Pin<Box<dyn Future<Output = io::Result<Connected>> + Send + 'a>> {
        Box::pin(async move {
            let tls = self
                .client
                .client_config(&key.destinations)
                .map_err(io::Error::other)?;
            Ok(Connected {
                io: self.dial().into(),
                tls,
                turn: None,
            })
        })
    }
}

pub(crate) fn request() -> ConnectRequest {
    ConnectRequest::new("10.0.0.2:5432".parse::<Authority>().unwrap())
}

pub(crate) async fn open(pool: &Pool, server: &Arc<Server>) -> Result<Opened, OpenError> {
    pool.open(&server.key(), &server.connector(), &request())
        .await
}

/// A stream from the pool and its other end.
pub(crate) async fn pair(pool: &Pool, server: &Arc<Server>, seen: &mut Seen) -> (Stream, Stream) {
    let (opened, accepted) = tokio::join!(open(pool, server), seen.accept());
    (opened.unwrap().stream, accepted)
}

/// The next bytes, given back to the sender's window.
pub(crate) async fn receive(stream: &mut Stream) -> Option<Result<Bytes, StreamError>> {
    let next = std::future::poll_fn(|cx| stream.poll_data(cx)).await;
    if let Some(Ok(bytes)) = &next {
        stream.release(bytes.len());
    }
    next
}

/// Sends as the flow control allows.
pub(crate) async fn send(stream: &mut Stream, mut bytes: Bytes) -> Result<(), StreamError> {
    while !bytes.is_empty() {
        let wanted = bytes.len();
        let capacity = std::future::poll_fn(|cx| stream.poll_capacity(cx, wanted)).await?;
        stream.send(bytes.split_to(capacity))?;
    }
    Ok(())
}
