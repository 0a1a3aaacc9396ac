//! A service behind a waypoint: routes, policy, and no way around it.

#![allow(missing_docs, reason = "the names of tests say what they are about")]

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use seine_e2e::manifests::{Pod, meshed_namespace, plain_namespace, service};
use seine_e2e::peer::report::Asked;
use seine_e2e::{Bed, trials, until};
use serde_json::{Value, json};

const PORTS: [(&str, u16, u16); 1] = [("http", 80, 8080)];
const SERVER: [&str; 1] = ["mirror:8080"];

fn main() -> ExitCode {
    seine_e2e::trial::main(
        up,
        trials![
            a_header_decides_which_version_answers_and_the_application_sees_its_client,
            a_path_is_denied_by_policy_in_whatever_way_it_is_written_and_the_log_names_the_policy,
            identities_and_hop_by_hop_headers_of_a_client_go_no_further,
            nobody_reaches_the_pods_of_a_bound_service_past_its_waypoint,
            a_waypoint_for_all_takes_requests_to_pods_under_policy_and_without_routes,
            without_its_waypoint_a_service_is_reached_by_nobody,
        ],
    )
}

fn up() -> Result<Bed> {
    let server = |name: &str, node: u8| {
        Pod::new("mesh", name, node)
            .label("of", "web")
            .serves(&SERVER)
            .object()
    };
    let mut web = service("mesh", "web", "", &PORTS);
    web["metadata"]["labels"] = json!({"seine.dev/use-waypoint": "wp"});
    web["spec"]["selector"] = json!({"of": "web"});
    let mut open = service("mesh", "open", "open", &PORTS);
    open["metadata"]["labels"] = json!({"seine.dev/use-waypoint": "wp-all"});
    Bed::up(
        "e2e-waypoint",
        &[
            meshed_namespace("mesh"),
            plain_namespace("plain"),
            gateway("wp", json!({})),
            gateway("wp-all", json!({"seine.dev/waypoint-for": "all"})),
            Pod::new("mesh", "client", 1).object(),
            Pod::new("mesh", "other", 2).object(),
            Pod::new("plain", "client", 1).object(),
            server("v1", 1),
            server("v2", 2),
            Pod::new("mesh", "open", 2)
                .serves(&["mirror:8080", "mirror:9090"])
                .object(),
            web,
            open,
            service("mesh", "v1", "v1", &PORTS),
            service("mesh", "v2", "v2", &PORTS),
            route(),
            route_of_open(),
            policy("no-admin", "web"),
            policy("no-admin-here", "open"),
        ],
    )
}

fn gateway(name: &str, labels: Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": name, "namespace": "mesh", "labels": labels},
        "spec": {"gatewayClassName": "seine-waypoint", "listeners": [
            {"name": "mesh", "port": 15008, "protocol": "HBONE"},
        ]},
    })
}

fn route() -> Value {
    let to = |name: &str| json!([{"name": name, "port": 80}]);
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "web", "namespace": "mesh"},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "web"}],
            "rules": [
                {"matches": [{"headers": [{"name": "x-version", "value": "2"}]}], "backendRefs": to("v2")},
                {"backendRefs": to("v1")},
            ],
        },
    })
}

fn route_of_open() -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "open", "namespace": "mesh"},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "open"}],
            "rules": [{
                "filters": [{"type": "ResponseHeaderModifier", "responseHeaderModifier": {
                    "set": [{"name": "x-by-route", "value": "yes"}],
                }}],
                "backendRefs": [{"name": "open", "port": 80}],
            }],
        },
    })
}

fn policy(name: &str, service: &str) -> Value {
    json!({
        "apiVersion": "policy.seine.dev/v1alpha1", "kind": "AuthorizationPolicy",
        "metadata": {"name": name, "namespace": "mesh"},
        "spec": {
            "action": "Deny",
            "targetRefs": [{"kind": "Service", "name": service}],
            "rules": [{"to": [{"paths": ["/admin*"]}]}],
        },
    })
}

/// Sends a request with these headers and returns all of the answer.
fn get(bed: &Bed, from: &str, host: &str, port: u16, path: &str, headers: &str) -> Result<Asked> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: web\r\nconnection: close\r\n{headers}\r\n");
    bed.ask(from, host, port, &request)
}

/// The same to the service, whose answer must begin so.
fn web(bed: &Bed, path: &str, headers: &str, status: &str) -> Result<String> {
    let asked = get(bed, "mesh/client", "web", 80, path, headers)?;
    let begins = format!("HTTP/1.1 {status}");
    ensure!(
        asked.received.starts_with(&begins),
        "{path} {headers:?}: {asked:?}"
    );
    Ok(asked.received)
}

fn waypoint_pod(bed: &Bed) -> Result<Option<String>> {
    let pods = bed.lab().status()?.pods;
    let found = pods
        .into_iter()
        .find(|pod| pod.name.starts_with("wp-") && !pod.name.starts_with("wp-all"));
    Ok(found.map(|pod| pod.name))
}

fn await_waypoint(bed: &Bed, needles: &[&str]) -> Result<String> {
    until(&format!("the waypoint logs {needles:?}"), || {
        let pod = waypoint_pod(bed)?.context("there is no waypoint")?;
        let log = bed.lab().pod_logs("mesh", &pod)?;
        let mut lines = log.lines();
        Ok(lines
            .find(|line| needles.iter().all(|n| line.contains(n)))
            .map(str::to_owned))
    })
}

fn a_header_decides_which_version_answers_and_the_application_sees_its_client(
    bed: &Bed,
) -> Result<()> {
    let (four, six) = bed.pod_ips("mesh/client")?;
    for (headers, version) in [
        ("", "v1"),
        ("x-version: 1\r\n", "v1"),
        ("X-Version: 2\r\n", "v2"),
    ] {
        let answer = web(bed, "/a", headers, "200")?;
        // The application sees the first client's address.
        let seen = [four.to_string(), six.to_string()]
            .map(|client| answer.contains(&format!("pod {version} client {client}\n")));
        ensure!(seen.contains(&true), "{headers:?}: {answer}");
    }
    await_waypoint(
        bed,
        &[
            "path=/a",
            "route=HTTPRoute/mesh/web/0",
            "status=200",
            "sa/client",
        ],
    )?;
    Ok(())
}

fn a_path_is_denied_by_policy_in_whatever_way_it_is_written_and_the_log_names_the_policy(
    bed: &Bed,
) -> Result<()> {
    web(bed, "/a/dmin", "", "200")?;
    for path in [
        "/admin",
        "/admin/x?y",
        "//admin",
        "/%61dmin",
        "/a/../admin",
        "/./admin",
    ] {
        web(bed, path, "", "403")?;
    }
    web(bed, "/a%2f..%2fadmin", "", "400")?;
    await_waypoint(
        bed,
        &[
            "path=/admin",
            "status=403",
            "policy=mesh/no-admin_at_web",
            "response_flags=DENY",
        ],
    )?;
    Ok(())
}

fn identities_and_hop_by_hop_headers_of_a_client_go_no_further(bed: &Bed) -> Result<()> {
    let headers = "x-own: stays\r\nx-seine-first-client: spiffe://a/ns/b/sa/c\r\nx-forwarded-client-cert: d\r\nkeep-alive: 1\r\n";
    let answer = web(bed, "/a", headers, "200")?.to_lowercase();
    ensure!(answer.contains("x-own: stays"), "{answer}");
    for gone in ["x-seine", "client-cert", "keep-alive"] {
        ensure!(!answer.contains(gone), "{gone}: {answer}");
    }
    Ok(())
}

fn nobody_reaches_the_pods_of_a_bound_service_past_its_waypoint(bed: &Bed) -> Result<()> {
    let (v1, _) = bed.pod_ips("mesh/v1")?;
    let past = |from: &str, host: &str, port: u16| -> Result<()> {
        let asked = get(bed, from, host, port, "/past", "")?;
        ensure!(
            asked.received.is_empty() && asked.failure.is_some(),
            "{from} to {host}: {asked:?}"
        );
        Ok(())
    };
    past("mesh/other", &v1.to_string(), 8080)?;
    past("plain/client", &v1.to_string(), 8080)?;
    // The service of the version itself is not bound, and its pod's port is.
    past("mesh/other", "v1", 80)?;
    bed.await_ztunnel(1, &["sa/other", "port 8080 is bound to a waypoint"])?;
    web(bed, "/past", "", "200")?;
    Ok(())
}

fn a_waypoint_for_all_takes_requests_to_pods_under_policy_and_without_routes(
    bed: &Bed,
) -> Result<()> {
    let pod = bed.pod_ips("mesh/open")?.0.to_string();
    let answered = |host: &str, port: u16, path: &str, status: &str| -> Result<String> {
        let asked = get(bed, "mesh/client", host, port, path, "")?;
        let begins = format!("HTTP/1.1 {status}");
        ensure!(
            asked.received.starts_with(&begins),
            "{host} {path}: {asked:?}"
        );
        Ok(asked.received)
    };
    ensure!(answered("open", 80, "/a", "200")?.contains("x-by-route: yes"));
    ensure!(!answered(&pod, 8080, "/a", "200")?.contains("x-by-route"));
    answered("open", 80, "/admin", "403")?;
    answered(&pod, 8080, "/admin", "403")?;
    // No service leads to this port, so it is not bound, and its waypoint is not asked.
    answered(&pod, 9090, "/admin", "200")?;
    let asked = get(bed, "plain/client", &pod, 8080, "/a", "")?;
    ensure!(
        asked.received.is_empty() && asked.failure.is_some(),
        "{asked:?}"
    );
    bed.await_ztunnel(
        1,
        &["direction=outbound", "waypoint", &format!("{pod}:8080")],
    )?;
    Ok(())
}

fn without_its_waypoint_a_service_is_reached_by_nobody(bed: &Bed) -> Result<()> {
    bed.delete("mesh", "gateway/wp")?;
    until("the waypoint is gone", || {
        Ok(waypoint_pod(bed)?.is_none().then_some(()))
    })?;
    // Of what the waypoint had asked there; a connection is logged at its end.
    let first = "on_behalf_of=spiffe://cluster.local/ns/mesh/sa/client";
    bed.await_ztunnel(2, &["direction=inbound", "sa/wp", first])?;
    until("the service is reached by nobody", || {
        let asked = get(bed, "mesh/client", "web", 80, "/a", "")?;
        Ok(asked.received.is_empty().then_some(()))
    })?;
    bed.await_ztunnel(
        1,
        &[
            "direction=outbound",
            "waypoint",
            "web.mesh.svc.cluster.local",
            "response_flags=NO_ENDPOINT",
        ],
    )?;
    bed.apply(&[gateway("wp", json!({}))])?;
    until("the service is reached again", || {
        let asked = get(bed, "mesh/client", "web", 80, "/a", "")?;
        Ok(asked.received.starts_with("HTTP/1.1 200").then_some(()))
    })
}
