//! The access log: one line at a connection's end, under the target `access`.
//!
//! Denials are warnings and are written also where the access log is off: they are what an operator looks for.
//! Lines of connections that were not made are limited, since whoever makes them decides how many there are; metrics count
//! all.

use seine_policy::Reason;
use tracing::{info, warn};

use crate::config::AccessLog;
use crate::connection::{ConnectionInfo, Direction, Live, Security};
use crate::failure::{Failure, fault_name};

pub(super) fn closed(format: AccessLog, live: &Live, failure: Option<&Failure>) {
    let bytes = (live.from_client(), live.to_client());
    let line = Line {
        what: "connection closed",
        bytes: Some(bytes),
        suppressed: None,
    };
    line.write(format, &live.info, failure);
}

pub(super) fn failed(format: AccessLog, info: &ConnectionInfo, failure: &Failure) {
    let lines = &info.pod.limits.connection_lines;
    let Some(suppressed) = lines.admit((info.direction, failure.flag())) else {
        return;
    };
    let line = Line {
        what: if failure.is_denial() {
            "connection denied"
        } else {
            "connection failed"
        },
        bytes: None,
        suppressed: (suppressed > 0).then_some(suppressed),
    };
    line.write(format, info, Some(failure));
}

/// What the connection itself doesn't say.
struct Line {
    what: &'static str,
    bytes: Option<(u64, u64)>,
    suppressed: Option<u64>,
}

impl Line {
    fn write(self, format: AccessLog, info: &ConnectionInfo, failure: Option<&Failure>) {
        let denied = failure.is_some_and(Failure::is_denial);
        if format == AccessLog::Off && !denied {
            return;
        }
        let (source, destination) = (&info.source, &info.destination);
        let (from, to) = (source.workload.as_deref(), destination.workload.as_deref());
        let policy = info.because.as_ref().and_then(Reason::policy);
        // Texts, so that they are quoted where a reader could mistake them.
        let error = failure.map(ToString::to_string);
        let policy = policy.map(ToString::to_string);
        let first = info.on_behalf_of.as_ref().map(ToString::to_string);
        macro_rules! line {
            ($level:ident) => {
                $level!(
                    target: "access",
                    direction = match info.direction {
                        Direction::Outbound => "outbound",
                        Direction::Inbound => "inbound",
                    },
                    security = match info.security {
                        Security::MutualTls => "mutual_tls",
                        _ => "none",
                    },
                    src.addr = %info.client,
                    src.workload = from.map(|workload| &*workload.name),
                    src.namespace = from.map(|workload| &*workload.namespace),
                    src.identity = source.identity.as_ref().map(display),
                    dst.addr = %info.upstream.unwrap_or(info.original),
                    dst.original = %info.original,
                    dst.workload = to.map(|workload| &*workload.name),
                    dst.namespace = to.map(|workload| &*workload.namespace),
                    dst.identity = destination.identity.as_ref().map(display),
                    dst.service = info.service.as_ref().map(|service| &*service.key.hostname),
                    via = info.through_waypoint.then_some("waypoint"),
                    on_behalf_of = first.as_deref(),
                    first.addr = info.first_address.map(display),
                    policy = policy.as_deref(),
                    duration_ms = u64::try_from(info.began.elapsed().as_millis()).unwrap_or(u64::MAX),
                    response_flags = failure.map_or("-", Failure::flag),
                    fault = failure.map(|failure| fault_name(failure.fault())),
                    error = error.as_deref(),
                    bytes_sent = self.bytes.map(|(sent, _)| sent),
                    bytes_received = self.bytes.map(|(_, received)| received),
                    suppressed = self.suppressed,
                    "{}",
                    self.what
                )
            };
        }
        if denied { line!(warn) } else { line!(info) }
    }
}
