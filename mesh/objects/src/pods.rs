//! Facts about a pod that every part must read alike.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

/// The pod will never run again: `Succeeded` or `Failed`. Its address may already be another's.
pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), Some("Succeeded" | "Failed"))
}

/// The pod's condition `Ready` is `True`.
pub fn is_ready(pod: &Pod) -> bool {
    pod.status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The pod is being deleted.
pub fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// The pod uses its node's network namespace.
pub fn is_host_network(pod: &Pod) -> bool {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.host_network)
        .unwrap_or(false)
}

/// The pod's service account; `default` where it names none.
pub fn service_account(pod: &Pod) -> &str {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.as_deref())
        .filter(|name| !name.is_empty())
        .unwrap_or("default")
}

/// The node that the pod was bound to.
pub fn node(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()?
        .node_name
        .as_deref()
        .filter(|name| !name.is_empty())
}

/// The UID under which the pod's node knows it (its kubelet, container runtime and cgroups). Of a
/// static pod that is not the UID of its object, a mirror that the kubelet made, but the hash of its
/// file. A pod of a hand-written manifest may have none.
pub fn node_uid(pod: &Pod) -> Option<&str> {
    let annotation = |name: &str| pod.metadata.annotations.as_ref()?.get(name);
    annotation("kubernetes.io/config.mirror")
        .and_then(|_| annotation("kubernetes.io/config.hash"))
        .or(pod.metadata.uid.as_ref())
        .map(String::as_str)
}

/// The pod's addresses of both families, in the order of `status.podIPs`, without doubles and
/// without what is no address.
pub fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    for ip in listed.chain(status.pod_ip.as_deref()) {
        if let Ok(ip) = ip.parse::<IpAddr>()
            && !found.contains(&ip)
        {
            found.push(ip);
        }
    }
    found
}

fn phase(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.phase.as_deref()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_static_pods_mirror_is_known_on_its_node_by_the_hash_of_its_file() {
        let pod = |annotations| -> Pod {
            let metadata = json!({"name": "p", "uid": "u1", "annotations": annotations});
            serde_json::from_value(json!({"metadata": metadata})).unwrap()
        };
        let mirror =
            json!({"kubernetes.io/config.mirror": "h1", "kubernetes.io/config.hash": "h1"});
        assert_eq!(node_uid(&pod(mirror)), Some("h1"));
        assert_eq!(node_uid(&pod(json!({}))), Some("u1"));
        // Anybody may write one of them.
        let alone = json!({"kubernetes.io/config.hash": "h1"});
        assert_eq!(node_uid(&pod(alone)), Some("u1"));
    }
}
