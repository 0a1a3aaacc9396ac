//! A destination in another network, behind that network's gateway: a tunnel within a tunnel.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use seine_hbone::{Io, Settings, accept, drain};
use seine_identity::Credentials;
use seine_proto::workload::{GatewayAddress, NetworkAddress, gateway_address};
use support::*;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

/// Whom the gateway let through, and to what.
type Seen = Arc<Mutex<Vec<(String, String)>>>;

/// A gateway that leads everybody to `to`.
async fn gateway(ip: Ipv4Addr, credentials: Arc<Credentials>, to: SocketAddr) -> Seen {
    let listener = TcpListener::bind((ip, 15008)).await.unwrap();
    let seen = Seen::default();
    let noted = seen.clone();
    tokio::spawn(async move {
        let (_drain, draining) = drain();
        loop {
            let (tcp, peer) = listener.accept().await.unwrap();
            let settings = Arc::new(Settings::default());
            let (credentials, seen, draining) =
                (credentials.clone(), noted.clone(), draining.clone());
            tokio::spawn(async move {
                let Ok(accepted) = accept(Io::from(tcp), peer, &credentials, settings).await else {
                    return;
                };
                let served = accepted.serve(draining, |incoming| {
                    seen.lock().push((
                        incoming.peer_identity.to_string(),
                        incoming.request.authority.to_string(),
                    ));
                    tokio::spawn(async move {
                        let mut tcp = TcpStream::connect(to).await.unwrap();
                        let mut stream = incoming.accept(None).unwrap();
                        let _ = copy_bidirectional(&mut stream, &mut tcp).await;
                    });
                });
                let _ = served.await;
            });
        }
    });
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_of_another_network_is_reached_in_a_tunnel_within_its_gateways() {
    let mesh = Mesh::new();
    let application = echo(mesh.ip(2)).await;
    let port = application.port();
    let (vip, name) = (mesh.ip(100), "b.shop.svc.cluster.local");
    let behind = |gateway: Ipv4Addr| {
        workload_of("b", mesh.ip(2), true, |b| {
            backs(b, "b", 80, port);
            b.network = "west".into();
            b.network_gateway = Some(GatewayAddress {
                destination: Some(gateway_address::Destination::Address(NetworkAddress {
                    network: String::new(),
                    address: gateway.octets().to_vec(),
                    length: None,
                })),
                hbone_mtls_port: 15008,
            });
        })
    };
    let as_seen_by_a = |gateway: Ipv4Addr| {
        [
            service("b", vip, 80, port),
            workload_of("a", mesh.ip(1), true, |_| ()),
            workload_of("gateway", gateway, true, |_| ()),
            behind(gateway),
        ]
    };
    let as_seen_by_b = [
        service("b", vip, 80, port),
        workload_of("b", mesh.ip(2), true, |b| backs(b, "b", 80, port)),
    ];
    let a = mesh.pod("a", 1, &as_seen_by_a(mesh.ip(9)), |_| ()).await;
    let b = mesh.pod("b", 2, &as_seen_by_b, |_| ()).await;
    let hbone = (b.ip, 15008).into();
    let own = mesh.ca.credentials("shop", "gateway");
    let seen = gateway(mesh.ip(9), own, hbone).await;

    let mut stream = a.connect((vip, 80).into()).await;
    exchange(&mut stream, b"hello").await.unwrap();
    let first = "spiffe://cluster.local/ns/shop/sa/a".to_owned();
    assert_eq!(*seen.lock(), [(first.clone(), format!("{name}:80"))]);
    // Not the gateway's: the inner tunnel is between the two pods.
    let live = b.shared.connections.list();
    assert_eq!(
        live[0].info.source.identity.as_ref().unwrap().as_str(),
        first
    );
    assert_eq!(live[0].info.upstream, Some(application));

    // One that is certified as somebody else is told nothing.
    let c = mesh.pod("a", 3, &as_seen_by_a(mesh.ip(8)), |_| ()).await;
    let other = mesh.ca.credentials("shop", "other");
    let told = gateway(mesh.ip(8), other, hbone).await;
    assert!(is_refused(c.try_connect((vip, 80).into()).await).await);
    c.metric(&[
        "seine_connections_failed_total",
        "TLS_FAILURE",
        "fault=\"upstream\"",
    ])
    .await;
    assert_eq!(*told.lock(), []);
}
