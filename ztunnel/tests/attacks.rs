//! What must not get through a pod's HBONE port, each beside the same thing that may.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use prost::Message as _;
use seine_hbone::{
    Authority, ConnectRequest, Connected, Connector, Forwarded, Io, OpenError, Pool, Settings,
    Stream, TunnelKey,
};
use seine_identity::testing::{TestCa, TestLeaf};
use seine_identity::{Clock, Credentials};
use seine_proto::extensions::{BoundPort, WorkloadExtension};
use seine_proto::workload::Extension;
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
                turn: None,
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
        let pool = Pool::new(Settings::default());
        self.ask_in(&pool, mesh, to, request).await
    }

    /// In a tunnel of this pool.
    async fn ask_in(
        self,
        pool: &Pool,
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
        pool.open(&key, &connector, &request)
            .await
            .map(|opened| opened.stream)
    }
}

/// A client of some CA whose certificate lives so long; it trusts the mesh.
fn of_ca(mesh: &Mesh, ca: &TestCa, life: Duration) -> Client {
    let mut leaf = TestLeaf::new(&ca.identity("shop", "a"));
    leaf.not_after = SystemTime::now() + life;
    let svid = Arc::new(ca.svid_from(&leaf));
    let credentials = Credentials::new(svid, mesh.ca.bundles(), Default::default()).unwrap();
    Client {
        credentials: Arc::new(credentials),
        from: mesh.ip(1),
    }
}

async fn echoes(stream: &mut Stream) -> bool {
    let mut back = [0; 5];
    let exchanged = async {
        stream.write_all(b"hello").await?;
        stream.read_exact(&mut back).await
    };
    timeout(Duration::from_secs(10), exchanged)
        .await
        .unwrap()
        .is_ok()
        && back == *b"hello"
}

async fn server(mesh: &Mesh) -> (Pod, SocketAddr) {
    let resources = [
        workload_of("a", mesh.ip(1), true, |_| ()),
        workload_of("b", mesh.ip(2), true, |_| ()),
    ];
    let short = |config: &mut seine_ztunnel::config::Config| {
        config.federated_grace = Duration::from_secs(1);
    };
    let pod = mesh.pod("b", 2, &resources, short).await;
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

/// The twin of the test above: the same header by the waypoint that the port is bound to, and by its identity from
/// elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bound_port_admits_its_waypoint_alone_and_judges_whom_that_asks_for() {
    let mesh = Mesh::new();
    let (pod, application) = server(&mesh).await;
    let bound = WorkloadExtension {
        bound_ports: vec![BoundPort {
            target_port: application.port().into(),
            waypoint_identities: vec![mesh.ca.identity("shop", "a").to_string()],
        }],
        ..WorkloadExtension::default()
    };
    let workload = workload_of("b", mesh.ip(2), true, |workload| {
        workload.extensions = vec![Extension {
            name: "seine.dev/workload".into(),
            config: Some(prost_types::Any {
                type_url: "type.googleapis.com/seine.workload.v1.WorkloadExtension".into(),
                value: bound.encode_to_vec(),
            }),
        }];
    });
    assert_eq!(pod.shared.store.apply_addresses(&[workload], &[]), []);
    let only_admin_from_9 = seine_proto::security::Match {
        principals: vec![string(
            seine_proto::security::string_match::MatchType::Exact(
                "cluster.local/ns/shop/sa/admin".into(),
            ),
        )],
        source_ips: vec![seine_proto::security::Address {
            address: vec![10, 9, 9, 9],
            length: 32,
        }],
        ..Default::default()
    };
    pod.apply(&[policy("only", false, false, only_admin_from_9)], &[]);
    let claiming = |who: &str, from: &str| ConnectRequest {
        first_client: Some(mesh.ca.identity("shop", who)),
        forwarded: Some(Forwarded {
            client: Some(from.parse().unwrap()),
            host: None,
        }),
        ..ConnectRequest::new(application)
    };
    let good = || claiming("admin", "10.9.9.9:4711");
    assert_eq!(status(as_a(&mesh).ask(&mesh, &pod, good()).await), 200);
    for other in [
        claiming("web", "10.9.9.9:4711"),
        claiming("admin", "10.9.9.8:4711"),
        ConnectRequest::new(application),
    ] {
        assert_eq!(status(as_a(&mesh).ask(&mesh, &pod, other).await), 401);
    }
    // The waypoint's identity at an address that is not the waypoint's, and another identity at its address.
    let elsewhere = Client {
        from: mesh.ip(3),
        ..as_a(&mesh)
    };
    assert_eq!(status(elsewhere.ask(&mesh, &pod, good()).await), 401);
    let another = Client {
        credentials: mesh.ca.credentials("shop", "admin"),
        from: mesh.ip(1),
    };
    assert_eq!(status(another.ask(&mesh, &pod, good()).await), 401);
}

const SHORT: Duration = Duration::from_secs(2);
const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_that_is_kept_beyond_its_certificate_leads_nowhere_new() {
    let mesh = Mesh::new();
    let (pod, application) = server(&mesh).await;
    let request = || ConnectRequest::new(application);
    for (life, goes_on) in [(SHORT, false), (HOUR, true)] {
        let pool = Pool::new(Settings::default());
        let end = SystemTime::now() + SHORT;
        let first = of_ca(&mesh, &mesh.ca, life);
        // The one certificate is all that it will ever have.
        let same = Client {
            credentials: first.credentials.clone(),
            from: first.from,
        };
        let mut kept = first.ask_in(&pool, &mesh, &pod, request()).await.unwrap();
        Clock::SYSTEM.passed(end).await;
        let second = same.ask_in(&pool, &mesh, &pod, request()).await;
        assert_eq!(second.is_ok(), goes_on, "{life:?}: {second:?}");
        assert!(echoes(&mut kept).await, "{life:?}: what stands goes on");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_federated_identity_that_shows_no_newer_certificate_loses_its_connections() {
    let mesh = Mesh::new();
    let (pod, application) = server(&mesh).await;
    let request = || ConnectRequest::new(application);
    let [renewed, gone] = ["renewed.example", "gone.example"].map(TestCa::new);
    for ca in [&renewed, &gone] {
        pod.shared.certificates.set_bundle(ca.bundle()).unwrap();
    }
    let mut streams = Vec::new();
    for ca in [&gone, &renewed, &mesh.ca] {
        let client = of_ca(&mesh, ca, SHORT);
        streams.push(client.ask(&mesh, &pod, request()).await.unwrap());
    }
    let newer = of_ca(&mesh, &renewed, HOUR);
    let _newer = newer.ask(&mesh, &pod, request()).await.unwrap();
    let ended = timeout(Duration::from_secs(20), streams[0].read(&mut [0; 1])).await;
    assert!(ended.unwrap().is_err(), "it is reset");
    pod.metric(&[
        "seine_connections_closed_total",
        "response_flags=\"TLS_FAILURE\"",
        "gone.example",
    ])
    .await;
    assert!(
        echoes(&mut streams[1]).await,
        "its identity has shown a newer one"
    );
    assert!(echoes(&mut streams[2]).await, "of the local domain");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_withdrawn_trust_domain_loses_its_connections() {
    let mesh = Mesh::new();
    let (pod, application) = server(&mesh).await;
    let partner = TestCa::new("partner.example");
    pod.shared
        .certificates
        .set_bundle(partner.bundle())
        .unwrap();
    let ask = async || {
        of_ca(&mesh, &partner, HOUR)
            .ask(&mesh, &pod, ConnectRequest::new(application))
            .await
    };
    let mut stream = ask().await.unwrap();
    assert!(echoes(&mut stream).await);
    let domain = partner.bundle().trust_domain().clone();
    pod.shared.certificates.withdraw_bundle(&domain);
    let ended = timeout(Duration::from_secs(20), stream.read(&mut [0; 1])).await;
    assert!(ended.unwrap().is_err(), "it is reset");
    assert!(ask().await.is_err());
}
