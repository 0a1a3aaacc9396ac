//! The life of one pod: sandbox, volumes, containers, restarts, probes, end.
//!
//! One task owns a pod from its sandbox to its removal; it tells the supervisor of each change
//! and is told only one thing, to end. The order is Kubernetes': network and CNI plugin before
//! the first process, and the plugin's DEL after the last one is gone.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Container;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::sync::CancellationToken;

use crate::cgroup;
use crate::cni::Cni;
use crate::container::{self, ContainerTask};
use crate::names::Layout;
use crate::netns::Netns;
use crate::network::Network;
use crate::pause::Sandbox;
use crate::pod::{ContainerState, PodReport, PodView};
use crate::prober::Prober;
use crate::volumes::{self, Sources};

/// What all pods of a lab share.
#[derive(Clone)]
pub struct Machine {
    /// Paths.
    pub layout: Layout,
    /// Namespaces of the nodes.
    pub network: Arc<Network>,
    /// The CNI plugin, where the lab has a mesh.
    pub cni: Option<Cni>,
    /// The kubelets' probers; of node N at N - 1.
    pub probers: Vec<Prober>,
    /// `resolv.conf` without the pod's own namespace.
    pub dns: String,
    /// This program.
    pub program: PathBuf,
}

/// What a pod's task tells the supervisor.
#[derive(Debug)]
pub enum PodEvent {
    /// Something about the pod changed.
    Changed(String, PodReport),
    /// The pod is gone, with all that it had on the machine.
    Gone(String),
}

/// The state that a pod's tasks share; each change is reported.
#[derive(Clone)]
pub struct Reporter {
    uid: String,
    state: Arc<Mutex<PodReport>>,
    events: UnboundedSender<PodEvent>,
}

impl Reporter {
    /// Changes the state and reports it if that made a difference.
    pub fn update(&self, change: impl FnOnce(&mut PodReport)) {
        let mut state = self.state.lock().expect("no holder panics");
        let before = state.clone();
        change(&mut state);
        if *state != before {
            // The supervisor is gone only when everything is.
            let _ = self
                .events
                .send(PodEvent::Changed(self.uid.clone(), state.clone()));
        }
    }

    /// Changes the state of container number `index`.
    pub fn container(&self, index: usize, change: impl FnOnce(&mut ContainerState)) {
        self.update(|state| change(&mut state.containers[index]));
    }
}

/// Starts the task of a pod. It ends the pod when `stop` is cancelled.
pub fn start(
    machine: Machine,
    pod: PodView,
    sources: Sources,
    events: UnboundedSender<PodEvent>,
    stop: CancellationToken,
) {
    tokio::spawn(async move {
        let containers = pod
            .desired
            .spec
            .containers
            .iter()
            .map(|c| ContainerState {
                name: c.name.clone(),
                ..ContainerState::default()
            })
            .collect();
        let state = PodReport {
            containers,
            ..PodReport::default()
        };
        let reporter = Reporter {
            uid: pod.uid.clone(),
            state: Arc::new(Mutex::new(state)),
            events: events.clone(),
        };
        let uid = pod.uid.clone();
        let kubelet = PodKubelet {
            machine,
            pod,
            sources,
            reporter,
            stop,
        };
        kubelet.run().await;
        let _ = events.send(PodEvent::Gone(uid));
    });
}

struct PodKubelet {
    machine: Machine,
    pod: PodView,
    sources: Sources,
    reporter: Reporter,
    stop: CancellationToken,
}

impl PodKubelet {
    async fn run(self) {
        let mut pause = None;
        let mut backoff = Duration::from_millis(250);
        let mut told = String::new();
        while !self.stop.is_cancelled() {
            match self.make_sandbox().await {
                Ok(child) => {
                    pause = Some(child);
                    break;
                }
                Err(error) => {
                    let message = format!("{error:#}");
                    if message != told {
                        tracing::warn!(pod = %self.pod.key(), "{message}");
                        told = message;
                    }
                    self.reporter
                        .update(|state| state.message = Some(format!("{error:#}")));
                    self.remove_sandbox().await;
                    tokio::select! {
                        () = tokio::time::sleep(backoff) => {}
                        () = self.stop.cancelled() => {}
                    }
                    backoff = (backoff * 2).min(Duration::from_secs(5));
                }
            }
        }
        if let Some(child) = &pause {
            let sandbox = child.id().and_then(|pid| i32::try_from(pid).ok());
            self.reporter.update(|state| {
                state.sandbox = sandbox;
                state.sandboxed = true;
                state.message = None;
            });
            self.run_containers(sandbox).await;
        }
        self.stop.cancelled().await;
        self.remove_sandbox().await;
        drop(pause);
    }

    fn cgroup(&self) -> PathBuf {
        self.machine.layout.pod_cgroup(self.pod.node, &self.pod.uid)
    }

    fn netns_path(&self) -> PathBuf {
        if self.pod.host_network() {
            self.machine.network.node(self.pod.node).path().to_owned()
        } else {
            self.machine.layout.netns(&format!("pod-{}", self.pod.uid))
        }
    }

    async fn make_sandbox(&self) -> Result<Child> {
        cgroup::create(&self.cgroup().join("pause"))?;
        if !self.pod.host_network() {
            self.make_network()
                .await
                .context("making the pod's network")?;
            if let Some(cni) = &self.machine.cni {
                cni.add(&self.pod, &self.netns_path())
                    .await
                    .context("CNI plugin, ADD")?;
            }
        }
        let volumes = volumes::prepare(
            &self.machine.layout,
            &self.pod,
            &self.machine.dns,
            &self.sources,
        )?;
        let sandbox = Sandbox {
            cgroup: self.cgroup().join("pause"),
            netns: self.netns_path(),
            hostname: self
                .pod
                .desired
                .spec
                .hostname
                .clone()
                .unwrap_or_else(|| self.pod.desired.name.clone()),
            root: self.machine.layout.pod(&self.pod.uid).join("root"),
            binds: volumes,
        };
        let mut child = Command::new(&self.machine.program)
            .arg("internal-pause")
            .arg(serde_json::to_string(&sandbox)?)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting the pod's first process")?;
        let mut line = String::new();
        let stdout = child.stdout.take().expect("was piped");
        BufReader::new(stdout).read_line(&mut line).await?;
        if line != "ready\n" {
            let output = child.wait_with_output().await?;
            bail!(
                "sandbox: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(child)
    }

    async fn make_network(&self) -> Result<()> {
        let (network, pod) = (self.machine.network.clone(), self.pod.clone());
        let path = self.netns_path();
        let interface = host_interface(&pod);
        tokio::task::spawn_blocking(move || {
            let netns = Netns::create(&path)?;
            network.attach_pod(pod.node, &netns, &interface, pod.v4, pod.v6)
        })
        .await?
    }

    async fn run_containers(&self, sandbox: Option<i32>) {
        let spec = &self.pod.desired.spec;
        for container in spec.init_containers.iter().flatten() {
            loop {
                let task = self.container_task(container, None, sandbox);
                match task.run_once().await {
                    Some(0) => break,
                    None => return,
                    Some(code) => {
                        let message =
                            format!("init container {}: exit status {code}", container.name);
                        self.reporter.update(|state| state.message = Some(message));
                        tokio::select! {
                            () = tokio::time::sleep(Duration::from_secs(1)) => {}
                            () = self.stop.cancelled() => return,
                        }
                    }
                }
            }
        }
        self.reporter.update(|state| state.message = None);
        let tasks: Vec<_> = spec
            .containers
            .iter()
            .enumerate()
            .map(|(index, container)| {
                tokio::spawn(self.container_task(container, Some(index), sandbox).run())
            })
            .collect();
        for task in tasks {
            if let Err(error) = task.await {
                tracing::error!(pod = %self.pod.key(), "container task: {error}");
            }
        }
    }

    fn container_task(
        &self,
        container: &Container,
        index: Option<usize>,
        sandbox: Option<i32>,
    ) -> ContainerTask {
        ContainerTask {
            machine: self.machine.clone(),
            pod: self.pod.clone(),
            container: container.clone(),
            index,
            sandbox,
            environment: container::environment(&self.pod, container, &self.sources),
            reporter: self.reporter.clone(),
            stop: self.stop.clone(),
        }
    }

    /// Ends what still runs, then takes everything of the pod off the machine.
    async fn remove_sandbox(&self) {
        let (layout, pod) = (self.machine.layout.clone(), self.pod.clone());
        let network = self.machine.network.clone();
        let cgroup = self.cgroup();
        let netns_path = self.netns_path();
        if cgroup.exists() {
            let _ = cgroup::kill(&cgroup);
            for _ in 0..500 {
                if !cgroup::populated(&cgroup) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        if let (Some(cni), false) = (&self.machine.cni, pod.host_network())
            && netns_path.exists()
            && let Err(error) = cni.del(&pod, &netns_path).await
        {
            tracing::warn!(pod = %pod.key(), "CNI plugin, DEL: {error:#}");
        }
        let done = tokio::task::spawn_blocking(move || {
            if !pod.host_network() && netns_path.exists() {
                // The address is free for another pod as soon as we say so.
                let interface = host_interface(&pod);
                let _ = network.node(pod.node).ip(format!("link del {interface}\n"));
                if let Ok(netns) = Netns::existing(&netns_path) {
                    netns.remove();
                }
            }
            let removed = cgroup::destroy(&cgroup, Duration::from_secs(5));
            let _ = fs::remove_dir_all(layout.pod(&pod.uid));
            removed
        })
        .await;
        if let Ok(Err(error)) = done {
            tracing::warn!(pod = %self.pod.key(), "{error:#}");
        }
    }
}

/// The name of the node's end of a pod's veth pair.
fn host_interface(pod: &PodView) -> String {
    format!("veth{}", &pod.uid.replace('-', "")[..11])
}
