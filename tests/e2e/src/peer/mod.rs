//! What runs in the pods: servers with known behaviours, and clients that report what they saw.
//!
//! A client prints its report as one line of JSON, in the types of [`report`], and exits with
//! status 0 also where the connection failed: that is what it reports.

mod authz;
pub mod client;
pub mod dns;
mod flood;
pub mod load;
mod mirror;
pub mod pattern;
pub mod report;
mod requests;
mod rpc;
pub mod serve;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

/// The program of the pods.
#[derive(Parser)]
#[command(name = "seine-e2e-peer")]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Listen until killed, each server as BEHAVIOUR:PORT.
    Serve {
        /// See `serve::Behaviour`.
        servers: Vec<String>,
    },
    /// Connect, send, half-close, read to the end.
    Ask {
        /// A name or an address.
        host: String,
        /// The port.
        port: u16,
        /// What to send.
        #[arg(long, default_value = "")]
        send: String,
        /// Fail, by exit status, unless the connection comes about; send and read nothing.
        #[arg(long)]
        connect_only: bool,
        /// Only addresses of this family, 4 or 6.
        #[arg(long)]
        family: Option<u8>,
        /// Seconds for all of it.
        #[arg(long, default_value_t = 10)]
        patience: u64,
    },
    /// Keep one connection: a line on standard input is sent, a line received is reported; `RESET`
    /// resets it.
    Live {
        /// A name or an address.
        host: String,
        /// The port.
        port: u16,
        /// Only addresses of this family, 4 or 6.
        #[arg(long)]
        family: Option<u8>,
    },
    /// Send (to `sink`) or receive (from `source`), or both at once, a known stream of bytes.
    Transfer {
        /// A name or an address.
        host: String,
        /// The port of a `sink`.
        sink: u16,
        /// The port of a `source`.
        source: u16,
        /// How many bytes each way.
        bytes: u64,
        /// Only addresses of this family, 4 or 6.
        #[arg(long)]
        family: Option<u8>,
    },
    /// Open connections to an `echo`, use each once, and hold them until standard input ends;
    /// use each again then.
    Hold {
        /// A name or an address.
        host: String,
        /// The port.
        port: u16,
        /// How many.
        connections: usize,
        /// Only addresses of this family, 4 or 6.
        #[arg(long)]
        family: Option<u8>,
    },
    /// New connections to an `echo`, one after the other in each of `--workers`, and
    /// `--lasting` connections that go on exchanging, until standard input ends.
    Load {
        /// Names or addresses, separated by commas: each client has one, by turns.
        #[arg(value_delimiter = ',', required = true)]
        hosts: Vec<String>,
        /// The port.
        #[arg(long)]
        port: u16,
        /// Families of addresses, 4 or 6, separated by commas: each client has one, by turns.
        #[arg(long, value_delimiter = ',', default_value = "4,6")]
        families: Vec<u8>,
        /// How many connect anew each time.
        #[arg(long, default_value_t = 4)]
        workers: usize,
        /// How many keep their connection.
        #[arg(long, default_value_t = 0)]
        lasting: usize,
        /// Milliseconds between two exchanges of each.
        #[arg(long, default_value_t = 5)]
        pause: u64,
    },
    /// Ask `source` for a stream and read nothing of it until standard input has a line; then
    /// read all.
    Slow {
        /// A name or an address.
        host: String,
        /// The port of a `source`.
        port: u16,
        /// How many bytes.
        bytes: u64,
        /// Only addresses of this family, 4 or 6.
        #[arg(long)]
        family: Option<u8>,
        /// Ask in these words, where the server is no `source`.
        #[arg(long)]
        send: Option<String>,
    },
    /// Ask the name servers of resolv.conf.
    Resolve {
        /// The whole name.
        name: String,
        /// A, AAAA or SRV.
        #[arg(long = "type", default_value = "A")]
        kind: String,
        #[command(flatten)]
        way: dns::Way,
    },
    /// Ask for pages over HTTP one after the other until standard input ends or has a line.
    Requests {
        /// A name or an address.
        host: String,
        /// The port.
        port: u16,
        /// The pages, by turns.
        #[arg(value_delimiter = ',', required = true)]
        paths: Vec<String>,
        /// How many connections at a time.
        #[arg(long, default_value_t = 4)]
        workers: usize,
        /// Milliseconds between two requests of each.
        #[arg(long, default_value_t = 5)]
        pause: u64,
    },
    /// Call a method of gRPC and report how that ended.
    Call {
        /// A name or an address.
        host: String,
        /// The port.
        port: u16,
        /// `/service/method`.
        path: String,
        /// Give the call up when the first message is there.
        #[arg(long)]
        leave: bool,
        /// The trace that it is in.
        #[arg(long, default_value = "")]
        trace: String,
    },
    /// Send frames of HTTP/2 that mean no good, and report what the server says of them.
    Flood {
        /// A name or an address.
        host: String,
        /// The port.
        port: u16,
        /// Which.
        kind: flood::Kind,
        /// How many.
        #[arg(long, default_value_t = 20_000)]
        pieces: u32,
        /// How many streams are reset if the connection doesn't end.
        #[arg(long, default_value_t = 1)]
        resets: usize,
    },
    /// GET a page over HTTP and print its body.
    Get {
        /// ADDRESS:PORT.
        server: SocketAddr,
        /// The page.
        path: String,
    },
}

impl Arguments {
    /// Does what was asked for.
    pub fn run(self) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("starting the runtime")?;
        runtime.block_on(self.action.run())?;
        // Whatever still reads standard input has nothing more to say.
        runtime.shutdown_timeout(Duration::ZERO);
        Ok(())
    }
}

impl Action {
    async fn run(self) -> Result<()> {
        match self {
            Self::Serve { servers } => serve::run(&servers).await,
            Self::Ask {
                host,
                port,
                send,
                connect_only,
                family,
                patience,
            } => {
                let patience = Duration::from_secs(patience);
                if connect_only {
                    let connected = client::connect(&host, port, family);
                    tokio::time::timeout(patience, connected).await??;
                    return Ok(());
                }
                report::print(&client::ask(&host, port, family, &send, patience).await)
            }
            Self::Live { host, port, family } => client::live(&host, port, family).await,
            Self::Transfer {
                host,
                sink,
                source,
                bytes,
                family,
            } => report::print(&client::transfer(&host, sink, source, bytes, family).await),
            Self::Hold {
                host,
                port,
                connections,
                family,
            } => load::hold(&host, port, connections, family).await,
            Self::Load {
                hosts,
                port,
                families,
                workers,
                lasting,
                pause,
            } => {
                let pause = Duration::from_millis(pause);
                let targets = load::Targets {
                    hosts,
                    families,
                    port,
                };
                report::print(&load::load(&targets, workers, lasting, pause).await?)
            }
            Self::Slow {
                host,
                port,
                bytes,
                family,
                send,
            } => client::slow(&host, port, bytes, family, send).await,
            Self::Resolve { name, kind, way } => {
                report::print(&dns::resolve(&name, &kind, way).await?)
            }
            Self::Requests {
                host,
                port,
                paths,
                workers,
                pause,
            } => {
                let pause = Duration::from_millis(pause);
                report::print(&requests::requests(&host, port, &paths, workers, pause).await)
            }
            Self::Call {
                host,
                port,
                path,
                leave,
                trace,
            } => report::print(&rpc::call(&host, port, &path, &trace, leave).await?),
            Self::Flood {
                host,
                port,
                kind,
                pieces,
                resets,
            } => report::print(&flood::flood(&host, port, kind, pieces, resets).await?),
            Self::Get { server, path } => client::get(server, &path).await,
        }
    }
}
