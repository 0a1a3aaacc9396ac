//! Events of the agent: about its node, and about pods that can't be enrolled.

use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::Event;
use kube::runtime::events::EventType;
use kube::runtime::events::Recorder;
use kube::runtime::events::Reporter;
use seine_objects::ObjectSet;
use tokio::sync::watch;

use super::FIELD_MANAGER;
use super::bounded;
use crate::cni_chain::ChainStatus;

/// The API server's limit is 1,024 bytes.
const MAX_NOTE: usize = 900;

/// Writes Events; the same one again raises the count of the first.
#[derive(Clone)]
pub(super) struct Events(Recorder);

impl Events {
    pub(super) fn new(client: Client, node: &str) -> Self {
        let reporter = Reporter {
            controller: FIELD_MANAGER.into(),
            instance: Some(node.into()),
        };
        Self(Recorder::new(client, reporter))
    }

    /// Tells of an object. An Event that can't be written is logged and lost: its cause is in the log
    /// and in the status page too.
    pub(super) async fn tell(
        &self,
        about: &ObjectReference,
        type_: EventType,
        reason: &str,
        action: &str,
        note: &str,
    ) {
        let end = note.floor_char_boundary(MAX_NOTE);
        let event = Event {
            type_,
            reason: reason.into(),
            action: action.into(),
            note: Some(note[..end].to_owned()),
            secondary: None,
        };
        if let Err(error) = bounded(self.0.publish(&event, about)).await {
            let name = about.name.as_deref().unwrap_or_default();
            tracing::warn!(%error, reason, object = name, "write an Event");
        }
    }
}

pub(super) fn pod(namespace: &str, name: &str, uid: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: Some(namespace.into()),
        name: Some(name.into()),
        uid: Some(uid.into()),
        ..ObjectReference::default()
    }
}

fn node(name: &str, objects: &ObjectSet) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Node".into()),
        name: Some(name.into()),
        uid: objects.node(name).and_then(|n| n.metadata.uid.clone()),
        ..ObjectReference::default()
    }
}

/// An Event for each repair of the CNI chain, and for each time that the plugin is not in it.
pub(super) async fn of_chain(
    events: Events,
    mut chain: watch::Receiver<ChainStatus>,
    objects: watch::Receiver<Arc<ObjectSet>>,
    node_name: String,
) {
    let mut told = ChainStatus::default();
    loop {
        let now = chain.borrow_and_update().clone();
        let about = node(&node_name, &objects.borrow());
        if now.repairs > told.repairs
            && let Some(repair) = &now.last_repair
        {
            let (reason, action) = ("CniConfigurationRepaired", "RepairCniConfiguration");
            events
                .tell(&about, EventType::Warning, reason, action, repair)
                .await;
        }
        if now.waiting != told.waiting
            && let Some(why) = &now.waiting
        {
            let (reason, action) = ("CniConfigurationWaits", "InstallCniPlugin");
            events
                .tell(&about, EventType::Warning, reason, action, why)
                .await;
        }
        told = now;
        if chain.changed().await.is_err() {
            return;
        }
    }
}
