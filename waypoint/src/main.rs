//! The L7 proxy: `seine-waypoint --help`.

#![forbid(unsafe_code)]

use std::num::NonZero;
use std::thread::available_parallelism;

use anyhow::Context;
use clap::Parser;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use seine_telemetry::{LogFormat, Settings, Telemetry};
use seine_waypoint::app;
use seine_waypoint::config::{Config, LogLines};
use tokio::runtime;

fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    // Before there is a key: no crash writes it to a disk.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context("keeping keys out of core dumps")?;
    let threads = match config.worker_threads {
        0 => available_parallelism().map_or(1, NonZero::get),
        threads => threads,
    };
    // A thread that has all of it takes tasks by turns, so that a tunnel's driver finds what several requests wrote and
    // sends it at once; one of many would run it after each of them.
    let mut builder = match threads {
        1 => runtime::Builder::new_current_thread(),
        _ => runtime::Builder::new_multi_thread(),
    };
    let runtime = builder.worker_threads(threads).enable_all().build()?;
    runtime.block_on(run(config))
}

async fn run(config: Config) -> anyhow::Result<()> {
    let log = Telemetry::start(&Settings {
        service: "seine-waypoint",
        instance: config.pod_name.clone(),
        format: match config.log_lines {
            LogLines::Text => LogFormat::Text,
            LogLines::Json => LogFormat::Json,
        },
        level: config.log.clone(),
        otlp_endpoint: config.otlp_endpoint.clone(),
        trace_sampling: config.trace_sampling,
    })?;
    let outcome = app::run(config).await;
    log.stop();
    outcome
}
