//! What one pod, or one peer, may take from the others.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{self, ErrorKind};
use std::net::Ipv4Addr;
use std::time::Duration;

use support::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

/// The first bytes of a TLS record of which the rest never comes.
const BEGINNING: &[u8] = b"\x16\x03\x01\x02\x00\x01";

/// Without a certificate, to a pod's HBONE port.
async fn stranger(from: Ipv4Addr, to: &Pod) -> TcpStream {
    try_stranger(from, to).await.unwrap()
}

/// The same, where a reset may come before connect(2) is over.
async fn try_stranger(from: Ipv4Addr, to: &Pod) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    socket.connect((to.ip, 15008).into()).await
}

/// Client `a` and server `b`, which makes so many handshakes at once.
async fn two(mesh: &Mesh, handshakes: usize) -> (Pod, Pod) {
    let resources = [
        workload_of("a", mesh.ip(1), true, |_| ()),
        workload_of("b", mesh.ip(2), true, |_| ()),
    ];
    let server = mesh.pod("b", 2, &resources, |config| {
        config.max_handshakes = handshakes;
        config.handshake_timeout = Duration::from_secs(120);
    });
    (mesh.pod("a", 1, &resources, |_| ()).await, server.await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_say_nothing_keep_nobody_from_a_tunnel_and_are_limited_in_number() {
    let mesh = Mesh::new();
    let (a, b) = two(&mesh, 4).await;
    let server = echo(b.ip).await;
    // Eight wait for each handshake, and a quarter of them from one address.
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(stranger(mesh.ip(9), &b).await);
    }
    assert!(is_refused(try_stranger(mesh.ip(9), &b).await).await);
    let mut stream = a.connect(server).await;
    exchange(&mut stream, b"hello").await.unwrap();
    for stream in &mut silent {
        let ended = timeout(Duration::from_millis(10), stream.read(&mut [0])).await;
        assert!(ended.is_err(), "they wait still");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_stalls_its_handshakes_takes_a_quarter_of_the_turns() {
    let mesh = Mesh::new();
    let (a, b) = two(&mesh, 4).await;
    let server = echo(b.ip).await;
    let mut stalled = Vec::new();
    for _ in 0..8 {
        let mut stream = stranger(mesh.ip(9), &b).await;
        stream.write_all(BEGINNING).await.unwrap();
        stalled.push(stream);
    }
    // Until it has what it gets.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut stream = a.connect(server).await;
    exchange(&mut stream, b"hello").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_beyond_the_limit_wait_for_their_turn() {
    let mesh = Mesh::new();
    let (a, b) = two(&mesh, 1).await;
    let server = echo(b.ip).await;
    let mut stalled = stranger(mesh.ip(9), &b).await;
    stalled.write_all(BEGINNING).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut waiting = a.connect(server).await;
    assert!(is_reset(&mut waiting).await, "a gives up before its turn");
    drop(stalled);
    let mut stream = a.connect(server).await;
    exchange(&mut stream, b"hello").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pods_own_handshakes_are_limited() {
    let mesh = Mesh::new();
    let resources = [
        workload_of("a", mesh.ip(1), true, |_| ()),
        workload_of("b", mesh.ip(2), true, |_| ()),
        workload_of("c", mesh.ip(3), true, |_| ()),
    ];
    let a = mesh.pod("a", 1, &resources, |config| {
        config.max_handshakes = 1;
        config.connect_timeout = Duration::from_secs(60);
    });
    let (a, b) = (a.await, mesh.pod("b", 2, &resources, |_| ()).await);
    let server = echo(b.ip).await;
    let silent = TcpListener::bind((mesh.ip(3), 15008)).await.unwrap();
    let _stalls = a.connect((mesh.ip(3), 80).into()).await;
    let (mut peer, _) = silent.accept().await.unwrap();
    // Its handshake has begun.
    peer.read_exact(&mut [0; 5]).await.unwrap();
    let mut stream = a.connect(server).await;
    stream.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    let early = timeout(Duration::from_millis(500), stream.read_exact(&mut back)).await;
    assert!(early.is_err(), "a second handshake went on");
    drop((peer, silent));
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_pod_starves_anothers_small_requests_and_stalled_readers_share_a_bound() {
    const BOUND: u32 = 4 << 20;
    let mesh = Mesh::new();
    let resources = [
        workload_of("a", mesh.ip(1), true, |_| ()),
        workload_of("b", mesh.ip(2), true, |_| ()),
        workload_of("c", mesh.ip(3), true, |_| ()),
    ];
    let a = mesh.pod("a", 1, &resources, |_| ()).await;
    // One thread for both.
    let b = mesh.pod("b", 2, &resources, |config| {
        config.worker_threads = 1;
        config.max_stalled_memory = BOUND.try_into().unwrap();
    });
    let b = b.await;
    b.serve_also("c", mesh.ip(3)).await;
    let small = echo(mesh.ip(3)).await;

    // An application that reads nothing, and more clients than the bound is good for.
    let sink = TcpListener::bind((b.ip, 0)).await.unwrap();
    let to = sink.local_addr().unwrap();
    let mut writers = tokio::task::JoinSet::new();
    let mut unread = Vec::new();
    for _ in 0..16 {
        let mut stream = a.connect(to).await;
        writers.spawn(async move {
            let piece = vec![1; 64 << 10];
            loop {
                if let Err(error) = stream.write_all(&piece).await {
                    return error.kind();
                }
            }
        });
        unread.push(sink.accept().await.unwrap());
    }
    for _ in 0..100 {
        let mut stream = a.connect(small).await;
        exchange(&mut stream, b"small").await.unwrap();
    }
    // Of what stalls for 16 windows of 1 MiB, the bound leaves 4.
    for _ in 0..12 {
        let ended = timeout(Duration::from_secs(30), writers.join_next()).await;
        let kind = ended.expect("it is reset").unwrap().unwrap();
        assert!(
            matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
            "{kind}"
        );
    }
    let pods = b.pods.list();
    let held = pods
        .iter()
        .map(|pod| pod.copy.memory.as_ref().unwrap().held());
    let held: Vec<_> = held.collect();
    assert!(held.iter().all(|held| *held <= BOUND as usize), "{held:?}");
    b.metric(&["response_flags=\"LIMIT\""]).await;
    let mut stream = a.connect(small).await;
    exchange(&mut stream, b"small").await.unwrap();
}
