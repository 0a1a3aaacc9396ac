//! Two proxies and an application in one process, over loopback; for the examples that measure.

#![allow(
    dead_code,
    clippy::unwrap_used,
    reason = "a benchmark that can't go on should say where; each example uses a part"
)]

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use seine_hbone::{
    Authority, ConnectRequest, Connected, Connector, CopyOptions, Counters, Incoming, Io, Pool,
    Settings, TunnelKey, copy, copy_plain, drain, serve,
};
use seine_identity::testing::TestCa;
use seine_identity::{AcceptedIdentities, Credentials};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Where to connect to, to reach the application by each way.
pub(crate) struct Ways {
    /// The application itself.
    pub(crate) direct: SocketAddr,
    /// Two proxies and a warm tunnel.
    pub(crate) tunnel: SocketAddr,
    /// Two proxies and a new tunnel for each connection.
    pub(crate) fresh: SocketAddr,
    /// Two hops of plain copies.
    pub(crate) plain: SocketAddr,
}

/// Starts it all.
pub(crate) async fn start() -> Ways {
    let ca = TestCa::new("cluster.local");
    let (web, db) = (ca.credentials("shop", "web"), ca.credentials("shop", "db"));
    let direct = application().await;
    let peer = inbound(db).await;
    let key = TunnelKey {
        source: ca.identity("shop", "web"),
        destinations: AcceptedIdentities::from(ca.identity("shop", "db")),
        peer,
        source_address: peer.ip(),
        generation: 0,
    };
    let pool = Pool::new(Settings::default());
    Ways {
        direct,
        tunnel: outbound(pool.clone(), Arc::clone(&web), key.clone(), direct, false).await,
        fresh: outbound(pool, web, key, direct, true).await,
        plain: plain(direct, 2).await,
    }
}

struct Dial(Arc<Credentials>);

impl Connector for Dial {
    fn connect<'a>(
        &'a self,
        key: &'a TunnelKey,
    ) -> Pin<Box<dyn Future<Output = io::Result<Connected>> + Send + 'a>> {
        Box::pin(async move {
            let tls = self
                .0
                .client_config(&key.destinations)
                .map_err(io::Error::other)?;
            Ok(Connected {
                io: TcpStream::connect(key.peer).await?.into(),
                tls,
                turn: None,
            })
        })
    }
}

/// The application: the first byte says what it does.
async fn application() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tcp.set_nodelay(true).unwrap();
            tokio::spawn(async move {
                let mut first = [0];
                if tcp.read_exact(&mut first).await.is_err() {
                    return;
                }
                let echo = first == *b"e";
                let mut buffer = vec![0; if echo { 64 } else { 256 * 1024 }];
                while let Ok(read @ 1..) = tcp.read(&mut buffer).await {
                    if echo && tcp.write_all(&buffer[..read]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// The accepting proxy, which dials the application that is asked for.
async fn inbound(credentials: Arc<Credentials>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let settings = Arc::new(Settings::default());
        let (_trigger, signal) = drain();
        loop {
            let (tcp, peer) = listener.accept().await.unwrap();
            let (credentials, settings) = (Arc::clone(&credentials), Arc::clone(&settings));
            let signal = signal.clone();
            tokio::spawn(async move {
                let _ = serve(Io::from(tcp), peer, credentials, settings, signal, admit).await;
            });
        }
    });
    address
}

async fn admit(incoming: Incoming) {
    let target = incoming.request.authority.address().unwrap();
    let tcp = TcpStream::connect(target).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let stream = incoming.accept(None).unwrap();
    let (options, counters) = (CopyOptions::default(), Counters::default());
    copy(tcp, stream, &options, &counters).await;
}

/// The proxy beside the client; `fresh` makes a tunnel for every connection.
async fn outbound(
    pool: Pool,
    credentials: Arc<Credentials>,
    key: TunnelKey,
    target: SocketAddr,
    fresh: bool,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connector: Arc<dyn Connector> = Arc::new(Dial(credentials));
    let generation = AtomicU64::new(1);
    tokio::spawn(async move {
        let shared = Arc::new(key);
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            tcp.set_nodelay(true).unwrap();
            let key = match fresh {
                true => Arc::new(TunnelKey {
                    generation: generation.fetch_add(1, Ordering::Relaxed),
                    ..TunnelKey::clone(&shared)
                }),
                false => Arc::clone(&shared),
            };
            let (pool, connector) = (pool.clone(), Arc::clone(&connector));
            tokio::spawn(async move {
                let request = ConnectRequest::new(Authority::from(target));
                let opened = pool.open(&key, &connector, &request).await.unwrap();
                let (options, counters) = (CopyOptions::default(), Counters::default());
                copy(tcp, opened.stream, &options, &counters).await;
                if fresh {
                    pool.forget_where(|other| *other == *key);
                }
            });
        }
    });
    address
}

/// Plain copies instead of the tunnel: what proxying costs without HTTP/2 and TLS.
async fn plain(target: SocketAddr, hops: usize) -> SocketAddr {
    let mut target = target;
    for _ in 0..hops {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let next = target;
        tokio::spawn(async move {
            loop {
                let (first, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let second = TcpStream::connect(next).await.unwrap();
                    first.set_nodelay(true).unwrap();
                    second.set_nodelay(true).unwrap();
                    let (options, counters) = (CopyOptions::default(), Counters::default());
                    copy_plain(first, second, &options, &counters).await;
                });
            }
        });
        target = address;
    }
    target
}

/// Connects and says what the application is to do: `e` echoes, `s` swallows.
pub(crate) async fn connect(to: SocketAddr, what: u8) -> TcpStream {
    let mut tcp = TcpStream::connect(to).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp.write_all(&[what]).await.unwrap();
    tcp
}
