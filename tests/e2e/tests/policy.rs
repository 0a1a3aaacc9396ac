//! Who may talk to whom, and what the wire shows: strict and permissive, policies, probes.

#![allow(missing_docs, reason = "the names of tests say what they are about")]

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use seine_e2e::manifests::{
    Pod, authorization, mesh_tls, meshed_namespace, plain_namespace, service,
};
use seine_e2e::peer::report::{Asked, LiveEvent, Stage};
use seine_e2e::{Bed, Family, Running, trials, until};
use seine_lab::pcap::Capture;
use seine_lab::protocol::Component;
use serde_json::json;

const SERVERS: [&str; 3] = ["echo:8080", "greet:8081", "http:8082"];
const PORTS: [(&str, u16, u16); 2] = [("echo", 8080, 8080), ("greet", 8081, 8081)];

fn main() -> ExitCode {
    seine_e2e::trial::main(
        up,
        trials![
            the_wire_between_nodes_shows_neither_payload_nor_any_port_but_hbone,
            strict_refuses_plaintext_and_permissive_admits_it,
            the_kubelets_probes_reach_a_strict_pod_and_no_other_plaintext_does,
            a_denied_connection_is_refused_and_the_log_names_the_policy,
            an_allow_policy_admits_only_whom_it_names,
            a_policy_that_only_audits_refuses_nothing_and_logs,
            a_policy_that_changes_closes_the_live_connections_it_forbids_and_no_others,
            a_policy_judges_the_original_port,
            an_allow_policy_for_a_service_admits_whom_it_names_there_and_leaves_other_ports_alone,
            a_policy_that_became_invalid_stays_in_force_over_a_restart_of_the_control_plane,
        ],
    )
}

fn up() -> Result<Bed> {
    Bed::up(
        "e2e-policy",
        &[
            meshed_namespace("mesh"),
            plain_namespace("plain"),
            Pod::new("mesh", "client", 1).object(),
            Pod::new("mesh", "other", 1).object(),
            Pod::new("mesh", "near", 1).serves(&SERVERS).object(),
            Pod::new("mesh", "far", 2).serves(&SERVERS).object(),
            Pod::new("plain", "client", 1).object(),
            Pod::new("plain", "server", 2).serves(&SERVERS).object(),
            service("mesh", "near", "near", &PORTS),
            service("mesh", "far", "far", &PORTS),
            service("plain", "server", "server", &PORTS),
        ],
    )
}

fn capture(bed: &Bed, node: u8, work: impl FnOnce() -> Result<()>) -> Result<Capture> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("wire.pcap");
    let capture = bed.lab().capture(node, &file, &["tcp"])?;
    work()?;
    capture.stop()?;
    Capture::read(&file)
}

fn the_wire_between_nodes_shows_neither_payload_nor_any_port_but_hbone(bed: &Bed) -> Result<()> {
    let secret = "in-the-open-it-would-be-seen";
    let (v4, v6) = bed.pod_ips("mesh/far")?;
    let (client4, client6) = bed.pod_ips("mesh/client")?;
    let ask = |from: &str, to: &str| -> Result<()> {
        let asked = bed.ask(from, to, 8080, secret)?;
        ensure!(asked.received == secret, "{from} to {to}: {asked:?}");
        Ok(())
    };
    let (plain4, _) = bed.pod_ips("plain/server")?;
    let open = capture(bed, 1, || ask("plain/client", &plain4.to_string()))?;
    ensure!(
        open.count(secret.as_bytes()) >= 2,
        "the capture does not see what is in the open"
    );
    let meshed = capture(bed, 1, || {
        ask("mesh/client", "far")?;
        ask("mesh/client", &v4.to_string())?;
        ask("mesh/client", &v6.to_string())
    })?;
    ensure!(meshed.count(secret.as_bytes()) == 0, "the payload is seen");
    let between: Vec<_> = meshed
        .segments
        .iter()
        .filter(|s| {
            let ends = [s.source.0, s.destination.0];
            ends.contains(&client4) || ends.contains(&client6)
        })
        .collect();
    ensure!(
        between.iter().any(|s| s.destination == (v4, 15008))
            && between.iter().any(|s| s.destination == (v6, 15008)),
        "nothing of the pods' connections was captured: {:?}",
        meshed.by_port()
    );
    for segment in between {
        ensure!(segment.touches(15008), "{segment:?}");
    }
    Ok(())
}

fn strict_refuses_plaintext_and_permissive_admits_it(bed: &Bed) -> Result<()> {
    for (target, node, other) in [("far", 2, "near"), ("near", 1, "far")] {
        let name = format!("{target}.mesh");
        let (v4, v6) = bed.pod_ips(&format!("mesh/{target}"))?;
        let hosts = [name.clone(), v4.to_string(), v6.to_string()];
        for host in &hosts {
            bed.echoes("plain/client", host, 8080)?;
        }
        bed.during(&[mesh_tls("mesh", "strict", target, "Strict")], || {
            refused(bed, "plain/client", &name, 8080)?;
            for host in &hosts {
                let asked = bed.ask("plain/client", host, 8080, "x")?;
                ensure!(asked.was_refused(), "{host}: {asked:?}");
                bed.echoes("mesh/client", host, 8080)?;
            }
            let workload = format!("dst.workload={target} ");
            bed.await_ztunnel(node, &["connection denied", "security=none", &workload])?;
            // The others are as they were.
            bed.echoes("plain/client", &format!("{other}.mesh"), 8080)
                .map(drop)
        })?;
        until("plaintext is admitted again", || {
            let asked = bed.ask("plain/client", &name, 8080, "x")?;
            Ok((asked.received == "x").then_some(()))
        })?;
    }
    Ok(())
}

fn the_kubelets_probes_reach_a_strict_pod_and_no_other_plaintext_does(bed: &Bed) -> Result<()> {
    let probed = Pod::new("mesh", "probed", 2)
        .serves(&["http:9000", "http:9001"])
        .container(json!({
            "readinessProbe": {"httpGet": {"path": "/", "port": 9000}, "periodSeconds": 1},
        }))
        .object();
    bed.during(
        &[
            mesh_tls("mesh", "strict-probed", "probed", "Strict"),
            probed,
        ],
        || {
            // It is ready, as apply waited for that.
            let (v4, v6) = bed.pod_ips("mesh/probed")?;
            for address in [v4.to_string(), v6.to_string()] {
                for port in [9000, 9001] {
                    let asked =
                        bed.ask("plain/client", &address, port, "GET / HTTP/1.1\r\n\r\n")?;
                    ensure!(asked.was_refused(), "{address} {port}: {asked:?}");
                    let asked = bed.ask("mesh/client", &address, port, "GET / HTTP/1.1\r\n\r\n")?;
                    ensure!(asked.received.contains("200 OK"), "{asked:?}");
                }
            }
            ensure!(bed.pod("mesh/probed")?.ready);
            Ok(())
        },
    )
}

fn refused(bed: &Bed, from: &str, host: &str, port: u16) -> Result<Asked> {
    until(&format!("{from} is refused at {host}:{port}"), || {
        let asked = bed.ask(from, host, port, "x")?;
        Ok(asked.was_refused().then_some(asked))
    })
}

fn a_denied_connection_is_refused_and_the_log_names_the_policy(bed: &Bed) -> Result<()> {
    let deny = authorization(
        "mesh",
        "not-the-client",
        "far",
        "Deny",
        json!([{"from": [{"serviceAccounts": ["client"]}]}]),
    );
    bed.during(&[deny], || {
        refused(bed, "mesh/client", "far", 8080)?;
        bed.await_ztunnel(
            2,
            &[
                "connection denied",
                "policy=mesh/not-the-client",
                "src.identity=spiffe://cluster.local/ns/mesh/sa/client",
            ],
        )?;
        bed.echoes("mesh/other", "far", 8080)?;
        bed.echoes("mesh/client", "near", 8080).map(drop)
    })
}

fn an_allow_policy_admits_only_whom_it_names(bed: &Bed) -> Result<()> {
    let allow = authorization(
        "mesh",
        "only-the-client",
        "near",
        "Allow",
        json!([{"from": [{"principals": ["cluster.local/ns/mesh/sa/client"]}]}]),
    );
    bed.during(&[allow], || {
        refused(bed, "mesh/other", "near", 8080)?;
        refused(bed, "plain/client", "near.mesh", 8080)?;
        bed.echoes("mesh/client", "near", 8080)?;
        bed.await_ztunnel(
            1,
            &[
                "connection denied",
                "src.identity=spiffe://cluster.local/ns/mesh/sa/other",
            ],
        )?;
        Ok(())
    })
}

fn a_policy_that_only_audits_refuses_nothing_and_logs(bed: &Bed) -> Result<()> {
    let policy = |name, action| {
        let rules = json!([{"from": [{"serviceAccounts": ["other"]}]}]);
        authorization("mesh", name, "far", action, rules)
    };
    let mut dry_run = policy("would-deny", "Deny");
    dry_run["spec"]["dryRun"] = true.into();
    for (policy, name) in [
        (dry_run, "would-deny"),
        (policy("audits", "Audit"), "audits"),
    ] {
        bed.during(&[policy], || {
            until("the audit is logged", || {
                bed.echoes("mesh/other", "far", 8080)?;
                Ok(bed.ztunnel_lines(2, &[name])?.pop())
            })?;
            Ok(())
        })?;
    }
    Ok(())
}

fn an_allow_policy_for_a_service_admits_whom_it_names_there_and_leaves_other_ports_alone(
    bed: &Bed,
) -> Result<()> {
    let mut allow = authorization(
        "mesh",
        "service-only-for-the-client",
        "far",
        "Allow",
        json!([{"from": [{"serviceAccounts": ["client"]}]}]),
    );
    let spec = &mut allow["spec"];
    spec.as_object_mut().context("a spec")?.remove("selector");
    spec["targetRefs"] = json!([{"kind": "Service", "name": "far"}]);
    bed.during(&[allow], || {
        for port in [8080, 8081] {
            refused(bed, "mesh/other", "far", port)?;
        }
        bed.echoes("mesh/client", "far", 8080)?;
        // The service doesn't lead to this port.
        let (v4, _) = bed.pod_ips("mesh/far")?;
        let asked = bed.ask(
            "mesh/other",
            &v4.to_string(),
            8082,
            "GET / HTTP/1.1\r\n\r\n",
        )?;
        ensure!(asked.received.contains("200 OK"), "{asked:?}");
        bed.echoes("mesh/other", "near", 8080).map(drop)
    })
}

fn a_policy_that_became_invalid_stays_in_force_over_a_restart_of_the_control_plane(
    bed: &Bed,
) -> Result<()> {
    let policy = |port: u32| {
        let rules = json!([{"to": [{"ports": [port]}]}]);
        authorization("mesh", "not-8081", "far", "Deny", rules)
    };
    bed.during(&[policy(8081)], || {
        refused(bed, "mesh/client", "far", 8081)?;
        bed.apply(&[policy(0)])?;
        let process = bed.process(Component::Control, None)?;
        bed.lab().restart(Component::Control, 1)?;
        ensure!(
            bed.process(Component::Control, None)? != process,
            "it restarted"
        );
        // Its proxies are told of something newer, and the policy is none of what is taken away.
        let after = authorization(
            "mesh",
            "not-near",
            "near",
            "Deny",
            json!([{"to": [{"ports": [8080]}]}]),
        );
        bed.during(&[after], || {
            refused(bed, "mesh/client", "near", 8080)?;
            let asked = bed.ask("mesh/client", "far", 8081, "x")?;
            ensure!(asked.was_refused(), "{asked:?}");
            bed.echoes("mesh/client", "far", 8080).map(drop)
        })
    })
}

fn a_policy_that_changes_closes_the_live_connections_it_forbids_and_no_others(
    bed: &Bed,
) -> Result<()> {
    for (target, node) in [("far", 2), ("near", 1)] {
        let live = |from: &str, family| -> Result<Running> {
            let mut live = bed.live(from, target, 8080, family)?;
            live.say("before")?;
            ensure!(live.report::<LiveEvent>()? == LiveEvent::Line("before".to_owned()));
            Ok(live)
        };
        let [forbidden4, forbidden6] = Family::ALL.map(|family| live("mesh/client", family));
        let (mut forbidden4, mut forbidden6) = (forbidden4?, forbidden6?);
        let mut allowed = live("mesh/other", Family::V4)?;
        let name = format!("no-longer-to-{target}");
        let rules = json!([{"from": [{"serviceAccounts": ["client"]}]}]);
        let deny = authorization("mesh", &name, target, "Deny", rules);
        bed.during(&[deny], || {
            for forbidden in [&mut forbidden4, &mut forbidden6] {
                let ended: LiveEvent = forbidden.report()?;
                let LiveEvent::Ended(Some(failure)) = &ended else {
                    anyhow::bail!("{target}: {ended:?}");
                };
                ensure!(
                    failure.is(Stage::Receive, "ECONNRESET"),
                    "{target}: {failure}"
                );
            }
            let policy = format!("policy mesh/{name}");
            bed.await_ztunnel(node, &["no longer allows it", &policy])?;
            allowed.say("after")?;
            ensure!(allowed.report::<LiveEvent>()? == LiveEvent::Line("after".to_owned()));
            ensure!(allowed.finish::<LiveEvent>()? == LiveEvent::Ended(None));
            Ok(())
        })?;
    }
    Ok(())
}

fn a_policy_judges_the_original_port(bed: &Bed) -> Result<()> {
    let deny = authorization(
        "mesh",
        "not-greetings",
        "far",
        "Deny",
        json!([{"to": [{"ports": [8081]}]}]),
    );
    bed.during(&[deny], || {
        refused(bed, "mesh/client", "far", 8081).context("by mutual TLS")?;
        refused(bed, "plain/client", "far.mesh", 8081).context("by plaintext")?;
        bed.echoes("mesh/client", "far", 8080)?;
        bed.echoes("plain/client", "far.mesh", 8080).map(drop)
    })
}
