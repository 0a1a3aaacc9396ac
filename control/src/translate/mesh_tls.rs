//! `MeshTLS` to the wire.
//!
//! A mode is a property of a workload and a port, not of a policy: for every enrolled pod the
//! effective mode is worked out here, and the pod lists one `Deny` of plaintext that says just
//! that. Those are named by what they say, so that all pods with the same mode share one; the names are none that an
//! object can have.

use std::collections::{BTreeMap, BTreeSet};

use seine_objects::{
    Kind, ObjectKey, ObjectSet, Objects,
    policy::{MeshTls, Mode},
};
use seine_proto::security::{Action, Authorization, Clause, Match, Rule, Scope};

use super::{PolicyFinding, Resources, Settings, policy::presence, workload::Pods};

/// Adds the effective modes of all enrolled pods. Where both our own objects and Istio's say something of a pod, both
/// hold: a port takes plaintext only if neither denies it.
pub(super) fn translate(
    objects: &ObjectSet,
    pods: &Pods,
    settings: &Settings,
    resources: &mut Resources,
) {
    let own = Modes {
        kind: Kind::MeshTls,
        root_namespace: &settings.root_namespace,
        objects: &objects.mesh_tls,
    };
    let found = own.translate(pods, settings, resources);
    resources.findings.mesh_tls = found;
    if let Some(root_namespace) = &settings.istio_root_namespace {
        let (converted, noted) = convert(objects, root_namespace);
        let istio = Modes {
            kind: Kind::PeerAuthentication,
            root_namespace,
            objects: &converted,
        };
        let mut found = istio.translate(pods, settings, resources);
        for (key, note) in noted {
            found.entry(key).or_default().notes.push(note);
        }
        resources.findings.peer_authentications = found;
    }
}

/// Istio's, in our terms, and what is to be said of each.
fn convert(
    objects: &ObjectSet,
    root_namespace: &str,
) -> (Objects<MeshTls>, Vec<(ObjectKey, String)>) {
    let mut converted = Objects::new();
    let mut noted = Vec::new();
    for (key, object) in &objects.peer_authentications {
        let mut note = |text: &str| noted.push((key.clone(), text.to_owned()));
        if object.has_labels() && key.namespace == root_namespace {
            note("is without effect: Istio ignores a selector in its root namespace");
            continue;
        }
        if object.disables() {
            note("takes plaintext where it says DISABLE, and mutual TLS even so");
        }
        converted.insert(key.clone(), object.to_mesh_tls().into());
    }
    (converted, noted)
}

/// Objects of one kind that say modes.
struct Modes<'a> {
    kind: Kind,
    /// Those of it without a selector hold for the mesh.
    root_namespace: &'a str,
    objects: &'a Objects<MeshTls>,
}

impl Modes<'_> {
    fn translate(
        &self,
        pods: &Pods,
        settings: &Settings,
        resources: &mut Resources,
    ) -> BTreeMap<ObjectKey, PolicyFinding> {
        let none = |key: &ObjectKey| (key.clone(), PolicyFinding::default());
        let mut findings: BTreeMap<_, _> = self.objects.keys().map(none).collect();
        if self.objects.is_empty() {
            return findings;
        }
        let mut by_age: Vec<(&ObjectKey, &MeshTls)> = self
            .objects
            .iter()
            .map(|(key, object)| (key, &**object))
            .collect();
        by_age.sort_by_key(|(key, object)| {
            let created = object
                .metadata
                .creation_timestamp
                .as_ref()
                .map(|time| time.0);
            (created.is_none(), created, (*key).clone())
        });
        self.note_shadowed(&by_age, &mut findings);
        // With a selector, by the key: pods on which it has no effect, and what decides there instead.
        let mut shadowed: BTreeMap<&ObjectKey, (usize, BTreeSet<&ObjectKey>)> = BTreeMap::new();

        for pod in &pods.list {
            let labels = pod.object.metadata.labels.as_ref();
            let all = |namespace, selected| holding(&by_age, namespace, labels, selected);
            let mut selecting = all(&pod.key.namespace, true);
            let mut chain = vec![selecting.next(), all(&pod.key.namespace, false).next()];
            if let (Some((decides, _)), true) = (chain[0], pod.enrolled) {
                for (key, _) in selecting {
                    let (pods, by) = shadowed.entry(key).or_default();
                    *pods += 1;
                    by.insert(decides);
                }
            }
            if pod.key.namespace != self.root_namespace {
                chain.push(all(self.root_namespace, false).next());
            }
            let chain: Vec<_> = chain.into_iter().flatten().collect();
            let effective = Effective::of(chain.iter().map(|(_, object)| object));
            let denied = effective.deny(settings);
            for (key, _) in chain {
                let Some(finding) = findings.get_mut(*key) else {
                    continue;
                };
                match pod.enrolled {
                    true => finding.enrolled += 1,
                    false => finding.not_enrolled += 1,
                }
                if let Some((name, _)) = denied.as_ref().filter(|_| pod.enrolled) {
                    finding.resources.insert(name.clone());
                }
            }
            if let Some((name, authorization)) = denied.filter(|_| pod.enrolled) {
                if let Some(workload) = resources.workloads.get_mut(&pod.uid) {
                    // The other kind may have it there already.
                    if !workload.authorization_policies.contains(&name) {
                        workload.authorization_policies.push(name.clone());
                    }
                }
                resources.authorizations.insert(name, authorization);
            }
        }
        for (key, (pods, by)) in shadowed {
            let by: Vec<_> = by.iter().map(ToString::to_string).collect();
            if let Some(finding) = findings.get_mut(key) {
                finding.notes.push(format!(
                    "is without effect on {pods} of the pods that it selects: older there is {} {}",
                    self.kind,
                    by.join(", ")
                ));
            }
        }
        findings
    }

    /// A second one without a selector in a namespace never decides anything.
    fn note_shadowed(
        &self,
        by_age: &[(&ObjectKey, &MeshTls)],
        findings: &mut BTreeMap<ObjectKey, PolicyFinding>,
    ) {
        let mut first: BTreeMap<&str, &ObjectKey> = BTreeMap::new();
        let wide = by_age
            .iter()
            .filter(|(_, object)| object.spec.selector.is_none());
        for (key, _) in wide {
            let winner = *first.entry(key.namespace.as_str()).or_insert(key);
            if winner != *key
                && let Some(finding) = findings.get_mut(*key)
            {
                let note = format!("is without effect: {} {winner} is older", self.kind);
                finding.notes.push(note);
            }
        }
    }
}

/// Those of a namespace that hold for a pod with these labels, the one that decides first: with a
/// selector or without.
fn holding<'a>(
    by_age: &'a [(&'a ObjectKey, &'a MeshTls)],
    namespace: &'a str,
    labels: Option<&'a BTreeMap<String, String>>,
    selected: bool,
) -> impl Iterator<Item = &'a (&'a ObjectKey, &'a MeshTls)> {
    by_age.iter().filter(move |(key, object)| {
        key.namespace == namespace
            && match &object.spec.selector {
                Some(selector) => selected && selector.matches(labels),
                None => !selected,
            }
    })
}

/// What holds for one pod.
#[derive(Debug, PartialEq, Eq)]
struct Effective {
    mode: Mode,
    /// Ports whose mode is the other one.
    exceptions: Vec<u16>,
}

impl Effective {
    /// From the most specific to the widest: the first one that says something about a port
    /// decides on it.
    fn of<'a>(chain: impl Iterator<Item = &'a &'a MeshTls>) -> Self {
        let mut ports = BTreeMap::new();
        let mut mode = Mode::Permissive;
        for object in chain {
            for port in &object.spec.ports {
                ports.entry(port.port).or_insert(port.mode);
            }
            if let Some(own) = object.spec.mode {
                mode = own;
                break;
            }
        }
        let other = ports.into_iter().filter(|(_, of_port)| *of_port != mode);
        Self {
            mode,
            exceptions: other.map(|(port, _)| port).collect(),
        }
    }

    /// The policy that denies plaintext, with its key; `None` where plaintext is accepted on every
    /// port.
    fn deny(&self, settings: &Settings) -> Option<(String, Authorization)> {
        let ports: Vec<u32> = self
            .exceptions
            .iter()
            .map(|port| u32::from(*port))
            .collect();
        let list = || {
            ports
                .iter()
                .map(|port| format!("_{port}"))
                .collect::<String>()
        };
        let (name, condition) = match (self.mode, ports.is_empty()) {
            (Mode::Permissive, true) => return None,
            (Mode::Strict, true) => ("meshtls_strict".to_owned(), Match::default()),
            (Mode::Strict, false) => (
                format!("meshtls_strict_except{}", list()),
                Match {
                    not_destination_ports: ports,
                    ..Default::default()
                },
            ),
            (Mode::Permissive, false) => (
                format!("meshtls_strict_on{}", list()),
                Match {
                    destination_ports: ports,
                    ..Default::default()
                },
            ),
        };
        let plaintext = Match {
            not_principals: vec![presence()],
            ..condition
        };
        let rule = Rule {
            clauses: vec![Clause {
                matches: vec![plaintext],
            }],
        };
        let authorization = Authorization {
            name: name.clone(),
            namespace: settings.root_namespace.clone(),
            scope: Scope::WorkloadSelector.into(),
            action: Action::Deny.into(),
            rules: vec![rule],
            ..Default::default()
        };
        Some((format!("{}/{name}", settings.root_namespace), authorization))
    }
}
