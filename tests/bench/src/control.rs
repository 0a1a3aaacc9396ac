//! One replica of the control plane, many node proxies that are simulated, and many workloads: what it costs the control
//! plane, and how long a change takes to reach all.
//!
//! The proxies speak the real protocol over TLS, each by a connection of its own. They keep a hash of each name and version
//! and nothing else, so that one machine has room for a thousand.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use prost::Message;
use seine_lab::token::{Issuer, Subject};
use seine_proto::discovery::Resource;
use seine_xds::{Client, Grpc, GrpcOptions, Handler, NodeInfo, Protocol, Refused};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use crate::{cpu, report};

const SERVER_NAME: &str = "seine-control.seine-system.svc";
/// The pod that changes.
const CHANGED: &str = "Kubernetes//Pod/changes/changed";
/// Proxies that are sent everything at the same time: each costs the control plane a message as large as the mesh.
const AT_ONCE: usize = 4;
const PATIENCE: Duration = Duration::from_secs(300);

/// What is measured.
pub(crate) struct Plan {
    pub(crate) programs: Option<PathBuf>,
    pub(crate) proxies: usize,
    /// So many of them begin with nothing; the others come back with what they hold.
    pub(crate) new: usize,
    pub(crate) workloads: usize,
    pub(crate) changes: usize,
}

pub(crate) fn run(plan: &Plan) -> Result<()> {
    raise_descriptors()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let folder = tempfile::tempdir()?;
    println!(
        "{} workloads in {} namespaces, {} proxies",
        plan.workloads,
        namespaces(plan.workloads),
        plan.proxies
    );
    let control = Control::start(plan, folder.path())?;
    runtime.block_on(measure(plan, &control))
}

async fn measure(plan: &Plan, control: &Control) -> Result<()> {
    let start = control.begun.elapsed();
    let alone = control.cost()?;
    println!(
        "started: {:.1} s, {:.1} s of CPU, {} MiB",
        start.as_secs_f64(),
        alone.cpu,
        alone.mib
    );

    let begun = Instant::now();
    let mesh = Arc::new(Mesh::default());
    let mut running = JoinSet::new();
    let new = plan.new.clamp(1, plan.proxies);
    let mut proxies = connect(0..new, control, &mesh, &mut running).await?;
    let took = begun.elapsed();
    let connected = control.cost()?;
    let bytes = mesh.bytes.swap(0, Ordering::Relaxed);
    let (resources, _) = proxies[0].digest();
    println!(
        "first synchronisation of {new} proxies, {AT_ONCE} at once: {:.1} s; to each {:.1} MB in {resources} resources, {:.0} ms of \
         CPU; {} MiB, at most {}",
        took.as_secs_f64(),
        bytes as f64 / new as f64 / 1e6,
        (connected.cpu - alone.cpu) / new as f64 * 1e3,
        connected.mib,
        control.most()?,
    );
    mesh.remember(&proxies[0]);
    let begun = Instant::now();
    proxies.extend(connect(new..plan.proxies, control, &mesh, &mut running).await?);
    let took = begun.elapsed();
    let back = control.cost()?;
    if let Some(others @ 1..) = plan.proxies.checked_sub(new) {
        println!(
            "{others} proxies that come back and hold all of it, {AT_ONCE} at once: {:.1} s; for each {:.0} ms of CPU; {} MiB, {:.2} \
             more for each, at most {}",
            took.as_secs_f64(),
            (back.cpu - connected.cpu) / others as f64 * 1e3,
            back.mib,
            (back.mib as f64 - connected.mib as f64) / others as f64,
            control.most()?,
        );
    }
    let sets: Vec<_> = proxies.iter().map(|proxy| proxy.digest()).collect();
    ensure!(
        sets.iter()
            .all(|set| *set == sets[0] && set.0 > plan.workloads),
        "proxies hold different configurations: {:?}",
        sets.iter().min().zip(sets.iter().max())
    );
    mesh.bytes.store(0, Ordering::Relaxed);
    let each = plan.proxies as f64;

    let (mut times, mut seconds) = (Vec::new(), Vec::new());
    for change in 1..=plan.changes {
        // The source's and the model's own waits start anew.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let before = control.cost()?;
        let begun = Instant::now();
        control.change(change)?;
        let all = mesh.arrivals_are((plan.proxies * change) as u64);
        tokio::time::timeout(PATIENCE, all)
            .await
            .with_context(|| format!("change {change} reached not all"))?;
        times.push(begun.elapsed().as_secs_f64());
        seconds.push(control.cost()?.cpu - before.cpu);
    }
    let bytes = mesh.bytes.load(Ordering::Relaxed) as f64 / each / plan.changes as f64;
    println!(
        "a change of one pod, {} times: at all proxies after {} s, {} s of CPU, {bytes:.0} bytes to each; {} MiB",
        plan.changes,
        report::spread(&times),
        report::spread(&seconds),
        control.cost()?.mib,
    );
    Ok(())
}

/// A thousand pods each.
fn namespaces(workloads: usize) -> usize {
    workloads.div_ceil(1000)
}

/// Each proxy has what there is when this returns.
async fn connect(
    which: Range<usize>,
    control: &Control,
    mesh: &Arc<Mesh>,
    running: &mut JoinSet<()>,
) -> Result<Vec<Arc<Proxy>>> {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut proxies = Vec::new();
    let mut synchronising = JoinSet::new();
    for index in which {
        let permit = room.clone().acquire_owned().await?;
        let proxy = Arc::new(Proxy {
            held: Mutex::new(mesh.hashes()),
            mesh: mesh.clone(),
            names: Mutex::new((index == 0).then(HashMap::new)),
        });
        proxies.push(proxy.clone());
        let node = NodeInfo {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            pod: format!("seine-ztunnel-{index}"),
            namespace: "seine-system".into(),
            node: format!("node-{index}"),
            metadata: Default::default(),
        };
        let client = Client::new(control.grpc(), Protocol::new(&node), proxy);
        let mut status = client.status();
        running.spawn(async move {
            let never = client.run().await;
            match never {}
        });
        synchronising.spawn(async move {
            let ready = status.wait_for(|status| status.ready);
            let ready = tokio::time::timeout(PATIENCE, ready).await;
            drop(permit);
            ready.map(|ready| ready.is_ok()).unwrap_or(false)
        });
    }
    let all = synchronising.join_all().await;
    ensure!(
        all.iter().all(|ready| *ready),
        "a proxy got no configuration"
    );
    Ok(proxies)
}

/// What all proxies count together.
#[derive(Default)]
struct Mesh {
    /// Of resources and removals, before HTTP/2 and TLS.
    bytes: AtomicU64,
    /// How often one was sent the pod that changes, but for the first time.
    arrivals: AtomicU64,
    arrived: Notify,
    /// What one that comes back holds: names and versions by type, and their hashes.
    known: OnceLock<(Versions, HashMap<u32, u32>)>,
}

/// Names and versions by type.
type Versions = HashMap<String, HashMap<String, String>>;

impl Mesh {
    /// Whoever comes from now on holds what this one does.
    fn remember(&self, first: &Proxy) {
        let mut names = first.names.lock().unwrap_or_else(PoisonError::into_inner);
        let held = first.held.lock().unwrap_or_else(PoisonError::into_inner);
        let known = (names.take().unwrap_or_default(), held.clone());
        assert!(self.known.set(known).is_ok(), "it is remembered once");
    }

    fn hashes(&self) -> HashMap<u32, u32> {
        self.known
            .get()
            .map(|(_, hashes)| hashes.clone())
            .unwrap_or_default()
    }

    async fn arrivals_are(&self, wanted: u64) {
        loop {
            let arrived = self.arrived.notified();
            if self.arrivals.load(Ordering::Acquire) >= wanted {
                return;
            }
            arrived.await;
        }
    }
}

/// One proxy's memory: a hash of each name, and of its version.
struct Proxy {
    held: Mutex<HashMap<u32, u32>>,
    mesh: Arc<Mesh>,
    /// Of the first proxy, until the others come.
    names: Mutex<Option<Versions>>,
}

impl Proxy {
    /// How many resources, and which.
    fn digest(&self) -> (usize, u64) {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let one = |(name, version): (&u32, &u32)| u64::from(*name) << 32 | u64::from(*version);
        (
            held.len(),
            held.iter().map(one).fold(0, |all, one| all ^ hash(&one)),
        )
    }
}

impl Handler for Proxy {
    fn held(&self, kind: &str) -> HashMap<String, String> {
        let known = self.mesh.known.get();
        known
            .and_then(|(versions, _)| versions.get(kind).cloned())
            .unwrap_or_default()
    }

    fn apply(&self, kind: &str, resources: &[Resource], removed: &[String]) -> Vec<Refused> {
        if let Some(names) = &mut *self.names.lock().unwrap_or_else(PoisonError::into_inner) {
            let pairs = resources
                .iter()
                .map(|one| (one.name.clone(), one.version.clone()));
            names.entry(kind.to_owned()).or_default().extend(pairs);
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes: usize = removed.iter().map(String::len).sum();
        for name in removed {
            held.remove(&short(name));
        }
        for resource in resources {
            bytes += resource.encoded_len();
            let before = held.insert(short(&resource.name), short(&resource.version));
            if resource.name == CHANGED && before.is_some() {
                self.mesh.arrivals.fetch_add(1, Ordering::Release);
                self.mesh.arrived.notify_waiters();
            }
        }
        self.mesh.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        Vec::new()
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Half of the hash is enough.
fn short(text: &str) -> u32 {
    hash(&text) as u32
}

/// The control plane's process. It ends with this.
struct Control {
    child: Child,
    listen: SocketAddr,
    folder: PathBuf,
    begun: Instant,
}

struct Cost {
    cpu: f64,
    mib: u64,
}

impl Control {
    /// When this returns it serves.
    fn start(plan: &Plan, folder: &Path) -> Result<Self> {
        let objects = folder.join("objects");
        fs::create_dir(&objects)?;
        write_objects(plan, &objects)?;
        fs::write(objects.join("changed.yaml"), changed(0))?;
        let issuer = Issuer::create(folder)?;
        let subject = Subject {
            namespace: "seine-system".into(),
            service_account: "seine-ztunnel".into(),
            pod: "seine-ztunnel-0".into(),
            pod_uid: "u".into(),
            node: "node-0".into(),
        };
        issuer.write(&subject, &folder.join("token"))?;
        let own = std::env::current_exe()?;
        let beside = own.parent().context("this program is in no folder")?;
        let programs = plan.programs.as_deref().unwrap_or(beside);
        let (listen, admin) = (free()?, free()?);
        let log = folder.join("control.log");
        let begun = Instant::now();
        let child = Command::new(programs.join("seine-control"))
            .arg("--directory")
            .arg(&objects)
            .arg("--ca-dir")
            .arg(folder.join("ca"))
            .arg("--token-public-key")
            .arg(issuer.public_key())
            .arg(format!("--listen={listen}"))
            .arg(format!("--admin-address={admin}"))
            .args(["--max-stream-age=86400", "--log-level=warn"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .context("starting seine-control")?;
        let control = Self {
            child,
            listen,
            folder: folder.to_owned(),
            begun,
        };
        while !is_ready(admin) {
            ensure!(
                begun.elapsed() < PATIENCE,
                "seine-control is not ready: {}",
                fs::read_to_string(&log).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(control)
    }

    fn grpc(&self) -> Grpc {
        Grpc::new(GrpcOptions {
            address: format!("https://{}", self.listen),
            roots_file: self.folder.join("ca/root-cert.pem"),
            server_name: SERVER_NAME.into(),
            token_file: self.folder.join("token"),
            cluster_id: "Kubernetes".into(),
        })
    }

    /// Whole or not at all: it is read when it changes.
    fn change(&self, number: usize) -> Result<()> {
        let new = self.folder.join("changed.new");
        fs::write(&new, changed(number))?;
        fs::rename(new, self.folder.join("objects/changed.yaml"))?;
        Ok(())
    }

    fn cost(&self) -> Result<Cost> {
        let pid = self.child.id();
        let kib = cpu::private_kib(pid).context("seine-control has ended")?;
        Ok(Cost {
            cpu: cpu::process_seconds(pid).context("seine-control has ended")?,
            mib: kib / 1024,
        })
    }

    /// The most memory that it had so far, in MiB.
    fn most(&self) -> Result<u64> {
        let kib = cpu::most_kib(self.child.id()).context("seine-control has ended")?;
        Ok(kib / 1024)
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn is_ready(admin: SocketAddr) -> bool {
    use std::io::{Read, Write};
    let ask = || -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect(admin)?;
        stream.write_all(b"GET /healthz/ready HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.split(' ').nth(1) == Some("200"))
}

fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A thousand pods and twenty Services to a namespace; a policy for each.
fn write_objects(plan: &Plan, folder: &Path) -> Result<()> {
    for namespace in 0..namespaces(plan.workloads) {
        let mut text = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: ns-{namespace}, labels: {{seine.dev/mesh: enabled}}}}\n\
             ---\napiVersion: policy.seine.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: own, namespace: ns-{namespace}}}\n\
             spec: {{rules: [{{from: [{{namespaces: [ns-{namespace}]}}]}}]}}\n"
        );
        for service in 0..20 {
            write!(
                text,
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{service}, namespace: ns-{namespace}}}\n\
                 spec: {{clusterIP: 172.16.{namespace}.{}, selector: {{app: s{service}}}, ports: [{{port: 80, targetPort: 8080}}]}}\n",
                service + 1
            )?;
        }
        let first = namespace * 1000;
        for index in first..plan.workloads.min(first + 1000) {
            let ip = format!("10.{}.{}.{}", index >> 16, index >> 8 & 255, index & 255);
            let service = index % 20;
            text += &pod(
                &format!("ns-{namespace}"),
                &format!("s{service}-{index}"),
                &format!("s{service}"),
                &format!("node-{}", index % plan.proxies),
                &ip,
            );
        }
        fs::write(folder.join(format!("ns-{namespace}.yaml")), text)?;
    }
    Ok(())
}

fn changed(number: usize) -> String {
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: changes, labels: {seine.dev/mesh: enabled}}\n";
    let ip = format!("10.254.0.{}", number % 250 + 1);
    format!(
        "{namespace}{}",
        pod("changes", "changed", "changed", "node-0", &ip)
    )
}

fn pod(namespace: &str, name: &str, app: &str, node: &str, ip: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}, uid: {name}, labels: {{app: {app}}}}}\n\
         spec: {{nodeName: {node}, serviceAccountName: {app}, containers: [{{name: c, image: none}}]}}\n\
         status: {{phase: Running, podIP: {ip}, podIPs: [{{ip: {ip}}}], conditions: [{{type: Ready, status: \"True\"}}]}}\n"
    )
}

/// A connection for each proxy, here and in the control plane, which inherits it.
fn raise_descriptors() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Ok(())
}
