//! A connection as a span: from its acceptance to its end, with what the access log says of it.
//!
//! The span of the side that connects is the parent of that of the side that accepts: its `traceparent` goes along in the
//! CONNECT. A span is never entered, so that no other log line carries its fields.

use seine_hbone::TraceParent;
use seine_telemetry::trace;
use tracing::field::{Empty, display};
use tracing::{Span, info_span};

use crate::connection::{ConnectionInfo, Direction, Live, Security};
use crate::failure::{Failure, fault_name};

pub(super) fn begin(info: &ConnectionInfo, parent: Option<&TraceParent>) -> Span {
    let (name, kind) = match info.direction {
        Direction::Outbound => ("outbound connection", "client"),
        Direction::Inbound => ("inbound connection", "server"),
    };
    let span = info_span!(
        target: "seine_ztunnel::connection",
        parent: None,
        "connection",
        otel.name = name,
        otel.kind = kind,
        otel.status_code = Empty,
        otel.status_description = Empty,
        client.address = %info.client.ip(),
        client.port = i64::from(info.client.port()),
        server.address = Empty,
        server.port = Empty,
        seine.security = Empty,
        seine.source.identity = Empty,
        seine.destination.identity = Empty,
        seine.service = Empty,
        seine.policy = Empty,
        seine.response_flags = Empty,
        seine.fault = Empty,
        seine.bytes_sent = Empty,
        seine.bytes_received = Empty,
    );
    if let Some(parent) = parent {
        trace::continue_from(&span, parent.as_str());
    }
    span
}

/// Records how a connection ended. The span itself ends when the last holder of `info` drops it.
pub(super) fn end(info: &ConnectionInfo, failure: Option<&Failure>) {
    let span = &info.span;
    if span.is_disabled() {
        return;
    }
    let to = info.upstream.unwrap_or(info.original);
    span.record("server.address", display(to.ip()));
    span.record("server.port", i64::from(to.port()));
    let security = if info.security == Security::MutualTls {
        "mutual_tls"
    } else {
        "none"
    };
    span.record("seine.security", security);
    for (field, party) in [
        ("seine.source.identity", &info.source),
        ("seine.destination.identity", &info.destination),
    ] {
        if let Some(identity) = &party.identity {
            span.record(field, display(identity));
        }
    }
    if let Some(service) = &info.service {
        span.record("seine.service", &*service.key.hostname);
    }
    if let Some(policy) = info.because.as_ref().and_then(|because| because.policy()) {
        span.record("seine.policy", display(policy));
    }
    if let Some(failure) = failure {
        span.record("seine.response_flags", failure.flag());
        span.record("seine.fault", fault_name(failure.fault()));
        span.record("otel.status_code", "ERROR");
        span.record("otel.status_description", display(failure));
    }
}

/// Records how much was moved.
pub(super) fn bytes(live: &Live) {
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    live.info
        .span
        .record("seine.bytes_sent", number(live.from_client()));
    live.info
        .span
        .record("seine.bytes_received", number(live.to_client()));
}
