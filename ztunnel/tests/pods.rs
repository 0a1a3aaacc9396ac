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
    let api = support::service("api", Ipv4Addr::new(10, 96, 0, 1), 80, 8080);
    assert_eq!(shared.store.apply_addresses(&[api], &[]), []);
    shared.set_configured();
    AgentSink(Pods::new(shared, ListenerSource::Own(ports)))
}

/// Asks for the A record of `api.shop.svc.cluster.local`.
fn query() -> Vec<u8> {
    let mut query = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in "api.shop.svc.cluster.local".split('.') {
        query.push(label.len() as u8);
        query.extend(label.as_bytes());
    }
    query.extend([0, 0, 1, 0, 1]);
    query
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

#[tokio::test]
async fn a_pods_dns_is_answered_while_the_main_thread_is_busy() {
    let port = unused_port();
    let ports = Ports {
        outbound: unused_port(),
        inbound_plaintext: unused_port(),
        inbound_hbone: unused_port(),
        dns: port,
    };
    let proxy = proxy(ports);
    add(&proxy).await.unwrap();
    // Asked without giving the thread back.
    let client = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    client.connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    client.send(&query()).unwrap();
    let mut answer = [0; 512];
    let length = client.recv(&mut answer).unwrap();
    assert!(answer[..length].ends_with(&[10, 96, 0, 1]));
}
