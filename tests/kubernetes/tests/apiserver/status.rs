//! What users are told of their objects, by whom, and how often.

use std::time::Duration;

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use seine_e2e::manifests::authorization;
use seine_kubernetes_tests::{step, within};
use seine_workload::Store;
use seine_xds::{Client, Grpc, GrpcOptions, NodeInfo, Protocol};
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

use crate::bed::{Bed, PATIENCE, Replica, SYSTEM, namespace, pod};

fn policy(name: &str, port: u16) -> Value {
    let rules = json!([{"to": [{"ports": [port]}]}]);
    authorization("told", name, "db", "Allow", rules)
}

fn version(bed: &Bed, object: &[&str]) -> Result<String> {
    let object = bed.cluster.get(object)?;
    let version = object["metadata"]["resourceVersion"].as_str();
    Ok(version.context("no resourceVersion")?.to_owned())
}

pub(crate) fn an_object_is_told_what_became_of_it_and_nothing_is_written_when_nothing_changed(
    bed: &Bed,
) -> Result<()> {
    let replica = bed.ready_replica("status-0")?;
    bed.cluster.apply(&[
        namespace("told", json!({"seine.dev/mesh": "enabled"})),
        policy("db", 5432),
        json!({
            "apiVersion": "policy.seine.dev/v1alpha1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "unresolved", "namespace": "told"},
            "spec": {"targetRefs": [{"kind": "Service", "name": "nowhere"}]},
        }),
    ])?;
    let db = ["-n", "told", "authorizationpolicy", "db"];
    let unresolved = ["-n", "told", "authorizationpolicy", "unresolved"];
    bed.await_condition(&db, "Accepted", "True", 1)?;
    bed.await_condition(&db, "ResolvedRefs", "True", 1)?;
    // No proxy is connected here.
    bed.await_condition(&db, "Programmed", "False", 1)?;
    let refs = bed.await_condition(&unresolved, "ResolvedRefs", "False", 1)?;
    ensure!(refs["message"].to_string().contains("nowhere"), "{refs}");
    let own = bed
        .cluster
        .get(&[&db[..], &["--show-managed-fields"]].concat())?;
    let managers = own["metadata"]["managedFields"].to_string();
    ensure!(managers.contains("\"seine-control\""), "{managers}");

    step("what the schema can't say is told by a condition");
    let block = json!([{"from": [{"ipBlocks": ["10.0.0.0/33"]}]}]);
    bed.cluster
        .apply(&[authorization("told", "unsaid", "db", "Allow", block)])?;
    let unsaid = ["-n", "told", "authorizationpolicy", "unsaid"];
    let accepted = bed.await_condition(&unsaid, "Accepted", "False", 1)?;
    ensure!(
        accepted["message"]
            .to_string()
            .contains("spec.rules[0].from[0].ipBlocks[0]"),
        "{accepted}"
    );

    step("another generation");
    bed.cluster.apply(&[policy("db", 5433)])?;
    bed.await_condition(&db, "Accepted", "True", 2)?;
    let before = version(bed, &db)?;

    step("changes elsewhere, and a new replica: nothing is written");
    let writes = |bed: &Bed| version(bed, &db);
    bed.cluster.apply(&[
        namespace("elsewhere", json!({"seine.dev/mesh": "enabled"})),
        pod("elsewhere", "web", "default", None, json!({"app": "web"})),
    ])?;
    replica.kill()?;
    let replica = bed.ready_replica("status-1")?;
    // It has come round to writing when it has written something else.
    bed.cluster.apply(&[policy("marker", 1)])?;
    bed.await_condition(
        &["-n", "told", "authorizationpolicy", "marker"],
        "Accepted",
        "True",
        1,
    )?;
    std::thread::sleep(Duration::from_secs(3));
    let after = writes(bed)?;
    ensure!(
        before == after,
        "written though nothing changed: {before}, {after}"
    );

    step("a policy that goes, goes from the report");
    bed.cluster
        .kubectl(&["-n", "told", "delete", "authorizationpolicy", "--all"])?;
    within(
        PATIENCE,
        "the report has no policy of the namespace",
        || Ok((!replica.status()?.contains("\"told\"")).then_some(())),
    )
}

pub(crate) fn when_the_leader_dies_another_goes_on_writing(bed: &Bed) -> Result<()> {
    bed.cluster
        .apply(&[namespace("told", json!({"seine.dev/mesh": "enabled"}))])?;
    let mut replicas = vec![
        bed.ready_replica("leader-0")?,
        bed.ready_replica("leader-1")?,
    ];
    bed.cluster.apply(&[policy("led", 1)])?;
    let led = ["-n", "told", "authorizationpolicy", "led"];
    bed.await_condition(&led, "Accepted", "True", 1)?;
    let holder = || -> Result<String> {
        let lease = bed
            .cluster
            .get(&["-n", SYSTEM, "lease", "seine-control-leader"])?;
        Ok(lease["spec"]["holderIdentity"]
            .as_str()
            .unwrap_or_default()
            .to_owned())
    };
    let first = within(PATIENCE, "one of the two leads", || {
        let holder = holder()?;
        Ok(holder.contains("leader-").then_some(holder))
    })?;
    let index = replicas.iter().position(|one| first.contains(&one.name));
    let leader = replicas.remove(index.context("the Lease names none of the two")?);
    step(format!("{} leads, and is killed", leader.name));
    leader.kill()?;
    bed.cluster.apply(&[policy("led", 2)])?;
    bed.await_condition(&led, "Accepted", "True", 2)?;
    let second = holder()?;
    ensure!(second.contains(&replicas[0].name), "{first}, then {second}");
    replicas[0].still_runs()?;
    bed.cluster
        .kubectl(&["-n", "told", "delete", "authorizationpolicy", "--all"])
        .map(drop)
}

/// A node proxy that holds what it is sent, and nothing else of one.
fn proxy(
    bed: &Bed,
    replica: &Replica,
    roots: &Path,
    token: &Path,
    node: &str,
) -> AbortOnDropHandle<()> {
    let grpc = Grpc::new(GrpcOptions {
        address: format!("https://{}", replica.listen),
        roots_file: roots.to_owned(),
        server_name: "seine-control.seine-system.svc".into(),
        token_file: token.to_owned(),
        cluster_id: "Kubernetes".into(),
    });
    let node = NodeInfo {
        address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        pod: format!("seine-ztunnel-{node}"),
        namespace: SYSTEM.into(),
        node: node.into(),
        metadata: Default::default(),
    };
    let client = Client::new(grpc, Protocol::new(&node), Arc::new(Store::new("")));
    let running = bed.runtime.spawn(async move {
        let never = client.run().await;
        match never {}
    });
    AbortOnDropHandle::new(running)
}

pub(crate) fn the_proxies_of_two_replicas_add_up_to_what_enforced_says(bed: &Bed) -> Result<()> {
    let replicas = [
        bed.ready_replica("adding-0")?,
        bed.ready_replica("adding-1")?,
    ];
    bed.cluster.apply(&[
        namespace("told", json!({"seine.dev/mesh": "enabled"})),
        policy("summed", 5432),
    ])?;
    let roots = bed.roots()?;
    let token = bed.token(SYSTEM, "seine-ztunnel", &["--audience=seine-control"])?;
    let token = bed.file("proxy-token", &token)?;
    let connect = |replica: usize, node: &str| proxy(bed, &replicas[replica], &roots, &token, node);
    let summed = ["-n", "told", "authorizationpolicy", "summed"];
    let says = |status: &str, words: &str| {
        within(PATIENCE, &format!("Enforced says {words:?}"), || {
            let condition = bed.condition(&summed, "Enforced")?;
            let message = condition["message"].to_string();
            ensure!(
                condition["status"] == status && message.contains(words),
                "{condition}"
            );
            Ok(Some(()))
        })
    };
    let one = connect(0, "node-x");
    says("True", "enforced by 1 of 1 node proxies")?;
    let others = [connect(1, "node-y"), connect(1, "node-z")];
    says("True", "enforced by 3 of 3 node proxies")?;
    step("a proxy goes from one replica to the other and counts once");
    let moved = connect(1, "node-x");
    drop(one);
    says("True", "enforced by 3 of 3 node proxies")?;
    drop(moved);
    says("True", "enforced by 2 of 2 node proxies")?;
    bed.cluster.apply(&[policy("summed", 5433)])?;
    bed.await_condition(&summed, "Enforced", "True", 2)?;
    drop(others);
    bed.cluster
        .kubectl(&["-n", "told", "delete", "authorizationpolicy", "--all"])
        .map(drop)
}
