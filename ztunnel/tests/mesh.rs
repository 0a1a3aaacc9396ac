//! Two proxies in dedicated mode, application to application, without privileges.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use seine_identity::testing::TestCa;
use seine_proto::security::string_match::MatchType;
use seine_proto::security::{Address, Match};
use seine_proto::workload::ApplicationTunnel;
use seine_proto::workload::application_tunnel::Protocol;
use seine_ztunnel::config::MetricNames;
use seine_ztunnel::telemetry::count_traffic;
use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

/// Client `a` and server `b`, both meshed, in one mesh.
async fn two(mesh: &Mesh) -> (Pod, Pod) {
    let resources = [
        workload_of("a", mesh.ip(1), true, |_| ()),
        workload_of("b", mesh.ip(2), true, |_| ()),
    ];
    (
        mesh.pod("a", 1, &resources, |_| ()).await,
        mesh.pod("b", 2, &resources, |_| ()).await,
    )
}

fn principals(names: &[&str]) -> Match {
    let exact = |name: &&str| string(MatchType::Exact(format!("cluster.local/ns/shop/sa/{name}")));
    Match {
        principals: names.iter().map(exact).collect(),
        ..Match::default()
    }
}

fn plaintext() -> Match {
    Match {
        not_principals: vec![string(MatchType::Presence(()))],
        ..Match::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn meshed_pods_exchange_bytes_under_both_identities() {
    let mesh = Mesh::new();
    let (a, b) = two(&mesh).await;
    let server = echo(b.ip).await;
    let mut stream = a.connect(server).await;
    exchange(&mut stream, b"hello").await.unwrap();

    let [out, into] = [&a, &b].map(|pod| pod.shared.connections.list());
    let (out, into) = (&out[0].info, &into[0].info);
    for info in [out, into] {
        let identity =
            |party: &seine_ztunnel::connection::Party| party.identity.as_ref().unwrap().to_string();
        assert_eq!(
            identity(&info.source),
            "spiffe://cluster.local/ns/shop/sa/a"
        );
        assert_eq!(
            identity(&info.destination),
            "spiffe://cluster.local/ns/shop/sa/b"
        );
        assert_eq!(
            info.security,
            seine_ztunnel::connection::Security::MutualTls
        );
        assert_eq!(info.original, server);
    }
    assert_eq!(
        into.client,
        stream.local_addr().unwrap(),
        "the client's own port came along"
    );

    // A megabyte each way at once, then the end.
    let (mut read, mut write) = stream.into_split();
    let sent: Vec<u8> = (0..1_000_000u32).map(|n| n as u8).collect();
    let expected = sent.clone();
    let writer = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut back = Vec::new();
    timeout(Duration::from_secs(20), read.read_to_end(&mut back))
        .await
        .unwrap()
        .unwrap();
    writer.await.unwrap();
    assert!(back == expected);
    a.metric(&["seine_received_bytes_total", "mutual_tls", " 1000005"])
        .await;
    b.metric(&[
        "istio_tcp_sent_bytes_total",
        "reporter=\"destination\"",
        " 1000005",
    ])
    .await;
    assert!(a.shared.connections.is_empty() && b.shared.connections.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_takes_the_proxy_protocol_hears_who_its_client_is() {
    let mesh = Mesh::new();
    // Nothing listens on port 80: the application takes all on one port of its own.
    let application = echo(mesh.ip(2)).await;
    let resources = [
        workload_of("a", mesh.ip(1), true, |_| ()),
        workload_of("b", mesh.ip(2), true, |w| {
            w.application_tunnel = Some(ApplicationTunnel {
                protocol: Protocol::Proxy.into(),
                port: application.port().into(),
            })
        }),
    ];
    let a = mesh.pod("a", 1, &resources, |_| ()).await;
    let b = mesh.pod("b", 2, &resources, |_| ()).await;
    let mut stream = a.connect((b.ip, 80).into()).await;
    stream.write_all(b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut heard = Vec::new();
    timeout(Duration::from_secs(10), stream.read_to_end(&mut heard))
        .await
        .unwrap()
        .unwrap();
    let heard = String::from_utf8_lossy(&heard).into_owned();
    assert!(heard.starts_with("\r\n\r\n\0\r\nQUIT\n!"), "{heard:?}");
    assert!(
        heard.ends_with("spiffe://cluster.local/ns/shop/sa/ahello"),
        "{heard:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_speaks_first_is_heard_and_its_end_passes() {
    let mesh = Mesh::new();
    let (a, b) = two(&mesh).await;
    let mut stream = a.connect(greeter(b.ip).await).await;
    let mut all = String::new();
    timeout(Duration::from_secs(10), stream.read_to_string(&mut all))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(all, "220 welcome\r\n");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_closed_its_sending_side_still_gets_the_answer() {
    let mesh = Mesh::new();
    let (a, b) = two(&mesh).await;
    let mut stream = a.connect(counter(b.ip).await).await;
    stream.write_all(&[7; 100_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut all = String::new();
    timeout(Duration::from_secs(10), stream.read_to_string(&mut all))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(all, "100000");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_identity_that_a_policy_allows_reaches_the_server() {
    let mesh = Mesh::new();
    let (a, b) = two(&mesh).await;
    let server = echo(b.ip).await;
    b.apply(&[policy("only-c", false, false, principals(&["c"]))], &[]);
    assert!(is_refused(a.try_connect(server).await).await);
    b.metric(&[
        "seine_connections_failed_total",
        "response_flags=\"DENY\"",
        "sa/a",
    ])
    .await;
    a.metric(&[
        "seine_connections_failed_total",
        "response_flags=\"DENY\"",
        "fault=\"upstream\"",
    ])
    .await;

    b.apply(&[policy("only-c", false, false, principals(&["a"]))], &[]);
    exchange(&mut a.connect(server).await, b"now")
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_in_dry_run_is_counted_and_denies_nothing() {
    let mesh = Mesh::new();
    let (a, b) = two(&mesh).await;
    b.apply(&[policy("no-a", true, true, principals(&["a"]))], &[]);
    exchange(&mut a.connect(echo(b.ip).await).await, b"hello")
        .await
        .unwrap();
    b.metric(&["seine_policy_audit_total", "would=\"deny\"", " 1"])
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plaintext_passes_until_strict_mutual_tls_forbids_it() {
    let mesh = Mesh::new();
    let (a, b) = two(&mesh).await;
    let server = echo(b.ip).await;
    let mut permitted = b.connect_plaintext(mesh.ip(9), server).await.unwrap();
    exchange(&mut permitted, b"permissive").await.unwrap();

    b.apply(&[policy("strict", true, false, plaintext())], &[]);
    assert!(is_refused(b.connect_plaintext(mesh.ip(9), server).await).await);
    assert!(
        is_reset(&mut permitted).await,
        "the live connection is ended, too"
    );
    exchange(&mut a.connect(server).await, b"meshed")
        .await
        .unwrap();
    b.metric(&[
        "seine_connections_failed_total",
        "response_flags=\"DENY\"",
        "security=\"none\"",
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_connection_ends_when_policy_no_longer_allows_it() {
    let mesh = Mesh::new();
    let (a, b) = two(&mesh).await;
    let mut stream = a.connect(echo(b.ip).await).await;
    exchange(&mut stream, b"before").await.unwrap();
    b.apply(&[policy("others", true, false, principals(&["c"]))], &[]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    exchange(&mut stream, b"not about us").await.unwrap();
    b.apply(&[policy("us", true, false, principals(&["a"]))], &[]);
    assert!(is_reset(&mut stream).await);
    b.metric(&["seine_connections_closed_total", "response_flags=\"DENY\""])
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_comes_while_the_application_is_dialled_holds_for_that_connection() {
    let mesh = Mesh::new();
    let resources = [
        workload_of("a", mesh.ip(1), true, |_| ()),
        workload_of("b", mesh.ip(2), true, |_| ()),
    ];
    let a = mesh.pod("a", 1, &resources, |_| ()).await;
    let b = mesh
        .pod("b", 2, &resources, |config| {
            config.connect_timeout = Duration::from_secs(20)
        })
        .await;
    let everybody = || Match {
        source_ips: vec![Address {
            address: vec![0; 4],
            length: 0,
        }],
        ..Match::default()
    };
    for (plain, judged) in [(false, " 1"), (true, " 2")] {
        // It would deny, in dry-run: what it counts tells that the connection was judged.
        b.apply(&[policy("nobody", true, true, everybody())], &[]);
        let busy = Busy::new(b.ip).await;
        let dialled = if plain {
            b.connect_plaintext(mesh.ip(9), busy.address).await
        } else {
            a.try_connect(busy.address).await
        };
        b.metric(&["seine_policy_audit_total", judged]).await;
        b.apply(&[policy("nobody", true, false, everybody())], &[]);
        // The round in which live connections are judged again passes.
        tokio::time::sleep(Duration::from_millis(200)).await;
        let mut heard = busy.accept().await;
        assert!(is_refused(dialled).await, "plaintext: {plain}");
        assert!(is_reset(&mut heard).await, "plaintext: {plain}");
    }
}

/// An application that has not the time to accept connections: its backlog is full.
struct Busy {
    listener: TcpListener,
    address: SocketAddr,
    waiting: Vec<TcpStream>,
}

impl Busy {
    async fn new(ip: Ipv4Addr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((ip, 0).into()).unwrap();
        // Linux lets one more wait than it is told.
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut waiting = Vec::new();
        for _ in 0..2 {
            waiting.push(TcpStream::connect(address).await.unwrap());
        }
        Self {
            listener,
            address,
            waiting,
        }
    }

    /// Has time again: the first connection after those that filled the backlog.
    async fn accept(self) -> TcpStream {
        for _ in &self.waiting {
            self.listener.accept().await.unwrap();
        }
        timeout(Duration::from_secs(10), self.listener.accept())
            .await
            .unwrap()
            .unwrap()
            .0
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_connection_ends_when_its_peer_is_no_longer_trusted() {
    let mesh = Mesh::new();
    let (a, b) = two(&mesh).await;
    let mut stream = a.connect(echo(b.ip).await).await;
    exchange(&mut stream, b"before").await.unwrap();
    let federated = TestCa::new("elsewhere.example").bundle();
    b.shared.certificates.set_bundle(federated).unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    exchange(&mut stream, b"not about us").await.unwrap();
    b.distrust();
    assert!(is_reset(&mut stream).await);
    b.metric(&[
        "seine_connections_closed_total",
        "response_flags=\"TLS_FAILURE\"",
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_connection_ends_when_the_server_is_no_longer_trusted() {
    let mesh = Mesh::new();
    let (a, b) = two(&mesh).await;
    let mut stream = a.connect(echo(b.ip).await).await;
    exchange(&mut stream, b"before").await.unwrap();
    a.distrust();
    assert!(is_reset(&mut stream).await);
    b.metric(&["seine_connections_closed_total"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_connections_move_to_a_new_tunnel_when_the_clients_certificate_is_renewed() {
    let mesh = Mesh::new();
    let (a, b) = two(&mesh).await;
    let server = echo(b.ip).await;
    let tunnels = || {
        let pools = a.shared.workers.own();
        pools.map(|pool| pool.stats().tunnels).sum::<usize>()
    };
    // The trust bundle comes with the first certificate, and may count as a change for the first connection.
    exchange(&mut a.connect(server).await, b"first")
        .await
        .unwrap();
    let mut old = a.connect(server).await;
    exchange(&mut old, b"old").await.unwrap();
    let before = tunnels();
    let mut beside = a.connect(server).await;
    exchange(&mut beside, b"beside").await.unwrap();
    assert_eq!(tunnels(), before);
    let identity = mesh.ca.identity("shop", "a");
    a.shared.certificates.forget(&identity);
    a.shared.certificates.prefetch(&identity);
    let mut new = a.connect(server).await;
    exchange(&mut new, b"new").await.unwrap();
    assert_eq!(tunnels(), before + 1);
    exchange(&mut old, b"still").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_resets_while_it_waits_leaves_nothing_behind() {
    let mesh = Mesh::new();
    let resources = [
        workload_of("a", mesh.ip(1), true, |_| ()),
        workload_of("b", mesh.ip(2), true, |w| {
            w.authorization_policies = vec!["shop/late".into()]
        }),
    ];
    let a = mesh.pod("a", 1, &resources, |_| ()).await;
    let b = mesh
        .pod("b", 2, &resources, |config| {
            config.policy_wait = Duration::from_secs(60)
        })
        .await;
    let stream = a.connect(echo(b.ip).await).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    stream.set_zero_linger().unwrap();
    drop(stream);
    for pod in [&a, &b] {
        pod.metric(&[
            "seine_connections_failed_total",
            "response_flags=\"CLIENT_GONE\"",
        ])
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bytes_of_a_live_connection_are_counted_once_and_before_its_end() {
    let mesh = Mesh::new();
    let (a, b) = two(&mesh).await;
    let mut stream = a.connect(echo(b.ip).await).await;
    let sent = ["seine_sent_bytes_total", "outbound"];
    for total in ["3", "6"] {
        exchange(&mut stream, b"abc").await.unwrap();
        // The client may have them before the proxy has noted it.
        let counted = async {
            while !a.metrics().lines().any(|line| {
                sent.iter().all(|word| line.contains(word)) && line.ends_with(&format!(" {total}"))
            }) {
                count_traffic(&a.shared.connections);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(Duration::from_secs(5), counted).await.expect(total);
    }
    drop(stream);
    a.metric(&["seine_connections_closed_total"]).await;
    assert!(a.metric(&sent).await.ends_with(" 6"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_waits_for_the_policies_that_its_destination_names() {
    let mesh = Mesh::new();
    let resources = [
        workload_of("a", mesh.ip(1), true, |_| ()),
        workload_of("b", mesh.ip(2), true, |w| {
            w.authorization_policies = vec!["shop/late".into()]
        }),
    ];
    let a = mesh.pod("a", 1, &resources, |_| ()).await;
    let b = mesh
        .pod("b", 2, &resources, |config| {
            config.policy_wait = Duration::from_secs(1)
        })
        .await;
    let server = echo(b.ip).await;
    let begun = std::time::Instant::now();
    assert!(
        is_refused(a.try_connect(server).await).await,
        "denied when it doesn't come"
    );
    assert!(begun.elapsed() >= Duration::from_secs(1));

    let mut stream = a.connect(server).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    b.apply(&[policy("late", false, false, principals(&["a"]))], &[]);
    exchange(&mut stream, b"in time").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unmeshed_destination_is_reached_in_plaintext() {
    let mesh = Mesh::new();
    let resources = [
        workload_of("a", mesh.ip(1), true, |_| ()),
        workload_of("old", mesh.ip(3), false, |_| ()),
    ];
    let a = mesh.pod("a", 1, &resources, |_| ()).await;
    for ip in [mesh.ip(3), mesh.ip(4)] {
        let mut stream = a.connect(echo(ip).await).await;
        exchange(&mut stream, b"plain").await.unwrap();
        let live = a.shared.connections.list();
        assert_eq!(
            live.last().unwrap().info.security,
            seine_ztunnel::connection::Security::Plaintext
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_meshed_endpoint_that_is_known_by_name_alone_is_looked_up_and_reached_in_a_tunnel() {
    let mesh = Mesh::new();
    let server = echo(mesh.ip(2)).await;
    let port = server.port();
    let vip = mesh.ip(200);
    let named = workload_of("b", mesh.ip(2), true, |w| {
        w.addresses.clear();
        w.hostname = mesh.ip(2).to_string();
        backs(w, "web", 80, port);
    });
    let resources = [
        workload_of("a", mesh.ip(1), true, |_| ()),
        named,
        service("web", vip, 80, port),
    ];
    let a = mesh.pod("a", 1, &resources, |_| ()).await;
    let at_address = [workload_of("b", mesh.ip(2), true, |_| ())];
    let _b = mesh.pod("b", 2, &at_address, |_| ()).await;
    exchange(&mut a.connect((vip, 80).into()).await, b"named")
        .await
        .unwrap();
    a.metric(&["seine_connections_opened_total", "mutual_tls", " 1"])
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_is_reached_by_the_endpoint_that_accepts() {
    let mesh = Mesh::new();
    let server = echo(mesh.ip(2)).await;
    let port = server.port();
    let vip = mesh.ip(200);
    let backing =
        |name, host| workload_of(name, mesh.ip(host), true, |w| backs(w, "web", 80, port));
    let resources = [
        workload_of("a", mesh.ip(1), true, |_| ()),
        // No proxy listens for these two.
        backing("dead1", 5),
        backing("dead2", 6),
        backing("b", 2),
        service("web", vip, 80, port),
    ];
    let a = mesh.pod("a", 1, &resources, |_| ()).await;
    let b = mesh.pod("b", 2, &resources, |_| ()).await;
    for _ in 0..8 {
        exchange(&mut a.connect((vip, 80).into()).await, b"vip")
            .await
            .unwrap();
    }
    assert!(
        is_refused(a.try_connect((vip, 81).into()).await).await,
        "no such port"
    );
    a.metric(&[
        "istio_tcp_connections_opened_total",
        "destination_service_name=\"web\"",
        " 8",
    ])
    .await;
    drop(b);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_listening_is_refused_and_the_proxys_own_ports_are_too() {
    let mesh = Mesh::new();
    let (a, b) = two(&mesh).await;
    let closed: SocketAddr = (b.ip, 9).into();
    assert!(is_refused(a.try_connect(closed).await).await);
    b.metric(&[
        "seine_connections_failed_total",
        "response_flags=\"CONNECT\"",
    ])
    .await;
    for port in [15001, 15006, 15008, 15053] {
        assert!(
            is_refused(a.try_connect((b.ip, port).into()).await).await,
            "another pod's {port}"
        );
        assert!(
            is_refused(a.try_connect((a.ip, port).into()).await).await,
            "our own {port}"
        );
        assert!(is_refused(b.connect_plaintext(mesh.ip(9), (b.ip, port).into()).await).await);
    }
    b.metric(&[
        "seine_connections_failed_total",
        "response_flags=\"REFUSED\"",
        "mutual_tls",
        " 4",
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_at_its_limit_refuses_and_takes_connections_again_later() {
    let mesh = Mesh::new();
    let resources = [
        workload_of("a", mesh.ip(1), true, |_| ()),
        workload_of("b", mesh.ip(2), true, |_| ()),
    ];
    let a = mesh
        .pod("a", 1, &resources, |config| config.max_connections = 1)
        .await;
    let b = mesh.pod("b", 2, &resources, |_| ()).await;
    let server = echo(b.ip).await;
    let mut first = a.connect(server).await;
    exchange(&mut first, b"one").await.unwrap();
    assert!(is_refused(a.try_connect(server).await).await);
    drop(first);
    a.metric(&["seine_connections_closed_total"]).await;
    exchange(&mut a.connect(server).await, b"again")
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_lets_live_connections_end_and_resets_them_at_the_deadline() {
    let mesh = Mesh::new();
    let (a, b) = two(&mesh).await;
    let server = echo(b.ip).await;
    let (mut one, mut two) = (a.connect(server).await, a.connect(server).await);
    exchange(&mut one, b"one").await.unwrap();
    exchange(&mut two, b"two").await.unwrap();
    let pods = b.pods.clone();
    let drained = tokio::spawn(async move { pods.drain(Duration::from_secs(1)).await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    exchange(&mut one, b"still here").await.unwrap();
    one.shutdown().await.unwrap();
    assert_eq!(one.read(&mut [0; 1]).await.unwrap(), 0, "an orderly end");
    assert!(is_reset(&mut two).await);
    assert!(drained.await.unwrap() >= 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_does_not_wait_for_tunnels_without_connections() {
    let mesh = Mesh::new();
    let (a, b) = two(&mesh).await;
    let mut stream = a.connect(echo(b.ip).await).await;
    exchange(&mut stream, b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    let begun = std::time::Instant::now();
    assert_eq!(b.pods.drain(Duration::from_secs(20)).await, 0);
    assert!(
        begun.elapsed() < Duration::from_secs(5),
        "{:?}",
        begun.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_comes_back_elsewhere_is_served_anew_and_its_old_connections_drain() {
    let mesh = Mesh::new();
    let (a, b) = two(&mesh).await;
    let server = echo(b.ip).await;
    let mut old = a.connect(server).await;
    exchange(&mut old, b"old").await.unwrap();
    b.serve_again().await;
    exchange(&mut old, b"still").await.unwrap();
    exchange(&mut a.connect(server).await, b"new")
        .await
        .unwrap();
    assert!(is_reset(&mut old).await, "at the deadline");
    exchange(&mut a.connect(server).await, b"after")
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_go_by_the_names_that_were_asked_for() {
    let ours = "seine_connections_opened_total{";
    let theirs = "istio_tcp_connections_opened_total{";
    for (names, shown, hidden) in [
        (MetricNames::Seine, &[ours][..], &["istio_tcp"][..]),
        (
            MetricNames::Istio,
            &[theirs],
            &["seine_connections", "seine_sent"],
        ),
        (MetricNames::Both, &[ours, theirs], &[]),
    ] {
        let mesh = Mesh::new();
        let resources = [
            workload_of("a", mesh.ip(1), true, |_| ()),
            workload_of("b", mesh.ip(2), false, |_| ()),
        ];
        let a = mesh
            .pod("a", 1, &resources, |config| config.metric_names = names)
            .await;
        let mut stream = a.connect(echo(mesh.ip(2)).await).await;
        exchange(&mut stream, b"hello").await.unwrap();
        let page = a.metrics();
        for name in shown {
            assert!(page.contains(name), "{names:?} without {name}");
        }
        for name in hidden {
            assert!(!page.contains(name), "{names:?} with {name}");
        }
    }
}
