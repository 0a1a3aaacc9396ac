//! `seine-bench`: the load that runs in pods, and the comparison that runs it side by side.

#![forbid(unsafe_code)]

mod compare;
mod control;
mod cpu;
mod l7;
mod load;
mod report;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measures the mesh beside direct TCP, and beside a peer where SEINE_BENCH_PEER names its binary.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Echo on a port and a sink on the next one.
    Server { address: SocketAddr },
    /// 64-byte round trips.
    RoundTrips {
        to: SocketAddr,
        #[arg(long, default_value_t = 1)]
        connections: usize,
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
    },
    /// New connections with one byte each way.
    Connections {
        to: SocketAddr,
        #[arg(long, default_value_t = 1)]
        at_once: usize,
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
    },
    /// Streams as fast as they go.
    Bulk {
        to: SocketAddr,
        #[arg(long, default_value_t = 1)]
        streams: usize,
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
    },
    /// Open connections and hold them until standard input ends.
    Hold { to: SocketAddr, count: usize },
    /// Answers requests of HTTP and gRPC.
    HttpServer { address: SocketAddr },
    /// Requests of HTTP and gRPC.
    Requests(l7::Load),
    /// Open connections of HTTP and hold them until standard input ends.
    HoldRequests(l7::Load),
    /// Wait until answers are by this version of a route.
    #[command(hide = true)]
    WatchRoute {
        #[command(flatten)]
        load: l7::Load,
        #[arg(long)]
        version: String,
    },
    /// Measure the waypoint beside Envoy, whose binary SEINE_BENCH_ENVOY names.
    L7 {
        /// Folder of the programs; default: where this one is.
        #[arg(long)]
        programs: Option<PathBuf>,
        /// How often each row is measured on each proxy.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Seconds of one measurement.
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
        /// Only rows whose name contains this.
        #[arg(long)]
        only: Option<String>,
        /// Write the table as Markdown to this file too.
        #[arg(long)]
        markdown: Option<PathBuf>,
    },
    /// How many workloads whose names begin so a node proxy knows, by its admin address.
    #[command(hide = true)]
    KnownWorkloads { admin: SocketAddr, prefix: String },
    /// Start a control plane with simulated node proxies, and measure it.
    Control {
        /// Folder of the programs; default: where this one is.
        #[arg(long)]
        programs: Option<PathBuf>,
        /// Node proxies that are connected.
        #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
        proxies: u32,
        /// So many of them begin with nothing, the others come back with all that they hold.
        #[arg(long, default_value_t = 100)]
        new: u32,
        /// Pods in the mesh.
        #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=250_000))]
        workloads: u32,
        /// How often one of them changes.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
        changes: u32,
    },
    /// Start labs, measure every row on every path by turns, print the table.
    Compare {
        /// Folder of the programs; default: where this one is.
        #[arg(long)]
        programs: Option<PathBuf>,
        /// How often each row is measured on each path.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Seconds of one measurement.
        #[arg(long, default_value_t = 2.0)]
        seconds: f64,
        /// Only rows whose name contains this.
        #[arg(long)]
        only: Option<String>,
        /// Write the table as Markdown to this file too.
        #[arg(long)]
        markdown: Option<PathBuf>,
    },
}

fn main() -> Result<()> {
    let figures = match Cli::parse().command {
        Command::Server { address } => return load::on_core(1, load::server(address)),
        Command::RoundTrips {
            to,
            connections,
            seconds,
        } => load::on_core(0, load::round_trips(to, connections, time(seconds)))?,
        Command::Connections {
            to,
            at_once,
            seconds,
        } => load::on_core(0, load::connections(to, at_once, time(seconds)))?,
        Command::Bulk {
            to,
            streams,
            seconds,
        } => load::on_core(0, load::bulk(to, streams, time(seconds)))?,
        Command::Hold { to, count } => return load::on_core(0, load::hold(to, count)),
        Command::HttpServer { address } => return load::on_core(1, l7::server(address)),
        Command::Requests(load) => load::on_core(0, l7::requests(load))?,
        Command::HoldRequests(load) => return load::on_core(0, l7::hold(load)),
        Command::WatchRoute { load, version } => {
            return load::on_core(0, l7::watch(load, &version));
        }
        Command::L7 {
            programs,
            rounds,
            seconds,
            only,
            markdown,
        } => {
            return l7::run(&l7::Plan {
                programs,
                rounds,
                seconds,
                only,
                markdown,
            });
        }
        Command::KnownWorkloads { admin, prefix } => {
            println!("{}", compare::known_workloads(admin, &prefix)?);
            return Ok(());
        }
        Command::Control {
            programs,
            proxies,
            new,
            workloads,
            changes,
        } => {
            return control::run(&control::Plan {
                programs,
                proxies: proxies as usize,
                new: new as usize,
                workloads: workloads as usize,
                changes: changes as usize,
            });
        }
        Command::Compare {
            programs,
            rounds,
            seconds,
            only,
            markdown,
        } => {
            return compare::run(&compare::Plan {
                programs,
                rounds,
                seconds,
                only,
                markdown,
            });
        }
    };
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}

pub(crate) fn time(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.01, 600.0))
}
