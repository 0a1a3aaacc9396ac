//! What an installation must have, and be.

use std::collections::BTreeSet;

use anyhow::Context as _;
use k8s_openapi::{
    api::core::v1::Pod,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{Api, ResourceExt as _};
use seine_objects::{pods, policy::GROUP};
use serde_json::Value;

use crate::{
    analyze::analyze,
    cluster::Cluster,
    finding::{
        Findings,
        Severity::{Error, Ok as Good, Warning},
    },
    pages::{AGENT, CONTROL, Program, ZTUNNEL},
    status::Status,
    world::World,
    ztunnel::span,
};

/// A certificate with less left than this was not renewed when it should have been.
const HARDLY_LEFT: u64 = 3600;

pub(super) async fn kinds(cluster: &Cluster, found: &mut Findings) -> anyhow::Result<()> {
    let crds = Api::<CustomResourceDefinition>::all(cluster.client.clone());
    for plural in [
        "authorizationpolicies",
        "meshtls",
        "trafficpolicies",
        "requestauthentications",
    ] {
        let name = format!("{plural}.{GROUP}");
        let crd = crds.get_opt(&name).await;
        let crd = crd.with_context(|| format!("reading crd {name}"))?;
        let is_established = crd.is_some_and(|crd| {
            let conditions = crd.status.and_then(|status| status.conditions);
            let mut conditions = conditions.into_iter().flatten();
            conditions.any(|one| one.type_ == "Established" && one.status == "True")
        });
        match is_established {
            true => found.add(Good, "CrdEstablished", name, "established", ""),
            false => found.add(
                Error,
                "CrdMissing",
                name,
                "it is not established",
                "install the chart seine-crds",
            ),
        }
    }
    Ok(())
}

pub(super) async fn components(cluster: &Cluster, found: &mut Findings) -> anyhow::Result<()> {
    let status = Status::of_cluster(cluster).await?;
    for one in &status.components {
        let about = format!("seine-{}", one.name);
        let message = format!("{} of {} ready", one.ready, one.wanted);
        match one.ready >= one.wanted && one.wanted > 0 {
            true => found.add(Good, "Ready", about, message, ""),
            false => {
                let advice = format!(
                    "kubectl -n {} describe pods -l app.kubernetes.io/name={about}",
                    cluster.system
                );
                found.add(Error, "NotReady", about, message, advice);
            }
        }
    }
    let versions: BTreeSet<_> = status
        .components
        .iter()
        .filter_map(|one| one.image.rsplit_once(':'))
        .map(|(_, tag)| tag)
        .collect();
    if versions.len() > 1 {
        let versions: Vec<_> = versions.into_iter().collect();
        found.add(
            Warning,
            "VersionsDiffer",
            "versions",
            versions.join(", "),
            "finish the upgrade, or the rollback",
        );
    }
    let connected: BTreeSet<&str> = status.proxies.iter().map(|one| one.node.as_str()).collect();
    for pod in cluster.component("ztunnel").await? {
        let node = pods::node(&pod).unwrap_or_default();
        if pods::is_ready(&pod) && !connected.contains(node) {
            found.add(
                Error,
                "NotConnected",
                format!("ztunnel on node {node}"),
                "no replica of the control plane has it connected",
                format!("kubectl -n {} logs {}", cluster.system, pod.name_any()),
            );
        }
    }
    for one in &status.proxies {
        if let Some(rejection) = &one.rejection {
            found.add(
                Error,
                "Refused",
                format!("ztunnel on node {}", one.node),
                format!("it refused a resource: {rejection}"),
                "the policy or workload named there; the last good version is in force",
            );
        }
    }
    Ok(())
}

pub(super) async fn control(cluster: &Cluster, found: &mut Findings) -> anyhow::Result<()> {
    for pod in cluster.component("control").await? {
        if !pods::is_ready(&pod) {
            continue;
        }
        let about = pod.name_any();
        let page = Program::in_pod(cluster, &pod, CONTROL)
            .json("/debug/ca")
            .await?;
        let Some(left) = page["intermediate_seconds_left"]
            .as_u64()
            .or(page["intermediateSecondsLeft"].as_u64())
        else {
            continue;
        };
        match left > HARDLY_LEFT {
            true => found.add(
                Good,
                "Authority",
                about,
                format!("its signing certificate is good for {}", span(left)),
                "",
            ),
            false => found.add(
                Error,
                "AuthorityExpires",
                about,
                format!("its signing certificate is good for {} only", span(left)),
                "see its log for why it was not renewed",
            ),
        }
    }
    Ok(())
}

/// What agents and ztunnels say of themselves.
pub(super) async fn nodes(cluster: &Cluster, found: &mut Findings) -> anyhow::Result<()> {
    let mut enrolled = 0;
    for pod in running(cluster, "agent").await? {
        let page = Program::in_pod(cluster, &pod, AGENT)
            .json("/status")
            .await?;
        for one in page["pods"].as_array().into_iter().flatten() {
            let text = |field: &str| one[field].as_str().unwrap_or_default();
            let about = format!("Pod {}/{}", text("namespace"), text("name"));
            match text("state") {
                "enrolled" => enrolled += 1,
                "failing" => found.add(
                    Error,
                    "EnrolFailed",
                    &about,
                    text("reason"),
                    "its connections are refused until it succeeds",
                ),
                _ => {}
            }
            for warning in one["warnings"].as_array().into_iter().flatten() {
                found.add(
                    Warning,
                    "PodWarning",
                    &about,
                    warning.as_str().unwrap_or_default(),
                    "",
                );
            }
        }
    }
    let mut certificates = 0;
    for pod in running(cluster, "ztunnel").await? {
        let proxy = Program::in_pod(cluster, &pod, ZTUNNEL);
        for one in proxy
            .json("/certificates")
            .await?
            .as_array()
            .into_iter()
            .flatten()
        {
            let identity = one["identity"].as_str().unwrap_or_default();
            match one["secondsLeft"].as_u64() {
                Some(left) if left > HARDLY_LEFT => certificates += 1,
                left => {
                    let error = match &one["lastError"] {
                        Value::String(error) => error.as_str(),
                        _ => "no error is known",
                    };
                    let left = left.map_or_else(
                        || "there is none".to_owned(),
                        |left| format!("good for {} only", span(left)),
                    );
                    found.add(
                        Error,
                        "Certificate",
                        format!("{identity} on node {}", proxy.node),
                        format!("{left}: {error}"),
                        "the control plane's log says why it gave none",
                    );
                }
            }
        }
    }
    found.add(
        Good,
        "Pods",
        "pods",
        format!("{enrolled} enrolled, {certificates} certificates"),
        "",
    );
    Ok(())
}

/// What users wrote.
pub(super) async fn objects(cluster: &Cluster, found: &mut Findings) -> anyhow::Result<()> {
    let objects = cluster.objects().await?;
    let world = World::new(objects.set.clone(), cluster.settings().await?)?;
    found.findings.extend(analyze(&world, &objects).findings);
    Ok(())
}

async fn running(cluster: &Cluster, component: &str) -> anyhow::Result<Vec<Pod>> {
    let mut pods = cluster.component(component).await?;
    pods.retain(pods::is_ready);
    Ok(pods)
}
