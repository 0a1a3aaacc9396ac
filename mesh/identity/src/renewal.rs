//! When to ask for a certificate: decisions without I/O and without a clock of their own.

use std::time::{Duration, SystemTime};

/// The rules of renewal.
#[derive(Debug, Clone, PartialEq)]
pub struct RenewalRules {
    /// Wait after the first failure; doubled with each further one.
    pub backoff_min: Duration,
    /// The longest wait after a failure.
    pub backoff_max: Duration,
}

impl Default for RenewalRules {
    fn default() -> Self {
        Self {
            // A CA that restarts is asked again before a pod's first connection gives up.
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(15),
        }
    }
}

/// Where a certificate stands, for people and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CertificateState {
    /// Asked for, none came so far.
    Initializing,
    /// In use; will be renewed.
    Valid,
    /// In use, but its renewal failed and is tried again.
    RenewalFailing,
    /// Ended before a renewal came: connections of this identity fail.
    Expired,
}

impl CertificateState {
    /// A constant name, for labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Initializing => "initializing",
            Self::Valid => "valid",
            Self::RenewalFailing => "renewal-failing",
            Self::Expired => "expired",
        }
    }
}

/// The life of one identity's certificate.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Renewal {
    not_after: Option<SystemTime>,
    next: SystemTime,
    failures: u32,
}

impl Renewal {
    /// Wanted now.
    pub(crate) fn new(now: SystemTime) -> Self {
        Self {
            not_after: None,
            next: now,
            failures: 0,
        }
    }

    /// A certificate was just issued. Renewed after 45 to 55 % of the time that is left by our own
    /// clock, so that a CA whose clock is behind doesn't make us ask without a pause.
    pub(crate) fn issued(&mut self, now: SystemTime, not_after: SystemTime, random: f64) {
        let left = not_after.duration_since(now).unwrap_or_default();
        *self = Self {
            not_after: Some(not_after),
            next: now + left.mul_f64(0.45 + 0.1 * random.clamp(0.0, 1.0)),
            failures: 0,
        };
    }

    /// A certificate of some age came from a former process. Renewed at its half-life; those that
    /// are past it are spread over a tenth of what is left.
    pub(crate) fn imported(
        now: SystemTime,
        not_before: SystemTime,
        not_after: SystemTime,
        random: f64,
    ) -> Self {
        let life = not_after.duration_since(not_before).unwrap_or_default();
        let half = not_before + life.mul_f64(0.45 + 0.1 * random.clamp(0.0, 1.0));
        let left = not_after.duration_since(now).unwrap_or_default();
        Self {
            not_after: Some(not_after),
            next: half.max(now + left.mul_f64(0.1 * random.clamp(0.0, 1.0))),
            failures: 0,
        }
    }

    /// An attempt failed. The wait doubles up to the maximum, is spread over its upper half, and
    /// never exceeds a quarter of what is left of a certificate in use.
    pub(crate) fn failed(&mut self, now: SystemTime, rules: &RenewalRules, random: f64) {
        let doubled = rules
            .backoff_min
            .saturating_mul(1_u32 << self.failures.min(20));
        self.failures = self.failures.saturating_add(1);
        let mut wait = doubled
            .min(rules.backoff_max)
            .mul_f64(0.5 + 0.5 * random.clamp(0.0, 1.0));
        if let Some(left) = self.not_after.and_then(|end| end.duration_since(now).ok()) {
            wait = wait.min((left / 4).max(rules.backoff_min));
        }
        self.next = now + wait;
    }

    /// Wanted now, whatever was planned.
    pub(crate) fn hurry(&mut self, now: SystemTime) {
        self.next = self.next.min(now);
    }

    /// Whether to ask now.
    pub(crate) fn is_due(&self, now: SystemTime) -> bool {
        self.next <= now
    }

    /// When to ask next.
    pub(crate) fn next(&self) -> SystemTime {
        self.next
    }

    /// When something happens by itself: the next attempt or the end.
    pub(crate) fn wake(&self, now: SystemTime) -> SystemTime {
        match self.not_after {
            Some(end) if end > now => self.next.min(end),
            _ => self.next,
        }
    }

    /// Whom to ask for first: those without a certificate in use, longest waiting first; then those
    /// whose certificate ends first.
    pub(crate) fn urgency(&self, now: SystemTime) -> (bool, SystemTime) {
        match self.not_after {
            Some(end) if end > now => (true, end),
            _ => (false, self.next),
        }
    }

    pub(crate) fn state(&self, now: SystemTime) -> CertificateState {
        match self.not_after {
            None => CertificateState::Initializing,
            Some(end) if end <= now => CertificateState::Expired,
            Some(_) if self.failures > 0 => CertificateState::RenewalFailing,
            Some(_) => CertificateState::Valid,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    fn start() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    #[test]
    fn a_certificate_is_renewed_around_its_half_life() {
        for (random, percent) in [(0.0, 0.45), (0.5, 0.5), (1.0, 0.55)] {
            let mut renewal = Renewal::new(start());
            assert!(renewal.is_due(start()));
            renewal.issued(start(), start() + DAY, random);
            assert!(!renewal.is_due(start()));
            assert_eq!(renewal.next(), start() + DAY.mul_f64(percent));
            assert_eq!(renewal.state(start()), CertificateState::Valid);
        }
    }

    #[test]
    fn failures_wait_longer_and_longer_up_to_the_maximum() {
        let rules = RenewalRules::default();
        let mut renewal = Renewal::new(start());
        let waits: Vec<_> = (0..10)
            .map(|_| {
                renewal.failed(start(), &rules, 1.0);
                renewal.next().duration_since(start()).unwrap().as_millis()
            })
            .collect();
        assert_eq!(
            waits,
            [100, 200, 400, 800, 1600, 3200, 6400, 12800, 15000, 15000]
        );
        renewal.failed(start(), &rules, 0.0);
        assert_eq!(renewal.next(), start() + rules.backoff_max / 2);
    }

    #[test]
    fn the_wait_is_short_when_the_end_is_near() {
        let rules = RenewalRules::default();
        let mut renewal = Renewal::new(start());
        renewal.issued(start(), start() + Duration::from_secs(8), 0.5);
        let late = start() + Duration::from_secs(4);
        for _ in 0..20 {
            renewal.failed(late, &rules, 1.0);
        }
        assert_eq!(renewal.next(), late + Duration::from_secs(1));
        assert_eq!(renewal.state(late), CertificateState::RenewalFailing);
        assert_eq!(
            renewal.state(start() + Duration::from_secs(8)),
            CertificateState::Expired
        );
    }

    #[test]
    fn a_clock_behind_the_ca_does_not_make_requests_without_a_pause() {
        let mut renewal = Renewal::new(start());
        renewal.issued(start(), start() - Duration::from_secs(1), 0.5);
        // Already ended by our clock: the manager counts that as a failure (see there).
        renewal.failed(start(), &RenewalRules::default(), 1.0);
        assert!(renewal.next() > start());
    }

    #[test]
    fn an_imported_certificate_past_its_half_life_is_renewed_soon_but_not_by_all_at_once() {
        let now = start() + DAY.mul_f64(0.8);
        let early = Renewal::imported(now, start(), start() + DAY, 0.0);
        let late = Renewal::imported(now, start(), start() + DAY, 1.0);
        assert_eq!(early.next(), now);
        assert_eq!(late.next(), now + DAY.mul_f64(0.02));
    }

    #[test]
    fn new_identities_come_before_renewals_and_the_nearest_end_first() {
        let mut soon = Renewal::new(start());
        soon.issued(start(), start() + DAY, 0.5);
        let mut later = Renewal::new(start());
        later.issued(start(), start() + 2 * DAY, 0.5);
        let fresh = Renewal::new(start() + Duration::from_secs(5));
        let now = start() + Duration::from_secs(10);
        let mut all = [&later, &soon, &fresh];
        all.sort_by_key(|renewal| renewal.urgency(now));
        assert_eq!(all, [&fresh, &soon, &later]);
    }
}
