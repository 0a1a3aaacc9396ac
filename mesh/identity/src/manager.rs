//! [`CertificateManager`]: a certificate for each identity in use on this node.
//!
//! Owns the credentials. One task (started by [`CertificateManager::new`], ended when the last
//! handle is dropped) decides whom to ask for and runs the requests; everybody else
//! reads. What always holds: nobody gets credentials that have ended; concurrent callers for a new
//! identity share one request; new identities come before renewals; at most
//! [`ManagerOptions::concurrency`] requests are under way.

mod task;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use spiffe::{TrustDomain, X509Bundle};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use self::task::{Shared, Slot};
use crate::bundle::{BundleError, SharedBundles};
use crate::clock::Clock;
use crate::handover::KeyExport;
use crate::identity::Identity;
use crate::renewal::{CertificateState, Renewal, RenewalRules};
use crate::source::{CertificateSource, SourceError};
use crate::tls::{Credentials, TlsOptions};

/// Settings; the defaults are those of a node proxy.
#[derive(Debug, Clone)]
pub struct ManagerOptions {
    /// When to renew.
    pub rules: RenewalRules,
    /// Requests under way at a time: a node's restart doesn't flood the CA.
    pub concurrency: usize,
    /// The longest time for one request.
    pub fetch_timeout: Duration,
    /// How long [`CertificateManager::get`] waits for an identity without a certificate.
    pub wait: Duration,
    /// After an identity is first used, refusals are held to be a CA that doesn't know the new pod
    /// yet. Later ones are passed on to callers at once.
    pub refusal_grace: Duration,
    /// Passed to the TLS configurations.
    pub tls: TlsOptions,
    /// The time by which certificates are judged.
    pub clock: Clock,
}

impl Default for ManagerOptions {
    fn default() -> Self {
        Self {
            rules: RenewalRules::default(),
            concurrency: 16,
            fetch_timeout: Duration::from_secs(10),
            wait: Duration::from_secs(10),
            refusal_grace: Duration::from_secs(5),
            tls: TlsOptions::default(),
            clock: Clock::SYSTEM,
        }
    }
}

/// Why there are no credentials. The connection fails; a later one may succeed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// The CA refuses this identity.
    #[error("no certificate for {identity}: {error}")]
    Refused {
        /// Whose.
        identity: Identity,
        /// The CA's words.
        error: Arc<SourceError>,
    },
    /// None came in time.
    #[error("no certificate for {identity} within {} s{}", .waited.as_secs(), because(.error))]
    TimedOut {
        /// Whose.
        identity: Identity,
        /// How long was waited.
        waited: Duration,
        /// The last failure, if there was one.
        error: Option<Arc<SourceError>>,
    },
    /// No pod with this identity is left.
    #[error("{identity} is not in use any more")]
    Forgotten {
        /// Whose.
        identity: Identity,
    },
}

/// One identity's certificate, without its key.
#[derive(Debug, Clone)]
pub struct CertificateStatus {
    /// Whose.
    pub identity: Identity,
    /// Where it stands.
    pub state: CertificateState,
    /// Serial number of the certificate in use.
    pub serial: Option<String>,
    /// Its start.
    pub not_before: Option<SystemTime>,
    /// Its end.
    pub not_after: Option<SystemTime>,
    /// What is left of it.
    pub remaining: Option<Duration>,
    /// When the CA is asked next.
    pub next_attempt: SystemTime,
    /// The last failure since the certificate was issued.
    pub last_error: Option<String>,
}

/// Counters that move when something changed; compare to see what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// Certificates issued, imported, ended and forgotten.
    pub certificates: u64,
    /// Changes of the trust bundles: whoever holds connections judges their peers again.
    pub bundles: u64,
}

/// A handle; clones share everything.
#[derive(Clone)]
pub struct CertificateManager {
    shared: Arc<Shared>,
    task: Arc<Task>,
}

struct Task {
    handle: AbortHandle,
    /// Its sender is dropped with the task.
    alive: watch::Receiver<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

impl CertificateManager {
    /// Starts the task. `bundles` may hold those of federated domains; that of an identity's own
    /// domain comes with its certificates.
    ///
    /// Must be called within a tokio runtime.
    pub fn new(
        source: Arc<dyn CertificateSource>,
        bundles: Arc<SharedBundles>,
        options: ManagerOptions,
    ) -> Self {
        let shared = Arc::new(Shared {
            options,
            source,
            bundles,
            entries: Mutex::default(),
            changes: watch::Sender::default(),
            wake: Notify::new(),
        });
        let (living, alive) = watch::channel(());
        let run = Arc::clone(&shared).run();
        let handle = tokio::spawn(async move {
            run.await;
            drop(living);
        });
        Self {
            shared,
            task: Arc::new(Task {
                handle: handle.abort_handle(),
                alive,
            }),
        }
    }

    /// Done when the manager's task has panicked, and no certificate is renewed any more. Holds no handle.
    pub fn broken(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut alive = self.task.alive.clone();
        async move { while alive.changed().await.is_ok() {} }
    }

    /// The credentials of an identity that was [prefetched](Self::prefetch); waits for its certificate if there is none.
    ///
    /// # Errors
    ///
    /// When none comes in time, or the CA refuses; at once when no pod has the identity: the connections of one that is
    /// gone don't have its certificate made again.
    pub async fn get(&self, identity: &Identity) -> Result<Arc<Credentials>, CertificateError> {
        let shared = &self.shared;
        let (mut slot, since) = match shared.current_or_subscribe(identity) {
            Some(Ok(credentials)) => return Ok(credentials),
            Some(Err(waiting)) => waiting,
            None => {
                return Err(CertificateError::Forgotten {
                    identity: identity.clone(),
                });
            }
        };
        let deadline = Instant::now() + shared.options.wait;
        let waited = shared.now().duration_since(since).unwrap_or_default();
        let grace = Instant::now() + shared.options.refusal_grace.saturating_sub(waited);
        let usable = |slot: &Slot| slot.credentials.is_some();
        let settled = |slot: &Slot| usable(slot) || slot.refusal.is_some();
        let _ = timeout_at(deadline.min(grace), slot.wait_for(usable)).await;
        let arrived = timeout_at(deadline, slot.wait_for(settled))
            .await
            .map(|slot| slot.map(|slot| slot.clone()));
        let identity = identity.clone();
        match arrived {
            Ok(Ok(Slot {
                credentials: Some(credentials),
                ..
            })) => Ok(credentials),
            Ok(Ok(Slot {
                refusal: Some(error),
                ..
            })) => Err(CertificateError::Refused { identity, error }),
            Ok(_) => Err(CertificateError::Forgotten { identity }),
            Err(_) => Err(CertificateError::TimedOut {
                error: shared.last_error(&identity),
                identity,
                waited: shared.options.wait,
            }),
        }
    }

    /// The credentials of an identity if they are there; asks for nothing.
    pub fn current(&self, identity: &Identity) -> Option<Arc<Credentials>> {
        let entries = self.shared.entries.lock();
        entries.by_identity.get(identity)?.usable(self.shared.now())
    }

    /// Has a certificate made, and renewed until it is [forgotten](Self::forget), without waiting for it: a pod with this
    /// identity came.
    pub fn prefetch(&self, identity: &Identity) {
        self.shared.hold(identity);
    }

    /// The last pod with this identity is gone: its key is dropped, and callers that wait fail.
    pub fn forget(&self, identity: &Identity) {
        let entry = self.shared.entries.lock().by_identity.remove(identity);
        if entry.is_some() {
            info!(%identity, "certificate dropped: no pod uses it");
            self.shared.changed(|changes| changes.certificates += 1);
        }
    }

    /// Whom we trust; federated bundles are added through [`Self::set_bundle`].
    pub fn bundles(&self) -> &Arc<SharedBundles> {
        &self.shared.bundles
    }

    /// Sets the bundle of a federated domain.
    ///
    /// # Errors
    ///
    /// If a root can't be used.
    pub fn set_bundle(&self, bundle: X509Bundle) -> Result<(), BundleError> {
        if self.shared.bundles.replace(bundle)? {
            let mut entries = self.shared.entries.lock();
            self.shared.bundles_changed(&mut entries);
        }
        Ok(())
    }

    /// Trusts nobody of a federated domain any more.
    pub fn withdraw_bundle(&self, domain: &TrustDomain) {
        if self.shared.bundles.withdraw(domain) {
            let mut entries = self.shared.entries.lock();
            self.shared.bundles_changed(&mut entries);
        }
    }

    /// Moves when certificates or bundles change.
    pub fn changes(&self) -> watch::Receiver<Changes> {
        self.shared.changes.subscribe()
    }

    /// Every identity in use, sorted; no keys.
    pub fn status(&self) -> Vec<CertificateStatus> {
        let now = self.shared.now();
        let entries = self.shared.entries.lock();
        let mut list: Vec<_> = entries
            .by_identity
            .iter()
            .map(|(identity, entry)| entry.status(identity, now))
            .collect();
        list.sort_by(|a, b| a.identity.cmp(&b.identity));
        list
    }

    /// The keys in use, for the process that replaces this one.
    pub fn export(&self) -> KeyExport {
        let now = self.shared.now();
        let entries = self.shared.entries.lock();
        let usable: Vec<_> = entries
            .by_identity
            .values()
            .filter_map(|entry| entry.usable(now))
            .collect();
        KeyExport::new(usable.iter().map(|credentials| &**credentials.svid()))
    }

    /// Takes keys over from the process that this one replaces; how many were of use. Certificates
    /// that have ended, or are older than what is here, are dropped.
    pub fn import(&self, export: KeyExport) -> usize {
        let now = self.shared.now();
        let mut count = 0;
        for svid in export.into_svids() {
            let (identity, end) = (svid.identity().clone(), svid.not_after());
            let known = self
                .current(&identity)
                .is_some_and(|c| c.svid().not_after() >= end);
            if end <= now || known {
                continue;
            }
            let renewal = Renewal::imported(now, svid.not_before(), end, rand::random());
            match self.shared.install(&identity, svid, Some(renewal), None) {
                Ok(()) => count += 1,
                Err(error) => warn!(%identity, %error, "a key that was handed over can't be used"),
            }
        }
        self.shared.wake.notify_one();
        count
    }
}

impl std::fmt::Debug for CertificateManager {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.status()).finish()
    }
}

fn because(error: &Option<Arc<SourceError>>) -> String {
    error
        .as_ref()
        .map_or_else(String::new, |error| format!(" (last failure: {error})"))
}
