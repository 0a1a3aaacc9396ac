//! From workloads to pods: what the controllers of Deployments, StatefulSets, DaemonSets and
//! Jobs would make. Pure.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Pod, PodSpec, PodTemplateSpec};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::manifest::Key;

/// The object that a pod belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// `apps/v1`.
    pub api_version: &'static str,
    /// `ReplicaSet`, `StatefulSet`, `DaemonSet` or `Job`.
    pub kind: &'static str,
    /// The owner's name.
    pub name: String,
}

/// A pod that should exist.
#[derive(Clone, Debug, PartialEq)]
pub struct DesiredPod {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `metadata.annotations`.
    pub annotations: BTreeMap<String, String>,
    /// `spec`; of a StatefulSet's pod with its host name and subdomain.
    pub spec: PodSpec,
    /// What made it; a pod of the user's own has none.
    pub owner: Option<Owner>,
    /// Changes when the pod must be made anew: labels and annotations may change in place.
    pub revision: String,
}

/// The pods that `objects` ask for on nodes `node1` to `node<nodes>`.
pub fn pods<'a>(
    objects: impl Iterator<Item = (&'a Key, &'a Value)>,
    nodes: u8,
) -> Result<Vec<DesiredPod>> {
    let mut pods = Vec::new();
    for (key, object) in objects {
        let made = match key.kind.as_str() {
            "Pod" => vec![of_pod(key, object)?],
            "Deployment" => of_deployment(key, object)?,
            "StatefulSet" => of_stateful_set(key, object)?,
            "DaemonSet" => of_daemon_set(key, object, nodes)?,
            "Job" => vec![of_job(key, object)?],
            _ => continue,
        };
        pods.extend(made);
    }
    Ok(pods)
}

/// Reads `object` as the type that its kind stands for.
pub fn typed<T: DeserializeOwned>(key: &Key, object: &Value) -> Result<T> {
    T::deserialize(object).with_context(|| key.to_string())
}

fn of_pod(key: &Key, object: &Value) -> Result<DesiredPod> {
    let pod: Pod = typed(key, object)?;
    let spec = pod
        .spec
        .with_context(|| format!("{key}: field 'spec' is missing"))?;
    Ok(DesiredPod {
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        labels: pod.metadata.labels.unwrap_or_default(),
        annotations: pod.metadata.annotations.unwrap_or_default(),
        revision: revision(&spec),
        spec,
        owner: None,
    })
}

fn of_deployment(key: &Key, object: &Value) -> Result<Vec<DesiredPod>> {
    let deployment: Deployment = typed(key, object)?;
    let spec = deployment
        .spec
        .with_context(|| format!("{key}: field 'spec' is missing"))?;
    let hash = revision(&spec.template);
    let owner = Owner {
        api_version: "apps/v1",
        kind: "ReplicaSet",
        name: format!("{}-{hash}", key.name),
    };
    let replicas = spec.replicas.unwrap_or(1);
    (0..replicas)
        .map(|index| {
            let name = format!("{}-{hash}-{}", key.name, suffix(&owner.name, index));
            let mut pod = of_template(key, name, &spec.template, owner.clone())?;
            pod.labels
                .insert("pod-template-hash".to_owned(), hash.clone());
            Ok(pod)
        })
        .collect()
}

fn of_stateful_set(key: &Key, object: &Value) -> Result<Vec<DesiredPod>> {
    let set: StatefulSet = typed(key, object)?;
    let spec = set
        .spec
        .with_context(|| format!("{key}: field 'spec' is missing"))?;
    let owner = Owner {
        api_version: "apps/v1",
        kind: "StatefulSet",
        name: key.name.clone(),
    };
    let start = spec.ordinals.as_ref().and_then(|o| o.start).unwrap_or(0);
    (start..start + spec.replicas.unwrap_or(1))
        .map(|ordinal| {
            let name = format!("{}-{ordinal}", key.name);
            let mut pod = of_template(key, name.clone(), &spec.template, owner.clone())?;
            pod.labels.insert(
                "statefulset.kubernetes.io/pod-name".to_owned(),
                name.clone(),
            );
            pod.labels.insert(
                "apps.kubernetes.io/pod-index".to_owned(),
                ordinal.to_string(),
            );
            pod.spec.hostname = Some(name);
            pod.spec.subdomain = spec.service_name.clone();
            Ok(pod)
        })
        .collect()
}

fn of_daemon_set(key: &Key, object: &Value, nodes: u8) -> Result<Vec<DesiredPod>> {
    let set: DaemonSet = typed(key, object)?;
    let spec = set
        .spec
        .with_context(|| format!("{key}: field 'spec' is missing"))?;
    let owner = Owner {
        api_version: "apps/v1",
        kind: "DaemonSet",
        name: key.name.clone(),
    };
    (1..=nodes)
        .map(|node| {
            let name = format!("{}-{}", key.name, suffix(&key.name, i32::from(node)));
            let mut pod = of_template(key, name, &spec.template, owner.clone())?;
            pod.spec.node_name = Some(format!("node{node}"));
            Ok(pod)
        })
        .collect()
}

fn of_job(key: &Key, object: &Value) -> Result<DesiredPod> {
    let job: Job = typed(key, object)?;
    let spec = job
        .spec
        .with_context(|| format!("{key}: field 'spec' is missing"))?;
    let owner = Owner {
        api_version: "batch/v1",
        kind: "Job",
        name: key.name.clone(),
    };
    let name = format!("{}-{}", key.name, suffix(&key.name, 0));
    let mut pod = of_template(key, name, &spec.template, owner)?;
    pod.labels.insert("job-name".to_owned(), key.name.clone());
    Ok(pod)
}

fn of_template(
    key: &Key,
    name: String,
    template: &PodTemplateSpec,
    owner: Owner,
) -> Result<DesiredPod> {
    let metadata = template.metadata.clone().unwrap_or_default();
    let spec = template
        .spec
        .clone()
        .with_context(|| format!("{key}: field 'spec.template.spec' is missing"))?;
    Ok(DesiredPod {
        namespace: key.namespace.clone(),
        name,
        labels: metadata.labels.unwrap_or_default(),
        annotations: metadata.annotations.unwrap_or_default(),
        revision: revision(template),
        spec,
        owner: Some(owner),
    })
}

fn revision(object: &impl serde::Serialize) -> String {
    let text = serde_json::to_string(object).expect("Kubernetes objects serialise");
    alphabetic(hash(&text), 9)
}

fn suffix(name: &str, index: i32) -> String {
    alphabetic(hash(&format!("{name}/{index}")), 5)
}

fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// As Kubernetes writes hashes: no vowels, no characters that look alike.
fn alphabetic(mut hash: u64, length: usize) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    (0..length)
        .map(|_| {
            let letter = ALPHABET[usize::try_from(hash % 27).expect("below 27")];
            hash /= 27;
            char::from(letter)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::parse;

    fn expand(text: &str, nodes: u8) -> Vec<DesiredPod> {
        let objects = parse(text).unwrap();
        let keyed: Vec<_> = objects
            .iter()
            .map(|o| (Key::of(o).unwrap(), o.clone()))
            .collect();
        pods(keyed.iter().map(|(k, o)| (k, o)), nodes).unwrap()
    }

    const DEPLOYMENT: &str = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n\
        spec:\n  replicas: 2\n  selector: {matchLabels: {app: web}}\n  template:\n    \
        metadata: {labels: {app: web}}\n    spec: {containers: [{name: c, command: [a]}]}\n";

    #[test]
    fn a_deployments_pods_keep_their_names_until_its_template_changes() {
        let first = expand(DEPLOYMENT, 2);
        assert_eq!(first.len(), 2);
        assert_ne!(first[0].name, first[1].name);
        assert_eq!(first, expand(DEPLOYMENT, 2));
        let changed = expand(&DEPLOYMENT.replace("[a]", "[b]"), 2);
        assert_ne!(first[0].name, changed[0].name);
        let owner = first[0].owner.as_ref().unwrap();
        assert_eq!(owner.kind, "ReplicaSet");
        assert_eq!(
            owner.name,
            format!("web-{}", first[0].labels["pod-template-hash"])
        );
    }

    #[test]
    fn a_stateful_sets_pods_are_numbered_and_know_their_service() {
        let text = "apiVersion: apps/v1\nkind: StatefulSet\nmetadata: {name: db, namespace: x}\n\
            spec:\n  serviceName: dbs\n  replicas: 2\n  selector: {}\n  template:\n    spec: {containers: []}\n";
        let pods = expand(text, 1);
        assert_eq!(
            pods.iter().map(|p| &p.name[..]).collect::<Vec<_>>(),
            ["db-0", "db-1"]
        );
        assert_eq!(pods[1].spec.subdomain.as_deref(), Some("dbs"));
        assert_eq!(pods[1].spec.hostname.as_deref(), Some("db-1"));
    }

    #[test]
    fn a_daemon_set_has_one_pod_on_each_node() {
        let text = "apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: d}\n\
            spec:\n  selector: {}\n  template:\n    spec: {containers: []}\n";
        let nodes: Vec<_> = expand(text, 3)
            .into_iter()
            .map(|p| p.spec.node_name.unwrap())
            .collect();
        assert_eq!(nodes, ["node1", "node2", "node3"]);
    }
}
