//! What a cluster must have.

use std::collections::BTreeSet;

use anyhow::Context as _;
use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        authorization::v1::{
            ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
        },
        coordination::v1::Lease,
        core::v1::{ConfigMap, Namespace, Node},
    },
    jiff::{SignedDuration, Timestamp, fmt::rfc2822},
};
use kube::{Api, ResourceExt as _, api::PostParams, client::Body};
use seine_objects::{
    network_policy::{MeshPod, blocked},
    pods,
};

use crate::{
    cluster::Cluster,
    finding::{
        Findings,
        Severity::{Error, Ok as Good, Warning},
    },
};

/// The oldest API server: ValidatingAdmissionPolicy is stable there.
const OLDEST_SERVER: (u32, u32) = (1, 30);
/// The oldest kernel: older ones don't tell network namespaces apart in every program.
const OLDEST_KERNEL: (u32, u32) = (5, 15);
/// A kubelet renews its node's Lease every 10 s.
const LEASE: SignedDuration = SignedDuration::from_secs(10);
/// More than certificates allow for at their beginning.
const SKEW: SignedDuration = SignedDuration::from_secs(10);
/// A Lease this old is that of a node that is away.
const AWAY: SignedDuration = SignedDuration::from_secs(120);

pub(super) async fn server(cluster: &Cluster, found: &mut Findings) -> anyhow::Result<()> {
    let version = cluster.client.apiserver_version().await;
    let version = version.context("asking the API server for its version")?;
    let (old, new) = (OLDEST_SERVER, numbers(&version.git_version));
    match new {
        Some(new) if new >= old => {
            found.add(Good, "ServerVersion", "API server", version.git_version, "");
        }
        _ => found.add(
            Error,
            "ServerVersion",
            "API server",
            format!("{} is older than {}.{}", version.git_version, old.0, old.1),
            "upgrade the cluster",
        ),
    }
    Ok(())
}

/// What the caller must be allowed to make with the charts.
pub(super) async fn permissions(cluster: &Cluster, found: &mut Findings) -> anyhow::Result<()> {
    const NEEDED: [(&str, &str, bool); 8] = [
        ("apiextensions.k8s.io", "customresourcedefinitions", false),
        ("rbac.authorization.k8s.io", "clusterroles", false),
        ("rbac.authorization.k8s.io", "clusterrolebindings", false),
        (
            "admissionregistration.k8s.io",
            "validatingadmissionpolicies",
            false,
        ),
        ("apps", "deployments", true),
        ("apps", "daemonsets", true),
        ("rbac.authorization.k8s.io", "roles", true),
        ("networking.k8s.io", "networkpolicies", true),
    ];
    let reviews = Api::<SelfSubjectAccessReview>::all(cluster.client.clone());
    let mut missing = Vec::new();
    for (group, resource, own) in NEEDED {
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    group: Some(group.to_owned()),
                    resource: Some(resource.to_owned()),
                    verb: Some("create".to_owned()),
                    namespace: own.then(|| cluster.system.clone()),
                    ..Default::default()
                }),
                ..Default::default()
            },
            ..Default::default()
        };
        let answer = reviews.create(&PostParams::default(), &review).await;
        let answer = answer.context("asking what you may do")?;
        if !answer.status.is_some_and(|status| status.allowed) {
            missing.push(resource);
        }
    }
    match missing.is_empty() {
        true => found.add(
            Good,
            "Permissions",
            "your permissions",
            "you may install",
            "",
        ),
        false => found.add(
            Error,
            "Permissions",
            "your permissions",
            format!("you may not create {}", missing.join(", ")),
            "install as a cluster administrator",
        ),
    }
    Ok(())
}

pub(super) async fn nodes(cluster: &Cluster, found: &mut Findings) -> anyhow::Result<()> {
    let mut kernels = BTreeSet::new();
    let mut linux = 0;
    for node in cluster.all::<Node>().await? {
        let name = format!("node {}", node.name_any());
        let Some(info) = node.status.and_then(|status| status.node_info) else {
            found.add(
                Warning,
                "NodeUnknown",
                name,
                "it has not said what it is",
                "is its kubelet running?",
            );
            continue;
        };
        if info.operating_system != "linux" {
            continue;
        }
        linux += 1;
        if !matches!(info.architecture.as_str(), "amd64" | "arm64") {
            let message = format!("architecture {} has no images", info.architecture);
            found.add(
                Error,
                "Architecture",
                &name,
                message,
                "keep Seine off it: agent.nodeSelector, ztunnel.nodeSelector",
            );
        }
        match numbers(&info.kernel_version) {
            Some(version) if version >= OLDEST_KERNEL => {
                kernels.insert(info.kernel_version);
            }
            _ => found.add(
                Error,
                "OldKernel",
                &name,
                format!(
                    "kernel {} is older than {}.{}",
                    info.kernel_version, OLDEST_KERNEL.0, OLDEST_KERNEL.1
                ),
                "upgrade the node; its pods can't be enrolled",
            ),
        }
    }
    let kernels: Vec<_> = kernels.into_iter().collect();
    match linux {
        0 => found.add(Error, "NoNodes", "nodes", "there is no Linux node", ""),
        _ if !kernels.is_empty() => {
            let message = format!("{linux} Linux nodes, kernels {}", kernels.join(", "));
            found.add(Good, "Kernels", "nodes", message, "");
        }
        _ => {}
    }
    Ok(())
}

/// Certificates are good for a time, so everybody must know what time it is. The API server says
/// it with every answer, and each kubelet when it renews its node's Lease.
pub(super) async fn clocks(cluster: &Cluster, found: &mut Findings) -> anyhow::Result<()> {
    let request = http::Request::get("/version").body(Body::empty())?;
    let answer = cluster.client.send(request).await;
    let answer = answer.context("asking the API server for the time")?;
    let here = Timestamp::now();
    let date = answer.headers().get(http::header::DATE);
    let date = date.and_then(|date| date.to_str().ok());
    let Some(server) = date.and_then(|date| rfc2822::parse(date).ok()) else {
        found.add(
            Warning,
            "ClockUnknown",
            "clocks",
            "the API server's answers have no date",
            "",
        );
        return Ok(());
    };
    let server = server.timestamp();
    let mut skewed = false;
    let mut report = |who: String, ahead: SignedDuration| {
        if ahead.abs() > SKEW {
            skewed = true;
            let way = if ahead.is_positive() {
                "ahead of"
            } else {
                "behind"
            };
            let message = format!(
                "its clock is {} s {way} the API server's",
                ahead.abs().as_secs()
            );
            found.add(
                Error,
                "ClockSkew",
                who,
                message,
                "certificates are refused by who thinks that they begin later: run NTP there",
            );
        }
    };
    report("this machine".to_owned(), here.duration_since(server));
    let leases = Api::<Lease>::namespaced(cluster.client.clone(), "kube-node-lease");
    let leases = leases.list(&Default::default()).await;
    for lease in leases.context("listing the nodes' leases")? {
        let renewed = lease
            .spec
            .as_ref()
            .and_then(|spec| spec.renew_time.as_ref());
        let Some(renewed) = renewed else { continue };
        // Up to one renewal behind is on time; much more is a node that is away.
        let ahead = renewed.0.duration_since(server);
        if ahead > SignedDuration::ZERO {
            report(format!("node {}", lease.name_any()), ahead);
        } else if ahead < -LEASE && ahead > -AWAY {
            report(format!("node {}", lease.name_any()), ahead + LEASE);
        }
    }
    if !skewed {
        found.add(
            Good,
            "Clocks",
            "clocks",
            "this machine, the API server and the nodes agree",
            "",
        );
    }
    Ok(())
}

/// The agent is no pod for a namespace that is held to a Pod Security Standard.
pub(super) async fn namespace(cluster: &Cluster, found: &mut Findings) -> anyhow::Result<()> {
    const LABEL: &str = "pod-security.kubernetes.io/enforce";
    let about = format!("namespace {}", cluster.system);
    let namespaces = Api::<Namespace>::all(cluster.client.clone());
    let namespace = namespaces.get_opt(&cluster.system).await;
    let namespace = namespace.with_context(|| about.clone())?;
    let level = namespace
        .as_ref()
        .and_then(|found| found.labels().get(LABEL));
    match level.map(String::as_str) {
        Some("privileged") => found.add(Good, "PodSecurity", about, "pods may be privileged", ""),
        Some(level) => found.add(
            Error,
            "PodSecurity",
            &about,
            format!("it is held to Pod Security Standard {level}, which admits no agent"),
            format!(
                "kubectl label {} {LABEL}=privileged --overwrite",
                about.replace(' ', "/")
            ),
        ),
        None => {
            let message = "it has no Pod Security label: the cluster's default holds";
            found.add(Good, "PodSecurity", about, message, "");
        }
    }
    Ok(())
}

/// Other programs that move connections about.
pub(super) async fn other_networks(cluster: &Cluster, found: &mut Findings) -> anyhow::Result<()> {
    let maps = Api::<ConfigMap>::namespaced(cluster.client.clone(), "kube-system");
    let cilium = maps.get_opt("cilium-config").await;
    if let Some(cilium) = cilium.context("reading configmap kube-system/cilium-config")? {
        let data = cilium.data.unwrap_or_default();
        let is_on = |name: &str| data.get(name).is_some_and(|value| value == "true");
        if is_on("bpf-lb-sock") && !is_on("bpf-lb-sock-hostns-only") {
            found.add(
                Warning,
                "SocketLoadBalancing",
                "Cilium",
                "it balances connections at the pods' sockets (bpf-lb-sock), as Seine does at the same hook",
                "set socketLB.hostNamespaceOnly=true in Cilium",
            );
        }
        if data
            .get("cni-exclusive")
            .is_none_or(|value| value == "true")
        {
            found.add(
                Error,
                "CniExclusive",
                "Cilium",
                "it takes other plugins out of the CNI configuration (cni-exclusive)",
                "set cni.exclusive=false in Cilium",
            );
        }
    }
    const MESHES: [(&str, &str); 3] = [
        ("istio-cni-node", "Istio"),
        ("linkerd-cni", "Linkerd"),
        ("kuma-cni-node", "Kuma"),
    ];
    let sets = cluster.all::<DaemonSet>().await?;
    for (name, mesh) in MESHES {
        if sets.iter().any(|set| set.name_any() == name) {
            found.add(
                Warning,
                "OtherMesh",
                mesh,
                format!("its node agent runs here (daemonset {name})"),
                "opt a namespace in to one mesh only; Seine refuses pods that the other has enrolled",
            );
        }
    }
    Ok(())
}

/// What would be cut off if everybody opted in.
pub(super) async fn network_policies(
    cluster: &Cluster,
    found: &mut Findings,
) -> anyhow::Result<()> {
    let objects = cluster.objects().await?;
    let pods = objects.set.pods.iter();
    let pods: Vec<MeshPod<'_>> = pods
        .filter(|(_, pod)| !pods::is_finished(pod) && !pods::is_host_network(pod))
        .map(|(key, pod)| MeshPod {
            key,
            pod,
            namespace: objects.set.namespace(&key.namespace),
        })
        .collect();
    let blocked = blocked(&objects.set.network_policies, &pods);
    if blocked.is_empty() {
        let message = "none would cut the mesh's port 15008 off";
        found.add(Good, "NetworkPolicies", "NetworkPolicies", message, "");
    }
    for (key, blocked) in blocked {
        found.add(
            Warning,
            "TunnelBlocked",
            format!("NetworkPolicy {key}"),
            format!("once these pods are in the mesh: {blocked}"),
            "change it before its namespace is opted in",
        );
    }
    Ok(())
}

/// The first two numbers of a version.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.trim_start_matches('v').split(['.', '-', '+']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert_eq!(numbers("v1.36.3"), Some((1, 36)));
        assert_eq!(numbers("v1.9.0-gke.1"), Some((1, 9)));
        assert_eq!(numbers("5.15.0-1052-aws"), Some((5, 15)));
        assert_eq!(numbers("6.1-rc1"), Some((6, 1)));
        assert_eq!(numbers("nonsense"), None);
        assert!(numbers("1.9").unwrap() < OLDEST_SERVER);
    }
}
