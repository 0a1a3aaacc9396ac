//! A node for the agent's tests: a pod's network namespace, cgroups, a folder of objects, and
//! stand-ins for the kernel's programs and for a node proxy.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prost::Message;
use seine_agent::Agent;
use seine_agent::Config;
use seine_agent::Netns;
use seine_agent::NodeProxy;
use seine_agent::Redirector;
use seine_agent::StateLock;
use seine_agent::redirect::Counters;
use seine_agent::redirect::EnrolledPod;
use seine_agent::redirect::Enrolment;
use seine_agent::redirect::OlderConnections;
use seine_agent::redirect::PodNetns;
use seine_agent::redirect::PodSettings;
use seine_agent::redirect::RedirectError;
use seine_agent::redirect::Repairs;
use seine_agent::redirect::Status;
use seine_agent::redirect::Udp;
use seine_agent::seqpacket::Connection;
use seine_objects::DirectoryOptions;
use seine_objects::DirectorySource;
use seine_objects::EnrolmentSettings;
use seine_proto::listeners::Kind;
use seine_proto::listeners::ListenersRequest;
use seine_proto::listeners::ListenersResponse;
use seine_proto::zds::Ack;
use seine_proto::zds::Version;
use seine_proto::zds::WorkloadRequest;
use seine_proto::zds::WorkloadResponse;
use seine_proto::zds::ZdsHello;
use seine_proto::zds::workload_request::Payload;
use seine_proto::zds::workload_response;
use serde_json::Value;
use serde_json::json;
use tokio::sync::MutexGuard;
use tokio::time::timeout;

/// The tests move this process from one cgroup to another.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
/// What the stand-in for the kernel finds in each pod.
pub(crate) const OLDER_CONNECTIONS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) async fn take_turn() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().await
}

/// Stands in for the kernel: remembers who is enrolled.
#[derive(Default)]
struct Kernel {
    pods: Mutex<BTreeMap<u64, PodSettings>>,
    /// No connection is caught.
    broken: AtomicBool,
    /// The links can't be compared.
    unreadable: AtomicBool,
    /// The pods' inbound links are gone.
    unsteered: AtomicBool,
}

impl Redirector for Kernel {
    fn enrol(&self, pod: PodNetns<'_>) -> Result<Enrolment, RedirectError> {
        assert!(pod.inbound.ipv4.is_some(), "no inbound listener");
        let netns = Netns::new(pod.netns.try_clone_to_owned().unwrap()).unwrap();
        self.pods
            .lock()
            .unwrap()
            .insert(netns.cookie(), pod.settings.clone());
        let older_found = OLDER_CONNECTIONS;
        Ok(Enrolment {
            cookie: netns.cookie(),
            netns_inode: 0,
            older_found,
            older_reset: match pod.older_connections {
                OlderConnections::Leave => 0,
                OlderConnections::Reset => older_found,
            },
        })
    }

    fn update(&self, cookie: u64, settings: &PodSettings) -> Result<(), RedirectError> {
        let old = self.pods.lock().unwrap().insert(cookie, settings.clone());
        old.map(drop).ok_or(RedirectError::NotEnrolled(cookie))
    }

    fn release(&self, cookie: u64) -> Result<(), RedirectError> {
        self.pods.lock().unwrap().remove(&cookie);
        Ok(())
    }

    fn enrolled(&self) -> Result<Vec<EnrolledPod>, RedirectError> {
        let pods = self.pods.lock().unwrap();
        Ok(pods
            .iter()
            .map(|(cookie, settings)| EnrolledPod {
                cookie: *cookie,
                netns_inode: 0,
                ipv4: settings.ipv4,
                ipv6: settings.ipv6,
                dns: settings.dns,
                steered: !self.unsteered.load(Ordering::SeqCst),
                guarded_ifindexes: settings.host_ifindexes.clone(),
            })
            .collect())
    }

    fn reconcile(&self) -> Result<Repairs, RedirectError> {
        if self.unreadable.load(Ordering::SeqCst) {
            return Err(RedirectError::Invalid(
                "the links are not to be read".into(),
            ));
        }
        Ok(Repairs::default())
    }

    fn canary(&self) -> Result<(), RedirectError> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(RedirectError::Canary("it went past".into()));
        }
        Ok(())
    }

    fn set_proxy_cgroups(&self, _: &[PathBuf]) -> Result<(), RedirectError> {
        Ok(())
    }

    fn counters(&self) -> Result<Counters, RedirectError> {
        Ok(Vec::new())
    }

    fn status(&self) -> Result<Status, RedirectError> {
        Err(RedirectError::Invalid("not asked here".into()))
    }
}

fn ip(arguments: &[&str]) -> bool {
    Command::new("ip")
        .args(arguments)
        .stderr(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .is_ok_and(|s| s.success())
}

/// A node with one pod's network namespace and two cgroups; all of it goes when it is dropped.
pub(crate) struct Node {
    folder: tempfile::TempDir,
    cgroup: PathBuf,
    home: PathBuf,
    netns: String,
    veth: String,
    kernel: Arc<Kernel>,
}

impl Node {
    pub(crate) fn new(name: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() || !ip(&["-V"]) {
            eprintln!("SKIPPED: needs root and iproute2");
            return None;
        }
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let Some(mount) = mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let point = fields.next()?;
            (fields.next()? == "cgroup2").then(|| PathBuf::from(point))
        }) else {
            eprintln!("SKIPPED: needs cgroup v2");
            return None;
        };
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let home = own
            .lines()
            .find_map(|line| line.strip_prefix("0::/"))
            .unwrap_or("");
        let id = format!("{name}{}", std::process::id());
        let node = Self {
            folder: tempfile::tempdir().unwrap(),
            cgroup: mount.join(format!("seine-agent-test-{id}")),
            home: mount.join(home),
            netns: format!("seine-{id}"),
            veth: format!("v{id}"),
            kernel: Arc::default(),
        };
        for name in ["ztunnel", "pods"] {
            fs::create_dir_all(node.cgroup.join(name)).unwrap();
        }
        for name in ["objects", "run", "state"] {
            fs::create_dir(node.path(name)).unwrap();
        }
        let (n, v) = (node.netns.as_str(), node.veth.as_str());
        assert!(ip(&["netns", "add", n]));
        assert!(ip(&["-n", n, "link", "set", "lo", "up"]));
        assert!(ip(&[
            "link", "add", v, "type", "veth", "peer", "name", "eth0", "netns", n
        ]));
        node.opt_in(true);
        Some(node)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Labels the namespace.
    pub(crate) fn opt_in(&self, enabled: bool) {
        let label = if enabled { "enabled" } else { "disabled" };
        self.objects(
            label,
            json!({"name": "web", "namespace": "shop", "uid": "u-1"}),
        );
    }

    /// Makes the namespace and the pod what the label and the metadata say.
    pub(crate) fn objects(&self, label: &str, metadata: Value) {
        let objects = json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "shop", "labels": {"seine.dev/mesh": label}}});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata,
            "spec": {"serviceAccountName": "web", "nodeName": "node1", "containers": [
                {"name": "app", "livenessProbe": {"httpGet": {"port": 8080}}}]}});
        let hidden = self.path("objects/.new");
        fs::write(&hidden, format!("{objects}\n---\n{pod}\n")).unwrap();
        fs::rename(hidden, self.path("objects/all.yaml")).unwrap();
    }

    /// Moves this process below one of the node's cgroups.
    pub(crate) fn enter(&self, name: &str) {
        move_to(&self.cgroup.join(name));
    }

    /// Moves this process back to where it was.
    pub(crate) fn leave(&self) {
        move_to(&self.home);
    }

    pub(crate) async fn agent(&self) -> (Agent, DirectorySource) {
        self.agent_with(|_| {}).await
    }

    /// With other settings.
    pub(crate) async fn agent_with(
        &self,
        change: impl FnOnce(&mut Config),
    ) -> (Agent, DirectorySource) {
        let source =
            DirectorySource::open(self.path("objects"), DirectoryOptions::default()).unwrap();
        let mut config = Config {
            node: "node1".into(),
            pods_cgroup: Some(self.cgroup.join("pods")),
            proxy: NodeProxy::Cgroup(self.cgroup.join("ztunnel")),
            cni_cgroup: None,
            run_dir: self.path("run"),
            state_dir: self.path("state"),
            admin_address: "127.0.0.1:0".parse().unwrap(),
            metrics_address: None,
            listeners: seine_agent::Listeners::Agent,
            older_connections: OlderConnections::Leave,
            udp: Udp::Pass,
            reconcile_every: Duration::from_millis(200),
            canary_every: Duration::from_millis(200),
            pod_wait: Duration::from_millis(300),
            chain: None,
            enrolment: EnrolmentSettings::default(),
        };
        change(&mut config);
        let kernel = self.kernel.clone();
        let lock = StateLock::take(&config.state_dir).await.unwrap();
        let agent = Agent::start(lock, config, kernel, source.subscribe())
            .await
            .unwrap();
        (agent, source)
    }

    /// Runs the real plugin.
    pub(crate) async fn cni(&self, command: &str, pod: &str, uid: &str) -> Output {
        self.cni_with(command, pod, uid, &[]).await
    }

    /// Runs the real plugin with namespaces whose pods always start.
    pub(crate) async fn cni_with(
        &self,
        command: &str,
        pod: &str,
        uid: &str,
        always_start: &[&str],
    ) -> Output {
        let netns = format!("/run/netns/{}", self.netns);
        let arguments = format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME={pod};K8S_POD_UID={uid}");
        let input = json!({"cniVersion": "1.1.0", "name": "k8s", "type": "seine-cni",
            "agentSocket": self.path("run/cni.sock"), "stateFile": self.path("state/last-known.json"), "timeoutSeconds": 1,
            "alwaysStartNamespaces": always_start,
            "prevResult": {"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.5/24"}]},
            "cni.dev/valid-attachments": [{"containerID": pod, "ifname": "eth0"}]});
        let command = command.to_owned();
        tokio::task::spawn_blocking(move || {
            let mut child = Command::new(plugin())
                .env("CNI_COMMAND", command)
                .env("CNI_CONTAINERID", "sandbox-1")
                .env("CNI_IFNAME", "eth0")
                .env("CNI_NETNS", netns)
                .env("CNI_ARGS", arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            child
                .stdin
                .take()
                .unwrap()
                .write_all(input.to_string().as_bytes())
                .unwrap();
            child.wait_with_output().unwrap()
        })
        .await
        .unwrap()
    }

    pub(crate) fn pod(&self) -> Netns {
        Netns::open(Path::new(&format!("/run/netns/{}", self.netns))).unwrap()
    }

    /// Connects to an address from within the pod.
    pub(crate) fn connect(&self, address: &str) -> std::io::Result<TcpStream> {
        let address: SocketAddr = address.parse().unwrap();
        self.pod()
            .within(|| TcpStream::connect_timeout(&address, Duration::from_secs(2)))
            .unwrap()
    }

    /// Gives the pod one more veth.
    pub(crate) fn add_interface(&self, name: &str) {
        let (n, v) = (self.netns.as_str(), self.second());
        assert!(ip(&[
            "link", "add", &v, "type", "veth", "peer", "name", name, "netns", n
        ]));
    }

    /// Gives the pod an interface that is no veth; its device is the first one's other end.
    pub(crate) fn add_macvlan(&self, name: &str) {
        let (n, v) = (self.netns.as_str(), self.veth.as_str());
        assert!(ip(&[
            "link", "add", "link", v, "name", name, "netns", n, "type", "macvlan"
        ]));
    }

    pub(crate) fn remove_interface(&self, name: &str) {
        assert!(ip(&["-n", &self.netns, "link", "del", name]));
    }

    fn second(&self) -> String {
        format!("{}x", self.veth)
    }

    /// Starts a process of the pod, in its namespace and in a cgroup as the kubelet makes it.
    pub(crate) fn run_in_pod(&self, uid: &str) -> Process {
        let cgroup = self.cgroup.join(format!("pods/pod{uid}"));
        fs::create_dir_all(&cgroup).unwrap();
        let process = Command::new("ip")
            .args(["netns", "exec", &self.netns, "sleep", "600"])
            .spawn()
            .unwrap();
        fs::write(cgroup.join("cgroup.procs"), process.id().to_string()).unwrap();
        Process { process, cgroup }
    }

    /// The redirection goes wrong, or right again.
    pub(crate) fn set_broken(&self, broken: bool) {
        self.kernel.broken.store(broken, Ordering::SeqCst);
    }

    /// What is attached can't be told, or can again.
    pub(crate) fn set_unreadable(&self, unreadable: bool) {
        self.kernel.unreadable.store(unreadable, Ordering::SeqCst);
    }

    /// The pods lose their inbound links.
    pub(crate) fn lose_links(&self) {
        self.kernel.unsteered.store(true, Ordering::SeqCst);
    }

    /// The kernel forgets the pods, as it does when their namespaces end.
    pub(crate) fn namespaces_end(&self) {
        self.kernel.pods.lock().unwrap().clear();
    }

    /// The rules of the pod, as iproute2 prints them.
    pub(crate) fn rules(&self) -> String {
        let output = Command::new("ip")
            .args(["-n", &self.netns, "rule"])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// How many pods the kernel has enrolled.
    pub(crate) fn enrolled(&self) -> usize {
        self.kernel.pods.lock().unwrap().len()
    }

    /// With which settings.
    pub(crate) fn settings(&self, cookie: u64) -> PodSettings {
        self.kernel.pods.lock().unwrap()[&cookie].clone()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.leave();
        ip(&["netns", "del", &self.netns]);
        ip(&["link", "del", &self.veth]);
        for name in ["ztunnel", "pods", ""] {
            let _ = fs::remove_dir(self.cgroup.join(name));
        }
    }
}

/// A process of a pod; it and its cgroup go when it is dropped.
pub(crate) struct Process {
    process: Child,
    cgroup: PathBuf,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir(&self.cgroup);
    }
}

/// One of the agent's pages, with its status line.
pub(crate) fn page(agent: &Agent, path: &str) -> String {
    let mut stream = TcpStream::connect(agent.admin_address()).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

fn move_to(cgroup: &Path) {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string()).unwrap();
}

/// The plugin's binary beside this test's, built if it is not there.
fn plugin() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let path = exe.parent().unwrap().parent().unwrap().join("seine-cni");
    if !path.exists() {
        let built = Command::new(env!("CARGO"))
            .args(["build", "-q", "-p", "seine-cni", "--manifest-path"])
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../cni/Cargo.toml"))
            .status();
        assert!(built.unwrap().success());
    }
    path
}

/// A node proxy, as far as the agent's sockets go.
pub(crate) struct Proxy(Connection);

impl Proxy {
    pub(crate) async fn connect(node: &Node) -> Self {
        Self::new(Connection::connect(&node.path("run/ztunnel.sock")).unwrap()).await
    }

    pub(crate) async fn new(connection: Connection) -> Self {
        let hello = ZdsHello {
            version: Version::V1.into(),
        };
        // The agent may have closed already, which the next message shows.
        let _ = connection.send(&hello.encode_to_vec(), &[]).await;
        Self(connection)
    }

    /// The next message, or nothing where the agent closed.
    pub(crate) async fn next(&self) -> Option<(Payload, Vec<OwnedFd>)> {
        let received = timeout(PATIENCE, self.0.receive(1024))
            .await
            .expect("the agent is silent");
        // A connection that the agent closed with a message unread is reset.
        let (message, descriptors) = received.ok().flatten()?;
        let ack = workload_response::Payload::Ack(Ack {
            error: String::new(),
        });
        let answer = WorkloadResponse { payload: Some(ack) };
        self.0.send(&answer.encode_to_vec(), &[]).await.unwrap();
        Some((
            WorkloadRequest::decode(message.as_slice())
                .unwrap()
                .payload
                .unwrap(),
            descriptors,
        ))
    }
}

/// A pod's listening sockets, as a node proxy asks for them.
pub(crate) async fn listeners(node: &Node, uid: &str) -> Result<Vec<(Kind, OwnedFd)>, String> {
    let connection = Connection::connect(&node.path("run/listeners.sock")).unwrap();
    let request = ListenersRequest {
        uid: uid.to_owned(),
    };
    connection
        .send(&request.encode_to_vec(), &[])
        .await
        .map_err(|error| error.to_string())?;
    let received = timeout(PATIENCE, connection.receive(1024))
        .await
        .expect("the agent is silent");
    let (message, descriptors) = received.ok().flatten().ok_or("closed")?;
    let answer = ListenersResponse::decode(message.as_slice()).unwrap();
    if !answer.error.is_empty() {
        return Err(answer.error);
    }
    assert_eq!(answer.listeners.len(), descriptors.len());
    Ok(answer
        .listeners
        .iter()
        .map(|l| l.kind())
        .zip(descriptors)
        .collect())
}

pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, wait)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"));
}
