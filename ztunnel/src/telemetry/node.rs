//! Gauges about the proxy as a whole: its certificates, and whether its configuration is fresh.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use seine_identity::CertificateStatus;
use seine_xds::Connection;

use crate::shared::Shared;

/// How often they are set: more often than anybody asks.
const EVERY: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

/// The gauges. They have no label that grows with the cluster.
#[derive(Debug, Default)]
pub(super) struct Gauges {
    certificates: Family<StateLabel, Gauge>,
    soonest_expiry: Gauge<f64, AtomicU64>,
    connected: Gauge,
    refused: Gauge,
}

impl Gauges {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let gauges = Self::default();
        registry.register(
            "seine_certificates",
            "Certificates of the node's pods: valid, or missing because there is none or it is over",
            gauges.certificates.clone(),
        );
        registry.register(
            "seine_certificate_soonest_expiry_timestamp_seconds",
            "When the first of the valid certificates is over; 0 without any",
            gauges.soonest_expiry.clone(),
        );
        registry.register(
            "seine_control_plane_connected",
            "1 while the stream to the control plane is open: without it the last configuration stays in force",
            gauges.connected.clone(),
        );
        registry.register(
            "seine_resources_refused",
            "Resources of the control plane that were refused; their last good version is in force",
            gauges.refused.clone(),
        );
        gauges
    }

    fn set(&self, certificates: &[CertificateStatus], control_plane: &seine_xds::Status) {
        let valid = certificates.iter().filter_map(|one| {
            let left = one.remaining.filter(|left| !left.is_zero());
            left.and(one.not_after)
        });
        let ends: Vec<SystemTime> = valid.collect();
        let count = |state, number: usize| {
            let gauge = self.certificates.get_or_create(&StateLabel { state });
            gauge.set(i64::try_from(number).unwrap_or(i64::MAX));
        };
        count("valid", ends.len());
        count("missing", certificates.len() - ends.len());
        let soonest = ends.into_iter().min();
        let soonest = soonest.and_then(|end| end.duration_since(SystemTime::UNIX_EPOCH).ok());
        self.soonest_expiry
            .set(soonest.map_or(0.0, |since| since.as_secs_f64()));
        self.connected
            .set((control_plane.connection == Connection::Connected).into());
        self.refused
            .set(i64::try_from(control_plane.refused.len()).unwrap_or(i64::MAX));
    }
}

/// Sets them again and again, for the life of the process.
pub async fn keep_observing(shared: Arc<Shared>) {
    loop {
        let control_plane = shared.control_plane.borrow().clone();
        let certificates = shared.certificates.status();
        shared.telemetry.gauges.set(&certificates, &control_plane);
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use seine_identity::CertificateState;

    use super::*;

    fn certificate(remaining: Option<u64>) -> CertificateStatus {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        let remaining = remaining.map(Duration::from_secs);
        CertificateStatus {
            identity: "spiffe://cluster.local/ns/a/sa/b".parse().unwrap(),
            state: CertificateState::Valid,
            serial: None,
            not_before: None,
            not_after: remaining.map(|left| now + left),
            remaining,
            next_attempt: now,
            last_error: None,
        }
    }

    #[test]
    fn the_soonest_end_is_that_of_a_certificate_that_is_still_valid() {
        let mut registry = Registry::default();
        let gauges = Gauges::register(&mut registry);
        let mut status = seine_xds::Status::default();
        let page = |registry: &Registry| {
            let mut page = String::new();
            prometheus_client::encoding::text::encode(&mut page, registry).unwrap();
            page
        };
        gauges.set(&[], &status);
        assert!(
            page(&registry).contains("seine_certificate_soonest_expiry_timestamp_seconds 0.0\n")
        );
        let certificates = [Some(500), Some(300), Some(0), None].map(certificate);
        status.connection = Connection::Connected;
        status.refused.insert("a".into(), "b".into());
        gauges.set(&certificates, &status);
        let page = page(&registry);
        for line in [
            "seine_certificates{state=\"valid\"} 2\n",
            "seine_certificates{state=\"missing\"} 2\n",
            "seine_certificate_soonest_expiry_timestamp_seconds 1000300.0\n",
            "seine_control_plane_connected 1\n",
            "seine_resources_refused 1\n",
        ] {
            assert!(page.contains(line), "{line} in\n{page}");
        }
    }
}
