//! The mesh's own programs: control plane, agents and ztunnels.
//!
//! Each runs as in Kubernetes: the agent in its node's network, a ztunnel as a pod with a
//! network of its own, both in cgroups below the node's `kubepods`. Starting, restarting and
//! killing one happen one at a time. Whatever was killed, or ended by itself, stays so until
//! `restart`: a lab shows what a mesh does without its parts.

mod command;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex as SyncMutex, MutexGuard};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::process::Command;
use tokio::sync::{Mutex, watch};

use crate::cgroup;
use crate::clock::rfc3339;
use crate::enter::Enter;
use crate::manifest::Key;
use crate::names::{Addresses, Layout};
use crate::netns::Netns;
use crate::network::Network;
use crate::objects::ObjectDirectory;
use crate::prober::{Check, Prober};
use crate::protocol::{Component, ComponentStatus, KillSignal};
use crate::token::{Issuer, POD_LIFETIME, Subject};

/// Where programs send what they export.
const OTLP_ENDPOINT: &str = "SEINE_OTLP_ENDPOINT";
/// The namespace of the mesh's own programs.
pub const SYSTEM: &str = "seine-system";
const TRUST_DOMAIN: &str = "cluster.local";
const CLUSTER: &str = "Kubernetes";
const SERVER_NAME: &str = "seine-control.seine-system.svc";
const CONTROL_PORT: u16 = 15012;
/// Addresses of ztunnels on their node: one for each of two that overlap.
const ZTUNNEL_HOSTS: [u8; 2] = [252, 253];

/// How long a program may take until it is ready, and to end.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a ztunnel that was replaced may go on with its connections.
const DRAIN: Duration = Duration::from_secs(10);

type Place = (Component, Option<u8>);

/// A program that was started.
struct Daemon {
    pid: Pid,
    generation: u32,
    /// How it ended.
    ended: watch::Receiver<Option<String>>,
    addresses: Vec<IpAddr>,
    netns: Option<Netns>,
    object: Option<Key>,
}

impl Daemon {
    fn runs(&self) -> bool {
        self.ended.borrow().is_none()
    }

    async fn wait(&self, limit: Duration) -> bool {
        let mut ended = self.ended.clone();
        tokio::time::timeout(limit, ended.wait_for(Option::is_some))
            .await
            .is_ok()
    }
}

/// The parts of the mesh that a lab runs.
pub struct Mesh {
    layout: Layout,
    addresses: Addresses,
    network: Arc<Network>,
    objects: ObjectDirectory,
    issuer: Issuer,
    probers: Vec<Prober>,
    /// This program.
    program: PathBuf,
    /// Where the mesh's programs are.
    binaries: PathBuf,
    /// Another node proxy to run in the place of ours.
    peer_ztunnel: Option<PathBuf>,
    nodes: u8,
    /// Held while one is started, restarted or killed.
    operation: Mutex<()>,
    /// Never held across a wait.
    daemons: SyncMutex<BTreeMap<Place, Arc<Daemon>>>,
}

impl Mesh {
    /// A mesh of which nothing runs yet.
    #[expect(
        clippy::too_many_arguments,
        reason = "called once, where all of these are at hand"
    )]
    pub fn new(
        layout: Layout,
        addresses: Addresses,
        network: Arc<Network>,
        objects: ObjectDirectory,
        probers: Vec<Prober>,
        program: PathBuf,
        binaries: PathBuf,
        peer_ztunnel: Option<PathBuf>,
        nodes: u8,
    ) -> Result<Self> {
        let issuer = Issuer::create(&layout.tokens())?;
        for node in 1..=nodes {
            let directory = layout.node(node);
            for name in ["bpffs", "run", "agent", "ztunnel"] {
                fs::create_dir_all(directory.join(name))?;
            }
            mount(
                Some("bpf"),
                &directory.join("bpffs"),
                Some("bpf"),
                MsFlags::empty(),
                Some("mode=700"),
            )
            .context("mounting bpffs")?;
        }
        Ok(Self {
            layout,
            addresses,
            network,
            objects,
            issuer,
            probers,
            program,
            binaries,
            peer_ztunnel,
            nodes,
            operation: Mutex::default(),
            daemons: SyncMutex::default(),
        })
    }

    /// Starts everything: the control plane, then on each node agent and ztunnel.
    pub async fn start(&self, progress: impl Fn(String)) -> Result<()> {
        let _alone = self.operation.lock().await;
        progress("starting the control plane".to_owned());
        self.launch_after((Component::Control, None), 0).await?;
        for node in 1..=self.nodes {
            progress(format!("starting agent and ztunnel on node{node}"));
            self.launch_after((Component::Agent, Some(node)), 0).await?;
            self.launch_after((Component::Ztunnel, Some(node)), 0)
                .await?;
        }
        Ok(())
    }

    fn places(&self, component: Component, node: Option<u8>) -> Result<Vec<Place>> {
        match (component.per_node(), node) {
            (false, _) => Ok(vec![(component, None)]),
            (true, Some(node)) if (1..=self.nodes).contains(&node) => {
                Ok(vec![(component, Some(node))])
            }
            (true, Some(node)) => bail!("there is no node{node}; this lab has {}", self.nodes),
            (true, None) => Ok((1..=self.nodes)
                .map(|node| (component, Some(node)))
                .collect()),
        }
    }

    /// Starts new ones, and ends the old ones in the way that each is upgraded: a ztunnel's
    /// successor is ready before SIGTERM, agent and control plane end first.
    pub async fn restart(&self, component: Component, node: Option<u8>) -> Result<()> {
        let _alone = self.operation.lock().await;
        for place in self.places(component, node)? {
            let old = self.daemons().get(&place).cloned();
            let generation = old.as_ref().map_or(0, |old| old.generation);
            if component == Component::Ztunnel {
                let started = self.launch_after(place, generation).await;
                if let Some(old) = old {
                    // It may have gone at its successor's word.
                    self.end(&old, DRAIN + PATIENCE).await;
                }
                started?;
            } else {
                if let Some(old) = old {
                    self.end(&old, PATIENCE).await;
                }
                self.launch_after(place, generation).await?;
            }
        }
        Ok(())
    }

    /// SIGTERM, SIGKILL where that does not help, and the remains.
    async fn end(&self, daemon: &Daemon, limit: Duration) {
        if daemon.runs() {
            let _ = kill(daemon.pid, Signal::SIGTERM);
            if !daemon.wait(limit).await {
                let _ = kill(daemon.pid, Signal::SIGKILL);
                daemon.wait(PATIENCE).await;
            }
        }
        if let Some(netns) = &daemon.netns {
            netns.remove();
        }
        if let Some(key) = &daemon.object {
            self.objects.remove(key);
        }
    }

    fn daemons(&self) -> MutexGuard<'_, BTreeMap<Place, Arc<Daemon>>> {
        self.daemons.lock().expect("no holder panics")
    }

    /// Ends them without successors and returns when they are gone.
    pub async fn kill(
        &self,
        component: Component,
        node: Option<u8>,
        signal: KillSignal,
    ) -> Result<()> {
        let _alone = self.operation.lock().await;
        let (signal, limit) = match signal {
            KillSignal::Kill => (Signal::SIGKILL, PATIENCE),
            KillSignal::Term => (Signal::SIGTERM, DRAIN + PATIENCE),
        };
        for place in self.places(component, node)? {
            let daemon = self.daemons().get(&place).cloned();
            let Some(daemon) = daemon.filter(|daemon| daemon.runs()) else {
                bail!("{} does not run", describe(place));
            };
            kill(daemon.pid, signal).context("kill")?;
            if !daemon.wait(limit).await {
                bail!("{} still runs {limit:?} after {signal}", describe(place));
            }
        }
        Ok(())
    }

    /// What runs and what doesn't.
    pub fn status(&self) -> Vec<ComponentStatus> {
        let daemons = self.daemons();
        daemons
            .iter()
            .map(|(&(component, node), daemon)| ComponentStatus {
                component,
                node,
                pid: daemon.runs().then_some(daemon.pid.as_raw()),
                generation: daemon.generation,
                addresses: daemon.addresses.clone(),
                cgroup: self.cgroup((component, node)).display().to_string(),
                ended: daemon.ended.borrow().clone(),
            })
            .collect()
    }

    /// Where the programs of a component's own pod run, if `pod` is one.
    pub fn pod_place(&self, pod: &str) -> Option<Enter> {
        let daemons = self.daemons();
        daemons.iter().find_map(|(&place, daemon)| {
            let key = daemon.object.as_ref()?;
            (key.name == pod).then(|| Enter {
                cgroup: self.cgroup(place),
                netns: Some(self.netns_of(place, daemon).path().to_owned()),
                ..Enter::default()
            })
        })
    }

    fn netns_of<'a>(&'a self, place: Place, daemon: &'a Daemon) -> &'a Netns {
        match (place.1, &daemon.netns) {
            (_, Some(netns)) => netns,
            (Some(node), None) => self.network.node(node),
            (None, None) => &self.network.control,
        }
    }

    /// A token for a pod's own service account.
    pub fn pod_token(&self, subject: &Subject) -> Result<String> {
        self.issuer.issue(subject, POD_LIFETIME)
    }

    /// Writes new tokens; call well within [`LIFETIME`](crate::token::LIFETIME).
    pub fn refresh_tokens(&self) {
        let daemons = self.daemons();
        for (place, daemon) in daemons.iter() {
            if let (Some(node), Some(key)) = (place.1, &daemon.object) {
                let subject = self.subject(*place, node, &key.name);
                if let Err(error) = self.issuer.write(&subject, &self.token_file(*place)) {
                    tracing::error!("{error:#}");
                }
            }
        }
    }

    /// Whether the programs are there; those that are not.
    pub fn missing_programs(binaries: &Path) -> Vec<String> {
        ["seine-control", "seine-agent", "seine-cni", "seine-ztunnel"]
            .into_iter()
            .filter(|name| !binaries.join(name).exists())
            .map(str::to_owned)
            .collect()
    }

    async fn launch_after(&self, place: Place, generation: u32) -> Result<()> {
        let daemon = Arc::new(self.spawn(place, generation + 1).await?);
        self.daemons().insert(place, daemon.clone());
        self.await_ready(place, &daemon.addresses, daemon.ended.clone())
            .await
            .with_context(|| {
                format!(
                    "{} does not get ready; see its log: seine-lab logs {0}",
                    describe(place)
                )
            })
    }

    async fn spawn(&self, place: Place, generation: u32) -> Result<Daemon> {
        let cgroup = self.cgroup(place);
        cgroup::create(&cgroup)?;
        let pod = format!("seine-{}", instance(place, generation));
        let (netns, addresses, object) = match place {
            (Component::Control, _) => (None, vec![self.addresses.control_v4().into()], None),
            (Component::Agent, Some(node)) => {
                let ip = self.addresses.node_v4(node).into();
                (
                    None,
                    vec![ip],
                    Some(self.write_pod(place, node, &pod, &[ip])?),
                )
            }
            (_, node) => {
                let node = node.context("a ztunnel has a node")?;
                let (netns, ips) = self.make_ztunnel_network(node, generation).await?;
                let key = self.write_pod(place, node, &pod, &ips)?;
                (Some(netns), ips, Some(key))
            }
        };
        if let (Some(node), Some(_)) = (place.1, &object) {
            self.issuer
                .write(&self.subject(place, node, &pod), &self.token_file(place))?;
        }
        let enter = Enter {
            cgroup,
            netns: Some(match (&netns, place.1) {
                (Some(netns), _) => netns.path().to_owned(),
                (None, Some(node)) => self.network.node(node).path().to_owned(),
                (None, None) => self.network.control.path().to_owned(),
            }),
            ..Enter::default()
        };
        let log = self.layout.logs().join(format!("{}.log", file_stem(place)));
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("opening {}", log.display()))?;
        let mut program = Command::new(&self.program);
        // The mesh's own programs don't ask the cluster's DNS here.
        if std::env::var(OTLP_ENDPOINT).is_ok_and(|endpoint| endpoint.contains(".svc.")) {
            program.env_remove(OTLP_ENDPOINT);
        }
        let mut child = program
            .args(enter.arguments(&self.command(place))?)
            .envs(self.environment(place, &pod, addresses[0]))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {}", describe(place)))?;
        let pid = child
            .id()
            .and_then(|pid| i32::try_from(pid).ok())
            .context("it just started")?;
        let (sender, ended) = watch::channel(None);
        tokio::spawn(async move {
            let how = match child.wait().await {
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            };
            tracing::info!("{} ended: {how}", describe(place));
            let _ = sender.send(Some(how));
        });
        let pid = Pid::from_raw(pid);
        Ok(Daemon {
            pid,
            generation,
            ended,
            addresses,
            netns,
            object,
        })
    }

    async fn make_ztunnel_network(
        &self,
        node: u8,
        generation: u32,
    ) -> Result<(Netns, Vec<IpAddr>)> {
        let which = usize::from(generation % 2 == 1);
        let (v4, v6) = self.addresses.pod(node, ZTUNNEL_HOSTS[which]);
        let path = self
            .layout
            .netns(&format!("ztunnel-node{node}-{generation}"));
        let network = self.network.clone();
        let interface = format!("ztunnel{which}");
        let netns = tokio::task::spawn_blocking(move || {
            // Where its predecessor but one was killed, its end of the pair may linger.
            let _ = network.node(node).ip(format!("link del {interface}\n"));
            let netns = Netns::create(&path)?;
            network.attach_pod(node, &netns, &interface, v4, v6)?;
            anyhow::Ok(netns)
        })
        .await??;
        Ok((netns, vec![v4.into(), v6.into()]))
    }

    fn write_pod(&self, place: Place, node: u8, pod: &str, ips: &[IpAddr]) -> Result<Key> {
        let account = format!("seine-{}", place.0.name());
        let key = Key::namespaced("Pod", SYSTEM, pod);
        let object = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": pod,
                "namespace": SYSTEM,
                "uid": format!("{pod}-uid"),
                "labels": {"app": account},
                "creationTimestamp": rfc3339(SystemTime::now()),
            },
            "spec": {
                "nodeName": format!("node{node}"),
                "serviceAccountName": account,
                "hostNetwork": place.0 == Component::Agent,
                "containers": [{"name": place.0.name()}],
            },
            "status": {
                "phase": "Running",
                "hostIP": self.addresses.node_v4(node),
                "podIP": ips[0],
                "podIPs": ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>(),
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        self.objects.put(&key, &object)?;
        Ok(key)
    }

    fn subject(&self, place: Place, node: u8, pod: &str) -> Subject {
        Subject {
            namespace: SYSTEM.to_owned(),
            service_account: format!("seine-{}", place.0.name()),
            pod: pod.to_owned(),
            pod_uid: format!("{pod}-uid"),
            node: format!("node{node}"),
        }
    }

    fn token_file(&self, place: Place) -> PathBuf {
        self.layout
            .tokens()
            .join(format!("{}.token", file_stem(place)))
    }

    fn cgroup(&self, place: Place) -> PathBuf {
        match place.1 {
            Some(node) => self.layout.pods_cgroup(node).join(place.0.name()),
            None => self.layout.cgroup.join(place.0.name()),
        }
    }

    async fn await_ready(
        &self,
        place: Place,
        addresses: &[IpAddr],
        ended: watch::Receiver<Option<String>>,
    ) -> Result<()> {
        let prober = &self.probers[usize::from(place.1.unwrap_or(1)) - 1];
        let check = match place {
            (Component::Control, _) => Some(Check {
                address: SocketAddr::new(addresses[0], CONTROL_PORT),
                http: None,
            }),
            (Component::Ztunnel, _) => Some(Check {
                address: SocketAddr::new(addresses[0], 15021),
                http: Some(("/healthz/ready".to_owned(), Vec::new())),
            }),
            (Component::Agent, _) => Some(Check {
                address: SocketAddr::from(([127, 0, 0, 1], 15010)),
                http: Some(("/healthz/ready".to_owned(), Vec::new())),
            }),
        };
        let files: Vec<PathBuf> = match place {
            (Component::Control, _) => vec![self.layout.ca().join("root-cert.pem")],
            (Component::Agent, Some(node)) => {
                let run = self.layout.node(node).join("run");
                vec![run.join("cni.sock"), run.join("ztunnel.sock")]
            }
            _ => Vec::new(),
        };
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(how) = ended.borrow().as_ref() {
                bail!("it ended: {how}");
            }
            let why = match files.iter().find(|file| !file.exists()) {
                Some(file) => Err(format!("{} is not there", file.display())),
                None => match &check {
                    Some(check) => prober.ask(check.clone(), Duration::from_secs(1)).await,
                    None => Ok(()),
                },
            };
            match why {
                Ok(()) => return Ok(()),
                Err(why) if tokio::time::Instant::now() >= deadline => {
                    bail!("after {PATIENCE:?}: {why}")
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

/// `ztunnel --node 1`, as the command line says it.
fn describe((component, node): Place) -> String {
    match node {
        Some(node) => format!("{} --node {node}", component.name()),
        None => component.name().to_owned(),
    }
}

/// `ztunnel-node1`.
fn file_stem((component, node): Place) -> String {
    match node {
        Some(node) => format!("{}-node{node}", component.name()),
        None => component.name().to_owned(),
    }
}

fn instance(place: Place, generation: u32) -> String {
    format!("{}-{generation}", file_stem(place))
}
