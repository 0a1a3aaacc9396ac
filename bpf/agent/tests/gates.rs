//! When the agent lets a pod start, and what the plugin's other commands are told. Needs root and iproute2;
//! SKIPPED without.

#![allow(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

#[allow(dead_code, reason = "shared with other tests")]
mod node;

use std::fs;
use std::process::Output;

use node::Node;
use node::OLDER_CONNECTIONS;
use node::eventually;
use node::page;
use node::take_turn;
use seine_agent::Config;
use seine_agent::redirect::OlderConnections;
use serde_json::Value;
use serde_json::json;

fn error(output: &Output) -> Value {
    assert!(!output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_enrolled_before_a_connection_was_caught_nor_when_none_is_any_more() {
    let _turn = take_turn().await;
    let Some(node) = Node::new("l") else { return };
    node.set_broken(true);
    let (agent, _source) = node.agent().await;
    let ready = || page(&agent, "/healthz/ready");
    eventually("it says what it waits for", || {
        ready().contains("it went past")
    })
    .await;
    assert!(ready().starts_with("HTTP/1.1 503"), "{}", ready());
    let refused = error(&node.cni("ADD", "web", "u-1").await);
    let message = refused["msg"].as_str().unwrap();
    assert!(message.contains("redirection does not work"), "{message}");
    // Others may start all the same, so the plugin is of use; without them it isn't.
    assert!(
        node.cni_with("STATUS", "web", "u-1", &["kube-system"])
            .await
            .status
            .success()
    );
    fs::remove_file(node.path("state/last-known.json")).unwrap();
    assert_eq!(error(&node.cni("STATUS", "web", "u-1").await)["code"], 50);

    node.set_broken(false);
    eventually("it is ready", || ready().starts_with("HTTP/1.1 200")).await;
    assert!(node.cni("STATUS", "web", "u-1").await.status.success());
    assert!(node.cni("ADD", "web", "u-1").await.status.success());

    // Nothing of ours has changed: a program of somebody else's comes first now.
    node.set_broken(true);
    eventually("it is seen", || ready().contains("it went past")).await;
    error(&node.cni("ADD", "web", "u-1").await);
    assert_eq!(node.enrolled(), 1, "what is enrolled stays so");
    node.set_broken(false);
    eventually("it is ready", || ready().starts_with("HTTP/1.1 200")).await;

    node.set_unreadable(true);
    eventually("that is seen too", || {
        ready().contains("the links are not to be read")
    })
    .await;
    node.set_unreadable(false);
    eventually("it is ready", || ready().starts_with("HTTP/1.1 200")).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_of_an_always_start_namespace_starts_though_it_can_not_be_enrolled() {
    let _turn = take_turn().await;
    let Some(node) = Node::new("m") else { return };
    node.set_broken(true);
    let (agent, _source) = node.agent().await;
    error(&node.cni("ADD", "web", "u-1").await);
    let output = node.cni_with("ADD", "web", "u-1", &["shop"]).await;
    assert!(output.status.success(), "{output:?}");
    let notes = String::from_utf8_lossy(&output.stderr);
    assert!(notes.contains("starts all the same"), "{notes}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_check_tells_a_pod_that_lost_its_redirection() {
    let _turn = take_turn().await;
    let Some(node) = Node::new("n") else { return };
    let (agent, _source) = node.agent().await;
    assert!(node.cni("ADD", "web", "u-1").await.status.success());
    assert!(node.cni("CHECK", "web", "u-1").await.status.success());
    node.lose_links();
    let refused = error(&node.cni("CHECK", "web", "u-1").await);
    let message = refused["msg"].as_str().unwrap();
    assert!(message.contains("not attached"), "{message}");
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_collection_forgets_the_sandboxes_that_the_runtime_does_not_name() {
    let _turn = take_turn().await;
    let Some(node) = Node::new("o") else { return };
    let (agent, _source) = node.agent().await;
    assert!(node.cni("ADD", "web", "u-1").await.status.success());
    // The sandbox's identifier is the third argument's here.
    assert!(node.cni("GC", "sandbox-1", "u-1").await.status.success());
    assert_eq!(node.enrolled(), 1, "the runtime names it");
    assert!(node.cni("GC", "another", "u-1").await.status.success());
    assert_eq!(node.enrolled(), 0);
    assert!(agent.status().borrow().is_empty());
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_stays_out_starts_whatever_state_the_agent_is_in() {
    let _turn = take_turn().await;
    let Some(node) = Node::new("p") else { return };
    let out = json!({"name": "web", "namespace": "shop", "uid": "u-1", "labels": {"seine.dev/mesh": "disabled"}});
    node.objects("enabled", out);
    let (agent, source) = node.agent().await;
    // It started while no agent ran.
    let output = node.cni("CHECK", "web", "u-1").await;
    assert!(output.status.success(), "{output:?}");

    // The disk is full.
    let pods = node.path("state/pods");
    fs::remove_dir_all(&pods).unwrap();
    fs::write(&pods, "no folder").unwrap();
    let output = node.cni("ADD", "web", "u-1").await;
    assert!(output.status.success(), "{output:?}");
    node.opt_in(true);
    eventually("the change is seen", || {
        agent.status().borrow()[0].reason.as_deref() != Some("not opted in")
    })
    .await;
    let refused = error(&node.cni("ADD", "web", "u-1").await);
    let message = refused["msg"].as_str().unwrap();
    assert!(message.contains("state folder"), "{message}");
    fs::remove_file(&pods).unwrap();
    fs::create_dir(&pods).unwrap();

    let out = json!({"name": "web", "namespace": "shop", "uid": "u-1", "labels": {"seine.dev/mesh": "disabled"}});
    node.objects("enabled", out);
    eventually("it is released", || {
        agent.status().borrow()[0].reason.as_deref() == Some("not opted in")
    })
    .await;
    assert_eq!(node.enrolled(), 0);
    agent.stop().await;
    drop(source);
    // By what the agent wrote down, where a restart of the node leaves it.
    let output = node.cni("ADD", "web", "u-1").await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(error(&node.cni("ADD", "web", "u-2").await)["code"], 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn older_connections_are_counted_and_reset_as_the_setting_says() {
    let _turn = take_turn().await;
    for (setting, reset) in [
        (OlderConnections::Leave, 0),
        (OlderConnections::Reset, OLDER_CONNECTIONS),
    ] {
        let Some(node) = Node::new("q") else { return };
        let change = |config: &mut Config| config.older_connections = setting;
        let (agent, _source) = node.agent_with(change).await;
        assert!(node.cni("ADD", "web", "u-1").await.status.success());
        let metrics = page(&agent, "/metrics");
        for (kind, count) in [("found", OLDER_CONNECTIONS), ("reset", reset)] {
            let line = format!("seine_agent_older_connections_total{{kind=\"{kind}\"}} {count}");
            assert!(metrics.contains(&line), "{line} in {metrics}");
        }
        let status: Value = {
            let page = page(&agent, "/status");
            serde_json::from_str(page.split_once("\r\n\r\n").unwrap().1).unwrap()
        };
        assert_eq!(status["pods"][0]["olderConnectionsReset"], reset);
        agent.stop().await;
    }
}
