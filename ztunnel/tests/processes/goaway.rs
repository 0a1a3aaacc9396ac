//! Clients that go on after a GOAWAY, which no library does: they speak HTTP/2 frame by frame.

use std::io;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Duration;

use seine_hbone::GOAWAY_GRACE;
use seine_identity::Identity;
use seine_ztunnel::sockets::{Dialer, Source};
use socket2::TcpKeepalive;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::{Node, POD};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;

const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// The tunnel of such a client.
struct Tunnel {
    stream: TlsStream<TcpStream>,
    /// Whether it answers a PING, by which a server learns that its GOAWAY has been read.
    answers: bool,
}

#[derive(Debug)]
struct Frame {
    kind: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Tunnel {
    async fn new(node: &Node, answers: bool) -> Self {
        let server: Identity = "spiffe://cluster.local/ns/shop/sa/b".parse().unwrap();
        let credentials = node.control.credentials("web");
        let tls = credentials.client_config(&server.into()).unwrap();
        let dialer = Dialer {
            netns: node.namespace.open(),
            mark_all: false,
            timeout: Duration::from_secs(10),
            keepalive: TcpKeepalive::new(),
        };
        let tcp = dialer.connect((POD, 15008).into(), Source::Any).await;
        let stream = TlsConnector::from(tls)
            .connect(IpAddr::from(POD).into(), tcp.unwrap())
            .await
            .unwrap();
        let mut tunnel = Self { stream, answers };
        let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
        tunnel.stream.write_all(preface).await.unwrap();
        tunnel.send(SETTINGS, 0, 0, &[]).await.unwrap();
        tunnel
    }

    async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.stream.write_all(&frame).await?;
        self.stream.flush().await
    }

    async fn next(&mut self) -> io::Result<Frame> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head).await?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        self.stream.read_exact(&mut payload).await?;
        if self.answers && kind == PING && flags & ACK == 0 {
            self.send(PING, ACK, 0, &payload).await?;
        }
        let stream = u32::from_be_bytes(stream);
        Ok(Frame {
            kind,
            stream,
            payload,
        })
    }

    /// The next frame of this kind.
    async fn until(&mut self, kind: u8) -> Frame {
        loop {
            let frame = self.next().await.unwrap();
            assert!(
                frame.kind != RST_STREAM && (frame.kind != GOAWAY || kind == GOAWAY),
                "{frame:?} where {kind} was to come"
            );
            if frame.kind == kind {
                return frame;
            }
        }
    }

    /// Asks for a connection to the application, with literal header fields.
    async fn open(&mut self, node: &Node, stream: u32) -> io::Result<()> {
        let authority = node.application.to_string();
        let mut block = vec![2, 7];
        block.extend(b"CONNECT");
        block.extend([1, u8::try_from(authority.len()).unwrap()]);
        block.extend(authority.bytes());
        self.send(HEADERS, END_HEADERS, stream, &block).await
    }

    async fn exchange(&mut self, stream: u32) {
        self.send(DATA, 0, stream, b"hello").await.unwrap();
        let data = self.until(DATA).await;
        assert_eq!((data.stream, &data.payload[..]), (stream, &b"hello"[..]));
    }

    /// Opens further streams, and reads until the other side ends the tunnel.
    async fn insists(&mut self, node: &Node) {
        for stream in (5..45).step_by(2) {
            self.open(node, stream).await.unwrap();
        }
        while let Ok(frame) = self.next().await {
            assert_ne!(frame.kind, HEADERS, "a stream was opened");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_ignores_a_goaway_is_cut_at_the_deadline_and_gets_nothing_until_then() {
    let Some(node) = Node::new() else {
        println!("SKIPPED clients that ignore a GOAWAY: it needs root");
        return;
    };
    let _control = node.control.start();
    let mut proxy = node.proxy_with("only", &[("--drain-deadline", "4s")]);
    proxy.says(&["200 OK"]).await;
    let mut tunnels = [
        Tunnel::new(&node, true).await,
        Tunnel::new(&node, false).await,
    ];
    for tunnel in &mut tunnels {
        tunnel.open(&node, 1).await.unwrap();
        assert_eq!(tunnel.until(HEADERS).await.stream, 1);
        tunnel.exchange(1).await;
    }
    assert_eq!(node.seen.load(Ordering::SeqCst), 2);

    proxy.terminate();
    let [reads, deaf] = &mut tunnels;
    let last_stream = |frame: Frame| u32::from_be_bytes(frame.payload[..4].try_into().unwrap());
    assert_eq!(last_stream(reads.until(GOAWAY).await), u32::MAX >> 1);
    assert_eq!(last_stream(reads.until(GOAWAY).await), 1);
    deaf.until(GOAWAY).await;
    // What stands goes on, for both.
    reads.exchange(1).await;
    deaf.exchange(1).await;
    // A stream that was on its way when the GOAWAY came is served; what comes later was not.
    tokio::time::sleep(GOAWAY_GRACE + Duration::from_millis(100)).await;
    // Nothing new is made for them: not one more connection of the application's.
    let insist = async {
        tokio::join!(reads.insists(&node), deaf.insists(&node));
    };
    tokio::time::timeout(Duration::from_secs(20), insist)
        .await
        .expect("both are cut");
    proxy.ended().await;
    proxy
        .logs(&["the deadline passed: connections were reset"])
        .await;
    assert_eq!(node.seen.load(Ordering::SeqCst), 2);
    while node.reset.load(Ordering::SeqCst) < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
