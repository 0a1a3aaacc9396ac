//! HTTP/2 as bytes: what a client with a certificate may send to port 15008 within TLS, behind the preface.

#![no_main]

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, LazyLock};

use http::StatusCode;
use libfuzzer_sys::fuzz_target;
use rustls::ClientConfig;
use seine_fuzz::{run, say};
use seine_hbone::{Incoming, Io, Settings, accept, drain};
use seine_identity::testing::TestCa;
use seine_identity::{Credentials, server_name};
use tokio::io::{AsyncWriteExt, DuplexStream, copy, duplex, split};
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

// Most mutations would break it, and nothing behind it would be seen.
static PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
static CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 4711);

static ENDS: LazyLock<(Arc<ClientConfig>, Arc<Credentials>)> = LazyLock::new(|| {
    let ca = TestCa::new("cluster.local");
    let client = ca.credentials("shop", "web");
    let config = client.client_config(&ca.identity("shop", "db").into());
    (
        config.expect("a configuration"),
        ca.credentials("shop", "db"),
    )
});

/// Sends back what it gets on even ports, and refuses others.
async fn answer(asked: Incoming) {
    if asked.request.authority.port() % 2 == 1 {
        asked.reject(StatusCode::UNAUTHORIZED);
        return;
    }
    if let Ok(stream) = asked.accept(None) {
        let (mut from, mut to) = split(stream);
        let _ = copy(&mut from, &mut to).await;
        let _ = to.shutdown().await;
    }
}

async fn serve(pipe: DuplexStream) {
    let settings = Arc::new(Settings::default());
    let tunnel = accept(Io::from(pipe), CLIENT, &ENDS.1, settings).await;
    let streams = RefCell::new(JoinSet::new());
    let (_never, drain) = drain();
    let _ = tunnel
        .expect("TLS and the preface are good")
        .serve(drain, |asked| {
            streams.borrow_mut().spawn(answer(asked));
        })
        .await;
    // None outlives its tunnel.
    streams.into_inner().join_all().await;
}

async fn talk(pipe: DuplexStream, bytes: &[u8]) {
    let tls = TlsConnector::from(Arc::clone(&ENDS.0));
    let tls = tls.connect(server_name(CLIENT.ip()), pipe).await;
    say(tls.expect("a good certificate"), PREFACE, bytes).await;
}

fuzz_target!(|bytes: &[u8]| {
    let (client, server) = duplex(1 << 20);
    run(async { tokio::join!(serve(server), talk(client, bytes)) });
});
