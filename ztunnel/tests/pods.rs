//! Pods that an agent names which leaves the listening sockets to the proxy.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use seine_identity::testing::TestCa;
use seine_ztunnel::app::share;
use seine_ztunnel::config::Config;
use seine_ztunnel::listeners::{ListenerSource, Ports};
use seine_ztunnel::netns::Netns;
use seine_ztunnel::pods::{AgentSink, Pods};
use seine_ztunnel::shared::Environment;
use seine_ztunnel::zds::{PodInfo, PodSink};
use support::{TestSource, unused_port};

fn proxy(ports: Ports) -> AgentSink {
    let source = Arc::new(TestSource(Mutex::new(Arc::new(TestCa::new(
        "cluster.local",
    )))));
    let shared = share(Config::defaults(), source, Environment::default()).unwrap();
    AgentSink(Pods::new(shared, ListenerSource::Own(ports)))
}

async fn add(proxy: &AgentSink) -> Result<(), String> {
    let pod = PodInfo {
        uid: "u".into(),
        name: "web".into(),
        namespace: "shop".into(),
        service_account: "web".into(),
    };
    proxy.add(pod, Netns::home()).await
}

#[tokio::test]
async fn a_pod_is_acknowledged_once_its_ports_are_bound_and_then_by_a_second_proxy_too() {
    let ports = Ports {
        outbound: unused_port(),
        inbound_plaintext: unused_port(),
        inbound_hbone: unused_port(),
        dns: unused_port(),
    };
    let taken = std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, ports.inbound_hbone)).unwrap();
    let first = proxy(ports);
    let refused = add(&first).await.unwrap_err();
    assert!(refused.contains("can't listen on"), "{refused}");
    let again = add(&first).await.unwrap_err();
    assert!(again.contains("not there yet"), "{again}");
    drop(taken);
    let served = async {
        while add(&first).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), served)
        .await
        .expect("its ports are free, and it is served");

    // A rolling update: the new proxy comes before the old one goes.
    assert_eq!(add(&proxy(ports)).await, Ok(()));
}
