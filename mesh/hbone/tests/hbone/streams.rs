//! Requests, answers, and the bytes of a stream.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use seine_hbone::{
    Baggage, ConnectRequest, Forwarded, OpenError, Pool, ProxyKind, Reset, Settings, StreamError,
    Unanswered,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{CLIENT, PEER, open, pair, receive, request, send, server};

#[tokio::test]
async fn a_request_arrives_with_its_fields_and_the_verified_identity() {
    let (server, mut seen) = server(Settings::default());
    let pool = Pool::new(Settings::default());
    let sent = ConnectRequest {
        baggage: Baggage::parse("service.name=web"),
        forwarded: Some(Forwarded {
            client: Some(CLIENT),
            host: Some("db.shop.svc".into()),
        }),
        proxy_kind: Some(ProxyKind::Gateway),
        ..request()
    };
    let (key, connector) = (server.key(), server.connector());
    let answer = async {
        let incoming = seen.incoming.recv().await.unwrap();
        let found = (
            incoming.request.clone(),
            incoming.peer_identity.clone(),
            incoming.peer,
        );
        let _stream = incoming
            .accept(Baggage::parse("service.name=db").as_ref())
            .unwrap();
        found
    };
    let (opened, (got, identity, peer)) = tokio::join!(pool.open(&key, &connector, &sent), answer);
    assert_eq!(got, sent);
    assert_eq!(identity, server.source());
    assert_eq!(peer, CLIENT);
    assert_eq!(opened.unwrap().baggage, Baggage::parse("service.name=db"));
}

#[tokio::test]
async fn a_refusal_arrives_with_its_status() {
    let (server, mut seen) = server(Settings::default());
    let pool = Pool::new(Settings::default());
    for status in [StatusCode::UNAUTHORIZED, StatusCode::SERVICE_UNAVAILABLE] {
        let (opened, ()) = tokio::join!(open(&pool, &server), async {
            seen.incoming.recv().await.unwrap().reject(status);
        });
        let error = opened.unwrap_err();
        assert!(matches!(error, OpenError::Status { status: got, peer: PEER } if got == status));
        assert_eq!(error.retryable(), status == StatusCode::SERVICE_UNAVAILABLE);
    }
    assert_eq!(
        server.connections(),
        1,
        "a refusal is no reason for another tunnel"
    );
    assert_eq!(pool.stats().streams, 0);
}

#[tokio::test]
async fn other_methods_and_bad_authorities_are_answered_with_400() {
    let (server, mut seen) = server(Settings::default());
    let mut raw = server.raw().await;
    for (method, uri) in [
        (Method::GET, "http://10.0.0.2/"),
        (Method::POST, "http://10.0.0.2:80/x"),
        (Method::CONNECT, "10.0.0.2:0"),
        (Method::CONNECT, "10.0.0.2"),
        (Method::CONNECT, "10.0.0.999:80"),
    ] {
        let head = Request::builder().method(method).uri(uri).body(()).unwrap();
        let (response, _) = raw.send_request(head, false).unwrap();
        assert_eq!(
            response.await.unwrap().status(),
            StatusCode::BAD_REQUEST,
            "{uri}"
        );
    }
    assert!(seen.incoming.try_recv().is_err());
}

#[tokio::test]
async fn each_direction_is_finished_by_itself() {
    let (server, mut seen) = server(Settings::default());
    let pool = Pool::new(Settings::default());
    let (mut client, mut far) = pair(&pool, &server, &mut seen).await;
    client.send(Bytes::from_static(b"query")).unwrap();
    client.finish().unwrap();
    assert_eq!(
        receive(&mut far).await,
        Some(Ok(Bytes::from_static(b"query")))
    );
    assert_eq!(receive(&mut far).await, None);
    far.send(Bytes::from_static(b"answer")).unwrap();
    far.finish().unwrap();
    assert_eq!(
        receive(&mut client).await,
        Some(Ok(Bytes::from_static(b"answer")))
    );
    assert_eq!(receive(&mut client).await, None);
    assert_eq!(
        client.send(Bytes::from_static(b"late")),
        Err(StreamError::Closed)
    );
    drop((client, far));
    assert_eq!(pool.stats().streams, 0);
}

#[tokio::test]
async fn a_reset_passes_as_a_reset_in_both_directions() {
    let (server, mut seen) = server(Settings::default());
    let pool = Pool::new(Settings::default());
    let (mut client, mut far) = pair(&pool, &server, &mut seen).await;
    client.reset(Reset::Cancel);
    assert!(matches!(
        receive(&mut far).await,
        Some(Err(StreamError::Reset(_)))
    ));
    let (mut client, far) = pair(&pool, &server, &mut seen).await;
    drop(far);
    assert!(matches!(
        receive(&mut client).await,
        Some(Err(StreamError::Reset(_)))
    ));
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn an_opener_that_gives_up_is_seen_by_the_handler_that_still_dials() {
    let (server, mut seen) = server(Settings::default());
    let pool = Pool::new(Settings::default());
    let mut incoming = {
        let opening = open(&pool, &server);
        tokio::pin!(opening);
        tokio::select! {
            _ = &mut opening => panic!("nobody answered"),
            incoming = seen.incoming.recv() => incoming.unwrap(),
        }
    };
    let why = incoming.unanswered(None).await;
    assert!(
        matches!(why, Unanswered::GivenUp(StreamError::Reset(_))),
        "{why:?}"
    );
    assert_eq!(pool.stats().streams, 0);
}

#[tokio::test]
async fn readers_that_stall_cost_bounded_memory_and_stop_nobody_else() {
    let settings = Settings {
        stream_window: 256 * 1024,
        ..Settings::default()
    };
    let (server, mut seen) = server(settings.clone());
    let pool = Pool::new(settings.clone());
    let mut stalled = Vec::new();
    for _ in 0..98 {
        stalled.push(pair(&pool, &server, &mut seen).await);
    }
    // Fill every one of them, in both directions, until it takes no more.
    let piece = Bytes::from(vec![1; 64 * 1024]);
    let bound = settings.stream_window as usize + settings.send_buffer;
    for (client, far) in &mut stalled {
        for stream in [client, far] {
            let mut taken = 0;
            let full = Duration::from_millis(20);
            while let Ok(sent) = tokio::time::timeout(full, send(stream, piece.clone())).await {
                sent.unwrap();
                taken += piece.len();
                assert!(
                    taken <= bound + piece.len(),
                    "{taken} bytes for a reader that stalls"
                );
            }
            assert!(
                taken >= settings.stream_window as usize / 2,
                "{taken} bytes only"
            );
        }
    }
    // All of the window of 98 streams is in use, which is more than a 16 MiB connection window.
    let (mut client, mut far) = pair(&pool, &server, &mut seen).await;
    assert_eq!(server.connections(), 1);
    let total = 16 * 1024 * 1024;
    let sending = tokio::spawn(async move {
        for _ in 0..total / piece.len() {
            send(&mut client, piece.clone()).await.unwrap();
        }
        client.finish().unwrap();
        client
    });
    let mut received = 0;
    while let Some(bytes) = receive(&mut far).await {
        received += bytes.unwrap().len();
    }
    assert_eq!(received, total);
    sending.await.unwrap();
}

#[tokio::test]
async fn a_stream_carries_another_tunnel() {
    let (outer, mut outer_seen) = server(Settings::default());
    let pool = Pool::new(Settings::default());
    let (mut client, mut far) = pair(&pool, &outer, &mut outer_seen).await;
    let echo = tokio::spawn(async move {
        let mut bytes = vec![0; 300_000];
        far.read_exact(&mut bytes).await.unwrap();
        far.write_all(&bytes).await.unwrap();
        far.shutdown().await.unwrap();
        far
    });
    let sent: Vec<u8> = (0..300_000u32).map(|n| n as u8).collect();
    client.write_all(&sent).await.unwrap();
    let mut got = Vec::new();
    client.read_to_end(&mut got).await.unwrap();
    assert!(got == sent);
    echo.await.unwrap();
}
