//! The uninstall of the whole cluster: an annotation on the agents' DaemonSet asks for it, and each agent
//! answers on its own Pod. The end of an agent, whatever ends it, releases nobody; this does. Whoever asks is
//! `seine uninstall`, which the chart's pre-delete hook runs too.

use futures::Stream;
use futures::StreamExt;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::Client;
use kube::api::Patch;
use kube::api::PatchParams;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher;
use seine_objects::ObjectSet;
use serde_json::json;

use super::ApiError;
use super::FIELD_MANAGER;
use super::bounded;
use super::pods;
use super::taint;

/// On the DaemonSet: since when the mesh is to go. The value tells one uninstall from the next.
pub const UNINSTALL: &str = "seine.dev/uninstall";
/// On an agent's Pod: that value, once nothing of the mesh is left on its node.
pub const UNINSTALLED: &str = "seine.dev/uninstalled";

/// Where the agents are.
#[derive(Clone, Debug)]
pub struct Agents {
    /// Their namespace.
    pub namespace: String,
    /// Their DaemonSet.
    pub daemon_set: String,
}

/// One agent's own pod.
#[derive(Clone, Debug)]
pub struct AgentPod {
    /// Where it runs.
    pub node: String,
    /// Its name.
    pub name: String,
}

impl Agents {
    fn daemon_sets(&self, client: &Client) -> Api<DaemonSet> {
        Api::namespaced(client.clone(), &self.namespace)
    }

    /// Which uninstall is asked for now, if any.
    ///
    /// # Errors
    ///
    /// The API server does not say. A DaemonSet that is not there asks for nothing.
    pub async fn asked(&self, client: &Client) -> Result<Option<String>, ApiError> {
        let found = bounded(self.daemon_sets(client).get_opt(&self.daemon_set)).await?;
        Ok(found.as_ref().and_then(asked))
    }

    /// What is asked for, now and after each change, for ever.
    pub fn watch(&self, client: &Client) -> impl Stream<Item = Option<String>> + Send + use<> {
        let of_name =
            watcher::Config::default().fields(&format!("metadata.name={}", self.daemon_set));
        watcher(self.daemon_sets(client), of_name)
            .default_backoff()
            .filter_map(|event| async move {
                match event {
                    Ok(watcher::Event::Apply(set) | watcher::Event::InitApply(set)) => {
                        Some(asked(&set))
                    }
                    // One that is deleted asks for nothing: its agents end like any others.
                    Ok(_) => None,
                    Err(error) => {
                        tracing::debug!(%error, "watch the DaemonSet");
                        None
                    }
                }
            })
    }
}

fn asked(set: &DaemonSet) -> Option<String> {
    let annotations = set.metadata.annotations.as_ref()?;
    annotations.get(UNINSTALL).cloned()
}

/// What is left to do in the API server after the node was cleaned: the annotations of its pods, the
/// start-up taint, and the answer.
///
/// # Errors
///
/// A request failed; all of it can be done again.
pub async fn answer(
    client: &Client,
    pod: &AgentPod,
    agents: &Agents,
    objects: &ObjectSet,
    value: &str,
    startup_taint: bool,
) -> Result<(), ApiError> {
    pods::remove_all(client, &pod.node, objects).await?;
    if startup_taint {
        taint::remove(client, &pod.node).await?;
    }
    let api: Api<Pod> = Api::namespaced(client.clone(), &agents.namespace);
    let change = json!({"metadata": {"annotations": {UNINSTALLED: value}}});
    bounded(api.patch_status(&pod.name, &parameters(), &Patch::Merge(&change)))
        .await
        .map(drop)
}

fn parameters() -> PatchParams {
    PatchParams {
        field_manager: Some(FIELD_MANAGER.into()),
        ..PatchParams::default()
    }
}
