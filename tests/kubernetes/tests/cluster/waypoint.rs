//! A waypoint that the control plane makes.

use anyhow::{Context as _, Result, ensure};
use seine_e2e::manifests::{Pod, meshed_namespace, service};
use seine_e2e::peer::report::Asked;
use seine_kubernetes_tests::{step, within};
use serde_json::json;

use crate::bed::{Bed, PATIENCE};

const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";
const HTTP: [(&str, u16, u16); 1] = [("http", 80, 8080)];
const SERVER: [&str; 1] = ["mirror:8080"];

/// Namespace `routed`: a client, and Service `web` of `v1` and `v2` on two nodes.
fn routed(bed: &Bed) -> Result<()> {
    let mut namespace = meshed_namespace("routed");
    namespace["metadata"]["labels"]["seine.dev/use-waypoint"] = json!("waypoint");
    let server = |name: &str, node: u8| {
        let pod = Pod::new("routed", name, node).label("of", "web");
        pod.serves(&SERVER).object()
    };
    let mut web = service("routed", "web", "", &HTTP);
    web["spec"]["selector"] = json!({"of": "web"});
    bed.apply(&[
        namespace,
        Pod::new("routed", "client", 1).object(),
        server("v1", 1),
        server("v2", 2),
        web,
        service("routed", "v1", "v1", &HTTP),
        service("routed", "v2", "v2", &HTTP),
        json!({
            "apiVersion": GATEWAY_API, "kind": "Gateway",
            "metadata": {"name": "waypoint", "namespace": "routed"},
            "spec": {
                "gatewayClassName": "seine-waypoint",
                "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
            },
        }),
        json!({
            "apiVersion": GATEWAY_API, "kind": "HTTPRoute",
            "metadata": {"name": "web", "namespace": "routed"},
            "spec": {
                "parentRefs": [{"group": "", "kind": "Service", "name": "web"}],
                "rules": [
                    {
                        "matches": [{"headers": [{"name": "x-version", "value": "2"}]}],
                        "backendRefs": [{"name": "v2", "port": 80}],
                    },
                    {"backendRefs": [
                        {"name": "v1", "port": 80, "weight": 1}, {"name": "v2", "port": 80, "weight": 0},
                    ]},
                ],
            },
        }),
        json!({
            "apiVersion": "policy.seine.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "no-admin", "namespace": "routed"},
            "spec": {
                "action": "Deny",
                "targetRefs": [{"kind": "Service", "name": "web"}],
                "rules": [{"to": [{"paths": ["/admin*"]}]}],
            },
        }),
    ])?;
    let gateway = ["-n", "routed", "gateway", "waypoint"];
    within(PATIENCE, "the waypoint is programmed", || {
        let condition = bed.condition(&gateway, "Programmed")?;
        let condition = condition.context("no condition yet")?;
        ensure!(condition["status"] == "True", "{condition}");
        Ok(Some(()))
    })?;
    bed.ready("routed")?;
    bed.await_enrolled(&["routed/client", "routed/v1", "routed/v2"], true)
}

fn get(bed: &Bed, host: &str, port: u16, path: &str, headers: &str) -> Result<Asked> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: web\r\nconnection: close\r\n{headers}\r\n");
    bed.ask("routed/client", host, port, &request)
}

/// The service's answer begins and says so.
fn answers(bed: &Bed, path: &str, headers: &str, status: &str, says: &str) -> Result<()> {
    let asked = get(bed, "web.routed", 80, path, headers)?;
    let is =
        asked.received.starts_with(&format!("HTTP/1.1 {status}")) && asked.received.contains(says);
    ensure!(is, "{path} {headers:?}: {asked:?}");
    Ok(())
}

fn nobody_answers(bed: &Bed, host: &str, port: u16) -> Result<()> {
    let asked = get(bed, host, port, "/", "")?;
    ensure!(
        asked.received.is_empty() && asked.failure.is_some(),
        "{host} port {port}: {asked:?}"
    );
    Ok(())
}

pub(crate) fn a_labelled_namespaces_requests_are_routed_and_denied_by_its_waypoint_and_by_nobody_without_it(
    bed: &Bed,
) -> Result<()> {
    let found = requests(bed);
    // Else later tests of the whole mesh would find a namespace without its waypoint.
    bed.cluster
        .kubectl(&["delete", "namespace", "routed", "--ignore-not-found"])?;
    found
}

fn requests(bed: &Bed) -> Result<()> {
    step("a Gateway becomes a waypoint");
    routed(bed)?;
    step("weights, a header, a denied path");
    within(PATIENCE, "the first version answers", || {
        answers(bed, "/", "", "200", "pod v1 client").map(Some)
    })?;
    for _ in 0..5 {
        answers(bed, "/a", "", "200", "pod v1 client")?;
        answers(bed, "/a", "x-version: 2\r\n", "200", "pod v2 client")?;
    }
    answers(bed, "/admin/x", "", "403", "")?;
    // The application sees its client, though a waypoint is between them.
    let client = bed.address("routed/client")?;
    answers(bed, "/a", "", "200", &client)?;

    step("not past the waypoint, and its own pods are not in the mesh");
    let server = bed.address("routed/v1")?;
    nobody_answers(bed, &server, 8080)?;
    let label = "gateway.networking.k8s.io/gateway-name=waypoint";
    let pods = bed.cluster.get(&["-n", "routed", "pods", "-l", label])?;
    for pod in pods["items"].as_array().into_iter().flatten() {
        let enrolled = &pod["metadata"]["annotations"]["seine.dev/enrolled"];
        ensure!(enrolled.is_null(), "a waypoint's pod: {enrolled}");
    }
    let route = bed.cluster.get(&["-n", "routed", "httproute", "web"])?;
    let parent = &route["status"]["parents"][0];
    ensure!(parent["conditions"][0]["status"] == "True", "{parent}");

    step("without the Gateway its objects go, and the service is reached by nobody");
    bed.cluster
        .kubectl(&["-n", "routed", "delete", "gateway", "waypoint"])?;
    within(PATIENCE, "all that belonged to it is gone", || {
        let kinds = "deployment,service,serviceaccount,hpa,pdb,pod";
        let left = bed.cluster.get(&["-n", "routed", kinds, "-l", label])?;
        let left = left["items"].as_array().context("no list")?.len();
        Ok((left == 0).then_some(()))
    })?;
    within(PATIENCE, "nobody answers", || {
        nobody_answers(bed, "web.routed", 80).map(Some)
    })?;
    nobody_answers(bed, &server, 8080)?;
    within(PATIENCE, "an Event says so on the Service", || {
        let events = bed.cluster.get(&["-n", "routed", "events"])?;
        let mut events = events["items"].as_array().into_iter().flatten();
        let found = events.any(|event| {
            event["involvedObject"]["name"] == "web" && event["reason"] == "NoWaypoint"
        });
        Ok(found.then_some(()))
    })
}
