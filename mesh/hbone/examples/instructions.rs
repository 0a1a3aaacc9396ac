//! A fixed amount of work through two proxies in one thread, for an instruction counter to watch.
//!
//! `instructions WAY WORK COUNT`: the way is `direct`, `tunnel` or `fresh` (a new tunnel for each connection); the
//! work `round-trips`, `round-trips-16` (at once), `connections` or `megabytes`. `scripts/bench-instructions.sh` runs it twice
//! with different counts: the difference is free of start-up.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that can't go on should say where"
)]

mod pair;

use std::net::SocketAddr;

use pair::connect;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn round_trips(to: SocketAddr, at_once: usize, count: usize) {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..at_once {
        tasks.spawn(async move {
            let (mut tcp, mut buffer) = (connect(to, b'e').await, [7; 64]);
            for _ in 0..count / at_once {
                tcp.write_all(&buffer).await.unwrap();
                tcp.read_exact(&mut buffer).await.unwrap();
            }
        });
    }
    tasks.join_all().await;
}

async fn connections(to: SocketAddr, count: usize) {
    for _ in 0..count {
        let mut tcp = connect(to, b'e').await;
        tcp.write_all(b"x").await.unwrap();
        tcp.read_exact(&mut [0]).await.unwrap();
    }
}

async fn megabytes(to: SocketAddr, count: usize) {
    let mut tcp = connect(to, b's').await;
    let piece = vec![7; 125_000];
    for _ in 0..count * 8 {
        tcp.write_all(&piece).await.unwrap();
    }
    tcp.shutdown().await.unwrap();
    // The application closes when it has read everything.
    assert_eq!(tcp.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [way, work, count] = arguments.as_slice() else {
        panic!("usage: instructions WAY WORK COUNT");
    };
    let count: usize = count.parse().unwrap();
    let ways = pair::start().await;
    let to = match way.as_str() {
        "direct" => ways.direct,
        "tunnel" => ways.tunnel,
        "fresh" => ways.fresh,
        other => panic!("no way {other}"),
    };
    match work.as_str() {
        "round-trips" => round_trips(to, 1, count).await,
        "round-trips-16" => round_trips(to, 16, count).await,
        "connections" => connections(to, count).await,
        "megabytes" => megabytes(to, count).await,
        other => panic!("no work {other}"),
    }
}
