//! The control plane's metrics: gauges of one moment, made when they are asked for.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::AtomicU64},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use crate::{
    model::Model,
    status::ObjectStatus,
    xds::{ResourceType, server::Entry},
};

/// What the metrics are about.
pub struct Facts<'a> {
    /// The latest model.
    pub model: &'a Model,
    /// Problems found in objects.
    pub invalid: usize,
    /// Connected proxies.
    pub clients: &'a [Arc<Entry>],
    /// Responses sent to proxies, and those that they rejected.
    pub counts: (u64, u64),
    /// Conditions of objects.
    pub report: &'a [ObjectStatus],
    /// Seconds left of the certificate that signs.
    pub authority_seconds_left: u64,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct TypeLabel {
    r#type: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
struct ConditionLabels {
    kind: String,
    condition: &'static str,
    status: &'static str,
}

/// A registry with the facts in it.
pub fn registry(facts: &Facts<'_>) -> Registry {
    let mut registry = Registry::with_prefix("seine_control");
    let snapshot = &facts.model.snapshot;
    for (name, help, value) in [
        (
            "generation",
            "Changes of the configuration since the start",
            snapshot.generation,
        ),
        (
            "xds_clients",
            "Connected xDS clients",
            facts.clients.len() as u64,
        ),
        (
            "xds_clients_behind",
            "Connected xDS clients that have not accepted the newest configuration",
            facts
                .clients
                .iter()
                .filter(|entry| is_behind(entry, snapshot.generation))
                .count() as u64,
        ),
        (
            "invalid_objects",
            "Problems found in objects",
            facts.invalid as u64,
        ),
        (
            "translation_microseconds",
            "Time of the last translation",
            u64::try_from(facts.model.took.as_micros()).unwrap_or(u64::MAX),
        ),
        (
            "refused_pods",
            "Pods that opted in and can't be enrolled",
            facts.model.findings.refused_pods.len() as u64,
        ),
        (
            "ca_seconds_left",
            "Seconds until the certificate that signs is over",
            facts.authority_seconds_left,
        ),
    ] {
        let gauge = Gauge::<i64>::default();
        gauge.set(clamp(value));
        registry.register(name, help, gauge);
    }

    let resources = Family::<TypeLabel, Gauge>::default();
    for (kind, name) in [
        (ResourceType::Address, "address"),
        (ResourceType::Authorization, "authorization"),
        (ResourceType::Route, "route"),
        (ResourceType::Traffic, "traffic"),
    ] {
        let count = snapshot.all(kind).count() as u64;
        resources
            .get_or_create(&TypeLabel { r#type: name })
            .set(clamp(count));
    }
    registry.register("resources", "Resources of the configuration", resources);

    let conditions = Family::<ConditionLabels, Gauge>::default();
    for (labels, count) in count_conditions(facts.report) {
        conditions.get_or_create(&labels).set(clamp(count));
    }
    registry.register(
        "conditions",
        "Objects by kind, condition and its status",
        conditions,
    );

    for (name, help, value) in [
        (
            "xds_pushes",
            "Responses sent to xDS clients",
            facts.counts.0,
        ),
        (
            "xds_rejections",
            "Responses that xDS clients rejected",
            facts.counts.1,
        ),
    ] {
        let counter = Counter::<u64, AtomicU64>::default();
        counter.inc_by(value);
        registry.register(name, help, counter);
    }
    registry
}

/// Some type isn't as it should be.
fn is_behind(entry: &Entry, generation: u64) -> bool {
    let client = entry.client.lock();
    ResourceType::ALL
        .into_iter()
        .filter_map(|kind| client.stream(kind))
        .any(|stream| !stream.is_current(generation))
}

fn count_conditions(report: &[ObjectStatus]) -> BTreeMap<ConditionLabels, u64> {
    let mut counts = BTreeMap::new();
    // Also zero is said of what users write, so that an alert sees a series that never ends.
    for kind in ["AuthorizationPolicy", "MeshTLS", "TrafficPolicy"] {
        for condition in ["Accepted", "ResolvedRefs", "Programmed", "Enforced"] {
            if (kind, condition) == ("TrafficPolicy", "Programmed") {
                continue;
            }
            for status in ["True", "False"] {
                let kind = kind.to_owned();
                counts.insert(
                    ConditionLabels {
                        kind,
                        condition,
                        status,
                    },
                    0,
                );
            }
        }
    }
    for object in report {
        for condition in &object.conditions {
            let labels = ConditionLabels {
                kind: object.kind.clone(),
                condition: condition.kind,
                status: condition.status,
            };
            *counts.entry(labels).or_default() += 1;
        }
    }
    counts
}

fn clamp(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
