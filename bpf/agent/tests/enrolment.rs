//! The whole agent but for the kernel's programs: the real CNI plugin enrols a pod in a real network
//! namespace, and a node proxy gets the namespace and the listening sockets. Needs root and
//! iproute2; SKIPPED without.

#![allow(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

#[allow(dead_code, reason = "shared with other tests")]
mod node;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use node::Node;
use node::Proxy;
use node::eventually;
use node::listeners;
use node::take_turn;
use seine_agent::Config;
use seine_agent::Netns;
use seine_agent::NodeProxy;
use seine_agent::seqpacket::Connection;
use seine_proto::listeners::Kind;
use seine_proto::zds::workload_request::Payload;
use serde_json::Value;

#[tokio::test(flavor = "multi_thread")]
async fn the_cni_plugin_enrols_a_pod_and_the_proxy_gets_its_namespace_and_listeners() {
    let _turn = take_turn().await;
    let Some(node) = Node::new("a") else { return };
    let (agent, _source) = node.agent().await;
    let output = node.cni("ADD", "web", "u-1").await;
    assert!(output.status.success(), "{output:?}");
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["ips"][0]["address"], "10.9.0.5/24");

    let cookie = node.pod().cookie();
    let settings = node.settings(cookie);
    assert_eq!(settings.probed_ports, [8080].into());
    assert_eq!(settings.ipv4, Some("10.9.0.5".parse().unwrap()));
    assert_eq!(settings.host_ifindexes.len(), 1, "the veth's other end");
    let rules = node.rules();
    assert!(rules.contains("fwmark 0x539/0xfff lookup 539"), "{rules}");
    assert!(node.cni("CHECK", "web", "u-1").await.status.success());

    node.enter("ztunnel");
    let proxy = Proxy::connect(&node).await;
    let (payload, mut descriptors) = proxy.next().await.unwrap();
    let Payload::Add(add) = payload else {
        panic!("{payload:?}")
    };
    assert_eq!((add.uid.as_str(), descriptors.len()), ("u-1", 1));
    assert_eq!(add.workload_info.unwrap().service_account, "web");
    assert_eq!(Netns::new(descriptors.remove(0)).unwrap().cookie(), cookie);
    assert!(matches!(
        proxy.next().await.unwrap().0,
        Payload::SnapshotSent(_)
    ));

    let handed = listeners(&node, "u-1").await.unwrap();
    assert!(handed.len() == 10 || handed.len() == 5, "{}", handed.len());
    let _waiting = node
        .connect("127.0.0.1:15001")
        .expect("waits in the backlog");
    let outbound = handed
        .into_iter()
        .find(|(kind, _)| *kind == Kind::Outbound)
        .unwrap()
        .1;
    TcpListener::from(outbound)
        .accept()
        .expect("the handed socket has it");
    assert!(
        listeners(&node, "u-2")
            .await
            .unwrap_err()
            .contains("no pod u-2")
    );

    node.opt_in(false);
    let (payload, _) = proxy.next().await.unwrap();
    assert!(matches!(payload, Payload::Del(_)), "{payload:?}");
    assert_eq!(node.enrolled(), 0);
    eventually("nobody listens any more", || {
        node.connect("127.0.0.1:15001").is_err()
    })
    .await;
    node.opt_in(true);
    assert!(matches!(proxy.next().await.unwrap().0, Payload::Add(_)));
    node.leave();
    assert!(node.cni("DEL", "web", "u-1").await.status.success());
    assert!(matches!(proxy.next().await.unwrap().0, Payload::Del(_)));
    assert_eq!(node.enrolled(), 0);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_stays_enrolled_after_its_removal_until_its_last_process_ends() {
    let _turn = take_turn().await;
    let Some(node) = Node::new("t") else { return };
    let (agent, _source) = node.agent().await;
    assert!(node.cni("ADD", "web", "u-1").await.status.success());
    let process = node.run_in_pod("u-1");
    assert!(node.cni("DEL", "web", "u-1").await.status.success());
    assert_eq!(node.enrolled(), 1, "it has a process still");
    node.enter("ztunnel");
    let proxy = Proxy::connect(&node).await;
    let (payload, _) = proxy.next().await.unwrap();
    assert!(matches!(payload, Payload::Add(_)), "{payload:?}");
    let (payload, _) = proxy.next().await.unwrap();
    assert!(matches!(payload, Payload::SnapshotSent(_)), "{payload:?}");
    assert!(listeners(&node, "u-1").await.is_ok());
    node.leave();

    drop(process);
    let (payload, _) = proxy.next().await.unwrap();
    assert!(matches!(payload, Payload::Del(_)), "{payload:?}");
    assert_eq!(node.enrolled(), 0);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_outside_of_ztunnels_cgroup_or_of_another_user_gets_nothing() {
    let _turn = take_turn().await;
    let Some(node) = Node::new("b") else { return };
    let (agent, _source) = node.agent().await;
    assert!(node.cni("ADD", "web", "u-1").await.status.success());

    assert!(
        Proxy::connect(&node).await.next().await.is_none(),
        "outside of the cgroup"
    );
    assert!(
        listeners(&node, "u-1").await.is_err(),
        "outside of the cgroup"
    );
    node.enter("ztunnel");
    assert!(
        Proxy::connect(&node).await.next().await.is_some(),
        "the twin inside of it"
    );
    assert!(
        listeners(&node, "u-1").await.is_ok(),
        "the twin inside of it"
    );

    // The file's permissions alone would keep another user out: see what is behind them.
    for folder in [node.path(""), node.path("run")] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = node.path("run/ztunnel.sock");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let handle = tokio::runtime::Handle::current();
    let connection = std::thread::spawn(move || {
        let _runtime = handle.enter();
        // SAFETY: plain integers; the raw call changes the user of this thread alone.
        let changed = unsafe { libc::syscall(libc::SYS_setresuid, -1_i32, 65_534_i32, -1_i32) };
        assert_eq!(changed, 0);
        Connection::connect(&path).unwrap()
    });
    let nobody = Proxy::new(connection.join().unwrap()).await;
    assert!(nobody.next().await.is_none(), "another user");

    // A process of a pod's cgroup that poses as the CNI plugin.
    node.enter("pods");
    let output = node.cni("CHECK", "web", "u-1").await;
    assert!(!output.status.success(), "{output:?}");
    node.leave();
    assert!(
        node.cni("CHECK", "web", "u-1").await.status.success(),
        "its twin outside"
    );
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_takes_the_listeners_from_the_living_proxy_and_makes_new_ones_without() {
    let _turn = take_turn().await;
    let Some(node) = Node::new("c") else { return };
    let (agent, source) = node.agent().await;
    assert!(node.cni("ADD", "web", "u-1").await.status.success());
    node.enter("ztunnel");
    let held_by_proxy = listeners(&node, "u-1").await.unwrap();
    agent.stop().await;
    drop(source);
    assert_eq!(node.enrolled(), 1, "a stop releases nobody");

    let while_away = node
        .connect("127.0.0.1:15001")
        .expect("the proxy's duplicates listen");
    let (agent, source) = node.agent().await;
    eventually("the pod is taken over", || {
        agent
            .status()
            .borrow()
            .iter()
            .any(|pod| pod.listeners == held_by_proxy.len())
    })
    .await;
    drop(held_by_proxy);
    let again = listeners(&node, "u-1").await.unwrap();
    let outbound = again
        .iter()
        .find(|(kind, _)| *kind == Kind::Outbound)
        .unwrap();
    let outbound = TcpListener::from(outbound.1.try_clone().unwrap());
    let (_, from) = outbound
        .accept()
        .expect("the connection that came while no agent ran");
    assert_eq!(from, while_away.local_addr().unwrap());

    agent.stop().await;
    drop((source, again, outbound));
    eventually("both are gone: refused, never past the mesh", || {
        node.connect("127.0.0.1:15001").is_err()
    })
    .await;
    let (agent, _source) = node.agent().await;
    eventually("new listeners", || node.connect("127.0.0.1:15001").is_ok()).await;
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opted_in_pod_waits_for_its_object_its_ports_and_the_agent() {
    let _turn = take_turn().await;
    let Some(node) = Node::new("d") else { return };
    let (agent, source) = node.agent().await;
    let output = node.cni("ADD", "web", "u-other").await;
    assert!(!output.status.success());
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        error["msg"]
            .as_str()
            .unwrap()
            .contains("not among the objects"),
        "{error}"
    );

    // What listens on the mesh's ports already is named, and the pod does not start.
    let squatter = node
        .pod()
        .within(|| TcpListener::bind("127.0.0.1:15001"))
        .unwrap()
        .unwrap();
    let error = node.cni("ADD", "web", "u-1").await;
    assert!(!error.status.success());
    let text = String::from_utf8_lossy(&error.stdout);
    assert!(text.contains("127.0.0.1:15001 is taken"), "{text}");
    assert_eq!(node.enrolled(), 0);
    drop(squatter);
    eventually("it is tried again", || node.enrolled() == 1).await;
    agent.stop().await;
    drop(source);

    let output = node.cni("ADD", "web", "u-1").await;
    let error: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(error["code"], 11, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interface_that_comes_after_the_pods_start_is_guarded_and_one_that_cannot_be_is_told() {
    let _turn = take_turn().await;
    let Some(node) = Node::new("e") else { return };
    let (agent, _source) = node.agent().await;
    assert!(node.cni("ADD", "web", "u-1").await.status.success());
    let cookie = node.pod().cookie();
    let guarded = || node.settings(cookie).host_ifindexes;
    let first = guarded();
    assert_eq!(first.len(), 1);

    // As a plugin for secondary networks makes it, behind the chain that has ours.
    node.add_interface("net1");
    eventually("the second is guarded", || guarded().len() == 2).await;
    assert!(guarded().is_superset(&first));
    node.remove_interface("net1");
    eventually("it is gone", || guarded() == first).await;

    let warnings = || agent.status().borrow()[0].warnings.clone();
    assert_eq!(warnings(), [""; 0]);
    node.add_macvlan("net2");
    eventually("the other kind is told", || {
        warnings().iter().any(|w| w.contains("interface net2"))
    })
    .await;
    assert_eq!(guarded(), first);
    agent.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_cgroup_of_its_own_any_process_but_the_pods_is_the_node_proxy() {
    let _turn = take_turn().await;
    let Some(node) = Node::new("f") else { return };
    let change = |config: &mut Config| config.proxy = NodeProxy::AnyProcess;
    let (agent, _source) = node.agent_with(change).await;
    assert!(node.cni("ADD", "web", "u-1").await.status.success());
    node.enter("pods");
    assert!(
        Proxy::connect(&node).await.next().await.is_none(),
        "a process of a pod"
    );
    assert!(listeners(&node, "u-1").await.is_err(), "a process of a pod");
    node.leave();
    assert!(
        Proxy::connect(&node).await.next().await.is_some(),
        "its twin outside"
    );
    assert!(listeners(&node, "u-1").await.is_ok(), "its twin outside");
    agent.stop().await;
}
