//! Which fields of each kind are kept.
//!
//! A cluster's objects are mostly what Seine never looks at: managed fields, environments, volumes,
//! image lists. They go before an object is kept, so two versions of it that differ in nothing but
//! them are equal. Every source keeps the same fields: whoever reads a new one adds it here, or
//! finds it missing in the first test.

use serde_json::Value;

use crate::Kind;

/// What is kept of a value.
#[derive(Debug)]
pub enum Kept {
    /// Everything.
    All,
    /// Of a map, these fields.
    Fields(&'static [(&'static str, Kept)]),
    /// Of a map, all fields but these.
    AllBut(&'static [&'static str]),
    /// Of each item of a list.
    Each(&'static Kept),
}

use Kept::{All, AllBut, Each, Fields};

impl Kind {
    /// The fields of objects of this kind that are kept.
    pub fn kept(self) -> &'static Kept {
        match self {
            Self::Namespace => &Fields(&[("metadata", METADATA), ("status", All)]),
            Self::Node => &NODE,
            Self::Pod => &POD,
            // Where a load balancer takes what is for it.
            Self::Service => &Fields(&[
                ("metadata", METADATA),
                ("spec", All),
                ("status", Fields(&[("loadBalancer", All)])),
            ]),
            Self::EndpointSlice => &ENDPOINT_SLICE,
            Self::ServiceAccount => &Fields(&[("metadata", METADATA)]),
            Self::NetworkPolicy => &Fields(&[("metadata", METADATA), ("spec", All)]),
            Self::RuntimeClass => &Fields(&[("metadata", METADATA), ("handler", All)]),
            Self::Secret => &Fields(&[
                ("metadata", METADATA),
                ("type", All),
                ("data", Fields(&[("tls.crt", All), ("tls.key", All)])),
            ]),
            Self::ConfigMap => {
                &Fields(&[("metadata", METADATA), ("data", Fields(&[("ca.crt", All)]))])
            }
            Self::Gateway
            | Self::HttpRoute
            | Self::GrpcRoute
            | Self::TlsRoute
            | Self::TcpRoute
            | Self::BackendTlsPolicy
            | Self::ReferenceGrant
            | Self::AuthorizationPolicy
            | Self::MeshTls
            | Self::TrafficPolicy
            | Self::RequestAuthentication
            | Self::IstioAuthorizationPolicy
            | Self::PeerAuthentication
            | Self::IstioRequestAuthentication => &POLICY,
        }
    }
}

const METADATA: Kept = Fields(&[
    ("name", All),
    ("namespace", All),
    ("uid", All),
    ("resourceVersion", All),
    ("generation", All),
    ("creationTimestamp", All),
    ("deletionTimestamp", All),
    ("labels", All),
    // The one holds the whole object a second time, the other is a clock.
    (
        "annotations",
        AllBut(&[
            "kubectl.kubernetes.io/last-applied-configuration",
            "endpoints.kubernetes.io/last-change-trigger-time",
        ]),
    ),
    ("ownerReferences", All),
]);

// Of its conditions none: the kubelet's heartbeat is one of them.
const NODE: Kept = Fields(&[
    ("metadata", METADATA),
    (
        "spec",
        Fields(&[("podCIDR", All), ("podCIDRs", All), ("taints", All)]),
    ),
    ("status", Fields(&[("addresses", All)])),
]);

const POD: Kept = Fields(&[
    ("metadata", METADATA),
    (
        "spec",
        Fields(&[
            ("nodeName", All),
            ("hostNetwork", All),
            ("serviceAccountName", All),
            ("hostname", All),
            ("subdomain", All),
            ("runtimeClassName", All),
            ("os", All),
            ("containers", Each(&CONTAINER)),
            ("initContainers", Each(&CONTAINER)),
        ]),
    ),
    (
        "status",
        Fields(&[
            ("phase", All),
            ("podIP", All),
            ("podIPs", All),
            (
                "conditions",
                Each(&Fields(&[("type", All), ("status", All)])),
            ),
        ]),
    ),
]);

const CONTAINER: Kept = Fields(&[
    ("name", All),
    ("ports", All),
    ("restartPolicy", All),
    ("livenessProbe", PROBE),
    ("readinessProbe", PROBE),
    ("startupProbe", PROBE),
    (
        "lifecycle",
        Fields(&[("postStart", PROBE), ("preStop", PROBE)]),
    ),
]);

const PROBE: Kept = Fields(&[
    ("httpGet", Fields(&[("port", All), ("host", All)])),
    ("tcpSocket", All),
    ("grpc", All),
]);

const ENDPOINT_SLICE: Kept = Fields(&[
    ("metadata", METADATA),
    ("addressType", All),
    ("endpoints", All),
    ("ports", All),
]);

// The types refuse unknown fields; a status is for its reader, not for us.
const POLICY: Kept = Fields(&[
    ("apiVersion", All),
    ("kind", All),
    ("metadata", METADATA),
    ("spec", All),
]);

impl Kept {
    /// Takes away what isn't kept.
    pub(crate) fn prune(&self, value: &mut Value) {
        match (self, value) {
            (Fields(_) | AllBut(_), Value::Object(map)) => map.retain(|name, value| {
                let kept = self.field(name);
                if let Some(kept) = kept {
                    kept.prune(value);
                }
                kept.is_some()
            }),
            (Each(kept), Value::Array(items)) => items.iter_mut().for_each(|item| kept.prune(item)),
            // Of a wrong type: whoever reads it says so.
            _ => {}
        }
    }

    /// What is kept of a map's field; `None`: nothing.
    fn field(&self, name: &str) -> Option<&Self> {
        match self {
            Fields(fields) => fields
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, kept)| kept),
            AllBut(names) => (!names.contains(&name)).then_some(&All),
            All | Each(_) => Some(&All),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(kind: Kind, value: &Value) -> Value {
        let mut pruned = value.clone();
        kind.kept().prune(&mut pruned);
        pruned
    }

    #[test]
    fn a_pod_is_cut_to_what_is_read() {
        let pod = json!({
            "kind": "Pod",
            "metadata": {
                "name": "a", "managedFields": [{"manager": "x"}], "labels": {"env": "volumes"},
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "b": "c"},
            },
            "spec": {
                "volumes": [{"name": "v"}], "nodeName": "n",
                "containers": [{
                    "name": "c", "env": [{"name": "SECRET", "value": "x"}], "ports": [{"containerPort": 1}],
                    "livenessProbe": {"httpGet": {"port": 1, "path": "/"}, "periodSeconds": 1},
                    "lifecycle": {"preStop": {"httpGet": {"port": 1, "path": "/"}}, "postStart": {"exec": {"command": ["x"]}}},
                }],
            },
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null}]},
        });
        let expected = json!({
            "metadata": {"name": "a", "labels": {"env": "volumes"}, "annotations": {"b": "c"}},
            "spec": {
                "nodeName": "n",
                "containers": [{
                    "name": "c", "ports": [{"containerPort": 1}], "livenessProbe": {"httpGet": {"port": 1}},
                    "lifecycle": {"preStop": {"httpGet": {"port": 1}}, "postStart": {}},
                }],
            },
            "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
        });
        assert_eq!(read(Kind::Pod, &pod), expected);
    }

    #[test]
    fn unknown_fields_of_a_policy_stay_to_be_refused() {
        let policy = json!({
            "apiVersion": "policy.seine.dev/v1alpha1", "kind": "MeshTLS", "metadata": {"name": "a"},
            "spec": {"mode": "Strict", "unknown": 1}, "status": {"conditions": []},
        });
        let kept = read(Kind::MeshTls, &policy);
        assert_eq!(kept["spec"]["unknown"], 1);
        assert!(kept.get("status").is_none());
    }

    #[test]
    fn what_is_of_a_wrong_type_is_left_to_its_reader() {
        let pod = json!({"metadata": [], "spec": {"containers": {"a": 1}}, "status": 1});
        assert_eq!(read(Kind::Pod, &pod), pod);
    }
}
