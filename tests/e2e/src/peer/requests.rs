//! Requests of HTTP/1.1 one after the other, until standard input ends: each must be answered with 200, by whom the request names.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::client::{PATIENCE, connect};
use super::report::{Failure, Loaded, Stage};

/// Asks for the paths by turns, on one connection for each worker, and every tenth time on a new one.
pub(super) async fn requests(
    host: &str,
    port: u16,
    paths: &[String],
    workers: usize,
    pause: Duration,
) -> Loaded {
    let over = Arc::new(AtomicBool::new(false));
    let mut all = JoinSet::new();
    for worker in 0..workers {
        let (host, paths, over) = (host.to_owned(), paths.to_vec(), over.clone());
        all.spawn(async move {
            let mut loaded = Loaded::default();
            let mut connection = None;
            let mut number = worker;
            while !over.load(Ordering::Relaxed) {
                let path = &paths[number % paths.len()];
                number += 1;
                if number % 10 == 0 {
                    connection = None;
                    loaded.connections += 1;
                }
                match ask(&host, port, path, &mut connection).await {
                    Ok(()) => loaded.exchanges += 1,
                    Err(failure) => {
                        connection = None;
                        *loaded
                            .failed
                            .entry(format!("{path} {}", failure.key()))
                            .or_default() += 1;
                    }
                }
                tokio::time::sleep(pause).await;
            }
            loaded
        });
    }
    // A line or the end.
    let mut rest = String::new();
    let _ = BufReader::new(tokio::io::stdin())
        .read_line(&mut rest)
        .await;
    over.store(true, Ordering::Relaxed);
    let mut sum = Loaded::default();
    while let Some(Ok(loaded)) = all.join_next().await {
        sum.connections += loaded.connections;
        sum.exchanges += loaded.exchanges;
        for (key, count) in loaded.failed {
            *sum.failed.entry(key).or_default() += count;
        }
    }
    sum
}

async fn ask(
    host: &str,
    port: u16,
    path: &str,
    connection: &mut Option<BufReader<TcpStream>>,
) -> Result<(), Failure> {
    if connection.is_none() {
        *connection = Some(BufReader::new(connect(host, port, None).await?));
    }
    let Some(stream) = connection else {
        return Ok(());
    };
    let answered = timeout(PATIENCE, exchange(stream, host, path)).await;
    let answered = answered.map_err(|_| Failure::named(Stage::Receive, "PATIENCE"))?;
    let status = answered.map_err(|error| Failure::new(Stage::Receive, &error))?;
    match status.as_str() {
        "200" => Ok(()),
        other => Err(Failure::named(Stage::Receive, other)),
    }
}

async fn exchange(stream: &mut BufReader<TcpStream>, host: &str, path: &str) -> io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let (mut status, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if status.is_empty() {
            line.get(9..12).unwrap_or("none").clone_into(&mut status);
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
    stream.read_exact(&mut vec![0; length]).await?;
    Ok(status)
}
