//! What is compared, as manifests: one application, and for each proxy a Service that is bound to it.
//!
//! Both proxies are pods that the lab's user wrote, so that both get one worker. The Gateway by which the control plane lets
//! ours read its configuration is given to the control plane alone: the lab would start a waypoint of its own for it.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

pub(super) const NAMESPACE: &str = "mesh";
pub(super) const CLIENT: &str = "client";
pub(super) const SERVER: &str = "server";
/// Where the application listens.
pub(super) const TARGET: u16 = 8080;
/// The ports of each Service, which say what is spoken there.
pub(super) const HTTP1: u16 = 80;
pub(super) const HTTP2: u16 = 81;
pub(super) const GRPC: u16 = 82;

/// The names of the proxies: of their pods, Services and service accounts.
pub(super) const OURS: &str = "waypoint";
pub(super) const ENVOY: &str = "envoy";

/// The Service that is bound to a proxy.
pub(super) fn bound(proxy: &str) -> String {
    format!("web-{proxy}")
}

/// The namespace with client and application.
pub(super) fn applications(load: &Path) -> String {
    let namespace = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": NAMESPACE, "labels": {"seine.dev/mesh": "enabled"}},
    });
    let serve = json!([load, "http-server", format!("0.0.0.0:{TARGET}")]);
    let mut server = pod(SERVER, 2, json!({"command": serve}), json!([]));
    server["spec"]["containers"][0]["readinessProbe"] = json!({"tcpSocket": {"port": TARGET}});
    let client = pod(
        CLIENT,
        1,
        json!({"command": ["sleep", "infinity"]}),
        json!([]),
    );
    documents(&[
        namespace,
        account(SERVER),
        account(CLIENT),
        server,
        client,
        web(OURS),
        web(ENVOY),
    ])
}

/// Our waypoint, with one worker.
pub(super) fn ours(program: &Path, control: &str, roots: &Path) -> String {
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    let container = json!({
        "command": [program],
        "env": [
            {"name": "SEINE_WORKER_THREADS", "value": "1"},
            {"name": "SEINE_POD_NAME", "valueFrom": field("metadata.name")},
            {"name": "SEINE_POD_NAMESPACE", "valueFrom": field("metadata.namespace")},
            {"name": "SEINE_POD_IP", "valueFrom": field("status.podIP")},
            {"name": "SEINE_SERVICE_ACCOUNT", "valueFrom": field("spec.serviceAccountName")},
            {"name": "SEINE_XDS_ADDRESS", "value": control},
            {"name": "SEINE_CA_ADDRESS", "value": control},
            {"name": "SEINE_CA_ROOTS", "value": "/etc/seine/root-cert.pem"},
            {"name": "SEINE_TOKEN_FILE", "value": "/etc/seine/token/token"},
        ],
        "volumeMounts": [
            {"name": "token", "mountPath": "/etc/seine/token"},
            {"name": "roots", "mountPath": "/etc/seine/root-cert.pem", "readOnly": true},
        ],
        "readinessProbe": {"httpGet": {"port": 15021, "path": "/healthz/ready"}, "periodSeconds": 1},
    });
    let volumes = json!([
        {"name": "token", "projected": {"sources": [
            {"serviceAccountToken": {"audience": "seine-control", "path": "token"}},
        ]}},
        {"name": "roots", "hostPath": {"path": roots}},
    ]);
    proxy(OURS, container, volumes)
}

/// Envoy in its place.
pub(super) fn envoy((container, volumes): (Value, Value)) -> String {
    proxy(ENVOY, container, volumes)
}

/// By it the control plane knows ours.
pub(super) fn gateway() -> String {
    documents(&[json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": OURS, "namespace": NAMESPACE},
        "spec": {"gatewayClassName": "seine-waypoint", "listeners": [
            {"name": "mesh", "port": 15008, "protocol": "HBONE"},
        ]},
    })])
}

/// Routes of our waypoint's Service: so many for one path each, and one for all requests.
pub(super) fn routes(count: usize) -> String {
    let exactly = |path: String| json!([{"path": {"type": "Exact", "value": path}}]);
    let mut all: Vec<_> = (0..count)
        .map(|i| {
            route(
                &format!("r{i}"),
                HTTP1,
                json!({"matches": exactly(format!("/r/{i}"))}),
            )
        })
        .collect();
    let ports = [
        ("all-http1", HTTP1),
        ("all-http2", HTTP2),
        ("all-grpc", GRPC),
    ];
    all.extend(ports.map(|(name, port)| route(name, port, json!({}))));
    documents(&all)
}

/// The one whose answers say a version.
pub(super) fn probe(header: &str, version: u32) -> String {
    let rule = json!({
        "matches": [{"path": {"type": "Exact", "value": "/probe"}}],
        "filters": [{"type": "ResponseHeaderModifier", "responseHeaderModifier": {
            "set": [{"name": header, "value": version.to_string()}],
        }}],
    });
    documents(&[route("probe", HTTP1, rule)])
}

fn route(name: &str, port: u16, mut rule: Value) -> Value {
    let service = bound(OURS);
    rule["backendRefs"] = json!([{"name": service, "port": port}]);
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": service, "port": port}],
            "rules": [rule],
        },
    })
}

fn web(proxy: &str) -> Value {
    let port = |name: &str, port: u16, speaks: &str| json!({"name": name, "port": port, "targetPort": TARGET, "appProtocol": speaks});
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": bound(proxy), "namespace": NAMESPACE, "labels": {"seine.dev/use-waypoint": proxy}},
        "spec": {"selector": {"app": SERVER}, "ports": [
            port("http1", HTTP1, "http"),
            port("http2", HTTP2, "kubernetes.io/h2c"),
            port("grpc", GRPC, "grpc"),
        ]},
    })
}

fn proxy(name: &str, container: Value, volumes: Value) -> String {
    let mut pod = pod(name, 2, container, volumes);
    // It speaks HBONE itself.
    pod["metadata"]["labels"]["seine.dev/mesh"] = json!("disabled");
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"selector": {"app": name}, "ports": [{"name": "hbone", "port": 15008, "appProtocol": "hbone"}]},
    });
    documents(&[account(name), service, pod])
}

fn account(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": NAMESPACE}})
}

fn pod(name: &str, node: u8, mut container: Value, volumes: Value) -> Value {
    container["name"] = json!("main");
    container["image"] = json!("none");
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": name}},
        "spec": {
            "nodeName": format!("node{node}"),
            "serviceAccountName": name,
            "containers": [container],
            "volumes": volumes,
        },
    })
}

fn documents(objects: &[Value]) -> String {
    let mut text = String::new();
    for object in objects {
        // JSON is YAML.
        let _ = writeln!(text, "---\n{object}");
    }
    text
}
