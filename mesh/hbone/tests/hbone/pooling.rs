//! Who shares a tunnel, and when tunnels end.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use seine_hbone::{
    Connected, Connector, OpenError, Pool, ServeError, Settings, Stats, Stream, StreamError,
    TunnelKey, Unanswered,
};
use seine_identity::Clock;
use tokio::time::Instant;

use crate::support::{Seen, Server, open, pair, receive, request, send, server, server_with_lives};

async fn accept_all(seen: &mut Seen, count: usize) -> Vec<Stream> {
    let mut streams = Vec::new();
    for _ in 0..count {
        streams.push(seen.accept().await);
    }
    streams
}

async fn open_many(pool: &Pool, server: &Arc<Server>, count: usize) -> Vec<Stream> {
    let mut opening = tokio::task::JoinSet::new();
    for _ in 0..count {
        let (pool, server) = (pool.clone(), Arc::clone(server));
        opening.spawn(async move { open(&pool, &server).await.unwrap().stream });
    }
    opening.join_all().await
}

#[tokio::test]
async fn openers_at_the_same_time_share_one_handshake() {
    let (server, mut seen) = server(Settings::default());
    let pool = Pool::new(Settings::default());
    let (streams, _far) = tokio::join!(open_many(&pool, &server, 100), accept_all(&mut seen, 100));
    assert_eq!((streams.len(), server.connections()), (100, 1));
}

#[tokio::test]
async fn the_hundred_and_first_stream_takes_another_connection() {
    let (server, mut seen) = server(Settings::default());
    let pool = Pool::new(Settings::default());
    let (streams, _far) = tokio::join!(open_many(&pool, &server, 250), accept_all(&mut seen, 250));
    assert_eq!((streams.len(), server.connections()), (250, 3));
    assert_eq!((pool.stats().tunnels, pool.stats().streams), (3, 250));
    drop(streams);
    assert_eq!(pool.stats().streams, 0);
    let _pair = pair(&pool, &server, &mut seen).await;
    assert_eq!(server.connections(), 3, "an idle tunnel is used again");
}

#[tokio::test]
async fn a_peer_that_allows_fewer_streams_gets_more_connections() {
    let (server, mut seen) = server(Settings {
        streams_accepted: 10,
        ..Settings::default()
    });
    let pool = Pool::new(Settings::default());
    let mut pairs = Vec::new();
    for _ in 0..25 {
        pairs.push(pair(&pool, &server, &mut seen).await);
    }
    assert_eq!(server.connections(), 3);
}

#[tokio::test]
async fn another_key_never_gets_the_same_tunnel() {
    let (server, mut seen) = server(Settings::default());
    let pool = Pool::new(Settings::default());
    let _first = pair(&pool, &server, &mut seen).await;
    let key = server.bare_key();
    let db = server.ca.identity("shop", "db");
    let keys = [
        TunnelKey {
            generation: 1,
            ..key.clone()
        },
        TunnelKey {
            source_address: "10.0.0.9".parse().unwrap(),
            ..key.clone()
        },
        TunnelKey {
            destinations: [db, server.ca.identity("shop", "db2")]
                .into_iter()
                .collect(),
            ..key.clone()
        },
        TunnelKey {
            source: server.ca.identity("shop", "other"),
            ..key
        },
    ];
    for (index, key) in keys.into_iter().enumerate() {
        let key = Arc::new(key);
        let connector = server.connector();
        let request = request();
        let (opened, _far) = tokio::join!(pool.open(&key, &connector, &request), seen.accept());
        opened.unwrap();
        assert_eq!(server.connections(), index + 2, "{key:?}");
    }
}

#[tokio::test]
async fn a_peer_of_another_identity_at_the_address_is_refused() {
    let (server, _seen) = server(Settings::default());
    let pool = Pool::new(Settings::default());
    let destinations = server.ca.identity("shop", "cache").into();
    let key = Arc::new(TunnelKey {
        destinations,
        ..server.bare_key()
    });
    let error = pool
        .open(&key, &server.connector(), &request())
        .await
        .unwrap_err();
    assert!(matches!(error, OpenError::Handshake { .. }), "{error}");
    assert!(error.retryable());
    assert_eq!(pool.stats(), Stats::default());
}

/// Gives a TLS configuration that accepts somebody whom the key doesn't.
struct Careless(Arc<Server>);

impl Connector for Careless {
    fn connect<'a>(
        &'a self,
        _: &'a TunnelKey,
    ) -> Pin<Box<dyn Future<Output = io::Result<Connected>> + Send + 'a>> {
        Box::pin(async move {
            let key = self.0.bare_key();
            self.0.connect(&key).await
        })
    }
}

#[tokio::test]
async fn the_keys_identities_hold_even_if_the_tls_configuration_accepts_others() {
    let (server, _seen) = server(Settings::default());
    let pool = Pool::new(Settings::default());
    let destinations = server.ca.identity("shop", "cache").into();
    let key = Arc::new(TunnelKey {
        destinations,
        ..server.bare_key()
    });
    let connector: Arc<dyn Connector> = Arc::new(Careless(server));
    let error = pool.open(&key, &connector, &request()).await.unwrap_err();
    assert!(matches!(error, OpenError::Identity { .. }), "{error}");
}

#[tokio::test]
async fn a_tunnel_that_drains_keeps_its_streams_and_gets_no_new_ones() {
    let (server, mut seen) = server(Settings::default());
    let pool = Pool::new(Settings::default());
    let (mut client, mut far) = pair(&pool, &server, &mut seen).await;
    let _later = server.renew_drain();
    seen.drain.drain(Instant::now() + Duration::from_secs(3600));
    // GOAWAY needs a moment; every stream that is opened meanwhile works.
    let deadline = Instant::now() + Duration::from_secs(10);
    while server.connections() == 1 {
        assert!(Instant::now() < deadline, "GOAWAY is not heeded");
        let _pair = pair(&pool, &server, &mut seen).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    client.send(Bytes::from_static(b"still here")).unwrap();
    assert_eq!(
        receive(&mut far).await,
        Some(Ok(Bytes::from_static(b"still here")))
    );
    client.finish().unwrap();
    far.finish().unwrap();
    drop((client, far));
    assert!(matches!(seen.ended.recv().await, Some(Ok(()))));
}

#[tokio::test(start_paused = true)]
async fn a_drains_deadline_cuts_what_is_left() {
    let (server, mut seen) = server(Settings::default());
    let pool = Pool::new(Settings::default());
    let (mut client, _far) = pair(&pool, &server, &mut seen).await;
    let begin = Instant::now();
    seen.drain.drain(begin + Duration::from_secs(5));
    assert!(matches!(
        receive(&mut client).await,
        Some(Err(StreamError::TunnelLost(_)))
    ));
    assert_eq!(begin.elapsed().as_secs(), 5);
    let ended = seen.ended.recv().await;
    assert!(
        matches!(ended, Some(Err(ServeError::DrainDeadline { .. }))),
        "{ended:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_gone_without_a_word_is_found_by_pings_on_both_sides() {
    let settings = Settings::default();
    let (server, mut seen) = server(settings.clone());
    let pool = Pool::new(settings.clone());
    let (mut client, mut far) = pair(&pool, &server, &mut seen).await;
    // PINGs are answered, so that nothing happens.
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(pool.stats().tunnels, 1);
    let begin = Instant::now();
    server.frozen.send_replace(true);
    let (near, other) = tokio::join!(receive(&mut client), receive(&mut far));
    assert!(
        matches!(near, Some(Err(StreamError::TunnelLost(_)))),
        "{near:?}"
    );
    assert!(
        matches!(other, Some(Err(StreamError::TunnelLost(_)))),
        "{other:?}"
    );
    let took = begin.elapsed();
    assert!(
        took >= settings.ping_timeout && took <= Duration::from_secs(31),
        "{took:?}"
    );
    let ended = seen.ended.recv().await;
    assert!(
        matches!(ended, Some(Err(ServeError::Dead { .. }))),
        "{ended:?}"
    );
    assert_eq!(pool.stats(), Stats::default());
}

#[tokio::test(start_paused = true)]
async fn an_idle_tunnel_is_closed_after_five_minutes_and_a_used_one_is_not() {
    let (server, mut seen) = server(Settings::default());
    let pool = Pool::new(Settings::default());
    let (client, far) = pair(&pool, &server, &mut seen).await;
    tokio::time::sleep(Duration::from_secs(1000)).await;
    assert_eq!(pool.stats().tunnels, 1);
    drop((client, far));
    let begin = Instant::now();
    assert!(matches!(seen.ended.recv().await, Some(Ok(()))));
    let took = begin.elapsed().as_secs();
    assert!((300..=331).contains(&took), "{took} s");
    assert_eq!(pool.stats(), Stats::default());
}

#[tokio::test]
async fn a_forgotten_source_gets_new_tunnels_and_keeps_its_streams() {
    let (server, mut seen) = server(Settings::default());
    let pool = Pool::new(Settings::default());
    let (mut client, mut far) = pair(&pool, &server, &mut seen).await;
    pool.forget(&server.ca.identity("shop", "other"));
    assert_eq!(pool.stats().tunnels, 1);
    pool.forget(&server.source());
    assert_eq!(pool.stats(), Stats::default());
    let _second = pair(&pool, &server, &mut seen).await;
    assert_eq!(server.connections(), 2);
    client.send(Bytes::from_static(b"still here")).unwrap();
    assert_eq!(
        receive(&mut far).await,
        Some(Ok(Bytes::from_static(b"still here")))
    );
    drop((client, far));
    assert!(
        matches!(seen.ended.recv().await, Some(Ok(()))),
        "the old tunnel ends with it"
    );
}

#[tokio::test]
async fn a_drained_pool_opens_nothing() {
    let (server, _seen) = server(Settings::default());
    let pool = Pool::new(Settings::default());
    pool.drain();
    assert!(matches!(
        open(&pool, &server).await,
        Err(OpenError::Draining)
    ));
    assert_eq!(server.connections(), 0);
}

/// Connects never, or not at all.
struct Unreachable {
    hangs: bool,
    asked: AtomicUsize,
}

impl Connector for Unreachable {
    fn connect<'a>(
        &'a self,
        _: &'a TunnelKey,
    ) -> Pin<Box<dyn Future<Output = io::Result<Connected>> + Send + 'a>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            tokio::task::yield_now().await;
            if self.hangs {
                std::future::pending::<()>().await;
            }
            Err(io::ErrorKind::ConnectionRefused.into())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_cannot_be_made_fails_all_that_wait_for_it() {
    for hangs in [false, true] {
        let (server, _seen) = server(Settings::default());
        let pool = Pool::new(Settings::default());
        let unreachable = Arc::new(Unreachable {
            hangs,
            asked: AtomicUsize::new(0),
        });
        let connector: Arc<dyn Connector> = Arc::clone(&unreachable) as _;
        let begin = Instant::now();
        let (key, request) = (server.key(), request());
        let (first, second) = tokio::join!(
            pool.open(&key, &connector, &request),
            pool.open(&key, &connector, &request)
        );
        for error in [first.unwrap_err(), second.unwrap_err()] {
            assert!(error.retryable());
            assert_eq!(
                matches!(error, OpenError::ConnectTimeout { .. }),
                hangs,
                "{error}"
            );
        }
        assert_eq!(begin.elapsed().as_secs(), if hangs { 10 } else { 0 });
        assert_eq!(unreachable.asked.load(Ordering::Relaxed), 1);
        tokio::task::yield_now().await;
        assert_eq!(pool.stats(), Stats::default());
    }
}

#[tokio::test(start_paused = true)]
async fn a_connect_without_an_answer_ends_at_the_limit() {
    let (server, mut seen) = server(Settings::default());
    let pool = Pool::new(Settings::default());
    let error = open(&pool, &server).await.unwrap_err();
    assert!(
        matches!(error, OpenError::ResponseTimeout { .. }),
        "{error}"
    );
    assert!(!error.retryable(), "the application may have been reached");
    let mut incoming = seen.incoming.recv().await.unwrap();
    let why = incoming.unanswered(None).await;
    assert!(
        matches!(why, Unanswered::GivenUp(StreamError::Reset(_))),
        "{why:?}"
    );
    assert_eq!(pool.stats().streams, 0);
}

#[tokio::test]
async fn a_tunnel_that_the_server_ended_is_replaced() {
    let (server, mut seen) = server(Settings::default());
    let pool = Pool::new(Settings::default());
    drop(pair(&pool, &server, &mut seen).await);
    let _later = server.renew_drain();
    seen.drain.drain(Instant::now());
    assert!(seen.ended.recv().await.is_some());
    let _pair = pair(&pool, &server, &mut seen).await;
    assert_eq!(server.connections(), 2);
}

/// Connects to a server that refuses the first streams without having acted on them.
struct Refusing {
    server: Arc<Server>,
    refuse: AtomicUsize,
    requests: Arc<AtomicUsize>,
}

impl Connector for Refusing {
    fn connect<'a>(
        &'a self,
        key: &'a TunnelKey,
    ) -> Pin<Box<dyn Future<Output = io::Result<Connected>> + Send + 'a>> {
        let (client, far) = tokio::io::duplex(64 * 1024);
        let config = self.server.ca.credentials("shop", "db").server_config();
        let refuse = self.refuse.load(Ordering::Relaxed);
        let requests = Arc::clone(&self.requests);
        tokio::spawn(async move {
            let tls = tokio_rustls::TlsAcceptor::from(config)
                .accept(far)
                .await
                .unwrap();
            let mut connection = h2::server::handshake(tls).await.unwrap();
            let mut kept = Vec::new();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                if requests.fetch_add(1, Ordering::Relaxed) < refuse {
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                } else {
                    kept.push((
                        respond.send_response(http::Response::new(()), false),
                        request,
                    ));
                }
            }
        });
        Box::pin(async move {
            let tls = self
                .server
                .ca
                .credentials("shop", "web")
                .client_config(&key.destinations);
            Ok(Connected {
                io: client.into(),
                tls: tls.unwrap(),
                turn: None,
            })
        })
    }
}

#[tokio::test]
async fn a_stream_that_the_peer_did_not_act_on_is_tried_once_more() {
    for (refuse, succeeds) in [(1, true), (2, false)] {
        let (server, _seen) = server(Settings::default());
        let pool = Pool::new(Settings::default());
        let requests = Arc::new(AtomicUsize::new(0));
        let connector: Arc<dyn Connector> = Arc::new(Refusing {
            server: Arc::clone(&server),
            refuse: AtomicUsize::new(refuse),
            requests: Arc::clone(&requests),
        });
        let opened = pool.open(&server.key(), &connector, &request()).await;
        assert_eq!(opened.is_ok(), succeeds, "{opened:?}");
        assert_eq!(requests.load(Ordering::Relaxed), 2);
        assert!(opened.err().is_none_or(|error| error.retryable()));
    }
}

/// Opens a stream, waits until the shorter of the two lives is over, and shows that the stream goes on and the tunnel takes
/// no other.
async fn only_what_stands_goes_on(of_client: u64, of_server: u64) -> (Pool, Arc<Server>) {
    let [of_client, of_server] = [of_client, of_server].map(Duration::from_secs);
    let (server, mut seen) = server_with_lives(Settings::default(), of_client, of_server);
    let end = SystemTime::now() + of_client.min(of_server);
    let pool = Pool::new(Settings::default());
    let (mut near, mut far) = pair(&pool, &server, &mut seen).await;
    Clock::SYSTEM.passed(end).await;
    let refused = open(&pool, &server).await;
    assert!(refused.is_err(), "{refused:?}");
    send(&mut near, Bytes::from_static(b"still")).await.unwrap();
    assert_eq!(receive(&mut far).await.unwrap().unwrap(), "still");
    send(&mut far, Bytes::from_static(b"here")).await.unwrap();
    assert_eq!(receive(&mut near).await.unwrap().unwrap(), "here");
    assert!(
        seen.incoming.try_recv().is_err(),
        "no second CONNECT came through"
    );
    (pool, server)
}

#[tokio::test]
async fn a_server_takes_no_stream_after_the_clients_certificate_has_ended() {
    only_what_stands_goes_on(2, 3600).await;
}

#[tokio::test]
async fn a_client_opens_no_stream_after_the_servers_certificate_has_ended() {
    let (pool, server) = only_what_stands_goes_on(3600, 2).await;
    assert_eq!(
        server.connections(),
        2,
        "a new tunnel would have proved more"
    );
    assert_eq!(pool.stats().tunnels, 0);
}
