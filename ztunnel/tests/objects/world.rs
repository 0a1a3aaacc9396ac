//! A control plane in this process, and two proxies that follow it: one with the clients' pods, one with the servers'.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use ipnet::IpNet;
use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use seine_control::authn::{Authenticator, AuthnError, Caller};
use seine_control::model::Model;
use seine_control::translate::Settings;
use seine_control::xds::TypeResources;
use seine_control::xds::server::{Clients, ServerOptions, XdsServer};
use seine_identity::Identity;
use seine_identity::testing::TestCa;
use seine_objects::ObjectSet;
use seine_policy::{Applicable, Connection, explain};
use seine_proto::discovery::Resource;
use seine_workload::Store;
use seine_xds::{Client, Grpc, GrpcOptions, NodeInfo, Protocol};
use seine_ztunnel::app::share;
use seine_ztunnel::config::Config;
use seine_ztunnel::judge::rejudge_on_change;
use seine_ztunnel::listeners::{ListenerSource, PodListeners, Ports};
use seine_ztunnel::netns::Netns;
use seine_ztunnel::pods::Pods;
use seine_ztunnel::shared::{Environment, Shared};
use seine_ztunnel::zds::PodInfo;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tonic::transport::server::TcpIncoming;

use crate::cases::{Case, Probe};
use crate::oracle::{self, Facts};
use crate::support::{TestSource, audited, exchange, original_destination, redirected};

/// Namespace and service account; those without one are in no mesh.
pub(crate) const CLIENTS: [Option<(&str, &str)>; 5] = [
    Some(("shop", "a")),
    Some(("shop", "ab")),
    Some(("other", "a")),
    None,
    None,
];
/// On which each server listens.
pub(crate) const PORTS: [u16; 2] = [18001, 18002];

/// A pod that others connect to.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) namespace: &'static str,
    name: &'static str,
    pub(crate) labels: &'static [(&'static str, &'static str)],
    /// Services that lead to it, and to which port.
    pub(crate) behind: &'static [(&'static str, u16)],
}

pub(crate) const SERVERS: [Server; 3] = [
    Server {
        namespace: "shop",
        name: "s0",
        labels: &[("app", "a")],
        behind: &[("one", 18001)],
    },
    Server {
        namespace: "shop",
        name: "s1",
        labels: &[("app", "b"), ("tier", "a")],
        behind: &[("two", 18001), ("two", 18002)],
    },
    Server {
        namespace: "other",
        name: "s2",
        labels: &[("app", "a")],
        behind: &[],
    },
];

const SERVICES: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {seine.dev/mesh: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: other, labels: {seine.dev/mesh: enabled}}
---
apiVersion: v1
kind: Service
metadata: {name: one, namespace: shop}
spec: {selector: {app: a}, ports: [{port: 80, targetPort: 18001}]}
---
apiVersion: v1
kind: Service
metadata: {name: two, namespace: shop}
spec: {selector: {app: b}, ports: [{name: x, port: 80, targetPort: 18001}, {name: y, port: 81, targetPort: 18002}]}
";

const SERVER_NAME: &str = "seine-control.seine-system.svc";
const ACCOUNT: &str = "seine-system/seine-ztunnel";
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// Leaves this thread in a network namespace with addresses of both families, or, without root, where it is, where
/// loopback has enough of one.
pub(crate) fn enter_network() -> &'static [Family] {
    if nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).is_err() {
        println!("SKIPPED policies by IPv6: a network namespace needs root");
        return &[Family::V4];
    }
    let ip = |line: &str| {
        let status = Command::new("ip").args(line.split_whitespace()).status();
        assert!(status.is_ok_and(|status| status.success()), "ip {line}");
    };
    ip("link set lo up");
    for host in 1..=CLIENTS.len() + SERVERS.len() {
        ip(&format!(
            "-6 address add {}/128 dev lo nodad",
            address(1, host)
        ));
    }
    &[Family::V4, Family::V6]
}

/// Clients come first, counted from 1.
fn address(family: usize, host: usize) -> IpAddr {
    let host = u8::try_from(host).unwrap();
    match family {
        // Other users of this machine run the same test at the same time.
        0 => Ipv4Addr::new(127, 16 + (std::process::id() % 200) as u8, 250, host).into(),
        _ => Ipv6Addr::new(0xfd5e, 0, 0, 0, 0, 0, 0, host.into()).into(),
    }
}

/// The first are of single clients, the others hold several.
pub(crate) fn block(family: usize, index: usize) -> String {
    let (host, length) = match (index, family) {
        (0 | 1, 0) => (index + 1, 32),
        (0 | 1, _) => (index + 1, 128),
        (2, 0) => (4, 30),
        (2, _) => (4, 126),
        (3, 0) => (1, 24),
        (3, _) => (1, 64),
        (_, 0) => (1, 8),
        (..) => (1, 16),
    };
    let net = IpNet::new(address(family, host), length).unwrap();
    net.trunc().to_string()
}

pub(crate) struct World {
    families: &'static [Family],
    models: watch::Sender<Arc<Model>>,
    clients: Node,
    servers: Node,
    counts: [AtomicU64; 2],
    /// Verdicts that what is in dry-run would have changed: to allowed, to denied.
    audited: Mutex<[u64; 2]>,
    _folder: tempfile::TempDir,
}

impl World {
    pub(crate) async fn new(families: &'static [Family]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (models, receiver) = watch::channel(Arc::<Model>::default());
        let xds = serve_xds(folder.path(), receiver).await;
        let ca = Arc::new(TestCa::new("cluster.local"));
        let clients = Node::start("node1", &ca, folder.path(), xds);
        let servers = Node::start("node2", &ca, folder.path(), xds);
        let mut world = Self {
            families,
            models,
            clients,
            servers,
            counts: Default::default(),
            audited: Mutex::default(),
            _folder: folder,
        };
        for (index, client) in CLIENTS.iter().enumerate() {
            if let Some((namespace, account)) = client {
                let addresses = world.addresses(1 + index);
                let name = format!("c{index}");
                let node = &mut world.clients;
                node.add(namespace, &name, account, &addresses).await;
            }
        }
        for (index, server) in SERVERS.iter().enumerate() {
            let addresses = world.addresses(1 + CLIENTS.len() + index);
            for address in &addresses {
                for port in PORTS {
                    echo((*address, port).into()).await;
                }
            }
            let node = &mut world.servers;
            node.add(server.namespace, server.name, "server", &addresses)
                .await;
        }
        world
    }

    fn addresses(&self, host: usize) -> Vec<IpAddr> {
        (0..self.families.len())
            .map(|family| address(family, host))
            .collect()
    }

    /// Connections that were allowed and denied.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let [allowed, denied] = &self.counts;
        (
            allowed.load(Ordering::Relaxed),
            denied.load(Ordering::Relaxed),
        )
    }

    /// Verdicts that what is in dry-run would have changed: to allowed, and to denied.
    pub(crate) fn audited(&self) -> (u64, u64) {
        let [allowed, denied] = *self.audited.lock();
        (allowed, denied)
    }

    pub(crate) async fn check(&self, case: &Case) -> Result<(), String> {
        let (objects, problems) = ObjectSet::from_yaml(&(self.manifests() + &case.to_string()));
        assert_eq!(problems, []);
        let next = self
            .models
            .borrow()
            .next(Arc::new(objects), &Settings::default());
        let next = Arc::new(next);
        self.models.send_replace(next.clone());
        for node in [&self.clients, &self.servers] {
            node.until_holds(&next).await;
        }
        let explained = Store::new("");
        let wire = |resources: &TypeResources| -> Vec<Resource> {
            resources
                .iter()
                .map(|resource| resource.to_wire())
                .collect()
        };
        explained.apply_addresses(&wire(&next.snapshot.addresses), &[]);
        explained.apply_policies(&wire(&next.snapshot.authorizations), &[]);
        for probe in &case.probes {
            self.try_one(case, probe, &explained).await?;
        }
        Ok(())
    }

    async fn try_one(&self, case: &Case, probe: &Probe, explained: &Store) -> Result<(), String> {
        let server = &SERVERS[probe.server];
        let from = address(probe.family, 1 + probe.client);
        let ip = address(probe.family, 1 + CLIENTS.len() + probe.server);
        let to = SocketAddr::new(ip, PORTS[probe.port]);
        let client = CLIENTS[probe.client];
        let facts = Facts {
            server,
            port: to.port(),
            client,
            address: from,
        };
        let expected = oracle::allowed(case, &facts);
        let would = oracle::would_be_allowed(case, &facts);

        let uid = format!("Kubernetes//Pod/{}/{}", server.namespace, server.name);
        let Applicable::Ready(policies) = explained.policies_for(&uid) else {
            return Err(format!("policies of {uid} are missing"));
        };
        let identity: Option<Identity> = client.map(|(namespace, account)| {
            let id = format!("spiffe://cluster.local/ns/{namespace}/sa/{account}");
            id.parse().unwrap()
        });
        let explanation = explain(
            &policies,
            &Connection {
                source: SocketAddr::new(from, 40000),
                destination: to,
                identity: identity.as_ref(),
                request: None,
            },
        );

        let proxy = match client {
            Some(_) => self.clients.outbound[&from],
            None => self.servers.plaintext[&ip],
        };
        let enforced = answered(redirected(from, proxy, to).await).await?;
        let counter = if enforced { 0 } else { 1 };
        self.counts[counter].fetch_add(1, Ordering::Relaxed);
        // Without a dry-run policy there is nothing that would be otherwise.
        let audit = explanation.decision.audit.as_ref();
        let explained = audit.map_or(explanation.decision.allowed, |audit| audit.allowed);
        let mut audited = self.audited.lock();
        if would != expected {
            audited[usize::from(!would)] += 1;
        }
        let counted = self.servers.audited();
        if (enforced, explanation.decision.allowed) == (expected, expected)
            && explained == would
            && counted == *audited
        {
            return Ok(());
        }
        // For the next cases, in which this one is made smaller.
        let before = std::mem::replace(&mut *audited, counted);
        Err(format!(
            "{} from {from} to {}/{} at {to}: the oracle says {}, the explanation {} ({}), and the proxy {}; with what is in \
             dry-run in force, the oracle says {}, the explanation {}, and the proxy has counted {counted:?} allowed and denied of {before:?}",
            client.map_or("plaintext".into(), |(ns, sa)| format!("{ns}/{sa}")),
            server.namespace,
            server.name,
            word(expected),
            word(explanation.decision.allowed),
            explanation.decision.because,
            word(enforced),
            word(would),
            word(explained),
        ))
    }

    fn manifests(&self) -> String {
        let mut text = SERVICES.to_owned();
        let mut pod = |namespace: &str, name: &str, account: &str, labels: &str, host: usize| {
            let ips: Vec<_> = self.addresses(host).iter().map(IpAddr::to_string).collect();
            let listed: Vec<_> = ips.iter().map(|ip| format!("{{ip: '{ip}'}}")).collect();
            text += &format!(
                "---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{{labels}}}}}
spec: {{nodeName: n, serviceAccountName: {account}, containers: []}}
status: {{phase: Running, podIP: {}, podIPs: [{}], conditions: [{{type: Ready, status: 'True'}}]}}
",
                ips[0],
                listed.join(", ")
            );
        };
        for (index, client) in CLIENTS.iter().enumerate() {
            if let Some((namespace, account)) = client {
                pod(namespace, &format!("c{index}"), account, "", 1 + index);
            }
        }
        for (index, server) in SERVERS.iter().enumerate() {
            let labels: Vec<_> = server
                .labels
                .iter()
                .map(|(k, v)| format!("{k}: {v}"))
                .collect();
            let host = 1 + CLIENTS.len() + index;
            pod(
                server.namespace,
                server.name,
                "server",
                &labels.join(", "),
                host,
            );
        }
        text
    }
}

fn word(allowed: bool) -> &'static str {
    if allowed { "allowed" } else { "denied" }
}

/// Whether the server answered; a refusal must be a reset.
async fn answered(connected: std::io::Result<TcpStream>) -> Result<bool, String> {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    let exchanged = async {
        let mut stream = connected?;
        exchange(&mut stream, b"word").await
    };
    match tokio::time::timeout(PATIENCE, exchanged).await {
        Err(_) => Err("no answer and no refusal".into()),
        Ok(Ok(())) => Ok(true),
        Ok(Err(error)) if matches!(error.kind(), BrokenPipe | ConnectionReset) => Ok(false),
        Ok(Err(error)) => Err(format!("neither an answer nor a refusal: {error}")),
    }
}

/// A proxy and the pods that it serves.
struct Node {
    shared: Arc<Shared>,
    pods: Arc<Pods>,
    /// By the pod's address.
    outbound: BTreeMap<IpAddr, SocketAddr>,
    plaintext: BTreeMap<IpAddr, SocketAddr>,
}

impl Node {
    fn start(name: &str, ca: &Arc<TestCa>, folder: &std::path::Path, xds: SocketAddr) -> Self {
        let mut config = Config::defaults();
        config.cluster_id = "Kubernetes".into();
        config.node = name.into();
        let environment = Environment {
            original_destination,
            preserve_client: false,
            loopback_is_remote: true,
        };
        let source = Arc::new(TestSource(Mutex::new(ca.clone())));
        let shared = share(config, source, environment).unwrap();
        let grpc = Grpc::new(GrpcOptions {
            address: format!("https://{xds}"),
            roots_file: folder.join("roots.pem"),
            server_name: SERVER_NAME.into(),
            token_file: folder.join("token"),
            cluster_id: "Kubernetes".into(),
        });
        let node = NodeInfo {
            address: xds.ip(),
            pod: format!("seine-ztunnel-{name}"),
            namespace: "seine-system".into(),
            node: name.into(),
            metadata: BTreeMap::new(),
        };
        let client = Client::new(grpc, Protocol::new(&node), shared.store.clone());
        tokio::spawn(client.run());
        tokio::spawn(rejudge_on_change(shared.clone()));
        shared.set_configured();
        let pods = Pods::new(shared.clone(), ListenerSource::Own(Ports::default()));
        Self {
            shared,
            pods,
            outbound: BTreeMap::new(),
            plaintext: BTreeMap::new(),
        }
    }

    fn audited(&self) -> [u64; 2] {
        audited(&self.shared)
    }

    async fn add(&mut self, namespace: &str, name: &str, account: &str, addresses: &[IpAddr]) {
        let mut listeners = PodListeners::default();
        for address in addresses {
            let bind = |port: u16| -> TcpListener {
                let socket = match address {
                    IpAddr::V4(_) => TcpSocket::new_v4(),
                    IpAddr::V6(_) => TcpSocket::new_v6(),
                };
                let socket = socket.unwrap();
                socket.set_reuseport(true).unwrap();
                socket.bind((*address, port).into()).unwrap();
                socket.listen(64).unwrap()
            };
            let (outbound, plaintext) = (bind(0), bind(0));
            let at = |listener: &TcpListener| listener.local_addr().unwrap();
            self.outbound.insert(*address, at(&outbound));
            self.plaintext.insert(*address, at(&plaintext));
            listeners.outbound.push(outbound);
            listeners.inbound_plaintext.push(plaintext);
            listeners.inbound_hbone.push(bind(15008));
        }
        let info = PodInfo {
            uid: name.into(),
            name: name.into(),
            namespace: namespace.into(),
            service_account: account.into(),
        };
        self.pods.serve(info, Netns::home(), listeners).unwrap();
    }

    /// Waits until the store has what the control plane says, no more and no less.
    async fn until_holds(&self, model: &Model) {
        let store = &self.shared.store;
        let versions = |resources: &TypeResources| -> BTreeMap<String, String> {
            let resources = resources.iter();
            resources
                .map(|resource| (resource.name.to_string(), resource.version.to_string()))
                .collect()
        };
        let addresses = versions(&model.snapshot.addresses);
        let policies = versions(&model.snapshot.authorizations);
        let held = async {
            let mut changed = store.changed();
            let mut policies_changed = store.policies_changed();
            while store.held_addresses().collect::<BTreeMap<_, _>>() != addresses
                || store.held_policies().collect::<BTreeMap<_, _>>() != policies
            {
                tokio::select! {
                    _ = changed.changed() => {}
                    _ = policies_changed.changed() => {}
                }
            }
        };
        let held = tokio::time::timeout(PATIENCE, held).await;
        held.expect("the proxy has what the control plane sent");
    }
}

/// Everyone with a token is a node's proxy.
struct Anyone;

impl Authenticator for Anyone {
    fn authenticate<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<Caller, AuthnError>> {
        let (namespace, account) = ACCOUNT.split_once('/').unwrap();
        let caller = Caller {
            namespace: namespace.into(),
            service_account: account.into(),
            pod: None,
            node: None,
        };
        Box::pin(async { Ok(caller) })
    }
}

/// The control plane's server, with what its clients need in `folder`.
async fn serve_xds(folder: &std::path::Path, models: watch::Receiver<Arc<Model>>) -> SocketAddr {
    let mut root = CertificateParams::default();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(root, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(folder.join("roots.pem"), issuer.pem()).unwrap();
    std::fs::write(folder.join("token"), "secret").unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![SERVER_NAME.to_owned()]).unwrap();
    let leaf = leaf.signed_by(&key, &*issuer).unwrap();
    let identity = tonic::transport::Identity::from_pem(leaf.pem(), key.serialize_pem());

    let (stop, stopped) = watch::channel(false);
    let options = ServerOptions {
        trusted_accounts: vec![ACCOUNT.into()],
        max_stream_age: Duration::from_secs(3600),
    };
    let service = XdsServer::new(
        models,
        Arc::new(Anyone),
        Clients::default(),
        options,
        stopped,
    );
    let listener = TcpListener::bind((address(0, 1), 0)).await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let _stop = stop;
        let tls = tonic::transport::ServerTlsConfig::new().identity(identity);
        tonic::transport::Server::builder()
            .tls_config(tls)
            .unwrap()
            .add_service(service.into_service())
            .serve_with_incoming(TcpIncoming::from(listener))
            .await
            .unwrap();
    });
    at
}

/// An application that sends everything back.
async fn echo(at: SocketAddr) {
    let listener = TcpListener::bind(at).await.unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
}
