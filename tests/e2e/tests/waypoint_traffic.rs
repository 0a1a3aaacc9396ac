//! What a `TrafficPolicy` says of services behind a waypoint.

#![allow(missing_docs, reason = "the names of tests say what they are about")]

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use seine_e2e::manifests::{Pod, meshed_namespace, service};
use seine_e2e::peer::report::LiveEvent;
use seine_e2e::{Bed, Family, trials, until};
use serde_json::{Value, json};

/// Each is a service of its own before the same two pods.
const SERVICES: [&str; 13] = [
    "turns", "hashed", "sourced", "limited", "narrow", "outlier", "frugal", "sticky", "patient",
    "near", "young", "crowded", "learning",
];

fn main() -> ExitCode {
    seine_e2e::trial::main(
        up,
        trials![
            pods_are_asked_one_after_the_other,
            the_same_value_goes_to_the_same_pod,
            each_client_has_its_own_limit_and_is_told_when_to_come_again,
            more_requests_than_may_be_under_way_are_refused,
            a_pod_that_fails_gets_nothing_for_a_while_and_never_more_of_them_than_the_share,
            without_a_budget_nothing_is_sent_again,
            a_client_that_is_slow_with_its_body_is_not_held_against_the_pod,
            requests_stay_in_the_zone_until_its_pods_fail,
            no_more_connections_stand_than_may_and_an_idle_one_makes_room,
            the_limit_that_is_found_out_refuses_what_is_beyond_it,
            a_pod_that_just_came_gets_less,
            the_requests_of_a_session_go_to_its_pod_and_what_a_client_made_up_leads_nowhere,
            a_session_stays_with_its_backend_also_where_that_has_no_weight,
        ],
    )
}

fn up() -> Result<Bed> {
    let server = |name: &str, node: u8| {
        Pod::new("mesh", name, node)
            .label("of", "web")
            .serves(&["mirror:8080", "mirror:8081"])
            .object()
    };
    let mut objects = vec![
        meshed_namespace("mesh"),
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {"name": "wp", "namespace": "mesh"},
            "spec": {"gatewayClassName": "seine-waypoint", "listeners": [
                {"name": "mesh", "port": 15008, "protocol": "HBONE"},
            ]},
        }),
        Pod::new("mesh", "client", 1).object(),
        Pod::new("mesh", "other", 2).object(),
        server("a", 1),
        server("b", 2),
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "frugal", "namespace": "mesh"},
            "spec": {
                "parentRefs": [{"group": "", "kind": "Service", "name": "frugal"}],
                "rules": [{
                    "backendRefs": [{"name": "frugal", "port": 80}],
                    "retry": {"codes": [503], "attempts": 2, "backoff": "10ms"},
                }],
            },
        }),
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": "patient", "namespace": "mesh"},
            "spec": {
                "parentRefs": [{"group": "", "kind": "Service", "name": "patient"}],
                "rules": [{
                    "backendRefs": [{"name": "patient", "port": 80}],
                    "timeouts": {"backendRequest": "1s"},
                }],
            },
        }),
        policy(
            "patient",
            json!({
                "loadBalancer": {"algorithm": "RoundRobin"},
                "outlierDetection": {"consecutiveFailures": 1, "ejectionTime": "5m", "maxEjectedPercent": 50},
            }),
        ),
        policy(
            "near",
            json!({
                "loadBalancer": {"algorithm": "RoundRobin", "zoneAware": {}},
                "outlierDetection": {"consecutiveFailures": 1, "ejectionTime": "5m"},
            }),
        ),
        policy(
            "young",
            json!({"loadBalancer": {"algorithm": "RoundRobin", "slowStart": {"window": "1h", "minPercent": 1}}}),
        ),
        policy("crowded", json!({"circuitBreaker": {"maxConnections": 1}})),
        policy(
            "learning",
            json!({"adaptiveConcurrency": {"minRequests": 1, "maxRequests": 1}}),
        ),
        service("mesh", "only-a", "a", &[("http", 80, 8080)]),
        service("mesh", "only-b", "b", &[("http", 80, 8080)]),
        sticky(1, 0),
        policy(
            "turns",
            json!({"loadBalancer": {"algorithm": "RoundRobin"}}),
        ),
        policy("hashed", ring(json!({"type": "Header", "name": "x-user"}))),
        policy("sourced", ring(json!({"type": "SourceAddress"}))),
        policy(
            "limited",
            json!({"rateLimit": {"requests": 1, "unit": "Hour", "burst": 2, "per": {"type": "Identity"}}}),
        ),
        policy("narrow", json!({"circuitBreaker": {"maxRequests": 1}})),
        policy(
            "outlier",
            json!({"outlierDetection": {"consecutiveFailures": 1, "ejectionTime": "5m", "maxEjectedPercent": 50}}),
        ),
        policy(
            "frugal",
            json!({"retryBudget": {"percent": 0, "minPerSecond": 0}}),
        ),
    ];
    for name in SERVICES {
        // Connections are those to a port, of whichever service.
        let target = if name == "crowded" { 8081 } else { 8080 };
        let mut object = service("mesh", name, "", &[("http", 80, target)]);
        object["metadata"]["labels"] = json!({"seine.dev/use-waypoint": "wp"});
        object["spec"]["selector"] = json!({"of": "web"});
        objects.push(object);
    }
    Bed::up("e2e-waypoint-traffic", &objects)
}

/// Sessions by a cookie, by a header, and of backends with these weights.
fn sticky(a: u32, b: u32) -> Value {
    let rule = |path: &str, backends: Value, session: Value| {
        json!({
            "matches": [{"path": {"type": "PathPrefix", "value": path}}],
            "backendRefs": backends, "sessionPersistence": session,
        })
    };
    let turns = || json!([{"name": "turns", "port": 80}]);
    let split = json!([
        {"name": "only-a", "port": 80, "weight": a}, {"name": "only-b", "port": 80, "weight": b},
    ]);
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": {"name": "sticky", "namespace": "mesh"},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": "sticky"}],
            "rules": [
                rule("/cookie", turns(), json!({"sessionName": "sid"})),
                rule("/header", turns(), json!({"sessionName": "x-sid", "type": "Header", "absoluteTimeout": "1h"})),
                rule("/split", split, json!({"sessionName": "sid"})),
            ],
        },
    })
}

fn ring(on: Value) -> Value {
    json!({"loadBalancer": {"algorithm": "RingHash", "hashOn": on}})
}

fn policy(service: &str, mut spec: Value) -> Value {
    spec["targetRefs"] = json!([{"kind": "Service", "name": service}]);
    json!({
        "apiVersion": "policy.seine.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"name": service, "namespace": "mesh"}, "spec": spec,
    })
}

/// Sends a request with these headers to a service and returns all of the answer.
fn get(bed: &Bed, from: &str, service: &str, headers: &str) -> Result<String> {
    let request =
        format!("GET /{service} HTTP/1.1\r\nhost: {service}\r\nconnection: close\r\n{headers}\r\n");
    Ok(bed.ask(from, service, 80, &request)?.received)
}

/// The name of the pod that answers; the request must succeed.
fn pod(bed: &Bed, service: &str, headers: &str) -> Result<String> {
    let answer = get(bed, "mesh/client", service, headers)?;
    let named = answer.lines().find_map(|line| line.strip_prefix("pod "));
    let name = named.and_then(|rest| rest.split(' ').next());
    let name = name.filter(|_| answer.starts_with("HTTP/1.1 200"));
    Ok(name.with_context(|| answer.clone())?.to_owned())
}

fn status(answer: &str) -> &str {
    answer.get(9..12).unwrap_or(answer)
}

fn await_log(bed: &Bed, needles: &[&str]) -> Result<String> {
    until(&format!("the waypoint logs {needles:?}"), || {
        let pods = bed.lab().status()?.pods;
        let pod = pods.into_iter().find(|pod| pod.name.starts_with("wp-"));
        let pod = pod.context("there is no waypoint")?;
        let log = bed.lab().pod_logs("mesh", &pod.name)?;
        let mut lines = log.lines();
        let found = lines.find(|line| needles.iter().all(|needle| line.contains(needle)));
        Ok(found.map(str::to_owned))
    })
}

fn pods_are_asked_one_after_the_other(bed: &Bed) -> Result<()> {
    let names = (0..10).map(|_| pod(bed, "turns", ""));
    let names: Vec<String> = names.collect::<Result<_>>()?;
    let alternate = names.windows(2).all(|pair| pair[0] != pair[1]);
    ensure!(alternate, "{names:?}");
    Ok(())
}

fn the_same_value_goes_to_the_same_pod(bed: &Bed) -> Result<()> {
    let mut by_user = BTreeMap::new();
    for user in (0..16).chain(0..16) {
        let name = pod(bed, "hashed", &format!("x-user: {user}\r\n"))?;
        let known = by_user.entry(user).or_insert_with(|| name.clone());
        ensure!(*known == name, "user {user}: {known} and {name}");
    }
    for name in ["a", "b"] {
        ensure!(by_user.values().any(|found| found == name), "{by_user:?}");
    }
    let names = (0..8).map(|_| pod(bed, "sourced", ""));
    let names: Vec<String> = names.collect::<Result<_>>()?;
    ensure!(names.iter().all(|name| *name == names[0]), "{names:?}");
    Ok(())
}

fn each_client_has_its_own_limit_and_is_told_when_to_come_again(bed: &Bed) -> Result<()> {
    for (from, expected) in [
        ("mesh/client", ["200", "200", "429"]),
        ("mesh/other", ["200", "200", "429"]),
    ] {
        for (count, expected) in expected.into_iter().enumerate() {
            let answer = get(bed, from, "limited", "")?;
            ensure!(status(&answer) == expected, "{from} {count}: {answer}");
            let told = answer.to_lowercase().contains("\r\nretry-after: 3");
            ensure!(told == (expected == "429"), "{answer}");
        }
    }
    let needles = ["path=/limited", "status=429", "response_flags=RATE_LIMITED"];
    await_log(bed, &needles)?;
    Ok(())
}

fn more_requests_than_may_be_under_way_are_refused(bed: &Bed) -> Result<()> {
    let mut slow = bed.live("mesh/client", "narrow", 80, Family::V4)?;
    slow.say("GET /first HTTP/1.1\r\r\nhost: narrow\r\r\nx-wait: 6000\r\r\n\r")?;
    until("a pod has the first request", || {
        let log = |pod| bed.lab().pod_logs("mesh", pod);
        let both = log("a")? + &log("b")?;
        Ok(both.contains("request: GET /first").then_some(()))
    })?;
    let answer = get(bed, "mesh/other", "narrow", "")?;
    ensure!(status(&answer) == "503", "{answer}");
    let needles = [
        "path=/narrow",
        "response_flags=OVERLOADED",
        "circuitBreaker",
    ];
    await_log(bed, &needles)?;
    // Its place is another's when it has been answered.
    let answered: LiveEvent = slow.report()?;
    let is_good = matches!(&answered, LiveEvent::Line(line) if line.starts_with("HTTP/1.1 200"));
    ensure!(is_good, "{answered:?}");
    until("there is a place again", || {
        let answer = get(bed, "mesh/other", "narrow", "")?;
        Ok((status(&answer) == "200").then_some(()))
    })
}

fn a_pod_that_fails_gets_nothing_for_a_while_and_never_more_of_them_than_the_share(
    bed: &Bed,
) -> Result<()> {
    let fail = |word: &str| {
        get(
            bed,
            "mesh/client",
            "outlier",
            &format!("x-fail-first: {word}\r\n"),
        )
    };
    let answer = fail("one")?;
    ensure!(status(&answer) == "503", "{answer}");
    let names = || {
        let names = (0..12).map(|_| pod(bed, "outlier", ""));
        names.collect::<Result<Vec<_>>>()
    };
    let left = names()?;
    ensure!(left.iter().all(|name| *name == left[0]), "{left:?}");
    // The other one fails, too, and still gets requests: it is the half that is never ejected.
    let answer = fail("two")?;
    ensure!(status(&answer) == "503", "{answer}");
    let still = names()?;
    ensure!(
        still.iter().all(|name| *name == left[0]),
        "{left:?} {still:?}"
    );
    Ok(())
}

fn without_a_budget_nothing_is_sent_again(bed: &Bed) -> Result<()> {
    let answer = get(bed, "mesh/client", "frugal", "x-fail-first: three\r\n")?;
    ensure!(status(&answer) == "503", "{answer}");
    let line = await_log(bed, &["path=/frugal", "status=503"])?;
    ensure!(!line.contains("retries="), "{line}");
    Ok(())
}

fn a_client_that_is_slow_with_its_body_is_not_held_against_the_pod(bed: &Bed) -> Result<()> {
    let names = || {
        let names = (0..8).map(|_| pod(bed, "patient", ""));
        names.collect::<Result<Vec<_>>>()
    };
    let alternate = |names: &[String]| names.windows(2).all(|pair| pair[0] != pair[1]);
    let mut slow = bed.live("mesh/client", "patient", 80, Family::V4)?;
    slow.say("POST /slow-body HTTP/1.1\r\r\nhost: patient\r\r\ncontent-length: 8\r\r\nx-wait: 900\r\r\n\r")?;
    // The last of it comes in time, and leaves the pod none.
    for _ in 0..4 {
        std::thread::sleep(std::time::Duration::from_millis(200));
        slow.say("a")?;
    }
    let answered: LiveEvent = slow.report()?;
    let told = matches!(&answered, LiveEvent::Line(line) if line.starts_with("HTTP/1.1 408"));
    ensure!(told, "{answered:?}");
    let line = await_log(bed, &["path=/slow-body", "response_flags=SLOW_CLIENT"])?;
    ensure!(line.contains("fault=downstream"), "{line}");
    let still = names()?;
    ensure!(alternate(&still), "{still:?}");
    // A pod that is slow itself is another matter.
    let answer = get(bed, "mesh/client", "patient", "x-wait: 5000\r\n")?;
    ensure!(status(&answer) == "504", "{answer}");
    let left = names()?;
    ensure!(left.iter().all(|name| *name == left[0]), "{left:?}");
    Ok(())
}

fn requests_stay_in_the_zone_until_its_pods_fail(bed: &Bed) -> Result<()> {
    let names = || {
        let names = (0..8).map(|_| pod(bed, "near", ""));
        names.collect::<Result<Vec<_>>>()
    };
    let one = |names: &[String]| names.iter().all(|name| *name == names[0]);
    // Each node is a zone, and so one of the two pods is in the waypoint's.
    let near = names()?;
    ensure!(one(&near), "{near:?}");
    let answer = get(bed, "mesh/client", "near", "x-fail-first: near\r\n")?;
    ensure!(status(&answer) == "503", "{answer}");
    let far = names()?;
    ensure!(one(&far) && far[0] != near[0], "{near:?} {far:?}");
    Ok(())
}

/// What a request gets while another one of another client is under way.
fn beside_another(bed: &Bed, service: &str) -> Result<String> {
    let mut slow = bed.live("mesh/client", service, 80, Family::V4)?;
    let path = format!("/first-of-{service}");
    slow.say(&format!(
        "GET {path} HTTP/1.1\r\r\nhost: {service}\r\r\nx-wait: 6000\r\r\n\r"
    ))?;
    until("a pod has the first request", || {
        let log = |pod| bed.lab().pod_logs("mesh", pod);
        let both = log("a")? + &log("b")?;
        Ok(both.contains(&format!("request: GET {path}")).then_some(()))
    })?;
    let answer = get(bed, "mesh/other", service, "")?;
    let answered: LiveEvent = slow.report()?;
    let is_good = matches!(&answered, LiveEvent::Line(line) if line.starts_with("HTTP/1.1 200"));
    ensure!(is_good, "{answered:?}");
    Ok(answer)
}

fn no_more_connections_stand_than_may_and_an_idle_one_makes_room(bed: &Bed) -> Result<()> {
    let answer = beside_another(bed, "crowded")?;
    ensure!(status(&answer) == "503", "{answer}");
    await_log(bed, &["path=/crowded", "OVERLOADED", "1 connections stand"])?;
    // The other client's is idle then.
    until("there is room again", || {
        let answer = get(bed, "mesh/other", "crowded", "")?;
        Ok((status(&answer) == "200").then_some(()))
    })?;
    pod(bed, "crowded", "")?;
    Ok(())
}

fn the_limit_that_is_found_out_refuses_what_is_beyond_it(bed: &Bed) -> Result<()> {
    let answer = beside_another(bed, "learning")?;
    ensure!(status(&answer) == "503", "{answer}");
    await_log(
        bed,
        &["path=/learning", "OVERLOADED", "adaptiveConcurrency"],
    )?;
    until("there is a place again", || {
        let answer = get(bed, "mesh/other", "learning", "")?;
        Ok((status(&answer) == "200").then_some(()))
    })
}

fn a_pod_that_just_came_gets_less(bed: &Bed) -> Result<()> {
    // Those that are there are none that just came.
    let names = (0..8).map(|_| pod(bed, "young", ""));
    let names: Vec<String> = names.collect::<Result<_>>()?;
    ensure!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    let newcomer = Pod::new("mesh", "c", 2)
        .label("of", "web")
        .serves(&["mirror:8080"])
        .object();
    bed.during(&[newcomer], || {
        until("the newcomer is asked without a policy", || {
            Ok((pod(bed, "turns", "")? == "c").then_some(()))
        })?;
        // Of 60 it would have 20, and has one of 200.
        let names = (0..60).map(|_| pod(bed, "young", ""));
        let names: Vec<String> = names.collect::<Result<_>>()?;
        let of_newcomer = names.iter().filter(|name| *name == "c").count();
        ensure!(of_newcomer < 8, "{names:?}");
        Ok(())
    })
}

/// Asks the service with sessions; the answer, which must be good, and the name of the pod that gave it.
fn ask_sticky(bed: &Bed, path: &str, headers: &str) -> Result<(String, String)> {
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: sticky\r\nconnection: close\r\n{headers}\r\n");
    let answer = bed.ask("mesh/client", "sticky", 80, &request)?.received;
    let named = answer.lines().find_map(|line| line.strip_prefix("pod "));
    let name = named.and_then(|rest| rest.split(' ').next());
    let name = name.filter(|_| status(&answer) == "200").map(str::to_owned);
    Ok((name.with_context(|| answer.clone())?, answer))
}

/// What an answer says of a session in the header of this name, up to a semicolon.
fn told(answer: &str, header: &str) -> Option<String> {
    let lines = answer.lines().take_while(|line| !line.is_empty());
    let mut values = lines.filter_map(|line| line.split_once(": "));
    let (_, value) = values.find(|(name, _)| name.eq_ignore_ascii_case(header))?;
    value.split(';').next().map(str::to_owned)
}

fn the_requests_of_a_session_go_to_its_pod_and_what_a_client_made_up_leads_nowhere(
    bed: &Bed,
) -> Result<()> {
    let (first, answer) = ask_sticky(bed, "/cookie", "")?;
    let cookie = told(&answer, "set-cookie").context(answer)?;
    for _ in 0..7 {
        let (again, answer) = ask_sticky(bed, "/cookie", &format!("cookie: a=b; {cookie}\r\n"))?;
        ensure!(again == first, "{first} and {again}: {cookie}");
        ensure!(told(&answer, "set-cookie").is_none(), "{answer}");
    }
    let (pod, _) = bed.pod_ips("mesh/other")?;
    for made_up in [format!("{pod}:8080"), "00000000000000ff".into()] {
        let headers = format!("cookie: sid={made_up}\r\n");
        let (_, answer) = ask_sticky(bed, "/cookie", &headers)?;
        ensure!(told(&answer, "set-cookie").is_some(), "{answer}");
    }
    let (first, answer) = ask_sticky(bed, "/header", "")?;
    let token = told(&answer, "x-sid").context(answer)?;
    for _ in 0..7 {
        let (again, answer) = ask_sticky(bed, "/header", &format!("x-sid: {token}\r\n"))?;
        ensure!(again == first, "{first} and {again}: {token}");
        ensure!(told(&answer, "x-sid").as_ref() == Some(&token), "{answer}");
    }
    Ok(())
}

fn a_session_stays_with_its_backend_also_where_that_has_no_weight(bed: &Bed) -> Result<()> {
    let (first, answer) = ask_sticky(bed, "/split", "")?;
    ensure!(first == "a", "{answer}");
    let cookie = told(&answer, "set-cookie").context(answer)?;
    bed.apply(&[sticky(0, 1)])?;
    until("the other backend has the weight", || {
        let (name, _) = ask_sticky(bed, "/split", "")?;
        Ok((name == "b").then_some(()))
    })?;
    let (kept, _) = ask_sticky(bed, "/split", &format!("cookie: {cookie}\r\n"))?;
    ensure!(kept == "a", "{kept}");
    Ok(())
}
