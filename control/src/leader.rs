//! Who of several replicas writes: the holder of a Lease.
//!
//! What always holds: at most one process believes that it leads. A holder stops `renew_deadline`
//! after it *sent* its last good renewal, and somebody else takes the Lease not before `duration`
//! after he first *saw* that renewal, each by his own monotonic clock; so clocks need not agree,
//! and a write that is under way has the difference of the two to end. Every change of the Lease
//! names the resourceVersion that was read: of two that take it at once, one does.
//!
//! Own code because the crates for it trust the wall clocks of both sides to agree, or write without
//! a resourceVersion.

use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{info, warn};

/// The Lease's name.
pub const LEASE: &str = "seine-control-leader";

/// How a Lease is held.
#[derive(Clone, Debug)]
pub struct ElectionOptions {
    /// Where the Lease is.
    pub namespace: String,
    /// Who we are; another after each start, since a process that starts anew knows nothing of
    /// what its forerunner was doing.
    pub identity: String,
    /// Others take the Lease when they saw no renewal for so long.
    pub duration: Duration,
    /// The holder stops so long after its last renewal; clearly less than `duration`.
    pub renew_deadline: Duration,
    /// Between two attempts.
    pub retry: Duration,
}

impl ElectionOptions {
    /// 15, 10 and 2 seconds, as Kubernetes' own components have them.
    pub fn new(namespace: impl Into<String>, pod: &str) -> Self {
        let start: u32 = rand::random();
        Self {
            namespace: namespace.into(),
            identity: format!("{pod}_{start:08x}"),
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// Whether this process leads.
#[derive(Clone, Debug)]
pub struct Leadership(watch::Receiver<Standing>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// There is nobody else.
    Alone,
    /// Somebody else leads, or nobody.
    Follows,
    /// Unless it is renewed before.
    LeadsUntil(Instant),
}

impl Leadership {
    /// For a process without replicas.
    pub fn always() -> Self {
        // The value stays readable without its sender, and never changes.
        Self(watch::channel(Standing::Alone).1)
    }

    #[cfg(test)]
    pub(crate) fn never() -> Self {
        Self(watch::channel(Standing::Follows).1)
    }

    /// At this moment.
    pub fn is_leader(&self) -> bool {
        match *self.0.borrow() {
            Standing::Alone => true,
            Standing::Follows => false,
            Standing::LeadsUntil(end) => Instant::now() < end,
        }
    }

    /// Does `work` while this process leads; drops it, in the middle too, when it doesn't any more.
    pub async fn lead<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        if !self.is_leader() {
            return None;
        }
        tokio::select! {
            biased;
            () = self.clone().lost() => None,
            done = work => Some(done),
        }
    }

    /// Waits until this process leads. Never ready when it can't any more.
    pub async fn acquired(&mut self) {
        while !self.is_leader() {
            if self.0.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    async fn lost(mut self) {
        loop {
            let standing = *self.0.borrow_and_update();
            match standing {
                Standing::Alone => std::future::pending().await,
                Standing::Follows => return,
                Standing::LeadsUntil(end) => tokio::select! {
                    biased;
                    changed = self.0.changed() => if changed.is_err() {
                        return;
                    },
                    () = sleep_until(end) => return,
                },
            }
        }
    }
}

/// Takes part in the election until it is released or dropped. Dropped, the Lease ends by itself.
#[derive(Debug)]
pub struct Election {
    leadership: Leadership,
    release: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
}

impl Election {
    /// Must be called within a tokio runtime.
    pub fn start(client: Client, options: ElectionOptions) -> Self {
        let (standing, receiver) = watch::channel(Standing::Follows);
        let candidate = Candidate {
            leases: Api::namespaced(client, &options.namespace),
            options,
            standing,
            seen: None,
        };
        let (release, released) = oneshot::channel();
        Self {
            leadership: Leadership(receiver),
            release,
            task: tokio::spawn(candidate.run(released)),
        }
    }

    /// For whoever writes.
    pub fn leadership(&self) -> Leadership {
        self.leadership.clone()
    }

    /// Stops leading, and then lets the next one have the Lease at once.
    pub async fn release(self) {
        let Self { release, task, .. } = self;
        let _ = release.send(());
        if let Err(error) = task.await {
            warn!(%error, "the election did not end well");
        }
    }
}

struct Candidate {
    leases: Api<Lease>,
    options: ElectionOptions,
    standing: watch::Sender<Standing>,
    /// The Lease as another one holds it, and when it was first seen like that.
    seen: Option<(Option<String>, Instant)>,
}

impl Candidate {
    async fn run(mut self, mut released: oneshot::Receiver<()>) {
        loop {
            let attempt = timeout(self.patience(), self.attempt());
            let attempted = tokio::select! {
                attempted = attempt => attempted,
                // A drop is no release.
                told = &mut released => {
                    if told.is_ok() {
                        self.give_back().await;
                    }
                    return;
                }
            };
            match attempted {
                Ok(Ok(standing)) => self.stand(standing),
                Ok(Err(error)) => self.failed(&error),
                Err(_) => self.failed(&"the API server doesn't answer"),
            }
            tokio::select! {
                () = sleep(self.options.retry) => {}
                told = &mut released => {
                    if told.is_ok() {
                        self.give_back().await;
                    }
                    return;
                }
            }
        }
    }

    /// An attempt that takes longer is given up; a leader's ends with its time.
    fn patience(&self) -> Duration {
        match *self.standing.borrow() {
            Standing::LeadsUntil(end) => end.saturating_duration_since(Instant::now()),
            Standing::Alone | Standing::Follows => self.options.renew_deadline,
        }
        .max(self.options.retry)
    }

    /// Takes or renews the Lease if it is ours to have.
    async fn attempt(&mut self) -> Result<Standing, kube::Error> {
        // Before the request: the API server can't have it earlier.
        let start = Instant::now();
        let leads = Standing::LeadsUntil(start + self.options.renew_deadline);
        let Some(lease) = self.leases.get_opt(LEASE).await? else {
            let lease = self.ours(Lease::default());
            return match self.leases.create(&PostParams::default(), &lease).await {
                Ok(_) => Ok(leads),
                Err(kube::Error::Api(status)) if status.is_already_exists() => {
                    Ok(Standing::Follows)
                }
                Err(error) => Err(error),
            };
        };
        if !self.may_take(&lease) {
            return Ok(Standing::Follows);
        }
        let lease = self.ours(lease);
        match self
            .leases
            .replace(LEASE, &PostParams::default(), &lease)
            .await
        {
            Ok(_) => Ok(leads),
            Err(kube::Error::Api(status)) if status.is_conflict() => Ok(Standing::Follows),
            Err(error) => Err(error),
        }
    }

    /// It is ours, nobody's, or its holder has not renewed it for its duration.
    fn may_take(&mut self, lease: &Lease) -> bool {
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.unwrap_or_default();
        if holder.is_empty() || holder == self.options.identity {
            self.seen = None;
            return true;
        }
        let version = lease.metadata.resource_version.clone();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => {
                let now = Instant::now();
                self.seen = Some((version, now));
                now
            }
        };
        let theirs = spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(self.options.duration, Duration::from_secs);
        since.elapsed() >= theirs
    }

    /// The Lease with us as its holder.
    fn ours(&self, lease: Lease) -> Lease {
        let old = lease.spec.unwrap_or_default();
        let renewed = old.holder_identity.as_ref() == Some(&self.options.identity);
        let now = Some(MicroTime(Timestamp::now()));
        let seconds = i32::try_from(self.options.duration.as_secs()).unwrap_or(i32::MAX);
        let transitions = old.lease_transitions.unwrap_or_default();
        let spec = LeaseSpec {
            acquire_time: if renewed {
                old.acquire_time
            } else {
                now.clone()
            },
            renew_time: now,
            holder_identity: Some(self.options.identity.clone()),
            lease_duration_seconds: Some(seconds),
            lease_transitions: Some(transitions.saturating_add(i32::from(!renewed))),
            ..LeaseSpec::default()
        };
        Lease {
            metadata: ObjectMeta {
                name: Some(LEASE.into()),
                managed_fields: None,
                ..lease.metadata
            },
            spec: Some(spec),
        }
    }

    fn stand(&self, standing: Standing) {
        let leads = |standing: Standing| matches!(standing, Standing::LeadsUntil(end) if Instant::now() < end);
        let before = self.standing.send_replace(standing);
        match (leads(before), leads(standing)) {
            (false, true) => info!(identity = self.options.identity, "leads from now on"),
            (true, false) => warn!(identity = self.options.identity, "leads no more"),
            _ => {}
        }
    }

    /// A leader leads on until its time is over.
    fn failed(&self, error: &dyn std::fmt::Display) {
        let standing = *self.standing.borrow();
        match standing {
            Standing::LeadsUntil(end) if Instant::now() < end => {
                let seconds_left = (end - Instant::now()).as_secs();
                warn!(lease = LEASE, %error, seconds_left, "the Lease can't be renewed");
            }
            _ => {
                warn!(lease = LEASE, %error, "the Lease can't be taken");
                self.stand(Standing::Follows);
            }
        }
    }

    /// Nobody writes any more when the next one may begin.
    async fn give_back(&mut self) {
        let led = *self.standing.borrow() != Standing::Follows;
        self.standing.send_replace(Standing::Follows);
        if !led {
            return;
        }
        let release = async {
            let Some(mut lease) = self.leases.get_opt(LEASE).await? else {
                return Ok(());
            };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_ref() != Some(&self.options.identity) {
                return Ok(());
            }
            spec.holder_identity = None;
            spec.lease_duration_seconds = Some(1);
            lease.metadata.managed_fields = None;
            self.leases
                .replace(LEASE, &PostParams::default(), &lease)
                .await
                .map(drop)
        };
        match timeout(self.options.retry, release).await {
            Ok(Ok(())) => info!(lease = LEASE, "released"),
            Ok(Err(error)) => warn!(lease = LEASE, %error, "not released; it ends by itself"),
            Err(_) => warn!(lease = LEASE, "not released in time; it ends by itself"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_api::{FakeApi, Gate};

    const PATH: &str =
        "/apis/coordination.k8s.io/v1/namespaces/seine-system/leases/seine-control-leader";

    fn start(api: &FakeApi, name: &str) -> Election {
        Election::start(api.client(), ElectionOptions::new("seine-system", name))
    }

    async fn leads(election: &Election) {
        let mut leadership = election.leadership();
        timeout(Duration::from_secs(120), leadership.acquired())
            .await
            .expect("never leads");
    }

    #[tokio::test(start_paused = true)]
    async fn one_leads_and_its_release_lets_the_next_one_lead_at_once() {
        let api = FakeApi::default();
        let first = start(&api, "a");
        leads(&first).await;
        let second = start(&api, "b");
        sleep(Duration::from_secs(60)).await;
        assert!(first.leadership().is_leader() && !second.leadership().is_leader());
        assert_eq!(api.get(PATH)["spec"]["leaseTransitions"], 1);

        let before = Instant::now();
        let old = first.leadership();
        first.release().await;
        assert!(!old.is_leader());
        leads(&second).await;
        assert!(before.elapsed() < Duration::from_secs(5));
        assert_eq!(api.get(PATH)["spec"]["leaseTransitions"], 2);
    }

    /// Cuts the holder off with `cut`; another leads after it has stopped, and not before.
    async fn is_cut_off(cut: impl FnOnce(&Gate)) {
        let api = FakeApi::default();
        let (client, gate) = api.gated();
        let first = Election::start(client, ElectionOptions::new("seine-system", "a"));
        leads(&first).await;
        let second = start(&api, "b");
        sleep(Duration::from_secs(5)).await;
        let working = first.leadership();
        let work = tokio::spawn(async move {
            assert_eq!(working.lead(std::future::pending::<()>()).await, None);
            Instant::now()
        });
        cut(&gate);
        leads(&second).await;
        let began = Instant::now();
        assert!(!first.leadership().is_leader());
        let stopped = work.await.unwrap();
        assert!(
            began - stopped >= Duration::from_secs(3),
            "{:?}",
            began - stopped
        );

        gate.pass();
        sleep(Duration::from_secs(60)).await;
        assert!(!first.leadership().is_leader() && second.leadership().is_leader());
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_whose_renewals_fail_stops_before_another_begins() {
        is_cut_off(Gate::refuse).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_whose_renewals_hang_stops_before_another_begins() {
        is_cut_off(Gate::hang).await;
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_that_start_at_once_one_leads() {
        let api = FakeApi::default();
        let all: Vec<_> = (0..8).map(|n| start(&api, &format!("r{n}"))).collect();
        for _ in 0..200 {
            sleep(Duration::from_millis(300)).await;
            let leaders = all.iter().filter(|one| one.leadership().is_leader());
            assert!(leaders.count() <= 1);
        }
        assert_eq!(
            all.iter()
                .filter(|one| one.leadership().is_leader())
                .count(),
            1
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_without_a_living_holder_is_taken_after_its_duration() {
        let api = FakeApi::default();
        let gone = start(&api, "gone");
        leads(&gone).await;
        drop(gone);
        let next = start(&api, "next");
        sleep(Duration::from_secs(12)).await;
        assert!(!next.leadership().is_leader());
        leads(&next).await;
    }
}
