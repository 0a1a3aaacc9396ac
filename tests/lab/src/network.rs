//! The lab's network: a bridge (the fabric) that joins the control plane and the nodes, and
//! a routed veth pair for each pod, as the CNI plugin `ptp` makes it.
//!
//! The bridge is in the supervisor's own network namespace, which has no way to the machine.
//! Pod subnets are plain routes between nodes. Addresses are usable at once: duplicate
//! address detection is off.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use crate::names::{Addresses, Layout};
use crate::netns::{Netns, ip_batch};

/// The name of the interface to the fabric, on nodes and control plane.
pub const FABRIC_INTERFACE: &str = "fabric0";

/// The link-local gateway of every pod.
const GATEWAY_V6: &str = "fe80::1";

/// The namespaces of the machines of a lab.
#[derive(Clone, Debug)]
pub struct Network {
    addresses: Addresses,
    /// Where the control plane and cluster DNS run.
    pub control: Netns,
    /// The nodes; node N is at N - 1.
    nodes: Vec<Netns>,
}

impl Network {
    /// Makes bridge, control plane and nodes. Call once, in the fabric's namespace.
    pub fn create(layout: &Layout, addresses: Addresses, nodes: u8) -> Result<Self> {
        ip_batch(
            "link set lo up\n\
             link add fabric type bridge stp_state 0 forward_delay 0\n\
             link set fabric up\n",
        )?;
        let control = Netns::create(&layout.netns("control"))?;
        attach(&control, "control")?;
        let (dns_v4, dns_v6) = addresses.dns();
        let mut commands = format!(
            "addr add {}/24 dev {FABRIC_INTERFACE}\n\
             addr add {}/64 dev {FABRIC_INTERFACE} nodad\n\
             addr add {dns_v4}/32 dev lo\n\
             addr add {dns_v6}/128 dev lo nodad\n",
            addresses.control_v4(),
            addresses.control_v6(),
        );
        for node in 1..=nodes {
            commands += &routes_to_pods(addresses, node);
        }
        control.ip(commands)?;

        let mut network = Self {
            addresses,
            control,
            nodes: Vec::new(),
        };
        for node in 1..=nodes {
            let netns = network.create_node(layout, node, nodes)?;
            network.nodes.push(netns);
        }
        Ok(network)
    }

    fn create_node(&self, layout: &Layout, node: u8, nodes: u8) -> Result<Netns> {
        let a = self.addresses;
        let netns = Netns::create(&layout.netns(&format!("node{node}")))?;
        netns.sysctl(&[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
        ])?;
        attach(&netns, &format!("node{node}"))?;
        let (dns_v4, dns_v6) = a.dns();
        let mut commands = format!(
            "addr add {}/24 dev {FABRIC_INTERFACE}\n\
             addr add {}/64 dev {FABRIC_INTERFACE} nodad\n\
             route add {dns_v4}/32 via {}\n\
             route add {dns_v6}/128 via {}\n",
            a.node_v4(node),
            a.node_v6(node),
            a.control_v4(),
            a.control_v6(),
        );
        for other in (1..=nodes).filter(|&other| other != node) {
            commands += &routes_to_pods(a, other);
        }
        // Service addresses are routed nowhere: the node's rules translate them on the way,
        // and its own processes need a route to get that far.
        commands += &format!(
            "route add {} dev {FABRIC_INTERFACE}\n\
             route add {} dev {FABRIC_INTERFACE}\n",
            a.services_v4(),
            a.services_v6()
        );
        netns.ip(commands)?;
        Ok(netns)
    }

    /// A node's namespace; the node exists.
    pub fn node(&self, node: u8) -> &Netns {
        &self.nodes[usize::from(node) - 1]
    }

    /// Joins a pod's namespace to its node by a veth pair, named `host_interface` at the node.
    pub fn attach_pod(
        &self,
        node: u8,
        pod: &Netns,
        host_interface: &str,
        v4: Ipv4Addr,
        v6: Ipv6Addr,
    ) -> Result<()> {
        let gateway = self.addresses.gateway_v4(node);
        self.node(node).ip(format!(
            "link add {host_interface} type veth peer name eth0 netns {path}\n\
             link set {host_interface} addrgenmode none\n\
             addr add {gateway}/32 dev {host_interface}\n\
             addr add {GATEWAY_V6}/64 dev {host_interface} nodad\n\
             link set {host_interface} up\n\
             route add {v4}/32 dev {host_interface}\n\
             route add {v6}/128 dev {host_interface}\n",
            path = pod.path().display(),
        ))?;
        pod.ip(format!(
            "link set lo up\n\
             link set eth0 addrgenmode none\n\
             addr add {v4}/32 dev eth0\n\
             addr add {v6}/128 dev eth0 nodad\n\
             addr add fe80::2/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add {gateway} dev eth0 scope link\n\
             route add default via {gateway}\n\
             route add ::/0 via {GATEWAY_V6} dev eth0\n"
        ))
    }
}

fn routes_to_pods(addresses: Addresses, node: u8) -> String {
    format!(
        "route add {} via {}\nroute add {} via {}\n",
        addresses.pods_v4(node),
        addresses.node_v4(node),
        addresses.pods_v6(node),
        addresses.node_v6(node),
    )
}

/// Joins a machine to the bridge, called `name` there and [`FABRIC_INTERFACE`] on its side.
fn attach(netns: &Netns, name: &str) -> Result<()> {
    ip_batch(&format!(
        "link add {name} type veth peer name {FABRIC_INTERFACE} netns {}\n\
         link set {name} master fabric\n\
         link set {name} up\n",
        netns.path().display()
    ))?;
    netns.ip(format!("link set lo up\nlink set {FABRIC_INTERFACE} up\n"))
}
