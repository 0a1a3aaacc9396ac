//! Which waypoint a service is bound to: one of another namespace, and two by weight.

#![allow(missing_docs, reason = "the names of tests say what they are about")]

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use seine_e2e::manifests::{Pod, meshed_namespace, plain_namespace, service};
use seine_e2e::peer::report::{Asked, Loaded};
use seine_e2e::{Bed, trials, until};
use seine_lab::protocol::Component;
use serde_json::{Value, json};

const PORTS: [(&str, u16, u16); 2] = [("http", 80, 8080), ("tcp", 90, 9000)];
/// So many connections tell apart none, about half and all.
const CONNECTIONS: usize = 60;
const SOME: usize = 8;

fn main() -> ExitCode {
    seine_e2e::trial::main(
        up,
        trials![
            a_waypoint_of_another_namespace_takes_what_its_listener_admits,
            one_that_does_not_admit_the_namespace_is_reached_by_nobody_and_says_so,
            connections_are_shared_between_two_waypoints_by_weight,
            the_old_waypoint_goes_under_load_and_no_connection_is_lost,
        ],
    )
}

fn up() -> Result<Bed> {
    let server = |name: &str, node: u8| {
        Pod::new("mesh", name, node)
            .serves(&["mirror:8080", "echo:9000"])
            .object()
    };
    let infra = [("seine.dev/use-waypoint-namespace", "infra")];
    Bed::up(
        "e2e-binding",
        &[
            meshed_namespace("mesh"),
            plain_namespace("infra"),
            gateway("infra", "shared", "All"),
            gateway("infra", "closed", "Same"),
            gateway("mesh", "old", "Same"),
            gateway("mesh", "new", "Same"),
            Pod::new("mesh", "client", 1).object(),
            server("remote", 2),
            server("refused", 2),
            server("web", 2),
            bound("remote", "shared", &infra),
            bound("refused", "closed", &infra),
            bound("web", "old", &[]),
            json!({
                "apiVersion": "policy.seine.dev/v1alpha1", "kind": "AuthorizationPolicy",
                "metadata": {"name": "no-admin", "namespace": "mesh"},
                "spec": {
                    "action": "Deny",
                    "targetRefs": [{"kind": "Service", "name": "remote"}],
                    "rules": [{"to": [{"paths": ["/admin*"]}]}],
                },
            }),
        ],
    )
}

fn gateway(namespace: &str, name: &str, from: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"gatewayClassName": "seine-waypoint", "listeners": [{
            "name": "mesh", "port": 15008, "protocol": "HBONE",
            "allowedRoutes": {"namespaces": {"from": from}},
        }]},
    })
}

/// The service of the pod of that name, with its waypoint and further labels.
fn bound(name: &str, waypoint: &str, labels: &[(&str, &str)]) -> Value {
    let mut service = service("mesh", name, name, &PORTS);
    service["metadata"]["labels"] = json!({"seine.dev/use-waypoint": waypoint});
    for (label, value) in labels {
        service["metadata"]["labels"][*label] = json!(value);
    }
    service
}

fn canary(percent: &str) -> Value {
    let labels = [
        ("seine.dev/canary-waypoint", "new"),
        ("seine.dev/canary-percent", percent),
    ];
    bound("web", "old", &labels)
}

fn get(bed: &Bed, host: &str, port: u16, path: &str) -> Result<Asked> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    bed.ask("mesh/client", host, port, &request)
}

fn answered(bed: &Bed, host: &str, path: &str, status: &str) -> Result<()> {
    let asked = get(bed, host, 80, path)?;
    let begins = format!("HTTP/1.1 {status}");
    ensure!(
        asked.received.starts_with(&begins),
        "{host}{path}: {asked:?}"
    );
    Ok(())
}

fn pod_of(bed: &Bed, waypoint: &str) -> Result<Option<(String, String)>> {
    let pods = bed.lab().status()?.pods.into_iter();
    let prefix = format!("{waypoint}-");
    let mut found = pods.filter(|pod| pod.name.starts_with(&prefix));
    Ok(found.next().map(|pod| (pod.namespace, pod.name)))
}

/// How many requests of a path a waypoint has logged.
fn logged(bed: &Bed, waypoint: &str, path: &str) -> Result<usize> {
    let Some((namespace, pod)) = pod_of(bed, waypoint)? else {
        return Ok(0);
    };
    let needle = format!("path={path} ");
    let log = bed.lab().pod_logs(&namespace, &pod)?;
    Ok(log.lines().filter(|line| line.contains(&needle)).count())
}

/// Nobody reaches the pod past its waypoint.
fn only_by_its_waypoint(bed: &Bed, pod: &str) -> Result<()> {
    let (address, _) = bed.pod_ips(&format!("mesh/{pod}"))?;
    let asked = get(bed, &address.to_string(), 8080, "/past")?;
    ensure!(
        asked.received.is_empty() && asked.failure.is_some(),
        "{asked:?}"
    );
    Ok(())
}

fn a_waypoint_of_another_namespace_takes_what_its_listener_admits(bed: &Bed) -> Result<()> {
    answered(bed, "remote", "/elsewhere", "200")?;
    answered(bed, "remote", "/admin", "403")?;
    until("the waypoint of the other namespace logs it", || {
        Ok((logged(bed, "shared", "/elsewhere")? == 1).then_some(()))
    })?;
    only_by_its_waypoint(bed, "remote")
}

fn one_that_does_not_admit_the_namespace_is_reached_by_nobody_and_says_so(bed: &Bed) -> Result<()> {
    let asked = get(bed, "refused", 80, "/a")?;
    ensure!(
        asked.received.is_empty() && asked.failure.is_some(),
        "{asked:?}"
    );
    bed.await_ztunnel(1, &["closed.infra.not-allowed.invalid", "NO_ENDPOINT"])?;
    only_by_its_waypoint(bed, "refused")?;
    let status: Value =
        serde_json::from_str(&bed.page(Component::Control, None, 15014, "/status")?)?;
    let status = status.to_string();
    ensure!(status.contains("NotAllowedByListeners"), "{status}");

    bed.apply(&[gateway("infra", "closed", "All")])?;
    until("the service is reached", || {
        let asked = get(bed, "refused", 80, "/a")?;
        Ok(asked.received.starts_with("HTTP/1.1 200").then_some(()))
    })
}

fn connections_are_shared_between_two_waypoints_by_weight(bed: &Bed) -> Result<()> {
    for (percent, path, old, new) in [
        ("50", "/half", true, true),
        ("0", "/none", true, false),
        ("many", "/unreadable", true, false),
        ("100", "/all", false, true),
    ] {
        bed.apply(&[canary(percent)])?;
        until("the share is what it was set to", || {
            let dump = bed.ztunnel_admin(1, "/config_dump")?;
            let dump: Value = serde_json::from_str(&dump)?;
            let wanted: u8 = percent.parse().unwrap_or(0);
            let services = dump["services"].as_array().context("no services")?;
            let mut services = services.iter();
            let web = services.find(|one| one["hostname"] == "web.mesh.svc.cluster.local");
            let weights = &web.context("no service")?["weightedWaypoints"];
            let is = |index: usize, weight: u8| weights[index][1] == weight;
            Ok((is(0, 100 - wanted) && is(1, wanted)).then_some(()))
        })?;
        for _ in 0..CONNECTIONS {
            answered(bed, "web", path, "200")?;
        }
        let counted = until("every request is logged", || {
            let counted = (logged(bed, "old", path)?, logged(bed, "new", path)?);
            Ok((counted.0 + counted.1 == CONNECTIONS).then_some(counted))
        })?;
        let is = |count: usize, some: bool| if some { count >= SOME } else { count == 0 };
        ensure!(
            is(counted.0, old) && is(counted.1, new),
            "{percent}: {counted:?}"
        );
        only_by_its_waypoint(bed, "web")?;
    }
    Ok(())
}

fn the_old_waypoint_goes_under_load_and_no_connection_is_lost(bed: &Bed) -> Result<()> {
    let none = get(bed, "web", 80, "/a")?;
    ensure!(none.received.starts_with("HTTP/1.1 200"), "{none:?}");
    bed.apply(&[canary("50")])?;
    let load = [
        "load",
        "web",
        "--port",
        "90",
        "--workers",
        "4",
        "--pause",
        "20",
    ];
    let load = bed.start("mesh/client", &load)?;
    answered(bed, "web", "/before", "200")?;
    bed.apply(&[canary("100")])?;
    for _ in 0..CONNECTIONS {
        answered(bed, "web", "/shifted", "200")?;
    }
    bed.delete("mesh", "gateway/old")?;
    until("the old waypoint is gone", || {
        answered(bed, "web", "/going", "200")?;
        Ok(pod_of(bed, "old")?.is_none().then_some(()))
    })?;
    // Whatever its labels still say, the one that is there gets everything.
    bed.apply(&[canary("10")])?;
    answered(bed, "web", "/gone", "200")?;
    bed.apply(&[bound("web", "new", &[])])?;
    for _ in 0..SOME {
        answered(bed, "web", "/after", "200")?;
    }
    let loaded: Loaded = load.finish()?;
    ensure!(
        loaded.failed.is_empty() && loaded.connections > 100,
        "{loaded:?}"
    );
    only_by_its_waypoint(bed, "web")
}
