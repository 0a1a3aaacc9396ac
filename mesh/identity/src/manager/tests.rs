//! The certificate manager with paused time and a CA in memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use crate::bundle::SharedBundles;
use crate::clock::Clock;
use crate::identity::Identity;
use crate::manager::{CertificateError, CertificateManager, ManagerOptions};
use crate::renewal::CertificateState;
use crate::source::{CertificateSource, SourceError};
use crate::svid::Svid;
use crate::testing::{TestCa, TestLeaf};
use crate::tls::Credentials;

const LIFETIME: Duration = Duration::from_secs(24 * 3600);

#[derive(Clone, Copy, PartialEq)]
enum Mood {
    Good,
    Away,
    Refusing,
    Silent,
}

struct FakeCa {
    ca: Mutex<TestCa>,
    clock: Clock,
    mood: Mutex<Mood>,
    asked: Mutex<Vec<(Identity, Instant)>>,
    /// A request needs a permit to end.
    permits: Semaphore,
    running: Mutex<(usize, usize)>,
}

impl FakeCa {
    fn asked(&self) -> usize {
        self.asked.lock().len()
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock() = mood;
    }

    async fn answer(&self, identity: &Identity) -> Result<Svid, SourceError> {
        self.asked.lock().push((identity.clone(), Instant::now()));
        {
            let mut running = self.running.lock();
            running.0 += 1;
            running.1 = running.1.max(running.0);
        }
        self.permits.acquire().await.unwrap().forget();
        self.running.lock().0 -= 1;
        let mood = *self.mood.lock();
        let (source_name, reason) = ("fake".to_owned(), "test".to_owned());
        match mood {
            Mood::Good => {
                let mut leaf = TestLeaf::new(identity);
                leaf.not_before = self.clock.now();
                leaf.not_after = self.clock.now() + LIFETIME;
                Ok(self.ca.lock().svid_from(&leaf))
            }
            Mood::Away => Err(SourceError::Unavailable {
                source_name,
                reason,
            }),
            Mood::Refusing => Err(SourceError::Refused {
                source_name,
                reason,
            }),
            Mood::Silent => std::future::pending().await,
        }
    }
}

impl CertificateSource for FakeCa {
    fn fetch<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Svid, SourceError>> {
        Box::pin(self.answer(identity))
    }
}

fn set_up() -> (Arc<FakeCa>, CertificateManager) {
    set_up_with(Semaphore::MAX_PERMITS, ManagerOptions::default())
}

fn set_up_with(permits: usize, mut options: ManagerOptions) -> (Arc<FakeCa>, CertificateManager) {
    options.clock = Clock::tokio();
    let ca = Arc::new(FakeCa {
        ca: Mutex::new(TestCa::new("cluster.local")),
        clock: options.clock,
        mood: Mutex::new(Mood::Good),
        asked: Mutex::default(),
        permits: Semaphore::new(permits),
        running: Mutex::default(),
    });
    let source = Arc::clone(&ca);
    (
        ca,
        CertificateManager::new(source, Arc::new(SharedBundles::default()), options),
    )
}

/// The first use of an identity, or a later one: a pod with it comes, and waits.
trait Held {
    async fn held(&self, identity: &Identity) -> Result<Arc<Credentials>, CertificateError>;
}

impl Held for CertificateManager {
    async fn held(&self, identity: &Identity) -> Result<Arc<Credentials>, CertificateError> {
        self.prefetch(identity);
        self.get(identity).await
    }
}

fn id(name: &str) -> Identity {
    format!("spiffe://cluster.local/ns/shop/sa/{name}")
        .parse()
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn concurrent_callers_share_one_request() {
    let (ca, manager) = set_up();
    let calls = (0..20).map(|_| {
        let manager = manager.clone();
        async move {
            manager
                .held(&id("api"))
                .await
                .unwrap()
                .svid()
                .serial()
                .to_owned()
        }
    });
    let mut serials = futures::future::join_all(calls).await;
    serials.dedup();
    assert_eq!((serials.len(), ca.asked()), (1, 1));
    manager.held(&id("api")).await.unwrap();
    assert_eq!(ca.asked(), 1);
    assert_eq!(manager.bundles().load().trust_domains().count(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_is_renewed_at_half_life_and_the_old_one_serves_until_then() {
    let (ca, manager) = set_up();
    let first = manager.held(&id("api")).await.unwrap();
    let mut changes = manager.changes();
    changes.mark_unchanged();
    sleep(LIFETIME.mul_f64(0.44)).await;
    assert_eq!(
        manager.held(&id("api")).await.unwrap().svid().serial(),
        first.svid().serial()
    );
    sleep(LIFETIME.mul_f64(0.12)).await;
    assert_ne!(
        manager.held(&id("api")).await.unwrap().svid().serial(),
        first.svid().serial()
    );
    assert_eq!(ca.asked(), 2);
    assert!(changes.has_changed().unwrap());
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_survived_until_expiry_and_then_connections_fail_until_the_ca_is_back() {
    let (ca, manager) = set_up();
    let first = manager.held(&id("api")).await.unwrap();
    ca.set(Mood::Away);
    sleep(LIFETIME.mul_f64(0.9)).await;
    let status = manager.status().remove(0);
    assert_eq!(status.state, CertificateState::RenewalFailing);
    let left = status.remaining.unwrap();
    assert!(
        left < LIFETIME.mul_f64(0.11) && left > LIFETIME.mul_f64(0.09),
        "{left:?}"
    );
    assert!(status.last_error.unwrap().contains("not available"));
    assert_eq!(
        manager.held(&id("api")).await.unwrap().svid().serial(),
        first.svid().serial()
    );

    sleep(LIFETIME.mul_f64(0.11)).await;
    assert_eq!(manager.status()[0].state, CertificateState::Expired);
    assert!(manager.current(&id("api")).is_none());
    let error = manager.held(&id("api")).await.unwrap_err();
    assert!(
        matches!(error, CertificateError::TimedOut { error: Some(_), .. }),
        "{error}"
    );
    assert!(manager.export().is_empty());

    ca.set(Mood::Good);
    let again = manager.held(&id("api")).await;
    sleep(Duration::from_secs(16)).await;
    assert!(again.is_ok() || manager.current(&id("api")).is_some());
    assert_eq!(manager.status()[0].state, CertificateState::Valid);
    assert_eq!(manager.status()[0].last_error, None);
}

#[tokio::test(start_paused = true)]
async fn failures_are_retried_with_growing_pauses() {
    let (ca, manager) = set_up();
    ca.set(Mood::Away);
    manager.prefetch(&id("api"));
    sleep(Duration::from_secs(120)).await;
    let times: Vec<_> = ca.asked.lock().iter().map(|(_, at)| *at).collect();
    let pauses: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses.len() > 10 && pauses.len() < 30, "{pauses:?}");
    assert!(pauses[0] <= Duration::from_millis(110), "{pauses:?}");
    assert!(
        pauses
            .iter()
            .all(|pause| *pause <= Duration::from_millis(15_010)),
        "{pauses:?}"
    );
    assert!(
        *pauses.last().unwrap() >= Duration::from_millis(7_500),
        "{pauses:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_caller_waits_through_a_short_outage() {
    let (ca, manager) = set_up();
    ca.set(Mood::Away);
    let waiting = tokio::spawn({
        let manager = manager.clone();
        async move { manager.held(&id("api")).await }
    });
    sleep(Duration::from_secs(2)).await;
    ca.set(Mood::Good);
    assert!(waiting.await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_waited_out_for_a_new_pod_and_then_passed_on_at_once() {
    let (ca, manager) = set_up();
    ca.set(Mood::Refusing);
    let start = Instant::now();
    let error = manager.held(&id("api")).await.unwrap_err();
    assert!(matches!(error, CertificateError::Refused { .. }), "{error}");
    assert!(
        start.elapsed() >= Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    let start = Instant::now();
    assert!(manager.held(&id("api")).await.is_err());
    assert_eq!(start.elapsed(), Duration::ZERO);
    ca.set(Mood::Good);
    sleep(Duration::from_secs(16)).await;
    assert!(manager.held(&id("api")).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_silent_ca_is_given_up_and_asked_again() {
    let (ca, manager) = set_up();
    ca.set(Mood::Silent);
    let error = manager.held(&id("api")).await.unwrap_err();
    assert!(
        matches!(error, CertificateError::TimedOut { .. }),
        "{error}"
    );
    ca.set(Mood::Good);
    assert!(manager.held(&id("api")).await.is_ok());
    assert_eq!(ca.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn new_identities_come_before_renewals_and_requests_are_bounded() {
    let options = ManagerOptions {
        concurrency: 2,
        fetch_timeout: LIFETIME,
        ..ManagerOptions::default()
    };
    let (ca, manager) = set_up_with(10, options);
    for n in 0..10 {
        manager.held(&id(&format!("old{n}"))).await.unwrap();
    }
    // No permits are left: at half-life two renewals hang, eight wait.
    sleep(LIFETIME.mul_f64(0.56)).await;
    let before = ca.asked();
    manager.prefetch(&id("new"));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(ca.running.lock().1, 2);
    ca.permits.add_permits(1);
    sleep(Duration::from_millis(1)).await;
    let asked: Vec<_> = ca.asked.lock()[before..]
        .iter()
        .map(|(who, _)| who.clone())
        .collect();
    assert_eq!(asked.first(), Some(&id("new")), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_identity_is_not_renewed_and_an_answer_for_it_is_dropped() {
    let (ca, manager) = set_up_with(1, ManagerOptions::default());
    manager.held(&id("api")).await.unwrap();
    manager.forget(&id("api"));
    assert!(manager.status().is_empty() && manager.current(&id("api")).is_none());
    // What a connection that lives on asks for doesn't bring it back.
    let error = manager.get(&id("api")).await.unwrap_err();
    assert!(
        matches!(error, CertificateError::Forgotten { .. }),
        "{error}"
    );
    assert!(manager.status().is_empty());
    sleep(LIFETIME).await;
    assert_eq!(ca.asked(), 1);

    let waiting = tokio::spawn({
        let manager = manager.clone();
        async move { manager.held(&id("late")).await }
    });
    sleep(Duration::from_secs(1)).await;
    manager.forget(&id("late"));
    let error = waiting.await.unwrap().unwrap_err();
    assert!(
        matches!(error, CertificateError::Forgotten { .. }),
        "{error}"
    );
    ca.permits.add_permits(1);
    sleep(Duration::from_secs(1)).await;
    assert!(manager.status().is_empty());
}

#[tokio::test(start_paused = true)]
async fn keys_that_are_handed_over_serve_a_new_process_without_the_ca() {
    let (_, old) = set_up();
    for name in ["api", "db"] {
        old.held(&id(name)).await.unwrap();
    }
    let bytes = old.export().to_bytes();
    let serial = old.current(&id("api")).unwrap().svid().serial().to_owned();

    let (ca, new) = set_up();
    ca.set(Mood::Away);
    let export = crate::handover::KeyExport::from_bytes(&bytes).unwrap();
    assert_eq!(new.import(export), 2);
    assert_eq!(new.held(&id("api")).await.unwrap().svid().serial(), serial);
    assert!(
        new.bundles()
            .load()
            .bundle(id("api").trust_domain())
            .is_some()
    );
    assert_eq!(ca.asked(), 0);
    let again = crate::handover::KeyExport::from_bytes(&bytes).unwrap();
    assert_eq!(new.import(again), 0);
    ca.set(Mood::Good);
    sleep(LIFETIME.mul_f64(0.56)).await;
    assert_ne!(new.held(&id("api")).await.unwrap().svid().serial(), serial);
}

#[tokio::test(start_paused = true)]
async fn a_new_root_alone_makes_certificates_of_the_old_one_be_renewed() {
    let (ca, manager) = set_up();
    let first = manager.held(&id("api")).await.unwrap();
    let accepted = id("db").into();
    let config = first.client_config(&accepted).unwrap();
    *ca.ca.lock() = TestCa::new("cluster.local");
    sleep(Duration::from_secs(5)).await;
    // The answer for another identity brings the new root.
    manager.held(&id("db")).await.unwrap();
    let mut changes = manager.changes();
    assert_eq!(changes.borrow_and_update().bundles, 2);
    sleep(Duration::from_secs(1)).await;
    let second = manager.held(&id("api")).await.unwrap();
    assert_ne!(first.svid().serial(), second.svid().serial());
    assert!(!Arc::ptr_eq(
        &config,
        &second.client_config(&accepted).unwrap()
    ));
    assert_eq!(ca.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_certificate_for_somebody_else_is_refused() {
    struct Liar(TestCa);
    impl CertificateSource for Liar {
        fn fetch<'a>(&'a self, _: &'a Identity) -> BoxFuture<'a, Result<Svid, SourceError>> {
            Box::pin(async { Ok(self.0.svid("shop", "somebody")) })
        }
    }
    let options = ManagerOptions {
        clock: Clock::tokio(),
        ..ManagerOptions::default()
    };
    let liar = Arc::new(Liar(TestCa::new("cluster.local")));
    let manager = CertificateManager::new(liar, Arc::new(SharedBundles::default()), options);
    let error = manager.held(&id("api")).await.unwrap_err();
    assert!(error.to_string().contains("asked was"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn the_status_names_every_identity_once() {
    let (_, manager) = set_up();
    for name in ["b", "a"] {
        manager.held(&id(name)).await.unwrap();
    }
    let status = manager.status();
    let names: HashMap<_, _> = status
        .iter()
        .map(|s| (s.identity.service_account().to_owned(), s.state))
        .collect();
    assert_eq!(names.len(), 2);
    assert!(status[0].identity < status[1].identity);
    assert!(
        status
            .iter()
            .all(|s| s.serial.is_some() && s.state == CertificateState::Valid)
    );
}
