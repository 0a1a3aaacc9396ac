//! What an agent finds that starts on a node with pods: those of the agent before it, whole or in part,
//! and those that nobody told of. Needs root and iproute2; SKIPPED without.

#![allow(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

#[allow(dead_code, reason = "shared with other tests")]
mod node;

use std::fs;

use node::Node;
use node::eventually;
use node::page;
use node::take_turn;
use seine_agent::Agent;
use seine_agent::served::State;
use serde_json::Value;
use serde_json::json;

/// A node whose pod an agent enrolled that is away now.
async fn enrolled_before(name: &str) -> Option<Node> {
    let node = Node::new(name)?;
    let (agent, source) = node.agent().await;
    assert!(node.cni("ADD", "web", "u-1").await.status.success());
    agent.stop().await;
    drop(source);
    assert_eq!(node.enrolled(), 1);
    Some(node)
}

fn serves(agent: &Agent, uid: &str) -> bool {
    let status = agent.status();
    let status = status.borrow();
    status
        .iter()
        .any(|pod| pod.uid == uid && pod.state == State::Enrolled && pod.listeners > 0)
}

fn unclaimed(agent: &Agent) -> bool {
    page(agent, "/metrics").contains("seine_agent_pods{kind=\"unclaimed\"} 1")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_pod_that_the_plugin_never_told_of_is_found_and_enrolled() {
    let _turn = take_turn().await;
    let Some(node) = Node::new("g") else { return };
    let _process = node.run_in_pod("u-1");
    let (agent, _source) = node.agent().await;
    eventually("it is found", || serves(&agent, "u-1")).await;
    assert_eq!(node.enrolled(), 1);
    assert!(
        node.settings(node.pod().cookie())
            .probed_ports
            .contains(&8080)
    );
    // What the kernel found in it was told.
    let metrics = page(&agent, "/metrics");
    assert!(
        metrics.contains("seine_agent_older_connections_total{kind=\"found\"} 3"),
        "{metrics}"
    );
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_pod_is_known_by_the_hash_of_its_file() {
    let _turn = take_turn().await;
    let Some(node) = Node::new("h") else { return };
    let annotations =
        json!({"kubernetes.io/config.mirror": "h-1", "kubernetes.io/config.hash": "h-1"});
    let mirror =
        json!({"name": "web", "namespace": "shop", "uid": "u-1", "annotations": annotations});
    node.objects("enabled", mirror);
    let process = node.run_in_pod("h-1");
    let (agent, source) = node.agent().await;
    eventually("it is found", || serves(&agent, "h-1")).await;
    assert!(node.cni("ADD", "web", "h-1").await.status.success());
    // The twin: as the runtime never names it.
    assert!(!node.cni("ADD", "web", "u-1").await.status.success());
    agent.stop().await;
    drop((source, process));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_record_is_damaged_is_found_by_its_process() {
    let _turn = take_turn().await;
    let Some(node) = enrolled_before("i").await else {
        return;
    };
    fs::write(node.path("state/pods/u-1.json"), "{half").unwrap();
    let (agent, _source) = node.agent().await;
    eventually("it is missed", || unclaimed(&agent)).await;
    assert_eq!(node.enrolled(), 1, "it stays caught");
    let _process = node.run_in_pod("u-1");
    eventually("it is found", || serves(&agent, "u-1")).await;
    assert!(!unclaimed(&agent));
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_a_record_that_is_not_opted_in_any_more_is_released() {
    let _turn = take_turn().await;
    let Some(node) = enrolled_before("j").await else {
        return;
    };
    fs::remove_file(node.path("state/pods/u-1.json")).unwrap();
    node.opt_in(false);
    let _process = node.run_in_pod("u-1");
    let (agent, _source) = node.agent().await;
    eventually("it is released", || node.enrolled() == 0).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_can_not_be_looked_at_stays_enrolled_until_its_namespace_ends() {
    let _turn = take_turn().await;
    let Some(node) = enrolled_before("k").await else {
        return;
    };
    let path = node.path("state/pods/u-1.json");
    let mut record: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let since = record["enrolledSince"].clone();
    // A path that says nothing of the namespace: it can't be opened.
    record["netns"] = json!("/dev/null/x");
    fs::write(&path, record.to_string()).unwrap();
    let (agent, source) = node.agent().await;
    eventually("it is missed", || unclaimed(&agent)).await;
    assert_eq!(node.enrolled(), 1, "not released");
    assert!(path.exists(), "nor forgotten");

    let process = node.run_in_pod("u-1");
    eventually("it is found", || serves(&agent, "u-1")).await;
    let enrolled_since = agent.status().borrow()[0].enrolled_since;
    assert_eq!(json!(enrolled_since), since, "it is the same enrolment");
    agent.stop().await;
    drop((source, process));

    fs::write(&path, record.to_string()).unwrap();
    let (agent, _source) = node.agent().await;
    eventually("it is missed", || unclaimed(&agent)).await;
    node.namespaces_end();
    eventually("its record is gone", || !path.exists()).await;
    assert!(!unclaimed(&agent));
    agent.stop().await;
}
