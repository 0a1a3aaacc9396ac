//! Calls of gRPC by OpenTelemetry's conventions for RPC.

use std::collections::HashSet;

use parking_lot::Mutex;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use super::{Histograms, Label, Labels, SECONDS};
use crate::grpc::GrpcStatus;
use crate::telemetry::Entry;

/// Names of methods at most. A client chooses what it asks for.
const MAX_METHODS: usize = 1000;

#[derive(Debug)]
pub(super) struct Calls {
    pub(super) duration: Histograms,
    /// Those that backends have.
    methods: Mutex<HashSet<String>>,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            duration: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            methods: Mutex::default(),
        }
    }
}

impl Calls {
    /// As in OpenTelemetry, with underscores for dots.
    pub(super) fn labels(&self, entry: &Entry, status: GrpcStatus) -> Labels {
        let bound = &entry.bound;
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let error = match status.is_of_server() {
            true => status.name(),
            false => "",
        };
        vec![
            ("rpc_system_name", "grpc".into()),
            ("rpc_method", self.method(entry)),
            ("rpc_response_status_code", status.name().into()),
            ("error_type", error.into()),
            (
                "server_address",
                bound.service.key.hostname.to_string().into(),
            ),
            ("server_port", bound.port.to_string().into()),
            ("seine_route", text(&entry.rule).into()),
            ("seine_backend", text(&entry.backend).into()),
        ]
    }

    /// `service/method`, if the backend has it: it has answered a call of it in good order.
    fn method(&self, entry: &Entry) -> Label {
        let name = entry.path.trim_start_matches('/');
        let mut methods = self.methods.lock();
        let is_known = methods.contains(name);
        let is_new = entry.grpc_said == Some(GrpcStatus::Ok) && methods.len() < MAX_METHODS;
        if is_new && !is_known {
            methods.insert(name.to_owned());
        }
        match is_known || is_new {
            true => name.to_owned().into(),
            false => "_OTHER".into(),
        }
    }
}
