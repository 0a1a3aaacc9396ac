//! Takes the mesh off a cluster's nodes, and removes what its programs made.
//!
//! Helm deletes what Helm made. Before that, each agent must let its pods go, or they would go on
//! being redirected to a proxy that is no more; after that, what the programs made at run time is
//! left, which Helm doesn't know.

use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        coordination::v1::Lease,
        core::v1::{ConfigMap, Namespace, Pod, Secret},
    },
    jiff::Timestamp,
};
use kube::{
    Api, ResourceExt as _,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::json;
use tokio::time::Instant;

use crate::cluster::{Cluster, is_not_found};

/// Asks the agents, on their DaemonSet.
const ASK: &str = "seine.dev/uninstall";
/// An agent's answer, on its own pod.
const ANSWER: &str = "seine.dev/uninstalled";
const AGENT: &str = "seine-agent";
/// The roots for the whole cluster, where the server has such objects.
const TRUST_BUNDLE: &str = "seine.dev:mesh:root";

/// Which half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Pods, links, pins, CNI configuration: what agents made on their nodes.
    Nodes,
    /// Secret, Lease, ConfigMaps: what the control plane made in the API.
    Objects,
}

/// Has every agent release its node, and waits for all of them.
pub async fn nodes(cluster: &Cluster, patience: Duration) -> anyhow::Result<()> {
    let sets = cluster.own::<DaemonSet>();
    if cluster.daemon_set(AGENT).await?.is_none() {
        eprintln!(
            "no daemonset {AGENT} in {}: the nodes are not asked",
            cluster.system
        );
        return Ok(());
    }
    // The value tells this request from one of long ago that was answered already.
    let value = Timestamp::now().to_string();
    let annotation = json!({"metadata": {"annotations": {ASK: value}}});
    let (patch, params) = (Patch::Merge(annotation), PatchParams::default());
    let asked = sets.patch(AGENT, &params, &patch).await;
    asked.context("asking the agents by an annotation")?;
    let deadline = Instant::now() + patience;
    let mut shown = None;
    loop {
        let pods = cluster.component("agent").await?;
        let (done, waiting): (Vec<_>, Vec<_>) = pods
            .iter()
            .partition(|pod| pod.annotations().get(ANSWER) == Some(&value));
        if shown != Some(done.len()) {
            eprintln!("{} of {} nodes released", done.len(), pods.len());
            shown = Some(done.len());
        }
        if waiting.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            let nodes = waiting.iter().map(|pod| {
                let node = seine_objects::pods::node(pod).unwrap_or("no node");
                format!("{} ({node})", pod.name_any())
            });
            bail!(
                "these agents have not released their nodes in {} s: {}; see their logs, or run `seine-agent uninstall` on the node",
                patience.as_secs(),
                nodes.collect::<Vec<_>>().join(", ")
            );
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Deletes what the programs made at run time. What is gone already is as it should be.
pub async fn objects(cluster: &Cluster, keep_ca: bool) -> anyhow::Result<()> {
    let namespaces = Api::<Namespace>::all(cluster.client.clone());
    let namespaces = namespaces.list(&ListParams::default()).await;
    for namespace in namespaces.context("listing namespaces")? {
        let name = namespace.name_any();
        let maps = Api::<ConfigMap>::namespaced(cluster.client.clone(), &name);
        delete(&maps, "seine-ca-root").await?;
    }
    let maps = cluster.own::<ConfigMap>();
    let held = maps.list(&ListParams::default()).await;
    for map in held.with_context(|| format!("listing configmaps in {}", cluster.system))? {
        if map.name_any().starts_with("seine-control-held-") {
            delete(&maps, &map.name_any()).await?;
        }
    }
    let bundle = ApiResource::from_gvk_with_plural(
        &GroupVersionKind::gvk("certificates.k8s.io", "v1beta1", "ClusterTrustBundle"),
        "clustertrustbundles",
    );
    // Not found is also a server that doesn't have the kind.
    let bundles = Api::<DynamicObject>::all_with(cluster.client.clone(), &bundle);
    delete(&bundles, TRUST_BUNDLE).await?;
    delete(&cluster.own::<Lease>(), "seine-control-leader").await?;
    if !keep_ca {
        delete(&cluster.own::<Secret>(), "seine-ca").await?;
    }
    Ok(())
}

async fn delete<K>(api: &Api<K>, name: &str) -> anyhow::Result<()>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug + kube::Resource,
{
    let path = format!("{}/{name}", api.resource_url());
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => eprintln!("{path} deleted"),
        Err(error) if is_not_found(&error) => {}
        Err(error) => return Err(error).with_context(|| format!("deleting {path}")),
    }
    Ok(())
}

/// The agents that are there, for a question before anything is done.
pub async fn agents(cluster: &Cluster) -> anyhow::Result<Vec<Pod>> {
    cluster.component("agent").await
}
