//! NetworkPolicies that cut the mesh off.
//!
//! The mesh carries a pod's TCP connections to [`HBONE_PORT`] of the other pod, from the first pod's own
//! address. A policy that admits a peer on the application's port and not on that one lets the
//! connection through until both pods are in the mesh, and stops it then. [`blocked`] finds those:
//! pure, for pods as they are now, so that it can be asked before anybody is told that a pod speaks
//! HBONE.
//!
//! Nobody is called blocked whom no policy let in before: a pod that is shut off on purpose is as
//! reachable in the mesh as it was. What only a CNI's own kinds of policies say is not seen here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Pod},
        networking::v1::{IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use crate::{ObjectKey, Objects, pods};

/// The TCP port that every connection between two pods in the mesh goes to.
pub const HBONE_PORT: u16 = 15008;

/// So many objects are named; the rest are counted.
const NAMED: usize = 3;

/// A pod in the mesh, as far as NetworkPolicies see it.
#[derive(Clone, Copy, Debug)]
pub struct MeshPod<'a> {
    /// Its namespace and name.
    pub key: &'a ObjectKey,
    /// The pod.
    pub pod: &'a Pod,
    /// Its namespace, where that is known.
    pub namespace: Option<&'a Namespace>,
}

/// What one NetworkPolicy lets through outside of the mesh and stops within.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Blocked {
    /// Connections to pods that it selects.
    pub ingress: Option<Cut>,
    /// Connections of pods that it selects.
    pub egress: Option<Cut>,
}

/// Who loses whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cut {
    /// The pods that the policy selects.
    pub pods: Sample,
    /// The pods in the mesh that they are cut off from.
    pub peers: Sample,
}

/// Some objects: a few by name, and how many there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    named: BTreeSet<ObjectKey>,
    count: usize,
}

impl Sample {
    /// How many.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The first of them.
    pub fn named(&self) -> impl Iterator<Item = &ObjectKey> {
        self.named.iter()
    }

    fn of(keys: &BTreeSet<&ObjectKey>) -> Self {
        Self {
            named: keys.iter().take(NAMED).map(|key| (*key).clone()).collect(),
            count: keys.len(),
        }
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, key) in self.named.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{key}")?;
        }
        match self.count.saturating_sub(self.named.len()) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

impl fmt::Display for Blocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = "";
        let directions = [(&self.ingress, "from", "to"), (&self.egress, "to", "from")];
        for (cut, with, of) in directions {
            let Some(Cut { pods, peers }) = cut else {
                continue;
            };
            write!(
                f,
                "{before}connections {of} {pods} {with} {peers} are admitted on other ports and not on TCP \
                 {HBONE_PORT}, on which the mesh carries them: admit TCP {HBONE_PORT} {with} the same peers"
            )?;
            before = "; ";
        }
        Ok(())
    }
}

/// The policies that cut pods in the mesh off from one another. Only policies that admit somebody on
/// another port are named, since that is where the port is missing.
pub fn blocked(
    policies: &Objects<NetworkPolicy>,
    mesh: &[MeshPod<'_>],
) -> BTreeMap<ObjectKey, Blocked> {
    let mut found: BTreeMap<ObjectKey, Blocked> = BTreeMap::new();
    for direction in [Direction::Ingress, Direction::Egress] {
        for group in groups(policies, mesh, direction) {
            for (policy, peers) in group.cuts(mesh) {
                let pods: BTreeSet<_> = group.pods.iter().map(|pod| pod.key).collect();
                let cut = Cut {
                    pods: Sample::of(&pods),
                    peers: Sample::of(&peers),
                };
                let blocked = found.entry(policy.clone()).or_default();
                let slot = match direction {
                    Direction::Ingress => &mut blocked.ingress,
                    Direction::Egress => &mut blocked.egress,
                };
                match slot {
                    // Groups have no pod in common; of the peers the larger group is named.
                    Some(held) => {
                        held.pods.count += cut.pods.count;
                        held.pods.named.extend(cut.pods.named);
                        while held.pods.named.len() > NAMED {
                            held.pods.named.pop_last();
                        }
                        if cut.peers.count > held.peers.count {
                            held.peers = cut.peers;
                        }
                    }
                    None => *slot = Some(cut),
                }
            }
        }
    }
    found
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

/// One rule of one policy; the order of a rule's fields differs by direction and nothing else.
#[derive(Clone, Copy, Debug)]
struct Rule<'a> {
    policy: &'a ObjectKey,
    ports: Option<&'a [NetworkPolicyPort]>,
    peers: Option<&'a [NetworkPolicyPeer]>,
}

/// Pods that the same policies select, with the rules of all of these and, for ingress, what each
/// rule's ports are for every one of the pods.
struct Group<'a> {
    pods: Vec<MeshPod<'a>>,
    rules: Vec<Rule<'a>>,
    ports: Option<Vec<Admits>>,
}

fn groups<'a>(
    policies: &'a Objects<NetworkPolicy>,
    mesh: &[MeshPod<'a>],
    direction: Direction,
) -> Vec<Group<'a>> {
    let mut of_namespace: BTreeMap<&str, Vec<(&ObjectKey, &Arc<NetworkPolicy>)>> = BTreeMap::new();
    for (key, policy) in policies.iter().filter(|(_, p)| isolates(p, direction)) {
        let list = of_namespace.entry(key.namespace.as_str()).or_default();
        list.push((key, policy));
    }
    let mut groups = BTreeMap::new();
    for pod in mesh {
        let Some((namespace, list)) = of_namespace.get_key_value(pod.key.namespace.as_str()) else {
            continue;
        };
        let selecting: Vec<_> = (0..list.len())
            .filter(|index| {
                let spec = list[*index].1.spec.as_ref();
                let selector = spec.and_then(|spec| spec.pod_selector.as_ref());
                selects_or_all(selector, pod.pod.metadata.labels.as_ref())
            })
            .collect();
        let rules: Vec<_> = selecting
            .iter()
            .flat_map(|index| rules(list[*index].0, list[*index].1, direction))
            .collect();
        // Without a rule for some ports only, nothing can miss ours.
        if rules.iter().all(|rule| rule.ports.is_none()) {
            continue;
        }
        // A port's name is looked up where the connection goes to.
        let ports = (direction == Direction::Ingress)
            .then(|| rules.iter().map(|r| admits(r.ports, pod.pod)).collect());
        groups
            .entry((*namespace, selecting, ports.clone()))
            .or_insert_with(|| Group {
                pods: Vec::new(),
                rules,
                ports,
            })
            .pods
            .push(*pod);
    }
    groups.into_values().collect()
}

impl<'a> Group<'a> {
    /// By policy, the peers that one of its rules admits on another port while none admits them on
    /// ours. The same for every pod of the group: they are peers of one another.
    fn cuts(&self, mesh: &[MeshPod<'a>]) -> BTreeMap<&'a ObjectKey, BTreeSet<&'a ObjectKey>> {
        let mut cuts: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        let namespace = &self.pods[0].key.namespace;
        let alone = |peer: &MeshPod<'_>| self.pods.len() == 1 && self.pods[0].key == peer.key;
        for peer in mesh.iter().filter(|peer| !alone(peer)) {
            let mut by = BTreeSet::new();
            let mut admitted = false;
            for (index, rule) in self.rules.iter().enumerate() {
                let ports = match &self.ports {
                    Some(ports) => ports[index],
                    None => admits(rule.ports, peer.pod),
                };
                if ports == Admits::NoTcp || !rule.matches(namespace, peer) {
                    continue;
                }
                if ports == Admits::Hbone {
                    admitted = true;
                    break;
                }
                by.insert(rule.policy);
            }
            if !admitted {
                for policy in by {
                    cuts.entry(policy).or_default().insert(peer.key);
                }
            }
        }
        cuts
    }
}

impl Rule<'_> {
    /// Whether it admits the peer, as a rule of a policy of that namespace.
    fn matches(&self, namespace: &str, peer: &MeshPod<'_>) -> bool {
        let Some(peers) = self.peers else {
            return true;
        };
        peers.iter().any(|wanted| match wanted {
            NetworkPolicyPeer {
                ip_block: Some(block),
                ..
            } => pods::addresses(peer.pod)
                .into_iter()
                .any(|ip| contains(block, ip)),
            NetworkPolicyPeer {
                namespace_selector,
                pod_selector,
                ..
            } => {
                let in_namespace = match namespace_selector {
                    Some(selector) => peer
                        .namespace
                        .is_some_and(|n| selects(selector, n.metadata.labels.as_ref())),
                    None => peer.key.namespace == namespace,
                };
                in_namespace
                    && selects_or_all(pod_selector.as_ref(), peer.pod.metadata.labels.as_ref())
            }
        })
    }
}

fn rules<'a>(key: &'a ObjectKey, policy: &'a NetworkPolicy, direction: Direction) -> Vec<Rule<'a>> {
    let Some(spec) = &policy.spec else {
        return Vec::new();
    };
    // An empty list means all, as a missing one does.
    fn some<T>(list: &Option<Vec<T>>) -> Option<&[T]> {
        list.as_deref().filter(|list| !list.is_empty())
    }
    let rule = |ports, peers| Rule {
        policy: key,
        ports,
        peers,
    };
    match direction {
        Direction::Ingress => {
            let rules = spec.ingress.iter().flatten();
            rules.map(|r| rule(some(&r.ports), some(&r.from))).collect()
        }
        Direction::Egress => {
            let rules = spec.egress.iter().flatten();
            rules.map(|r| rule(some(&r.ports), some(&r.to))).collect()
        }
    }
}

/// The types that a policy has; where it names none, ingress, and egress if it has rules for it.
fn isolates(policy: &NetworkPolicy, direction: Direction) -> bool {
    let Some(spec) = &policy.spec else {
        return false;
    };
    let named = |name: &str| {
        let types = spec.policy_types.as_ref().filter(|t| !t.is_empty());
        types.map(|types| types.iter().any(|kind| kind == name))
    };
    match direction {
        Direction::Ingress => named("Ingress").unwrap_or(true),
        Direction::Egress => named("Egress").unwrap_or(spec.egress.is_some()),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Admits {
    /// No TCP port, which is nothing to the mesh.
    NoTcp,
    /// TCP ports, and ours is not among them.
    Others,
    /// Ours too.
    Hbone,
}

fn admits(ports: Option<&[NetworkPolicyPort]>, target: &Pod) -> Admits {
    let Some(ports) = ports else {
        return Admits::Hbone;
    };
    let tcp = |port: &&NetworkPolicyPort| port.protocol.as_deref().is_none_or(|p| p == "TCP");
    let covers = |port: &NetworkPolicyPort| {
        let wanted = i32::from(HBONE_PORT);
        match (&port.port, port.end_port) {
            (None, _) => true,
            (Some(IntOrString::Int(first)), end) => {
                (*first..=end.unwrap_or(*first)).contains(&wanted)
            }
            (Some(IntOrString::String(name)), _) => named_port(target, name) == Some(wanted),
        }
    };
    let mut admits = Admits::NoTcp;
    for port in ports.iter().filter(tcp) {
        if covers(port) {
            return Admits::Hbone;
        }
        admits = Admits::Others;
    }
    admits
}

fn named_port(pod: &Pod, name: &str) -> Option<i32> {
    let containers = &pod.spec.as_ref()?.containers;
    let mut ports = containers.iter().flat_map(|c| c.ports.iter().flatten());
    let port = ports.find(|port| port.name.as_deref() == Some(name))?;
    Some(port.container_port)
}

fn contains(block: &IPBlock, ip: IpAddr) -> bool {
    // The API server refuses what is no network.
    let within = |text: &str| text.parse::<IpNet>().is_ok_and(|net| net.contains(&ip));
    within(&block.cidr) && !block.except.iter().flatten().any(|except| within(except))
}

fn selects_or_all(selector: Option<&LabelSelector>, labels: Option<&Labels>) -> bool {
    selector.is_none_or(|selector| selects(selector, labels))
}

type Labels = BTreeMap<String, String>;

/// Every label and every expression must hold; an operator that nobody knows selects nothing.
fn selects(selector: &LabelSelector, labels: Option<&Labels>) -> bool {
    let value = |key: &str| labels.and_then(|labels| labels.get(key));
    let of_labels = selector.match_labels.iter().flatten();
    let of_expressions = selector.match_expressions.iter().flatten();
    of_labels
        .into_iter()
        .all(|(key, wanted)| value(key) == Some(wanted))
        && of_expressions.into_iter().all(|requirement| {
            let value = value(&requirement.key);
            let listed = |value: &String| requirement.values.iter().flatten().any(|v| v == value);
            match requirement.operator.as_str() {
                "In" => value.is_some_and(listed),
                "NotIn" => !value.is_some_and(listed),
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests;
