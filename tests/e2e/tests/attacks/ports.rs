//! Ports and addresses that a tunnel must not lead to, and ports that are not for others.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use seine_e2e::Family;
use seine_e2e::attack::report::{Garbage, GarbageEnd};
use seine_e2e::peer::report::Asked;
use seine_lab::protocol::Component;

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

pub(crate) fn datagrams_of_garbage_to_the_dns_proxy_harm_nobody(stage: &Stage) -> Result<()> {
    let process = stage.bed.process(Component::Ztunnel, Some(2))?;
    let (_, v6) = stage.bed.pod_ips(SERVER)?;
    let outside = [stage.server(15053)?.to_string(), format!("[{v6}]:15053")];
    let within = [
        "127.0.0.1:15053",
        "[::1]:15053",
        "127.0.0.1:53",
        "10.0.0.1:53",
    ];
    let send = |from: &str, to: &[&str]| -> Result<Vec<Garbage>> {
        stage.attack(from, &[&["garbage", "--datagrams"], to].concat())
    };
    let from_outside = send(ATTACKER, &outside.each_ref().map(String::as_str))?;
    let from_within = send(SERVER, &within)?;
    for report in from_outside.iter().chain(&from_within) {
        // No more than was sent: nobody is made to flood somebody else.
        ensure!(report.received < 2000, "{report:?}");
    }
    // The twin: a question, of the same pod to the same proxy.
    stage
        .bed
        .echoes(SERVER, "server.mesh.svc.cluster.local", 8080)?;
    ensure!(
        stage.bed.process(Component::Ztunnel, Some(2))? == process,
        "ztunnel did not survive"
    );
    Ok(())
}

pub(crate) fn garbage_on_every_port_harms_nobody(stage: &Stage) -> Result<()> {
    let process = stage.bed.process(Component::Ztunnel, Some(2))?;
    let (_, v6) = stage.bed.pod_ips(SERVER)?;
    let mut addresses = Vec::new();
    for port in [15001, 15006, 15008, 15053] {
        addresses.push(stage.server(port)?.to_string());
        addresses.push(format!("[{v6}]:{port}"));
    }
    for component in [Component::Ztunnel, Component::Agent] {
        let found = stage.bed.component(component, Some(2))?;
        let ip = found.addresses.first().context("it has an address")?;
        addresses.extend([15020, 15021].map(|port| format!("{ip}:{port}")));
    }
    addresses.push(format!("{}:15012", stage.control()?));
    let mut arguments = vec!["garbage"];
    arguments.extend(addresses.iter().map(String::as_str));
    let from_outside: Vec<Garbage> = stage.attack(ATTACKER, &arguments)?;
    // From within the pod, to the ports that are for its own connections.
    let own = [
        "garbage",
        "127.0.0.1:15001",
        "127.0.0.1:15053",
        "[::1]:15001",
    ];
    let from_within: Vec<Garbage> = stage.attack(SERVER, &own)?;
    for report in from_outside.iter().chain(&from_within) {
        // An HTTP error or an alert of TLS at most, and nothing is kept open but what may yet turn
        // out to be a question: DNS over TCP announces its length first.
        ensure!(report.received < 512, "{report:?}");
        let may_wait = report.address.port() == 15053;
        ensure!(report.end != GarbageEnd::Open || may_wait, "{report:?}");
    }
    let tunnels = from_outside.iter().filter(|g| g.address.port() == 15008);
    for report in tunnels {
        let local = report.local.context("the HBONE port accepts")?;
        stage.bed.await_ztunnel(
            2,
            &[
                "a tunnel is refused",
                &format!("peer={local}"),
                "TLS_FAILURE",
            ],
        )?;
    }
    // The twins: what these ports are for.
    let twin = tunnel(stage, &[], &stage.server(8080)?.to_string())?;
    ensure!(carried(&twin), "the twin failed: {twin:?}");
    let host = stage.server(8080)?.ip().to_string();
    stage.bed.echoes("mesh/client", &host, 8080)?;
    stage.bed.echoes(ATTACKER, &host, 8080)?;
    ensure!(
        stage.bed.process(Component::Ztunnel, Some(2))? == process,
        "ztunnel did not survive"
    );
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
            ensure!(report.local.is_some(), "{report:?}");
            ensure!(report.received < 512, "{report:?}");
            ensure!(report.end == GarbageEnd::Ended, "{report:?}");
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
