//! The real binary, run as a container runtime runs it.

#![allow(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use seine_cni::LastKnown;
use seine_cni::NamespaceState;
use serde_json::Value;
use serde_json::json;

fn plugin(variables: &[(&str, &str)], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_seine-cni"))
        .env_clear()
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The plugin may be done before it has read everything.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn error_of(output: &Output) -> Value {
    assert!(!output.status.success());
    let value: Value =
        serde_json::from_slice(&output.stdout).expect("an error is JSON on standard output");
    assert!(
        value["msg"].as_str().is_some_and(|m| !m.is_empty()),
        "{value}"
    );
    value
}

const POD: [(&str, &str); 5] = [
    ("CNI_COMMAND", "ADD"),
    ("CNI_CONTAINERID", "c1"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_NETNS", "/proc/self/ns/net"),
    (
        "CNI_ARGS",
        "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u1",
    ),
];

fn config(folder: &Path, previous: &Value) -> Vec<u8> {
    json!({
        "cniVersion": "1.1.0", "name": "k8s", "type": "seine-cni",
        "agentSocket": folder.join("cni.sock"), "stateFile": folder.join("last-known.json"),
        "alwaysStartNamespaces": ["seine-system"], "timeoutSeconds": 1, "prevResult": previous,
    })
    .to_string()
    .into_bytes()
}

#[test]
fn bad_input_gives_an_error_object_with_the_specifications_code() {
    type Case = (&'static [(&'static str, &'static str)], &'static [u8], u64);
    let cases: [Case; 8] = [
        (&[], b"{}", 4),
        (&[("CNI_COMMAND", "DANCE")], b"{}", 4),
        (&POD, b"", 6),
        (&POD, b"\xff\xfe\x00[[[[", 6),
        (
            &POD,
            br#"{"cniVersion":"1.1.0","prevResult":{}} trailing"#,
            6,
        ),
        (&POD, br#"{"cniVersion":"77"}"#, 1),
        (&POD, br#"{"cniVersion":"1.1.0"}"#, 7),
        (&POD[..3], br#"{"cniVersion":"1.1.0","prevResult":{}}"#, 4),
    ];
    for (variables, input, code) in cases {
        let error = error_of(&plugin(variables, input));
        assert_eq!(error["code"], code, "{error}");
    }
}

#[test]
fn deeply_nested_input_is_an_error_and_not_a_crash() {
    let output = plugin(&POD, "[".repeat(100_000).as_bytes());
    assert_eq!(error_of(&output)["code"], 6);
}

#[test]
fn version_names_the_supported_versions() {
    let output = plugin(&[("CNI_COMMAND", "VERSION")], br#"{"cniVersion":"1.0.0"}"#);
    assert!(output.status.success());
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["cniVersion"], "1.0.0");
    assert!(
        value["supportedVersions"]
            .as_array()
            .unwrap()
            .contains(&json!("1.1.0"))
    );
}

#[test]
fn with_the_agent_away_an_opted_in_pod_waits_and_others_start_with_their_result_unchanged() {
    let folder = tempfile::tempdir().unwrap();
    let previous = json!({"cniVersion": "1.1.0", "z": 1, "a": [1.5], "ips": []});
    let input = config(folder.path(), &previous);

    let error = error_of(&plugin(&POD, &input));
    assert_eq!(error["code"], 11, "nothing is known: {error}");

    let mut known = LastKnown::default();
    known
        .namespaces
        .insert("shop".into(), NamespaceState::OptedIn);
    known
        .namespaces
        .insert("plain".into(), NamespaceState::NotOptedIn);
    known.write(&folder.path().join("last-known.json")).unwrap();
    let error = error_of(&plugin(&POD, &input));
    assert_eq!(error["code"], 11, "{error}");
    assert!(
        error["msg"].as_str().unwrap().contains("opted in"),
        "{error}"
    );

    for namespace in ["plain", "seine-system"] {
        let arguments = format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME=x");
        let mut variables = POD;
        variables[4].1 = &arguments;
        let output = plugin(&variables, &input);
        assert!(output.status.success(), "{namespace}: {output:?}");
        assert_eq!(
            String::from_utf8(output.stdout).unwrap().trim(),
            previous.to_string()
        );
    }
}

/// An API server in which an agent's account may read. It answers one request a connection.
fn api_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let namespace = |labels: Value| json!({"metadata": {"name": "x", "labels": labels}});
    let pod = |labels: Value, spec: Value| {
        let spec = json!({"containers": [{"name": "app"}], "runtimeClassName": spec});
        json!({"metadata": {"name": "web", "uid": "u1", "labels": labels}, "spec": spec})
    };
    let enabled = json!({"seine.dev/mesh": "enabled"});
    let ambient = json!({"istio.io/dataplane-mode": "ambient"});
    let answers = [
        ("/api/v1/namespaces/new-plain", namespace(json!({}))),
        ("/api/v1/namespaces/other-mesh", namespace(ambient)),
        ("/api/v1/namespaces/new-shop", namespace(enabled.clone())),
        (
            "/api/v1/namespaces/new-shop/pods/web",
            pod(json!({}), Value::Null),
        ),
        (
            "/api/v1/namespaces/new-shop/pods/out",
            pod(json!({"seine.dev/mesh": "disabled"}), Value::Null),
        ),
        (
            "/api/v1/namespaces/new-shop/pods/sandboxed",
            pod(json!({}), json!("kata")),
        ),
    ];
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let lines = BufReader::new(connection.try_clone().unwrap()).lines();
            let head: Vec<_> = lines
                .map(Result::unwrap)
                .take_while(|line| !line.is_empty())
                .collect();
            let path = head[0].strip_prefix("GET ").unwrap();
            let path = path.strip_suffix(" HTTP/1.1").unwrap();
            let authorised = head
                .iter()
                .any(|line| line.eq_ignore_ascii_case("authorization: Bearer the-agents-token"));
            let found = answers.iter().find(|(known, _)| *known == path);
            let (code, body) = match found {
                Some((_, object)) if authorised => (200, object.clone()),
                _ => (
                    if authorised { 404 } else { 401 },
                    json!({"kind": "Status", "status": "Failure",
                        "message": "the server's own words", "code": 400}),
                ),
            };
            let body = body.to_string();
            let length = body.len();
            write!(connection, "HTTP/1.1 {code} X\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}").unwrap();
        }
    });
    format!("http://{address}")
}

fn kubeconfig(server: &str, token: &str) -> String {
    json!({"clusters": [{"name": "a", "cluster": {"server": server}}],
        "users": [{"name": "a", "user": {"token": token}}],
        "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}], "current-context": "a"})
    .to_string()
}

#[test]
fn with_the_agent_away_the_api_server_is_asked_of_a_namespace_that_it_never_saw() {
    let folder = tempfile::tempdir().unwrap();
    let known = LastKnown {
        namespaces: [("shop".into(), NamespaceState::OptedIn)].into(),
        ..LastKnown::default()
    };
    let state_file = folder.path().join("last-known.json");
    known.write(&state_file).unwrap();
    let path = folder.path().join("api-server.kubeconfig");
    let mut input: Value = serde_json::from_slice(&config(folder.path(), &json!({}))).unwrap();
    input["kubeconfig"] = json!(path);
    let input = input.to_string().into_bytes();
    let start = |namespace: &str, pod: &str, uid: &str| {
        let arguments =
            format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={pod};K8S_POD_UID={uid}");
        let mut variables = POD;
        variables[4].1 = &arguments;
        plugin(&variables, &input)
    };
    let starts = |namespace: &str, pod: &str, uid: &str| {
        let output = start(namespace, pod, uid);
        assert!(output.status.success(), "{namespace}/{pod}: {output:?}");
    };
    let waits = |namespace: &str, pod: &str, uid: &str, why: &str| {
        let error = error_of(&start(namespace, pod, uid));
        assert_eq!(error["code"], 11, "{error}");
        assert!(error["msg"].as_str().unwrap().contains(why), "{error}");
    };
    waits("new-plain", "web", "u1", "api-server.kubeconfig");

    let server = api_server();
    std::fs::write(&path, kubeconfig(&server, "the-agents-token")).unwrap();
    starts("new-plain", "web", "u1");
    starts("other-mesh", "web", "u1");
    starts("new-shop", "out", "u1");
    starts("new-shop", "sandboxed", "u1");
    waits("new-shop", "web", "u1", "the pod is opted in");
    waits("new-shop", "out", "u2", "the runtime starts");
    waits("nobody-made", "web", "u1", "the server's own words");
    waits("shop", "web", "u1", "namespace shop is opted in");

    // What the agent takes for an opt-in it says in what it knew; one that said nothing may take it so.
    let mut text: Value = serde_json::from_slice(&std::fs::read(&state_file).unwrap()).unwrap();
    text.as_object_mut().unwrap().remove("istioAlias").unwrap();
    std::fs::write(&state_file, text.to_string()).unwrap();
    waits("other-mesh", "web", "u1", "get pod other-mesh/web");

    std::fs::write(&path, kubeconfig(&server, "an-older-token")).unwrap();
    waits("new-plain", "web", "u1", "does not say");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = format!("http://{}", silent.local_addr().unwrap());
    std::fs::write(&path, kubeconfig(&server, "the-agents-token")).unwrap();
    waits("new-plain", "web", "u1", "did not answer within 1s");
}

#[test]
fn with_the_agent_away_a_pod_can_be_deleted_and_the_plugin_is_still_of_use() {
    let folder = tempfile::tempdir().unwrap();
    let input = config(folder.path(), &json!({}));
    for command in ["DEL", "STATUS", "GC"] {
        let mut variables = POD;
        variables[0].1 = command;
        let output = plugin(&variables, &input);
        assert!(output.status.success(), "{command}: {output:?}");
        assert!(output.stdout.is_empty());
    }
}
