//! Relabelling, upgrades, reboots, and an uninstall.

use anyhow::{Result, ensure};
use seine_e2e::Running;
use seine_e2e::peer::report::Loaded;
use seine_kubernetes_tests::{step, within};

use crate::bed::{Bed, NODES, PATIENCE, SYSTEM};
use crate::traffic::meshed_shop;

/// The agent's way to the API server, for the CNI plugin.
const KUBECONFIG: &str = "/var/lib/seine/agent/api-server.kubeconfig";
/// The tag of the images that are upgraded to.
const NEXT: &str = "0.0.0-next";

pub(crate) fn pods_leave_and_join_by_labels_without_a_restart(bed: &Bed) -> Result<()> {
    meshed_shop(bed)?;
    step("a pod opts out");
    let label = |words: &[&str]| {
        let mut all = vec!["-n", "shop", "label", "--overwrite"];
        all.extend(words);
        bed.cluster.kubectl(&all)
    };
    label(&["pod", "server", "seine.dev/mesh=disabled"])?;
    bed.await_enrolled(&["shop/server"], false)?;
    bed.await_echo("shop/client", "server.shop", 80)?;
    label(&["pod", "server", "seine.dev/mesh-"])?;
    bed.await_enrolled(&["shop/server"], true)?;
    bed.await_echo("shop/client", "server.shop", 80)?;
    step("docs/OPT-IN.md: the namespace leaves");
    bed.cluster
        .kubectl(&["-n", "shop", "delete", "meshtls", "--all"])?;
    bed.script(
        "control-plane",
        "kubectl label namespace shop seine.dev/mesh-",
    )?;
    bed.await_enrolled(&["shop/client", "shop/server"], false)?;
    bed.await_echo("shop/client", "server.shop", 80)?;
    within(PATIENCE, "the trust bundle leaves too", || {
        let maps = bed.cluster.kubectl(&["-n", "shop", "get", "configmaps"])?;
        Ok((!maps.contains("seine-ca-root")).then_some(()))
    })?;
    let pods = bed.cluster.get(&["-n", "shop", "pods"])?;
    for pod in pods["items"].as_array().into_iter().flatten() {
        let restarts = &pod["status"]["containerStatuses"][0]["restartCount"];
        ensure!(*restarts == 0, "{}", pod["metadata"]["name"]);
    }
    Ok(())
}

/// Connections, one after the other, until it is told to end.
fn load(bed: &Bed) -> Result<Running> {
    let words = [
        "load",
        "--port",
        "80",
        // The nodes have no IPv6.
        "--families",
        "4",
        "--workers",
        "2",
        "--pause",
        "20",
        "server.shop",
    ];
    bed.start("shop/client", &words)
}

fn without_a_failure(load: Running) -> Result<()> {
    let report: Loaded = load.finish()?;
    step(format!(
        "{} connections, failed: {:?}",
        report.connections, report.failed
    ));
    ensure!(
        report.connections > 0 && report.failed.is_empty(),
        "{report:?}"
    );
    Ok(())
}

/// Waits until every pod of the mesh, the last one that drains too, is of the other tag, or of the chart's.
fn await_tag(bed: &Bed, next: bool) -> Result<()> {
    within(
        PATIENCE,
        "all of the mesh's pods are of one version",
        || {
            let pods = bed.cluster.get(&["-n", SYSTEM, "pods"])?;
            let pods = pods["items"].as_array().cloned().unwrap_or_default();
            let image = |pod: &serde_json::Value| {
                let image = pod["spec"]["containers"][0]["image"].as_str();
                image.unwrap_or_default().to_owned()
            };
            let all: Vec<_> = pods.iter().map(image).collect();
            ensure!(
                all.iter().all(|image| image.ends_with(NEXT) == next),
                "{all:?}"
            );
            Ok(Some(()))
        },
    )
}

pub(crate) fn an_upgrade_and_a_rollback_under_load_fail_no_connection(bed: &Bed) -> Result<()> {
    meshed_shop(bed)?;
    step("images under another tag");
    bed.load_next(NEXT)?;
    let under_load = load(bed)?;
    step("docs/UPGRADE.md, to the other tag");
    bed.set_values(Some(NEXT))?;
    bed.follow_one("UPGRADE.md", 0)?;
    await_tag(bed, true)?;
    without_a_failure(under_load)?;
    step("docs/UPGRADE.md: back");
    let under_load = load(bed)?;
    bed.follow_one("UPGRADE.md", 1)?;
    bed.set_values(None)?;
    without_a_failure(under_load)?;
    await_tag(bed, false)?;
    bed.script("control-plane", "seine check").map(drop)
}

pub(crate) fn after_a_nodes_reboot_its_pods_are_in_the_mesh_again(bed: &Bed) -> Result<()> {
    meshed_shop(bed)?;
    step("node2: every process killed, its bpffs gone, started again");
    bed.cluster.reboot("node2")?;
    let wire = bed.capture("node2")?;
    within(240, "the server's pod runs again", || {
        let pod = bed.cluster.get(&["-n", "shop", "pod", "server"])?;
        let status = &pod["status"]["containerStatuses"][0];
        let again = status["restartCount"].as_u64().unwrap_or_default() > 0;
        Ok((again && status["ready"] == true).then_some(()))
    })?;
    bed.await_enrolled(&["shop/server"], true)?;
    within(240, "server.shop answers shop/client", || {
        bed.echoes("shop/client", "server.shop", 80, "there-again?")
            .map(Some)
    })?;
    let seen = wire.end()?;
    // Its address is another, and from the first connection on nothing was in plaintext.
    ensure!(
        seen.count(b"there-again?") == 0,
        "plaintext after the reboot"
    );
    let wait = [
        "-n",
        SYSTEM,
        "wait",
        "--for=condition=Ready",
        "pod",
        "--all",
        "--timeout=180s",
    ];
    bed.cluster.kubectl(&wait)?;
    within(PATIENCE, "seine check finds all well", || {
        let output = bed.try_script("control-plane", "seine check")?;
        output.good("seine check").map(Some)
    })
    .map(drop)
}

pub(crate) fn the_command_line_shows_a_mesh_that_works(bed: &Bed) -> Result<()> {
    meshed_shop(bed)?;
    bed.script("control-plane", "seine check")?;
    let status = bed.script("control-plane", "seine status")?;
    ensure!(NODES.iter().all(|node| status.contains(node)), "{status}");
    for what in [
        "workloads",
        "services",
        "policies",
        "certificates",
        "connections",
        "log",
    ] {
        let answer = bed.try_script("control-plane", &format!("seine ztunnel {what}"))?;
        let answer = answer.good(what)?;
        ensure!(!answer.is_empty(), "seine ztunnel {what} says nothing");
    }
    let json = bed.script("control-plane", "seine status -o json")?;
    serde_json::from_str::<serde_json::Value>(&json)?;
    bed.script("control-plane", "seine explain client.shop server.shop:80")?;
    Ok(())
}

pub(crate) fn an_uninstall_leaves_nothing_and_pods_go_on(bed: &Bed) -> Result<()> {
    meshed_shop(bed)?;
    step("docs/UNINSTALL.md");
    bed.follow_one("UNINSTALL.md", 0)?;
    for node in NODES {
        for (path, what) in [
            ("/sys/fs/bpf/seine", "pins"),
            ("/opt/cni/bin/seine-cni", "the CNI plugin"),
            ("/run/seine/ztunnel.sock", "a socket"),
            (KUBECONFIG, "a token"),
        ] {
            let there = bed.cluster.run_in(node, &["ls", "-A", path])?;
            ensure!(
                there.code != 0 || there.stdout.is_empty(),
                "{what} is left on {node}: {path}: {}",
                there.stdout
            );
        }
        let chain = bed
            .cluster
            .run_in(node, &["grep", "-rl", "seine", "/etc/cni/net.d"])?;
        ensure!(
            chain.stdout.is_empty(),
            "in the CNI chain of {node}: {}",
            chain.stdout
        );
        let rules = bed.cluster.run_in(node, &["ip", "rule"])?.good("ip rule")?;
        ensure!(rules.lines().count() == 3, "rules of {node}:\n{rules}");
    }
    let left = bed.annotations("shop")?;
    ensure!(left.is_empty(), "annotations: {left:?}");
    let left = bed.cluster.kubectl(&[
        "get",
        "all,configmaps,secrets,leases,serviceaccounts,roles,rolebindings,networkpolicies,clusterroles,clusterrolebindings,validatingadmissionpolicies,validatingadmissionpolicybindings",
        "-A",
        "-o",
        "name",
    ])?;
    let left: Vec<_> = left.lines().filter(|name| name.contains("seine")).collect();
    // Helm's own memory of the other chart.
    let left: Vec<_> = left
        .into_iter()
        .filter(|name| !name.contains("sh.helm.release.v1.seine-crds"))
        .collect();
    ensure!(left.is_empty(), "objects are left: {left:?}");
    step("pods go on, in plaintext");
    bed.await_echo("shop/client", "server.shop", 80)?;
    let wire = bed.capture("node2")?;
    bed.echoes("shop/client", "server.shop", 80, "everyone-may-read")?;
    ensure!(
        wire.end()?.count(b"everyone-may-read") > 0,
        "not in plaintext"
    );
    step("the CRDs go, and the namespace");
    bed.follow_one("UNINSTALL.md", 1)?;
    let kinds = bed.cluster.kubectl(&["get", "crd", "-o", "name"])?;
    ensure!(!kinds.contains("seine"), "{kinds}");
    let pods = seine_e2e::manifests::Pod::new("shop", "late", 2);
    bed.apply(&[pods.object()])?;
    bed.ready("shop")
}

impl Bed {
    /// The same images under another tag, on every node.
    fn load_next(&self, tag: &str) -> Result<()> {
        for name in ["seine-control", "seine-agent", "seine-ztunnel", "seine"] {
            let image = format!("docker.io/library/{name}");
            let script = format!(
                "ctr -n k8s.io images tag {image}:$(sed -n 's/^appVersion: *//p' deploy/helm/seine/Chart.yaml | tr -d '\"') {image}:{tag}"
            );
            for node in NODES {
                self.try_script(node, &script)?.good(&script)?;
            }
        }
        Ok(())
    }
}
