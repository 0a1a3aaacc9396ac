//! The load: a server and the clients that measure against it, plain TCP as an application has it.
//!
//! One thread each, pinned to one core, so that a figure does not depend on where the kernel
//! happened to put them: the client on the first core, the server on the second.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Bytes of a request and of its answer in a round trip.
const MESSAGE: usize = 64;
/// Bytes that a bulk sender writes at a time.
const CHUNK: usize = 256 * 1024;

/// What one client run found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figures {
    /// Round trips, connections, or bytes.
    pub(crate) done: u64,
    /// Seconds from the first to the last.
    pub(crate) seconds: f64,
    /// Median, in microseconds; 0 where nothing was timed singly (bulk).
    pub(crate) p50: f64,
    /// 99th percentile, in microseconds.
    pub(crate) p99: f64,
}

impl Figures {
    /// `done` a second.
    pub(crate) fn rate(&self) -> f64 {
        self.done as f64 / self.seconds
    }

    pub(crate) fn new(done: u64, elapsed: Duration, mut samples: Vec<u32>) -> Self {
        samples.sort_unstable();
        let at = |share: f64| match samples.len() {
            0 => 0.0,
            n => f64::from(samples[((n - 1) as f64 * share) as usize]) / 10.0,
        };
        let seconds = elapsed.as_secs_f64();
        Self {
            done,
            seconds,
            p50: at(0.5),
            p99: at(0.99),
        }
    }
}

/// Runs on this thread alone, on the given core where there is one.
pub(crate) fn on_core<T>(core: usize, work: impl Future<Output = Result<T>>) -> Result<T> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut set = nix::sched::CpuSet::new();
    set.set(core % cores)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)
        .context("pinning to a core (sched_setaffinity)")?;
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(work)
}

/// Serves echo on `address` and, on the next port, a sink that answers with the count of bytes.
pub(crate) async fn server(address: SocketAddr) -> Result<()> {
    raise_file_limit()?;
    let echo = TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address}"))?;
    let mut sink_address = address;
    sink_address.set_port(address.port() + 1);
    let sink = TcpListener::bind(sink_address)
        .await
        .with_context(|| format!("listening on {sink_address}"))?;
    loop {
        // A client that goes away ends its own connection only.
        tokio::select! {
            accepted = echo.accept() => drop(tokio::spawn(echo_one(accepted?.0))),
            accepted = sink.accept() => drop(tokio::spawn(sink_one(accepted?.0))),
        }
    }
}

async fn echo_one(mut stream: TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; MESSAGE];
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..n]).await?;
    }
}

async fn sink_one(mut stream: TcpStream) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut total = 0u64;
    loop {
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            break;
        }
        total += n as u64;
    }
    stream.write_all(&total.to_be_bytes()).await?;
    Ok(())
}

/// Round trips of 64 bytes on so many connections at once, for so long.
pub(crate) async fn round_trips(
    to: SocketAddr,
    connections: usize,
    time: Duration,
) -> Result<Figures> {
    let mut streams = Vec::new();
    for _ in 0..connections {
        let mut stream = connect(to).await?;
        // The first one pays for the set-up of the path.
        round_trip(&mut stream).await?;
        streams.push(stream);
    }
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for mut stream in streams {
        tasks.spawn(async move {
            let mut samples = Vec::new();
            while start.elapsed() < time {
                samples.push(round_trip(&mut stream).await?);
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

/// One 64-byte round trip, in tenths of a microsecond.
async fn round_trip(stream: &mut TcpStream) -> Result<u32> {
    let mut buffer = [7; MESSAGE];
    let start = Instant::now();
    stream.write_all(&buffer).await?;
    stream
        .read_exact(&mut buffer)
        .await
        .context("the server closed a round trip's connection")?;
    Ok(tenths(start.elapsed()))
}

/// New connections, each with one byte there and back, so many at once, for so long.
pub(crate) async fn connections(to: SocketAddr, at_once: usize, time: Duration) -> Result<Figures> {
    one_byte(to).await?;
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..at_once {
        tasks.spawn(async move {
            let mut samples = Vec::new();
            while start.elapsed() < time {
                samples.push(one_byte(to).await?);
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

async fn one_byte(to: SocketAddr) -> Result<u32> {
    let start = Instant::now();
    let mut stream = connect(to).await?;
    stream.write_all(b"x").await?;
    let mut buffer = [0];
    stream
        .read_exact(&mut buffer)
        .await
        .context("the server closed a new connection")?;
    Ok(tenths(start.elapsed()))
}

/// Sends for so long on so many streams to the sink; every byte must have arrived.
pub(crate) async fn bulk(to: SocketAddr, streams: usize, time: Duration) -> Result<Figures> {
    let mut to = to;
    to.set_port(to.port() + 1);
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..streams {
        tasks.spawn(async move {
            let mut stream = connect(to).await?;
            let chunk = vec![7; CHUNK];
            let mut sent = 0u64;
            while start.elapsed() < time {
                stream.write_all(&chunk).await?;
                sent += CHUNK as u64;
            }
            stream.shutdown().await?;
            let arrived = stream.read_u64().await.context("the sink gave no count")?;
            ensure!(arrived == sent, "{sent} bytes sent, {arrived} arrived");
            anyhow::Ok(sent)
        });
    }
    let mut total = 0;
    while let Some(joined) = tasks.join_next().await {
        total += joined??;
    }
    Ok(Figures::new(total, start.elapsed(), Vec::new()))
}

/// Opens so many connections, uses each once, prints a line and holds them until standard input
/// ends.
pub(crate) async fn hold(to: SocketAddr, count: usize) -> Result<()> {
    raise_file_limit()?;
    let mut held = Vec::with_capacity(count);
    for _ in 0..count {
        let mut stream = connect(to).await?;
        round_trip(&mut stream).await?;
        held.push(stream);
    }
    println!("holding {count}");
    let mut input = Vec::new();
    tokio::io::stdin().read_to_end(&mut input).await?;
    drop(held);
    Ok(())
}

/// As many open sockets as may be.
pub(crate) fn raise_file_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of open files")
}

pub(crate) async fn connect(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(to)
        .await
        .with_context(|| format!("connecting to {to}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

pub(crate) fn tenths(time: Duration) -> u32 {
    u32::try_from(time.as_nanos() / 100).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_load_counts_what_it_did_against_a_plain_server() {
        let address = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        std::thread::spawn(move || on_core(1, server(address)));
        std::thread::sleep(Duration::from_millis(100));
        let time = Duration::from_millis(50);
        let trips = on_core(0, round_trips(address, 4, time)).unwrap();
        assert!(trips.done > 4 && trips.p50 <= trips.p99, "{trips:?}");
        assert!(on_core(0, connections(address, 2, time)).unwrap().done > 2);
        assert!(on_core(0, bulk(address, 2, time)).unwrap().done >= CHUNK as u64);
    }
}
