//! Which proxies hold which policies: counted by each replica for its own, added up by the leader.
//!
//! A replica writes its [`Held`] into the ConfigMap `seine-control-held-<pod>`. Policies are named
//! by a digest of the versions of their resources, which are hashes of content: the same on every
//! replica. Proxies are named by their node, so that one that went from a replica to another, or
//! whose replica is gone without a word, is counted once, where it came last.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::model::Model;
use crate::translate::PolicyFinding;
use crate::xds::{ResourceType, Snapshot, server::Entry};

/// What the proxies of one replica hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// When each proxy connected, in milliseconds since 1970.
    proxies: BTreeMap<String, u64>,
    /// Policies that every one of them holds.
    all: BTreeSet<String>,
    /// Policies that some of them hold.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    some: BTreeMap<String, BTreeSet<String>>,
}

/// What the proxies of all replicas hold.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    proxies: usize,
    /// Each replica with the proxies that count as its.
    replicas: Vec<(Held, BTreeSet<String>)>,
}

/// What tells whether [`Held::of`] would be another: cheap, for a look every second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(u64);

impl Held {
    /// Of the clients of this replica that asked for policies: the node proxies.
    pub fn of(model: &Model, clients: &[Arc<Entry>]) -> Self {
        let newest = newest(clients);
        let mut held = Self {
            proxies: newest
                .iter()
                .map(|(name, (since, _))| (name.clone(), *since))
                .collect(),
            ..Self::default()
        };
        for finding in model.findings.policies() {
            let wanted = versions(finding, &model.snapshot);
            let holders: BTreeSet<String> = newest
                .iter()
                .filter(|(_, (_, entry))| {
                    let client = entry.client.lock();
                    wanted.iter().all(|(kind, name, version)| {
                        // A node proxy has no part in what is for waypoints.
                        let stream = client.stream(*kind);
                        stream.is_none_or(|stream| stream.has_accepted(name, version))
                    })
                })
                .map(|(name, _)| name.clone())
                .collect();
            let digest = digest(finding, &model.snapshot);
            if holders.len() == newest.len() {
                held.all.insert(digest);
            } else if !holders.is_empty() {
                held.some.insert(digest, holders);
            }
        }
        held
    }

    /// See [`Fingerprint`].
    pub fn fingerprint(model: &Model, clients: &[Arc<Entry>]) -> Fingerprint {
        let mut hasher = std::hash::DefaultHasher::new();
        model.snapshot.generation.hash(&mut hasher);
        for entry in clients {
            let client = entry.client.lock();
            for kind in [ResourceType::Authorization, ResourceType::Authentication] {
                if let Some(stream) = client.stream(kind) {
                    (entry.id, stream.counts, stream.is_waiting()).hash(&mut hasher);
                }
            }
        }
        Fingerprint(hasher.finish())
    }
}

impl Totals {
    /// Adds up.
    pub fn of(replicas: impl IntoIterator<Item = Held>) -> Self {
        let replicas: Vec<Held> = replicas.into_iter().collect();
        let mut last: HashMap<&str, (u64, usize)> = HashMap::new();
        for (index, held) in replicas.iter().enumerate() {
            for (proxy, since) in &held.proxies {
                let known = last.entry(proxy).or_insert((*since, index));
                if *since > known.0 {
                    *known = (*since, index);
                }
            }
        }
        let proxies = last.len();
        let mut counted = vec![BTreeSet::new(); replicas.len()];
        for (proxy, (_, index)) in last {
            counted[index].insert(proxy.to_owned());
        }
        Self {
            proxies,
            replicas: replicas.into_iter().zip(counted).collect(),
        }
    }

    /// Node proxies that are connected.
    pub fn proxies(&self) -> usize {
        self.proxies
    }

    /// How many of them hold the policy as it is in these resources.
    pub(crate) fn holders(&self, finding: &PolicyFinding, snapshot: &Snapshot) -> usize {
        let digest = digest(finding, snapshot);
        let holders = |(held, counted): &(Held, BTreeSet<String>)| {
            if held.all.contains(&digest) {
                return counted.len();
            }
            let some = held.some.get(&digest);
            some.map_or(0, |some| some.intersection(counted).count())
        };
        self.replicas.iter().map(holders).sum()
    }
}

/// The newest connection of each node: while a proxy hands over to its successor there are two.
fn newest(clients: &[Arc<Entry>]) -> BTreeMap<String, (u64, &Arc<Entry>)> {
    let mut newest: BTreeMap<String, (u64, &Arc<Entry>)> = BTreeMap::new();
    for entry in clients {
        let client = entry.client.lock();
        if client.stream(ResourceType::Authorization).is_none() {
            continue;
        }
        let name = match (client.node_name.as_str(), client.node_id.as_str()) {
            ("", "") => format!("connection {}", entry.id),
            ("", id) => id.to_owned(),
            (node, _) => node.to_owned(),
        };
        let since = entry.since.duration_since(SystemTime::UNIX_EPOCH);
        let since = since.unwrap_or_default().as_millis();
        let since = u64::try_from(since).unwrap_or(u64::MAX);
        // The clients are in the order in which they came.
        newest.insert(name, (since, entry));
    }
    newest
}

/// Type, name and version of each resource that carries the policy.
fn versions<'a>(
    finding: &'a PolicyFinding,
    snapshot: &'a Snapshot,
) -> Vec<(ResourceType, &'a str, &'a str)> {
    let of = |kind: ResourceType, names: &'a BTreeSet<String>| {
        names.iter().filter_map(move |name| {
            let resource = snapshot.of(kind, "").get(name)?;
            Some((kind, &*resource.name, &*resource.version))
        })
    };
    of(ResourceType::Authorization, &finding.resources)
        .chain(of(ResourceType::Authentication, &finding.authentications))
        .collect()
}

/// 16 digits for a set of versions.
fn digest(finding: &PolicyFinding, snapshot: &Snapshot) -> String {
    let versions = versions(finding, snapshot);
    let bytes = versions.iter().flat_map(|(_, name, version)| {
        let parts = name.bytes().chain([0]).chain(version.bytes());
        parts.chain([0])
    });
    format!("{:016x}", fnv(bytes))
}

/// FNV-1a: for names that must be the same in every build, which the standard library's hasher does
/// not promise, and that nobody gains by forging.
pub(super) fn fnv(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(proxies: &[(&str, u64)], all: &[&str], some: &[(&str, &[&str])]) -> Held {
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect();
        Held {
            proxies: proxies
                .iter()
                .map(|(name, since)| (name.to_string(), *since))
                .collect(),
            all: names(all),
            some: some
                .iter()
                .map(|(digest, holders)| (digest.to_string(), names(holders)))
                .collect(),
        }
    }

    /// A policy without resources, and how many hold it.
    fn holders(totals: &Totals) -> usize {
        totals.holders(&PolicyFinding::default(), &Snapshot::default())
    }

    #[test]
    fn the_proxies_of_all_replicas_are_added_up_and_each_counts_where_it_came_last() {
        let policy = digest(&PolicyFinding::default(), &Snapshot::default());
        let one = held(&[("n1", 1), ("n2", 1)], &[&policy], &[]);
        let two = held(&[("n3", 1), ("n4", 2)], &[], &[(&policy, &["n4"])]);
        let totals = Totals::of([one.clone(), two]);
        assert_eq!((totals.proxies(), holders(&totals)), (4, 3));

        // The replica of n1 and n2 is gone without a word; both came to another one.
        let heir = held(&[("n1", 5), ("n2", 6)], &["other"], &[]);
        let totals = Totals::of([one.clone(), heir.clone()]);
        assert_eq!((totals.proxies(), holders(&totals)), (2, 0));
        let totals = Totals::of([heir, one]);
        assert_eq!((totals.proxies(), holders(&totals)), (2, 0));
        assert_eq!(Totals::of([]).proxies(), 0);
    }

    #[test]
    fn what_is_written_is_read_back() {
        let one = held(&[("n1", 1)], &["a"], &[("b", &["n1"])]);
        let text = serde_json::to_string(&one).unwrap();
        assert_eq!(serde_json::from_str::<Held>(&text).unwrap(), one);
    }
}
