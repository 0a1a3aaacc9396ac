//! An OpenTelemetry collector that prints each span that it gets: service, name, ids, kind and attributes, in one line. Logs and metrics
//! it takes, and does nothing with them.

use std::fmt::Write as _;

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
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// Serves until killed.
pub async fn collect(listener: TcpListener) -> Result<(), tonic::transport::Error> {
    let server = Server::builder()
        .add_service(TraceServiceServer::new(Printer))
        .add_service(LogsServiceServer::new(Printer))
        .add_service(MetricsServiceServer::new(Printer));
    let incoming = TcpIncoming::from(listener);
    server.serve_with_incoming(incoming).await
}

struct Printer;

#[tonic::async_trait]
impl TraceService for Printer {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for of_service in request.into_inner().resource_spans {
            let resource = of_service.resource.unwrap_or_default();
            let named = resource.attributes.iter();
            let mut named = named.filter(|attribute| attribute.key == "service.name");
            let service = named.next().map(value).unwrap_or_default();
            for span in of_service.scope_spans.iter().flat_map(|scope| &scope.spans) {
                println!("{}", line(&service, span));
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for Printer {
    async fn export(
        &self,
        _: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Printer {
    async fn export(
        &self,
        _: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

fn line(service: &str, span: &Span) -> String {
    let mut line = format!(
        "span {:?} service={service} trace={} id={} parent={} state={} kind={}",
        span.name,
        hex(&span.trace_id),
        hex(&span.span_id),
        hex(&span.parent_span_id),
        span.trace_state,
        span.kind().as_str_name(),
    );
    for attribute in &span.attributes {
        // Writing to a string does not fail.
        let _ = write!(line, " {}={}", attribute.key, value(attribute));
    }
    line
}

fn value(attribute: &KeyValue) -> String {
    let value = attribute.value.as_ref();
    match value.and_then(|value| value.value.as_ref()) {
        Some(Value::StringValue(text)) => text.clone(),
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
