//! Ports and addresses that a tunnel must not lead to, and ports that are not for others.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use seine_e2e::attack::garbage::{BYTES, DATAGRAMS};
use seine_e2e::attack::report::{Garbage, GarbageEnd};
use seine_e2e::bed::peer_program;
use seine_e2e::peer::report::{Asked, Resolved};
use seine_e2e::{Family, until};
use seine_lab::protocol::Component;

use super::authority::gets_a_certificate;
use super::certificates::{carried, tunnel};
use super::stage::{ATTACKER, SERVER, Stage};

/// The CONNECT is answered with `status`, for this reason; the twin's with 200.
fn leads_nowhere(stage: &Stage, authority: &str, status: u16, reason: &str) -> Result<()> {
    let attempt = tunnel(stage, &[], authority)?;
    ensure!(attempt.status == Some(status), "{authority}: {attempt:?}");
    let local = attempt.local.context("there was no TCP connection")?;
    stage.bed.await_ztunnel(
        2,
        &[
            "connection denied",
            &format!("src.addr={local}"),
            "response_flags=REFUSED",
            reason,
        ],
    )?;
    let twin = tunnel(stage, &[], &stage.server(8080)?.to_string())?;
    ensure!(carried(&twin), "the twin failed: {twin:?}");
    Ok(())
}

pub(crate) fn a_tunnel_leads_to_no_address_but_the_pods(stage: &Stage) -> Result<()> {
    let neighbour = stage.bed.pod_ips("mesh/other")?;
    let reason = "is not an address of pod server";
    for family in Family::ALL {
        let neighbour = SocketAddr::new(family.of(neighbour), 8080);
        leads_nowhere(stage, &neighbour.to_string(), 400, reason)?;
    }
    leads_nowhere(stage, &format!("{}:15012", stage.control()?), 400, reason)
}

pub(crate) fn a_tunnel_leads_to_none_of_the_proxys_own_ports(stage: &Stage) -> Result<()> {
    for port in [15001, 15006, 15008, 15053] {
        for family in Family::ALL {
            let authority = stage.server_by(family, port)?.to_string();
            leads_nowhere(stage, &authority, 503, "is the proxy's own")?;
        }
    }
    Ok(())
}

pub(crate) fn a_tunnel_leads_not_to_loopback(stage: &Stage) -> Result<()> {
    for authority in ["127.0.0.1:8080", "[::1]:8080", "localhost:8080"] {
        leads_nowhere(stage, authority, 400, "is not an address of pod server")?;
    }
    Ok(())
}

/// Plaintext to a port of the pod brings nothing, from outside of the mesh and from a pod in it;
/// the same to the application's port does.
fn is_closed_to_others(stage: &Stage, port: u16) -> Result<()> {
    for family in Family::ALL {
        let address = stage.server_by(family, port)?;
        let host = address.ip().to_string();
        let reason = format!("{address} is the proxy's own");
        for (from, security) in [(ATTACKER, "none"), ("mesh/client", "mutual_tls")] {
            let asked: Asked = stage.bed.ask(from, &host, port, "let me in")?;
            ensure!(asked.was_refused(), "{from} to {address}: {asked:?}");
            stage.bed.echoes(from, &host, 8080)?;
            let source = match family.of(stage.bed.pod_ips(from)?) {
                IpAddr::V4(v4) => format!("src.addr={v4}:"),
                IpAddr::V6(v6) => format!("src.addr=[{v6}]:"),
            };
            let security = format!("security={security}");
            let denied = "connection denied direction=inbound";
            stage
                .bed
                .await_ztunnel(2, &[denied, &security, &source, &reason])?;
        }
    }
    Ok(())
}

pub(crate) fn another_pods_plaintext_port_can_not_be_connected_to(stage: &Stage) -> Result<()> {
    is_closed_to_others(stage, 15006)
}

pub(crate) fn another_pods_outbound_port_can_not_be_connected_to(stage: &Stage) -> Result<()> {
    is_closed_to_others(stage, 15001)
}

/// Queries of node 2's pods that were no queries.
fn dropped_queries(stage: &Stage) -> Result<f64> {
    let labels = ["result=\"dropped\""];
    stage
        .bed
        .ztunnel_metric(2, "seine_dns_queries_total", &labels)
}

/// Waits until so many more are counted.
fn await_dropped(stage: &Stage, before: f64, more: u32) -> Result<()> {
    until(&format!("{more} more queries are dropped"), || {
        let now = dropped_queries(stage)?;
        Ok((now >= before + f64::from(more)).then_some(()))
    })
}

pub(crate) fn datagrams_of_garbage_to_the_dns_proxy_harm_nobody(stage: &Stage) -> Result<()> {
    let process = stage.bed.process(Component::Ztunnel, Some(2))?;
    let outside = [
        stage.server_by(Family::V4, 15053)?.to_string(),
        stage.server_by(Family::V6, 15053)?.to_string(),
    ];
    let within = [
        "127.0.0.1:15053",
        "[::1]:15053",
        "10.0.0.1:53",
        "[2001:db8::1]:53",
    ];
    let send = |from: &str, to: &[&str]| -> Result<Vec<Garbage>> {
        stage.attack(from, &[&["garbage", "--datagrams"], to].concat())
    };
    let before = dropped_queries(stage)?;
    let from_outside = send(ATTACKER, &outside.each_ref().map(String::as_str))?;
    let from_within = send(SERVER, &within)?;
    for report in &from_outside {
        // The pod's loopback alone listens there: nobody gets them, as the count below says.
        ensure!(report.received == 0, "{report:?}");
    }
    for report in &from_within {
        ensure!(
            report.received == 0 && report.end == GarbageEnd::Open,
            "{report:?}"
        );
    }
    let sent = u32::try_from(from_within.len() * DATAGRAMS.len())?;
    await_dropped(stage, before, sent)?;
    // The twin: a question, of the same pod to the same proxy.
    stage
        .bed
        .echoes(SERVER, "server.mesh.svc.cluster.local", 8080)?;
    ensure!(
        dropped_queries(stage)? == before + f64::from(sent),
        "a question was dropped"
    );
    ensure!(
        stage.bed.process(Component::Ztunnel, Some(2))? == process,
        "ztunnel did not survive"
    );
    Ok(())
}

/// The reason for which a connection of an attacker was ended, by its own end of it.
fn is_logged(stage: &Stage, report: &Garbage, component: Component, words: &[&str]) -> Result<()> {
    let local = report
        .local
        .with_context(|| format!("there was no connection: {report:?}"))?;
    let port = format!(":{} ", local.port());
    let node = if component == Component::Control {
        1
    } else {
        2
    };
    until(&format!("{component:?} logs {words:?} of{port}"), || {
        let lines = stage.log_lines(component, node, words)?;
        // With the end of the line for a blank, so that no port is taken for a longer one.
        let found = lines
            .into_iter()
            .find(|line| format!("{line} ").contains(&port));
        Ok(found)
    })?;
    Ok(())
}

pub(crate) fn garbage_on_every_port_of_a_pod_harms_nobody(stage: &Stage) -> Result<()> {
    let process = stage.bed.process(Component::Ztunnel, Some(2))?;
    let mut addresses = Vec::new();
    for port in [15001, 15006, 15008, 15053, 8080] {
        for family in Family::ALL {
            addresses.push(stage.server_by(family, port)?.to_string());
        }
    }
    let arguments: Vec<_> = ["garbage"]
        .into_iter()
        .chain(addresses.iter().map(String::as_str))
        .collect();
    let reports: Vec<Garbage> = stage.attack(ATTACKER, &arguments)?;
    for report in &reports {
        let own = format!("{} is the proxy's own", report.address);
        match report.address.port() {
            15008 => {
                // An alert of TLS at most.
                ensure!(report.received < 512, "{report:?}");
                ensure!(report.end == GarbageEnd::Ended, "{report:?}");
                let reason = ["a tunnel is refused", "TLS_FAILURE"];
                is_logged(stage, report, Component::Ztunnel, &reason)?;
            }
            // The twin: the same bytes to the application, which may have them.
            8080 => ensure!(report.received == BYTES, "{report:?}"),
            _ => {
                ensure!(report.received == 0, "{report:?}");
                ensure!(report.end == GarbageEnd::Ended, "{report:?}");
                let reason = [
                    "connection denied direction=inbound security=none",
                    "response_flags=REFUSED",
                    &own,
                ];
                is_logged(stage, report, Component::Ztunnel, &reason)?;
            }
        }
    }
    // The twin of those to 15008: what the port is for.
    let twin = tunnel(stage, &[], &stage.server(8080)?.to_string())?;
    ensure!(carried(&twin), "the twin failed: {twin:?}");
    ensure!(
        stage.bed.process(Component::Ztunnel, Some(2))? == process,
        "ztunnel did not survive"
    );
    Ok(())
}

/// To the ports that are for the pod's own connections.
pub(crate) fn garbage_from_within_a_pod_harms_nobody(stage: &Stage) -> Result<()> {
    let process = stage.bed.process(Component::Ztunnel, Some(2))?;
    let before = dropped_queries(stage)?;
    let own = [
        "garbage",
        "127.0.0.1:15001",
        "[::1]:15001",
        "127.0.0.1:15053",
        "[::1]:15053",
    ];
    let reports: Vec<Garbage> = stage.attack(SERVER, &own)?;
    for report in &reports {
        ensure!(report.received == 0, "{report:?}");
        if report.address.port() == 15053 {
            // DNS over TCP announces a length first: more may yet come.
            ensure!(report.end == GarbageEnd::Open, "{report:?}");
            is_logged(stage, report, Component::Ztunnel, &["DNS over TCP"])?;
        } else {
            ensure!(report.end == GarbageEnd::Ended, "{report:?}");
            let reason = [
                "connection denied direction=outbound",
                "response_flags=REFUSED",
                "nothing redirected it here",
            ];
            is_logged(stage, report, Component::Ztunnel, &reason)?;
        }
    }
    await_dropped(stage, before, 2)?;
    // The twins: a question over TCP to the same sockets, and a connection that was redirected.
    for server in ["127.0.0.1:15053", "[::1]:15053"] {
        let name = "server.mesh.svc.cluster.local.";
        let arguments = ["resolve", name, "--tcp", "--server", server];
        let resolved: Resolved = stage.bed.peer(SERVER, &arguments)?;
        ensure!(resolved.code == "NoError", "{resolved:?}");
    }
    for family in Family::ALL {
        let host = stage.server_by(family, 8080)?.ip().to_string();
        stage.bed.echoes("mesh/client", &host, 8080)?;
    }
    ensure!(
        stage.bed.process(Component::Ztunnel, Some(2))? == process,
        "ztunnel did not survive"
    );
    Ok(())
}

/// From a pod to what the mesh's own programs serve there.
pub(crate) fn garbage_on_the_ports_of_the_meshs_programs_harms_nobody(stage: &Stage) -> Result<()> {
    let mut targets = vec![(
        Component::Control,
        SocketAddr::new(stage.control()?, 15012),
        "TLS handshake failed",
    )];
    for ip in stage.bed.component(Component::Ztunnel, Some(2))?.addresses {
        for port in [15020, 15021] {
            let address = SocketAddr::new(ip, port);
            targets.push((Component::Ztunnel, address, "a connection to a page ended"));
        }
    }
    for (component, address, reason) in targets {
        let node = (component != Component::Control).then_some(2);
        let process = stage.bed.process(component, node)?;
        let reports: Vec<Garbage> = stage.attack(ATTACKER, &["garbage", &address.to_string()])?;
        for report in &reports {
            // An HTTP error or an alert of TLS at most.
            ensure!(report.received < 512, "{report:?}");
            ensure!(report.end == GarbageEnd::Ended, "{report:?}");
            is_logged(stage, report, component, &[reason])?;
        }
        // The twin: what the port is for.
        match component {
            Component::Control => gets_a_certificate(stage)?,
            _ => page(stage, address)?,
        }
        ensure!(
            stage.bed.process(component, node)? == process,
            "{component:?} did not survive"
        );
    }
    Ok(())
}

/// The page that is served at a port of metrics or of readiness, as the attacker may see it.
fn page(stage: &Stage, address: SocketAddr) -> Result<()> {
    let path = match address.port() {
        15020 => "/metrics",
        _ => "/healthz/ready",
    };
    let (namespace, pod) = ATTACKER.split_once('/').context("NAMESPACE/NAME")?;
    let program = peer_program().display().to_string();
    let command = [program.as_str(), "get", &address.to_string(), path];
    let output = stage.bed.lab().exec(namespace, pod, &command)?;
    ensure!(output.code == 0, "{address}{path}: {output:?}");
    Ok(())
}

/// The pages that only loopback of their own network reaches, which a compromised neighbour there does.
pub(crate) fn garbage_on_the_pages_of_loopback_harms_nobody(stage: &Stage) -> Result<()> {
    for (component, node, port, page) in [
        (Component::Ztunnel, Some(2), 15000, "/config_dump"),
        (Component::Agent, Some(2), 15010, "/status"),
        (Component::Control, None, 15014, "/status"),
    ] {
        let process = stage.bed.process(component, node)?;
        let page = || stage.bed.page(component, node, port, page);
        page()?;
        let address = format!("127.0.0.1:{port}");
        let reports: Vec<Garbage> = stage.attack_within(process, &["garbage", &address])?;
        for report in reports {
            // A connection was there and has ended, with an HTTP error at most.
            ensure!(report.received < 512, "{report:?}");
            ensure!(report.end == GarbageEnd::Ended, "{report:?}");
            is_logged(stage, &report, component, &["a connection to a page ended"])?;
        }
        // The twin: the page.
        page()?;
        ensure!(
            stage.bed.process(component, node)? == process,
            "{component:?} did not survive"
        );
    }
    Ok(())
}
