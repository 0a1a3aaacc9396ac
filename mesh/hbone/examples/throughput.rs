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

mod pair;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pair::{Ways, connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

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

    let Ways {
        direct: target,
        tunnel,
        fresh,
        plain: copied,
    } = pair::start().await;

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
