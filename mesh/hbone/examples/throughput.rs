//! What a tunnel costs beside a direct TCP connection: both proxies and both applications in one
//! process, over loopback.
//!
//! `cargo run --release -p seine-hbone --example throughput -- [seconds per row] [rows]`. The
//! figures are ratios of the same run: on two cores three hops can't reach one. Direct is measured
//! before and after each row, and both are printed, so that noise shows.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a benchmark that can't go on should say where, and prints"
)]

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use seine_hbone::{
    Authority, ConnectRequest, Connected, Connector, CopyOptions, Counters, Incoming, Io, Pool,
    Settings, TunnelKey, copy, copy_plain, drain, serve,
};
use seine_identity::testing::TestCa;
use seine_identity::{AcceptedIdentities, Credentials};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

struct Dial(Arc<Credentials>);

impl Connector for Dial {
    fn connect<'a>(
        &'a self,
        key: &'a TunnelKey,
    ) -> Pin<Box<dyn Future<Output = io::Result<Connected>> + Send + 'a>> {
        Box::pin(async move {
            let tls = self
                .0
                .client_config(&key.destinations)
                .map_err(io::Error::other)?;
            Ok(Connected {
                io: TcpStream::connect(key.peer).await?.into(),
                tls,
            })
        })
    }
}

/// The application: the first byte says what it does.
async fn application() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            tcp.set_nodelay(true).unwrap();
            tokio::spawn(async move {
                let mut first = [0];
                if tcp.read_exact(&mut first).await.is_err() {
                    return;
                }
                let echo = first == *b"e";
                let mut buffer = vec![0; if echo { 64 } else { 256 * 1024 }];
                while let Ok(read @ 1..) = tcp.read(&mut buffer).await {
                    if echo && tcp.write_all(&buffer[..read]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// The accepting proxy, which dials the application that is asked for.
async fn inbound(credentials: Arc<Credentials>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let settings = Arc::new(Settings::default());
        let (_trigger, signal) = drain();
        loop {
            let (tcp, peer) = listener.accept().await.unwrap();
            let (credentials, settings) = (Arc::clone(&credentials), Arc::clone(&settings));
            let signal = signal.clone();
            tokio::spawn(async move {
                let _ = serve(Io::from(tcp), peer, credentials, settings, signal, admit).await;
            });
        }
    });
    address
}

async fn admit(incoming: Incoming) {
    let target = incoming.request.authority.address().unwrap();
    let tcp = TcpStream::connect(target).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    let stream = incoming.accept(None).unwrap();
    let (options, counters) = (CopyOptions::default(), Counters::default());
    copy(tcp, stream, &options, &counters).await;
}

/// The proxy beside the client; `fresh` makes a tunnel for every connection.
async fn outbound(
    pool: Pool,
    credentials: Arc<Credentials>,
    key: TunnelKey,
    target: SocketAddr,
    fresh: bool,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connector: Arc<dyn Connector> = Arc::new(Dial(credentials));
    let generation = AtomicU64::new(1);
    tokio::spawn(async move {
        let shared = Arc::new(key);
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            tcp.set_nodelay(true).unwrap();
            let key = match fresh {
                true => Arc::new(TunnelKey {
                    generation: generation.fetch_add(1, Ordering::Relaxed),
                    ..TunnelKey::clone(&shared)
                }),
                false => Arc::clone(&shared),
            };
            let (pool, connector) = (pool.clone(), Arc::clone(&connector));
            tokio::spawn(async move {
                let request = ConnectRequest::new(Authority::from(target));
                let opened = pool.open(&key, &connector, &request).await.unwrap();
                let (options, counters) = (CopyOptions::default(), Counters::default());
                copy(tcp, opened.stream, &options, &counters).await;
                if fresh {
                    pool.forget_where(|other| *other == *key);
                }
            });
        }
    });
    address
}

/// Plain copies instead of the tunnel: what proxying costs without HTTP/2 and TLS.
async fn plain(target: SocketAddr, hops: usize) -> SocketAddr {
    let mut target = target;
    for _ in 0..hops {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let next = target;
        tokio::spawn(async move {
            loop {
                let (first, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    let second = TcpStream::connect(next).await.unwrap();
                    first.set_nodelay(true).unwrap();
                    second.set_nodelay(true).unwrap();
                    let (options, counters) = (CopyOptions::default(), Counters::default());
                    copy_plain(first, second, &options, &counters).await;
                });
            }
        });
        target = address;
    }
    target
}

async fn connect(to: SocketAddr, what: u8) -> TcpStream {
    let mut tcp = TcpStream::connect(to).await.unwrap();
    tcp.set_nodelay(true).unwrap();
    tcp.write_all(&[what]).await.unwrap();
    tcp
}

/// GB a second over so many connections.
async fn bulk(to: SocketAddr, connections: usize, time: Duration) -> f64 {
    let begin = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..connections {
        tasks.spawn(async move {
            let mut tcp = connect(to, b's').await;
            let piece = vec![7; 128 * 1024];
            let mut bytes = 0;
            while begin.elapsed() < time {
                tcp.write_all(&piece).await.unwrap();
                bytes += piece.len();
            }
            tcp.shutdown().await.unwrap();
            // The application closes when it has read everything.
            let _ = tcp.read(&mut [0]).await;
            bytes as f64
        });
    }
    let bytes: f64 = tasks.join_all().await.iter().sum();
    bytes / begin.elapsed().as_secs_f64() / 1e9
}

/// Thousands of round trips of 64 bytes a second.
async fn round_trips(to: SocketAddr, connections: usize, time: Duration) -> f64 {
    let begin = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..connections {
        tasks.spawn(async move {
            let mut tcp = connect(to, b'e').await;
            let (mut buffer, mut count) = ([0; 64], 0u32);
            while begin.elapsed() < time {
                tcp.write_all(&buffer).await.unwrap();
                tcp.read_exact(&mut buffer).await.unwrap();
                count += 1;
            }
            f64::from(count)
        });
    }
    let count: f64 = tasks.join_all().await.iter().sum();
    count / begin.elapsed().as_secs_f64() / 1e3
}

/// Thousands of new connections a second, each with one byte there and back.
async fn connections(to: SocketAddr, at_once: usize, time: Duration) -> f64 {
    let begin = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..at_once {
        tasks.spawn(async move {
            let mut count = 0u32;
            while begin.elapsed() < time {
                let mut tcp = connect(to, b'e').await;
                tcp.write_all(b"x").await.unwrap();
                tcp.read_exact(&mut [0]).await.unwrap();
                count += 1;
            }
            f64::from(count)
        });
    }
    let count: f64 = tasks.join_all().await.iter().sum();
    count / begin.elapsed().as_secs_f64() / 1e3
}

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after = stat.rsplit_once(')').unwrap().1;
    let ticks: Vec<f64> = after
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse().unwrap())
        .collect();
    (ticks[0] + ticks[1]) / 100.0
}

fn resident_kib() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<u64>()
        .unwrap()
        * 4
}

#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let seconds = arguments.next().map_or(2.0, |text| text.parse().unwrap());
    let wanted = arguments.next().unwrap_or_default();
    let time = Duration::from_secs_f64(seconds);

    let ca = TestCa::new("cluster.local");
    let (web, db) = (ca.credentials("shop", "web"), ca.credentials("shop", "db"));
    let target = application().await;
    let peer = inbound(db).await;
    let key = TunnelKey {
        source: ca.identity("shop", "web"),
        destinations: AcceptedIdentities::from(ca.identity("shop", "db")),
        peer,
        source_address: peer.ip(),
        generation: 0,
    };
    let pool = Pool::new(Settings::default());
    let tunnel = outbound(pool.clone(), Arc::clone(&web), key.clone(), target, false).await;
    let fresh = outbound(pool.clone(), web, key, target, true).await;
    let copied = plain(target, 2).await;

    println!(
        "{:<28}{:>9}{:>9}{:>9}{:>8}",
        "", "direct", "here", "direct", "ratio"
    );
    for (row, unit) in [
        ("bulk 1", "GB/s"),
        ("bulk 4", "GB/s"),
        ("round trips 1", "k/s"),
        ("round trips 16", "k/s"),
        ("round trips 64", "k/s"),
        ("new streams 1", "k/s"),
        ("new streams 16", "k/s"),
        ("new tunnels 16", "k/s"),
        ("plain: bulk 1", "GB/s"),
        ("plain: round trips 16", "k/s"),
    ] {
        if !row.contains(&wanted) {
            continue;
        }
        let (kind, count) = row.rsplit_once(' ').unwrap();
        let count: usize = count.parse().unwrap();
        let here = match kind {
            "new tunnels" => fresh,
            kind if kind.starts_with("plain") => copied,
            _ => tunnel,
        };
        let mut figures = [0.0; 3];
        let mut cpu = 0.0;
        for (figure, to) in figures.iter_mut().zip([target, here, target]) {
            let before = cpu_seconds();
            *figure = match kind {
                "bulk" | "plain: bulk" => bulk(to, count, time).await,
                "round trips" | "plain: round trips" => round_trips(to, count, time).await,
                _ => connections(to, count, time).await,
            };
            if to == here {
                cpu = (cpu_seconds() - before) / (*figure * seconds);
            }
        }
        let [before, there, after] = figures;
        let ratio = there / ((before + after) / 2.0);
        println!(
            "{row:<22}{unit:<6}{before:>9.2}{there:>9.2}{after:>9.2}{ratio:>8.2}   CPU {cpu:.2} {}",
            if unit == "GB/s" { "s/GB" } else { "ms each" }
        );
    }

    if "held".contains(&wanted) {
        let before = resident_kib();
        let mut held = Vec::new();
        for _ in 0..2000 {
            let mut tcp = connect(tunnel, b'e').await;
            tcp.write_all(b"x").await.unwrap();
            tcp.read_exact(&mut [0]).await.unwrap();
            held.push(tcp);
        }
        let kib = (resident_kib() - before) as f64;
        println!(
            "2000 held connections: {:.1} KiB each, both proxies and both ends",
            kib / 2000.0
        );
    }
}
