//! The lab's brain: scheduler, controllers and API server in one task.
//!
//! `Supervisor` has one writer, the task that runs [`run`]: requests from the command line
//! and reports of pods' tasks come in through channels, and after each batch `reconcile` makes
//! pods, addresses, EndpointSlices, names and rules follow. What others need to see is written
//! to the directory of objects.

mod api;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Service;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::cgroup;
use crate::cni::Cni;
use crate::control_socket;
use crate::dns::{self, Zone};
use crate::enter::Enter;
use crate::expand::{self, DesiredPod};
use crate::kubelet::{self, Machine, PodEvent};
use crate::locks;
use crate::manifest::Key;
use crate::mesh::Mesh;
use crate::names::{Addresses, LabName, Layout};
use crate::network::Network;
use crate::objects::ObjectDirectory;
use crate::pod::{PodReport, PodView};
use crate::prober::Prober;
use crate::protocol::{PodPlace, Status};
use crate::proxy;
use crate::services::{self, Allocator};
use crate::token;
use crate::volumes::Sources;

/// The number of pods' addresses on a node: from 2 to 251.
const HOSTS: std::ops::RangeInclusive<u8> = 2..=251;

/// What a lab is started with; passed between its processes as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// Its name.
    pub name: String,
    /// How many nodes.
    pub nodes: u8,
    /// Where the mesh's programs are; without them there is no mesh.
    pub binaries: Option<PathBuf>,
    /// Another node proxy to run in the place of `seine-ztunnel`.
    #[serde(default)]
    pub peer_ztunnel: Option<PathBuf>,
    /// S of its addresses; chosen by the keeper.
    pub block: u8,
    /// The objects to begin with.
    pub objects: Vec<Value>,
}

impl Settings {
    /// The lab's paths.
    pub fn layout(&self) -> Result<Layout> {
        let name: LabName = self.name.parse()?;
        Ok(Layout::new(name, &cgroup::mount_point()?))
    }
}

/// A request to the supervisor's task, with the way back.
pub enum Call {
    /// Make these objects so; one line about each comes back.
    Apply(Vec<Value>, oneshot::Sender<Result<Vec<String>>>),
    /// Delete an object; the uids of the pods that end with it come back.
    Delete(String, String, String, oneshot::Sender<Result<Vec<String>>>),
    /// Where a pod's programs run.
    Pod(
        String,
        String,
        Option<String>,
        oneshot::Sender<Result<PodPlace>>,
    ),
    /// Everything.
    Status(oneshot::Sender<Status>),
    /// What is not ready yet.
    Unready(oneshot::Sender<Vec<String>>),
    /// The mesh's programs run: pods may start.
    MeshStarted,
}

struct PodEntry {
    view: PodView,
    stop: CancellationToken,
}

struct Supervisor {
    settings: Settings,
    layout: Layout,
    addresses: Addresses,
    machine: Machine,
    directory: ObjectDirectory,
    mesh: Option<Arc<Mesh>>,
    /// Objects that users applied, services completed.
    world: BTreeMap<Key, Value>,
    services: BTreeMap<Key, Service>,
    allocator: Allocator,
    /// By uid.
    pods: BTreeMap<String, PodEntry>,
    /// Pods that can't be made yet, and why.
    blocked: BTreeMap<Key, String>,
    slices: BTreeSet<Key>,
    zone: dns::Shared,
    rules: String,
    pods_may_start: bool,
    pod_events: UnboundedSender<PodEvent>,
    next_node: u8,
}

/// Runs as the supervisor until the lab is to end.
pub async fn run(settings: Settings) -> Result<()> {
    let layout = settings.layout()?;
    cgroup::create(&layout.cgroup.join("lab"))?;
    cgroup::join(&layout.cgroup.join("lab"))?;
    let addresses = Addresses {
        block: settings.block,
    };
    let directory = ObjectDirectory::new(&layout);
    let network = Arc::new(Network::create(&layout, addresses, settings.nodes)?);
    let program = std::env::current_exe().context("finding this program")?;
    let probers = start_probers(&settings, &layout, &network, &program)?;
    let shared_zone = dns::Shared::default();
    let (dns_v4, dns_v6) = addresses.dns();
    dns::serve(
        &network.control,
        &[dns_v4.into(), dns_v6.into()],
        &shared_zone,
    )?;

    let mesh = match &settings.binaries {
        Some(binaries) => Some(Arc::new(Mesh::new(
            layout.clone(),
            addresses,
            network.clone(),
            directory.clone(),
            probers.clone(),
            program.clone(),
            binaries.clone(),
            settings.peer_ztunnel.clone(),
            settings.nodes,
        )?)),
        None => None,
    };
    let cni = settings.binaries.as_ref().map(|binaries| Cni {
        plugin: binaries.join("seine-cni"),
        layout: layout.clone(),
    });
    let (pod_events, pod_reports) = unbounded_channel();
    let (calls, requests) = unbounded_channel();
    let mut supervisor = Supervisor {
        machine: Machine {
            layout: layout.clone(),
            network,
            cni,
            probers,
            dns: format!("nameserver {dns_v4}\n"),
            program,
        },
        addresses,
        directory,
        mesh: mesh.clone(),
        world: BTreeMap::new(),
        services: BTreeMap::new(),
        allocator: Allocator::new(addresses),
        pods: BTreeMap::new(),
        blocked: BTreeMap::new(),
        slices: BTreeSet::new(),
        zone: shared_zone,
        rules: String::new(),
        pods_may_start: mesh.is_none(),
        pod_events,
        next_node: 0,
        layout: layout.clone(),
        settings,
    };
    supervisor.write_cluster()?;
    let objects = std::mem::take(&mut supervisor.settings.objects);
    supervisor.apply(objects)?;
    supervisor.reconcile().await;

    let started = Arc::new(tokio::sync::watch::Sender::new(None));
    if let Some(mesh) = mesh.clone() {
        tokio::spawn(start_mesh(mesh, calls.clone(), started.clone()));
    }
    control_socket::serve(&layout, calls, mesh, started)?;
    tokio::select! {
        () = supervisor.work(requests, pod_reports) => {}
        () = keeper_gone() => {
            tracing::warn!("the keeper is gone: ending the lab");
            supervisor.end_without_keeper();
        }
    }
    Ok(())
}

fn start_probers(
    settings: &Settings,
    layout: &Layout,
    network: &Network,
    program: &std::path::Path,
) -> Result<Vec<Prober>> {
    (1..=settings.nodes)
        .map(|node| {
            let cgroup = layout.kubelet_cgroup(node);
            cgroup::create(&cgroup)?;
            cgroup::create(&layout.pods_cgroup(node))?;
            let netns = Some(network.node(node).path().to_owned());
            Prober::start(
                program,
                &Enter {
                    cgroup,
                    netns,
                    ..Enter::default()
                },
            )
        })
        .collect()
}

async fn start_mesh(
    mesh: Arc<Mesh>,
    calls: UnboundedSender<Call>,
    started: Arc<tokio::sync::watch::Sender<Option<Result<(), String>>>>,
) {
    let result = mesh.start(|what| tracing::info!("{what}")).await;
    if let Err(error) = &result {
        tracing::error!("{error:#}");
    }
    // Pods that are not opted in start whatever happened to the mesh.
    let _ = calls.send(Call::MeshStarted);
    started.send_replace(Some(result.map_err(|error| format!("{error:#}"))));
    let mut renewal = tokio::time::interval(token::LIFETIME / 2);
    renewal.tick().await;
    loop {
        renewal.tick().await;
        mesh.refresh_tokens();
    }
}

/// Returns when standard input ends: the keeper holds its other end.
async fn keeper_gone() {
    let mut byte = [0];
    while matches!(tokio::io::stdin().read(&mut byte).await, Ok(1..)) {}
}

impl Supervisor {
    async fn work(
        &mut self,
        mut requests: UnboundedReceiver<Call>,
        mut reports: UnboundedReceiver<PodEvent>,
    ) {
        loop {
            let mut changed = false;
            tokio::select! {
                Some(call) = requests.recv() => changed |= self.answer(call),
                Some(event) = reports.recv() => changed |= self.note(event),
                else => return,
            }
            // A whole batch costs one pass.
            while let Ok(event) = reports.try_recv() {
                changed |= self.note(event);
            }
            if changed {
                self.reconcile().await;
            }
        }
    }

    fn note(&mut self, event: PodEvent) -> bool {
        match event {
            PodEvent::Changed(uid, report) => {
                let Some(entry) = self.pods.get_mut(&uid) else {
                    return false;
                };
                entry.view.report = report;
            }
            PodEvent::Gone(uid) => {
                if let Some(entry) = self.pods.remove(&uid) {
                    self.directory.remove(&entry.view.key());
                }
            }
        }
        true
    }

    /// Answers a call; true where something is to follow from it.
    fn answer(&mut self, call: Call) -> bool {
        // Whoever asked may have gone meanwhile.
        match call {
            Call::Apply(objects, back) => {
                let _ = back.send(self.apply(objects));
                true
            }
            Call::Delete(kind, name, namespace, back) => {
                let _ = back.send(self.delete(&kind, &name, &namespace));
                true
            }
            Call::Pod(namespace, pod, container, back) => {
                let _ = back.send(self.place(&namespace, &pod, container.as_deref()));
                false
            }
            Call::Status(back) => {
                let _ = back.send(self.status());
                false
            }
            Call::Unready(back) => {
                let _ = back.send(self.unready());
                false
            }
            Call::MeshStarted => {
                self.pods_may_start = true;
                true
            }
        }
    }

    fn desired(&self) -> BTreeMap<Key, DesiredPod> {
        let pods = expand::pods(self.world.iter(), self.settings.nodes).unwrap_or_else(|error| {
            tracing::error!("{error:#}");
            Vec::new()
        });
        pods.into_iter()
            .map(|pod| (Key::namespaced("Pod", &pod.namespace, &pod.name), pod))
            .collect()
    }

    /// Makes everything follow from the objects and the pods' reports.
    async fn reconcile(&mut self) {
        let mut desired = self.desired();
        self.end_unwanted(&desired);
        self.blocked.clear();
        let present: BTreeMap<Key, String> = self
            .pods
            .values()
            .map(|e| (e.view.key(), e.view.uid.clone()))
            .collect();
        for (key, uid) in &present {
            let Some(wanted) = desired.remove(key) else {
                continue;
            };
            let Some(entry) = self.pods.get_mut(uid) else {
                continue;
            };
            if !entry.view.terminating {
                entry.view.desired.labels = wanted.labels;
                entry.view.desired.annotations = wanted.annotations;
            }
        }
        if self.pods_may_start {
            for (key, pod) in desired {
                if let Err(error) = self.start_pod(pod) {
                    self.blocked.insert(key, format!("{error:#}"));
                }
            }
        }
        if let Err(error) = self.publish().await {
            tracing::error!("{error:#}");
        }
    }

    fn end_unwanted(&mut self, desired: &BTreeMap<Key, DesiredPod>) {
        let mut unwanted = Vec::new();
        for entry in self.pods.values().filter(|entry| !entry.view.terminating) {
            let view = &entry.view;
            match desired.get(&view.key()) {
                Some(wanted) if wanted.revision == view.desired.revision => {}
                Some(_) => unwanted.push(view.uid.clone()),
                None if self.awaits_successors(view, desired) => {}
                None => unwanted.push(view.uid.clone()),
            }
        }
        for uid in unwanted {
            self.end_pod(&uid);
        }
    }

    /// A Deployment's old pods stay until all of its new ones are ready.
    fn awaits_successors(&self, old: &PodView, desired: &BTreeMap<Key, DesiredPod>) -> bool {
        let deployment = |pod: &DesiredPod| {
            let owner = pod
                .owner
                .as_ref()
                .filter(|owner| owner.kind == "ReplicaSet")?;
            let (name, _hash) = owner.name.rsplit_once('-')?;
            Some((pod.namespace.clone(), name.to_owned()))
        };
        let Some(own) = deployment(&old.desired) else {
            return false;
        };
        desired
            .iter()
            .filter(|(_, pod)| deployment(pod).as_ref() == Some(&own))
            .any(|(key, _)| {
                let successor = self.pods.values().find(|entry| entry.view.key() == *key);
                !successor.is_some_and(|entry| entry.view.ready())
            })
    }

    fn end_pod(&mut self, uid: &str) {
        if let Some(entry) = self.pods.get_mut(uid) {
            entry.view.terminating = true;
            entry.stop.cancel();
        }
    }

    fn start_pod(&mut self, desired: DesiredPod) -> Result<()> {
        let mut sources = Sources::of(self.world.iter(), &desired.namespace)?;
        if let Some(missing) = sources.missing(&desired.spec) {
            bail!("{missing}");
        }
        let node = self.schedule(&desired)?;
        let (host, v4, v6) = if desired.spec.host_network == Some(true) {
            (
                0,
                self.addresses.node_v4(node),
                self.addresses.node_v6(node),
            )
        } else {
            let taken: BTreeSet<u8> = self
                .pods
                .values()
                .filter(|entry| entry.view.node == node)
                .map(|entry| entry.view.host)
                .collect();
            let host = HOSTS
                .clone()
                .find(|host| !taken.contains(host))
                .with_context(|| format!("node{node} has no free address"))?;
            let (v4, v6) = self.addresses.pod(node, host);
            (host, v4, v6)
        };
        let account = desired
            .spec
            .service_account_name
            .as_deref()
            .unwrap_or("default");
        let account = Key::namespaced("ServiceAccount", &desired.namespace, account);
        if !self.world.contains_key(&account) {
            if account.name != "default" {
                bail!("{account} does not exist");
            }
            self.apply(vec![json!({"apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": "default", "namespace": account.namespace}})])?;
        }
        let uid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")
            .context("making a uid")?
            .trim()
            .to_owned();
        let view = PodView {
            uid: uid.clone(),
            node,
            host,
            v4,
            v6,
            created: SystemTime::now(),
            terminating: false,
            node_v4: self.addresses.node_v4(node),
            report: PodReport::default(),
            desired,
        };
        if let Some(mesh) = &self.mesh {
            sources.token = Some(mesh.pod_token(&token::Subject {
                namespace: view.desired.namespace.clone(),
                service_account: account.name,
                pod: view.desired.name.clone(),
                pod_uid: view.uid.clone(),
                node: format!("node{}", view.node),
            })?);
        }
        // Before the CNI plugin asks: the agent judges by the object.
        self.directory.put(&view.key(), &view.object())?;
        let stop = CancellationToken::new();
        kubelet::start(
            self.machine.clone(),
            view.clone(),
            sources,
            self.pod_events.clone(),
            stop.clone(),
        );
        self.pods.insert(uid, PodEntry { view, stop });
        Ok(())
    }

    fn schedule(&mut self, pod: &DesiredPod) -> Result<u8> {
        if let Some(name) = &pod.spec.node_name {
            let number = name
                .strip_prefix("node")
                .and_then(|number| number.parse().ok());
            return match number {
                Some(node) if (1..=self.settings.nodes).contains(&node) => Ok(node),
                _ => bail!("spec.nodeName: there is no node '{name}'"),
            };
        }
        self.next_node = self.next_node % self.settings.nodes + 1;
        Ok(self.next_node)
    }

    /// Writes what follows from pods and services: objects, names, rules.
    async fn publish(&mut self) -> Result<()> {
        let views: Vec<PodView> = self.pods.values().map(|entry| entry.view.clone()).collect();
        for view in &views {
            self.directory.put(&view.key(), &view.object())?;
        }
        let mut slices: Vec<(Key, Value)> = Vec::new();
        for (key, service) in &self.services {
            slices.extend(services::endpoint_slices(key, service, &views));
        }
        let now: BTreeSet<Key> = slices.iter().map(|(key, _)| key.clone()).collect();
        for (key, slice) in &slices {
            self.directory.put(key, slice)?;
        }
        for gone in self.slices.difference(&now) {
            self.directory.remove(gone);
        }
        self.slices = now;
        let zone = Arc::new(Zone::of(self.services.iter(), &views));
        *self.zone.write().expect("no holder panics") = zone;

        // A user's own EndpointSlices count as well.
        let own = self
            .world
            .iter()
            .filter(|(key, _)| key.kind == "EndpointSlice");
        slices.extend(own.map(|(key, slice)| (key.clone(), slice.clone())));
        let rules = proxy::rules(self.addresses, self.services.iter(), &slices);
        if rules != self.rules {
            let network = self.machine.network.clone();
            let (nodes, text) = (self.settings.nodes, rules.clone());
            tokio::task::spawn_blocking(move || {
                (1..=nodes).try_for_each(|node| network.node(node).nft(text.clone()))
            })
            .await??;
            self.rules = rules;
        }
        Ok(())
    }

    /// Does the keeper's work for it, as far as a process inside the lab can.
    fn end_without_keeper(&self) {
        for node in 1..=self.settings.nodes {
            let _ = cgroup::destroy(&self.layout.node_cgroup(node), Duration::from_secs(5));
        }
        let _ = cgroup::destroy(&self.layout.cgroup.join("control"), Duration::from_secs(5));
        if let Ok(mount) = cgroup::mount_point() {
            let _ = cgroup::join(&mount);
        }
        let _ = cgroup::destroy(&self.layout.cgroup, Duration::from_secs(1));
        // Here, unlike outside, the state directory has mounts in it.
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for path in mounts
            .lines()
            .rev()
            .filter_map(|line| line.split(' ').nth(4))
        {
            if std::path::Path::new(path).starts_with(&self.layout.state) {
                let _ = nix::mount::umount2(path, nix::mount::MntFlags::MNT_DETACH);
            }
        }
        let _ = std::fs::remove_dir_all(&self.layout.state);
        locks::tidy();
    }
}
