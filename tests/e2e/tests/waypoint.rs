//! A service behind a waypoint: routes, policy, and no way around it.

#![allow(missing_docs, reason = "the names of tests say what they are about")]

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use seine_e2e::manifests::{Pod, meshed_namespace, plain_namespace, service};
use seine_e2e::peer::report::{Asked, Failure, Flooded, LiveEvent, Received};
use seine_e2e::{Bed, Family, Running, trials, until};
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
            a_request_that_failed_is_sent_again_with_its_body,
            a_copy_goes_to_the_mirror_and_its_answer_to_nobody,
            a_browser_is_told_which_origins_may_ask,
            another_protocol_passes_both_ways_and_never_another_http,
            what_a_backend_cannot_take_is_its_share_alone_and_says_why,
            a_backend_that_is_too_slow_is_waited_for_as_long_as_the_route_says,
            a_client_of_grpc_is_told_in_its_own_terms,
            no_request_is_smuggled_in_another,
            a_head_has_its_limits_and_one_that_does_not_end_is_not_waited_for,
            a_flood_ends_its_own_connection_with_the_code_for_it,
            a_reader_that_does_not_read_holds_up_nobody_else,
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
    let mut rpc = service("mesh", "rpc", "v1", &[("grpc", 81, 8080)]);
    rpc["metadata"]["labels"] = json!({"seine.dev/use-waypoint": "wp"});
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
            service("mesh", "nobody", "nobody", &PORTS),
            service("mesh", "v2", "v2", &PORTS),
            plain_namespace("data"),
            Pod::new("data", "db", 2).serves(&SERVER).object(),
            service("data", "db", "db", &PORTS),
            grant(),
            route(),
            route_of_open(),
            features(),
            rpc,
            grpc_route(),
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

/// A rule for each feature, by its path.
fn features() -> Value {
    let to = |names: &[&str]| {
        let one = |name: &&str| json!({"name": name, "port": 80});
        names.iter().map(one).collect::<Vec<_>>()
    };
    let at = |path: &str, mut rule: Value| {
        rule["matches"] = json!([{"path": {"type": "PathPrefix", "value": path}}]);
        rule
    };
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "features", "namespace": "mesh"},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "web", "port": 80}],
            "rules": [
                at("/retry", json!({"name": "again", "backendRefs": to(&["v1"]), "retry": {"codes": [503], "attempts": 2, "backoff": "10ms"}})),
                at("/copy", json!({"backendRefs": to(&["v1"]), "filters": [
                    {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "v2", "port": 80}}},
                    {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "db", "namespace": "data", "port": 80}, "percent": 100}},
                    {"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "v1", "port": 80}, "percent": 0}},
                ]})),
                at("/cors", json!({"backendRefs": to(&["v1"]), "filters": [
                    {"type": "CORS", "cors": {"allowOrigins": ["https://*.example"], "allowMethods": ["PUT"], "maxAge": 7}},
                ]})),
                at("/half", json!({"backendRefs": to(&["v1", "gone"])})),
                at("/empty", json!({"backendRefs": to(&["nobody"])})),
                at("/unknown", json!({"backendRefs": to(&["v1"]), "sessionPersistence": {"sessionName": "a", "idleTimeout": "1m"}})),
                at("/slow", json!({"backendRefs": to(&["v1"]), "timeouts": {"backendRequest": "100ms"}})),
                at("/granted", json!({"backendRefs": [{"name": "db", "namespace": "data", "port": 80}]})),
                {"matches": [{"path": {"type": "RegularExpression", "value": "/re[0-9]+"}}], "backendRefs": to(&["v2"])},
            ],
        },
    })
}

fn grant() -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "ReferenceGrant",
        "metadata": {"name": "routes", "namespace": "data"},
        "spec": {
            "from": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "mesh"}],
            "to": [{"group": "", "kind": "Service"}],
        },
    })
}

fn grpc_route() -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GRPCRoute",
        "metadata": {"name": "rpc", "namespace": "mesh"},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "rpc"}],
            "rules": [
                {"matches": [{"method": {"service": "a.B", "method": "Broken"}}], "backendRefs": [{"name": "gone", "port": 1}]},
            ],
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

/// Sends bytes to the service; all of the answer.
fn raw(bed: &Bed, bytes: &str) -> Result<String> {
    Ok(bed.ask("mesh/client", "web", 80, bytes)?.received)
}

fn a_request_that_failed_is_sent_again_with_its_body(bed: &Bed) -> Result<()> {
    let request = |path: &str, word: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: web\r\nconnection: close\r\nx-fail-first: {word}\r\ncontent-length: 5\r\n\r\nhello"
        )
    };
    let answer = raw(bed, &request("/retry", "a"))?;
    ensure!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"),
        "{answer}"
    );
    await_waypoint(
        bed,
        &[
            "path=/retry",
            "status=200",
            "retries=1",
            "features/0 (again)",
        ],
    )?;
    // Without a retry the same is the client's to see.
    let answer = raw(bed, &request("/other", "b"))?;
    ensure!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    Ok(())
}

fn a_copy_goes_to_the_mirror_and_its_answer_to_nobody(bed: &Bed) -> Result<()> {
    let answer = web(bed, "/copy/1", "", "200")?;
    ensure!(answer.contains("pod v1"), "{answer}");
    for (namespace, pod) in [("mesh", "v2"), ("data", "db")] {
        until(&format!("{pod} has a copy"), || {
            let log = bed.lab().pod_logs(namespace, pod)?;
            Ok(log.contains("request: GET /copy/1").then_some(()))
        })?;
    }
    let log = bed.lab().pod_logs("mesh", "v1")?;
    ensure!(log.matches("/copy/1").count() == 1, "{log}");
    Ok(())
}

fn a_browser_is_told_which_origins_may_ask(bed: &Bed) -> Result<()> {
    let ask = |origin: &str| {
        let request = format!(
            "OPTIONS /cors HTTP/1.1\r\nhost: web\r\nconnection: close\r\norigin: {origin}\r\naccess-control-request-method: PUT\r\n\r\n"
        );
        Ok::<_, anyhow::Error>(raw(bed, &request)?.to_lowercase())
    };
    let told = ask("https://a.example")?;
    ensure!(told.starts_with("http/1.1 204"), "{told}");
    for header in ["origin: https://a.example", "methods: put", "max-age: 7"] {
        ensure!(told.contains(header), "{header}: {told}");
    }
    let told = ask("https://a.example.org")?;
    ensure!(!told.contains("access-control"), "{told}");
    let answer = web(bed, "/cors", "origin: https://b.example\r\n", "200")?.to_lowercase();
    ensure!(
        answer.contains("access-control-allow-origin: https://b.example"),
        "{answer}"
    );
    Ok(())
}

fn another_protocol_passes_both_ways_and_never_another_http(bed: &Bed) -> Result<()> {
    let ask = |protocol: &str| -> Result<(Running, Vec<String>)> {
        let mut live = bed.live("mesh/client", "web", 80, Family::V4)?;
        live.say(&format!(
            "GET /chat HTTP/1.1\r\r\nhost: web\r\r\nconnection: Upgrade\r\r\nupgrade: {protocol}\r\r\n\r"
        ))?;
        let mut head = Vec::new();
        loop {
            match live.report()? {
                LiveEvent::Line(line) if line.is_empty() => return Ok((live, head)),
                LiveEvent::Line(line) => head.push(line),
                other => anyhow::bail!("{protocol}: {other:?} after {head:?}"),
            }
        }
    };
    let (mut live, head) = ask("websocket")?;
    ensure!(head[0].starts_with("HTTP/1.1 101"), "{head:?}");
    for word in ["frames", "no HTTP"] {
        live.say(word)?;
        let event: LiveEvent = live.report()?;
        ensure!(
            matches!(&event, LiveEvent::Line(line) if line == word),
            "{event:?}"
        );
    }
    let end: LiveEvent = live.finish()?;
    ensure!(matches!(end, LiveEvent::Ended(None)), "{end:?}");
    let (_live, head) = ask("h2c")?;
    ensure!(head[0].starts_with("HTTP/1.1 200"), "{head:?}");
    Ok(())
}

fn what_a_backend_cannot_take_is_its_share_alone_and_says_why(bed: &Bed) -> Result<()> {
    let mut seen = [0; 2];
    for _ in 0..40 {
        let answer = get(bed, "mesh/client", "web", 80, "/half", "")?.received;
        match answer.get(..12) {
            Some("HTTP/1.1 200") => seen[0] += 1,
            Some("HTTP/1.1 500") => seen[1] += 1,
            _ => anyhow::bail!("{answer}"),
        }
    }
    ensure!(seen.iter().all(|count| *count > 2), "{seen:?}");
    web(bed, "/empty", "", "503")?;
    web(bed, "/unknown", "", "500")?;
    await_waypoint(
        bed,
        &[
            "path=/unknown",
            "sessionPersistence.idleTimeout is not supported",
        ],
    )?;
    // That of another namespace is there by its grant.
    let answer = web(bed, "/granted", "", "200")?;
    ensure!(answer.contains("pod db"), "{answer}");
    let answer = web(bed, "/re7", "", "200")?;
    ensure!(answer.contains("pod v2"), "{answer}");
    let answer = web(bed, "/re7x", "", "200")?;
    ensure!(answer.contains("pod v1"), "{answer}");
    Ok(())
}

fn a_backend_that_is_too_slow_is_waited_for_as_long_as_the_route_says(bed: &Bed) -> Result<()> {
    web(bed, "/slow", "", "200")?;
    web(bed, "/slow", "x-wait: 20000\r\n", "504")?;
    await_waypoint(bed, &["path=/slow", "status=504", "response_flags=TIMEOUT"])?;
    Ok(())
}

/// A frame of HTTP/2, whose bytes are all ASCII here.
fn frame(kind: u8, flags: u8, stream: u8, payload: &str) -> String {
    let mut bytes = vec![
        0,
        0,
        u8::try_from(payload.len()).expect("short"),
        kind,
        flags,
    ];
    bytes.extend([0, 0, 0, stream]);
    String::from_utf8(bytes).expect("ASCII") + payload
}

/// Headers without compression.
fn hpack(headers: &[(&str, &str)]) -> String {
    let text = |text: &str| {
        let length = u8::try_from(text.len()).expect("short");
        format!("{}{text}", char::from(length))
    };
    let pair = |(name, value): &(&str, &str)| format!("\0{}{}", text(name), text(value));
    headers.iter().map(pair).collect()
}

/// What a client of HTTP/2 says first. The carriage returns before the ends of lines are doubled: one is taken on the way.
fn preface() -> String {
    format!(
        "PRI * HTTP/2.0\r\r\n\r\r\nSM\r\r\n\r\r\n{}",
        frame(4, 0, 0, "")
    )
}

fn rpc(path: &str) -> String {
    let headers = hpack(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "rpc"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ]);
    // The end of the line that is said is its message.
    let message = frame(0, 1, 1, "\0\0\0\0\u{1}\n");
    frame(1, 4, 1, &headers) + message.trim_end_matches('\n')
}

fn a_client_of_grpc_is_told_in_its_own_terms(bed: &Bed) -> Result<()> {
    for (path, status, flag) in [
        ("/a.B/Broken", "14", "ROUTE"),
        ("/a.B/Other", "12", "NO_ROUTE"),
    ] {
        let mut live = bed.live("mesh/client", "rpc", 81, Family::V4)?;
        live.say(&(preface() + &rpc(path)))?;
        let path = format!("path={path}");
        let grpc = format!("grpc_status={status}");
        let flag = format!("response_flags={flag}");
        await_waypoint(bed, &[&path, "status=200", &grpc, &flag])?;
    }
    Ok(())
}

fn no_request_is_smuggled_in_another(bed: &Bed) -> Result<()> {
    let inner = "GET /smuggled HTTP/1.1\r\nhost: web\r\nx: ";
    for (what, headers, body) in [
        (
            "two lengths",
            "content-length: 0\r\ncontent-length: 40\r\n",
            inner,
        ),
        ("a list of lengths", "content-length: 0, 40\r\n", inner),
        ("a sign", "content-length: +40\r\n", inner),
        (
            "a coding",
            "transfer-encoding: chunked, identity\r\n",
            inner,
        ),
        (
            "another coding",
            "transfer-encoding: xchunked\r\ncontent-length: 5\r\n",
            inner,
        ),
        ("a blank before the colon", "content-length : 40\r\n", inner),
        ("a fold", "x-a: b\r\n content-length: 40\r\n", inner),
        ("a bare return", "x-a: b\rcontent-length: 40\r\n", inner),
        ("a second host", "host: other\r\n", ""),
    ] {
        let request = format!("POST /outer HTTP/1.1\r\nhost: web\r\n{headers}\r\n{body}");
        let answer = raw(bed, &request)?;
        ensure!(answer.starts_with("HTTP/1.1 400"), "{what}: {answer}");
    }
    // With a length beside the chunks it is the chunks that count (RFC 9112, section 6.3), and these are none.
    let both = "POST /outer HTTP/1.1\r\nhost: web\r\ncontent-length: 40\r\ntransfer-encoding: chunked\r\n\r\n";
    let answer = raw(bed, &format!("{both}{inner}"))?;
    ensure!(answer.starts_with("HTTP/1.1 400"), "both: {answer}");
    let bad_chunks = [
        "5;a=\nb\r\nhello\r\n0\r\n\r\n",
        "5\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "-1\r\n",
        "fffffffffffffffff\r\nhello",
    ];
    for chunks in bad_chunks {
        let head = "POST /outer HTTP/1.1\r\nhost: web\r\ntransfer-encoding: chunked\r\n\r\n";
        let answer = raw(bed, &format!("{head}{chunks}{inner}"))?;
        ensure!(answer.starts_with("HTTP/1.1 400"), "{chunks:?}: {answer}");
    }
    // The twin: the same request in order.
    let good = "POST /outer HTTP/1.1\r\nhost: web\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\n\r\n";
    let answer = raw(bed, good)?;
    ensure!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("hello"),
        "{answer}"
    );
    for pod in ["v1", "v2"] {
        let log = bed.lab().pod_logs("mesh", pod)?;
        ensure!(!log.contains("smuggled"), "{log}");
    }
    Ok(())
}

fn a_head_has_its_limits_and_one_that_does_not_end_is_not_waited_for(bed: &Bed) -> Result<()> {
    let many = (0..120)
        .map(|n| format!("x-{n}: a\r\n"))
        .collect::<String>();
    web(bed, "/a", &many, "431")?;
    web(
        bed,
        "/a",
        &format!("x: {}\r\n", "a".repeat(80 << 10)),
        "431",
    )?;
    web(bed, "/a", &format!("x: {}\r\n", "a".repeat(8 << 10)), "200")?;
    // One that has begun, and nothing at all.
    let begun = |said: Option<&str>| -> Result<Running> {
        let mut live = bed.live("mesh/client", "web", 80, Family::V4)?;
        said.map_or(Ok(()), |said| live.say(said))?;
        Ok(live)
    };
    let slow = [begun(Some("GET /a HTTP/1.1\r\r\nhost:"))?, begun(None)?];
    web(bed, "/a", "", "200")?;
    for mut live in slow {
        while !matches!(live.report()?, LiveEvent::Ended(_)) {}
    }
    Ok(())
}

/// Codes of HTTP/2 (RFC 9113, section 7).
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

fn a_flood_ends_its_own_connection_with_the_code_for_it(bed: &Bed) -> Result<()> {
    let flood = |arguments: &[&str]| -> Result<Flooded> {
        let all = [&["flood", "web", "80"], arguments].concat();
        let flooded = bed.peer("mesh/client", &all)?;
        web(bed, "/a", "", "200")?;
        Ok(flooded)
    };
    for (kind, code) in [
        ("resets", ENHANCE_YOUR_CALM),
        ("continuations", ENHANCE_YOUR_CALM),
        ("empty-data", ENHANCE_YOUR_CALM),
        ("window", FLOW_CONTROL_ERROR),
        ("no-window", PROTOCOL_ERROR),
        // As h2 has it; RFC 9113 has FLOW_CONTROL_ERROR for it, and an end of the connection, too.
        ("initial-window", PROTOCOL_ERROR),
    ] {
        let flooded = flood(&[kind])?;
        ensure!(flooded.go_away == Some(code), "{kind}: {flooded:?}");
    }
    let flooded = flood(&["stream-window", "--pieces", "2"])?;
    ensure!(flooded.resets == [FLOW_CONTROL_ERROR], "{flooded:?}");
    let flooded = flood(&["streams", "--pieces", "130", "--resets", "30"])?;
    ensure!(flooded.resets == [REFUSED_STREAM; 30], "{flooded:?}");
    // What is not read in answer is not remembered without end either: no more is taken.
    for kind in ["settings", "pings"] {
        let flooded = flood(&[kind, "--pieces", "4000000"])?;
        ensure!(flooded.stuck, "{kind}: {flooded:?}");
    }
    // A few are no flood.
    let flooded = flood(&["resets", "--pieces", "3", "--resets", "0"])?;
    ensure!(flooded.go_away.is_none(), "{flooded:?}");
    Ok(())
}

fn a_reader_that_does_not_read_holds_up_nobody_else(bed: &Bed) -> Result<()> {
    const SIZE: u64 = 64 << 20;
    let request =
        format!("GET /unread HTTP/1.1\r\nhost: web\r\nconnection: close\r\nx-size: {SIZE}\r\n\r\n");
    let arguments = ["slow", "web", "80", "0", "--send", &request];
    let mut slow = bed.start("mesh/client", &arguments)?;
    ensure!(slow.report::<String>()? == "asked");
    for _ in 0..20 {
        web(bed, "/a", "", "200")?;
    }
    slow.say("read")?;
    let received: Result<Received, Failure> = slow.report()?;
    let received = received.map_err(anyhow::Error::from)?;
    ensure!(received.bytes > SIZE, "{received:?}");
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
