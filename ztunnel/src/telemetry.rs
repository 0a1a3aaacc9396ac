//! What the proxy tells of its connections: metrics, and one line in the access log for each.
//!
//! The connection tasks call `on_…`; nothing else in the proxy knows metric names or log formats. Where an OTLP endpoint is
//! given, metrics are pushed there too, and each connection is a span of a trace.

mod access_log;
mod metrics;
mod node;
mod span;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use prometheus_client::registry::Registry;
use seine_hbone::TraceParent;
use seine_policy::Decision;
use seine_telemetry::limited;

use crate::config::{AccessLog, Config};
use crate::connection::{ConnectionInfo, Connections, Live};
use crate::dns::DnsStats;
use crate::failure::Failure;

use self::metrics::Metrics;
pub(crate) use self::metrics::Traffic;
pub use self::node::keep_observing;

/// How often the bytes of live connections are counted. Prometheus asks every 15 s or more seldom.
const COUNT_TRAFFIC: Duration = Duration::from_secs(5);

/// Metrics and access log. Shared by all tasks.
#[derive(Debug)]
pub struct Telemetry {
    access_log: AccessLog,
    metrics: Metrics,
    gauges: node::Gauges,
    registry: Arc<Registry>,
    tracing: bool,
}

impl Telemetry {
    /// As the settings want it.
    pub fn new(config: &Config) -> Self {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry, config.metric_names);
        let gauges = node::Gauges::register(&mut registry);
        Self {
            access_log: config.access_log,
            metrics,
            gauges,
            registry: Arc::new(registry),
            tracing: config.otlp_endpoint.is_some(),
        }
    }

    /// All metrics, for the Prometheus page and for export.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// A verdict was given. Tells of what dry-run policies would have changed.
    pub fn on_verdict(&self, info: &ConnectionInfo, decision: &Decision) {
        let Some(audit) = &decision.audit else { return };
        if audit.allowed != decision.allowed {
            self.metrics.audited(info, audit.allowed);
            limited!(
                info.pod.limits.connection_lines, (info.direction, "dry-run"),
                info: target: "access",
                pod = ?info.pod, src = %info.client, dst = %info.original,
                would = if audit.allowed { "allow" } else { "deny" }, because = %audit.because,
                "a policy in dry-run would change the verdict"
            );
        }
    }

    /// A connection was accepted: the beginning of its span, in the trace that the other proxy sent along.
    pub fn on_accept(&self, info: &mut ConnectionInfo, trace: Option<&TraceParent>) {
        if self.tracing {
            info.span = span::begin(info, trace);
        }
    }

    /// A connection stands.
    pub fn on_open(&self, live: &Live) {
        self.metrics.opened(live);
    }

    /// A connection that stood is over.
    pub fn on_close(&self, live: &Live, failure: Option<&Failure>) {
        self.metrics.closed(live, failure);
        access_log::closed(self.access_log, live, failure);
        span::end(&live.info, failure);
        span::bytes(live);
    }

    /// A connection was not made.
    pub fn on_fail(&self, info: &ConnectionInfo, failure: &Failure) {
        self.metrics.failed(info, failure);
        access_log::failed(self.access_log, info, failure);
        span::end(info, Some(failure));
    }

    /// A tunnel towards a pod was not accepted.
    pub fn on_tunnel_refused(&self, reason: &'static str) {
        self.metrics.tunnel_refused(reason);
    }

    /// Where the pods' DNS is counted.
    pub fn dns(&self) -> Arc<DnsStats> {
        Arc::new(self.metrics.dns())
    }
}

/// Counts what live connections have moved since the last time.
pub fn count_traffic(connections: &Connections) {
    for live in connections.list() {
        Traffic::count(&live);
    }
}

/// The same again and again, for the life of the process.
pub async fn keep_counting_traffic(connections: Arc<Connections>) {
    loop {
        tokio::time::sleep(COUNT_TRAFFIC).await;
        count_traffic(&connections);
    }
}

/// Starts pushing all metrics to the OTLP endpoint, if there is one, for the life of the process.
pub fn push_metrics(telemetry: &Telemetry, config: &Config) -> anyhow::Result<()> {
    let Some(address) = &config.otlp_endpoint else {
        return Ok(());
    };
    let endpoint = tonic::transport::Endpoint::from_shared(address.clone())
        .with_context(|| format!("--otlp-endpoint {address:?} is no URL"))?;
    tokio::spawn(seine_telemetry::otlp_metrics::push(
        telemetry.registry().clone(),
        endpoint,
        "seine-ztunnel",
        config.node.clone(),
        config.otlp_metrics_interval,
    ));
    Ok(())
}
