//! A pod's sockets, with resolvers of this process behind.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

use super::forward::{read_message, write_message};
use super::testing::{Fed, endpoint, service, store_of};
use super::{DnsClient, DnsOptions, DnsSockets, DnsStats, PodSockets, serve};
use crate::netns::Netns;

const LOOPBACK: &str = "127.0.0.1:0";

struct Proxy {
    udp: SocketAddr,
    tcp: SocketAddr,
    stats: Arc<DnsStats>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

async fn proxy(upstreams: &[SocketAddr], extra: Vec<Fed>, max_forwarded: usize) -> Proxy {
    let udp = UdpSocket::bind(LOOPBACK).await.unwrap();
    let tcp = TcpListener::bind(LOOPBACK).await.unwrap();
    let (udp_at, tcp_at) = (udp.local_addr().unwrap(), tcp.local_addr().unwrap());
    let mut all = vec![service("api", "api.shop.svc.cluster.local", &["10.96.0.1"]).into()];
    all.extend(extra);
    let store = Arc::new(store_of(all));
    let stats = Arc::new(DnsStats::default());
    let options = DnsOptions {
        upstreams: upstreams.into(),
        timeout: Duration::from_millis(300),
        max_forwarded,
        stats: stats.clone(),
        ..DnsOptions::default()
    };
    let client = DnsClient {
        uid: "Kubernetes//Pod/shop/client".into(),
        namespace: "shop".into(),
    };
    let stop = CancellationToken::new();
    let sockets = DnsSockets {
        udp: vec![udp],
        tcp: vec![tcp],
    };
    let upstream_sockets = Arc::new(PodSockets {
        netns: Netns::home(),
        mark: false,
    });
    let task = tokio::spawn(serve(
        sockets,
        client,
        store,
        options,
        upstream_sockets,
        stop.clone(),
    ));
    Proxy {
        udp: udp_at,
        tcp: tcp_at,
        stats,
        stop,
        task,
    }
}

fn query(name: &str) -> Vec<u8> {
    let mut query = Message::query();
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    query.to_vec().unwrap()
}

async fn ask_udp(to: SocketAddr, query: &[u8]) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind(LOOPBACK).await.unwrap();
    socket.connect(to).await.unwrap();
    socket.send(query).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let received = tokio::time::timeout(Duration::from_secs(2), socket.recv(&mut buffer)).await;
    let length = received.ok()?.unwrap();
    buffer.truncate(length);
    Some(buffer)
}

/// The response that a resolver gives: the query with "response" set and some bytes after it.
fn response_to(query: &[u8]) -> Vec<u8> {
    let mut response = query.to_vec();
    response[2] |= 0x80;
    response.extend_from_slice(b"whatever the resolver says");
    response
}

/// A resolver on UDP and TCP. It returns what it was asked, and from which ports.
async fn resolver() -> (
    SocketAddr,
    tokio::sync::mpsc::UnboundedReceiver<(Vec<u8>, SocketAddr)>,
) {
    let udp = UdpSocket::bind(LOOPBACK).await.unwrap();
    let address = udp.local_addr().unwrap();
    let tcp = TcpListener::bind(address).await.unwrap();
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let tcp_sender = sender.clone();
    tokio::spawn(async move {
        let mut buffer = vec![0; 65_535];
        while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
            let query = buffer[..length].to_vec();
            // Not the answer: another id, then another question.
            let mut wrong = response_to(&query);
            wrong[0] ^= 0xff;
            let _ = udp.send_to(&wrong, from).await;
            let mut wrong = response_to(&query);
            wrong[13] ^= 0x0f;
            let _ = udp.send_to(&wrong, from).await;
            let _ = udp.send_to(&response_to(&query), from).await;
            let _ = sender.send((query, from));
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, from)) = tcp.accept().await {
            let query = read_message(&mut stream).await.unwrap().unwrap();
            write_message(&mut stream, &response_to(&query))
                .await
                .unwrap();
            let _ = tcp_sender.send((query, from));
        }
    });
    (address, receiver)
}

#[tokio::test]
async fn what_the_mesh_owns_is_answered_here_over_both_transports() {
    let proxy = proxy(&[], Vec::new(), 16).await;
    let query = query("api.shop.svc.cluster.local.");
    let over_udp = ask_udp(proxy.udp, &query).await.unwrap();
    let reply = Message::from_vec(&over_udp).unwrap();
    assert_eq!(reply.answers[0].data.to_string(), "10.96.0.1");

    let mut stream = TcpStream::connect(proxy.tcp).await.unwrap();
    for _ in 0..2 {
        write_message(&mut stream, &query).await.unwrap();
        assert_eq!(read_message(&mut stream).await.unwrap().unwrap(), over_udp);
    }
    assert_eq!(proxy.stats.answered.get(), 3);
}

#[tokio::test]
async fn everything_else_is_forwarded_byte_for_byte_with_an_id_and_a_port_of_its_own() {
    let (upstream, mut asked) = resolver().await;
    let proxy = proxy(&[upstream], Vec::new(), 16).await;
    let mut ids = std::collections::HashSet::new();
    let mut ports = std::collections::HashSet::new();
    for _ in 0..8 {
        let mut query = query("www.example.com.");
        // Bytes that no parser of ours understands.
        query.extend_from_slice(b"\x01\x02\x03");
        assert_eq!(
            ask_udp(proxy.udp, &query).await.unwrap(),
            response_to(&query)
        );
        let (forwarded, from) = asked.recv().await.unwrap();
        assert_eq!(forwarded[2..], query[2..]);
        ids.insert(forwarded[..2].to_vec());
        ports.insert(from.port());
    }
    assert!(ids.len() > 4 && ports.len() > 4, "{ids:?} {ports:?}");

    let query = query("www.example.com.");
    let mut stream = TcpStream::connect(proxy.tcp).await.unwrap();
    write_message(&mut stream, &query).await.unwrap();
    assert_eq!(
        read_message(&mut stream).await.unwrap().unwrap(),
        response_to(&query)
    );
    assert_eq!(proxy.stats.forwarded.get(), 9);
}

#[tokio::test]
async fn the_next_resolver_is_asked_when_one_is_silent_or_gone() {
    let silent = UdpSocket::bind(LOOPBACK).await.unwrap();
    let gone = UdpSocket::bind(LOOPBACK).await.unwrap();
    let gone_at = gone.local_addr().unwrap();
    drop(gone);
    let (good, _asked) = resolver().await;
    let proxy = proxy(
        &[silent.local_addr().unwrap(), gone_at, good],
        Vec::new(),
        16,
    )
    .await;
    let query = query("www.example.com.");
    assert_eq!(
        ask_udp(proxy.udp, &query).await.unwrap(),
        response_to(&query)
    );
}

#[tokio::test]
async fn with_no_resolver_the_client_hears_of_a_failure() {
    let silent = UdpSocket::bind(LOOPBACK).await.unwrap();
    for upstreams in [vec![], vec![silent.local_addr().unwrap()]] {
        let proxy = proxy(&upstreams, Vec::new(), 16).await;
        let query = query("www.example.com.");
        let reply = Message::from_vec(&ask_udp(proxy.udp, &query).await.unwrap()).unwrap();
        assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
        assert_eq!(reply.metadata.id.to_be_bytes(), query[..2]);
        assert_eq!(proxy.stats.failed.get(), 1);
    }
}

#[tokio::test]
async fn a_pod_that_opted_out_has_all_its_queries_forwarded() {
    let (upstream, _asked) = resolver().await;
    let out = endpoint("client", "10.0.0.1", "x.shop.svc.cluster.local").opted_out();
    let proxy = proxy(&[upstream], vec![out.into()], 16).await;
    let query = query("api.shop.svc.cluster.local.");
    assert_eq!(
        ask_udp(proxy.udp, &query).await.unwrap(),
        response_to(&query)
    );
}

#[tokio::test]
async fn queries_beyond_the_bound_are_dropped_and_owned_names_are_still_answered() {
    let silent = UdpSocket::bind(LOOPBACK).await.unwrap();
    let proxy = proxy(&[silent.local_addr().unwrap()], Vec::new(), 2).await;
    let client = UdpSocket::bind(LOOPBACK).await.unwrap();
    client.connect(proxy.udp).await.unwrap();
    for _ in 0..5 {
        client.send(&query("www.example.com.")).await.unwrap();
    }
    assert!(
        ask_udp(proxy.udp, &query("api.shop.svc.cluster.local."))
            .await
            .is_some()
    );
    assert_eq!(proxy.stats.dropped.get(), 3);
}

#[tokio::test]
async fn garbage_is_not_answered_and_half_a_message_ends_its_own_connection_only() {
    let proxy = proxy(&[], Vec::new(), 16).await;
    let client = UdpSocket::bind(LOOPBACK).await.unwrap();
    client.connect(proxy.udp).await.unwrap();
    client.send(b"garbage").await.unwrap();
    client
        .send(&response_to(&query("api.shop.svc.cluster.local.")))
        .await
        .unwrap();
    let mut half = TcpStream::connect(proxy.tcp).await.unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut half, &[0, 40, 1, 2])
        .await
        .unwrap();
    drop(half);

    let query = query("api.shop.svc.cluster.local.");
    assert!(ask_udp(proxy.udp, &query).await.is_some());
    let mut stream = TcpStream::connect(proxy.tcp).await.unwrap();
    write_message(&mut stream, &query).await.unwrap();
    assert!(read_message(&mut stream).await.unwrap().is_some());
    // Two datagrams and the half message; a connection that ends between two messages is none.
    drop(stream);
    let dropped = || proxy.stats.dropped.get();
    while dropped() < 3 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(ask_udp(proxy.udp, &query).await.is_some());
    assert_eq!(dropped(), 3);
}

#[tokio::test]
async fn whole_garbage_over_tcp_is_counted_and_ends_its_connection() {
    let proxy = proxy(&[], Vec::new(), 16).await;
    for garbage in [
        &b"garbage"[..],
        &response_to(&query("api.shop.svc.cluster.local.")),
    ] {
        let mut stream = TcpStream::connect(proxy.tcp).await.unwrap();
        write_message(&mut stream, garbage).await.unwrap();
        assert_eq!(read_message(&mut stream).await.unwrap(), None);
    }
    assert_eq!(proxy.stats.dropped.get(), 2);
}

#[tokio::test]
async fn the_sockets_are_closed_when_it_stops() {
    let proxy = proxy(&[], Vec::new(), 16).await;
    let query = query("api.shop.svc.cluster.local.");
    assert!(ask_udp(proxy.udp, &query).await.is_some());
    proxy.stop.cancel();
    proxy.task.await.unwrap();
    // The port is free at once.
    UdpSocket::bind(proxy.udp).await.unwrap();
    TcpListener::bind(proxy.tcp).await.unwrap();
}
