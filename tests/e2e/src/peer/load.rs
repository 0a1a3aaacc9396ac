//! Clients of many connections.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::client::{PATIENCE, connect};
use super::report::{Failure, Held, Loaded, Stage, print};

/// As many open sockets as may be.
pub(super) fn raise_file_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(())
}

/// Opens connections, uses them, holds them until standard input ends, uses them again.
pub async fn hold(host: &str, port: u16, connections: usize, family: Option<u8>) -> Result<()> {
    raise_file_limit()?;
    let mut held = Vec::new();
    let mut opening = JoinSet::new();
    let mut report = Held::default();
    for index in 0..connections {
        // So many at a time as the listeners' backlogs take.
        if opening.len() >= 256 {
            collect(&mut opening, &mut held, &mut report).await;
        }
        let host = host.to_owned();
        opening.spawn(async move {
            let mut stream = connect(&host, port, family).await?;
            exchange(&mut stream, index as u64).await?;
            Ok(stream)
        });
    }
    while !opening.is_empty() {
        collect(&mut opening, &mut held, &mut report).await;
    }
    print(&report)?;
    end_of_stdin().await;
    let mut again = JoinSet::new();
    for (index, mut stream) in held.into_iter().enumerate() {
        again.spawn(async move {
            exchange(&mut stream, index as u64).await?;
            Ok(stream)
        });
    }
    let mut report = Held::default();
    let mut held = Vec::new();
    while !again.is_empty() {
        collect(&mut again, &mut held, &mut report).await;
    }
    print(&report)
}

async fn collect(
    tasks: &mut JoinSet<Result<TcpStream, Failure>>,
    held: &mut Vec<TcpStream>,
    report: &mut Held,
) {
    let failure = match tasks.join_next().await {
        Some(Ok(Ok(stream))) => {
            held.push(stream);
            report.answered += 1;
            return;
        }
        Some(Ok(Err(failure))) => failure,
        Some(Err(_)) => Failure::named(Stage::Connect, "PANIC"),
        None => return,
    };
    *report.failed.entry(failure.key()).or_default() += 1;
}

/// Sends a word to an echo server and expects it back.
async fn exchange(stream: &mut TcpStream, word: u64) -> Result<(), Failure> {
    let work = async {
        stream
            .write_all(&word.to_le_bytes())
            .await
            .map_err(|error| Failure::new(Stage::Send, &error))?;
        let mut answer = [0; 8];
        stream
            .read_exact(&mut answer)
            .await
            .map_err(|error| Failure::new(Stage::Receive, &error))?;
        if answer == word.to_le_bytes() {
            Ok(())
        } else {
            Err(Failure::named(Stage::Receive, "CONTENT"))
        }
    };
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| Err(Failure::named(Stage::Receive, "PATIENCE")))
}

/// Whom a load asks.
#[derive(Clone, Debug)]
pub struct Targets {
    /// Names or addresses; each client has one.
    pub hosts: Vec<String>,
    /// Families of addresses; each client has one.
    pub families: Vec<u8>,
    /// The port of all.
    pub port: u16,
}

/// What one client asks.
#[derive(Clone, Debug)]
struct Target {
    host: String,
    family: Option<u8>,
    port: u16,
}

impl Targets {
    /// Every pair of host and family comes, as clients are numbered.
    fn of_client(&self, number: usize) -> Target {
        let turn = number / self.hosts.len();
        Target {
            host: self.hosts[number % self.hosts.len()].clone(),
            family: self
                .families
                .get(turn % self.families.len().max(1))
                .copied(),
            port: self.port,
        }
    }
}

impl Target {
    async fn connect(&self) -> Result<TcpStream, Failure> {
        timed(connect(&self.host, self.port, self.family), Stage::Connect).await
    }
}

/// Makes connections until standard input ends.
pub async fn load(
    targets: &Targets,
    workers: usize,
    lasting: usize,
    pause: Duration,
) -> Result<Loaded> {
    let ended = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    for worker in 0..workers + lasting {
        let (target, ended) = (targets.of_client(worker), ended.clone());
        let lasts = worker >= workers;
        tasks.spawn(async move {
            let mut count = 0;
            let mut failed = BTreeMap::<String, u64>::new();
            while !ended.load(Ordering::Relaxed) {
                let result = if lasts {
                    last(&target, pause, &ended, &mut count).await
                } else {
                    once(&target, count).await.inspect(|()| count += 1)
                };
                if let Err(failure) = result {
                    *failed.entry(failure.key()).or_default() += 1;
                }
                tokio::time::sleep(pause).await;
            }
            (lasts, count, failed)
        });
    }
    end_of_stdin().await;
    ended.store(true, Ordering::Relaxed);
    let mut report = Loaded::default();
    while let Some(task) = tasks.join_next().await {
        let (lasts, count, failed) = task?;
        let (total, failures) = if lasts {
            (&mut report.exchanges, &mut report.lasting_failed)
        } else {
            (&mut report.connections, &mut report.failed)
        };
        *total += count;
        for (key, count) in failed {
            *failures.entry(key).or_default() += count;
        }
    }
    Ok(report)
}

async fn once(target: &Target, word: u64) -> Result<(), Failure> {
    let mut stream = target.connect().await?;
    exchange(&mut stream, word).await?;
    let end = async {
        stream
            .shutdown()
            .await
            .map_err(|error| Failure::new(Stage::Send, &error))?;
        let mut rest = Vec::new();
        stream
            .read_to_end(&mut rest)
            .await
            .map_err(|error| Failure::new(Stage::Receive, &error))?;
        Ok(())
    };
    timed(end, Stage::Receive).await
}

async fn last(
    target: &Target,
    pause: Duration,
    ended: &AtomicBool,
    count: &mut u64,
) -> Result<(), Failure> {
    let mut stream = target.connect().await?;
    while !ended.load(Ordering::Relaxed) {
        exchange(&mut stream, *count).await?;
        *count += 1;
        tokio::time::sleep(pause).await;
    }
    Ok(())
}

async fn timed<T>(
    work: impl Future<Output = Result<T, Failure>>,
    stage: Stage,
) -> Result<T, Failure> {
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(|_| Err(Failure::named(stage, "PATIENCE")))
}

async fn end_of_stdin() {
    let mut rest = Vec::new();
    // Broken or ended is the same here.
    let _ = tokio::io::stdin().read_to_end(&mut rest).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_ask_every_host_in_every_family() {
        let targets = Targets {
            hosts: vec!["near".to_owned(), "far".to_owned()],
            families: vec![4, 6],
            port: 1,
        };
        let asked: std::collections::BTreeSet<_> = (0..4)
            .map(|number| targets.of_client(number))
            .map(|target| (target.host, target.family))
            .collect();
        assert_eq!(asked.len(), 4, "{asked:?}");
    }
}
