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
        ("apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop, labels: {seine.dev/use-waypoint: nowhere}}\nspec: {selector: {app: web}, ports: [{port: 1}]}\n".to_owned(), 1, "error", "NoWaypoint"),
        ("apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: w, namespace: shop, labels: {seine.dev/waypoint-for: workload}}\nspec: {gatewayClassName: seine-waypoint, listeners: []}\n".to_owned(), 1, "error", "UnknownLabelValue"),
        ("apiVersion: v1\nkind: Pod\nmetadata: {name: p, namespace: shop, labels: {seine.dev/use-waypoint: w}}\nspec: {containers: [{name: a}]}\n".to_owned(), 0, "warning", "LabelWithoutEffect"),
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

const BEHIND_A_WAYPOINT: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {seine.dev/mesh: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {nodeName: n1, serviceAccountName: client, containers: []}
status: {phase: Running, podIP: 10.0.0.1, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {nodeName: n1, serviceAccountName: web, containers: []}
status: {phase: Running, podIP: 10.0.0.2, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: new, namespace: shop, labels: {app: new}}
spec: {nodeName: n1, serviceAccountName: new, containers: []}
status: {phase: Running, podIP: 10.0.0.3, conditions: [{type: Ready, status: "True"}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {seine.dev/use-waypoint: wp}}
spec: {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: new, namespace: shop}
spec: {clusterIP: 10.1.0.2, selector: {app: new}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: seine-waypoint, listeners: []}
---
apiVersion: policy.seine.dev/v1alpha1
kind: RequestAuthentication
metadata: {name: tokens, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: web}]
  jwtRules: [{issuer: "https://a", jwksUri: "https://a/keys"}]
---
apiVersion: policy.seine.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: users, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: web}]
  rules:
  - from: [{requestPrincipals: ["https://a/alice"]}]
  - from: [{claims: [{path: [realm, roles], values: [admin]}]}]
    to: [{methods: [GET], paths: ["/admin*"]}]
---
apiVersion: policy.seine.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: ask, namespace: shop}
spec:
  action: External
  provider: {service: web, port: 80, protocol: Http}
  targetRefs: [{kind: Service, name: web}]
  rules: [{to: [{paths: ["/admin*"]}]}]
---
apiVersion: policy.seine.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: only-waypoint, namespace: shop}
spec:
  selector: {matchLabels: {app: new}}
  rules: [{from: [{serviceAccounts: [wp]}]}]
"#;

const ROUTES: &str = r#"
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: "", kind: Service, name: web}]
  rules:
  - matches: [{path: {type: PathPrefix, value: /a}, method: GET, headers: [{name: X-New, value: "1"}]}]
    backendRefs: [{name: new, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /a}}]
    filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: x-by, value: seine}]}}]
    backendRefs: [{name: web, port: 80, weight: 9}, {name: new, port: 80, weight: 1}]
  - matches: [{path: {type: Exact, value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /a}, statusCode: 301}}]
  - matches: [{path: {type: Exact, value: /gone}}]
    backendRefs: [{name: nowhere, port: 80}]
"#;

/// Of a request of `client` to the service `web` of these manifests.
fn explain_request(manifests: &str, more: &[&str]) -> (i32, Value) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shop.yaml");
    fs::write(&file, manifests).unwrap();
    let words = ["explain", "client", "svc/web", "-n", "shop", "-o", "json"];
    let output = seine(&[&words, more].concat(), &[file]);
    let json: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", text(&output)));
    (status(&output), json)
}

const ALICE: [&str; 4] = ["--claim", "iss=https://a", "--claim", "sub=alice"];

#[test]
fn a_request_is_explained_as_its_waypoint_judges_it() {
    let explain = |more: &[&str]| explain_request(BEHIND_A_WAYPOINT, more);
    let (code, found) = explain(&ALICE);
    assert_eq!(
        (code, &found["verdict"]),
        (0, &"allowed".into()),
        "{found:#}"
    );
    let waypoint = &found["waypoint"];
    assert_eq!(waypoint["waypoints"], serde_json::json!(["shop/wp"]));
    assert_eq!(
        waypoint["because"],
        "allowed by policy shop/users_at_web, rule 0"
    );
    assert_eq!(
        waypoint["policies"].as_array().unwrap().len(),
        2,
        "{found:#}"
    );
    assert_eq!(found["endpoints"][0]["pod"], "shop/web");
    assert_eq!(found["notes"], Value::Null);

    let admin = ["--path", "/x/../admin/x?y", "--claim", "realm.roles=admin"];
    let (code, found) = explain(&admin);
    assert_eq!(code, 0, "{found:#}");
    assert_eq!(
        found["waypoint"]["request"],
        "GET /admin/x at host web.shop.svc.cluster.local"
    );
    let asks = found["waypoint"]["asks"].to_string();
    assert!(
        asks.contains("web.shop.svc.cluster.local port 80 must say so"),
        "{asks}"
    );

    for more in [
        &[
            "--method",
            "POST",
            "--path",
            "/admin",
            "--claim",
            "realm.roles=admin",
        ][..],
        &["--claim", "iss=https://a", "--claim", "sub=bob"],
        &["--path", "/a"],
        &["--path", "/a%2fb"],
        // What is asked for isn't known, and an Allow of some allows none.
        &[],
    ] {
        let (code, found) = explain(more);
        assert_eq!(
            (code, &found["verdict"]),
            (1, &"denied".into()),
            "{found:#}"
        );
        let endpoints = found["endpoints"].as_array().unwrap();
        assert!(endpoints.is_empty(), "no pod is asked: {found:#}");
    }
    // Without whoever verifies it a token says nothing.
    let unchecked = BEHIND_A_WAYPOINT.replace("kind: RequestAuthentication", "kind: Nothing");
    let (code, found) = explain_request(&unchecked, &ALICE);
    assert_eq!(
        (code, &found["verdict"]),
        (1, &"denied".into()),
        "{found:#}"
    );
    assert!(
        found["notes"].to_string().contains("believes no token"),
        "{found:#}"
    );
}

#[test]
fn the_route_that_decides_is_named_or_the_nearest_and_what_it_lacks() {
    let manifests = format!("{BEHIND_A_WAYPOINT}{ROUTES}");
    let explain = |more: &[&str]| explain_request(&manifests, &[&ALICE, more].concat());
    let rule = |index: usize| Value::from(format!("HTTPRoute/shop/web/{index}"));

    let (code, found) = explain(&["--path", "/a/b", "--header", "x-new=1"]);
    assert_eq!(
        (code, &found["verdict"]),
        (0, &"allowed".into()),
        "{found:#}"
    );
    assert_eq!(found["waypoint"]["route"]["rule"], rule(0));
    let endpoint = &found["endpoints"][0];
    assert_eq!(endpoint["pod"], "shop/new");
    assert_eq!(
        endpoint["backend"],
        "service shop/new.shop.svc.cluster.local, port 80"
    );
    // Its port is bound to no waypoint: it sees who sends, not for whom.
    assert_eq!(
        endpoint["because"],
        "allowed by policy shop/only-waypoint, rule 0"
    );

    let (code, found) = explain(&["--path", "/a/b"]);
    let route = &found["waypoint"]["route"];
    assert_eq!((code, &route["rule"]), (0, &rule(1)), "{found:#}");
    assert_eq!(
        route["effects"],
        serde_json::json!(["request headers: sets x-by"])
    );
    let shares: Vec<_> = route["backends"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["share"])
        .collect();
    assert_eq!(shares, [90.0, 10.0]);
    assert_eq!(found["endpoints"].as_array().unwrap().len(), 2);

    let (code, found) = explain(&["--path", "/old"]);
    let route = &found["waypoint"]["route"];
    assert_eq!((code, &route["rule"]), (0, &rule(2)), "{found:#}");
    assert_eq!(
        route["answer"],
        "301, to http://web.shop.svc.cluster.local/a"
    );

    let (code, found) = explain(&["--path", "/gone"]);
    assert_eq!(
        (code, &found["verdict"]),
        (1, &"failed".into()),
        "{found:#}"
    );
    assert!(
        found["waypoint"]["route"]["backends"][0]["refused"].is_string(),
        "{found:#}"
    );

    let (code, found) = explain(&["--path", "/b", "--method", "POST"]);
    assert_eq!(
        (code, &found["verdict"]),
        (1, &"failed".into()),
        "{found:#}"
    );
    let route = &found["waypoint"]["route"];
    assert_eq!(route["answer"], "404: no rule matches");
    let near = &route["near"][0];
    assert_eq!(near["rule"], rule(1));
    assert_eq!(
        near["lacks"],
        serde_json::json!(["path /b is not /a or below it"])
    );
    let last = route["near"].as_array().unwrap().last().unwrap();
    assert_eq!(
        last["lacks"].as_array().unwrap().len(),
        1,
        "three are told: {route:#}"
    );
}

#[test]
fn a_client_that_is_not_in_the_mesh_reaches_no_waypoint() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("shop.yaml");
    fs::write(&file, BEHIND_A_WAYPOINT).unwrap();
    let words = [
        "explain",
        "203.0.113.9",
        "svc/web",
        "-n",
        "shop",
        "--path",
        "/a",
    ];
    let output = seine(&words, &[file]);
    let shown = text(&output);
    assert_eq!(status(&output), 1, "{shown}");
    assert!(
        shown.contains("port 8080 is reached through its waypoint alone"),
        "{shown}"
    );
    assert!(shown.contains("no waypoint stands between"), "{shown}");
}
