//! The task of the certificate manager and the state that it shares with the handles.
//!
//! The mutex is held for map look-ups and, at issue and change of bundles, for making TLS
//! configurations; never across an await.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use spiffe::TrustDomain;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::{CertificateStatus, Changes, ManagerOptions};
use crate::bundle::SharedBundles;
use crate::identity::Identity;
use crate::renewal::Renewal;
use crate::source::{CertificateSource, SourceError};
use crate::svid::Svid;
use crate::tls::Credentials;

/// The task looks at the clock at least this often, so that a changed system clock is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

pub(super) struct Shared {
    pub(super) options: ManagerOptions,
    pub(super) source: Arc<dyn CertificateSource>,
    pub(super) bundles: Arc<SharedBundles>,
    pub(super) entries: Mutex<Entries>,
    pub(super) changes: watch::Sender<Changes>,
    pub(super) wake: Notify,
}

#[derive(Default)]
pub(super) struct Entries {
    pub(super) by_identity: HashMap<Identity, Entry>,
    /// Signing time of the certificate that each domain's bundle came with: an answer that was
    /// overtaken by a newer one doesn't bring an old bundle back.
    pub(super) bundle_times: HashMap<TrustDomain, SystemTime>,
    /// Tells an entry from a later one of the same identity.
    pub(super) created: u64,
}

pub(super) struct Entry {
    pub(super) number: u64,
    pub(super) renewal: Renewal,
    pub(super) since: SystemTime,
    pub(super) fetching: bool,
    pub(super) error: Option<Arc<SourceError>>,
    pub(super) slot: watch::Sender<Slot>,
}

/// What waiting callers look at.
#[derive(Clone, Default)]
pub(super) struct Slot {
    pub(super) credentials: Option<Arc<Credentials>>,
    pub(super) refusal: Option<Arc<SourceError>>,
}

/// What to wait for, and since when the identity is held.
pub(super) type Waiting = (watch::Receiver<Slot>, SystemTime);

impl Entry {
    fn new(number: u64, now: SystemTime) -> Self {
        Self {
            number,
            renewal: Renewal::new(now),
            since: now,
            fetching: false,
            error: None,
            slot: watch::Sender::default(),
        }
    }

    pub(super) fn usable(&self, now: SystemTime) -> Option<Arc<Credentials>> {
        let credentials = self.slot.borrow().credentials.clone()?;
        (credentials.svid().not_after() > now).then_some(credentials)
    }

    pub(super) fn status(&self, identity: &Identity, now: SystemTime) -> CertificateStatus {
        let slot = self.slot.borrow();
        let svid = slot
            .credentials
            .as_ref()
            .map(|credentials| credentials.svid());
        let not_after = svid.map(|svid| svid.not_after());
        CertificateStatus {
            identity: identity.clone(),
            state: self.renewal.state(now),
            serial: svid.map(|svid| svid.serial().to_owned()),
            not_before: svid.map(|svid| svid.not_before()),
            not_after,
            remaining: not_after.map(|end| end.duration_since(now).unwrap_or_default()),
            next_attempt: self.renewal.next(),
            last_error: self.error.as_ref().map(ToString::to_string),
        }
    }
}

/// The result of one request, and which entry it was made for.
type Fetched = (Identity, u64, Result<Svid, SourceError>);

impl Shared {
    /// The task.
    pub(super) async fn run(self: Arc<Self>) {
        let mut requests: JoinSet<Fetched> = JoinSet::new();
        loop {
            let free = self.options.concurrency.saturating_sub(requests.len());
            let (chosen, sleep_for) = self.plan(free);
            for (identity, number) in chosen {
                requests.spawn(Arc::clone(&self).fetch(identity, number));
            }
            tokio::select! {
                Some(fetched) = requests.join_next() => match fetched {
                    Ok((identity, number, result)) => self.record(&identity, number, result),
                    // Its identity would never be asked for again. Nobody aborts requests.
                    Err(error) => std::panic::resume_unwind(error.into_panic()),
                },
                () = self.wake.notified() => {}
                () = sleep(sleep_for) => {}
            }
        }
    }

    async fn fetch(self: Arc<Self>, identity: Identity, number: u64) -> Fetched {
        let limit = self.options.fetch_timeout;
        let result = match timeout(limit, self.source.fetch(&identity)).await {
            Ok(result) => result,
            Err(_) => Err(SourceError::Unavailable {
                source_name: "the certificate source".into(),
                reason: format!("no answer within {} s", limit.as_secs()),
            }),
        };
        (identity, number, result)
    }

    /// Whom to ask for now, at most `free`, and how long to sleep otherwise. Withdraws what ended.
    fn plan(&self, free: usize) -> (Vec<(Identity, u64)>, Duration) {
        let now = self.now();
        let mut guard = self.entries.lock();
        let mut ended = false;
        for (identity, entry) in &mut guard.by_identity {
            if entry.slot.borrow().credentials.is_some() && entry.usable(now).is_none() {
                warn!(%identity, error = entry.error.as_ref().map(tracing::field::display),
                    "certificate ended before it was renewed: connections of this identity fail");
                entry.slot.send_modify(|slot| slot.credentials = None);
                entry.since = now;
                ended = true;
            }
        }
        let mut due: Vec<_> = guard
            .by_identity
            .iter()
            .filter(|(_, entry)| !entry.fetching && entry.renewal.is_due(now))
            .map(|(identity, entry)| (entry.renewal.urgency(now), identity.clone()))
            .collect();
        due.sort();
        due.truncate(free);
        let mut chosen = Vec::with_capacity(due.len());
        for (_, identity) in due {
            if let Some(entry) = guard.by_identity.get_mut(&identity) {
                entry.fetching = true;
                chosen.push((identity, entry.number));
            }
        }
        let wake = guard
            .by_identity
            .values()
            // What is due but found no free place starts when a request ends.
            .filter(|entry| !entry.fetching && !entry.renewal.is_due(now))
            .map(|entry| entry.renewal.wake(now))
            .chain(guard.by_identity.values().filter_map(|entry| {
                let end = entry.slot.borrow().credentials.as_ref()?.svid().not_after();
                Some(end)
            }))
            .min();
        drop(guard);
        if ended {
            self.changed(|changes| changes.certificates += 1);
        }
        let until = wake.and_then(|at| at.duration_since(now).ok());
        // A millisecond more than asked: timers are that coarse, and waking early asks twice.
        let sleep_for = until.map_or(LONGEST_SLEEP, |d| d + Duration::from_millis(1));
        (chosen, sleep_for.min(LONGEST_SLEEP))
    }

    fn record(&self, identity: &Identity, number: u64, result: Result<Svid, SourceError>) {
        let error = match result.and_then(|svid| self.checked(identity, svid)) {
            Ok(svid) => {
                let (serial, end) = (svid.serial().to_owned(), svid.not_after());
                match self.install(identity, svid, None, Some(number)) {
                    Ok(()) => {
                        let left = end.duration_since(self.now()).unwrap_or_default().as_secs();
                        info!(%identity, serial, seconds_left = left, "certificate issued");
                        return;
                    }
                    Err(error) => error,
                }
            }
            Err(error) => error,
        };
        let now = self.now();
        let mut entries = self.entries.lock();
        let Some(entry) = entries
            .by_identity
            .get_mut(identity)
            .filter(|e| e.number == number)
        else {
            return;
        };
        entry.fetching = false;
        entry
            .renewal
            .failed(now, &self.options.rules, rand::random());
        let state = entry.renewal.state(now);
        let seconds_left = entry
            .usable(now)
            .and_then(|c| c.svid().not_after().duration_since(now).ok())
            .map(|left| left.as_secs());
        warn!(%identity, %error, state = state.as_str(), seconds_left, "no certificate issued");
        let error = Arc::new(error);
        let refusal = error.is_refusal().then(|| Arc::clone(&error));
        entry.error = Some(error);
        entry.slot.send_modify(|slot| slot.refusal = refusal);
    }

    /// Refuses what a source may not answer.
    fn checked(&self, identity: &Identity, svid: Svid) -> Result<Svid, SourceError> {
        let bad = |reason: String| SourceError::BadAnswer {
            source_name: "the certificate source".into(),
            reason,
        };
        let svid = svid
            .expect(identity)
            .map_err(|error| bad(error.to_string()))?;
        if svid.not_after() <= self.now() {
            return Err(bad(
                "it ended already; check the clocks of CA and node".into()
            ));
        }
        Ok(svid)
    }

    /// Puts a certificate in use. With `number`, only if that entry still exists; without, an entry
    /// is made.
    pub(super) fn install(
        &self,
        identity: &Identity,
        svid: Svid,
        renewal: Option<Renewal>,
        number: Option<u64>,
    ) -> Result<(), SourceError> {
        let bad = |reason: String| SourceError::BadAnswer {
            source_name: "the certificate source".into(),
            reason,
        };
        let now = self.now();
        let mut entries = self.entries.lock();
        if number.is_some_and(|n| {
            entries
                .by_identity
                .get(identity)
                .is_none_or(|e| e.number != n)
        }) {
            return Ok(()); // Forgotten meanwhile.
        }
        let domain = identity.trust_domain();
        let newest = entries
            .bundle_times
            .get(domain)
            .is_none_or(|t| svid.not_before() >= *t);
        let changed = newest
            && self
                .bundles
                .replace(svid.bundle().clone())
                .map_err(|e| bad(e.to_string()))?;
        if newest {
            entries
                .bundle_times
                .insert(domain.clone(), svid.not_before());
        }
        let end = svid.not_after();
        let credentials = Credentials::new(
            Arc::new(svid),
            Arc::clone(&self.bundles),
            self.options.tls.clone(),
        )
        .map_err(|error| bad(error.to_string()))?;
        let entry = entries.entry(identity, now);
        entry.fetching = false;
        entry.error = None;
        match renewal {
            Some(renewal) => entry.renewal = renewal,
            None => entry.renewal.issued(now, end, rand::random()),
        }
        entry.slot.send_replace(Slot {
            credentials: Some(Arc::new(credentials)),
            refusal: None,
        });
        if changed {
            self.bundles_changed(&mut entries);
        }
        drop(entries);
        self.changed(|changes| changes.certificates += 1);
        Ok(())
    }

    /// After a change of bundles: sessions made before are forgotten (new configurations), and a
    /// certificate of ours that peers with the new bundle would refuse is renewed now.
    pub(super) fn bundles_changed(&self, entries: &mut Entries) {
        let now = self.now();
        for (identity, entry) in &mut entries.by_identity {
            let Some(old) = entry.slot.borrow().credentials.clone() else {
                continue;
            };
            if let Err(error) = old.verify_own_chain(now) {
                info!(%identity, %error, "the trust bundle changed: renewing the certificate now");
                entry.renewal.hurry(now);
            }
            match old.renewed_configurations() {
                Ok(new) => entry
                    .slot
                    .send_modify(|slot| slot.credentials = Some(Arc::new(new))),
                Err(error) => warn!(%identity, %error, "TLS configurations can't be made anew"),
            }
        }
        self.changed(|changes| changes.bundles += 1);
        self.wake.notify_one();
    }

    /// Makes an entry for an identity that has none.
    pub(super) fn hold(&self, identity: &Identity) {
        let now = self.now();
        let mut entries = self.entries.lock();
        let before = entries.created;
        entries.entry(identity, now);
        if entries.created != before {
            self.wake.notify_one();
        }
    }

    /// The credentials of an identity, or what to wait for and since when the identity is held; none if it isn't.
    pub(super) fn current_or_subscribe(
        &self,
        identity: &Identity,
    ) -> Option<Result<Arc<Credentials>, Waiting>> {
        let now = self.now();
        let entries = self.entries.lock();
        let entry = entries.by_identity.get(identity)?;
        if let Some(credentials) = entry.usable(now) {
            return Some(Ok(credentials));
        }
        if entry.slot.borrow().credentials.is_some() {
            // Ended this instant; the task didn't notice yet.
            entry.slot.send_modify(|slot| slot.credentials = None);
        }
        Some(Err((entry.slot.subscribe(), entry.since)))
    }

    pub(super) fn last_error(&self, identity: &Identity) -> Option<Arc<SourceError>> {
        self.entries.lock().by_identity.get(identity)?.error.clone()
    }

    pub(super) fn changed(&self, change: impl FnOnce(&mut Changes)) {
        self.changes.send_modify(change);
    }

    pub(super) fn now(&self) -> SystemTime {
        self.options.clock.now()
    }
}

impl Entries {
    fn entry(&mut self, identity: &Identity, now: SystemTime) -> &mut Entry {
        let created = &mut self.created;
        self.by_identity.entry(identity.clone()).or_insert_with(|| {
            *created += 1;
            Entry::new(*created, now)
        })
    }
}
