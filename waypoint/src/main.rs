//! The L7 proxy: `seine-waypoint --help`.

#![forbid(unsafe_code)]

use anyhow::Context;
use clap::Parser;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use seine_telemetry::{LogFormat, Settings, Telemetry};
use seine_waypoint::app;
use seine_waypoint::config::{Config, LogLines};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    // Before there is a key: no crash writes it to a disk.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .context("keeping keys out of core dumps")?;
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
