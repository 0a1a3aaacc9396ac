//! What the control plane makes of Gateways, and says of them and of routes.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use seine_kubernetes_tests::{step, within};
use serde_json::{Value, json};

use crate::bed::{Bed, PATIENCE, namespace};

const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";
const MADE: [&str; 5] = [
    "serviceaccount",
    "service",
    "deployment",
    "horizontalpodautoscaler",
    "poddisruptionbudget",
];

fn gateway(namespace: &str, annotations: Value) -> Value {
    json!({
        "apiVersion": GATEWAY_API, "kind": "Gateway",
        "metadata": {"name": "wp", "namespace": namespace},
        "spec": {
            "gatewayClassName": "seine-waypoint",
            "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
            "infrastructure": {"labels": {"team": "shop"}, "annotations": annotations},
        },
    })
}

fn service(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    })
}

fn route(backend: &str) -> Value {
    json!({
        "apiVersion": GATEWAY_API, "kind": "HTTPRoute",
        "metadata": {"name": "web", "namespace": "routed"},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "web", "port": 80}],
            "rules": [{"backendRefs": [{"name": backend, "port": 80}]}],
        },
    })
}

/// The `status` and `reason` of a condition in a list of them.
fn said(conditions: &Value, kind: &str) -> String {
    let all = conditions.as_array().into_iter().flatten();
    let found = all.into_iter().find(|one| one["type"] == kind);
    let text = |field: &str| found.map_or("", |one| one[field].as_str().unwrap_or_default());
    format!("{} {}", text("status"), text("reason"))
}

fn await_said(bed: &Bed, object: &[&str], list: &str, kind: &str, expected: &str) -> Result<()> {
    within(
        PATIENCE,
        &format!("{kind} of {object:?} is {expected}"),
        || {
            let object = bed.cluster.get(object)?;
            let found = object.pointer(list).map(|list| said(list, kind));
            ensure!(found.as_deref() == Some(expected), "{}", object["status"]);
            Ok(Some(()))
        },
    )
}

fn versions(bed: &Bed, objects: &[&[&str]]) -> Result<Vec<String>> {
    let version = |object: &&[&str]| {
        let object = bed.cluster.get(object)?;
        let version = object["metadata"]["resourceVersion"].as_str();
        Ok(version.context("no resourceVersion")?.to_owned())
    };
    objects.iter().map(version).collect()
}

pub(crate) fn a_gateway_becomes_a_waypoint_and_is_told_so_with_its_routes(bed: &Bed) -> Result<()> {
    const NAME: &str = "routed";
    let replica = bed.ready_replica("waypoints-0")?;
    bed.cluster.apply(&[
        namespace(
            NAME,
            json!({
                "seine.dev/mesh": "enabled", "seine.dev/use-waypoint": "wp",
                "pod-security.kubernetes.io/enforce": "restricted",
            }),
        ),
        service(NAME, "web"),
        gateway(NAME, json!({"seine.dev/min-replicas": "2"})),
        route("web"),
    ])?;
    step("its objects");
    for kind in MADE {
        let object = within(PATIENCE, &format!("there is a {kind}"), || {
            bed.cluster.get(&["-n", NAME, kind, "wp"]).map(Some)
        })?;
        let metadata = &object["metadata"];
        ensure!(
            metadata["ownerReferences"][0]["kind"] == "Gateway"
                && metadata["labels"]["team"] == "shop",
            "{kind}: {metadata}"
        );
    }
    let autoscaler = bed.cluster.get(&["-n", NAME, "hpa", "wp"])?;
    ensure!(autoscaler["spec"]["minReplicas"] == 2, "{autoscaler}");
    within(PATIENCE, "the namespace has the roots", || {
        bed.cluster
            .get(&["-n", NAME, "configmap", "seine-ca-root"])
            .map(Some)
    })?;

    step("its pod, which the strictest of the Pod Security Standards admits");
    let deployment = bed.cluster.get(&["-n", NAME, "deployment", "wp"])?;
    let mut pod = deployment["spec"]["template"].clone();
    pod["apiVersion"] = json!("v1");
    pod["kind"] = json!("Pod");
    pod["metadata"]["name"] = json!("wp-1");
    pod["metadata"]["namespace"] = json!(NAME);
    // What runs pods would put it here; nothing does.
    bed.cluster.apply(&[pod])?;

    step("what is said of them");
    let class = ["gatewayclass", "seine-waypoint"];
    let own = ["-n", NAME, "gateway", "wp"];
    let web = ["-n", NAME, "httproute", "web"];
    await_said(
        bed,
        &class,
        "/status/conditions",
        "Accepted",
        "True Accepted",
    )?;
    await_said(bed, &own, "/status/conditions", "Accepted", "True Accepted")?;
    await_said(
        bed,
        &own,
        "/status/conditions",
        "Programmed",
        "False Pending",
    )?;
    let ready = json!({"status": {"phase": "Running", "podIP": "10.9.9.9", "podIPs": [{"ip": "10.9.9.9"}],
        "conditions": [{"type": "Ready", "status": "True"}]}});
    let patch = ready.to_string();
    let words = [
        "-n",
        NAME,
        "patch",
        "pod",
        "wp-1",
        "--subresource=status",
        "-p",
        &patch,
    ];
    bed.cluster.kubectl(&words)?;
    await_said(
        bed,
        &own,
        "/status/conditions",
        "Programmed",
        "True Programmed",
    )?;
    await_said(
        bed,
        &own,
        "/status/listeners/0/conditions",
        "Programmed",
        "True Programmed",
    )?;
    let address = bed.cluster.get(&["-n", NAME, "service", "wp"])?;
    let told = bed.cluster.get(&own)?;
    ensure!(
        told["status"]["addresses"][0]["value"] == address["spec"]["clusterIP"],
        "{}",
        told["status"]
    );
    let parent = "/status/parents/0/conditions";
    await_said(bed, &web, parent, "Accepted", "True Accepted")?;
    await_said(bed, &web, parent, "ResolvedRefs", "True ResolvedRefs")?;
    bed.cluster.apply(&[route("nowhere")])?;
    await_said(bed, &web, parent, "ResolvedRefs", "False BackendNotFound")?;

    step("the Service is told of its waypoint, beside what others tell it");
    let service = ["-n", NAME, "service", "web"];
    let conditions = "/status/conditions";
    let theirs = r#"{"status": {"conditions": [{"type": "example.com/Other", "status": "True", "reason": "Theirs", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}"#;
    let words = [
        "-n",
        NAME,
        "patch",
        "service",
        "web",
        "--subresource=status",
        "-p",
        theirs,
    ];
    bed.cluster.kubectl(&words)?;
    let bound = |expected| {
        await_said(
            bed,
            &service,
            conditions,
            "seine.dev/WaypointBound",
            expected,
        )
    };
    bound("True Bound")?;
    let label = |value: &str| {
        let words = ["label", "--overwrite", "namespace", NAME, value];
        bed.cluster.kubectl(&words)
    };
    label("seine.dev/use-waypoint=nowhere")?;
    bound("False NoWaypoint")?;
    label("seine.dev/use-waypoint-")?;
    bound(" ")?;
    await_said(
        bed,
        &service,
        conditions,
        "example.com/Other",
        "True Theirs",
    )?;
    label("seine.dev/use-waypoint=wp")?;
    bound("True Bound")?;
    await_said(bed, &web, parent, "ResolvedRefs", "False BackendNotFound")?;

    step("changes elsewhere, and a new replica: nothing is written");
    let all: Vec<Vec<&str>> = MADE
        .iter()
        .map(|kind| vec!["-n", NAME, *kind, "wp"])
        .collect();
    let mut all: Vec<&[&str]> = all.iter().map(Vec::as_slice).collect();
    all.extend([&class[..], &own, &web, &service]);
    let before = versions(bed, &all)?;
    replica.kill()?;
    let _replica = bed.ready_replica("waypoints-1")?;
    // It has come round to writing when it has written something else.
    bed.cluster.apply(&[
        namespace("routed-too", json!({})),
        gateway("routed-too", json!({})),
    ])?;
    let other = ["-n", "routed-too", "gateway", "wp"];
    await_said(
        bed,
        &other,
        "/status/conditions",
        "Accepted",
        "True Accepted",
    )?;
    std::thread::sleep(Duration::from_secs(3));
    ensure!(
        before == versions(bed, &all)?,
        "written though nothing changed"
    );

    step("what somebody changes is put right");
    let patch = r#"{"spec": {"template": {"spec": {"serviceAccountName": "default"}}}}"#;
    bed.cluster
        .kubectl(&["-n", NAME, "patch", "deployment", "wp", "-p", patch])?;
    bed.cluster
        .kubectl(&["-n", NAME, "delete", "poddisruptionbudget", "wp"])?;
    within(PATIENCE, "account and budget are as they were", || {
        let deployment = bed.cluster.get(&["-n", NAME, "deployment", "wp"])?;
        let account = &deployment["spec"]["template"]["spec"]["serviceAccountName"];
        bed.cluster
            .get(&["-n", NAME, "poddisruptionbudget", "wp"])?;
        Ok((account == "wp").then_some(()))
    })?;
    bed.cluster
        .kubectl(&["delete", "namespace", NAME, "routed-too", "--wait=false"])?;
    Ok(())
}

pub(crate) fn an_object_that_is_not_the_gateways_is_not_taken_over(bed: &Bed) -> Result<()> {
    const NAME: &str = "occupied";
    let _replica = bed.ready_replica("waypoints-2")?;
    bed.cluster
        .apply(&[namespace(NAME, json!({})), service(NAME, "wp")])?;
    let before = versions(bed, &[&["-n", NAME, "service", "wp"]])?;
    bed.cluster.apply(&[gateway(NAME, json!({}))])?;
    let own = ["-n", NAME, "gateway", "wp"];
    await_said(
        bed,
        &own,
        "/status/conditions",
        "Programmed",
        "False NoResources",
    )?;
    ensure!(
        before == versions(bed, &[&["-n", NAME, "service", "wp"]])?,
        "somebody else's Service was written"
    );
    let account = ["-n", NAME, "get", "serviceaccount", "wp"];
    ensure!(
        bed.cluster.try_kubectl(&account)?.code != 0,
        "half a waypoint was made"
    );

    bed.cluster
        .kubectl(&["-n", NAME, "delete", "service", "wp"])?;
    await_said(
        bed,
        &own,
        "/status/conditions",
        "Programmed",
        "False Pending",
    )?;
    bed.cluster
        .kubectl(&["delete", "namespace", NAME, "--wait=false"])
        .map(drop)
}
