//! The real binary, several times one after the other, as a pod's traffic goes on: an orderly hand-over, and a crash.
//!
//! Agent and control plane are the test's own; the pod is a network namespace. Needs root; without it the test says so
//! and passes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agent;
mod control;
mod dedicated;
mod flood;
mod goaway;
#[path = "../support/namespace.rs"]
mod namespace;
mod pages;
mod secrets;
mod spire;
#[path = "../support/mod.rs"]
mod support;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use control::{Control, SERVER_NAME};
use futures::future::BoxFuture;
use namespace::PodNamespace;
use seine_hbone::{
    Authority, ConnectRequest, Connected, Connector, Io, OpenError, Pool, Settings, Stream,
    TunnelKey,
};
use seine_identity::Credentials;
use seine_ztunnel::netns::{Netns, remember_home};
use seine_ztunnel::sockets::{Dialer, Source, listen};
use socket2::TcpKeepalive;
use support::workload_of;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PROGRAM: &str = env!("CARGO_BIN_EXE_seine-ztunnel");
/// The pod's address in its namespace.
const POD: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

/// A node: the pod, its application, agent, and what its proxies need.
struct Node {
    namespace: PodNamespace,
    folder: tempfile::TempDir,
    control: Control,
    application: SocketAddr,
    /// Connections that the application has seen.
    seen: Arc<AtomicUsize>,
    /// How many of them were reset.
    reset: Arc<AtomicUsize>,
}

/// A proxy process; killed when dropped.
struct Proxy {
    process: Child,
    /// Where its pages are.
    netns: Netns,
    readiness: SocketAddr,
    admin: SocketAddr,
    log: PathBuf,
}

impl Node {
    fn new() -> Option<Self> {
        let node = Self::new_without_agent()?;
        let (folder, namespace) = (node.folder.path(), &node.namespace);
        agent::start(
            folder,
            &namespace.open(),
            namespace.path(),
            (POD, 15008).into(),
        );
        Some(node)
    }

    fn new_without_agent() -> Option<Self> {
        remember_home().unwrap();
        let namespace = PodNamespace::new()?;
        let folder = tempfile::tempdir().unwrap();
        let workload = workload_of("b", POD, true, |_| ());
        let control = Control::new(vec![workload], folder.path());
        let netns = namespace.open();
        let seen = Arc::new(AtomicUsize::new(0));
        let application = listen(&netns, (POD, 0).into(), false).unwrap();
        let address = application.local_addr().unwrap();
        let reset = Arc::new(AtomicUsize::new(0));
        let (counted, counted_resets) = (seen.clone(), reset.clone());
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = application.accept().await.unwrap();
                counted.fetch_add(1, Ordering::SeqCst);
                let resets = counted_resets.clone();
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let end = tokio::io::copy(&mut read, &mut write).await;
                    if end.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset) {
                        resets.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        Some(Self {
            namespace,
            folder,
            control,
            application: address,
            seen,
            reset,
        })
    }

    fn proxy(&self, name: &str) -> Proxy {
        self.proxy_with(name, &[])
    }

    fn proxy_with(&self, name: &str, flags: &[(&str, &str)]) -> Proxy {
        let mut command = Command::new(PROGRAM);
        for (flag, name) in [
            ("--zds-socket", "zds"),
            ("--listeners-socket", "listeners"),
            ("--handover-socket", "handover"),
        ] {
            command.arg(flag).arg(self.folder.path().join(name));
        }
        self.run(command, name, flags, Netns::home())
    }

    /// Runs the program of `command`, in whose namespace its pages are.
    fn run(&self, mut command: Command, name: &str, flags: &[(&str, &str)], netns: Netns) -> Proxy {
        let file = |name: &str| self.folder.path().join(name);
        let page = || SocketAddr::from((Ipv4Addr::LOCALHOST, support::unused_port()));
        let (readiness, admin) = (page(), page());
        let control = format!("https://127.0.0.1:{}", self.control.port);
        let log = file(&format!("{name}.log"));
        for (flag, value) in [
            ("--node", "node1"),
            ("--xds-address", &control),
            ("--ca-address", &control),
            ("--server-name", SERVER_NAME),
            ("--drain-deadline", "10s"),
            ("--handshake-timeout", "2s"),
            ("--readiness-address", &readiness.to_string()),
            ("--admin-address", &admin.to_string()),
            ("--metrics-address", "127.0.0.1:0"),
        ] {
            let instead = match flag {
                "--ca-address" => "--spire-socket",
                _ => flag,
            };
            if !flags
                .iter()
                .any(|(other, _)| [flag, instead].contains(other))
            {
                command.args([flag, value]);
            }
        }
        for (flag, value) in flags {
            command.args([flag, value]);
        }
        for (flag, name) in [
            ("--ca-roots", "roots.pem"),
            ("--token-file", "token"),
            ("--state-dir", "state"),
        ] {
            command.arg(flag).arg(file(name));
        }
        let process = command
            .env_clear()
            .stdin(Stdio::null())
            .stderr(File::create(&log).unwrap())
            .spawn()
            .unwrap();
        Proxy {
            process,
            netns,
            readiness,
            admin,
            log,
        }
    }

    /// Connects to the application as pod `shop/web` would, in a tunnel of its own.
    async fn connect(&self) -> Result<Stream, OpenError> {
        Client::of(self).open(self.application).await
    }

    /// A connection from beginning to end.
    async fn exchange(&self) -> io::Result<()> {
        let mut stream = self.connect().await.map_err(io::Error::other)?;
        exchange(&mut stream).await?;
        finish(stream).await
    }
}

async fn exchange(stream: &mut Stream) -> io::Result<()> {
    stream.write_all(b"hello").await?;
    let mut back = [0; 5];
    stream.read_exact(&mut back).await?;
    assert_eq!(&back, b"hello");
    Ok(())
}

/// Ends a connection in order.
async fn finish(mut stream: Stream) -> io::Result<()> {
    stream.shutdown().await?;
    match stream.read(&mut [0]).await? {
        0 => Ok(()),
        _ => Err(io::Error::other("more bytes than were sent")),
    }
}

/// A client of HBONE beside the pod.
struct Client {
    credentials: Arc<Credentials>,
    dialer: Dialer,
}

impl Client {
    /// Pod `shop/web`.
    fn of(node: &Node) -> Self {
        Self {
            credentials: node.control.credentials("web"),
            dialer: Dialer {
                netns: node.namespace.open(),
                mark_all: false,
                timeout: Duration::from_secs(10),
                keepalive: TcpKeepalive::new(),
            },
        }
    }

    async fn open(self, to: SocketAddr) -> Result<Stream, OpenError> {
        let destination = "spiffe://cluster.local/ns/shop/sa/b";
        let key = Arc::new(TunnelKey {
            source: self.credentials.identity().clone(),
            destinations: destination
                .parse::<seine_identity::Identity>()
                .unwrap()
                .into(),
            peer: (POD, 15008).into(),
            source_address: POD.into(),
            generation: 0,
        });
        let connector: Arc<dyn Connector> = Arc::new(self);
        let request = ConnectRequest::new(Authority::from(to));
        let opened = Pool::new(Settings::default())
            .open(&key, &connector, &request)
            .await?;
        Ok(opened.stream)
    }
}

impl Connector for Client {
    fn connect<'a>(&'a self, key: &'a TunnelKey) -> BoxFuture<'a, io::Result<Connected>> {
        Box::pin(async move {
            let tls = self
                .credentials
                .client_config(&key.destinations)
                .map_err(io::Error::other)?;
            let tcp = self.dialer.connect(key.peer, Source::Any).await?;
            Ok(Connected {
                io: Io::from(tcp),
                tls,
                turn: None,
            })
        })
    }
}

impl Proxy {
    /// The readiness page, or nothing when nobody listens.
    fn readiness(&self) -> String {
        self.ask(self.readiness, "GET /healthz/ready", "host: x\r\n")
    }

    /// A page of the admin port, as an operator asks for it.
    fn admin(&self, request: &str) -> String {
        self.ask(self.admin, request, &format!("host: {}\r\n", self.admin))
    }

    /// A page with its head, or nothing when nobody listens.
    fn ask(&self, server: SocketAddr, request: &str, headers: &str) -> String {
        let mut page = String::new();
        if let Ok(mut server) = self.netns.run(|| TcpStream::connect(server)).unwrap() {
            let request = format!("{request} HTTP/1.1\r\n{headers}connection: close\r\n\r\n");
            let _ = server.write_all(request.as_bytes());
            let _ = server.read_to_string(&mut page);
        }
        page
    }

    /// Waits until the readiness page has these words.
    async fn says(&self, words: &[&str]) {
        self.wait_for("readiness", words, || self.readiness()).await;
    }

    /// Waits until the log has these words.
    async fn logs(&self, words: &[&str]) {
        self.wait_for("log", words, || self.log()).await;
    }

    fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    async fn wait_for(&self, what: &str, words: &[&str], text: impl Fn() -> String) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let text = text();
            if words.iter().all(|word| text.contains(word)) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{what} without {words:?}:\n{text}\n{}",
                self.log()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn ended(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return assert!(status.success(), "{status}\n{}", self.log());
            }
            assert!(Instant::now() < deadline, "it goes on:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// SIGTERM.
    fn terminate(&self) {
        let pid = nix::unistd::Pid::from_raw(self.process.id().try_into().unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    }

    /// SIGKILL.
    fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Connects again and again, each time in a new tunnel; every failure is one too many.
async fn traffic(node: Arc<Node>, stop: Arc<AtomicBool>) -> usize {
    let mut count = 0;
    while !stop.load(Ordering::SeqCst) {
        if let Err(error) = node.exchange().await {
            panic!("after {count} connections: {error}");
        }
        count += 1;
    }
    count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_over_refuses_nobody_and_a_crash_without_the_ca_fails_closed() {
    let Some(node) = Node::new() else {
        println!("SKIPPED hand-over of processes: it needs root");
        return;
    };
    let node = Arc::new(node);
    let control = node.control.start();
    let mut first = node.proxy("first");
    first.says(&["200 OK"]).await;
    let mut long_lived = node.connect().await.unwrap();
    exchange(&mut long_lived).await.unwrap();
    // The configuration is on disk a moment after it came.
    while !node.folder.path().join("state/configuration").exists() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    // With the control plane away, the second one has the first one's keys alone.
    drop(control);
    let stop = Arc::new(AtomicBool::new(false));
    let traffic = tokio::spawn(traffic(node.clone(), stop.clone()));
    let mut second = node.proxy("second");
    second.says(&["200 OK"]).await;
    second.logs(&["handed over its keys keys=1"]).await;
    second.logs(&["the old proxy drains"]).await;
    first.logs(&["another proxy has taken over"]).await;
    exchange(&mut long_lived).await.unwrap();
    finish(long_lived).await.unwrap();
    first.ended().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::SeqCst);
    let count = traffic.await.unwrap();
    assert!(count > 20, "only {count} connections");

    // A crash, with the control plane away: nothing is served, and the reason is to be seen.
    // Both ends of a connection see that it was cut, and not an end in order.
    let mut cut = node.connect().await.unwrap();
    exchange(&mut cut).await.unwrap();
    assert_eq!(node.reset.load(Ordering::SeqCst), 0);
    second.kill();
    assert!(cut.read(&mut [0]).await.is_err());
    while node.reset.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let seen = node.seen.load(Ordering::SeqCst);
    let mut third = node.proxy("third");
    let identity = "spiffe://cluster.local/ns/shop/sa/b";
    third.says(&["503 ", "certificates: ", identity]).await;
    third.logs(&["no pod can be served", identity]).await;
    let refused = tokio::time::timeout(Duration::from_secs(2), node.exchange()).await;
    assert!(!matches!(refused, Ok(Ok(()))));
    assert_eq!(node.seen.load(Ordering::SeqCst), seen, "it failed closed");

    // The control plane is back: so is the traffic.
    let control = node.control.start();
    third.says(&["200 OK"]).await;
    node.exchange().await.unwrap();

    // The CA is away and the rest of the control plane is not: who has certificates serves on, and who starts has
    // the configuration alone, which serves nobody.
    drop(control);
    let control = node.control.start_without_ca();
    node.exchange().await.unwrap();
    third.kill();
    let seen = node.seen.load(Ordering::SeqCst);
    let mut third = node.proxy("third again");
    third.says(&["503 ", "certificates: ", identity]).await;
    third.logs(&["no certificates here"]).await;
    let refused = tokio::time::timeout(Duration::from_secs(2), node.exchange()).await;
    assert!(!matches!(refused, Ok(Ok(()))));
    assert_eq!(node.seen.load(Ordering::SeqCst), seen, "it failed closed");
    drop(control);
    let control = node.control.start();
    third.says(&["200 OK"]).await;
    node.exchange().await.unwrap();

    // A crash that the CA survives: connections wait for the next proxy.
    third.kill();
    let waiting = tokio::spawn({
        let node = node.clone();
        async move { node.exchange().await }
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished());
    let mut fourth = node.proxy("fourth");
    waiting.await.unwrap().unwrap();

    // Told to end, with none to follow: what is under way goes on, who comes now waits.
    let mut under_way = node.connect().await.unwrap();
    exchange(&mut under_way).await.unwrap();
    fourth.terminate();
    fourth.logs(&["draining", "connections=1"]).await;
    let waiting = tokio::spawn({
        let node = node.clone();
        async move { node.exchange().await }
    });
    exchange(&mut under_way).await.unwrap();
    finish(under_way).await.unwrap();
    fourth.ended().await;
    fourth.logs(&["drained"]).await;
    assert!(!waiting.is_finished());

    // With configuration away and the CA not, the next one serves the same from its disk.
    drop(control);
    let _control = node.control.start_without_xds();
    let fifth = node.proxy("fifth");
    fifth.says(&["200 OK"]).await;
    waiting.await.unwrap().unwrap();
    node.exchange().await.unwrap();
    fifth
        .logs(&["the last good configuration was read from disk"])
        .await;
    fifth.logs(&["no configuration here"]).await;
}
