//! The metrics of connections, under our names and under those that existing dashboards know.
//!
//! Labels name workloads by what made them, never pods or addresses, and the number of label sets has a bound: beyond
//! it, new ones are counted together as `other`. So memory is bounded whoever connects. At the bound, those that nobody
//! has used for long make room.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::{Registry, Unit};
use tokio::time::Instant;

use crate::config::MetricNames;
use crate::connection::{ConnectionInfo, Direction, Live, Party, Security};
use crate::dns::DnsStats;
use crate::failure::{Failure, fault_name};

/// Label sets of connections at most. 10,000 are about 20 MB of metrics page.
const MAX_LABEL_SETS: usize = 10_000;
/// Unused for so long, a label set may make room for others: longer than any rate that dashboards show.
const MAX_AGE: Duration = Duration::from_secs(3600);
/// At the bound, how often it is looked for such.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

type Labels = Vec<(Cow<'static, str>, Cow<'static, str>)>;
type Counters = Family<Labels, Counter>;

#[derive(Debug)]
pub(super) struct Metrics {
    seine: Option<Names>,
    istio: Option<Names>,
    tunnels_refused: Family<Labelled, Counter>,
    dns: Family<Labelled, Counter>,
    audited: Counters,
    known: Mutex<Known>,
}

/// The label sets that there are.
#[derive(Debug, Default)]
struct Known {
    sets: HashMap<Labels, Use>,
    swept: Option<Instant>,
}

#[derive(Debug)]
struct Use {
    last: Instant,
    /// Shared with the live connections that are counted under it.
    live: Arc<()>,
}

/// One label, whose values are few and known.
type Labelled = [(&'static str, &'static str); 1];

/// Where the bytes of one connection are counted, and how many have been.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    counters: Vec<(Counter, Counter)>,
    /// Keeps their label sets.
    held: Vec<Arc<()>>,
    sent: AtomicU64,
    received: AtomicU64,
}

impl Traffic {
    /// Counts what has flowed since the last time.
    pub(super) fn count(live: &Live) {
        let Some(traffic) = live.traffic.get() else {
            return;
        };
        // Whoever counts at the same time counts another part.
        let new = |total: u64, counted: &AtomicU64| {
            total.saturating_sub(counted.fetch_max(total, Ordering::Relaxed))
        };
        let sent_now = new(live.to_client(), &traffic.sent);
        let received_now = new(live.from_client(), &traffic.received);
        if sent_now == 0 && received_now == 0 {
            return;
        }
        for (sent, received) in &traffic.counters {
            sent.inc_by(sent_now);
            received.inc_by(received_now);
        }
    }
}

/// The same five counters, whatever they are called.
#[derive(Debug)]
struct Names {
    opened: Counters,
    closed: Counters,
    failed: Counters,
    sent: Counters,
    received: Counters,
}

impl Names {
    fn all(&self) -> [&Counters; 5] {
        [
            &self.opened,
            &self.closed,
            &self.failed,
            &self.sent,
            &self.received,
        ]
    }

    fn register(registry: &mut Registry, prefix: &str) -> Self {
        let sub = registry.sub_registry_with_prefix(prefix);
        let names = Self {
            opened: Family::default(),
            closed: Family::default(),
            failed: Family::default(),
            sent: Family::default(),
            received: Family::default(),
        };
        sub.register(
            "connections_opened",
            "Connections that were established",
            names.opened.clone(),
        );
        sub.register(
            "connections_closed",
            "Connections that were established and are over",
            names.closed.clone(),
        );
        sub.register(
            "connections_failed",
            "Connections that were not established",
            names.failed.clone(),
        );
        let bytes = |what| format!("Bytes of connections, {what}; counted while they flow");
        if prefix == "istio_tcp" {
            // As the dashboards call them: no unit.
            sub.register(
                "sent_bytes",
                bytes("from the server to the client"),
                names.sent.clone(),
            );
            sub.register(
                "received_bytes",
                bytes("from the client to the server"),
                names.received.clone(),
            );
        } else {
            sub.register_with_unit(
                "sent",
                bytes("from the server to the client"),
                Unit::Bytes,
                names.sent.clone(),
            );
            sub.register_with_unit(
                "received",
                bytes("from the client to the server"),
                Unit::Bytes,
                names.received.clone(),
            );
        }
        names
    }
}

impl Metrics {
    pub(super) fn register(registry: &mut Registry, names: MetricNames) -> Self {
        let seine = (names != MetricNames::Istio).then(|| Names::register(registry, "seine"));
        let istio = (names != MetricNames::Seine).then(|| Names::register(registry, "istio_tcp"));
        let tunnels_refused = Family::default();
        registry.register(
            "seine_tunnels_refused",
            "TLS connections towards pods that were not accepted, by reason",
            tunnels_refused.clone(),
        );
        let dns = Family::default();
        registry.register(
            "seine_dns_queries",
            "Queries of the node's pods, by what became of them",
            dns.clone(),
        );
        let audited = Counters::default();
        registry.register(
            "seine_policy_audit",
            "Verdicts that policies in dry-run would have changed",
            audited.clone(),
        );
        let metrics = Self {
            seine,
            istio,
            tunnels_refused,
            dns,
            audited,
            known: Mutex::default(),
        };
        // A rate can be asked for before there was the first.
        metrics
            .tunnels_refused
            .get_or_create(&refused("tls"))
            .inc_by(0);
        metrics
    }

    pub(super) fn opened(&self, live: &Live) {
        let mut traffic = Traffic::default();
        self.count(&live.info, None, |names, labels, held| {
            names.opened.get_or_create(labels).inc();
            traffic.held.push(held);
            traffic.counters.push((
                names.sent.get_or_create_owned(labels),
                names.received.get_or_create_owned(labels),
            ));
        });
        // Opened once.
        let _ = live.traffic.set(traffic);
    }

    pub(super) fn closed(&self, live: &Live, failure: Option<&Failure>) {
        self.count(&live.info, failure, |names, labels, _| {
            names.closed.get_or_create(labels).inc();
        });
        Traffic::count(live);
    }

    pub(super) fn failed(&self, info: &ConnectionInfo, failure: &Failure) {
        self.count(info, Some(failure), |names, labels, _| {
            names.failed.get_or_create(labels).inc();
        });
    }

    pub(super) fn audited(&self, info: &ConnectionInfo, would_allow: bool) {
        let would = if would_allow { "allow" } else { "deny" };
        let labels = vec![
            (
                "destination_namespace".into(),
                info.pod.info.namespace.clone().into(),
            ),
            ("would".into(), would.into()),
        ];
        self.audited.get_or_create(&self.bounded(labels).0).inc();
    }

    pub(super) fn tunnel_refused(&self, reason: &'static str) {
        self.tunnels_refused.get_or_create(&refused(reason)).inc();
    }

    /// Where the pods' DNS is counted.
    pub(super) fn dns(&self) -> DnsStats {
        let counter = |result| self.dns.get_or_create_owned(&[("result", result)]);
        DnsStats {
            answered: counter("answered"),
            forwarded: counter("forwarded"),
            failed: counter("failed"),
            dropped: counter("dropped"),
        }
    }

    fn count(
        &self,
        info: &ConnectionInfo,
        failure: Option<&Failure>,
        mut add: impl FnMut(&Names, &Labels, Arc<()>),
    ) {
        if let Some(names) = &self.seine {
            let (labels, held) = self.bounded(own_labels(info, failure));
            add(names, &labels, held);
        }
        if let Some(names) = &self.istio {
            let (labels, held) = self.bounded(dashboard_labels(info, failure));
            add(names, &labels, held);
        }
    }

    /// The labels, or one common set once there are too many; and what keeps them as long as it lives.
    fn bounded(&self, labels: Labels) -> (Labels, Arc<()>) {
        let mut known = self.known.lock();
        let now = Instant::now();
        if let Some(used) = known.sets.get_mut(&labels) {
            used.last = now;
            return (labels, used.live.clone());
        }
        if known.sets.len() >= MAX_LABEL_SETS {
            self.make_room(&mut known, now);
        }
        if known.sets.len() >= MAX_LABEL_SETS {
            let other = labels.into_iter().map(|(key, _)| (key, "other".into()));
            return (other.collect(), Arc::default());
        }
        let live = Arc::default();
        let used = Use {
            last: now,
            live: Arc::clone(&live),
        };
        known.sets.insert(labels.clone(), used);
        (labels, live)
    }

    /// Takes away what was counted under label sets that nobody has used for long. To a scraper they end.
    fn make_room(&self, known: &mut Known, now: Instant) {
        if known.swept.is_some_and(|at| now < at + SWEEP_EVERY) {
            return;
        }
        known.swept = Some(now);
        known.sets.retain(|labels, used| {
            let keep = now < used.last + MAX_AGE || Arc::strong_count(&used.live) > 1;
            if !keep {
                for names in self.seine.iter().chain(&self.istio) {
                    for family in names.all() {
                        family.remove(labels);
                    }
                }
                self.audited.remove(labels);
            }
            keep
        });
    }
}

fn refused(reason: &'static str) -> Labelled {
    [("reason", reason)]
}

fn own_labels(info: &ConnectionInfo, failure: Option<&Failure>) -> Labels {
    let (source, destination) = (Who::of(&info.source), Who::of(&info.destination));
    let direction = if info.direction == Direction::Outbound {
        "outbound"
    } else {
        "inbound"
    };
    vec![
        ("direction".into(), direction.into()),
        ("security".into(), security(info, "mutual_tls", "none")),
        ("source_workload".into(), source.workload),
        ("source_namespace".into(), source.namespace),
        ("source_principal".into(), source.principal),
        ("destination_workload".into(), destination.workload),
        ("destination_namespace".into(), destination.namespace),
        ("destination_principal".into(), destination.principal),
        ("destination_service".into(), service(info)),
        (
            "response_flags".into(),
            failure.map_or("-", Failure::flag).into(),
        ),
        (
            "fault".into(),
            failure
                .map_or("-", |failure| fault_name(failure.fault()))
                .into(),
        ),
    ]
}

fn dashboard_labels(info: &ConnectionInfo, failure: Option<&Failure>) -> Labels {
    let (source, destination) = (Who::of(&info.source), Who::of(&info.destination));
    let reporter = if info.direction == Direction::Outbound {
        "source"
    } else {
        "destination"
    };
    let service_part = |part: fn(&seine_workload::Service) -> &str| -> Cow<'static, str> {
        info.service
            .as_ref()
            .map_or(UNKNOWN, |service| part(service).to_owned().into())
    };
    let mut labels: Labels = vec![("reporter".into(), reporter.into())];
    for (side, who) in [("source", source), ("destination", destination)] {
        let mut add = |name: &str, value: Cow<'static, str>| {
            labels.push((format!("{side}_{name}").into(), value))
        };
        add("workload", who.workload);
        add("workload_namespace", who.namespace);
        add("principal", who.principal);
        add("canonical_service", who.app.clone());
        add("canonical_revision", who.version.clone());
        add("app", who.app);
        add("version", who.version);
        add("cluster", who.cluster);
    }
    labels.extend([
        ("destination_service".into(), service(info)),
        (
            "destination_service_name".into(),
            service_part(|service| &service.name),
        ),
        (
            "destination_service_namespace".into(),
            service_part(|service| &service.key.namespace),
        ),
        ("request_protocol".into(), "tcp".into()),
        (
            "response_flags".into(),
            failure.map_or("-", Failure::flag).into(),
        ),
        (
            "connection_security_policy".into(),
            security(info, "mutual_tls", "unknown"),
        ),
    ]);
    labels
}

const UNKNOWN: Cow<'static, str> = Cow::Borrowed("unknown");

fn service(info: &ConnectionInfo) -> Cow<'static, str> {
    info.service
        .as_ref()
        .map_or(UNKNOWN, |service| service.key.hostname.to_string().into())
}

fn security(info: &ConnectionInfo, tls: &'static str, plain: &'static str) -> Cow<'static, str> {
    if info.security == Security::MutualTls {
        tls.into()
    } else {
        plain.into()
    }
}

/// One end, as labels.
struct Who {
    workload: Cow<'static, str>,
    namespace: Cow<'static, str>,
    principal: Cow<'static, str>,
    app: Cow<'static, str>,
    version: Cow<'static, str>,
    cluster: Cow<'static, str>,
}

impl Who {
    fn of(party: &Party) -> Self {
        let workload = party.workload.as_deref();
        let label = |part: fn(&seine_workload::Workload) -> &Arc<str>| -> Cow<'static, str> {
            let text = workload.map(part).filter(|text| !text.is_empty());
            text.map_or(UNKNOWN, |text| text.to_string().into())
        };
        let principal = party
            .identity
            .as_ref()
            .map_or(UNKNOWN, |identity| identity.as_str().to_owned().into());
        Self {
            workload: label(|workload| &workload.workload_name),
            namespace: label(|workload| &workload.namespace),
            principal,
            app: label(|workload| &workload.canonical_name),
            version: label(|workload| &workload.canonical_revision),
            cluster: label(|workload| &workload.cluster_id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn label_sets_beyond_the_bound_are_counted_together_until_old_ones_make_room() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry, MetricNames::Seine);
        let labels = |n: usize| -> Labels { vec![("a".into(), n.to_string().into())] };
        let opened = |n: usize| {
            let (labels, held) = metrics.bounded(labels(n));
            metrics
                .seine
                .as_ref()
                .unwrap()
                .opened
                .get_or_create(&labels)
                .inc();
            (labels, held)
        };
        let live = opened(0).1;
        for n in 1..MAX_LABEL_SETS {
            assert_eq!(opened(n).0, labels(n));
        }
        let other: Labels = vec![("a".into(), "other".into())];
        assert_eq!(opened(MAX_LABEL_SETS).0, other);
        assert_eq!(opened(7).0, labels(7), "those that are known go on");

        tokio::time::advance(MAX_AGE / 2).await;
        opened(8);
        assert_eq!(opened(MAX_LABEL_SETS).0, other, "none is old enough");
        tokio::time::advance(MAX_AGE / 2).await;
        assert_eq!(opened(MAX_LABEL_SETS).0, labels(MAX_LABEL_SETS));
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        let shown =
            |n: usize| page.contains(&format!("seine_connections_opened_total{{a=\"{n}\"}}"));
        assert!(!shown(7), "it is old");
        assert!(
            shown(8) && shown(0),
            "one was used, one has a live connection"
        );
        drop(live);
    }
}
