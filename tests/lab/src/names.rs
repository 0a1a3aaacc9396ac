//! The names, paths and addresses of one lab.
//!
//! Everything that a lab puts on the machine is found again from its name: the state
//! directory, the cgroup subtree and the lock files. The addresses follow from the second
//! octet of its IPv4 block, S, which is hashed from the name and moved on when another lab
//! holds it (see [`crate::locks`]). This module does no I/O.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use thiserror::Error;

/// Where labs keep their state; a tmpfs on most machines.
pub const ROOT: &str = "/run/seine-lab";

/// The most nodes that a lab's addresses have room for.
pub const MAX_NODES: u8 = 60;

/// A lab's name: a lowercase letter, then up to 19 lowercase letters, digits and hyphens.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LabName(String);

/// Why a name can't be a lab's.
#[derive(Debug, Error)]
#[error(
    "lab name '{0}': want a lowercase letter, then up to 19 lowercase letters, digits and hyphens"
)]
pub struct InvalidName(String);

impl LabName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where to begin looking for a free S: between 16 and 215.
    pub fn preferred_block(&self) -> u8 {
        // FNV-1a: stable across builds, which std's hasher does not promise.
        let hash = self
            .0
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        u8::try_from(16 + hash % 200).expect("at most 215")
    }
}

impl FromStr for LabName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = text.bytes();
        let first = bytes.next().is_some_and(|b| b.is_ascii_lowercase());
        let rest = bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if first && rest && text.len() <= 20 {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidName(text.to_owned()))
        }
    }
}

impl fmt::Display for LabName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Paths of a lab, all below its state directory but the cgroups.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The lab.
    pub name: LabName,
    /// `/run/seine-lab/NAME`.
    pub state: PathBuf,
    /// `<cgroup v2 mount>/seine-lab-NAME`.
    pub cgroup: PathBuf,
}

impl Layout {
    /// The paths of the lab `name`, with the cgroup v2 hierarchy mounted at `cgroup_mount`.
    pub fn new(name: LabName, cgroup_mount: &Path) -> Self {
        Self {
            state: Path::new(ROOT).join(name.as_str()),
            cgroup: cgroup_mount.join(format!("seine-lab-{name}")),
            name,
        }
    }

    /// The Unix socket on which the supervisor answers commands.
    pub fn control_socket(&self) -> PathBuf {
        self.state.join("control.sock")
    }

    /// One YAML file per object, as the API server would hold it.
    pub fn objects(&self) -> PathBuf {
        self.state.join("objects")
    }

    /// Files on their way into [`Self::objects`]; on the same file system.
    pub fn scratch(&self) -> PathBuf {
        self.state.join("scratch")
    }

    /// The logs of the lab itself and of the mesh's programs.
    pub fn logs(&self) -> PathBuf {
        self.state.join("logs")
    }

    /// The log of one container.
    pub fn container_log(&self, namespace: &str, pod: &str, container: &str) -> PathBuf {
        self.logs()
            .join("pods")
            .join(namespace)
            .join(pod)
            .join(format!("{container}.log"))
    }

    /// Network namespaces are bound to files here, seen in the lab's mount namespace only.
    pub fn netns(&self, name: &str) -> PathBuf {
        self.state.join("netns").join(name)
    }

    /// What belongs to one node.
    pub fn node(&self, node: u8) -> PathBuf {
        self.state.join(format!("node{node}"))
    }

    /// The control plane's certificate authority.
    pub fn ca(&self) -> PathBuf {
        self.state.join("ca")
    }

    /// Keys and tokens of the lab's token issuer.
    pub fn tokens(&self) -> PathBuf {
        self.state.join("tokens")
    }

    /// What belongs to one pod: volumes and the files bound into its `/etc`.
    pub fn pod(&self, uid: &str) -> PathBuf {
        self.state.join("pods").join(uid)
    }

    /// A node's cgroup.
    pub fn node_cgroup(&self, node: u8) -> PathBuf {
        self.cgroup.join(format!("node{node}"))
    }

    /// The cgroup that stands for the kubelet's on a node; probes come from it.
    pub fn kubelet_cgroup(&self, node: u8) -> PathBuf {
        self.node_cgroup(node).join("kubelet")
    }

    /// The cgroup that holds a node's pods.
    pub fn pods_cgroup(&self, node: u8) -> PathBuf {
        self.node_cgroup(node).join("kubepods")
    }

    /// One pod's cgroup.
    pub fn pod_cgroup(&self, node: u8, uid: &str) -> PathBuf {
        self.pods_cgroup(node).join(format!("pod{uid}"))
    }
}

/// The addresses of a lab: `10.S.0.0/16` and `fd00:S::/32`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// S, in IPv6 written in hexadecimal.
    pub block: u8,
}

impl Addresses {
    /// The control plane on the fabric, IPv4.
    pub fn control_v4(self) -> Ipv4Addr {
        Ipv4Addr::new(10, self.block, 0, 1)
    }

    /// The control plane on the fabric, IPv6.
    pub fn control_v6(self) -> Ipv6Addr {
        self.fabric_v6(1)
    }

    /// A node on the fabric, IPv4.
    pub fn node_v4(self, node: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.block, 0, 10 + node)
    }

    /// A node on the fabric, IPv6.
    pub fn node_v6(self, node: u8) -> Ipv6Addr {
        self.fabric_v6(u16::from(10 + node))
    }

    fn fabric_v6(self, host: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, u16::from(self.block), 0, 0, 0, 0, 0, host)
    }

    /// Pod number `host` of a node (from 2), both families.
    pub fn pod(self, node: u8, host: u8) -> (Ipv4Addr, Ipv6Addr) {
        (
            Ipv4Addr::new(10, self.block, 64 + node, host),
            Ipv6Addr::new(
                0xfd00,
                u16::from(self.block),
                u16::from(node),
                0,
                0,
                0,
                0,
                u16::from(host),
            ),
        )
    }

    /// The gateway that a node's pods see, on every veth's end at the node.
    pub fn gateway_v4(self, node: u8) -> Ipv4Addr {
        self.pod(node, 1).0
    }

    /// The pods of a node, `10.S.(64+N).0/24`.
    pub fn pods_v4(self, node: u8) -> String {
        format!("{}/24", self.pod(node, 0).0)
    }

    /// The pods of a node, `fd00:S:N::/64`.
    pub fn pods_v6(self, node: u8) -> String {
        format!("{}/64", self.pod(node, 0).1)
    }

    /// All services, `10.S.128.0/17`.
    pub fn services_v4(self) -> String {
        format!("10.{}.128.0/17", self.block)
    }

    /// All services, `fd00:S:ffff::/112`.
    pub fn services_v6(self) -> String {
        format!("{}/112", self.service(0).1)
    }

    /// Service address number `index`, both families; 10 is cluster DNS.
    pub fn service(self, index: u16) -> (Ipv4Addr, Ipv6Addr) {
        let [high, low] = (index & 0x7fff).to_be_bytes();
        (
            Ipv4Addr::new(10, self.block, 128 | high, low),
            Ipv6Addr::new(
                0xfd00,
                u16::from(self.block),
                0xffff,
                0,
                0,
                0,
                0,
                index & 0x7fff,
            ),
        )
    }

    /// The index of a service address, if it is one.
    pub fn service_index(self, address: IpAddr) -> Option<u16> {
        match address {
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets();
                (a == 10 && b == self.block && c >= 128).then(|| u16::from_be_bytes([c & 0x7f, d]))
            }
            IpAddr::V6(v6) => {
                let index = v6.segments()[7];
                (index < 0x8000 && self.service(index).1 == v6).then_some(index)
            }
        }
    }

    /// Cluster DNS, both families.
    pub fn dns(self) -> (Ipv4Addr, Ipv6Addr) {
        self.service(10)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_could_leave_its_directory_is_refused() {
        for bad in ["", "../x", "a/b", "A", "1a", "a_b", "abcdefghijklmnopqrstu"] {
            assert!(bad.parse::<LabName>().is_err(), "{bad}");
        }
        assert_eq!("demo-2".parse::<LabName>().unwrap().as_str(), "demo-2");
    }

    #[test]
    fn addresses_follow_the_documented_plan() {
        let a = Addresses { block: 42 };
        assert_eq!(a.pods_v4(2), "10.42.66.0/24");
        assert_eq!(a.pods_v6(2), "fd00:2a:2::/64");
        assert_eq!(a.services_v4(), "10.42.128.0/17");
        assert_eq!(a.services_v6(), "fd00:2a:ffff::/112");
        assert_eq!(a.dns().0.to_string(), "10.42.128.10");
    }

    #[test]
    fn a_service_address_gives_back_its_index() {
        let a = Addresses { block: 42 };
        for index in [11, 300, 0x7fff] {
            let (v4, v6) = a.service(index);
            assert_eq!(a.service_index(v4.into()), Some(index));
            assert_eq!(a.service_index(v6.into()), Some(index));
        }
        assert_eq!(a.service_index("10.42.66.1".parse().unwrap()), None);
        assert_eq!(a.service_index("10.43.128.1".parse().unwrap()), None);
    }
}
