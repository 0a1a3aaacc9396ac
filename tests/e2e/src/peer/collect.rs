//! An OpenTelemetry collector that prints each span that it gets: name, ids, kind and attributes, in one line.

use std::fmt::Write as _;

use anyhow::Result;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// Serves until killed.
pub(super) async fn collect(listener: TcpListener) -> Result<()> {
    let server = Server::builder().add_service(TraceServiceServer::new(Printer));
    let incoming = TcpIncoming::from(listener);
    Ok(server.serve_with_incoming(incoming).await?)
}

struct Printer;

#[tonic::async_trait]
impl TraceService for Printer {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans;
        let scopes = resources
            .into_iter()
            .flat_map(|resource| resource.scope_spans);
        for span in scopes.flat_map(|scope| scope.spans) {
            println!("{}", line(&span));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn line(span: &Span) -> String {
    let mut line = format!(
        "span {:?} trace={} id={} parent={} state={} kind={}",
        span.name,
        hex(&span.trace_id),
        hex(&span.span_id),
        hex(&span.parent_span_id),
        span.trace_state,
        span.kind().as_str_name(),
    );
    for attribute in &span.attributes {
        let value = attribute.value.as_ref();
        let text = match value.and_then(|value| value.value.as_ref()) {
            Some(Value::StringValue(text)) => text.clone(),
            Some(Value::IntValue(number)) => number.to_string(),
            other => format!("{other:?}"),
        };
        // Writing to a string does not fail.
        let _ = write!(line, " {}={text}", attribute.key);
    }
    line
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
