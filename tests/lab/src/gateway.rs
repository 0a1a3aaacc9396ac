//! What the control plane of a cluster makes of a Gateway that is ours, a waypoint or a way into the mesh: pods, Service and
//! ServiceAccount of its name. Pure.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::manifest::Key;

/// The class of Gateways that are waypoints.
const WAYPOINT: &str = "seine-waypoint";
/// The class of Gateways that take connections from outside the mesh.
const INGRESS: &str = "seine";

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

/// The objects that belong to `object`, where that is a Gateway of ours.
pub fn objects(key: &Key, object: &Value, with: Option<&WaypointProgram>) -> Vec<Value> {
    let class = object.pointer("/spec/gatewayClassName");
    let is_ingress = match class.and_then(Value::as_str) {
        Some(INGRESS) => true,
        Some(WAYPOINT) => false,
        _ => return Vec::new(),
    };
    let Some(with) = with.filter(|_| key.kind == "Gateway") else {
        return Vec::new();
    };
    let ports = match is_ingress {
        true => listener_ports(object),
        false => vec![json!({"name": "hbone", "port": 15008, "appProtocol": "hbone"})],
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
            variable("SEINE_INGRESS", json!(is_ingress.to_string())),
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
                "ports": ports,
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

/// Each port once, whatever listeners share it.
fn listener_ports(gateway: &Value) -> Vec<Value> {
    let listeners = gateway.pointer("/spec/listeners").and_then(Value::as_array);
    let ports = listeners.into_iter().flatten();
    let ports: BTreeSet<u64> = ports.filter_map(|one| one["port"].as_u64()).collect();
    let port = |port| json!({"name": format!("port-{port}"), "port": port});
    ports.into_iter().map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_of_ours_has_what_runs_it_and_no_other_does() {
        let gateway = |class: &str| {
            json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
                "metadata": {"name": "wp", "namespace": "shop"},
                "spec": {"gatewayClassName": class, "listeners": [{"port": 443}, {"port": 80}, {"port": 443}]}})
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
        let ports = |class: &str| {
            let ports = made(class)[1]["spec"]["ports"].clone();
            let ports = ports.as_array().unwrap().iter();
            ports
                .map(|port| port["port"].as_u64().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(ports("seine-waypoint"), [15008]);
        assert_eq!(ports("seine"), [80, 443]);
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
