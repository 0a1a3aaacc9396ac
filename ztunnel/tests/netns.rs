//! Sockets in a pod's network namespace, towards the application with the client's own address. Needs root; without it
//! the test says so and passes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/namespace.rs"]
mod namespace;

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use namespace::PodNamespace;
use seine_ztunnel::netns::{Netns, remember_home};
use seine_ztunnel::sockets::{Dialer, Source, listen};
use socket2::TcpKeepalive;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_application_sees_the_clients_own_address_in_both_families() {
    remember_home().unwrap();
    let Some(namespace) = PodNamespace::new() else {
        println!("SKIPPED a pod's network namespace: it needs root");
        return;
    };
    let netns = namespace.open();
    let dialer = Dialer {
        netns: netns.clone(),
        mark_all: false,
        timeout: Duration::from_secs(5),
        keepalive: TcpKeepalive::new(),
    };
    for (pod, client) in [
        ("10.99.0.2:8080", "192.0.2.7"),
        ("[fd99::2]:8080", "2001:db8::7"),
    ] {
        let (pod, client): (SocketAddr, IpAddr) = (pod.parse().unwrap(), client.parse().unwrap());
        let application = listen(&netns, pod, false).unwrap();
        // More than once: the same source and destination get different ports.
        let mut held = Vec::new();
        for _ in 0..3 {
            let (connected, accepted) = tokio::join!(
                dialer.connect(pod, Source::Foreign(client)),
                application.accept()
            );
            let (stream, seen) = accepted.unwrap();
            assert_eq!(seen.ip(), client);
            held.push((connected.unwrap(), stream));
        }
        // The namespace is the pod's, and this thread is home again.
        assert!(
            listen(&Netns::home(), pod, false).is_err(),
            "{pod} is no address here"
        );
    }
    assert_eq!(netns.id(), namespace.open().id());
    assert_ne!(netns.id(), Netns::home().id());
}

#[tokio::test]
async fn under_another_meshs_agent_every_socket_has_its_mark() {
    remember_home().unwrap();
    let Some(namespace) = PodNamespace::new() else {
        println!("SKIPPED a pod's network namespace: it needs root");
        return;
    };
    let netns = namespace.open();
    let pod: SocketAddr = "10.99.0.2:8080".parse().unwrap();
    let application = listen(&netns, pod, false).unwrap();
    for (mark_all, mark) in [(true, 0x539), (false, 0)] {
        let dialer = Dialer {
            netns: netns.clone(),
            mark_all,
            timeout: Duration::from_secs(5),
            keepalive: TcpKeepalive::new(),
        };
        let (connected, accepted) =
            tokio::join!(dialer.connect(pod, Source::Any), application.accept());
        let stream = connected.unwrap();
        assert_eq!(socket2::SockRef::from(&stream).mark().unwrap(), mark);
        accepted.unwrap();
    }
}
