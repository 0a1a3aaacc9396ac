//! What a pod might get past the kernel's programs with.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use seine_e2e::Family;
use seine_e2e::bed::until;
use seine_e2e::manifests::{self, Pod, authorization, mesh_tls};
use seine_e2e::peer::report::Asked;
use seine_lab::pcap::Capture;
use serde_json::json;

use super::stage::{ATTACKER, SERVER, Stage};

/// What ztunnel marks its sockets towards the application with.
const PROXY_MARK: &str = "1337";

pub(crate) fn the_proxys_mark_on_a_pods_sockets_gets_past_nothing(stage: &Stage) -> Result<()> {
    let deny = authorization(
        "mesh",
        "not-the-client",
        "server",
        "Deny",
        json!([{"from": [{"serviceAccounts": ["client"]}]}]),
    );
    stage.bed.during(&[deny], || {
        let host = stage.server(8080)?.ip().to_string();
        until("the policy is in force", || {
            let asked = stage.bed.ask("mesh/client", &host, 8080, "x")?;
            Ok(asked.was_refused().then_some(()))
        })?;
        for family in Family::ALL {
            the_mark_gets_past_nothing(stage, family)
                .with_context(|| format!("over {family:?}"))?;
        }
        Ok(())
    })
}

/// Who is denied is so with the mark on its socket too, by the proxies that its connection came through.
fn the_mark_gets_past_nothing(stage: &Stage, family: Family) -> Result<()> {
    let address = stage.server_by(family, 8080)?.to_string();
    let marked = |from: &str| -> Result<Asked> {
        let send = ["--send", "marked"];
        let mut arguments = vec!["marked", &address, "--mark", PROXY_MARK];
        arguments.extend(send);
        stage.attack(from, &arguments)
    };
    let denials = || -> Result<(usize, usize)> {
        let client = SocketAddr::new(family.of(stage.bed.pod_ips("mesh/client")?), 0).to_string();
        let from = format!("src.addr={}", client.trim_end_matches('0'));
        let to = format!("dst.original={address}");
        let by = "denied by policy mesh/not-the-client";
        let outbound = ["connection denied direction=outbound", &from, &to];
        let inbound = ["connection denied direction=inbound", &from, &to, by];
        Ok((
            stage.bed.ztunnel_lines(1, &outbound)?.len(),
            stage.bed.ztunnel_lines(2, &inbound)?.len(),
        ))
    };
    let file = stage.files.path().join("marked.pcap");
    let capture = stage.bed.lab().capture(1, &file, &["tcp"])?;
    let before = denials()?;
    let attack = marked("mesh/client")?;
    // The twin: another account with the same mark, who may connect, and does so through the
    // proxy as well.
    let twin = marked("mesh/other")?;
    // And one whom nothing redirects: what the capture shows then.
    let outside = marked(ATTACKER)?;
    capture.stop()?;
    ensure!(attack.was_refused(), "{attack:?}");
    ensure!(twin.received == "marked", "the twin failed: {twin:?}");
    ensure!(outside.received == "marked", "{outside:?}");
    until("both proxies log the denial", || {
        let now = denials()?;
        Ok((now.0 == before.0 + 1 && now.1 == before.1 + 1).then_some(()))
    })?;
    let wire = Capture::read(&file)?;
    let opened = |from: &str| -> Result<Vec<u16>> {
        let (v4, v6) = stage.bed.pod_ips(from)?;
        let from = |ip: IpAddr| ip == v4 || ip == v6;
        let opens = wire.segments.iter().filter(|s| s.opens && from(s.source.0));
        Ok(opens.map(|s| s.destination.1).collect())
    };
    for meshed in ["mesh/client", "mesh/other"] {
        let ports = opened(meshed)?;
        ensure!(
            ports.iter().all(|port| *port == 15008),
            "{meshed} connected to {ports:?}"
        );
    }
    let ports = opened(ATTACKER)?;
    ensure!(ports == [8080], "the capture shows {ports:?}");
    Ok(())
}

/// A pod on node 2, whose probe asks this host and port.
fn spy(name: &str, host: Option<IpAddr>, port: u16) -> serde_json::Value {
    Pod::new("mesh", name, 2)
        .serves(&["http:8082"])
        .container(json!({"readinessProbe": {
            "httpGet": {"path": "/", "port": port, "host": host},
            "periodSeconds": 1,
        }}))
        .object()
}

/// A probe of `name` at `host` and `port` is refused by that pod's strict policy, as any plaintext;
/// the same pod that probes itself, at its address of that family, is ready.
fn probe_gets_nothing(
    stage: &Stage,
    name: &str,
    target: &str,
    host: IpAddr,
    port: u16,
    node: u8,
) -> Result<()> {
    let strict = mesh_tls("mesh", "strict", target, "Strict");
    stage.bed.during(&[strict], || {
        let attack = format!("{name}-attack");
        let lab = stage.bed.lab();
        let to = SocketAddr::new(host, port);
        let reason = [
            "connection denied direction=inbound security=none",
            &format!("dst.original={to}"),
            "denied by policy",
        ];
        let before = stage.bed.ztunnel_lines(node, &reason)?.len();
        lab.apply(&manifests::text(&[spy(&attack, Some(host), port)]))?;
        let logged = until(&format!("the probe of {to} is denied"), || {
            Ok((stage.bed.ztunnel_lines(node, &reason)?.len() > before).then_some(()))
        });
        let ready = stage.bed.pod(&format!("mesh/{attack}"))?.ready;
        lab.delete("mesh", &format!("Pod/{attack}"))?;
        logged?;
        ensure!(!ready, "the probe succeeded");
        probes_itself(stage, &format!("{name}-twin"), host.is_ipv6())?;
        ensure!(stage.bed.pod(SERVER)?.ready, "the pod's own probe fails");
        Ok(())
    })
}

/// A pod whose policy is strict, and whose probe asks its own address, gets ready.
fn probes_itself(stage: &Stage, name: &str, by_v6: bool) -> Result<()> {
    let own = || -> Result<IpAddr> {
        let (v4, v6) = stage.bed.pod_ips(&format!("mesh/{name}"))?;
        Ok(if by_v6 { v6 } else { v4 })
    };
    let strict = mesh_tls("mesh", "strict-twin", name, "Strict");
    stage.bed.during(&[strict, spy(name, None, 8082)], || {
        let address = own()?;
        // A freed address is the next to be given out, so that the probe can name it.
        stage.bed.delete("mesh", &format!("Pod/{name}"))?;
        // All are ready when this returns.
        stage.bed.apply(&[spy(name, Some(address), 8082)])?;
        ensure!(own()? == address, "the lab gave the pod another address");
        // Nothing but the probe is let through to that port.
        let asked = stage.bed.ask(ATTACKER, &address.to_string(), 8082, "x")?;
        ensure!(asked.was_refused(), "{address}: {asked:?}");
        Ok(())
    })
}

pub(crate) fn a_probe_aimed_at_another_port_gets_nothing(stage: &Stage) -> Result<()> {
    for family in Family::ALL {
        let host = stage.server_by(family, 8080)?.ip();
        probe_gets_nothing(stage, "port-spy", "server", host, 8080, 2)
            .with_context(|| format!("over {family:?}"))?;
    }
    Ok(())
}

pub(crate) fn a_probe_aimed_at_a_pod_of_another_node_gets_nothing(stage: &Stage) -> Result<()> {
    // On node 1, and probed there on this very port by its own kubelet.
    let far = Pod::new("mesh", "far", 1)
        .serves(&["http:8082"])
        .container(json!({"readinessProbe": {
            "httpGet": {"path": "/", "port": 8082}, "periodSeconds": 1,
        }}))
        .object();
    stage.bed.during(&[far], || {
        for family in Family::ALL {
            let host = family.of(stage.bed.pod_ips("mesh/far")?);
            probe_gets_nothing(stage, "node-spy", "far", host, 8082, 1)
                .with_context(|| format!("over {family:?}"))?;
        }
        Ok(())
    })
}
