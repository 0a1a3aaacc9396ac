//! The L4 node proxy: `seine-ztunnel --help`.

#![forbid(unsafe_code)]

use std::sync::Arc;

use anyhow::Context;
use clap::Parser;
use seine_telemetry::{LogFormat, Settings, Telemetry};
use seine_ztunnel::config::{AccessLog, Config};
use seine_ztunnel::{app, netns, secrecy};

/// The batches of a bulk stream are allocated and freed again and again; glibc gives each back to the kernel and takes
/// the page faults of the next one.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> anyhow::Result<()> {
    let config = Config::parse();
    secrecy::forbid_dumps().context("keeping keys out of core dumps")?;
    netns::remember_home().context("this process's network namespace")?;
    // What moves bytes has threads of its own: seine_workers.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let log = Arc::new(Telemetry::start(&Settings {
            service: "seine-ztunnel",
            instance: config.node.clone(),
            format: if config.access_log == AccessLog::Json {
                LogFormat::Json
            } else {
                LogFormat::Text
            },
            level: config.log.clone(),
            otlp_endpoint: config.otlp_endpoint.clone(),
            trace_sampling: 1.0,
        })?);
        let outcome = app::run(config, Some(log.clone())).await;
        log.stop();
        outcome
    })?;
    // Tasks that a second signal left behind are not waited for.
    runtime.shutdown_background();
    Ok(())
}
