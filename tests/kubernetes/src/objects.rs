//! The objects of the end-to-end tests, for a real cluster.

use std::collections::BTreeSet;

use anyhow::Result;
use seine_e2e::bed::peer_program;
use seine_e2e::manifests;
use serde_json::{Value, json};

/// The image of `seine-e2e-peer`; one of localhost is never pulled.
pub const PEER_IMAGE: &str = "localhost/peer:1";
/// Where the peer is in it.
pub const PEER: &str = "/usr/bin/peer";

/// Makes what [`manifests`] writes for the lab run in a cluster: in the peer's image, and with the service
/// accounts that its pods name.
pub fn real(objects: &[Value]) -> Result<Vec<Value>> {
    let own = peer_program().display().to_string();
    let mut accounts = BTreeSet::new();
    let mut all = Vec::new();
    for object in objects {
        let text = object.to_string().replace(&own, PEER);
        let mut object: Value = serde_json::from_str(&text)?;
        let namespace = object["metadata"]["namespace"].as_str().map(str::to_owned);
        let path = match object["kind"].as_str() {
            Some("Pod") => "/spec",
            _ => "/spec/template/spec",
        };
        if let Some(spec) = object.pointer_mut(path) {
            let containers = spec["containers"].as_array_mut();
            for container in containers.into_iter().flatten() {
                container["image"] = json!(PEER_IMAGE);
            }
            if let (Some(namespace), Some(name)) = (namespace, spec["serviceAccountName"].as_str())
            {
                accounts.insert((namespace, name.to_owned()));
            }
        }
        all.push(object);
    }
    let accounts = accounts
        .iter()
        .map(|(namespace, name)| manifests::account(namespace, name));
    all.splice(0..0, accounts);
    // In the order in which they need each other.
    all.sort_by_key(|object| match object["kind"].as_str() {
        Some("Namespace") => 0,
        Some("ServiceAccount") => 1,
        _ => 2,
    });
    Ok(all)
}
