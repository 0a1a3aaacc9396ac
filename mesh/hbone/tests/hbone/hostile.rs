//! What a peer that means no good, or isn't one of ours, can do.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use seine_hbone::{Memory, ServeError, Settings, Stats, StreamError, Unanswered};
use seine_identity::testing::TestCa;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use crate::support::{PEER, server};

fn connect(uri: &str) -> Request<()> {
    Request::connect(uri).body(()).unwrap()
}

#[tokio::test]
async fn garbage_ends_the_connection_with_a_handshake_error() {
    for garbage in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 4096],
        &[0xff; 70_000],
        b"\x16\x03\x01",
    ] {
        let (server, mut seen) = server(Settings::default());
        let mut pipe = server.dial();
        let _ = pipe.write_all(garbage).await;
        let _ = pipe.shutdown().await;
        let ended = seen.ended.recv().await;
        assert!(
            matches!(ended, Some(Err(ServeError::Handshake { .. }))),
            "{ended:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stalls_in_the_handshake_is_let_go() {
    let (server, mut seen) = server(Settings::default());
    let begin = Instant::now();
    let _pipe = server.dial();
    let ended = seen.ended.recv().await;
    assert!(
        matches!(ended, Some(Err(ServeError::HandshakeTimeout { .. }))),
        "{ended:?}"
    );
    assert_eq!(begin.elapsed(), server.settings.handshake_timeout);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_stalls_after_tls_is_let_go() {
    let (server, mut seen) = server(Settings::default());
    let credentials = server.ca.credentials("shop", "web");
    let config = credentials
        .client_config(&server.ca.identity("shop", "db").into())
        .unwrap();
    let name = seine_identity::server_name(PEER.ip());
    let tls = tokio_rustls::TlsConnector::from(config);
    let _tls = tls.connect(name, server.dial()).await.unwrap();
    let ended = seen.ended.recv().await;
    assert!(
        matches!(ended, Some(Err(ServeError::HandshakeTimeout { .. }))),
        "{ended:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_that_keeps_a_tunnel_without_streams_is_let_go() {
    let settings = Settings {
        idle_timeout: Duration::from_secs(60),
        ..Settings::default()
    };
    let (server, mut seen) = server(settings);
    let mut raw = server.raw().await;
    let (response, mut send) = raw.send_request(connect("10.0.0.2:80"), false).unwrap();
    let (response, far) = tokio::join!(response, seen.accept());
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(
        seen.ended.try_recv().is_err(),
        "a tunnel with a stream lives on"
    );
    drop(response);
    send.send_reset(h2::Reason::CANCEL);
    drop(far);
    let begin = Instant::now();
    let ended = seen.ended.recv().await;
    assert!(matches!(ended, Some(Ok(()))), "{ended:?}");
    let idle = begin.elapsed();
    assert!(
        idle >= server.settings.idle_timeout && idle <= server.settings.idle_timeout * 2,
        "{idle:?}"
    );
}

#[tokio::test]
async fn garbage_within_tls_ends_the_connection() {
    let (server, mut seen) = server(Settings::default());
    let credentials = server.ca.credentials("shop", "web");
    let config = credentials
        .client_config(&server.ca.identity("shop", "db").into())
        .unwrap();
    let name = seine_identity::server_name(PEER.ip());
    let tls = tokio_rustls::TlsConnector::from(config);
    let mut tls = tls.connect(name, server.dial()).await.unwrap();
    tls.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff")
        .await
        .unwrap();
    let mut rest = Vec::new();
    let _ = tls.read_to_end(&mut rest).await;
    let ended = seen.ended.recv().await;
    assert!(
        matches!(ended, Some(Err(ServeError::Protocol { .. }))),
        "{ended:?}"
    );
}

#[tokio::test]
async fn a_client_of_a_domain_that_is_not_trusted_is_refused() {
    let (server, mut seen) = server(Settings::default());
    let credentials = TestCa::new("cluster.local").credentials("shop", "web");
    let config = credentials
        .client_config(&server.ca.identity("shop", "db").into())
        .unwrap();
    let name = seine_identity::server_name(PEER.ip());
    let tls = tokio_rustls::TlsConnector::from(config);
    assert!(tls.connect(name, server.dial()).await.is_err());
    let ended = seen.ended.recv().await;
    assert!(
        matches!(ended, Some(Err(ServeError::Handshake { .. }))),
        "{ended:?}"
    );
    assert_eq!(
        seine_hbone::Pool::new(Settings::default()).stats(),
        Stats::default()
    );
}

#[tokio::test]
async fn headers_beyond_the_limit_are_refused_and_the_tunnel_lives_on() {
    let (server, mut seen) = server(Settings::default());
    let mut raw = server.raw().await;
    let mut head = connect("10.0.0.2:80");
    for number in 0..40 {
        let name = http::HeaderName::from_bytes(format!("x-{number}").as_bytes()).unwrap();
        head.headers_mut()
            .insert(name, "a".repeat(1000).parse().unwrap());
    }
    let (response, _) = raw.send_request(head, false).unwrap();
    let status = response.await.map(|response| response.status());
    assert_eq!(status.unwrap(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    let (response, _send) = raw.send_request(connect("10.0.0.2:80"), false).unwrap();
    let (response, _far) = tokio::join!(response, seen.accept());
    assert_eq!(response.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused_one_by_one() {
    let settings = Settings {
        streams_accepted: 5,
        ..Settings::default()
    };
    let (server, mut seen) = server(settings);
    let mut raw = server.raw().await;
    // Sent before the server's settings are known, so that the client doesn't hold them back.
    let mut sent: Vec<_> = (0..8)
        .map(|_| raw.send_request(connect("10.0.0.2:80"), false).unwrap())
        .collect();
    let mut kept = Vec::new();
    for _ in 0..5 {
        kept.push(seen.accept().await);
    }
    let mut refused = 0;
    for (response, _) in sent.drain(..) {
        match tokio::time::timeout(Duration::from_millis(500), response).await {
            Ok(Ok(response)) => assert_eq!(response.status(), StatusCode::OK),
            Ok(Err(error)) => {
                assert_eq!(error.reason(), Some(h2::Reason::REFUSED_STREAM));
                refused += 1;
            }
            // Held back by the client, which has learned the limit meanwhile.
            Err(_) => refused += 1,
        }
    }
    assert_eq!(refused, 3);
}

#[tokio::test]
async fn streams_opened_and_reset_without_end_leave_a_bounded_number_of_handlers() {
    let (server, mut seen) = server(Settings::default());
    let mut raw = server.raw().await;
    // The handlers, which keep what they got, are as slow as can be.
    for _ in 0..5000 {
        let Ok((response, mut send)) = raw.send_request(connect("10.0.0.2:80"), false) else {
            break;
        };
        send.send_reset(h2::Reason::CANCEL);
        drop((response, send));
        tokio::task::yield_now().await;
        if std::future::poll_fn(|cx| raw.poll_ready(cx)).await.is_err() {
            break;
        }
    }
    let mut held = Vec::new();
    let quiet = Duration::from_millis(200);
    while let Ok(Some(incoming)) = tokio::time::timeout(quiet, seen.incoming.recv()).await {
        held.push(incoming);
        assert!(held.len() <= 200, "more handlers than streams are allowed");
    }
    for incoming in &mut held {
        let reason = incoming.unanswered(None).await;
        let Unanswered::GivenUp(StreamError::Reset(_) | StreamError::TunnelLost(_)) = reason else {
            panic!("{reason:?}");
        };
    }
}

#[tokio::test]
async fn a_flood_of_empty_frames_does_not_grow_memory_without_bound() {
    let (server, mut seen) = server(Settings::default());
    let mut raw = server.raw().await;
    let (_response, mut send) = raw.send_request(connect("10.0.0.2:80"), false).unwrap();
    let _far = seen.accept().await;
    for count in 0..2_000_000u32 {
        if send.send_data(Bytes::new(), false).is_err() {
            break;
        }
        if count % 64 == 0 {
            tokio::task::yield_now().await;
            if let Ok(ended) = seen.ended.try_recv() {
                assert!(
                    matches!(ended, Err(ServeError::Protocol { .. })),
                    "{ended:?}"
                );
                return;
            }
        }
    }
    let ended = tokio::time::timeout(Duration::from_secs(20), seen.ended.recv()).await;
    assert!(
        matches!(ended, Ok(Some(Err(ServeError::Protocol { .. })))),
        "{ended:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_clients_send_before_their_answer_is_within_a_bound() {
    const BOUND: usize = 100 << 10;
    let (server, mut seen) = server(Settings::default());
    let memory = Memory::new(BOUND);
    let mut raw = server.raw().await;
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let (response, mut send) = raw.send_request(connect("10.0.0.2:80"), false).unwrap();
        send.send_data(Bytes::from(vec![0; 40 << 10]), false)
            .unwrap();
        let mut incoming = seen.incoming.recv().await.unwrap();
        let memory = memory.clone();
        let unanswered = tokio::spawn(async move { incoming.unanswered(Some(&memory)).await });
        waiting.push((response, send, unanswered));
        // So long that they stall one after the other.
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    let (_, _, first) = waiting.swap_remove(0);
    let why = first.await.unwrap();
    assert!(matches!(why, Unanswered::Stalled), "{why:?}");
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(waiting.iter().all(|(_, _, later)| !later.is_finished()));
    assert_eq!(memory.held(), 80 << 10);
    for (_, _, later) in waiting {
        later.abort();
        let _ = later.await;
    }
    assert_eq!(memory.held(), 0);
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let head = [&length[1..], &[kind, flags], &stream.to_be_bytes()].concat();
    [&head, payload].concat()
}

/// A header without compression (RFC 7541, section 6.2.2).
fn pair(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}

#[tokio::test]
async fn a_flood_ends_its_tunnel_with_the_code_for_it() {
    const HEADERS: u8 = 1;
    const RESET: u8 = 3;
    const CONTINUATION: u8 = 9;
    const END_HEADERS: u8 = 4;
    let head = [
        pair(":method", "CONNECT"),
        pair(":authority", "10.0.0.2:80"),
    ]
    .concat();
    let reset = |number: u32| {
        let stream = 2 * number + 1;
        let opened = frame(HEADERS, END_HEADERS, stream, &head);
        [opened, frame(RESET, 0, stream, &8_u32.to_be_bytes())].concat()
    };
    let resets: Vec<u8> = (0..200).flat_map(reset).collect();
    let more = frame(CONTINUATION, 0, 1, &pair("x", &"a".repeat(100)));
    let continuations = [frame(HEADERS, 0, 1, &head), more.repeat(2000)].concat();
    for (what, flood) in [("resets", resets), ("continuations", continuations)] {
        let (server, mut seen) = server(Settings::default());
        let credentials = server.ca.credentials("shop", "web");
        let config = credentials
            .client_config(&server.ca.identity("shop", "db").into())
            .unwrap();
        let name = seine_identity::server_name(PEER.ip());
        let tls = tokio_rustls::TlsConnector::from(config);
        let tls = tls.connect(name, server.dial()).await.unwrap();
        let (mut from, mut to) = tokio::io::split(tls);
        // What the server says is read, so that it is never held up.
        let reader = tokio::spawn(async move { from.read_to_end(&mut Vec::new()).await });
        let preface = [
            &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
            &frame(4, 0, 0, &[]),
        ]
        .concat();
        to.write_all(&preface).await.unwrap();
        // It may end in the middle of it.
        let _ = to.write_all(&flood).await;
        let _ = to.flush().await;
        let ended = seen.ended.recv().await;
        let Some(Err(ServeError::Protocol { source, .. })) = &ended else {
            panic!("{what}: {ended:?}");
        };
        let calm = Some(h2::Reason::ENHANCE_YOUR_CALM);
        assert_eq!(source.reason(), calm, "{what}: {source}");
        reader.abort();
    }
}
