//! The load: requests on so many connections, as fast as they go or at a rate. Each answer is checked.

use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use clap::ValueEnum;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::AsyncReadExt;
use tokio::task::JoinSet;

use super::server::BYTES;
use crate::load::{Figures, connect, raise_file_limit, tenths};

/// What an answer says about the version of a route.
pub(super) const VERSION: &str = "x-version";
/// A message of gRPC: not compressed, 64 bytes.
const MESSAGE: [u8; 69] = {
    let mut message = [b'x'; 69];
    [message[0], message[1], message[2], message[3], message[4]] = [0, 0, 0, 0, 64];
    message
};

/// How requests are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// One request at a time on a connection.
    Http1,
    /// Many at a time.
    Http2,
    /// The same, unary calls.
    Grpc,
}

/// What to send, and how fast.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Load {
    to: SocketAddr,
    #[arg(long, value_enum, default_value = "http1")]
    protocol: Protocol,
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// Requests at a time on each connection; HTTP/1.1 has one.
    #[arg(long, default_value_t = 1)]
    streams: usize,
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Requests a second of all connections together; 0 is as fast as they go.
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// Path of each request.
    #[arg(long, default_value = "/")]
    path: String,
}

/// Sends for so long. At a rate, a request's time counts from when it was due.
pub(crate) async fn requests(load: Load) -> Result<Figures> {
    let time = crate::time(load.seconds);
    let mut senders = Vec::new();
    for _ in 0..load.connections {
        let mut sender = Sender::connect(&load).await?;
        // The first one pays for the set-up of the path.
        sender.exchange(&load).await?;
        let streams = if load.protocol == Protocol::Http1 {
            1
        } else {
            load.streams
        };
        for _ in 1..streams {
            senders.extend(sender.again());
        }
        senders.push(sender);
    }
    let interval = match load.rate {
        0.0 => None,
        rate => Some(Duration::from_secs_f64(senders.len() as f64 / rate)),
    };
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    let count = senders.len() as u32;
    for (index, mut sender) in (0..).zip(senders) {
        let load = load.clone();
        // They don't all begin at once.
        let mut due = interval.map(|interval| start + interval * index / count);
        tasks.spawn(async move {
            let mut samples = Vec::new();
            while start.elapsed() < time {
                let mut begun = Instant::now();
                if let (Some(at), Some(interval)) = (&mut due, interval) {
                    if *at > begun {
                        tokio::time::sleep_until((*at).into()).await;
                        // What the timer is late by is not the proxy's.
                        begun = Instant::now();
                    } else {
                        begun = *at;
                    }
                    *at += interval;
                }
                sender.exchange(&load).await?;
                samples.push(tenths(begun.elapsed()));
            }
            anyhow::Ok(samples)
        });
    }
    let mut samples = Vec::new();
    while let Some(joined) = tasks.join_next().await {
        samples.append(&mut joined??);
    }
    Ok(Figures::new(samples.len() as u64, start.elapsed(), samples))
}

/// Opens the connections, uses each once, prints a line and holds them until standard input ends.
pub(crate) async fn hold(load: Load) -> Result<()> {
    raise_file_limit()?;
    let mut held = Vec::new();
    for _ in 0..load.connections {
        let mut sender = Sender::connect(&load).await?;
        sender.exchange(&load).await?;
        held.push(sender);
    }
    println!("holding {}", held.len());
    let mut input = Vec::new();
    tokio::io::stdin().read_to_end(&mut input).await?;
    Ok(())
}

/// Asks again and again until an answer is by this version of a route; prints when that was, in seconds since 1970.
pub(crate) async fn watch(load: Load, version: &str) -> Result<()> {
    let mut sender = Sender::connect(&load).await?;
    sender.exchange(&load).await?;
    println!("watching");
    let give_up = Instant::now() + Duration::from_secs(60);
    while sender
        .exchange(&load)
        .await?
        .get(VERSION)
        .is_none_or(|found| found != version)
    {
        ensure!(Instant::now() < give_up, "version {version} never came");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    println!("{}", now.as_secs_f64());
    Ok(())
}

type Body = Full<Bytes>;

/// A connection, or a part of it.
enum Sender {
    One(http1::SendRequest<Body>),
    Two(http2::SendRequest<Body>),
}

impl Sender {
    async fn connect(load: &Load) -> Result<Self> {
        let io = TokioIo::new(connect(load.to).await?);
        Ok(match load.protocol {
            Protocol::Http1 => {
                let (sender, connection) = http1::handshake(io).await?;
                tokio::spawn(connection);
                Self::One(sender)
            }
            Protocol::Http2 | Protocol::Grpc => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
                tokio::spawn(connection);
                Self::Two(sender)
            }
        })
    }

    /// For another request at the same time.
    fn again(&self) -> Option<Self> {
        match self {
            Self::One(_) => None,
            Self::Two(sender) => Some(Self::Two(sender.clone())),
        }
    }

    /// One request, and all of its answer; returns the answer's headers.
    async fn exchange(&mut self, load: &Load) -> Result<HeaderMap> {
        let request = request(load)?;
        let response = match self {
            Self::One(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Two(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        };
        check(load, response.context("a request failed")?).await
    }
}

fn request(load: &Load) -> Result<Request<Body>> {
    let request = Request::builder();
    Ok(match load.protocol {
        Protocol::Http1 => request
            .uri(&load.path)
            .header("host", "web")
            .body(Body::default())?,
        Protocol::Http2 => request
            .uri(format!("http://web{}", load.path))
            .body(Body::default())?,
        Protocol::Grpc => request
            .method(Method::POST)
            .uri("http://web/bench.Echo/Unary")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Body::from(&MESSAGE[..]))?,
    })
}

async fn check(load: &Load, response: Response<Incoming>) -> Result<HeaderMap> {
    let (parts, mut body) = response.into_parts();
    ensure!(
        parts.status == StatusCode::OK,
        "an answer says {}: {:?}",
        parts.status,
        body.collect().await.map(|body| body.to_bytes())
    );
    let (mut length, mut status) = (0, None);
    while let Some(frame) = body.frame().await {
        match frame.context("an answer broke off")?.into_data() {
            Ok(data) => length += data.len(),
            Err(trailers) => {
                let trailers = trailers.into_trailers().ok();
                status = trailers.and_then(|trailers| trailers.get("grpc-status").cloned());
            }
        }
    }
    if load.protocol == Protocol::Grpc {
        ensure!(
            status.is_some_and(|status| status == "0") && length == MESSAGE.len(),
            "an answer of gRPC is not what was asked for"
        );
    } else if let Some(wanted) = load.path.strip_prefix(BYTES) {
        ensure!(
            wanted.parse() == Ok(length),
            "an answer has {length} bytes, not {wanted}"
        );
    }
    Ok(parts.headers)
}
