//! The L7 proxy: `seine-waypoint --help`.

#![forbid(unsafe_code)]

use anyhow::Context;
use clap::Parser;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use seine_telemetry::{LogFormat, Settings, Telemetry};
use seine_waypoint::app;
use seine_waypoint::config::{Config, LogLines};
use tokio::runtime;

/// Each request allocates and frees many small things, which glibc's takes long for.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    // Before there is a key: no crash writes it to a disk.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context("keeping keys out of core dumps")?;
    // What moves bytes has threads of its own: seine_workers.
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
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
