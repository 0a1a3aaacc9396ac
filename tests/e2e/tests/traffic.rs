//! Connections between pods, in the mesh and not, in both families, on one node and across two,
//! by every kind of address and name.

#![allow(missing_docs, reason = "the names of tests say what they are about")]

use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use seine_e2e::manifests::{Pod, headless, meshed_namespace, plain_namespace, service};
use seine_e2e::peer::report::{Asked, LiveEvent, Resolved, Stage, Transferred};
use seine_e2e::{Bed, trials};
use serde_json::json;

const SERVERS: [&str; 5] = [
    "echo:8080",
    "greet:8081",
    "sink:8082",
    "source:8083",
    "reset:8084",
];
const PORTS: [(&str, u16, u16); 6] = [
    ("web", 80, 8080),
    ("echo", 8080, 8080),
    ("greet", 8081, 8081),
    ("sink", 8082, 8082),
    ("source", 8083, 8083),
    ("reset", 8084, 8084),
];

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
            both_ends_log_both_identities,
            the_server_sees_the_clients_own_address_and_the_client_the_one_it_asked_for,
            a_meshed_pod_reaches_an_unmeshed_one_and_is_reached_by_it,
            a_pod_reaches_itself_without_the_mesh,
            a_server_that_speaks_first_is_heard,
            a_half_closed_connection_carries_the_answer,
            a_reset_arrives_as_a_reset,
            a_port_where_nothing_listens_fails,
        ],
    )
}

fn up() -> Result<Bed> {
    let mut both = service("mesh", "both", "", &PORTS);
    both["spec"]["selector"] = json!({"tier": "server"});
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
            Pod::new("plain", "client", 1).object(),
            Pod::new("plain", "server", 2).serves(&SERVERS).object(),
            service("mesh", "near", "near", &PORTS),
            service("mesh", "far", "far", &PORTS),
            both,
            headless("mesh", "db", "db", &PORTS),
            service("plain", "server", "server", &PORTS),
        ],
    )
}

fn addresses((v4, v6): (IpAddr, IpAddr)) -> [String; 2] {
    [v4.to_string(), v6.to_string()]
}

fn pods_reach_services_by_address_in_both_families_on_one_node_and_across_two(
    bed: &Bed,
) -> Result<()> {
    for target in ["near", "far"] {
        for address in addresses(bed.service_ips(&format!("mesh/{target}"))?) {
            bed.echoes("mesh/client", &address, 80)?;
        }
    }
    Ok(())
}

fn pods_reach_pods_by_address_in_both_families_on_one_node_and_across_two(bed: &Bed) -> Result<()> {
    for target in ["near", "far"] {
        for address in addresses(bed.pod_ips(&format!("mesh/{target}"))?) {
            bed.echoes("mesh/client", &address, 8080)?;
        }
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
    bed.echoes("mesh/client", "server.plain", 80)?;
    Ok(())
}

fn a_service_spreads_connections_over_all_its_pods(bed: &Bed) -> Result<()> {
    let mut seen = std::collections::BTreeSet::new();
    // By chance alone all 40 would go to one of the two less than once in 10^11.
    for _ in 0..40 {
        let asked = bed.ask("mesh/client", "both", 8081, "")?;
        let pod = asked.received.split(' ').nth(2).map(str::to_owned);
        seen.insert(pod.with_context(|| format!("{asked:?}"))?);
        if seen.len() == 2 {
            break;
        }
    }
    ensure!(seen.len() == 2, "only {seen:?} answered");
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
    Ok(())
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

fn both_ends_log_both_identities(bed: &Bed) -> Result<()> {
    let asked = bed.echoes("mesh/client", "far", 80)?;
    let client = asked.local.context("it was connected")?;
    let identities = [
        "src.identity=spiffe://cluster.local/ns/mesh/sa/client",
        "dst.identity=spiffe://cluster.local/ns/mesh/sa/far",
        "security=mutual_tls",
    ];
    let source = format!("src.addr={client}");
    for (node, direction) in [(1, "direction=outbound"), (2, "direction=inbound")] {
        let mut needles = vec![direction];
        needles.extend(identities);
        if node == 1 {
            needles.push(&source);
        }
        bed.await_ztunnel(node, &needles)?;
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
    for address in addresses(bed.service_ips("plain/server")?)
        .into_iter()
        .chain(addresses(bed.pod_ips("plain/server")?))
    {
        bed.echoes("mesh/client", &address, 8080)?;
    }
    for target in ["mesh/near", "mesh/far"] {
        for address in addresses(bed.service_ips(target)?)
            .into_iter()
            .chain(addresses(bed.pod_ips(target)?))
        {
            bed.echoes("plain/client", &address, 8080)?;
        }
    }
    bed.await_ztunnel(
        2,
        &["direction=inbound", "security=none", "dst.workload=far"],
    )?;
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
    for target in ["near", "far"] {
        // The client says nothing before it has heard.
        let mut live = bed.start("mesh/client", &["live", target, "8081"])?;
        let LiveEvent::Connected { .. } = live.report()? else {
            anyhow::bail!("it did not connect to {target}");
        };
        let LiveEvent::Line(line) = live.report()? else {
            anyhow::bail!("{target} said nothing");
        };
        ensure!(line.starts_with(&format!("hello from {target} ")), "{line}");
        live.say("and the rest")?;
        ensure!(live.report::<LiveEvent>()? == LiveEvent::Line("and the rest".to_owned()));
        ensure!(live.finish::<LiveEvent>()? == LiveEvent::Ended(None));
    }
    Ok(())
}

fn a_half_closed_connection_carries_the_answer(bed: &Bed) -> Result<()> {
    for target in ["near", "far"] {
        // The sink answers after the client's end of stream, and not before.
        let done: Transferred = bed.peer(
            "mesh/client",
            &["transfer", target, "8082", "8083", "100000"],
        )?;
        let expected = seine_e2e::peer::pattern::expected(100_000);
        ensure!(
            done.sent.as_ref() == Some(&expected) && done.received.as_ref() == Some(&expected),
            "{target}: {done:?}"
        );
    }
    Ok(())
}

fn a_reset_arrives_as_a_reset(bed: &Bed) -> Result<()> {
    for target in ["near", "far"] {
        let mut live = bed.start("mesh/client", &["live", target, "8084"])?;
        let LiveEvent::Connected { .. } = live.report()? else {
            anyhow::bail!("it did not connect to {target}");
        };
        live.say("go")?;
        let ended: LiveEvent = live.report()?;
        let LiveEvent::Ended(Some(failure)) = ended else {
            anyhow::bail!("{target}: {ended:?}");
        };
        ensure!(
            failure.is(Stage::Receive, "ECONNRESET"),
            "{target}: {failure}"
        );
    }
    Ok(())
}

fn a_port_where_nothing_listens_fails(bed: &Bed) -> Result<()> {
    let (v4, _) = bed.pod_ips("mesh/far")?;
    let asked = bed.ask("mesh/client", &v4.to_string(), 4444, "x")?;
    ensure!(
        asked.failure.is_some() && asked.was_refused(),
        "a closed port: {asked:?}"
    );
    bed.await_ztunnel(2, &["response_flags=CONNECT", &format!("{v4}:4444")])?;
    Ok(())
}
