//! What a collector receives of a connection: logs, metrics, and a trace from one proxy to the other.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{
    LogsService, LogsServiceServer,
};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{metric, number_data_point};
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use seine_telemetry::{LogFormat, Settings};
use seine_ztunnel::telemetry::push_metrics;
use support::*;
use tokio::io::AsyncWriteExt;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// A collector that keeps all it gets.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
    /// What was logged.
    lines: Arc<Mutex<Vec<String>>>,
    /// Name and highest value of each counter.
    counters: Arc<Mutex<Vec<(String, f64)>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for resource in request.into_inner().resource_spans {
            for scope in resource.scope_spans {
                self.spans.lock().extend(scope.spans);
            }
        }
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        for resource in request.into_inner().resource_logs {
            for record in resource.scope_logs.into_iter().flat_map(|s| s.log_records) {
                let mut line = text(record.body.as_ref()).unwrap_or_default();
                for KeyValue { key, value, .. } in record.attributes {
                    let value = text(value.as_ref()).unwrap_or_default();
                    line.push_str(&format!(" {key}={value}"));
                }
                self.lines.lock().push(line);
            }
        }
        Ok(Response::new(Default::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        for resource in request.into_inner().resource_metrics {
            for found in resource.scope_metrics.into_iter().flat_map(|s| s.metrics) {
                let Some(metric::Data::Sum(sum)) = found.data else {
                    continue;
                };
                for point in sum.data_points {
                    if let Some(number_data_point::Value::AsDouble(value)) = point.value {
                        self.counters.lock().push((found.name.clone(), value));
                    }
                }
            }
        }
        Ok(Response::new(Default::default()))
    }
}

impl Collector {
    async fn start(&self) -> String {
        let incoming = TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = incoming.local_addr().unwrap();
        let server = Server::builder()
            .add_service(TraceServiceServer::new(self.clone()))
            .add_service(LogsServiceServer::new(self.clone()))
            .add_service(MetricsServiceServer::new(self.clone()));
        tokio::spawn(async move { server.serve_with_incoming(incoming).await });
        format!("http://{address}")
    }

    /// A span of the connection that succeeded; those of the one that was refused may come first.
    fn span(&self, name: &str) -> Option<Span> {
        let refused = |span| attribute(span, "seine.response_flags").as_deref() == Some("CONNECT");
        let spans = self.spans.lock();
        let mut named = spans.iter().filter(|span| span.name == name);
        named.find(|span| !refused(span)).cloned()
    }

    async fn wait_until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !holds(self) {
            assert!(
                Instant::now() < deadline,
                "no {what}: {:?} {:?} {:?}",
                self.spans.lock(),
                self.lines.lock(),
                self.counters.lock()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn text(value: Option<&AnyValue>) -> Option<String> {
    match value?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

fn attribute(span: &Span, key: &str) -> Option<String> {
    let found = span.attributes.iter().find(|found| found.key == key)?;
    text(found.value.as_ref())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_receives_logs_metrics_and_one_trace_of_a_connection() {
    let collector = Collector::default();
    let endpoint = collector.start().await;
    let _telemetry = seine_telemetry::Telemetry::start(&Settings {
        service: "seine-ztunnel",
        instance: "node1".into(),
        format: LogFormat::Text,
        level: "info".into(),
        otlp_endpoint: Some(endpoint.clone()),
        trace_sampling: 1.0,
    })
    .unwrap();

    let mesh = Mesh::new();
    let resources = [
        workload_of("a", mesh.ip(1), true, |_| ()),
        workload_of("b", mesh.ip(2), true, |_| ()),
    ];
    let export = |config: &mut seine_ztunnel::config::Config| {
        config.otlp_endpoint = Some(endpoint.clone());
        config.otlp_metrics_interval = Duration::from_millis(500);
    };
    let a = mesh.pod("a", 1, &resources, export).await;
    let _b = mesh.pod("b", 2, &resources, export).await;
    push_metrics(&a.shared.telemetry, &a.shared.config).unwrap();
    let mut stream = a.connect(echo(mesh.ip(2)).await).await;
    exchange(&mut stream, b"hello").await.unwrap();
    stream.shutdown().await.unwrap();
    drop(stream);
    let refused = a.try_connect((mesh.ip(2), 9).into()).await;
    assert!(is_refused(refused).await);

    collector
        .wait_until("spans", |seen| {
            seen.span("outbound connection").is_some() && seen.span("inbound connection").is_some()
        })
        .await;
    let outbound = collector.span("outbound connection").unwrap();
    let inbound = collector.span("inbound connection").unwrap();
    assert_eq!(inbound.trace_id, outbound.trace_id);
    assert_eq!(inbound.parent_span_id, outbound.span_id);
    assert!(outbound.parent_span_id.is_empty());
    for span in [&outbound, &inbound] {
        let of = |key| attribute(span, key);
        assert_eq!(of("seine.security").as_deref(), Some("mutual_tls"));
        let identity = |name| Some(format!("spiffe://cluster.local/ns/shop/sa/{name}"));
        assert_eq!(of("seine.source.identity"), identity("a"));
        assert_eq!(of("seine.destination.identity"), identity("b"));
    }
    collector
        .wait_until("failed span", |seen| {
            let spans = seen.spans.lock();
            let flag = |span| attribute(span, "seine.response_flags");
            spans
                .iter()
                .any(|span| flag(span).as_deref() == Some("CONNECT"))
        })
        .await;

    collector
        .wait_until("access log", |seen| {
            let lines = seen.lines.lock();
            lines.iter().any(|line| {
                line.starts_with("connection closed ") && line.contains(" direction=outbound")
            })
        })
        .await;
    collector
        .wait_until("metric", |seen| {
            let counters = seen.counters.lock();
            let found = |(name, value): &(String, f64)| {
                name == "seine_received_bytes_total" && *value == 5.0
            };
            counters.iter().any(found)
        })
        .await;
}
