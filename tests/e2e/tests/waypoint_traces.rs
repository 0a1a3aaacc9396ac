//! What a collector is told of requests through a waypoint, and what backends are told of traces.

#![allow(missing_docs, reason = "the names of tests say what they are about")]

use std::collections::HashMap;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use seine_e2e::manifests::{Pod, meshed_namespace, plain_namespace, service};
use seine_e2e::peer::report::Called;
use seine_e2e::{Bed, trials, until};
use seine_lab::Options;
use seine_lab::protocol::PodStatus;
use serde_json::json;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

fn main() -> ExitCode {
    seine_e2e::trial::main(
        up,
        trials![
            a_trace_spans_the_client_each_attempt_and_the_backend,
            each_form_of_context_is_continued_and_who_began_decides_what_is_exported,
            requests_are_counted_by_the_names_of_opentelemetry_and_of_istio,
            a_call_of_grpc_is_known_by_its_own_status_however_it_ended,
        ],
    )
}

fn up() -> Result<Bed> {
    let mut options = Options::new("e2e-waypoint-traces");
    let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    options.environment = vec![
        set(
            "SEINE_OTLP_ENDPOINT",
            "http://collector.plain.svc.cluster.local:4317",
        ),
        // Of requests without a trace none.
        set("SEINE_TRACE_SAMPLING", "0"),
        set("SEINE_METRIC_NAMES", "both"),
    ];
    let mut web = service("mesh", "web", "web", &[("http", 80, 8080)]);
    web["metadata"]["labels"] = json!({"seine.dev/use-waypoint": "wp"});
    let mut rpc = service("mesh", "rpc", "web", &[("grpc", 81, 9090)]);
    rpc["metadata"]["labels"] = json!({"seine.dev/use-waypoint": "wp"});
    Bed::with(
        options,
        &[
            meshed_namespace("mesh"),
            plain_namespace("plain"),
            Pod::new("plain", "collector", 1)
                .serves(&["collect:4317"])
                .object(),
            service("plain", "collector", "collector", &[("grpc", 4317, 4317)]),
            json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
                "metadata": {"name": "wp", "namespace": "mesh"},
                "spec": {"gatewayClassName": "seine-waypoint", "listeners": [
                    {"name": "mesh", "port": 15008, "protocol": "HBONE"},
                ]},
            }),
            Pod::new("mesh", "client", 1).object(),
            Pod::new("mesh", "web", 2)
                .serves(&["mirror:8080", "rpc:9090"])
                .object(),
            web,
            rpc,
            json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
                "metadata": {"name": "web", "namespace": "mesh"},
                "spec": {
                    "parentRefs": [{"group": "", "kind": "Service", "name": "web"}],
                    "rules": [{
                        "backendRefs": [{"name": "web", "port": 80}],
                        "retry": {"codes": [503], "attempts": 1, "backoff": "1ms"},
                    }],
                },
            }),
        ],
    )
}

/// Asks for a path and returns the headers that the backend has seen.
fn seen(bed: &Bed, path: &str, headers: &str) -> Result<HashMap<String, String>> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: web\r\nconnection: close\r\n{headers}\r\n");
    let answer = bed.ask("mesh/client", "web", 80, &request)?.received;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let body = answer.split_once("\r\n\r\n").context("no body")?.1;
    let pairs = body.lines().filter_map(|line| line.split_once(": "));
    Ok(pairs
        .map(|(name, value)| (name.to_lowercase(), value.trim().to_owned()))
        .collect())
}

/// The spans of a trace that the collector has printed.
fn spans(bed: &Bed, trace: &str) -> Result<Vec<HashMap<String, String>>> {
    let log = bed.lab().pod_logs("plain", "collector")?;
    let of_trace = format!(" trace={trace} ");
    let lines = log.lines().filter(|line| line.contains(&of_trace));
    let pairs = |line: &str| {
        let pairs = line.split(' ').filter_map(|pair| pair.split_once('='));
        pairs
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    };
    Ok(lines.map(pairs).collect())
}

fn a_trace_spans_the_client_each_attempt_and_the_backend(bed: &Bed) -> Result<()> {
    let headers =
        format!("traceparent: 00-{TRACE}-{SPAN}-01\r\ntracestate: a=b\r\nx-fail-first: t\r\n");
    let seen = seen(bed, "/a", &headers)?;
    let found = until("three spans are there", || {
        let found = spans(bed, TRACE)?;
        Ok((found.len() >= 3).then_some(found))
    })?;
    let get =
        |span: &HashMap<String, String>, key: &str| span.get(key).cloned().unwrap_or_default();
    let kind = |kind: &str| {
        let named = found.iter().filter(|span| get(span, "kind") == kind);
        named.collect::<Vec<_>>()
    };
    let servers = kind("SPAN_KIND_SERVER");
    let mut attempts = kind("SPAN_KIND_CLIENT");
    ensure!((servers.len(), attempts.len()) == (1, 2), "{found:#?}");
    attempts.sort_by_key(|span| get(span, "http.request.resend_count"));
    let server = servers[0];
    for (span, key, value) in [
        (server, "parent", SPAN),
        (server, "http.request.method", "GET"),
        (server, "http.response.status_code", "200"),
        (server, "url.path", "/a"),
        (server, "server.address", "web"),
        (server, "server.port", "80"),
        (server, "network.protocol.version", "1.1"),
        (server, "seine.route", "HTTPRoute/mesh/web/0"),
        (server, "seine.retries", "1"),
        (attempts[0], "http.response.status_code", "503"),
        (attempts[0], "error.type", "503"),
        (attempts[1], "http.response.status_code", "200"),
        (attempts[1], "http.request.resend_count", "1"),
        (attempts[1], "network.peer.port", "8080"),
    ] {
        ensure!(get(span, key) == value, "{key}: {span:#?}");
    }
    for attempt in &attempts {
        ensure!(get(attempt, "parent") == get(server, "id"), "{found:#?}");
    }
    // The backend goes on from the attempt that reached it.
    let expected = format!("00-{TRACE}-{}-01", get(attempts[1], "id"));
    ensure!(seen["traceparent"] == expected, "{seen:?} {found:#?}");
    ensure!(seen["tracestate"] == "a=b", "{seen:?}");
    Ok(())
}

fn each_form_of_context_is_continued_and_who_began_decides_what_is_exported(
    bed: &Bed,
) -> Result<()> {
    let trace = |digit: char| TRACE.replace('0', &digit.to_string());
    let (one, several, not) = (trace('1'), trace('2'), trace('3'));
    let passed = seen(
        bed,
        "/b",
        &format!("b3: {one}-{SPAN}-1\r\ntracestate: a=b\r\n"),
    )?;
    let parent = passed["traceparent"]
        .split('-')
        .nth(2)
        .context("no span")?
        .to_owned();
    ensure!(
        passed["traceparent"] == format!("00-{one}-{parent}-01"),
        "{passed:?}"
    );
    ensure!(passed["b3"] == format!("{one}-{parent}-1"), "{passed:?}");
    ensure!(!passed.contains_key("tracestate"), "{passed:?}");

    let headers = format!(
        "x-b3-traceid: {several}\r\nx-b3-spanid: {SPAN}\r\nx-b3-parentspanid: {SPAN}\r\nx-b3-sampled: 1\r\n"
    );
    let passed = seen(bed, "/c", &headers)?;
    ensure!(passed["x-b3-traceid"] == several, "{passed:?}");
    ensure!(passed["x-b3-spanid"] != SPAN, "{passed:?}");
    ensure!(!passed.contains_key("x-b3-parentspanid"), "{passed:?}");

    let passed = seen(bed, "/d", &format!("traceparent: 00-{not}-{SPAN}-00\r\n"))?;
    ensure!(
        passed["traceparent"].starts_with(&format!("00-{not}-")),
        "{passed:?}"
    );
    ensure!(passed["traceparent"].ends_with("-00"), "{passed:?}");
    let passed = seen(bed, "/e", "")?;
    ensure!(passed["traceparent"].ends_with("-00"), "{passed:?}");
    let new = passed["traceparent"]
        .split('-')
        .nth(1)
        .context("no trace")?
        .to_owned();

    // What comes after them is there, so they would be.
    let last = trace('4');
    seen(bed, "/f", &format!("traceparent: 00-{last}-{SPAN}-01\r\n"))?;
    until("the last trace is there", || {
        Ok((spans(bed, &last)?.len() >= 2).then_some(()))
    })?;
    for (trace, exported) in [(&one, true), (&several, true), (&not, false), (&new, false)] {
        let found = spans(bed, trace)?;
        let server = found.iter().any(|span| span["kind"] == "SPAN_KIND_SERVER");
        ensure!(server == exported, "{trace}: {found:#?}");
    }
    Ok(())
}

fn requests_are_counted_by_the_names_of_opentelemetry_and_of_istio(bed: &Bed) -> Result<()> {
    seen(bed, "/counted", "")?;
    let own = [
        "http_server_request_duration_seconds_count{",
        "http_request_method=\"GET\"",
        "http_response_status_code=\"200\"",
        "http_route=\"HTTPRoute/mesh/web/0\"",
        "server_address=\"web.mesh.svc.cluster.local\"",
        "seine_backend=\"web.mesh.svc.cluster.local:80\"",
    ];
    let istio = [
        "istio_requests_total{",
        "reporter=\"waypoint\"",
        "source_principal=\"spiffe://cluster.local/ns/mesh/sa/client\"",
        "destination_workload=\"web\"",
        "destination_service_name=\"web\"",
        "response_code=\"200\"",
        "connection_security_policy=\"mutual_tls\"",
    ];
    await_metrics(bed, &[&own, &istio])
}

/// Waits until the waypoint's metrics have lines with all of these each.
fn await_metrics(bed: &Bed, wanted: &[&[&str]]) -> Result<()> {
    let waypoint = waypoint(bed)?;
    let page = format!("{}:15020", waypoint.ip);
    let peer = seine_e2e::bed::peer_program().display().to_string();
    until(&format!("there are metrics {wanted:?}"), || {
        let get = [&*peer, "get", &page, "/metrics"];
        let body = bed.lab().exec("plain", "collector", &get)?.stdout;
        let counted = |parts: &&[&str]| {
            let mut lines = body.lines();
            lines.any(|line| parts.iter().all(|part| line.contains(part)))
        };
        Ok(wanted.iter().all(counted).then_some(()))
    })
}

fn waypoint(bed: &Bed) -> Result<PodStatus> {
    let pods = bed.lab().status()?.pods;
    let mut pods = pods.into_iter();
    let found = pods.find(|pod| pod.name.starts_with("wp-"));
    found.context("there is no waypoint")
}

fn a_call_of_grpc_is_known_by_its_own_status_however_it_ended(bed: &Bed) -> Result<()> {
    let waypoint = waypoint(bed)?;
    let trace = TRACE.replace('0', "5");
    for (method, status, logged) in [
        ("Ok", Some(0), "grpc_status=0 response_flags=-"),
        ("NotFound", Some(5), "grpc_status=5 response_flags=-"),
        // Without a body, in the head.
        ("Only", Some(3), "grpc_status=3 response_flags=-"),
        // Without trailers.
        ("Silent", None, "grpc_status=2 response_flags=-"),
        (
            "Reset",
            None,
            "grpc_status=8 response_flags=UPSTREAM fault=upstream",
        ),
        (
            "Gone",
            None,
            "grpc_status=14 response_flags=UPSTREAM fault=upstream",
        ),
        (
            "Endless",
            None,
            "grpc_status=1 response_flags=INCOMPLETE fault=downstream",
        ),
    ] {
        let path = format!("/a.B/{method}");
        let context = format!("00-{trace}-{SPAN}-01");
        let mut call = vec!["call", "rpc", "81", &path, "--trace", &context];
        call.extend((method == "Endless").then_some("--leave"));
        let called: Called = bed.peer("mesh/client", &call)?;
        ensure!(called.status == status, "{method}: {called:?}");
        let parts: Vec<&str> = logged.split(' ').collect();
        let path = format!("path={path} ");
        until(&format!("{path} is logged with {logged}"), || {
            let log = bed.lab().pod_logs("mesh", &waypoint.name)?;
            let mut lines = log.lines().filter(|line| line.contains(&path));
            Ok(lines
                .any(|line| parts.iter().all(|part| line.contains(part)))
                .then_some(()))
        })?;
    }
    let counted = "rpc_server_call_duration_seconds_count{";
    let ok = [
        counted,
        "rpc_system_name=\"grpc\"",
        "rpc_method=\"a.B/Ok\"",
        "rpc_response_status_code=\"OK\"",
    ];
    // A client doesn't decide which names there are.
    let other = [
        counted,
        "rpc_method=\"_OTHER\"",
        "rpc_response_status_code=\"NOT_FOUND\"",
    ];
    let gone = [
        counted,
        "rpc_response_status_code=\"UNAVAILABLE\"",
        "error_type=\"UNAVAILABLE\"",
    ];
    let istio = [
        "istio_requests_total{",
        "response_code=\"200\"",
        "grpc_response_status=\"5\"",
    ];
    await_metrics(bed, &[&ok, &other, &gone, &istio])?;
    until("spans of both kinds say how the call ended", || {
        let found = spans(bed, &trace)?;
        let has = |kind: &str| {
            let mut of_kind = found.iter().filter(|span| span["kind"] == kind);
            of_kind.any(|span| {
                let is = |key: &str, value: &str| span.get(key).is_some_and(|found| found == value);
                is("rpc.method", "a.B/NotFound") && is("rpc.response.status_code", "NOT_FOUND")
            })
        };
        Ok((has("SPAN_KIND_SERVER") && has("SPAN_KIND_CLIENT")).then_some(()))
    })
}
