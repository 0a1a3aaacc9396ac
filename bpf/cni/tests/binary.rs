//! The real binary, run as a container runtime runs it.

#![allow(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::io::Write;
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
