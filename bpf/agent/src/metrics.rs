//! The agent's metrics.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// One label, whose values are few and known.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Label {
    /// What the metric's name says it is counted by.
    pub kind: &'static str,
}

/// All of them; cloning shares.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Pods by state, and `unclaimed`: enrolled by an earlier agent, and not found yet.
    pub pods: Family<Label, Gauge>,
    /// What was done to pods: `enrol`, `update`, `release`, and `failure`.
    pub changes: Family<Label, Counter>,
    /// Connections older than the enrolment: `found` and `reset`.
    pub older_connections: Family<Label, Counter>,
    /// Peers turned away, by socket.
    pub refused_peers: Family<Label, Counter>,
    /// Requests of the CNI plugin, by answer.
    pub cni_requests: Family<Label, Counter>,
    /// Node proxies connected for pods.
    pub proxies: Gauge,
    /// Pods that a node proxy answered with an error.
    pub proxy_errors: Counter,
    /// Attachments that were not as they should be and were repaired.
    pub repairs: Counter,
    /// Times that another program took our plugin out of the CNI chain and it was put back.
    pub cni_repairs: Counter,
    /// What the programs in the kernel count.
    pub redirection: Family<Label, Gauge>,
}

impl Metrics {
    /// Registers all metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        let r = registry.sub_registry_with_prefix("seine_agent");
        r.register("pods", "Pods of this node by state", m.pods.clone());
        r.register(
            "pod_changes",
            "Enrolments, updates, releases, failures",
            m.changes.clone(),
        );
        r.register(
            "older_connections",
            "TCP connections older than the enrolment of their pod",
            m.older_connections.clone(),
        );
        r.register(
            "refused_peers",
            "Peers turned away, by socket",
            m.refused_peers.clone(),
        );
        r.register(
            "cni_requests",
            "CNI requests by answer",
            m.cni_requests.clone(),
        );
        r.register("proxies", "Node proxies connected", m.proxies.clone());
        r.register(
            "proxy_errors",
            "Pods a node proxy refused to serve",
            m.proxy_errors.clone(),
        );
        r.register("repairs", "Attachments repaired", m.repairs.clone());
        r.register(
            "cni_repairs",
            "Repairs of the container runtime's CNI chain",
            m.cni_repairs.clone(),
        );
        r.register(
            "redirection",
            "Counts of the eBPF programs",
            m.redirection.clone(),
        );
        m
    }

    /// Counts one.
    pub fn count(family: &Family<Label, Counter>, kind: &'static str) {
        family.get_or_create(&Label { kind }).inc();
    }

    /// Counts many.
    pub fn count_many(family: &Family<Label, Counter>, kind: &'static str, by: usize) {
        family.get_or_create(&Label { kind }).inc_by(by as u64);
    }

    /// Sets a gauge.
    pub fn set(family: &Family<Label, Gauge>, kind: &'static str, value: u64) {
        family
            .get_or_create(&Label { kind })
            .set(value.cast_signed());
    }
}
