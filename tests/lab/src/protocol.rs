//! What the command line and the supervisor say to each other: one JSON object a line.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::enter::Enter;

/// A part of the mesh that the lab runs.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
    clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Component {
    /// The control plane.
    Control,
    /// A node's agent.
    Agent,
    /// A node's proxy.
    Ztunnel,
}

impl Component {
    /// `ztunnel`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Agent => "agent",
            Self::Ztunnel => "ztunnel",
        }
    }

    /// Whether each node has one.
    pub fn per_node(self) -> bool {
        self != Self::Control
    }
}

/// How a program is ended that gets no successor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum KillSignal {
    /// As a crash ends it.
    #[default]
    Kill,
    /// As a node that shuts down, or a DaemonSet that deletes before it creates, ends it: it may
    /// first drain.
    Term,
}

/// A command.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// Wait until everything is ready; progress comes before the answer.
    Wait {
        /// Give up after this long.
        seconds: u64,
    },
    /// Make these objects so.
    Apply(Vec<Value>),
    /// Delete an object.
    Delete {
        /// Its kind, in any case, singular or plural.
        kind: String,
        /// Its name.
        name: String,
        /// Its namespace.
        namespace: String,
    },
    /// Where a pod's programs run.
    Pod {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name, or `kind/name` of a workload for its first pod.
        pod: String,
        /// The container, else the first.
        container: Option<String>,
    },
    /// Where a node's wire to the others is seen.
    Wire {
        /// The node.
        node: u8,
    },
    /// Start a new one and have it take over, or start the one that was killed.
    Restart {
        /// What.
        component: Component,
        /// Where; all nodes otherwise.
        node: Option<u8>,
    },
    /// End it; it stays dead until it is restarted.
    Kill {
        /// What.
        component: Component,
        /// Where; all nodes otherwise.
        node: Option<u8>,
        /// How.
        signal: KillSignal,
    },
    /// Everything about the lab.
    Status,
    /// End the lab.
    Down,
}

/// A line of the answer; the last one is `Done` or `Failed`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// Something to tell the user meanwhile.
    Progress(String),
    /// It worked.
    Done(Value),
    /// It didn't, and why.
    Failed(String),
}

/// The answer to [`Request::Pod`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PodPlace {
    /// How to get there.
    pub enter: Enter,
    /// The environment of its container.
    pub environment: Vec<(String, String)>,
    /// Its name.
    pub pod: String,
    /// The container's name.
    pub container: String,
}

/// The answer to [`Request::Status`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The lab's name.
    pub lab: String,
    /// Its state directory.
    pub state: String,
    /// The directory of objects, as the API server would hold them.
    pub objects: String,
    /// S of its addresses.
    pub block: u8,
    /// Its nodes.
    pub nodes: Vec<NodeStatus>,
    /// The mesh's programs.
    pub mesh: Vec<ComponentStatus>,
    /// Its pods.
    pub pods: Vec<PodStatus>,
    /// Its services.
    pub services: Vec<ServiceStatus>,
}

/// A node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// `node1`.
    pub name: String,
    /// Its addresses on the fabric.
    pub addresses: Vec<IpAddr>,
    /// Its cgroup.
    pub cgroup: String,
    /// Where bpffs is, seen from within the lab.
    pub bpffs: String,
    /// Its ztunnel, if one runs.
    pub ztunnel: Option<ProcessStatus>,
}

/// A process.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// Its number.
    pub pid: i32,
}

/// One of the mesh's programs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ComponentStatus {
    /// Which.
    pub component: Component,
    /// On which node; of the control plane none.
    pub node: Option<u8>,
    /// Its process, as numbered where one asks; none if it doesn't run.
    pub pid: Option<i32>,
    /// How often it was started.
    pub generation: u32,
    /// The addresses that it can be reached at.
    pub addresses: Vec<IpAddr>,
    /// Its cgroup.
    pub cgroup: String,
    /// How it ended, if it does not run.
    pub ended: Option<String>,
}

/// A pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.labels`.
    pub labels: std::collections::BTreeMap<String, String>,
    /// Its service account.
    pub service_account: String,
    /// The number of its node.
    pub node: u8,
    /// Its IPv4 address.
    pub ip: IpAddr,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// The name of its first container.
    pub container: String,
    /// The first process of its first container, as numbered where one asks.
    pub pid: Option<i32>,
    /// `status.phase`, or `Terminating`.
    pub phase: String,
    /// All containers are ready.
    pub ready: bool,
    /// Restarts of all containers.
    pub restarts: u32,
    /// What stands in the way.
    pub message: Option<String>,
    /// Its cgroup.
    pub cgroup: String,
    /// The process that holds its namespaces, as numbered within the lab.
    pub sandbox: Option<i32>,
}

/// A service.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `spec.clusterIPs`; empty where it is headless.
    pub addresses: Vec<IpAddr>,
}
