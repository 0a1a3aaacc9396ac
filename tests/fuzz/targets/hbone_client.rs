//! HTTP/2 as bytes: what another node's proxy may answer to a CONNECT within TLS, behind its settings.

#![no_main]

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex};

use libfuzzer_sys::fuzz_target;
use rustls::{ClientConfig, ServerConfig};
use seine_fuzz::{run, say};
use seine_hbone::{Authority, ConnectRequest, Connected, Connector, Pool, Settings, TunnelKey};
use seine_identity::testing::TestCa;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_rustls::TlsAcceptor;

// Without a SETTINGS frame first, nothing behind it would be seen.
static SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

struct Ends {
    key: Arc<TunnelKey>,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

static ENDS: LazyLock<Ends> = LazyLock::new(|| {
    let ca = TestCa::new("cluster.local");
    let client = ca.credentials("shop", "web");
    let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, 15008));
    let key = TunnelKey {
        source: client.identity().clone(),
        destinations: ca.identity("shop", "db").into(),
        peer,
        source_address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        generation: 0,
    };
    let config = client.client_config(&key.destinations);
    Ends {
        key: Arc::new(key),
        client: config.expect("a configuration"),
        server: ca.credentials("shop", "db").server_config(),
    }
});

/// Connects once.
struct Once(Mutex<Option<DuplexStream>>);

impl Connector for Once {
    fn connect<'a>(
        &'a self,
        _: &'a TunnelKey,
    ) -> Pin<Box<dyn Future<Output = io::Result<Connected>> + Send + 'a>> {
        let pipe = self.0.lock().expect("not poisoned").take();
        Box::pin(async {
            let pipe = pipe.ok_or(io::ErrorKind::ConnectionRefused)?;
            Ok(Connected {
                io: pipe.into(),
                tls: Arc::clone(&ENDS.client),
                turn: None,
            })
        })
    }
}

async fn ask(pipe: DuplexStream) {
    let connector: Arc<dyn Connector> = Arc::new(Once(Mutex::new(Some(pipe))));
    let to: Authority = "10.0.0.1:80".parse().expect("an authority");
    let pool = Pool::new(Settings::default());
    let request = ConnectRequest::new(to);
    if let Ok(mut opened) = pool.open(&ENDS.key, &connector, &request).await {
        let _ = opened.stream.write_all(b"hello").await;
        let _ = opened.stream.shutdown().await;
        let _ = opened.stream.read_to_end(&mut Vec::new()).await;
    }
}

async fn answer(pipe: DuplexStream, bytes: &[u8]) {
    let tls = TlsAcceptor::from(Arc::clone(&ENDS.server)).accept(pipe);
    say(tls.await.expect("a good certificate"), SETTINGS, bytes).await;
}

fuzz_target!(|bytes: &[u8]| {
    let (client, server) = duplex(1 << 20);
    run(async { tokio::join!(ask(client), answer(server, bytes)) });
});
