//! A proxy that serves the namespace that it is in, without an agent.

use std::io;
use std::net::Ipv4Addr;
use std::process::Command;

use seine_ztunnel::netns::Netns;
use seine_ztunnel::sockets::{Dialer, Source};
use tokio::io::AsyncReadExt;

use crate::{Node, PROGRAM, Proxy, exchange, finish};

fn start(node: &Node, name: &str) -> Proxy {
    let mut command = Command::new("nsenter");
    let namespace = node.namespace.path();
    command.arg(format!("--net={}", namespace.display()));
    command.args([PROGRAM, "--dedicated"]);
    let pod = [
        ("--pod-name", "b"),
        ("--pod-namespace", "shop"),
        ("--service-account", "b"),
    ];
    node.run(command, name, &pod, node.namespace.open())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dedicated_proxy_serves_its_own_namespace_and_hands_on_its_ports() {
    let Some(node) = Node::new_without_agent() else {
        println!("SKIPPED a dedicated proxy: it needs root");
        return;
    };
    let netns: Netns = node.namespace.open();
    let _control = node.control.start_in(&netns);
    let mut first = start(&node, "first");
    first.says(&["200 OK"]).await;
    node.exchange().await.unwrap();

    // Nothing redirects here: who comes to the outbound port by itself is refused.
    let dialer = Dialer {
        netns,
        mark_all: false,
        timeout: std::time::Duration::from_secs(5),
        keepalive: socket2::TcpKeepalive::new(),
    };
    let connected = dialer.connect((Ipv4Addr::LOCALHOST, 15001).into(), Source::Any);
    // The reset may come before connect(2) is over.
    let end = match connected.await {
        Ok(mut own) => own.read(&mut [0]).await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
    first.logs(&["has no original destination"]).await;

    // The next one binds the same ports beside it.
    let mut under_way = node.connect().await.unwrap();
    exchange(&mut under_way).await.unwrap();
    let second = start(&node, "second");
    second.says(&["200 OK"]).await;
    first.terminate();
    first.logs(&["draining"]).await;
    exchange(&mut under_way).await.unwrap();
    finish(under_way).await.unwrap();
    first.ended().await;
    node.exchange().await.unwrap();
}
