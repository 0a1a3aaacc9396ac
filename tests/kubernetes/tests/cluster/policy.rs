//! Policies, probes, NetworkPolicies, and what the command line says of them.

use anyhow::{Context as _, Result, ensure};
use seine_e2e::manifests::{Pod, authorization, meshed_namespace, service};
use seine_kubernetes_tests::{step, within};
use serde_json::json;

use crate::bed::{Bed, PATIENCE};
use crate::traffic::meshed_shop;

pub(crate) fn a_policy_is_enforced_by_both_nodes_and_the_command_line_explains_it(
    bed: &Bed,
) -> Result<()> {
    meshed_shop(bed)?;
    step("a policy for port 8080");
    let nobody = json!([{"from": [{"serviceAccounts": ["nobody"]}], "to": [{"ports": [8080]}]}]);
    bed.apply(&[authorization("shop", "server", "server", "Allow", nobody)])?;
    let object = ["-n", "shop", "authorizationpolicy", "server"];
    for kind in ["Accepted", "ResolvedRefs", "Programmed", "Enforced"] {
        within(PATIENCE, &format!("condition {kind} is True"), || {
            let condition = bed.condition(&object, kind)?.context("no condition yet")?;
            let generation = condition["observedGeneration"] == 1;
            ensure!(condition["status"] == "True" && generation, "{condition}");
            Ok(Some(()))
        })?;
    }
    within(PATIENCE, "both nodes enforce it", || {
        let condition = bed
            .condition(&object, "Enforced")?
            .context("no condition")?;
        let message = condition["message"].as_str().unwrap_or_default();
        ensure!(message.contains("2 of 2 node proxies"), "{condition}");
        Ok(Some(()))
    })?;
    let denied = bed.ask("shop/client", "server.shop", 80, "hello")?;
    ensure!(denied.was_refused(), "{denied:?}");
    within(PATIENCE, "the access log names the policy", || {
        Ok(bed
            .ztunnel_lines(&["DENY", "shop/server"])?
            .first()
            .map(drop))
    })?;
    let explain = "seine explain client.shop server.shop:80";
    let explained = bed.try_script("control-plane", explain)?;
    ensure!(
        explained.code == 1 && explained.stdout.contains("denied"),
        "{explained:?}"
    );

    step("the policy now names the client");
    let client = json!([{"from": [{"serviceAccounts": ["client"]}], "to": [{"ports": [8080]}]}]);
    bed.apply(&[authorization("shop", "server", "server", "Allow", client)])?;
    bed.await_echo("shop/client", "server.shop", 80)?;
    let other = bed.ask("shop/client", "server.shop", 81, "hello")?;
    ensure!(other.was_refused(), "another port: {other:?}");
    let stranger = bed.ask("outside/client", "server.shop", 80, "hello")?;
    ensure!(stranger.was_refused(), "without identity: {stranger:?}");
    within(PATIENCE, "the condition is of the new generation", || {
        let condition = bed
            .condition(&object, "Enforced")?
            .context("no condition")?;
        Ok((condition["observedGeneration"] == 2 && condition["status"] == "True").then_some(()))
    })?;
    bed.script("control-plane", explain)?;
    let words = ["-n", "shop", "delete", "authorizationpolicy", "server"];
    bed.cluster.kubectl(&words)?;
    bed.await_echo("shop/client", "server.shop", 81)
}

pub(crate) fn probes_and_workloads_of_every_kind_work_while_plaintext_is_refused(
    bed: &Bed,
) -> Result<()> {
    meshed_shop(bed)?;
    step("docs/OPT-IN.md: strict");
    bed.follow_one("OPT-IN.md", 2)?;
    within(PATIENCE, "plaintext is refused", || {
        let plain = bed.ask("outside/client", "server.shop", 80, "hello")?;
        Ok(plain.was_refused().then_some(()))
    })?;

    step("a probed pod, a StatefulSet and a Job");
    let get = |seconds: u8| json!({"httpGet": {"path": "/", "port": 8082}, "periodSeconds": seconds, "failureThreshold": 2});
    let probed = Pod::new("shop", "probed", 1)
        .serves(&["http:8082"])
        .container(
            json!({"readinessProbe": get(1), "livenessProbe": get(1), "startupProbe": get(1)}),
        );
    let mut set = Pod::new("shop", "db", 2)
        .serves(&["echo:5432"])
        .stateful_set(2);
    set["spec"]["template"]["spec"]["containers"][0]["readinessProbe"] =
        json!({"tcpSocket": {"port": 5432}, "periodSeconds": 1});
    let mut job = Pod::new("shop", "migrate", 1).object();
    let mut spec = job["spec"].take();
    spec["restartPolicy"] = json!("Never");
    let program = spec["containers"][0]["command"][0].clone();
    let to = [
        "ask",
        "db-1.db.shop.svc.cluster.local",
        "5432",
        "--connect-only",
    ];
    let words = to.iter().map(|word| json!(word));
    spec["containers"][0]["command"] = std::iter::once(program).chain(words).collect();
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job",
        "metadata": {"name": "migrate", "namespace": "shop"},
        "spec": {"backoffLimit": 4, "template": {"metadata": {"labels": {"app": "migrate"}}, "spec": spec}},
    });
    let headless = seine_e2e::manifests::headless("shop", "db", "db", &[("db", 5432, 5432)]);
    bed.apply(&[headless, set, probed.object()])?;
    let rollout = [
        "-n",
        "shop",
        "rollout",
        "status",
        "statefulset/db",
        "--timeout=120s",
    ];
    bed.cluster.kubectl(&rollout)?;
    bed.ready("shop")?;
    bed.await_enrolled(&["shop/probed", "shop/db-0", "shop/db-1"], true)?;
    bed.apply(&[job])?;
    let wait = [
        "-n",
        "shop",
        "wait",
        "--for=condition=Complete",
        "job/migrate",
        "--timeout=120s",
    ];
    bed.cluster.kubectl(&wait)?;
    bed.echoes("shop/client", "db-0.db.shop", 5432, "a pod by its own name")?;
    // Some periods of the liveness probe later.
    for pod in ["probed", "db-0", "db-1"] {
        let pod = bed.cluster.get(&["-n", "shop", "pod", pod])?;
        let status = &pod["status"]["containerStatuses"][0];
        ensure!(
            status["restartCount"] == 0 && status["ready"] == true,
            "{status}"
        );
    }
    // The kubelet is let through, and nobody else.
    let address = bed.address("shop/probed")?;
    let plain = bed.ask("outside/client", &address, 8082, "GET / HTTP/1.0\r\n\r\n")?;
    ensure!(plain.was_refused(), "{plain:?}");
    let delete = [
        "-n",
        "shop",
        "delete",
        "job/migrate",
        "statefulset/db",
        "service/db",
        "pod/probed",
    ];
    bed.cluster.kubectl(&delete)?;
    bed.cluster
        .kubectl(&["-n", "shop", "delete", "meshtls", "strict"])
        .map(drop)
}

pub(crate) fn a_network_policy_that_stops_the_mesh_is_found_and_reported(bed: &Bed) -> Result<()> {
    let found = walled(bed);
    // Else later checks of the mesh would find it, too.
    let gone = ["delete", "namespace", "walled", "--ignore-not-found"];
    bed.cluster.kubectl(&gone)?;
    found
}

fn walled(bed: &Bed) -> Result<()> {
    bed.apply(&[
        meshed_namespace("walled"),
        Pod::new("walled", "web", 1).object(),
        Pod::new("walled", "api", 2).serves(&["echo:8080"]).object(),
        service("walled", "api", "api", &[("echo", 80, 8080)]),
    ])?;
    bed.ready("walled")?;
    bed.script("control-plane", "seine analyze")?;
    step("a NetworkPolicy for port 8080 alone");
    bed.apply(&[json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "api", "namespace": "walled"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "api"}},
            "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {}}], "ports": [{"port": 8080}]}],
        },
    })])?;
    within(PATIENCE, "an Event says so on the NetworkPolicy", || {
        let events = bed.cluster.get(&["-n", "walled", "events"])?;
        let events = events["items"].as_array().cloned().unwrap_or_default();
        let found = events.iter().any(|event| {
            event["involvedObject"]["kind"] == "NetworkPolicy"
                && event["message"].to_string().contains("15008")
        });
        Ok(found.then_some(()))
    })?;
    let analyzed = bed.try_script("control-plane", "seine analyze")?;
    ensure!(
        analyzed.code == 1 && analyzed.stdout.contains("TunnelBlocked"),
        "{analyzed:?}"
    );
    Ok(())
}
