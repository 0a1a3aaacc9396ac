//! A request as spans, by OpenTelemetry's conventions for HTTP and RPC: one of the server that it is here, from its head to the
//! end of its answer, and within that one of the client for each attempt. Neither is entered, so that no other line of the
//! log carries their fields. Without an OTLP endpoint there are none.

use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use seine_telemetry::propagation;
use tracing::field::{Empty, display};
use tracing::{Span, info_span};

use crate::bind::Bound;
use crate::endpoint::Endpoint;
use crate::failure::{Failure, fault_name};
use crate::grpc::GrpcStatus;
use crate::ingress::Door;
use crate::refusal::is_grpc;
use crate::telemetry::{Entry, known_method};

/// The span of a request, in the trace that its headers name.
pub(crate) fn request(bound: &Bound, request: &Request<Incoming>) -> Span {
    let span = info_span!(
        target: "seine_waypoint::request",
        parent: None,
        "request",
        otel.name = known_method(request.method()),
        otel.kind = "server",
        otel.status_code = Empty,
        otel.status_description = Empty,
        http.request.method = known_method(request.method()),
        http.request.method_original = Empty,
        http.response.status_code = Empty,
        http.response.body.size = Empty,
        url.scheme = bound.door.as_ref().map_or("http", Door::scheme),
        url.path = Empty,
        server.address = Empty,
        server.port = i64::from(bound.port),
        client.address = %bound.first.address.ip(),
        client.port = i64::from(bound.first.address.port()),
        network.protocol.version = protocol(request.version()),
        user_agent.original = Empty,
        rpc.system.name = Empty,
        rpc.method = Empty,
        rpc.response.status_code = Empty,
        error.r#type = Empty,
        seine.source.identity = bound.first.identity.as_ref().map(display),
        seine.service = &*bound.service.key.hostname,
        seine.route = Empty,
        seine.policy = Empty,
        seine.retries = Empty,
        seine.response_flags = Empty,
        seine.fault = Empty,
    );
    if known_method(request.method()) == "_OTHER" {
        span.record("http.request.method_original", request.method().as_str());
    }
    let agent = request.headers().get(http::header::USER_AGENT);
    if let Some(agent) = agent.and_then(|agent| agent.to_str().ok()) {
        span.record("user_agent.original", agent);
    }
    propagation::continue_from(&span, request.headers());
    span
}

/// Records how a request ended. The span itself ends with the entry.
pub(crate) fn end(entry: &Entry, flag: &str) {
    let span = &entry.span;
    if span.is_disabled() {
        return;
    }
    span.record("url.path", &*entry.path);
    span.record("server.address", &*entry.host);
    rpc(span, entry.grpc, &entry.path);
    if let Some(status) = entry.grpc_status() {
        called(span, status, status.is_of_server());
    }
    if let (Some(load), Some(status)) = (&entry.load, entry.grpc_said) {
        load.said(status);
    }
    let bytes = i64::try_from(entry.bytes).unwrap_or(i64::MAX);
    span.record("http.response.body.size", bytes);
    if let Some(status) = entry.status {
        answered(span, status, status.is_server_error());
    }
    if let Some(rule) = &entry.rule {
        span.record("seine.route", &**rule);
    }
    let decision = entry.decision.as_ref();
    if let Some(policy) = decision.and_then(|decision| decision.because.policy()) {
        span.record("seine.policy", display(policy));
    }
    if entry.retries > 0 {
        span.record("seine.retries", i64::from(entry.retries));
    }
    span.record("seine.response_flags", flag);
    if let Some(fault) = entry.fault() {
        span.record("seine.fault", fault_name(fault));
    }
    if let Some(failure) = &entry.failure {
        failed(span, failure);
    }
}

/// The span of one attempt. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Attempt {
    span: Span,
    /// It is a call of gRPC.
    grpc: bool,
    ended: bool,
}

/// A request's attempt at an endpoint, the first or a further one. Its headers pass the span on.
pub(crate) fn attempt<B>(
    parent: &Span,
    endpoint: &Endpoint,
    resend: usize,
    request: &mut Request<B>,
) -> Attempt {
    if parent.is_disabled() {
        return Attempt {
            span: Span::none(),
            grpc: false,
            ended: false,
        };
    }
    let method = request.method();
    let span = info_span!(
        target: "seine_waypoint::request",
        parent: parent,
        "attempt",
        otel.name = known_method(method),
        otel.kind = "client",
        otel.status_code = Empty,
        otel.status_description = Empty,
        http.request.method = known_method(method),
        http.request.resend_count = Empty,
        http.response.status_code = Empty,
        server.address = &*endpoint.service.key.hostname,
        network.peer.address = %endpoint.address.ip(),
        network.peer.port = i64::from(endpoint.address.port()),
        rpc.system.name = Empty,
        rpc.method = Empty,
        rpc.response.status_code = Empty,
        error.r#type = Empty,
    );
    let grpc = is_grpc(request.version(), request.headers());
    rpc(&span, grpc, request.uri().path());
    if let Some(count) = i64::try_from(resend).ok().filter(|count| *count > 0) {
        span.record("http.request.resend_count", count);
    }
    propagation::pass_on(&span, request.headers_mut());
    Attempt {
        span,
        grpc,
        ended: false,
    }
}

impl Attempt {
    /// The head of the answer is there, or it is known why there is none.
    pub(crate) fn end<B>(&mut self, result: Result<&Response<B>, &Failure>) {
        self.ended = true;
        match result {
            _ if self.span.is_disabled() => {}
            Ok(response) => {
                let status = response.status();
                answered(&self.span, status, status.as_u16() >= 400);
                let said = GrpcStatus::said(response.headers());
                if let Some(said) = said.filter(|_| self.grpc) {
                    self.said(said);
                }
            }
            Err(failure) => failed(&self.span, failure),
        }
    }

    /// What a call of gRPC was answered with.
    pub(crate) fn said(&self, status: GrpcStatus) {
        called(&self.span, status, status != GrpcStatus::Ok);
    }
}

impl Drop for Attempt {
    /// One that nobody waited for any longer.
    fn drop(&mut self) {
        if !self.ended {
            self.span.record("error.type", "cancelled");
            self.span.record("otel.status_code", "ERROR");
        }
    }
}

fn answered(span: &Span, status: StatusCode, is_error: bool) {
    span.record("http.response.status_code", i64::from(status.as_u16()));
    if is_error {
        span.record("error.type", status.as_str());
        span.record("otel.status_code", "ERROR");
    }
}

/// A call's status; to a client every other than `OK` is an error.
fn called(span: &Span, status: GrpcStatus, is_error: bool) {
    span.record("rpc.response.status_code", status.name());
    if is_error {
        span.record("error.type", status.name());
        span.record("otel.status_code", "ERROR");
    }
}

fn failed(span: &Span, failure: &Failure) {
    span.record("error.type", failure.flag());
    span.record("otel.status_code", "ERROR");
    span.record("otel.status_description", display(failure));
}

/// `/service/method`.
fn rpc(span: &Span, grpc: bool, path: &str) {
    if grpc {
        let method = path.trim_start_matches('/');
        span.record("otel.name", method);
        span.record("rpc.system.name", "grpc");
        span.record("rpc.method", method);
    }
}

/// Of HTTP, as OpenTelemetry writes it.
pub(crate) fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2",
        _ => "1.1",
    }
}
