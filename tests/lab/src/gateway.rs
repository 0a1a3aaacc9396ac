//! What the control plane of a cluster makes of a Gateway that is a waypoint: pods, Service and ServiceAccount of its
//! name. Pure.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::manifest::Key;

/// The class of Gateways that are waypoints.
const WAYPOINT: &str = "seine-waypoint";

/// What a waypoint is started with.
#[derive(Clone, Debug)]
pub struct WaypointProgram {
    /// `seine-waypoint`.
    pub program: PathBuf,
    /// Where configuration and certificates come from.
    pub control: String,
    /// The name in the control plane's certificate.
    pub server_name: String,
    /// The roots that vouch for it.
    pub roots: PathBuf,
    /// Further settings.
    pub environment: Vec<(String, String)>,
}

/// The objects that belong to `object`, where that is a waypoint.
pub fn objects(key: &Key, object: &Value, with: Option<&WaypointProgram>) -> Vec<Value> {
    let class = object.pointer("/spec/gatewayClassName");
    let is_waypoint = key.kind == "Gateway" && class.and_then(Value::as_str) == Some(WAYPOINT);
    let Some(with) = with.filter(|_| is_waypoint) else {
        return Vec::new();
    };
    let Key {
        namespace, name, ..
    } = key;
    let labels = json!({"gateway.networking.k8s.io/gateway-name": name});
    let metadata = json!({"name": name, "namespace": namespace, "labels": labels});
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    let variable = |name: &str, value: Value| json!({"name": name, "value": value});
    let mut container = json!({
        "name": "waypoint",
        "command": [with.program],
        "env": [
            {"name": "SEINE_POD_NAME", "valueFrom": field("metadata.name")},
            {"name": "SEINE_POD_NAMESPACE", "valueFrom": field("metadata.namespace")},
            {"name": "SEINE_POD_IP", "valueFrom": field("status.podIP")},
            {"name": "SEINE_SERVICE_ACCOUNT", "valueFrom": field("spec.serviceAccountName")},
            variable("SEINE_XDS_ADDRESS", json!(with.control)),
            variable("SEINE_CA_ADDRESS", json!(with.control)),
            variable("SEINE_SERVER_NAME", json!(with.server_name)),
            variable("SEINE_CA_ROOTS", json!("/etc/seine/root-cert.pem")),
            variable("SEINE_TOKEN_FILE", json!("/etc/seine/token/token")),
        ],
        // Not below /run, which a pod of the lab has for itself.
        "volumeMounts": [
            {"name": "token", "mountPath": "/etc/seine/token"},
            {"name": "roots", "mountPath": "/etc/seine/root-cert.pem", "readOnly": true},
        ],
        "readinessProbe": {"httpGet": {"port": 15021, "path": "/healthz/ready"}, "periodSeconds": 1},
    });
    let further = with.environment.iter();
    let further = further.map(|(name, value)| variable(name, json!(value)));
    if let Some(environment) = container["env"].as_array_mut() {
        environment.extend(further);
    }
    vec![
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata,
            "spec": {
                "selector": labels,
                "ipFamilyPolicy": "PreferDualStack",
                "ports": [{"name": "hbone", "port": 15008, "appProtocol": "hbone"}],
            },
        }),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "serviceAccountName": name,
                        "containers": [container],
                        "volumes": [
                            {"name": "token", "projected": {"sources": [
                                {"serviceAccountToken": {"audience": "seine-control", "path": "token"}},
                            ]}},
                            {"name": "roots", "hostPath": {"path": with.roots}},
                        ],
                    },
                },
            },
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_waypoint_has_what_runs_it_and_no_other_gateway_does() {
        let gateway = |class: &str| {
            json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
                "metadata": {"name": "wp", "namespace": "shop"}, "spec": {"gatewayClassName": class}})
        };
        let with = WaypointProgram {
            program: "/bin/seine-waypoint".into(),
            control: "https://control:15012".into(),
            server_name: "control".into(),
            roots: "/roots".into(),
            environment: vec![("SEINE_LOG".into(), "debug".into())],
        };
        let made = |class: &str| {
            let object = gateway(class);
            objects(&Key::of(&object).unwrap(), &object, Some(&with))
        };
        assert!(made("other").is_empty());
        let kinds: Vec<String> = made("seine-waypoint")
            .iter()
            .map(|object| Key::of(object).unwrap().to_string())
            .collect();
        assert_eq!(
            kinds,
            [
                "serviceaccount/wp in namespace shop",
                "service/wp in namespace shop",
                "deployment/wp in namespace shop",
            ]
        );
    }
}
