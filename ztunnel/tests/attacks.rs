//! What must not get through a pod's HBONE port, each beside the same thing that may.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use seine_hbone::{
    Authority, ConnectRequest, Connected, Connector, Io, OpenError, Pool, Settings, Stream,
    TunnelKey,
};
use seine_identity::Credentials;
use seine_identity::testing::TestCa;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// A client of HBONE that is no proxy of ours.
struct Client {
    credentials: Arc<Credentials>,
    from: Ipv4Addr,
}

impl Connector for Client {
    fn connect<'a>(&'a self, key: &'a TunnelKey) -> BoxFuture<'a, io::Result<Connected>> {
        Box::pin(async move {
            let tls = self
                .credentials
                .client_config(&key.destinations)
                .map_err(io::Error::other)?;
            let socket = TcpSocket::new_v4()?;
            socket.bind((self.from, 0).into())?;
            Ok(Connected {
                io: Io::from(socket.connect(key.peer).await?),
                tls,
            })
        })
    }
}

impl Client {
    async fn ask(
        self,
        mesh: &Mesh,
        to: &Pod,
        request: ConnectRequest,
    ) -> Result<Stream, OpenError> {
        let key = Arc::new(TunnelKey {
            source: self.credentials.identity().clone(),
            destinations: mesh.ca.identity("shop", "b").into(),
            peer: (to.ip, 15008).into(),
            source_address: self.from.into(),
            generation: 0,
        });
        let connector: Arc<dyn Connector> = Arc::new(self);
        Pool::new(Settings::default())
            .open(&key, &connector, &request)
            .await
            .map(|opened| opened.stream)
    }
}

async fn server(mesh: &Mesh) -> (Pod, SocketAddr) {
    let resources = [
        workload_of("a", mesh.ip(1), true, |_| ()),
        workload_of("b", mesh.ip(2), true, |_| ()),
    ];
    let pod = mesh.pod("b", 2, &resources, |_| ()).await;
    let application = echo(pod.ip).await;
    (pod, application)
}

fn as_a(mesh: &Mesh) -> Client {
    Client {
        credentials: mesh.ca.credentials("shop", "a"),
        from: mesh.ip(1),
    }
}

fn status(answer: Result<Stream, OpenError>) -> u16 {
    match answer {
        Ok(_) => 200,
        Err(OpenError::Status { status, .. }) => status.as_u16(),
        Err(other) => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_leads_to_the_pods_own_addresses_and_applications_only() {
    let mesh = Mesh::new();
    let (pod, application) = server(&mesh).await;
    let elsewhere = echo(mesh.ip(7)).await;
    let ask = async |authority: Authority| {
        status(
            as_a(&mesh)
                .ask(&mesh, &pod, ConnectRequest::new(authority))
                .await,
        )
    };
    assert_eq!(ask(application.into()).await, 200);
    assert_eq!(
        ask(elsewhere.into()).await,
        400,
        "an address that is not the pod's"
    );
    assert_eq!(
        ask(Authority::host("localhost", 80).unwrap()).await,
        400,
        "a name that it doesn't back"
    );
    for port in [15001, 15006, 15008, 15053] {
        assert_eq!(
            ask(SocketAddr::from((pod.ip, port)).into()).await,
            503,
            "the proxy's own {port}"
        );
    }
    pod.metric(&[
        "seine_connections_failed_total",
        "response_flags=\"REFUSED\"",
        " 6",
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_a_certificate_of_this_mesh_opens_a_tunnel() {
    let mesh = Mesh::new();
    let (pod, application) = server(&mesh).await;
    let request = || ConnectRequest::new(application);
    assert_eq!(status(as_a(&mesh).ask(&mesh, &pod, request()).await), 200);

    // The same names, signed by another authority; and another trust domain.
    let refused = || {
        let page = pod.metrics();
        let lines = page
            .lines()
            .filter(|line| line.starts_with("seine_tunnels_refused_total{reason="));
        let count = |line: &str| line.rsplit(' ').next()?.parse::<u64>().ok();
        lines.map(|line| count(line).unwrap()).sum::<u64>()
    };
    for domain in ["cluster.local", "elsewhere.example"] {
        let before = refused();
        let stranger = TestCa::new(domain);
        let svid = Arc::new(stranger.svid("shop", "a"));
        let trusting = Credentials::new(svid, mesh.ca.bundles(), Default::default()).unwrap();
        let client = Client {
            credentials: Arc::new(trusting),
            from: mesh.ip(1),
        };
        let answer = client.ask(&mesh, &pod, request()).await;
        assert!(answer.is_err(), "{domain}: {answer:?}");
        // The client may hear of it before it is counted.
        let counted = async {
            while refused() == before {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(5), counted)
            .await
            .expect(domain);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_and_silence_on_every_port_leave_the_others_unharmed() {
    let mesh = Mesh::new();
    let (pod, application) = server(&mesh).await;
    let mut silent = Vec::new();
    for port in [pod.outbound, pod.plaintext, (pod.ip, 15008).into()] {
        // A reset may come before connect(2) is over.
        if let Ok(mut stream) = TcpStream::connect(port).await {
            let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n\x00\xff").await;
            let end = timeout(Duration::from_secs(5), stream.read(&mut [0; 64]))
                .await
                .expect("it ends");
            // An alert of TLS at most.
            assert!(matches!(end, Ok(0..=16) | Err(_)), "{end:?}");
        }
        silent.extend(TcpStream::connect(port).await);
    }
    assert_eq!(
        status(
            as_a(&mesh)
                .ask(&mesh, &pod, ConnectRequest::new(application))
                .await
        ),
        200
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_client_named_by_anyone_but_the_bound_waypoint_counts_for_nothing() {
    let mesh = Mesh::new();
    let (pod, application) = server(&mesh).await;
    let only = |name: &str| {
        let exact = seine_proto::security::string_match::MatchType::Exact(format!(
            "cluster.local/ns/shop/sa/{name}"
        ));
        let found = seine_proto::security::Match {
            principals: vec![string(exact)],
            ..Default::default()
        };
        policy("only", false, false, found)
    };
    let claiming = || ConnectRequest {
        first_client: Some(mesh.ca.identity("shop", "admin")),
        ..ConnectRequest::new(application)
    };
    pod.apply(&[only("admin")], &[]);
    assert_eq!(status(as_a(&mesh).ask(&mesh, &pod, claiming()).await), 401);
    pod.apply(&[only("a")], &[]);
    assert_eq!(status(as_a(&mesh).ask(&mesh, &pod, claiming()).await), 200);
}
