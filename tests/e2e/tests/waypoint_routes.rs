//! Ten thousand routes of one service, loaded and changed while requests run.

#![allow(missing_docs, reason = "the names of tests say what they are about")]

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Result, ensure};
use seine_e2e::manifests::{Pod, meshed_namespace, service};
use seine_e2e::peer::report::Loaded;
use seine_e2e::{Bed, trials, until_within};
use serde_json::{Value, json};

const ROUTES: usize = 10_000;
/// As many documents as the lab reads at once.
const APPLIED: usize = 1000;
/// All of them are looked up meanwhile, a few of them by the load.
const SAMPLES: [usize; 4] = [0, 3333, 7777, ROUTES - 1];
/// How long they may take to be in force.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);

fn main() -> ExitCode {
    seine_e2e::trial::main(
        up,
        trials![ten_thousand_routes_come_and_change_and_no_request_is_lost],
    )
}

fn up() -> Result<Bed> {
    let server = |name: &str, node: u8| {
        Pod::new("mesh", name, node)
            .serves(&["mirror:8080"])
            .object()
    };
    let ports = [("http", 80, 8080)];
    let mut web = service("mesh", "web", "v1", &ports);
    web["metadata"]["labels"] = json!({"seine.dev/use-waypoint": "wp"});
    Bed::up(
        "e2e-waypoint-routes",
        &[
            meshed_namespace("mesh"),
            json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
                "metadata": {"name": "wp", "namespace": "mesh"},
                "spec": {"gatewayClassName": "seine-waypoint", "listeners": [
                    {"name": "mesh", "port": 15008, "protocol": "HBONE"},
                ]},
            }),
            Pod::new("mesh", "client", 1).object(),
            server("v1", 1),
            server("v2", 2),
            web,
            service("mesh", "v1", "v1", &ports),
            service("mesh", "v2", "v2", &ports),
            // What no other route is about.
            route(
                "rest",
                &json!({"path": {"type": "PathPrefix", "value": "/"}}),
                "v1",
            ),
        ],
    )
}

fn route(name: &str, matches: &Value, to: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": "mesh"},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "web"}],
            "rules": [{
                "matches": [matches],
                "filters": [{"type": "ResponseHeaderModifier", "responseHeaderModifier": {
                    "set": [{"name": "x-route", "value": name}],
                }}],
                "backendRefs": [{"name": to, "port": 80}],
            }],
        },
    })
}

fn name(number: usize) -> String {
    format!("route-{number}")
}

fn all(to: &str) -> Vec<Value> {
    let one = |number| {
        let path = json!({"path": {"type": "Exact", "value": format!("/r/{number}")}});
        route(&name(number), &path, to)
    };
    (0..ROUTES).map(one).collect()
}

/// Whether each sample is answered by its own route and this pod.
fn in_force(bed: &Bed, pod: &str) -> Result<bool> {
    for number in SAMPLES {
        let request = format!("GET /r/{number} HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n");
        let answer = bed.ask("mesh/client", "web", 80, &request)?.received;
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let by_route = answer.contains(&format!("x-route: {}\r\n", name(number)));
        if !by_route || !answer.contains(&format!("pod {pod} ")) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn ten_thousand_routes_come_and_change_and_no_request_is_lost(bed: &Bed) -> Result<()> {
    let paths = SAMPLES.map(|number| format!("/r/{number}")).join(",");
    let load = bed.start("mesh/client", &["requests", "web", "80", &paths])?;
    for pod in ["v1", "v2"] {
        let begun = Instant::now();
        for part in all(pod).chunks(APPLIED) {
            bed.lab().apply(&seine_e2e::manifests::text(part))?;
        }
        let applied = begun.elapsed();
        until_within(PATIENCE, &format!("all routes lead to {pod}"), || {
            Ok(in_force(bed, pod)?.then_some(()))
        })?;
        println!(
            "{ROUTES} routes to {pod}: applied in {applied:.1?}, in force after {:.1?}",
            begun.elapsed()
        );
    }
    let loaded: Loaded = load.finish()?;
    println!("{} requests", loaded.exchanges);
    ensure!(
        loaded.failed.is_empty() && loaded.exchanges > 100,
        "{loaded:?}"
    );
    Ok(())
}
