//! What the supervisor tells of the lab. Changes nothing.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use super::Supervisor;
use crate::container;
use crate::enter::Enter;
use crate::mesh::SYSTEM;
use crate::pod::PodView;
use crate::protocol::{NodeStatus, PodPlace, PodStatus, ServiceStatus, Status};
use crate::volumes::Sources;

impl Supervisor {
    pub(super) fn unready(&self) -> Vec<String> {
        let desired = self.desired();
        let mut waiting: Vec<String> = Vec::new();
        for key in desired.keys() {
            let entry = self
                .pods
                .values()
                .find(|e| e.view.key() == *key && !e.view.terminating);
            match entry {
                Some(entry) if entry.view.ready() || entry.view.phase() == "Succeeded" => {}
                Some(entry) => waiting.push(match &entry.view.report.message {
                    Some(message) => format!("{key}: {message}"),
                    None => format!("{key}: {}", entry.view.phase()),
                }),
                None => waiting.push(match self.blocked.get(key) {
                    Some(why) => format!("{key}: {why}"),
                    None => format!("{key}: not started"),
                }),
            }
        }
        waiting
    }

    pub(super) fn place(
        &self,
        namespace: &str,
        name: &str,
        container: Option<&str>,
    ) -> Result<PodPlace> {
        if namespace == SYSTEM
            && let Some(enter) = self.mesh.as_ref().and_then(|mesh| mesh.pod_place(name))
        {
            let environment = vec![("PATH".to_owned(), crate::SEARCH_PATH.to_owned())];
            let container = String::new();
            return Ok(PodPlace {
                enter,
                environment,
                pod: name.to_owned(),
                container,
            });
        }
        let of_workload = |view: &PodView| {
            let Some((_, workload)) = name.split_once('/') else {
                return false;
            };
            let Some(owner) = &view.desired.owner else {
                return false;
            };
            owner.name == workload
                || (owner.kind == "ReplicaSet"
                    && owner
                        .name
                        .rsplit_once('-')
                        .is_some_and(|(name, _)| name == workload))
        };
        let mut candidates = self.pods.values().map(|entry| &entry.view).filter(|view| {
            view.desired.namespace == namespace && (view.desired.name == name || of_workload(view))
        });
        let view = candidates
            .clone()
            .find(|view| !view.terminating)
            .or_else(|| candidates.next())
            .with_context(|| format!("there is no pod {name} in namespace {namespace}"))?;
        let spec = &view.desired.spec;
        let chosen = match container {
            None => spec.containers.first(),
            Some(name) => spec.containers.iter().find(|c| c.name == name),
        }
        .with_context(|| format!("pod {name} has no such container"))?;
        if view.report.sandbox.is_none() {
            bail!("pod {name} has not started yet");
        }
        let sources = Sources::of(self.world.iter(), namespace)?;
        let enter = Enter {
            cgroup: self
                .layout
                .pod_cgroup(view.node, &view.uid)
                .join(&chosen.name),
            sandbox: view.report.sandbox,
            directory: chosen.working_dir.clone().map(PathBuf::from),
            ..Enter::default()
        };
        Ok(PodPlace {
            enter,
            environment: container::environment(view, chosen, &sources)
                .into_iter()
                .collect(),
            pod: view.desired.name.clone(),
            container: chosen.name.clone(),
        })
    }

    pub(super) fn status(&self) -> Status {
        let nodes = (1..=self.settings.nodes)
            .map(|node| NodeStatus {
                name: format!("node{node}"),
                addresses: vec![
                    self.addresses.node_v4(node).into(),
                    self.addresses.node_v6(node).into(),
                ],
                cgroup: self.layout.node_cgroup(node).display().to_string(),
                ztunnel: None,
                bpffs: self.layout.node(node).join("bpffs").display().to_string(),
            })
            .collect();
        let pods = self.pods.values().map(|entry| self.pod_status(&entry.view));
        let mut pods: Vec<PodStatus> = pods.collect();
        pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        let services = self
            .services
            .iter()
            .map(|(key, service)| ServiceStatus {
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                addresses: service
                    .spec
                    .iter()
                    .flat_map(|spec| spec.cluster_ips.iter().flatten())
                    .filter_map(|ip| ip.parse().ok())
                    .collect(),
            })
            .collect();
        Status {
            lab: self.settings.name.clone(),
            state: self.layout.state.display().to_string(),
            objects: self.layout.objects().display().to_string(),
            block: self.settings.block,
            nodes,
            mesh: self
                .mesh
                .as_ref()
                .map(|mesh| mesh.status())
                .unwrap_or_default(),
            pods,
            services,
        }
    }

    pub(super) fn pod_status(&self, view: &PodView) -> PodStatus {
        let spec = &view.desired.spec;
        PodStatus {
            namespace: view.desired.namespace.clone(),
            name: view.desired.name.clone(),
            uid: view.uid.clone(),
            labels: view.desired.labels.clone(),
            service_account: spec
                .service_account_name
                .clone()
                .unwrap_or_else(|| "default".to_owned()),
            node: view.node,
            ip: view.v4.into(),
            addresses: vec![view.v4.into(), view.v6.into()],
            container: spec
                .containers
                .first()
                .map(|c| c.name.clone())
                .unwrap_or_default(),
            pid: None,
            phase: if view.terminating {
                "Terminating"
            } else {
                view.phase()
            }
            .to_owned(),
            ready: view.ready(),
            restarts: view.restarts(),
            message: view.report.message.clone(),
            cgroup: self
                .layout
                .pod_cgroup(view.node, &view.uid)
                .display()
                .to_string(),
            sandbox: view.report.sandbox,
        }
    }
}
