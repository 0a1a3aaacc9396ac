//! What the API server does: objects come in, are checked, completed and kept, and go.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Secret, Service};
use serde_json::{Value, json};

use super::Supervisor;
use crate::expand::{self, typed};
use crate::gateway;
use crate::manifest::Key;
use crate::mesh::SYSTEM;
use crate::services::zone;
use crate::volumes::Sources;

impl Supervisor {
    /// The objects that a cluster has before anyone applies one.
    pub(super) fn write_cluster(&mut self) -> Result<()> {
        for node in 1..=self.settings.nodes {
            let name = format!("node{node}");
            let a = self.addresses;
            let object = json!({
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {"name": name, "uid": name, "labels": {
                    "kubernetes.io/hostname": name,
                    "topology.kubernetes.io/region": "lab",
                    "topology.kubernetes.io/zone": zone(node),
                }},
                "spec": {"podCIDR": a.pods_v4(node), "podCIDRs": [a.pods_v4(node), a.pods_v6(node)]},
                "status": {
                    "addresses": [
                        {"type": "InternalIP", "address": a.node_v4(node)},
                        {"type": "InternalIP", "address": a.node_v6(node)},
                        {"type": "Hostname", "address": name},
                    ],
                    "conditions": [{"type": "Ready", "status": "True"}],
                },
            });
            self.directory.put(&Key::of(&object)?, &object)?;
        }
        let namespaces = ["default", "kube-system", SYSTEM].map(
            |name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
        );
        let accounts = ["seine-agent", "seine-ztunnel"].map(|name| {
            json!({"apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": name, "namespace": SYSTEM}})
        });
        self.apply(namespaces.into_iter().chain(accounts).collect())
            .map(drop)
    }

    pub(super) fn apply(&mut self, objects: Vec<Value>) -> Result<Vec<String>> {
        // All are checked before the first is taken.
        let mut namespaces: BTreeSet<String> = self
            .world
            .keys()
            .filter(|key| key.kind == "Namespace")
            .map(|key| key.name.clone())
            .collect();
        let mut keyed = Vec::new();
        let waypoint = self.mesh.as_ref().map(|mesh| mesh.waypoint());
        let mut all = Vec::new();
        for object in objects {
            let made = gateway::objects(&Key::of(&object)?, &object, waypoint.as_ref());
            all.push(object);
            all.extend(made);
        }
        for object in all {
            let key = Key::of(&object)?;
            if key.kind == "Namespace" {
                namespaces.insert(key.name.clone());
            }
            expand::pods(std::iter::once((&key, &object)), self.settings.nodes)?;
            keyed.push((key, object));
        }
        for (key, object) in &keyed {
            if !key.namespace.is_empty() && !namespaces.contains(&key.namespace) {
                bail!("{key}: there is no namespace {}", key.namespace);
            }
            if matches!(key.kind.as_str(), "ConfigMap" | "Secret") {
                Sources::of(std::iter::once((key, object)), &key.namespace)?;
            }
        }
        let mut lines = Vec::new();
        for (key, mut object) in keyed {
            self.complete(&key, &mut object)?;
            let line = match self.world.get(&key) {
                None => "created",
                Some(old) if *old == object => "unchanged",
                Some(_) => "configured",
            };
            lines.push(format!("{key} {line}"));
            // Of secrets the certificates alone, for Gateways, are written down, and pods are written with their status.
            let is_written = match key.kind.as_str() {
                "Secret" => object["type"] == "kubernetes.io/tls",
                kind => kind != "Pod",
            };
            if is_written {
                self.directory.put(&key, &object)?;
            }
            self.world.insert(key, object);
        }
        Ok(lines)
    }

    /// Fills in what the API server would.
    pub(super) fn complete(&mut self, key: &Key, object: &mut Value) -> Result<()> {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            if !key.namespace.is_empty() {
                metadata.insert("namespace".to_owned(), json!(key.namespace));
            }
            if key.kind == "Namespace" {
                let labels = metadata.entry("labels").or_insert_with(|| json!({}));
                labels["kubernetes.io/metadata.name"] = json!(key.name);
            }
        }
        if key.kind == "Service" {
            let mut service: Service = typed(key, object)?;
            self.allocator.complete(key, &mut service)?;
            *object = serde_json::to_value(&service).context("a service serialises")?;
            self.services.insert(key.clone(), service);
        }
        if key.kind == "Secret" {
            let mut secret: Secret = typed(key, object)?;
            let texts = secret.string_data.take().unwrap_or_default().into_iter();
            let texts = texts.map(|(name, text)| (name, ByteString(text.into_bytes())));
            secret.data.get_or_insert_default().extend(texts);
            *object = serde_json::to_value(&secret).context("a secret serialises")?;
        }
        Ok(())
    }

    pub(super) fn delete(
        &mut self,
        kind: &str,
        name: &str,
        namespace: &str,
    ) -> Result<Vec<String>> {
        let kind = kind.to_lowercase();
        let matches = |key: &Key| {
            let known = key.kind.to_lowercase();
            let same_kind = kind == known
                || kind == format!("{known}s")
                || kind
                    .strip_suffix("ies")
                    .is_some_and(|k| format!("{k}y") == known)
                || matches!(
                    (kind.as_str(), known.as_str()),
                    ("po", "pod")
                        | ("svc", "service")
                        | ("deploy", "deployment")
                        | ("sts", "statefulset")
                        | ("ns", "namespace")
                        | ("sa", "serviceaccount")
                        | ("cm", "configmap")
                );
            same_kind
                && key.name == name
                && (key.namespace.is_empty() || key.namespace == namespace)
        };
        let mut found: Vec<Key> = self
            .world
            .keys()
            .filter(|key| matches(key))
            .cloned()
            .collect();
        // What was made for a Gateway goes with it.
        let waypoint = self.mesh.as_ref().map(|mesh| mesh.waypoint());
        for key in found.clone() {
            for made in gateway::objects(&key, &self.world[&key], waypoint.as_ref()) {
                found.push(Key::of(&made)?);
            }
        }
        let made: Vec<String> = self
            .pods
            .values()
            .filter(|entry| matches(&entry.view.key()))
            .map(|entry| entry.view.uid.clone())
            .collect();
        if found.is_empty() && made.is_empty() {
            bail!("there is no {kind}/{name} in namespace {namespace}");
        }
        let before: BTreeSet<String> = self.pods.keys().cloned().collect();
        for key in found {
            let doomed: Vec<Key> = if key.kind == "Namespace" {
                self.world
                    .keys()
                    .filter(|k| k.namespace == key.name)
                    .cloned()
                    .collect()
            } else {
                Vec::new()
            };
            for key in doomed.into_iter().chain([key]) {
                self.world.remove(&key);
                self.services.remove(&key);
                self.allocator.release(&key);
                if key.kind != "Pod" {
                    self.directory.remove(&key);
                }
            }
        }
        // A pod of a workload comes back under the same or another name.
        for uid in &made {
            self.end_pod(uid);
        }
        let desired = self.desired();
        let ending = before
            .into_iter()
            .filter(|uid| {
                self.pods.get(uid).is_some_and(|entry| {
                    entry.view.terminating || !desired.contains_key(&entry.view.key())
                })
            })
            .collect();
        Ok(ending)
    }
}
