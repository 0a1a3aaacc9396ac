//! The metrics of requests, by OpenTelemetry's conventions for HTTP and under the names that dashboards of Istio know.
//!
//! Labels name services, workloads, rules and identities of the mesh, and of what clients choose only the methods that are
//! known. The number of label sets has a bound all the same: beyond it they are counted together as `other`.

mod calls;

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use seine_identity::Identity;
use seine_workload::{Store, Workload};

use crate::config::MetricNames;
use crate::ingress::Door;
use crate::metrics::calls::Calls;
use crate::telemetry::{Entry, known_method};
use crate::trace::protocol;

/// Label sets at most.
const MAX_LABEL_SETS: usize = 10_000;
/// In seconds, as the conventions advise.
const SECONDS: [f64; 14] = [
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
];
/// In milliseconds, as Istio's.
const MILLISECONDS: [f64; 16] = [
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0,
    30_000.0, 60_000.0, 300_000.0,
];
const UNKNOWN: Cow<'static, str> = Cow::Borrowed("unknown");

type Label = Cow<'static, str>;
type Labels = Vec<(&'static str, Label)>;
type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

#[derive(Debug)]
pub(crate) struct Metrics {
    names: MetricNames,
    duration: Histograms,
    calls: Calls,
    istio_requests: Family<Labels, Counter>,
    istio_duration: Histograms,
    refused: Family<[(&'static str, &'static str); 1], Counter>,
    known: Mutex<HashSet<Labels>>,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry, names: MetricNames) -> Self {
        let metrics = Self {
            names,
            duration: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            calls: Calls::default(),
            istio_requests: Family::default(),
            istio_duration: Family::new_with_constructor(|| Histogram::new(MILLISECONDS)),
            refused: Family::default(),
            known: Mutex::default(),
        };
        if names != MetricNames::Istio {
            registry.register_with_unit(
                "http_server_request_duration",
                "From the head of a request to the end of its answer",
                Unit::Seconds,
                metrics.duration.clone(),
            );
            registry.register_with_unit(
                "rpc_server_call_duration",
                "From the head of a call of gRPC to the end of its answer",
                Unit::Seconds,
                metrics.calls.duration.clone(),
            );
        }
        if names != MetricNames::Seine {
            registry.register(
                "istio_requests",
                "Requests that were answered",
                metrics.istio_requests.clone(),
            );
            registry.register(
                "istio_request_duration_milliseconds",
                "From the head of a request to the end of its answer",
                metrics.istio_duration.clone(),
            );
        }
        registry.register(
            "tunnels_refused",
            "Tunnels, and CONNECTs in them, that were refused",
            metrics.refused.clone(),
        );
        metrics
    }

    /// A request is over.
    pub(crate) fn answered(
        &self,
        store: &Store,
        entry: &Entry,
        flag: &'static str,
        took: Duration,
    ) {
        if self.names != MetricNames::Istio {
            let labels = self.bounded(own_labels(entry, flag));
            let duration = self.duration.get_or_create(&labels);
            duration.observe(took.as_secs_f64());
            if let Some(status) = entry.grpc_status() {
                let labels = self.bounded(self.calls.labels(entry, status));
                let duration = self.calls.duration.get_or_create(&labels);
                duration.observe(took.as_secs_f64());
            }
        }
        if self.names != MetricNames::Seine {
            let labels = self.bounded(dashboard_labels(store, entry, flag));
            self.istio_requests.get_or_create(&labels).inc();
            let duration = self.istio_duration.get_or_create(&labels);
            duration.observe(took.as_secs_f64() * 1000.0);
        }
    }

    /// A tunnel, or a CONNECT in one, was refused.
    pub(crate) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&[("reason", reason)]).inc();
    }

    /// The labels, or one common set once there are too many.
    fn bounded(&self, labels: Labels) -> Labels {
        let mut known = self.known.lock();
        if known.contains(&labels) {
            return labels;
        }
        if known.len() < MAX_LABEL_SETS {
            known.insert(labels.clone());
            return labels;
        }
        let other = labels.into_iter().map(|(key, _)| (key, "other".into()));
        other.collect()
    }
}

/// As in OpenTelemetry, with underscores for dots.
fn own_labels(entry: &Entry, flag: &'static str) -> Labels {
    let bound = &entry.bound;
    let method = entry.method.as_ref().map_or("_OTHER", known_method);
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let error: Label = match (&entry.failure, entry.status) {
        (Some(failure), _) => failure.flag().into(),
        (None, Some(status)) if status.is_server_error() => status.as_str().to_owned().into(),
        _ if entry.complete => "".into(),
        _ => flag.into(),
    };
    vec![
        ("http_request_method", method.to_owned().into()),
        ("http_response_status_code", status(entry)),
        ("http_route", text(&entry.rule).into()),
        ("error_type", error),
        ("network_protocol_version", protocol(entry.version).into()),
        (
            "url_scheme",
            bound.door.as_ref().map_or("http", Door::scheme).into(),
        ),
        (
            "server_address",
            bound.service.key.hostname.to_string().into(),
        ),
        ("server_port", bound.port.to_string().into()),
        ("seine_backend", text(&entry.backend).into()),
    ]
}

fn dashboard_labels(store: &Store, entry: &Entry, flag: &'static str) -> Labels {
    let bound = &entry.bound;
    let source = store.workload_at(bound.first.address.ip());
    let endpoint = entry.endpoint.as_ref();
    let destination = endpoint.and_then(|endpoint| store.workload(&endpoint.uid));
    let service = &bound.service;
    let principal = |identity: Option<&Identity>| {
        identity.map_or(UNKNOWN, |identity| identity.to_string().into())
    };
    let of_destination = destination.as_deref().map(|workload| &workload.identity);
    let grpc = entry.grpc_status();
    let grpc = grpc.map(|status| (status as u16).to_string());
    let security = match bound.first.identity {
        Some(_) => "mutual_tls",
        None => "none",
    };
    let mut labels: Labels = vec![
        ("reporter", "waypoint".into()),
        ("source_principal", principal(bound.first.identity.as_ref())),
        ("destination_principal", principal(of_destination)),
        (
            "destination_service",
            service.key.hostname.to_string().into(),
        ),
        ("destination_service_name", service.name.to_string().into()),
        (
            "destination_service_namespace",
            service.key.namespace.to_string().into(),
        ),
        (
            "request_protocol",
            if entry.grpc { "grpc" } else { "http" }.into(),
        ),
        ("response_code", status(entry)),
        ("grpc_response_status", grpc.unwrap_or_default().into()),
        ("response_flags", flag.into()),
        ("connection_security_policy", security.into()),
    ];
    let names = [
        "source_workload",
        "source_workload_namespace",
        "source_canonical_service",
        "source_canonical_revision",
        "source_app",
        "source_version",
        "source_cluster",
    ];
    labels.extend(names.into_iter().zip(who(source.as_ref())));
    let names = [
        "destination_workload",
        "destination_workload_namespace",
        "destination_canonical_service",
        "destination_canonical_revision",
        "destination_app",
        "destination_version",
        "destination_cluster",
    ];
    labels.extend(names.into_iter().zip(who(destination.as_ref())));
    labels
}

/// Workload, namespace, canonical service and revision, app, version and cluster.
fn who(workload: Option<&Arc<Workload>>) -> [Label; 7] {
    let label = |part: fn(&Workload) -> &Arc<str>| -> Label {
        let text = workload.map(|workload| part(workload));
        let text = text.filter(|text| !text.is_empty());
        text.map_or(UNKNOWN, |text| text.to_string().into())
    };
    let (app, version) = (
        label(|workload| &workload.canonical_name),
        label(|workload| &workload.canonical_revision),
    );
    [
        label(|workload| &workload.workload_name),
        label(|workload| &workload.namespace),
        app.clone(),
        version.clone(),
        app,
        version,
        label(|workload| &workload.cluster_id),
    ]
}

fn status(entry: &Entry) -> Label {
    match entry.status {
        Some(status) => status.as_str().to_owned().into(),
        None => "".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_sets_beyond_the_bound_are_counted_together() {
        let metrics = Metrics::register(&mut Registry::default(), MetricNames::Seine);
        let labels = |number: usize| vec![("a", Label::from(number.to_string()))];
        for number in 0..MAX_LABEL_SETS {
            assert_eq!(metrics.bounded(labels(number)), labels(number));
        }
        assert_eq!(
            metrics.bounded(labels(MAX_LABEL_SETS)),
            [("a", "other".into())]
        );
        assert_eq!(metrics.bounded(labels(7)), labels(7));
    }
}
