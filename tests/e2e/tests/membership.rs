//! Who is in the mesh, while pods run, come and go; and what a pod keeps out of it.

#![allow(missing_docs, reason = "the names of tests say what they are about")]

use std::net::IpAddr;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use seine_e2e::manifests::{
    MESH_LABEL, Pod, authorization, mesh_tls, meshed_namespace, plain_namespace, service,
};
use seine_e2e::peer::report::LiveEvent;
use seine_e2e::{Bed, Family, Running, trials, until};
use serde_json::{Value, json};

const SERVERS: [&str; 2] = ["echo:8080", "greet:8081"];
const PORTS: [(&str, u16, u16); 2] = [("echo", 8080, 8080), ("greet", 8081, 8081)];

fn main() -> ExitCode {
    seine_e2e::trial::main(
        up,
        trials![
            a_running_pod_joins_and_leaves_the_mesh_by_its_label_without_a_restart,
            a_namespaces_label_brings_all_its_running_pods_in_and_out,
            excluded_outbound_ports_and_networks_go_out_in_plaintext,
            an_excluded_inbound_port_takes_plaintext_under_strict,
            a_terminating_pod_stays_in_the_mesh_until_its_last_process_ends,
            a_reused_address_carries_the_new_pods_identity_and_never_the_old_ones,
        ],
    )
}

fn up() -> Result<Bed> {
    Bed::up(
        "e2e-membership",
        &[
            meshed_namespace("mesh"),
            plain_namespace("plain"),
            plain_namespace("moving"),
            Pod::new("mesh", "client", 1).object(),
            Pod::new("mesh", "far", 2).serves(&SERVERS).object(),
            mover("disabled").object(),
            Pod::new("plain", "client", 1).object(),
            Pod::new("moving", "server", 2).serves(&SERVERS).object(),
            Pod::new("moving", "client", 1).object(),
            service("mesh", "far", "far", &PORTS),
            service("moving", "server", "server", &PORTS),
        ],
    )
}

fn mover(mesh: &str) -> Pod {
    Pod::new("mesh", "mover", 1)
        .serves(&SERVERS)
        .label(MESH_LABEL, mesh)
}

/// Connects to an echo server on node2 and says by the log of its ztunnel how that came in:
/// `mutual_tls` or `none`.
fn security(bed: &Bed, from: &str, host: &str, port: u16) -> Result<String> {
    let asked = bed.ask(from, host, port, "x")?;
    ensure!(asked.failure.is_none(), "{from} to {host}: {asked:?}");
    let local = asked.local.context("it was connected")?;
    let line = bed.await_ztunnel(2, &["direction=inbound", &format!("src.addr={local}")])?;
    let security = line.split("security=").nth(1).unwrap_or_default();
    Ok(security.split(' ').next().unwrap_or_default().to_owned())
}

fn a_running_pod_joins_and_leaves_the_mesh_by_its_label_without_a_restart(bed: &Bed) -> Result<()> {
    ensure!(security(bed, "mesh/mover", "far", 8080)? == "none");
    let uid = bed.pod("mesh/mover")?.uid;
    bed.apply(&[mover("enabled").object()])?;
    bed.await_enrolled("mesh/mover", true)?;
    until("the pod's connections are in mutual TLS", || {
        Ok((security(bed, "mesh/mover", "far", 8080)? == "mutual_tls").then_some(()))
    })?;
    bed.echoes(
        "mesh/client",
        &bed.pod_ips("mesh/mover")?.0.to_string(),
        8080,
    )?;
    bed.apply(&[mover("disabled").object()])?;
    bed.await_enrolled("mesh/mover", false)?;
    until("the pod's connections are plain", || {
        Ok((security(bed, "mesh/mover", "far", 8080)? == "none").then_some(()))
    })?;
    bed.echoes(
        "plain/client",
        &bed.pod_ips("mesh/mover")?.1.to_string(),
        8080,
    )?;
    let after = bed.pod("mesh/mover")?;
    ensure!(
        after.uid == uid && after.restarts == 0,
        "the pod was made anew: {after:?}"
    );
    Ok(())
}

fn a_namespaces_label_brings_all_its_running_pods_in_and_out(bed: &Bed) -> Result<()> {
    bed.echoes("moving/client", "server", 8080)?;
    bed.apply(&[meshed_namespace("moving")])?;
    for pod in ["moving/client", "moving/server"] {
        bed.await_enrolled(pod, true)?;
    }
    until("the connection is in mutual TLS", || {
        Ok((security(bed, "moving/client", "server", 8080)? == "mutual_tls").then_some(()))
    })?;
    bed.apply(&[plain_namespace("moving")])?;
    for pod in ["moving/client", "moving/server"] {
        bed.await_enrolled(pod, false)?;
    }
    until("the connection works without the mesh", || {
        let asked = bed.ask("moving/client", "server", 8080, "x")?;
        Ok((asked.received == "x").then_some(()))
    })
}

fn excluded_outbound_ports_and_networks_go_out_in_plaintext(bed: &Bed) -> Result<()> {
    let (far4, far6) = bed.pod_ips("mesh/far")?;
    let (far4, far6) = (far4.to_string(), far6.to_string());
    let by_port =
        Pod::new("mesh", "by-port", 1).annotation("seine.dev/exclude-outbound-ports", "8081");
    let by_network = Pod::new("mesh", "by-network", 1)
        .annotation("seine.dev/exclude-outbound-cidrs", &format!("{far4}/32"));
    bed.during(&[by_port.object(), by_network.object()], || {
        ensure!(security(bed, "mesh/by-port", &far4, 8080)? == "mutual_tls");
        ensure!(security(bed, "mesh/by-port", &far4, 8081)? == "none");
        ensure!(security(bed, "mesh/by-port", &far6, 8081)? == "none");
        ensure!(security(bed, "mesh/by-network", &far4, 8080)? == "none");
        ensure!(security(bed, "mesh/by-network", &far6, 8080)? == "mutual_tls");
        Ok(())
    })
}

fn an_excluded_inbound_port_takes_plaintext_under_strict(bed: &Bed) -> Result<()> {
    let partly = Pod::new("mesh", "partly", 2)
        .serves(&SERVERS)
        .annotation("seine.dev/exclude-inbound-ports", "8081");
    let strict = mesh_tls("mesh", "strict-partly", "partly", "Strict");
    bed.during(&[strict, partly.object()], || {
        let (v4, v6) = bed.pod_ips("mesh/partly")?;
        for address in [v4.to_string(), v6.to_string()] {
            let open = bed.ask("plain/client", &address, 8081, "")?;
            ensure!(open.received.starts_with("hello from partly"), "{open:?}");
            let closed = bed.ask("plain/client", &address, 8080, "x")?;
            ensure!(closed.was_refused(), "{closed:?}");
        }
        Ok(())
    })
}

fn a_terminating_pod_stays_in_the_mesh_until_its_last_process_ends(bed: &Bed) -> Result<()> {
    // On node 2, whose log tells of what comes in.
    let leaver = Pod::new("mesh", "leaver", 2).serves(&SERVERS).stays(120);
    bed.apply(&[leaver.object()])?;
    let pod = bed.pod("mesh/leaver")?;
    let (v4, v6) = bed.pod_ips("mesh/leaver")?;
    let mut to = bed.live("mesh/client", &v4.to_string(), 8080, Family::V4)?;
    let mut from = bed.live("mesh/leaver", "far", 8080, Family::V6)?;
    std::thread::scope(|scope| {
        let deletion = scope.spawn(|| bed.delete("mesh", "pod/leaver"));
        let outcome = stays_meshed(bed, [v4, v6], [&mut to, &mut from]);
        // Its last processes, whatever came of that, or nobody would wait for the deletion.
        std::fs::write(Path::new(&pod.cgroup).join("cgroup.kill"), "1")?;
        let deleted = deletion.join().expect("it doesn't panic");
        outcome?;
        deleted
    })?;
    until("its node's proxy has let go of it", || {
        let dump: Value = serde_json::from_str(&bed.ztunnel_admin(2, "/config_dump")?)?;
        Ok((!dump["pods"].to_string().contains(&pod.uid)).then_some(()))
    })?;
    let ended: LiveEvent = to.report()?;
    ensure!(matches!(ended, LiveEvent::Ended(_)), "{ended:?}");
    Ok(())
}

/// Of pod `leaver`, which is being deleted.
fn stays_meshed(bed: &Bed, addresses: [IpAddr; 2], lives: [&mut Running; 2]) -> Result<()> {
    until("all know that the pod is terminating", || {
        let terminating = bed.pod("mesh/leaver")?.phase == "Terminating";
        let knows = |node| -> Result<bool> {
            let dump: Value = serde_json::from_str(&bed.ztunnel_admin(node, "/config_dump")?)?;
            let workloads = dump["workloads"].as_array().context("workloads")?;
            let mut found = workloads.iter().filter(|one| one["name"] == "leaver");
            Ok(found.all(|one| one["healthy"] == false))
        };
        Ok((terminating && knows(1)? && knows(2)?).then_some(()))
    })?;
    // New connections, both ways and in both families.
    for address in addresses {
        let security = security(bed, "mesh/client", &address.to_string(), 8080)?;
        ensure!(security == "mutual_tls", "to it at {address}: {security}");
    }
    let (far4, far6) = bed.pod_ips("mesh/far")?;
    for address in [far4, far6] {
        let security = security(bed, "mesh/leaver", &address.to_string(), 8080)?;
        ensure!(security == "mutual_tls", "from it to {address}: {security}");
    }
    // And those that stood.
    for live in lives {
        live.say("still here")?;
        let event: LiveEvent = live.report()?;
        ensure!(
            event == LiveEvent::Line("still here".to_owned()),
            "{event:?}"
        );
    }
    bed.await_enrolled("mesh/leaver", true)
}

fn a_reused_address_carries_the_new_pods_identity_and_never_the_old_ones(bed: &Bed) -> Result<()> {
    let old = Pod::new("mesh", "tenant", 1)
        .account("old")
        .serves(&SERVERS);
    let new = Pod::new("mesh", "tenant", 1)
        .account("new")
        .serves(&SERVERS);
    let only_old = authorization(
        "mesh",
        "only-the-old-tenant",
        "far",
        "Allow",
        json!([{"from": [{"serviceAccounts": ["old", "client"]}]}]),
    );
    bed.during(&[only_old, old.object()], || {
        let (address, _) = bed.pod_ips("mesh/tenant")?;
        // Tunnels in both directions, which are kept for reuse.
        until("the old tenant is admitted", || {
            let asked = bed.ask("mesh/tenant", "far", 8080, "x")?;
            Ok((asked.received == "x").then_some(()))
        })?;
        bed.echoes("mesh/client", &address.to_string(), 8080)?;

        bed.delete("mesh", "pod/tenant")?;
        bed.apply(&[new.object()])?;
        ensure!(
            bed.pod_ips("mesh/tenant")?.0 == address,
            "the lab gave the new pod another address"
        );
        for _ in 0..5 {
            let asked = bed.ask("mesh/tenant", "far", 8080, "x")?;
            ensure!(asked.was_refused(), "admitted as the old tenant: {asked:?}");
        }
        bed.await_ztunnel(
            2,
            &[
                "connection denied",
                "src.identity=spiffe://cluster.local/ns/mesh/sa/new",
            ],
        )?;
        let asked = bed.echoes("mesh/client", &address.to_string(), 8080)?;
        let local = asked.local.context("it was connected")?;
        bed.await_ztunnel(
            1,
            &[
                "direction=outbound",
                &format!("src.addr={local}"),
                "dst.identity=spiffe://cluster.local/ns/mesh/sa/new",
            ],
        )?;
        Ok(())
    })
}
