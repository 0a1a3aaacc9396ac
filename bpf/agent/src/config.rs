//! What the agent is told when it starts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use seine_objects::EnrolmentSettings;

use crate::cni_chain::ChainSettings;
use crate::redirect::OlderConnections;
use crate::redirect::Udp;

/// Who makes the pods' listening sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Listeners {
    /// The agent makes them and hands them to each ztunnel: connections wait while none runs.
    #[default]
    Agent,
    /// The node proxy makes its own, as another mesh's does that knows nothing of a hand-over.
    /// While it is away connections are refused, and plaintext towards the pods always is.
    Ztunnel,
}

/// How a node proxy is told from other processes. The kernel lets its connections pass; those of one
/// that isn't known come back to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeProxy {
    /// It is any process of root, outside of the pods' cgroup.
    AnyProcess,
    /// It is below this cgroup.
    Cgroup(PathBuf),
    /// It is in a pod of this service account on this node.
    ServiceAccount {
        /// The account's namespace.
        namespace: String,
        /// The account's name.
        name: String,
    },
}

/// Settings of a running agent.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node's name.
    pub node: String,
    /// The cgroup that holds the node's pods.
    pub pods_cgroup: Option<PathBuf>,
    /// Who is a node proxy.
    pub proxy: NodeProxy,
    /// The cgroup that the CNI plugin's processes are below; else they are just no pod's.
    pub cni_cgroup: Option<PathBuf>,
    /// Folder of the sockets.
    pub run_dir: PathBuf,
    /// Folder of what a restarted agent must know, and the CNI plugin while no agent runs.
    pub state_dir: PathBuf,
    /// Where status, metrics and readiness are served: a loopback address.
    pub admin_address: SocketAddr,
    /// Where metrics alone are served, for a scraper that can't reach loopback.
    pub metrics_address: Option<SocketAddr>,
    /// Who makes the pods' listening sockets.
    pub listeners: Listeners,
    /// What happens to connections that are older than the enrolment.
    pub older_connections: OlderConnections,
    /// What happens to UDP of pods that say nothing of it.
    pub udp: Udp,
    /// How often the agent compares with what is really attached.
    pub reconcile_every: Duration,
    /// How often a connection is made that must be caught, though all seems to be as it should.
    pub canary_every: Duration,
    /// How long a pod's start waits for its object to appear.
    pub pod_wait: Duration,
    /// Where the container runtime's CNI chain is; nothing where something else calls the plugin.
    pub chain: Option<ChainSettings>,
    /// Who is opted in.
    pub enrolment: EnrolmentSettings,
}
