//! Two pods on loopback addresses, each behind a proxy of its own, with certificates from a CA in memory.
//!
//! No privileges and no redirection: a client says where it wanted to go by [`Pod::connect`], which files the original
//! destination under the client's address.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use prost::Message;
use seine_identity::testing::TestCa;
use seine_identity::{CertificateSource, Identity, SourceError, Svid};
use seine_proto::discovery::Resource;
use seine_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE, security, workload};
use seine_ztunnel::app::share;
use seine_ztunnel::config::Config;
use seine_ztunnel::judge::rejudge_on_change;
use seine_ztunnel::listeners::{ListenerSource, PodListeners, Ports};
use seine_ztunnel::netns::Netns;
use seine_ztunnel::pods::Pods;
use seine_ztunnel::shared::{Environment, Shared};
use seine_ztunnel::zds::PodInfo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

static ORIGINALS: LazyLock<Mutex<HashMap<SocketAddr, SocketAddr>>> = LazyLock::new(Mutex::default);
static NEXT: AtomicU8 = AtomicU8::new(1);

pub(crate) fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    ORIGINALS.lock().get(&stream.peer_addr().ok()?).copied()
}

/// Certificates by a CA that may be replaced.
pub(crate) struct TestSource(pub(crate) Mutex<Arc<TestCa>>);

impl CertificateSource for TestSource {
    fn fetch<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Svid, SourceError>> {
        Box::pin(async move {
            Ok(self
                .0
                .lock()
                .svid(identity.namespace(), identity.service_account()))
        })
    }
}

/// A mesh of its own: no other test has its addresses.
pub(crate) struct Mesh {
    pub(crate) ca: Arc<TestCa>,
    net: [u8; 3],
}

/// A pod and its proxy.
pub(crate) struct Pod {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pods: Arc<Pods>,
    source: Arc<TestSource>,
    pub(crate) ip: Ipv4Addr,
    pub(crate) plaintext: SocketAddr,
    pub(crate) outbound: SocketAddr,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        // Other users of this machine run the same tests at the same time.
        let second = 16 + (std::process::id() % 200) as u8;
        let net = [127, second, NEXT.fetch_add(1, Ordering::Relaxed)];
        Self {
            ca: Arc::new(TestCa::new("cluster.local")),
            net,
        }
    }

    pub(crate) fn ip(&self, host: u8) -> Ipv4Addr {
        let [a, b, c] = self.net;
        Ipv4Addr::new(a, b, c, host)
    }

    /// A pod of namespace `shop` with its own proxy, which knows `resources`.
    pub(crate) async fn pod(
        &self,
        name: &str,
        host: u8,
        resources: &[Resource],
        tweak: impl FnOnce(&mut Config),
    ) -> Pod {
        let mut config = Config::defaults();
        config.cluster_id = "Kubernetes".into();
        config.connect_timeout = Duration::from_secs(2);
        config.policy_wait = Duration::from_millis(300);
        config.drain_deadline = Duration::from_millis(500);
        tweak(&mut config);
        let environment = Environment {
            original_destination,
            preserve_client: false,
            loopback_is_remote: true,
        };
        let source = Arc::new(TestSource(Mutex::new(self.ca.clone())));
        let shared = share(config, source.clone(), environment).unwrap();
        assert_eq!(shared.store.apply_addresses(resources, &[]), []);
        assert_eq!(shared.store.apply_policies(&[], &[]), []);
        shared.set_configured();
        tokio::spawn(rejudge_on_change(shared.clone()));

        let ip = self.ip(host);
        let bind = async |port: u16| {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_reuseport(true).unwrap();
            socket.bind((ip, port).into()).unwrap();
            socket.listen(64).unwrap()
        };
        let (outbound, plaintext) = (bind(0).await, bind(0).await);
        let (outbound_at, plaintext_at) = (
            outbound.local_addr().unwrap(),
            plaintext.local_addr().unwrap(),
        );
        let listeners = PodListeners {
            outbound: vec![outbound],
            inbound_plaintext: vec![plaintext],
            inbound_hbone: vec![bind(15008).await],
            ..PodListeners::default()
        };
        let pods = Pods::new(shared.clone(), ListenerSource::Own(Ports::default()));
        pods.serve(pod_info(name), Netns::home(), listeners)
            .unwrap();
        Pod {
            shared,
            pods,
            source,
            ip,
            plaintext: plaintext_at,
            outbound: outbound_at,
        }
    }
}

fn pod_info(name: &str) -> PodInfo {
    PodInfo {
        uid: name.into(),
        name: name.into(),
        namespace: "shop".into(),
        service_account: name.into(),
    }
}

impl Pod {
    /// Serves the pod as if it had come back in another network namespace, with HBONE alone.
    pub(crate) async fn serve_again(&self) {
        let name = self.pods.list()[0].info.name.clone();
        self.serve_also(&name, self.ip).await;
    }

    /// Serves a pod of this name and address in the same proxy, with HBONE alone.
    pub(crate) async fn serve_also(&self, name: &str, ip: Ipv4Addr) {
        // The old listener is there until its task has seen that the pod stopped; two can't have the port.
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseport(true).unwrap();
        socket.bind((ip, 15008).into()).unwrap();
        let listeners = PodListeners {
            inbound_hbone: vec![socket.listen(64).unwrap()],
            ..PodListeners::default()
        };
        self.pods
            .serve(pod_info(name), Netns::home(), listeners)
            .unwrap();
    }

    /// A connection of the pod's application, redirected.
    pub(crate) async fn connect(&self, to: SocketAddr) -> TcpStream {
        self.try_connect(to).await.unwrap()
    }

    /// The same, where a reset may come before connect(2) is over.
    pub(crate) async fn try_connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        redirected(self.ip, self.outbound, to).await
    }

    /// Plaintext from an address towards this pod, captured.
    pub(crate) async fn connect_plaintext(
        &self,
        from: Ipv4Addr,
        to: SocketAddr,
    ) -> io::Result<TcpStream> {
        redirected(from, self.plaintext, to).await
    }

    /// Gives this pod's proxy another root in the place of the one that it trusts.
    pub(crate) fn distrust(&self) {
        let other = Arc::new(TestCa::new("cluster.local"));
        *self.source.0.lock() = other.clone();
        self.shared.certificates.set_bundle(other.bundle()).unwrap();
    }

    pub(crate) fn apply(&self, policies: &[Resource], removed: &[&str]) {
        let removed: Vec<String> = removed.iter().map(ToString::to_string).collect();
        assert_eq!(self.shared.store.apply_policies(policies, &removed), []);
    }

    /// The metrics page.
    pub(crate) fn metrics(&self) -> String {
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, self.shared.telemetry.registry())
            .unwrap();
        page
    }

    /// Waits until a line of the metrics page has all of these words.
    pub(crate) async fn metric(&self, words: &[&str]) -> String {
        for _ in 0..200 {
            let page = self.metrics();
            let found = page
                .lines()
                .find(|line| words.iter().all(|word| line.contains(word)));
            if let Some(line) = found {
                return line.to_owned();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("no metric with {words:?} in:\n{}", self.metrics());
    }
}

/// How often a dry-run policy would have changed a verdict: to allowed, to denied.
pub(crate) fn audited(shared: &Shared) -> [u64; 2] {
    let mut page = String::new();
    prometheus_client::encoding::text::encode(&mut page, shared.telemetry.registry()).unwrap();
    ["allow", "deny"].map(|would| {
        let label = format!("would=\"{would}\"");
        let lines = page
            .lines()
            .filter(|line| line.starts_with("seine_policy_audit_total") && line.contains(&label));
        lines
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    })
}

/// A connection to the proxy, of a client that wanted to go elsewhere.
pub(crate) async fn redirected(
    from: impl Into<IpAddr>,
    proxy: SocketAddr,
    to: SocketAddr,
) -> io::Result<TcpStream> {
    let from = from.into();
    let socket = match from {
        IpAddr::V4(_) => TcpSocket::new_v4(),
        IpAddr::V6(_) => TcpSocket::new_v6(),
    };
    let socket = socket.unwrap();
    socket.bind((from, 0).into()).unwrap();
    ORIGINALS.lock().insert(socket.local_addr().unwrap(), to);
    socket.connect(proxy).await
}

/// A port of loopback that nobody listens on.
pub(crate) fn unused_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// An application at a pod's address that sends everything back.
pub(crate) async fn echo(ip: Ipv4Addr) -> SocketAddr {
    serve(ip, async |mut stream: TcpStream| {
        let (mut read, mut write) = stream.split();
        let _ = tokio::io::copy(&mut read, &mut write).await;
    })
    .await
}

/// An application that greets and closes.
pub(crate) async fn greeter(ip: Ipv4Addr) -> SocketAddr {
    serve(ip, async |mut stream: TcpStream| {
        let _ = stream.write_all(b"220 welcome\r\n").await;
    })
    .await
}

/// An application that answers only when the client has finished.
pub(crate) async fn counter(ip: Ipv4Addr) -> SocketAddr {
    serve(ip, async |mut stream: TcpStream| {
        let mut all = Vec::new();
        if stream.read_to_end(&mut all).await.is_ok() {
            let _ = stream.write_all(all.len().to_string().as_bytes()).await;
        }
    })
    .await
}

async fn serve<F: Future<Output = ()> + Send>(
    ip: Ipv4Addr,
    application: impl Fn(TcpStream) -> F + Send + Sync + Copy + 'static,
) -> SocketAddr {
    let listener = TcpListener::bind((ip, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move { application(stream).await });
        }
    });
    address
}

/// Sends a word and expects it back.
pub(crate) async fn exchange(stream: &mut TcpStream, word: &[u8]) -> io::Result<()> {
    stream.write_all(word).await?;
    let mut back = vec![0; word.len()];
    stream.read_exact(&mut back).await?;
    assert_eq!(back, word);
    Ok(())
}

/// Whether the connection was reset before it stood.
pub(crate) async fn is_refused(connected: io::Result<TcpStream>) -> bool {
    match connected {
        Ok(mut stream) => is_reset(&mut stream).await,
        Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
    }
}

/// Whether the connection ends in a reset, within some seconds.
pub(crate) async fn is_reset(stream: &mut TcpStream) -> bool {
    let mut buffer = [0; 16];
    let end = async {
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => return error.kind() == io::ErrorKind::ConnectionReset,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), end)
        .await
        .expect("the connection ends")
}

pub(crate) fn workload_of(
    name: &str,
    ip: Ipv4Addr,
    meshed: bool,
    edit: impl FnOnce(&mut workload::Workload),
) -> Resource {
    let mut message = workload::Workload {
        uid: format!("Kubernetes//Pod/shop/{name}"),
        name: name.into(),
        namespace: "shop".into(),
        addresses: vec![ip.octets().to_vec()],
        service_account: name.into(),
        cluster_id: "Kubernetes".into(),
        workload_name: name.into(),
        canonical_name: name.into(),
        tunnel_protocol: if meshed { 1 } else { 0 },
        ..Default::default()
    };
    edit(&mut message);
    let name = message.uid.clone();
    let address = workload::Address {
        r#type: Some(workload::address::Type::Workload(message)),
    };
    resource(&name, ADDRESS_TYPE, address.encode_to_vec())
}

pub(crate) fn service(name: &str, vip: Ipv4Addr, port: u16, target: u16) -> Resource {
    let hostname = format!("{name}.shop.svc.cluster.local");
    let message = workload::Service {
        name: name.into(),
        namespace: "shop".into(),
        hostname: hostname.clone(),
        addresses: vec![workload::NetworkAddress {
            network: String::new(),
            address: vip.octets().to_vec(),
            length: None,
        }],
        ports: vec![workload::Port {
            service_port: port.into(),
            target_port: target.into(),
            app_protocol: 0,
        }],
        ..Default::default()
    };
    let address = workload::Address {
        r#type: Some(workload::address::Type::Service(message)),
    };
    resource(
        &format!("shop/{hostname}"),
        ADDRESS_TYPE,
        address.encode_to_vec(),
    )
}

/// The ports of a service, for a workload that backs it.
pub(crate) fn backs(message: &mut workload::Workload, name: &str, port: u16, target: u16) {
    let ports = vec![workload::Port {
        service_port: port.into(),
        target_port: target.into(),
        app_protocol: 0,
    }];
    message.services.insert(
        format!("shop/{name}.shop.svc.cluster.local"),
        workload::PortList { ports },
    );
}

/// A policy of namespace `shop` whose one rule has this match; none matches nothing.
pub(crate) fn policy(name: &str, deny: bool, dry_run: bool, found: security::Match) -> Resource {
    let message = security::Authorization {
        name: name.into(),
        namespace: "shop".into(),
        scope: security::Scope::Namespace as i32,
        action: if deny {
            security::Action::Deny
        } else {
            security::Action::Allow
        } as i32,
        rules: vec![security::Rule {
            clauses: vec![security::Clause {
                matches: vec![found],
            }],
        }],
        dry_run,
        ..Default::default()
    };
    resource(
        &format!("shop/{name}"),
        AUTHORIZATION_TYPE,
        message.encode_to_vec(),
    )
}

pub(crate) fn string(kind: security::string_match::MatchType) -> security::StringMatch {
    security::StringMatch {
        match_type: Some(kind),
    }
}

pub(crate) fn resource(name: &str, type_url: &str, value: Vec<u8>) -> Resource {
    Resource {
        name: name.into(),
        version: "1".into(),
        resource: Some(prost_types::Any {
            type_url: type_url.into(),
            value,
        }),
        aliases: Vec::new(),
    }
}
