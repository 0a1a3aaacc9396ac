//! The task that writes the annotations of the node's pods, and an Event where one says that a pod
//! can't be enrolled, or that it is at last.

use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::Client;
use kube::api::Patch;
use kube::api::PatchParams;
use kube::runtime::events::EventType;
use seine_objects::ObjectSet;
use seine_objects::pods;
use serde_json::json;
use tokio::sync::watch;

use super::ApiError;
use super::ClusterSettings;
use super::FIELD_MANAGER;
use super::annotation::ENROLLED;
use super::annotation::Ledger;
use super::annotation::REFUSED;
use super::annotation::Write;
use super::bounded;
use super::events;
use super::events::Events;
use crate::served::PodStatus;

/// Changes come in groups.
const QUIET: Duration = Duration::from_millis(50);
/// Requests under way at a time: a node has hundreds of pods at most.
const AT_A_TIME: usize = 4;

/// Until the agent is gone.
pub(super) async fn annotate(
    client: Client,
    settings: ClusterSettings,
    mut status: watch::Receiver<Arc<Vec<PodStatus>>>,
    mut objects: watch::Receiver<Arc<ObjectSet>>,
    events: Events,
) {
    let mut ledger = Ledger::default();
    loop {
        let set = objects.borrow_and_update().clone();
        let pods = status.borrow_and_update().clone();
        let (writes, mut later) = ledger.due(
            &set,
            &settings.node,
            &pods,
            &settings.enrolment,
            Instant::now(),
        );
        let mut answers = futures::stream::iter(writes)
            .map(|write| async {
                let answer = patch(&client, &write).await;
                (write, answer)
            })
            .buffer_unordered(AT_A_TIME);
        while let Some((write, answer)) = answers.next().await {
            match answer {
                Ok(()) => {
                    ledger.done(&write);
                    tell(&events, &write).await;
                }
                Err(error) => {
                    // Gone, or another pod by now: the objects will say so.
                    if !matches!(error.code(), Some(404 | 409)) {
                        tracing::warn!(pod = %write.key, %error, "write the pod's annotation {ENROLLED}");
                    }
                    let at = ledger.failed(&write, Instant::now(), rand::random());
                    later = Some(later.map_or(at, |earlier| earlier.min(at)));
                }
            }
        }
        let until_later = async {
            match later {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = objects.changed() => if changed.is_err() { return },
            changed = status.changed() => if changed.is_err() { return },
            () = until_later => {}
        }
        tokio::time::sleep(QUIET).await;
    }
}

/// Removes the annotation from every pod of the node.
pub(super) async fn remove_all(
    client: &Client,
    node: &str,
    objects: &ObjectSet,
) -> Result<(), ApiError> {
    for (key, pod) in &objects.pods {
        let annotations = pod.metadata.annotations.as_ref();
        let before = annotations.and_then(|a| a.get(ENROLLED)).cloned();
        let (Some(uid), Some(_), true) =
            (&pod.metadata.uid, &before, pods::node(pod) == Some(node))
        else {
            continue;
        };
        let write = Write {
            key: key.clone(),
            uid: uid.clone(),
            before,
            after: None,
        };
        match patch(client, &write).await {
            Err(error) if !matches!(error.code(), Some(404 | 409)) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// By way of the status subresource, for which a smaller permission is enough: with it nobody can change
/// what a pod runs.
async fn patch(client: &Client, write: &Write) -> Result<(), ApiError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &write.key.namespace);
    let parameters = PatchParams {
        field_manager: Some(FIELD_MANAGER.into()),
        ..PatchParams::default()
    };
    // The UID is a condition: another pod of that name is a conflict.
    let change = json!({"metadata": {"uid": write.uid, "annotations": {ENROLLED: write.after}}});
    bounded(api.patch_status(&write.key.name, &parameters, &Patch::Merge(&change)))
        .await
        .map(drop)
}

async fn tell(events: &Events, write: &Write) {
    let refusal = |value: &Option<String>| {
        let reason = value.as_deref()?.strip_prefix(REFUSED)?;
        Some(reason.to_owned())
    };
    let about = events::pod(&write.key.namespace, &write.key.name, &write.uid);
    match (refusal(&write.before), refusal(&write.after)) {
        (_, Some(reason)) => {
            let note = format!("The pod is not in the mesh: {reason}");
            events
                .tell(&about, EventType::Warning, "NotEnrolled", "Enrol", &note)
                .await;
        }
        (Some(_), None) if write.after.is_some() => {
            let note = "The pod is in the mesh now";
            events
                .tell(&about, EventType::Normal, "Enrolled", "Enrol", note)
                .await;
        }
        _ => {}
    }
}
