//! The program over the manifests of the lab's demo, and over mistakes in manifests.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/lab/demo")
}

/// Runs the program on files and folders of the demo.
fn seine(words: &[&str], files: &[PathBuf]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seine"));
    // Nothing of the machine's own cluster.
    command.env_remove("KUBECONFIG").env("HOME", "/nonexistent");
    command.args(words);
    for file in files {
        command.arg("-f").arg(file);
    }
    command.output().unwrap()
}

fn status(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn text(output: &Output) -> String {
    let all = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8(all).unwrap()
}

/// The demo's manifests without its steps, and with the steps named.
fn with(steps: &[&str]) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(demo())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "yaml"))
        .collect();
    files.sort();
    files.extend(steps.iter().map(|step| demo().join("steps").join(step)));
    files
}

fn explain(source: &str, destination: &str, steps: &[&str]) -> (i32, Value) {
    let words = ["explain", source, destination, "-n", "shop", "-o", "json"];
    let output = seine(&words, &with(steps));
    let json = serde_json::from_slice(&output.stdout);
    (
        status(&output),
        json.unwrap_or_else(|error| panic!("{error}: {}", text(&output))),
    )
}

#[test]
fn the_demos_policy_is_explained_as_the_demo_shows_it() {
    let both = ["opt-in.yaml", "only-api.yaml"];
    let (status, api) = explain("deploy/api", "postgres", &both);
    assert_eq!(status, 0, "{api:#}");
    assert_eq!(api["verdict"], "allowed");
    assert_eq!(
        api["source"]["identity"],
        "spiffe://cluster.local/ns/shop/sa/api"
    );
    let endpoint = &api["endpoints"][0];
    assert_eq!(endpoint["pod"], "shop/postgres-0");
    assert_eq!(endpoint["transport"], "mutualTls");
    assert_eq!(endpoint["policies"][0]["policy"], "shop/postgres-only-api");
    assert_eq!(endpoint["policies"][0]["matchedRule"], 0);

    let (status, web) = explain("web", "svc/postgres.shop:5432", &both);
    assert_eq!(status, 1, "{web:#}");
    assert_eq!(web["verdict"], "denied");
    let endpoint = &web["endpoints"][0];
    assert_eq!(
        endpoint["because"],
        "not allowed by policy shop/postgres-only-api"
    );
    assert_eq!(endpoint["policies"].as_array().unwrap().len(), 1);
    assert_eq!(endpoint["policies"][0]["matchedRule"], Value::Null);

    // A pod by its name and a port of its own; no policy is about Redis.
    let (status, redis) = explain("pod/customer", "redis", &both);
    assert_eq!((status, &redis["verdict"]), (0, &"allowed".into()));
    assert_eq!(redis["endpoints"][0]["policies"], serde_json::json!([]));

    // From outside of the mesh, in plaintext.
    let (status, outside) = explain("203.0.113.9", "postgres", &both);
    assert_eq!((status, &outside["verdict"]), (1, &"denied".into()));
    assert_eq!(outside["source"]["inMesh"], false);
    assert_eq!(outside["endpoints"][0]["transport"], "plaintext");
}

#[test]
fn without_the_opt_in_nothing_is_judged() {
    let (status, web) = explain("web", "postgres", &["only-api.yaml"]);
    assert_eq!((status, &web["verdict"]), (0, &"allowed".into()));
    assert_eq!(
        web["endpoints"][0]["because"],
        "the pod is not in the mesh: nothing judges what comes to it"
    );
}

#[test]
fn the_table_says_who_where_and_why() {
    let files = with(&["opt-in.yaml", "only-api.yaml"]);
    let output = seine(&["explain", "deploy/web.shop", "postgres.shop"], &files);
    let shown = text(&output);
    for line in [
        ", in the mesh as spiffe://cluster.local/ns/shop/sa/web",
        "to    service shop/postgres.shop.svc.cluster.local, port 5432",
        "at pod shop/postgres-0 (",
        "  ALLOW shop/postgres-only-api (workload): none of 1 rules matches",
        "  DENIED: not allowed by policy shop/postgres-only-api",
        "\ndenied\n",
    ] {
        assert!(shown.contains(line), "{line:?} in\n{shown}");
    }
}

#[test]
fn what_cannot_be_answered_is_an_error_that_says_what_to_do() {
    let files = with(&["opt-in.yaml"]);
    for (source, destination, expected) in [
        (
            "web",
            "nowhere",
            "no service or pod of that name in namespace shop",
        ),
        (
            "nobody",
            "postgres",
            "no pod of that name in namespace shop",
        ),
        (
            "web",
            "postgres:5433",
            "has no TCP port 5433; there are 5432",
        ),
        (
            "web",
            "speed",
            "which port? Add :PORT; there are 5201, 6380",
        ),
        ("svc/web", "postgres", "name one of its pods"),
    ] {
        let output = seine(&["explain", source, destination, "-n", "shop"], &files);
        let shown = text(&output);
        assert_eq!(status(&output), 2, "{shown}");
        assert!(shown.contains(expected), "{expected:?} in\n{shown}");
    }
    let output = seine(&["explain", "frog/x", "postgres"], &files);
    assert_eq!(status(&output), 2);
    assert!(
        text(&output).contains("no kind that connects"),
        "{}",
        text(&output)
    );
    let output = seine(&["analyze"], &["/nonexistent.yaml".into()]);
    assert_eq!(status(&output), 2);
    assert!(
        text(&output).contains("/nonexistent.yaml"),
        "{}",
        text(&output)
    );
}

#[test]
fn the_demo_has_no_problems_and_yaml_says_the_same_as_json() {
    let files = with(&["opt-in.yaml", "only-api.yaml"]);
    let output = seine(&["analyze"], &files);
    assert_eq!((status(&output), &*text(&output)), (0, "no problems\n"));
    let both = ["only-api.yaml"];
    let (_, json) = explain("web", "postgres", &both);
    let words = ["explain", "web", "postgres", "-n", "shop", "-o", "yaml"];
    let output = seine(&words, &with(&both));
    let yaml: Value = serde_saphyr::from_str(&text(&output)).unwrap();
    assert_eq!(yaml, json);
}

#[test]
fn a_policy_that_nothing_enforces_is_found() {
    let output = seine(
        &["analyze", "--fail-on", "warning"],
        &with(&["only-api.yaml"]),
    );
    let shown = text(&output);
    assert_eq!(status(&output), 1, "{shown}");
    assert!(
        shown.contains("none of the 1 pods that it selects is in the mesh"),
        "{shown}"
    );
    assert!(
        shown.contains("seine.dev/mesh=enabled [NotInMesh]"),
        "{shown}"
    );
}

/// The codes that `analyze` finds in manifests beside the demo's.
fn codes(manifest: &str) -> (i32, Vec<(String, String)>) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("added.yaml");
    fs::write(&file, manifest).unwrap();
    let mut files = with(&["opt-in.yaml"]);
    files.push(file);
    let output = seine(&["analyze", "-o", "json"], &files);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let found = found["findings"].as_array().unwrap().iter();
    let found = found.map(|one| {
        let text = |field: &str| one[field].as_str().unwrap().to_owned();
        (text("severity"), text("code"))
    });
    (status(&output), found.collect())
}

#[test]
fn each_mistake_has_its_code() {
    const POLICY: &str = "apiVersion: policy.seine.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: added, namespace: shop}\n";
    let policy = |spec: &str| format!("{POLICY}spec: {spec}\n");
    let network_policy = |spec: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: db, namespace: shop}}\nspec: {spec}\n"
        )
    };
    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: other, labels: {seine.dev/mesh: enable}}\n";
    for (manifest, status, severity, code) in [
        (policy("{actoin: Allow}"), 1, "error", "InvalidObject"),
        (policy("{selector: {matchLabels: {app: nobody}}, action: Deny, rules: [{}]}"), 0, "warning", "SelectsNothing"),
        (policy("{targetRefs: [{group: '', kind: Service, name: nobody}], action: Deny, rules: [{}]}"), 1, "error", "UnresolvedReference"),
        (policy("{selector: {matchLabels: {app: redis}}, action: Allow, rules: [{from: [{serviceAccounts: [apii]}]}]}"), 0, "warning", "UnknownServiceAccount"),
        (policy("{selector: {matchLabels: {app: redis}}, action: Allow}"), 0, "info", "AllowsNothing"),
        (policy("{selector: {matchLabels: {app: web}}, action: Allow, rules: [{to: [{methods: [GET]}]}]}"), 0, "warning", "NeedsWaypoint"),
        (network_policy("{podSelector: {matchLabels: {app: postgres}}, ingress: [{ports: [{port: 5432}]}]}"), 1, "error", "TunnelBlocked"),
        (network_policy("{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress], egress: [{ports: [{port: 8080}]}]}"), 1, "error", "TunnelBlocked"),
        (namespace.to_owned(), 1, "error", "UnknownLabelValue"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: other, labels: {seine.dev/mesh: enabled}}\nspec: {containers: [{name: a}]}\n".to_owned(), 0, "warning", "LabelWithoutEffect"),
        ("apiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: d, namespace: shop}\nspec: {template: {spec: {hostNetwork: true, containers: [{name: a}]}}}\n".to_owned(), 0, "warning", "CannotEnrol"),
    ] {
        let (got, found) = codes(&manifest);
        let expected = (severity.to_owned(), code.to_owned());
        assert!(found.contains(&expected), "{expected:?} is not among {found:?} for\n{manifest}");
        assert_eq!(got, status, "{found:?} for\n{manifest}");
    }
}

#[test]
fn every_shell_gets_a_completion_script() {
    for shell in ["bash", "zsh", "fish"] {
        let output = seine(&["completion", shell], &[]);
        assert_eq!(status(&output), 0);
        assert!(text(&output).contains("explain"), "{shell}");
    }
}
