//! The start-up taint, which keeps pods off a node until its agent is ready. Whoever makes nodes puts it
//! on them; the agent takes it off, and never puts it back.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::core::v1::Taint;
use kube::Api;
use kube::Client;
use kube::api::Patch;
use kube::api::PatchParams;
use seine_objects::ObjectSet;
use seine_telemetry::Readiness;
use serde_json::json;
use tokio::sync::watch;

use super::ApiError;
use super::FIELD_MANAGER;
use super::bounded;

/// The taint's key, of any effect.
pub const STARTUP_TAINT: &str = "seine.dev/agent-not-ready";

const READY_EVERY: Duration = Duration::from_millis(250);
const RETRY: Duration = Duration::from_secs(5);

/// Once the agent is ready, and again when a node of that name is made anew.
pub(super) async fn remove_when_ready(
    client: Client,
    node: String,
    readiness: Readiness,
    mut objects: watch::Receiver<Arc<ObjectSet>>,
) {
    while !readiness.is_ready() {
        tokio::time::sleep(READY_EVERY).await;
    }
    loop {
        let taints = objects
            .borrow_and_update()
            .node(&node)
            .and_then(|node| node.spec.as_ref()?.taints.clone());
        if without(taints.as_deref().unwrap_or_default()).is_some() {
            match remove(&client, &node).await {
                Ok(()) => tracing::info!(taint = STARTUP_TAINT, "the node takes pods now"),
                Err(error) => {
                    tracing::warn!(%error, taint = STARTUP_TAINT, "take the taint off the node");
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            }
        }
        if objects.changed().await.is_err() {
            return;
        }
    }
}

/// Only if the node is as it was read: others add and remove taints too, and the list is one field.
pub(super) async fn remove(client: &Client, name: &str) -> Result<(), ApiError> {
    let api: Api<Node> = Api::all(client.clone());
    let node = bounded(api.get(name)).await?;
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let Some(left) = without(&taints) else {
        return Ok(());
    };
    let change = json!({
        "metadata": {"resourceVersion": node.metadata.resource_version},
        "spec": {"taints": left},
    });
    let parameters = PatchParams {
        field_manager: Some(FIELD_MANAGER.into()),
        ..PatchParams::default()
    };
    bounded(api.patch(name, &parameters, &Patch::Merge(&change)))
        .await
        .map(drop)
}

/// The others, if ours is among them.
fn without(taints: &[Taint]) -> Option<Vec<Taint>> {
    let left: Vec<_> = taints
        .iter()
        .filter(|taint| taint.key != STARTUP_TAINT)
        .cloned()
        .collect();
    (left.len() < taints.len()).then_some(left)
}
