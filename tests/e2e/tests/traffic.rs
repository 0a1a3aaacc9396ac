//! Connections between pods, in the mesh and not, in both families, on one node and across two,
//! by every kind of address and name.

#![allow(missing_docs, reason = "the names of tests say what they are about")]

use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use seine_e2e::manifests::{Pod, headless, meshed_namespace, plain_namespace, service};
use seine_e2e::peer::report::{Asked, LiveEvent, Resolved, Stage, Transferred};
use seine_e2e::{Bed, Family, trials, until};
use serde_json::json;

const SERVERS: [&str; 6] = [
    "echo:8080",
    "greet:8081",
    "sink:8082",
    "source:8083",
    "reset:8084",
    "end:8085",
];
const PORTS: [(&str, u16, u16); 7] = [
    ("web", 80, 8080),
    ("echo", 8080, 8080),
    ("greet", 8081, 8081),
    ("sink", 8082, 8082),
    ("source", 8083, 8083),
    ("reset", 8084, 8084),
    ("end", 8085, 8085),
];

/// A headless service of so many pods, with a name so long that its records fill a packet.
const WIDE: &str = "a-name-that-takes-many-bytes";
const WIDTH: u8 = 10;

fn main() -> ExitCode {
    seine_e2e::trial::main(
        up,
        trials![
            pods_reach_services_by_address_in_both_families_on_one_node_and_across_two,
            pods_reach_pods_by_address_in_both_families_on_one_node_and_across_two,
            pods_reach_services_by_short_and_by_full_names,
            a_service_spreads_connections_over_all_its_pods,
            a_headless_service_and_each_pod_of_its_stateful_set_have_names,
            dns_answers_a_aaaa_and_srv_and_forwards_what_is_not_the_meshs,
            dns_answers_are_whole_over_udp_and_tcp_whoever_gives_them_and_are_counted,
            the_server_sees_the_clients_own_address_and_the_client_the_one_it_asked_for,
            a_meshed_pod_reaches_an_unmeshed_one_and_is_reached_by_it,
            a_pod_reaches_itself_without_the_mesh,
            a_server_that_speaks_first_is_heard,
            a_half_closed_connection_carries_the_answer,
            a_servers_reset_arrives_as_a_reset,
            a_clients_reset_arrives_as_a_reset_and_its_end_as_an_end,
            a_port_where_nothing_listens_is_refused,
        ],
    )
}

fn up() -> Result<Bed> {
    let mut both = service("mesh", "both", "", &PORTS);
    both["spec"]["selector"] = json!({"tier": "server"});
    let mut spread = headless("mesh", "spread", "", &PORTS);
    spread["spec"]["selector"] = json!({"tier": "server"});
    let mut wide = headless("mesh", WIDE, WIDE, &PORTS);
    wide["spec"]["ports"]
        .as_array_mut()
        .expect("it has ports")
        .push(json!({"name": "talk", "protocol": "UDP", "port": 5000}));
    Bed::up(
        "e2e-traffic",
        &[
            meshed_namespace("mesh"),
            plain_namespace("plain"),
            Pod::new("mesh", "client", 1)
                .serves(&["echo:8080"])
                .object(),
            Pod::new("mesh", "near", 1)
                .serves(&SERVERS)
                .label("tier", "server")
                .object(),
            Pod::new("mesh", "far", 2)
                .serves(&SERVERS)
                .label("tier", "server")
                .object(),
            Pod::new("mesh", "db", 2).serves(&SERVERS).stateful_set(2),
            Pod::new("mesh", WIDE, 2).stateful_set(WIDTH),
            wide,
            Pod::new("plain", "client", 1).object(),
            Pod::new("plain", "near", 1).serves(&SERVERS).object(),
            Pod::new("plain", "far", 2).serves(&SERVERS).object(),
            service("mesh", "near", "near", &PORTS),
            service("mesh", "far", "far", &PORTS),
            both,
            spread,
            headless("mesh", "db", "db", &PORTS),
            service("plain", "near", "near", &PORTS),
            service("plain", "far", "far", &PORTS),
        ],
    )
}

/// The meshed servers, each with the number of its node; the client is on node 1.
const TARGETS: [(&str, u8); 2] = [("near", 1), ("far", 2)];

/// Each server in each family.
fn cases() -> impl Iterator<Item = (&'static str, u8, Family)> {
    TARGETS
        .into_iter()
        .flat_map(|(target, node)| Family::ALL.map(|family| (target, node, family)))
}

fn addresses((v4, v6): (IpAddr, IpAddr)) -> [String; 2] {
    [v4.to_string(), v6.to_string()]
}

/// The client gets its echo, and both ends log that it was in mutual TLS between these two.
fn echoes_in_the_mesh(
    bed: &Bed,
    (target, node, family): (&str, u8, Family),
    address: IpAddr,
    port: u16,
) -> Result<()> {
    let client = family.of(bed.pod_ips("mesh/client")?);
    // As it begins where a port follows.
    let client = std::net::SocketAddr::new(client, 0).to_string();
    let client = format!("src.addr={}", client.trim_end_matches('0'));
    let identity = format!("dst.identity=spiffe://cluster.local/ns/mesh/sa/{target} ");
    let needles = [
        "connection closed",
        "direction=inbound",
        "security=mutual_tls",
        "src.identity=spiffe://cluster.local/ns/mesh/sa/client ",
        &identity,
        &client,
    ];
    let before = bed.ztunnel_lines(node, &needles)?.len();
    let asked = bed.echoes("mesh/client", &address.to_string(), port)?;
    let source = asked.local.context("it was connected")?;
    let source = format!("src.addr={source} ");
    let mut outbound = needles;
    (outbound[1], outbound[5]) = ("direction=outbound", source.as_str());
    bed.await_ztunnel(1, &outbound)?;
    until(
        &format!("node{node} logs the inbound end {needles:?}"),
        || {
            let now = bed.ztunnel_lines(node, &needles)?.len();
            Ok((now > before).then_some(()))
        },
    )
}

fn pods_reach_services_by_address_in_both_families_on_one_node_and_across_two(
    bed: &Bed,
) -> Result<()> {
    for case in cases() {
        let address = case.2.of(bed.service_ips(&format!("mesh/{}", case.0))?);
        echoes_in_the_mesh(bed, case, address, 80)?;
    }
    Ok(())
}

fn pods_reach_pods_by_address_in_both_families_on_one_node_and_across_two(bed: &Bed) -> Result<()> {
    for case in cases() {
        let address = case.2.of(bed.pod_ips(&format!("mesh/{}", case.0))?);
        echoes_in_the_mesh(bed, case, address, 8080)?;
    }
    Ok(())
}

fn pods_reach_services_by_short_and_by_full_names(bed: &Bed) -> Result<()> {
    for name in [
        "far",
        "far.mesh",
        "far.mesh.svc",
        "far.mesh.svc.cluster.local",
    ] {
        bed.echoes("mesh/client", name, 80)?;
    }
    bed.echoes("mesh/client", "far.plain", 80)?;
    Ok(())
}

fn a_service_spreads_connections_over_all_its_pods(bed: &Bed) -> Result<()> {
    answers_from_both(bed, "both")
}

fn answers_from_both(bed: &Bed, service: &str) -> Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    // By chance alone all 40 would go to one of the two less than once in 10^11.
    for _ in 0..40 {
        let asked = bed.ask("mesh/client", service, 8081, "")?;
        let pod = asked.received.split(' ').nth(2).map(str::to_owned);
        seen.insert(pod.with_context(|| format!("{asked:?}"))?);
        if seen.len() == 2 {
            break;
        }
    }
    ensure!(seen.len() == 2, "of {service} only {seen:?} answered");
    Ok(())
}

fn a_headless_service_and_each_pod_of_its_stateful_set_have_names(bed: &Bed) -> Result<()> {
    bed.echoes("mesh/client", "db", 8080)?;
    for pod in ["db-0", "db-1"] {
        for family in ["4", "6"] {
            let asked: Asked = bed.peer(
                "mesh/client",
                &["ask", &format!("{pod}.db"), "8081", "--family", family],
            )?;
            ensure!(
                asked.received.starts_with(&format!("hello from {pod} ")),
                "{pod} IPv{family}: {asked:?}"
            );
        }
    }
    bed.await_ztunnel(
        2,
        &[
            "direction=inbound",
            "security=mutual_tls",
            "dst.workload=db-1",
            "src.identity=spiffe://cluster.local/ns/mesh/sa/client",
        ],
    )?;
    // One whose pods are on both nodes.
    let spread: Resolved = bed.peer(
        "mesh/client",
        &[
            "resolve",
            "spread.mesh.svc.cluster.local.",
            "--type",
            "AAAA",
        ],
    )?;
    let mut pods = Vec::new();
    for (target, _) in TARGETS {
        pods.push(bed.pod_ips(&format!("mesh/{target}"))?.1.to_string());
    }
    pods.sort();
    ensure!(spread.answers == pods, "{spread:?}, not {pods:?}");
    bed.echoes("mesh/client", "spread", 8080).map(drop)
}

fn dns_answers_a_aaaa_and_srv_and_forwards_what_is_not_the_meshs(bed: &Bed) -> Result<()> {
    let resolve = |name: &str, kind: &str| -> Result<Resolved> {
        bed.peer("mesh/client", &["resolve", name, "--type", kind])
    };
    let (v4, v6) = bed.service_ips("mesh/far")?;
    let name = "far.mesh.svc.cluster.local.";
    ensure!(resolve(name, "A")?.answers == [v4.to_string()]);
    ensure!(resolve(name, "AAAA")?.answers == [v6.to_string()]);
    let srv = resolve("_web._tcp.far.mesh.svc.cluster.local.", "SRV")?;
    ensure!(srv.answers == [format!("80 {name}")], "{srv:?}");

    let mut pods = Vec::new();
    for pod in ["db-0", "db-1"] {
        let (v4, _) = bed.pod_ips(&format!("mesh/{pod}"))?;
        let own = resolve(&format!("{pod}.db.mesh.svc.cluster.local."), "A")?;
        ensure!(own.answers == [v4.to_string()], "{pod}: {own:?}");
        pods.push(v4.to_string());
    }
    pods.sort();
    let all = resolve("db.mesh.svc.cluster.local.", "A")?;
    ensure!(all.answers == pods, "{all:?}");

    // The lab's own name server gives names a shorter life.
    ensure!(all.ttl == Some(30), "the mesh did not answer: {all:?}");
    let unknown = resolve("nobody.mesh.svc.cluster.local.", "A")?;
    ensure!(unknown.code == "NXDomain", "{unknown:?}");
    Ok(())
}

/// Asks and says how many queries node 1's proxy counted, as answered by itself and by a resolver.
fn counted(bed: &Bed, from: &str, arguments: &[&str]) -> Result<(Resolved, [f64; 2])> {
    let counts = || -> Result<[f64; 2]> {
        let count = |result| {
            let label = format!("result=\"{result}\"");
            bed.ztunnel_metric(1, "seine_dns_queries_total", &[&label])
        };
        Ok([count("answered")?, count("forwarded")?])
    };
    let before = counts()?;
    let resolved = bed.peer(from, arguments)?;
    let after = counts()?;
    Ok((resolved, [after[0] - before[0], after[1] - before[1]]))
}

fn dns_answers_are_whole_over_udp_and_tcp_whoever_gives_them_and_are_counted(
    bed: &Bed,
) -> Result<()> {
    // Of a TCP port the mesh knows, of a UDP port a resolver alone does, and gives a shorter life.
    for (port, ttl, expected) in [
        ("_echo._tcp", 30, [1.0, 0.0]),
        ("_talk._udp", 5, [0.0, 1.0]),
    ] {
        // Long records of many pods: more than the 512 bytes that every client takes over UDP.
        let name = format!("{port}.{WIDE}.mesh.svc.cluster.local.");
        // Whichever server is asked: it is the mesh that answers.
        for server in ["10.0.0.1:53", "[2001:db8::1]:53"] {
            let ask = |way: &[&str]| -> Result<Resolved> {
                let question = ["resolve", &name, "--type", "SRV", "--server", server];
                let (resolved, count) = counted(bed, "mesh/client", &[&question, way].concat())?;
                ensure!(
                    count == expected,
                    "counted {count:?}: {name} of {server} {way:?}: {resolved:?}"
                );
                Ok(resolved)
            };
            let cut = ask(&[])?;
            ensure!(
                cut.truncated && cut.bytes <= 512,
                "{name} of {server}: {cut:?}"
            );
            for way in [
                &["--tcp"][..],
                &["--takes", "4096"],
                // A query that is larger than a packet.
                &["--takes", "4096", "--padding", "3000"],
            ] {
                let whole = ask(way)?;
                ensure!(
                    !whole.truncated && whole.bytes > 512,
                    "{name} of {server} {way:?}: {whole:?}"
                );
                ensure!(
                    whole.answers.len() == usize::from(WIDTH) && whole.ttl == Some(ttl),
                    "{name} of {server} {way:?}: {whole:?}"
                );
            }
        }
    }
    Ok(())
}

fn the_server_sees_the_clients_own_address_and_the_client_the_one_it_asked_for(
    bed: &Bed,
) -> Result<()> {
    let client = bed.pod_ips("mesh/client")?;
    for target in ["near", "far"] {
        let (v4, v6) = bed.service_ips(&format!("mesh/{target}"))?;
        let server = bed.pod_ips(&format!("mesh/{target}"))?;
        for (vip, client, server) in [(v4, client.0, server.0), (v6, client.1, server.1)] {
            let asked = bed.ask("mesh/client", &vip.to_string(), 8081, "")?;
            let peer = asked.peer.with_context(|| format!("{asked:?}"))?;
            ensure!((peer.ip(), peer.port()) == (vip, 8081), "{asked:?}");
            let words: Vec<_> = asked.received.split_whitespace().collect();
            let [_, _, name, _, seen, _, own] = words[..] else {
                anyhow::bail!("{asked:?}");
            };
            let seen: std::net::SocketAddr = seen.parse()?;
            let own: std::net::SocketAddr = own.parse()?;
            ensure!(
                name == target && seen.ip() == client && own.ip() == server && own.port() == 8081,
                "{asked:?}; the client is {client}, the server {server}"
            );
        }
    }
    Ok(())
}

fn a_meshed_pod_reaches_an_unmeshed_one_and_is_reached_by_it(bed: &Bed) -> Result<()> {
    for (client, namespace) in [("mesh/client", "plain"), ("plain/client", "mesh")] {
        for (target, _) in TARGETS {
            let target = format!("{namespace}/{target}");
            for address in addresses(bed.service_ips(&target)?)
                .into_iter()
                .chain(addresses(bed.pod_ips(&target)?))
            {
                bed.echoes(client, &address, 8080)?;
            }
        }
    }
    for (target, node) in TARGETS {
        let workload = format!("dst.workload={target} ");
        for (node, direction, namespace) in [
            (node, "direction=inbound", "dst.namespace=mesh"),
            (1, "direction=outbound", "dst.namespace=plain"),
        ] {
            let needles = [direction, "security=none", &workload, namespace];
            bed.await_ztunnel(node, &needles)?;
        }
    }
    Ok(())
}

fn a_pod_reaches_itself_without_the_mesh(bed: &Bed) -> Result<()> {
    let [v4, v6] = addresses(bed.pod_ips("mesh/client")?);
    for address in ["127.0.0.1", "::1", &v4, &v6] {
        bed.echoes("mesh/client", address, 8080)?;
    }
    Ok(())
}

fn a_server_that_speaks_first_is_heard(bed: &Bed) -> Result<()> {
    for (target, _, family) in cases() {
        // The client says nothing before it has heard.
        let mut live = bed.live("mesh/client", target, 8081, family)?;
        let LiveEvent::Line(line) = live.report()? else {
            anyhow::bail!("{target} said nothing by {family:?}");
        };
        ensure!(line.starts_with(&format!("hello from {target} ")), "{line}");
        live.say("and the rest")?;
        ensure!(live.report::<LiveEvent>()? == LiveEvent::Line("and the rest".to_owned()));
        ensure!(live.finish::<LiveEvent>()? == LiveEvent::Ended(None));
    }
    Ok(())
}

fn a_half_closed_connection_carries_the_answer(bed: &Bed) -> Result<()> {
    for (target, _, family) in cases() {
        // The sink answers after the client's end of stream, and not before.
        let family = family.number();
        let bytes = "100000";
        let done: Transferred = bed.peer(
            "mesh/client",
            &[
                "transfer", target, "8082", "8083", bytes, "--family", family,
            ],
        )?;
        let expected = seine_e2e::peer::pattern::expected(bytes.parse()?);
        ensure!(
            done.sent.as_ref() == Some(&expected) && done.received.as_ref() == Some(&expected),
            "{target} by IPv{family}: {done:?}"
        );
    }
    Ok(())
}

fn a_servers_reset_arrives_as_a_reset(bed: &Bed) -> Result<()> {
    for (target, _, family) in cases() {
        let mut live = bed.live("mesh/client", target, 8084, family)?;
        live.say("go")?;
        let ended: LiveEvent = live.report()?;
        let LiveEvent::Ended(Some(failure)) = ended else {
            anyhow::bail!("{target} by {family:?}: {ended:?}");
        };
        ensure!(
            failure.is(Stage::Receive, "ECONNRESET"),
            "{target} by {family:?}: {failure}"
        );
    }
    Ok(())
}

fn a_clients_reset_arrives_as_a_reset_and_its_end_as_an_end(bed: &Bed) -> Result<()> {
    for (target, _, family) in cases() {
        let client = family.of(bed.pod_ips("mesh/client")?);
        for (resets, how) in [(true, "ECONNRESET"), (false, "EOF")] {
            let mut live = bed.live("mesh/client", target, 8085, family)?;
            // The server has read it when it comes back.
            live.say("word")?;
            ensure!(live.report::<LiveEvent>()? == LiveEvent::Line("word".to_owned()));
            if resets {
                live.say(seine_e2e::peer::client::RESET)?;
            } else {
                ensure!(live.finish::<LiveEvent>()? == LiveEvent::Ended(None));
            }
            let line = format!("end: 5 bytes from {client}, then {how}");
            until(&format!("{target} prints {line:?}"), || {
                let log = bed.lab().pod_logs("mesh", target)?;
                Ok(log
                    .lines()
                    .any(|l| l.trim_end().ends_with(&line))
                    .then_some(()))
            })?;
        }
    }
    Ok(())
}

fn a_port_where_nothing_listens_is_refused(bed: &Bed) -> Result<()> {
    for (target, node, family) in cases() {
        let address = family.of(bed.pod_ips(&format!("mesh/{target}"))?);
        let asked = bed.ask("mesh/client", &address.to_string(), 4444, "x")?;
        ensure!(asked.was_refused(), "a closed port: {asked:?}");
        let closed = std::net::SocketAddr::new(address, 4444);
        let closed = format!("dst.original={closed}");
        bed.await_ztunnel(node, &["response_flags=CONNECT", &closed])?;
    }
    Ok(())
}
