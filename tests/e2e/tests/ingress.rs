//! Connections from outside the mesh, at a Gateway: routed by host, guarded, and in mutual TLS from there on.

#![allow(missing_docs, reason = "the names of tests say what they are about")]

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use seine_e2e::manifests::{Pod, meshed_namespace, plain_namespace, service};
use seine_e2e::{Bed, trials, until};
use serde_json::{Value, json};

const PORTS: [(&str, u16, u16); 1] = [("http", 80, 8080)];

fn main() -> ExitCode {
    seine_e2e::trial::main(
        up,
        trials![
            a_request_from_outside_is_routed_by_its_host_into_the_mesh,
            what_a_client_says_of_where_it_comes_from_is_not_believed,
            a_service_of_a_waypoint_is_reached_through_that,
            tls_ends_for_the_host_that_the_client_asks_for_and_for_no_other,
            tls_is_passed_on_as_it_is_for_the_host_that_a_route_names,
            what_was_in_tls_that_ends_here_is_passed_on_as_it_is,
            a_connection_of_tcp_goes_where_the_older_route_of_its_port_leads,
            a_backend_that_speaks_tls_is_whom_its_policy_names_or_is_sent_nothing,
            a_certificate_is_replaced_without_a_request_that_fails,
            a_policy_at_the_gateway_is_judged_before_any_route,
            a_port_without_a_listener_is_closed,
            in_the_mesh_a_gateway_is_itself_and_what_it_had_ends_with_it,
        ],
    )
}

fn up() -> Result<Bed> {
    let secure = certificate("secure.example")?;
    let server = |name: &str, node: u8| {
        Pod::new("mesh", name, node)
            .serves(&["mirror:8080"])
            .object()
    };
    let mut bound = service("mesh", "bound", "v2", &[("http", 80, 8081)]);
    bound["metadata"]["labels"] = json!({"seine.dev/use-waypoint": "wp"});
    let http = |name: &str, port: u16, host: Option<&str>| {
        json!({"name": name, "port": port, "protocol": "HTTP", "hostname": host,
            "allowedRoutes": {"namespaces": {"from": "All"}}})
    };
    let https = |name: &str, host: &str, secret: &str| {
        json!({"name": name, "port": 443, "protocol": "HTTPS", "hostname": host,
            "tls": {"certificateRefs": [{"name": secret}]}})
    };
    let listeners = json!([
        http("any", 80, None),
        http("alone", 80, Some("alone.example")),
        https("secure", "secure.example", "secure"),
        https("wild", "*.wild.example", "wild"),
        {"name": "passed", "port": 8443, "protocol": "TLS", "hostname": "*.example", "tls": {"mode": "Passthrough"}},
        {"name": "ended", "port": 8443, "protocol": "TLS", "hostname": "ended.example", "tls": {"certificateRefs": [{"name": "secure"}]}},
        {"name": "bytes", "port": 9000, "protocol": "TCP"},
    ]);
    let to = |name: &str| json!([{"name": name, "port": 80}]);
    let at = |path: &str, backends: Value| json!({"matches": [{"path": {"value": path}}], "backendRefs": backends});
    let by_waypoint = json!({
        "filters": [{"type": "ResponseHeaderModifier", "responseHeaderModifier": {
            "set": [{"name": "x-by-waypoint", "value": "yes"}],
        }}],
        "backendRefs": to("bound"),
    });
    let of_gateway = |section: &str| json!({"name": "gw", "sectionName": section});
    let of_service = json!({"group": "", "kind": "Service", "name": "bound"});
    Bed::up(
        "e2e-ingress",
        &[
            meshed_namespace("mesh"),
            plain_namespace("plain"),
            Pod::new("plain", "client", 1).object(),
            server("v1", 2),
            Pod::new("mesh", "v2", 2)
                .serves(&["mirror:8080", "mirror:8081"])
                .object(),
            service("mesh", "v1", "v1", &PORTS),
            service("mesh", "v2", "v2", &PORTS),
            bound,
            gateway(
                "wp",
                "seine-waypoint",
                json!([{"name": "mesh", "port": 15008, "protocol": "HBONE"}]),
            ),
            gateway("gw", "seine", listeners),
            gateway(
                "inner",
                "seine",
                json!([https("secure", "inner.example", "secure")]),
            ),
            stream_route("TLSRoute", "inner", 1, &["inner.example"], ("inner", 443)),
            stream_route("TLSRoute", "ended", 1, &["ended.example"], ("v1", 80)),
            stream_route("TCPRoute", "newer", 2, &[], ("v2", 80)),
            stream_route("TCPRoute", "older", 1, &[], ("v1", 80)),
            route(
                "inner",
                json!({"name": "inner"}),
                &[],
                json!([at("/", to("v1"))]),
            ),
            route(
                "through",
                of_gateway("any"),
                &["inner.example"],
                json!([at("/", json!([{"name": "inner", "port": 443}]))]),
            ),
            json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "inner", "namespace": "mesh"},
                "data": {"ca.crt": secure.0},
            }),
            backend_tls("secure.example"),
            secret("secure", &secure),
            secret("wild", &certificate("*.wild.example")?),
            route(
                "a",
                of_gateway("any"),
                &["a.example"],
                json!([
                    at("/", to("v1")),
                    at("/two", to("v2")),
                    at("/bound", to("bound")),
                ]),
            ),
            route("all", of_gateway("any"), &[], json!([at("/", to("v2"))])),
            route(
                "alone",
                of_gateway("alone"),
                &[],
                json!([at("/only", to("v1"))]),
            ),
            route(
                "tls",
                json!({"name": "gw", "port": 443}),
                &[],
                json!([
                    at("/", to("v1")),
                    {
                        "matches": [{"path": {"value": "/moved"}}],
                        "filters": [{"type": "RequestRedirect", "requestRedirect": {"path": {"type": "ReplaceFullPath", "replaceFullPath": "/"}}}],
                    },
                ]),
            ),
            route("bound", of_service, &[], json!([by_waypoint])),
            json!({
                "apiVersion": "policy.seine.dev/v1alpha1", "kind": "AuthorizationPolicy",
                "metadata": {"name": "no-admin", "namespace": "mesh"},
                "spec": {
                    "action": "Deny",
                    "targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "gw"}],
                    // Of a connection that nobody reads it would deny each.
                    "rules": [{"to": [{"paths": ["/admin*"], "ports": [80, 443]}]}],
                },
            }),
        ],
    )
}

fn gateway(name: &str, class: &str, listeners: Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": {"name": name, "namespace": "mesh"},
        "spec": {"gatewayClassName": class, "listeners": listeners},
    })
}

fn route(name: &str, parent: Value, hostnames: &[&str], rules: Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": name, "namespace": "mesh"},
        "spec": {"parentRefs": [parent], "hostnames": hostnames, "rules": rules},
    })
}

/// A route of connections at the Gateway, made in this year of the century.
fn stream_route(
    kind: &str,
    name: &str,
    year: u8,
    hostnames: &[&str],
    (service, port): (&str, u16),
) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
        "metadata": {"name": name, "namespace": "mesh", "creationTimestamp": format!("200{year}-01-01T00:00:00Z")},
        "spec": {
            "parentRefs": [{"name": "gw"}], "hostnames": hostnames,
            "rules": [{"backendRefs": [{"name": service, "port": port}]}],
        },
    })
}

/// That the inner Gateway, which is asked for its host, shows a certificate of this name.
fn backend_tls(name: &str) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "BackendTLSPolicy",
        "metadata": {"name": "inner", "namespace": "mesh"},
        "spec": {
            "targetRefs": [{"group": "", "kind": "Service", "name": "inner"}],
            "validation": {
                "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "inner"}],
                "hostname": "inner.example",
                "subjectAltNames": [{"type": "Hostname", "hostname": name}],
            },
        },
    })
}

/// A certificate that vouches for itself, and its key, in PEM.
fn certificate(host: &str) -> Result<(String, String)> {
    let made = rcgen::generate_simple_self_signed(vec![host.to_owned()])?;
    Ok((made.cert.pem(), made.signing_key.serialize_pem()))
}

fn secret(name: &str, (certificate, key): &(String, String)) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "mesh"},
        "type": "kubernetes.io/tls",
        "stringData": {"tls.crt": certificate, "tls.key": key},
    })
}

/// Sends a request of a host to the Gateway, from outside the mesh, and returns all of the answer.
fn get(bed: &Bed, host: &str, path: &str, headers: &str) -> Result<String> {
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{headers}\r\n");
    let address = bed.service_ips("mesh/gw")?.0.to_string();
    Ok(bed.ask("plain/client", &address, 80, &request)?.received)
}

/// The same, with the status that it must have.
fn got(bed: &Bed, host: &str, path: &str, status: u16) -> Result<String> {
    let answer = get(bed, host, path, "")?;
    ensure!(
        answer.starts_with(&format!("HTTP/1.1 {status}")),
        "{host}{path}: {answer}"
    );
    Ok(answer)
}

/// curl, from outside the mesh, to port 443 of the Gateway under this name: status and answer.
fn curl(bed: &Bed, name: &str, path: &str, more: &[&str]) -> Result<String> {
    curl_at(bed, 443, name, path, more)
}

/// The same to another port.
fn curl_at(bed: &Bed, port: u16, name: &str, path: &str, more: &[&str]) -> Result<String> {
    let address = bed.service_ips("mesh/gw")?.0;
    let (resolve, url) = (
        format!("{name}:{port}:{address}"),
        format!("https://{name}:{port}{path}"),
    );
    let mut command = vec![
        "curl",
        "-sS",
        "-k",
        "--max-time",
        "20",
        "--resolve",
        &resolve,
    ];
    command.extend([
        "-w",
        "\n%{http_code} HTTP/%{http_version} %{redirect_url}",
        &url,
    ]);
    command.extend(more);
    let output = bed.lab().exec("plain", "client", &command)?;
    Ok(output.stdout + &output.stderr)
}

fn a_request_from_outside_is_routed_by_its_host_into_the_mesh(bed: &Bed) -> Result<()> {
    for (host, path, version) in [
        ("a.example", "/x", "v1"),
        ("A.Example:80", "/two", "v2"),
        ("other.example", "/x", "v2"),
        ("alone.example", "/only", "v1"),
    ] {
        let answer = got(bed, host, path, 200)?;
        ensure!(
            answer.contains(&format!("pod {version} client")),
            "{host}{path}: {answer}"
        );
    }
    // The listener of its own takes it, and no other listener's routes.
    got(bed, "alone.example", "/x", 404)?;
    Ok(())
}

fn what_a_client_says_of_where_it_comes_from_is_not_believed(bed: &Bed) -> Result<()> {
    let (client, _) = bed.pod_ips("plain/client")?;
    let headers = "x-forwarded-for: 192.0.2.1\r\nx-forwarded-proto: https\r\nx-forwarded-host: b\r\nforwarded: for=192.0.2.1\r\nx-seine-first-client: spiffe://a/ns/b/sa/c\r\nx-own: stays\r\n";
    let answer = get(bed, "a.example", "/x", headers)?.to_lowercase();
    let forwarded = format!("x-forwarded-for: {client}\r\n");
    for there in [&*forwarded, "x-forwarded-proto: http\r\n", "x-own: stays"] {
        ensure!(answer.contains(there), "{there}: {answer}");
    }
    for gone in ["192.0.2.1", "x-forwarded-host", "x-seine"] {
        ensure!(!answer.contains(gone), "{gone}: {answer}");
    }
    Ok(())
}

fn a_service_of_a_waypoint_is_reached_through_that(bed: &Bed) -> Result<()> {
    let answer = got(bed, "a.example", "/bound", 200)?;
    ensure!(
        answer.contains("x-by-waypoint: yes") && answer.contains("pod v2"),
        "{answer}"
    );
    Ok(())
}

fn tls_ends_for_the_host_that_the_client_asks_for_and_for_no_other(bed: &Bed) -> Result<()> {
    let (pem, _) = certificate("secure.example")?;
    let pem = write(&pem)?;
    let known = curl(bed, "secure.example", "/x", &[])?;
    ensure!(
        known.contains("pod v1") && known.contains("\n200 HTTP/2"),
        "{known}"
    );
    ensure!(known.contains("x-forwarded-proto: https"), "{known}");
    let one = curl(bed, "b.a.wild.example", "/x", &["--http1.1"])?;
    ensure!(one.contains("\n200 HTTP/1.1"), "{one}");
    let moved = curl(bed, "secure.example", "/moved", &[])?;
    ensure!(
        moved.contains("302 HTTP/2 https://secure.example/"),
        "{moved}"
    );
    // A certificate that isn't the one that is there is not shown.
    let strange = curl(
        bed,
        "secure.example",
        "/x",
        &[
            "--no-insecure",
            "--cacert",
            pem.path().to_str().context("a path")?,
        ],
    )?;
    ensure!(strange.contains("\n000 "), "{strange}");
    // By the name, and not by the host alone.
    let other = curl(bed, "secure.example", "/x", &["-H", "host: a.wild.example"])?;
    ensure!(other.contains("\n421 "), "{other}");
    let nobody = curl(bed, "secure.example", "/x", &["-H", "host: nobody.example"])?;
    ensure!(nobody.contains("\n404 "), "{nobody}");
    let unknown = curl(bed, "unknown.example", "/x", &[])?;
    ensure!(
        unknown.contains("\n000 ") && unknown.contains("unrecognized name"),
        "{unknown}"
    );
    Ok(())
}

fn tls_is_passed_on_as_it_is_for_the_host_that_a_route_names(bed: &Bed) -> Result<()> {
    // The other Gateway ends it.
    let passed = curl_at(bed, 8443, "inner.example", "/x", &[])?;
    ensure!(
        passed.contains("pod v1") && passed.contains("\n200 HTTP/2"),
        "{passed}"
    );
    let own = |name: &str| {
        let pods = bed.lab().status()?.pods;
        let pod = pods.into_iter().find(|pod| pod.name.starts_with(name));
        let pod = pod.context("there is no pod of the Gateway")?;
        anyhow::Ok(pod.name)
    };
    let (first, _) = bed.pod_ips(&format!("mesh/{}", own("gw-")?))?;
    ensure!(
        passed.contains(&format!("x-forwarded-for: {first}")),
        "{passed}"
    );
    for (name, why) in [("other.example", "NO_ROUTE"), ("other.org", "TLS_FAILURE")] {
        let refused = curl_at(bed, 8443, name, "/x", &[])?;
        ensure!(refused.contains("\n000 "), "{refused}");
        until(&format!("the Gateway logs {why}"), || {
            let log = bed.lab().pod_logs("mesh", &own("gw-")?)?;
            Ok(log.lines().any(|line| line.contains(why)).then_some(()))
        })?;
    }
    Ok(())
}

fn what_was_in_tls_that_ends_here_is_passed_on_as_it_is(bed: &Bed) -> Result<()> {
    // The backend speaks no TLS; nobody between reads the request.
    let answer = curl_at(bed, 8443, "ended.example", "/x", &["--http1.1"])?;
    ensure!(
        answer.contains("pod v1") && answer.contains("\n200 HTTP/1.1"),
        "{answer}"
    );
    ensure!(!answer.contains("x-forwarded-for"), "{answer}");
    Ok(())
}

fn a_connection_of_tcp_goes_where_the_older_route_of_its_port_leads(bed: &Bed) -> Result<()> {
    let address = bed.service_ips("mesh/gw")?.0.to_string();
    let request = "GET /x HTTP/1.1\r\nhost: any\r\nconnection: close\r\n\r\n";
    let ask = || bed.ask("plain/client", &address, 9000, request);
    let answer = ask()?.received;
    ensure!(
        answer.contains("pod v1") && !answer.contains("x-forwarded-for"),
        "{answer}"
    );
    bed.delete("mesh", "tcproute/older")?;
    until("the route that is left leads on", || {
        Ok(ask()?.received.contains("pod v2").then_some(()))
    })
}

fn a_backend_that_speaks_tls_is_whom_its_policy_names_or_is_sent_nothing(bed: &Bed) -> Result<()> {
    let answer = got(bed, "inner.example", "/x", 200)?;
    ensure!(answer.contains("pod v1"), "{answer}");
    let answers = |status: &str| {
        until(&format!("the answer is {status}"), || {
            let answer = get(bed, "inner.example", "/x", "")?;
            Ok(answer
                .starts_with(&format!("HTTP/1.1 {status}"))
                .then_some(()))
        })
    };
    bed.apply(&[backend_tls("other.example")])?;
    answers("503")?;
    bed.apply(&[backend_tls("secure.example")])?;
    answers("200")?;
    bed.delete("mesh", "configmap/inner")?;
    answers("503")
}

fn write(text: &str) -> Result<tempfile::NamedTempFile> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), text)?;
    Ok(file)
}

fn a_certificate_is_replaced_without_a_request_that_fails(bed: &Bed) -> Result<()> {
    let new = certificate("secure.example")?;
    let pem = write(&new.0)?;
    let trusting = [
        "--no-insecure",
        "--cacert",
        pem.path().to_str().context("a path")?,
    ];
    let address = bed.service_ips("mesh/gw")?.0;
    let resolve = format!("secure.example:443:{address}");
    // One that is under way meanwhile.
    let slow = [
        "curl",
        "-sS",
        "-k",
        "--resolve",
        &resolve,
        "-H",
        "x-wait: 4000",
        "https://secure.example/x",
    ];
    let mut slow: Command = bed.lab().exec_command("plain", "client", &slow);
    let slow = slow.stdout(Stdio::piped()).spawn()?;
    bed.apply(&[secret("secure", &new)])?;
    until("the new certificate is shown", || {
        let answer = curl(bed, "secure.example", "/x", &trusting)?;
        Ok(answer.contains("\n200 ").then_some(()))
    })?;
    let slow = slow.wait_with_output()?;
    let said = String::from_utf8_lossy(&slow.stdout);
    ensure!(said.contains("pod v1"), "{said}");
    Ok(())
}

fn a_policy_at_the_gateway_is_judged_before_any_route(bed: &Bed) -> Result<()> {
    for path in ["/admin", "/%61dmin/x", "//admin"] {
        got(bed, "a.example", path, 403)?;
    }
    got(bed, "a.example", "/a/dmin", 200)?;
    // An Allow of addresses is about the client's own.
    let allow = |block: &str| {
        json!({
            "apiVersion": "policy.seine.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "addresses", "namespace": "mesh"},
            "spec": {
                "targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "gw"}],
                "rules": [{"from": [{"ipBlocks": [block]}]}],
            },
        })
    };
    let client = bed.pod_ips("plain/client")?.0.to_string();
    for (block, status) in [("192.0.2.0/24", "403"), (&*client, "200")] {
        bed.during(&[allow(block)], || {
            until("the policy is enforced", || {
                let answer = get(bed, "a.example", "/x", "")?;
                Ok(answer
                    .starts_with(&format!("HTTP/1.1 {status}"))
                    .then_some(()))
            })
        })?;
    }
    until("the policies are gone", || {
        let answer = get(bed, "a.example", "/x", "")?;
        Ok(answer.starts_with("HTTP/1.1 200").then_some(()))
    })
}

fn a_port_without_a_listener_is_closed(bed: &Bed) -> Result<()> {
    let address = bed.service_ips("mesh/gw")?.0.to_string();
    let one = json!([{"name": "any", "port": 80, "protocol": "HTTP"}]);
    got(bed, "alone.example", "/x", 404)?;
    let asked = bed.ask("plain/client", &address, 443, "")?;
    ensure!(asked.failure.is_none(), "{asked:?}");
    bed.apply(&[gateway("gw", "seine", one)])?;
    let pods = bed.lab().status()?.pods;
    let pod = pods.into_iter().find(|pod| pod.name.starts_with("gw-"));
    let pod = pod.context("there is no pod of the Gateway")?.name;
    let (pod, _) = bed.pod_ips(&format!("mesh/{pod}"))?;
    until("port 443 is closed", || {
        let asked = bed.ask("plain/client", &pod.to_string(), 443, "")?;
        Ok(asked.failure.map(drop))
    })?;
    // The other listener's routes are gone with it, and those of the one that stays hold.
    until("the listener is gone", || {
        let answer = get(bed, "alone.example", "/x", "")?;
        Ok(answer.contains("pod v2").then_some(()))
    })
}

fn in_the_mesh_a_gateway_is_itself_and_what_it_had_ends_with_it(bed: &Bed) -> Result<()> {
    got(bed, "a.example", "/bound", 200)?;
    got(bed, "a.example", "/x", 200)?;
    for gone in ["gateway/gw", "gateway/wp"] {
        bed.delete("mesh", gone)?;
    }
    // A connection is logged at its end.
    let gateway = "spiffe://cluster.local/ns/mesh/sa/gw";
    bed.await_ztunnel(
        2,
        &[
            "direction=inbound",
            "sa/v1",
            &format!("src.identity={gateway}"),
        ],
    )?;
    bed.await_ztunnel(
        2,
        &[
            "direction=inbound",
            "sa/wp",
            &format!("on_behalf_of={gateway}"),
        ],
    )?;
    Ok(())
}
