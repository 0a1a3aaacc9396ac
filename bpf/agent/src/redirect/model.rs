//! What callers hand to [`super::Redirect`] and get back from it.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::BorrowedFd,
    path::PathBuf,
};

use ipnet::IpNet;
use seine_bpf_common::Counter;
use serde::{Deserialize, Serialize};

/// Where the programs attach and where they are pinned. Cgroup paths are absolute paths below the
/// cgroup v2 mount, as the host sees it.
#[derive(Clone, Debug)]
pub struct RedirectConfig {
    /// The folder for pins, on a bpffs; it is made if it is missing, the mount is not.
    pub bpffs: PathBuf,
    /// The cgroup that holds the node's pods, the agent and the proxies.
    pub pods_cgroup: PathBuf,
    /// Cgroups whose processes are node proxies, below `pods_cgroup`; at most four (an upgrade has
    /// two). May be empty at first: see [`super::Redirect::set_proxy_cgroups`].
    pub ztunnel_cgroups: Vec<PathBuf>,
    /// The kubelet's own cgroup, outside `pods_cgroup`; without it no probe is recognised.
    pub kubelet_cgroup: Option<PathBuf>,
}

/// A pod to enrol, named by its network namespace.
#[derive(Clone, Copy, Debug)]
pub struct PodNetns<'a> {
    /// The pod's network namespace.
    pub netns: BorrowedFd<'a>,
    /// Everything that may change while the pod lives.
    pub settings: &'a PodSettings,
    /// The proxy's plaintext inbound listeners (15006), made in the pod's netns.
    pub inbound: InboundListeners<'a>,
    /// What happens to the TCP connections that are older than the enrolment.
    pub older_connections: OlderConnections,
}

/// Settings of an enrolled pod; [`super::Redirect::update`] changes them on a live pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSettings {
    /// The pod's IPv4 address, the source that its caught connections show to `getsockname`.
    pub ipv4: Option<Ipv4Addr>,
    /// The pod's IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// Interface indexes, in the agent's netns, of the host's ends of all veths of the pod: the
    /// guard attaches there. A pod without any is enrolled unguarded.
    pub host_ifindexes: BTreeSet<u32>,
    /// Connections of the pod to these ports are left alone, in plaintext.
    pub excluded_outbound_ports: BTreeSet<u16>,
    /// Connections of the pod to these networks are left alone, in plaintext.
    pub excluded_outbound_networks: BTreeSet<IpNet>,
    /// Connections to these ports of the pod reach it without the proxy.
    pub excluded_inbound_ports: BTreeSet<u16>,
    /// Connections from these networks reach the pod without the proxy.
    pub excluded_inbound_networks: BTreeSet<IpNet>,
    /// Ports that the pod's own spec lets the kubelet probe.
    pub probed_ports: BTreeSet<u16>,
    /// Which DNS queries go to the proxy's DNS listener on 15053.
    pub dns: DnsCapture,
    /// What happens to other datagrams that leave the pod.
    pub udp: Udp,
}

/// What happens to UDP that leaves a pod, but for DNS and what is excluded. The proxy carries none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Udp {
    /// It passes untouched.
    #[default]
    Pass,
    /// It is dropped at the host's end of the pod's veth.
    Drop,
}

impl std::str::FromStr for Udp {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "pass" => Ok(Self::Pass),
            "drop" => Ok(Self::Drop),
            _ => Err(()),
        }
    }
}

/// Which DNS queries of a pod are caught. Queries by TCP that are not caught here are caught as any
/// connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DnsCapture {
    /// None: the pod opted out.
    Off,
    /// Those by UDP.
    #[default]
    Udp,
    /// Those by UDP and by TCP; needs a TCP listener on 15053 too.
    UdpAndTcp,
}

/// The proxy's plaintext inbound listeners of one pod: listening TCP sockets made in its netns.
/// The kernel keeps its own reference; the caller may hand the descriptors on.
#[derive(Clone, Copy, Debug, Default)]
pub struct InboundListeners<'a> {
    /// On `0.0.0.0:15006`.
    pub ipv4: Option<BorrowedFd<'a>>,
    /// On `[::]:15006`.
    pub ipv6: Option<BorrowedFd<'a>>,
}

/// What to do with the TCP connections that a pod has when it is enrolled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OlderConnections {
    /// They stay, in plaintext, until they end; they are counted.
    #[default]
    Leave,
    /// They are reset (`SOCK_DESTROY`), but those within the pod itself.
    Reset,
}

/// What [`super::Redirect::enrol`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Enrolment {
    /// The cookie of the pod's netns: its key everywhere else.
    pub cookie: u64,
    /// Inode of the pod's netns.
    pub netns_inode: u32,
    /// Connections older than the enrolment, to or from outside the pod; 0 also where the kernel
    /// can't tell (no sock_diag), which is logged.
    pub older_found: usize,
    /// How many of them were reset.
    pub older_reset: usize,
}

/// An enrolled pod, as the kernel's maps and links tell it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EnrolledPod {
    /// Cookie of its netns.
    pub cookie: u64,
    /// Inode of its netns.
    pub netns_inode: u32,
    /// Its IPv4 address.
    pub ipv4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub ipv6: Option<Ipv6Addr>,
    /// Which DNS queries are caught.
    pub dns: DnsCapture,
    /// Whether inbound connections are steered: the link to its netns is alive.
    pub steered: bool,
    /// Interfaces with a live guard.
    pub guarded_ifindexes: BTreeSet<u32>,
}

/// The redirection of this node, as found in the kernel.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Schema version of the maps.
    pub schema: u32,
    /// Every node-wide attachment.
    pub attachments: Vec<Attachment>,
    /// Ids of the cgroups whose processes are taken for node proxies.
    pub proxy_cgroup_ids: Vec<u64>,
    /// Whether the guard attaches by TCX links (Linux 6.6) or by tc filters.
    pub guard_by_tcx: bool,
    /// Enrolled pods.
    pub pods: Vec<EnrolledPod>,
    /// Counters, summed over processors.
    pub counters: Vec<(&'static str, u64)>,
}

/// One program at one cgroup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attachment {
    /// The program's name.
    pub program: String,
    /// Id of the cgroup that the pinned link is really attached to; 0 if that is gone.
    pub cgroup_id: u64,
    /// Id of the program that the link runs.
    pub program_id: u32,
    /// Whether all of this is what the agent wants.
    pub right: bool,
}

/// What [`super::Redirect::reconcile`] found and repaired, in words for the log. Empty: all was right.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Repairs {
    /// One line each.
    pub repaired: Vec<String>,
    /// Pods that were dropped since their netns is gone.
    pub vanished: Vec<u64>,
}

/// Values of all counters at one time.
pub type Counters = Vec<(Counter, u64)>;
