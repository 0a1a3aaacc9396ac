//! How the mesh is: its programs, its proxies, and the conditions of what users wrote.

use std::fmt;

use k8s_openapi::api::apps::v1::DaemonSet;
use seine_control::publish::writer::condition_prefix;
use seine_objects::{Kind, pods};
use serde::Serialize;
use serde_json::Value;

use crate::{
    cluster::{Cluster, POLICIES},
    output::Table,
    pages::{CONTROL, Program},
    ztunnel::span,
};

/// The mesh of a cluster, or what one replica of its control plane knows.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Control plane, agents, ztunnels; empty without a cluster.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub components: Vec<Component>,
    /// The proxies that are connected, by replica.
    pub proxies: Vec<Proxy>,
    /// What users wrote, or opted in, and what became of it.
    pub objects: Vec<Object>,
    /// Objects whose conditions are all good are listed, too.
    #[serde(skip)]
    pub all: bool,
}

/// One program of the mesh.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Component {
    /// `control`, `agent` or `ztunnel`.
    pub name: &'static str,
    /// Ready pods.
    pub ready: i32,
    /// Pods that should be.
    pub wanted: i32,
    /// Image of the first container.
    pub image: String,
}

/// One proxy, as the control plane knows it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Proxy {
    /// Its name.
    pub id: String,
    /// Its node.
    pub node: String,
    /// The replica that it is connected to.
    pub replica: String,
    /// Since when.
    pub connected_seconds: u64,
    /// It holds the newest configuration.
    pub current: bool,
    /// What it refused last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejection: Option<String>,
}

/// One object and its conditions.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Object {
    /// Kind, namespace and name.
    pub object: String,
    /// As in the API.
    pub conditions: Vec<Condition>,
}

/// One condition.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "as in the API")]
pub struct Condition {
    pub r#type: String,
    pub status: String,
    pub reason: String,
    pub message: String,
}

impl Status {
    /// What one replica of the control plane knows.
    pub async fn of_replica(control: &Program) -> anyhow::Result<Self> {
        let mut status = Self::default();
        status.add_proxies(control).await?;
        let report = control.json("/status").await?;
        status.objects = report
            .as_array()
            .into_iter()
            .flatten()
            .map(object)
            .collect();
        Ok(status)
    }

    /// The mesh of a cluster.
    pub async fn of_cluster(cluster: &Cluster) -> anyhow::Result<Self> {
        let mut status = Self {
            components: components(cluster).await?,
            ..Self::default()
        };
        let replicas = cluster.component("control").await?;
        for (index, pod) in replicas
            .iter()
            .filter(|pod| pods::is_ready(pod))
            .enumerate()
        {
            let control = Program::in_pod(cluster, pod, CONTROL);
            status.add_proxies(&control).await?;
            if index == 0 {
                // Of policies, the API server has what all replicas together found out.
                let report = control.json("/status").await?;
                let policies = POLICIES.map(|kind| kind.to_string());
                let of_cluster = |found: &&Value| {
                    let kind = found["kind"].as_str().unwrap_or_default();
                    !policies.iter().any(|policy| policy == kind)
                };
                let report = report.as_array().into_iter().flatten();
                status.objects.extend(report.filter(of_cluster).map(object));
            }
        }
        for kind in POLICIES {
            for policy in cluster.policies(kind).await? {
                let metadata = &policy.metadata;
                status.objects.push(object(&serde_json::json!({
                    "kind": kind.to_string(),
                    "namespace": metadata.namespace,
                    "name": metadata.name,
                    "conditions": our_conditions(kind, &policy.data["status"]["conditions"]),
                })));
            }
        }
        Ok(status)
    }

    async fn add_proxies(&mut self, control: &Program) -> anyhow::Result<()> {
        let page = control.json("/debug/clients").await?;
        for client in page["clients"].as_array().into_iter().flatten() {
            let streams: Vec<&Value> = match client["types"].as_object() {
                Some(types) => types.values().collect(),
                None => Vec::new(),
            };
            let rejection = streams
                .iter()
                .filter(|stream| {
                    ["rejectedResources", "perhapsRejectedResources"]
                        .iter()
                        .filter_map(|list| stream[*list].as_array())
                        .any(|names| !names.is_empty())
                })
                .find_map(|stream| stream["lastRejection"].as_str());
            let text = |field: &str| client[field].as_str().unwrap_or_default().to_owned();
            // `ztunnel~ADDRESS~POD.NAMESPACE~DOMAIN`: people know the pod.
            let id = text("nodeId");
            let pod = id.split('~').nth(2).and_then(|pod| pod.rsplit_once('.'));
            let id = pod.map_or(id.clone(), |(pod, _)| pod.to_owned());
            self.proxies.push(Proxy {
                id,
                node: text("node"),
                replica: control.name.clone(),
                connected_seconds: client["connectedSeconds"].as_u64().unwrap_or(0),
                current: streams
                    .iter()
                    .all(|stream| stream["current"].as_bool() == Some(true)),
                rejection: rejection.map(str::to_owned),
            });
        }
        Ok(())
    }

    /// Everything runs, every proxy is current, every condition holds.
    pub fn is_good(&self) -> bool {
        self.components.iter().all(|one| one.ready >= one.wanted)
            && self.proxies.iter().all(|one| one.current)
            && self.objects.iter().all(Object::is_good)
    }
}

impl Object {
    fn is_good(&self) -> bool {
        self.conditions.iter().all(|one| one.status == "True")
    }
}

async fn components(cluster: &Cluster) -> anyhow::Result<Vec<Component>> {
    let mut components = Vec::new();
    let deployment = cluster.deployment().await?;
    let wanted = deployment.as_ref().and_then(|found| found.spec.as_ref());
    let status = deployment.as_ref().and_then(|found| found.status.as_ref());
    let template = wanted.and_then(|spec| spec.template.spec.as_ref());
    components.push(Component {
        name: "control",
        ready: status.and_then(|status| status.ready_replicas).unwrap_or(0),
        wanted: wanted.and_then(|spec| spec.replicas).unwrap_or(1),
        image: template.map_or(String::new(), image),
    });
    for (name, set) in [("agent", "seine-agent"), ("ztunnel", "seine-ztunnel")] {
        let found: Option<DaemonSet> = cluster.daemon_set(set).await?;
        let status = found.as_ref().and_then(|found| found.status.as_ref());
        let spec = found.as_ref().and_then(|found| found.spec.as_ref());
        let template = spec.and_then(|spec| spec.template.spec.as_ref());
        components.push(Component {
            name,
            ready: status.map_or(0, |status| status.number_ready),
            wanted: status.map_or(1, |status| status.desired_number_scheduled),
            image: template.map_or(String::new(), image),
        });
    }
    Ok(components)
}

fn image(spec: &k8s_openapi::api::core::v1::PodSpec) -> String {
    let first = spec.containers.first();
    first
        .and_then(|first| first.image.clone())
        .unwrap_or_default()
}

/// On Istio's objects they stand beside others', with a prefix.
fn our_conditions(kind: Kind, conditions: &Value) -> Vec<Value> {
    let conditions = conditions.as_array().into_iter().flatten();
    let ours = conditions.filter_map(|condition| {
        let name = condition["type"].as_str()?;
        let name = name.strip_prefix(condition_prefix(kind))?.to_owned();
        let mut condition = condition.clone();
        condition["type"] = name.into();
        Some(condition)
    });
    ours.collect()
}

fn object(found: &Value) -> Object {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = match (text(&found["namespace"]), text(&found["name"])) {
        (namespace, name) if namespace.is_empty() => name,
        (namespace, name) => format!("{namespace}/{name}"),
    };
    let conditions = found["conditions"].as_array().into_iter().flatten();
    Object {
        object: format!("{} {name}", text(&found["kind"]))
            .trim_end()
            .to_owned(),
        conditions: conditions
            .map(|condition| Condition {
                r#type: text(&condition["type"]),
                status: text(&condition["status"]),
                reason: text(&condition["reason"]),
                message: text(&condition["message"]),
            })
            .collect(),
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(["COMPONENT", "READY", "IMAGE"]);
        for one in &self.components {
            table.row([
                one.name.to_owned(),
                format!("{}/{}", one.ready, one.wanted),
                one.image.clone(),
            ]);
        }
        write!(f, "{table}")?;
        if !table.is_empty() {
            writeln!(f)?;
        }
        let mut table = Table::new(["PROXY", "NODE", "CONNECTED", "CONFIGURATION"]);
        for one in &self.proxies {
            let configuration = match (&one.rejection, one.current) {
                (Some(rejection), _) => format!("refused: {rejection}"),
                (None, true) => "current".to_owned(),
                (None, false) => "behind".to_owned(),
            };
            table.row([
                one.id.clone(),
                one.node.clone(),
                span(one.connected_seconds),
                configuration,
            ]);
        }
        match table.is_empty() {
            true => writeln!(f, "no proxy is connected")?,
            false => write!(f, "{table}")?,
        }
        let mut table = Table::new(["OBJECT", "CONDITION", "STATUS", "REASON", "MESSAGE"]);
        for one in self.objects.iter().filter(|one| self.all || !one.is_good()) {
            let shown = one
                .conditions
                .iter()
                .filter(|condition| self.all || condition.status != "True");
            for condition in shown {
                table.row([
                    one.object.clone(),
                    condition.r#type.clone(),
                    condition.status.clone(),
                    condition.reason.clone(),
                    condition.message.clone(),
                ]);
            }
        }
        match table.is_empty() {
            true => writeln!(
                f,
                "\n{} policies and pods, all conditions hold",
                self.objects.len()
            ),
            false => write!(f, "\n{table}"),
        }
    }
}
