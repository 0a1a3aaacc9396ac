//! How loaded each endpoint of a service is, as seen from here, and which ones fail: what a request's endpoint is chosen by.
//!
//! The cost of an endpoint is the moving average of the time to its answers, in which a slow answer counts at once and is
//! forgotten slowly, times the requests that are under way.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::grpc::GrpcStatus;
use crate::trace::Attempt;
use crate::traffic::Slot;
use crate::traffic_policy::Outlier;
use crate::upload::{Clock, Upload};

/// After this long a slow answer weighs a third.
const DECAY: Duration = Duration::from_secs(10);
/// An endpoint of which no answer is known yet gets one request at first.
const UNKNOWN: f64 = 1e6;
/// One that nobody used for this long is forgotten.
const IDLE: Duration = Duration::from_secs(600);

/// What is known of the endpoints of a service.
#[derive(Debug, Default)]
pub(crate) struct Loads(Mutex<HashMap<SocketAddr, Arc<Load>>>);

#[derive(Debug)]
struct Load {
    under_way: AtomicU32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// In seconds.
    average: f64,
    /// When the average was that.
    answered: Instant,
    /// When something was last asked, or came of it.
    used: Instant,
    failures: u32,
    ejections: u32,
    ejected: Option<Instant>,
}

/// A request that is under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct InFlight {
    load: Arc<Load>,
    clock: Clock,
    /// Its span, where traces are exported.
    span: Option<Attempt>,
    /// Its place among those that may be.
    slot: Slot,
}

impl Loads {
    /// A request begins.
    pub(crate) fn begin(&self, endpoint: SocketAddr, upload: &Upload, slot: Slot) -> InFlight {
        let load = self.load(endpoint);
        load.under_way.fetch_add(1, Ordering::Relaxed);
        load.state.lock().used = Instant::now();
        InFlight {
            load,
            clock: Clock::start(upload),
            span: None,
            slot,
        }
    }

    /// The lesser the better.
    pub(crate) fn cost(&self, endpoint: SocketAddr) -> f64 {
        let Some(load) = self.known(endpoint) else {
            return 0.0;
        };
        let under_way = f64::from(load.under_way.load(Ordering::Relaxed));
        let state = load.state.lock();
        let average = state.average * decay(state.answered.elapsed());
        match average > 0.0 {
            true => average * (under_way + 1.0),
            false => UNKNOWN * under_way,
        }
    }

    /// Requests that are under way there.
    pub(crate) fn under_way(&self, endpoint: SocketAddr) -> u32 {
        let load = self.known(endpoint);
        load.map_or(0, |load| load.under_way.load(Ordering::Relaxed))
    }

    /// Whether it failed too often lately.
    pub(crate) fn is_ejected(&self, endpoint: SocketAddr) -> bool {
        let load = self.known(endpoint);
        load.is_some_and(|load| load.state.lock().is_ejected())
    }

    /// An attempt came to nothing. `endpoints` says how many the service has.
    pub(crate) fn failed(
        &self,
        endpoint: SocketAddr,
        outlier: &Outlier,
        endpoints: impl FnOnce() -> usize,
    ) {
        let load = self.load(endpoint);
        if !load.state.lock().fail(outlier) {
            return;
        }
        let loads: Vec<_> = self.0.lock().values().cloned().collect();
        let ejected = loads.iter().filter(|load| load.state.lock().is_ejected());
        if (ejected.count() + 1) * 100 <= endpoints() * outlier.max_percent {
            load.state.lock().eject(outlier);
        }
    }

    /// The head of an answer is there.
    pub(crate) fn answered(
        &self,
        endpoint: SocketAddr,
        request: &InFlight,
        status: StatusCode,
        outlier: &Outlier,
        endpoints: impl FnOnce() -> usize,
    ) {
        let gateway = [
            StatusCode::BAD_GATEWAY,
            StatusCode::SERVICE_UNAVAILABLE,
            StatusCode::GATEWAY_TIMEOUT,
        ];
        match gateway.contains(&status) {
            true => self.failed(endpoint, outlier, endpoints),
            false => request.load.state.lock().succeed(),
        }
        let took = request.clock.of_backend();
        request.load.state.lock().took(took);
        if let Some(place) = &request.slot.place {
            place.answered(took);
        }
    }

    /// Forgets those that are gone.
    pub(crate) fn sweep(&self) {
        self.0.lock().retain(|_, load| {
            let idle = load.state.lock().used.elapsed() > IDLE;
            !idle || load.under_way.load(Ordering::Relaxed) > 0
        });
    }

    /// Whether nothing is known.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    fn known(&self, endpoint: SocketAddr) -> Option<Arc<Load>> {
        self.0.lock().get(&endpoint).cloned()
    }

    fn load(&self, endpoint: SocketAddr) -> Arc<Load> {
        let mut loads = self.0.lock();
        let load = loads.entry(endpoint).or_insert_with(|| {
            Arc::new(Load {
                under_way: AtomicU32::new(0),
                state: Mutex::new(State {
                    average: 0.0,
                    answered: Instant::now(),
                    used: Instant::now(),
                    failures: 0,
                    ejections: 0,
                    ejected: None,
                }),
            })
        });
        load.clone()
    }
}

impl State {
    fn is_ejected(&self) -> bool {
        self.ejected.is_some_and(|until| until > Instant::now())
    }

    fn succeed(&mut self) {
        // One that fails again soon after its time is no new case.
        if self.failures == 0 && self.ejected.is_none_or(|until| until.elapsed() > DECAY) {
            self.ejections = 0;
        }
        self.failures = 0;
    }

    /// Whether that was once too often.
    fn fail(&mut self, outlier: &Outlier) -> bool {
        self.used = Instant::now();
        self.failures = self.failures.saturating_add(1);
        self.failures >= outlier.failures && !self.is_ejected()
    }

    fn eject(&mut self, outlier: &Outlier) {
        self.failures = 0;
        self.ejections = self.ejections.saturating_add(1);
        let time = outlier.ejection.saturating_mul(self.ejections);
        self.ejected = Some(Instant::now() + time.min(outlier.max_ejection));
    }

    fn took(&mut self, took: Duration) {
        let took = took.as_secs_f64();
        let kept = decay(self.answered.elapsed());
        (self.answered, self.used) = (Instant::now(), Instant::now());
        self.average = match took > self.average * kept {
            true => took,
            false => self.average * kept + took * (1.0 - kept),
        };
    }
}

impl InFlight {
    /// See [`Clock::was_client_slow`].
    pub(crate) fn was_client_slow(&self) -> bool {
        self.clock.was_client_slow()
    }

    /// Has its span end with it.
    pub(crate) fn keep(&mut self, span: Attempt) {
        self.span = Some(span);
    }

    /// What the trailers of the answer say of a call of gRPC.
    pub(crate) fn said(&self, status: GrpcStatus) {
        if let Some(span) = &self.span {
            span.said(status);
        }
    }

    /// Its place, for another attempt.
    pub(crate) fn into_slot(mut self) -> Slot {
        std::mem::take(&mut self.slot)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.load.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

fn decay(elapsed: Duration) -> f64 {
    (-elapsed.as_secs_f64() / DECAY.as_secs_f64()).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);
    const B: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 2);

    async fn answer(loads: &Loads, endpoint: SocketAddr, millis: u64) {
        let request = loads.begin(endpoint, &Upload::default(), Slot::default());
        tokio::time::advance(Duration::from_millis(millis)).await;
        let outlier = Outlier::default();
        loads.answered(endpoint, &request, StatusCode::OK, &outlier, || 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_or_busy_endpoint_costs_more_and_a_slow_answer_is_forgotten() {
        let loads = Loads::default();
        assert_eq!(loads.cost(A), 0.0);
        answer(&loads, A, 10).await;
        answer(&loads, B, 100).await;
        assert!(loads.cost(A) < loads.cost(B));
        // A fast answer after it doesn't hide the slow one, time does.
        answer(&loads, B, 10).await;
        assert!(loads.cost(A) < loads.cost(B));
        let busy: Vec<_> = (0..20)
            .map(|_| loads.begin(A, &Upload::default(), Slot::default()))
            .collect();
        assert!(loads.cost(A) > loads.cost(B));
        drop(busy);
        assert!(loads.cost(A) < loads.cost(B));
        tokio::time::advance(Duration::from_secs(60)).await;
        answer(&loads, B, 10).await;
        answer(&loads, A, 20).await;
        assert!(loads.cost(A) > loads.cost(B));
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_that_fails_in_a_row_gets_nothing_for_a_while() {
        let loads = Loads::default();
        let outlier = Outlier::default();
        let fail = |times| (0..times).for_each(|_| loads.failed(A, &outlier, || 2));
        fail(4);
        answer(&loads, A, 1).await;
        fail(4);
        assert!(!loads.is_ejected(A));
        fail(1);
        assert!(loads.is_ejected(A) && !loads.is_ejected(B));
        tokio::time::advance(outlier.ejection + Duration::from_secs(1)).await;
        assert!(!loads.is_ejected(A));
        fail(5);
        tokio::time::advance(outlier.ejection + Duration::from_secs(1)).await;
        assert!(loads.is_ejected(A), "the second time is longer");
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_the_share_is_ejected_and_an_answer_that_says_so_is_a_failure() {
        let loads = Loads::default();
        let outlier = Outlier {
            failures: 1,
            max_percent: 50,
            ..Outlier::default()
        };
        let fail = |endpoint, endpoints| {
            let request = loads.begin(endpoint, &Upload::default(), Slot::default());
            let status = StatusCode::SERVICE_UNAVAILABLE;
            loads.answered(endpoint, &request, status, &outlier, || endpoints);
        };
        // Half of one is none.
        fail(A, 1);
        assert!(!loads.is_ejected(A));
        fail(A, 3);
        fail(B, 3);
        assert!(loads.is_ejected(A) && !loads.is_ejected(B));
        tokio::time::advance(outlier.ejection + Duration::from_secs(1)).await;
        fail(B, 3);
        assert!(!loads.is_ejected(A) && loads.is_ejected(B));
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_only_fails_is_remembered_as_long_as_it_is_asked() {
        let loads = Loads::default();
        let outlier = Outlier::default();
        for _ in 0..4 {
            loads.failed(A, &outlier, || 1);
            tokio::time::advance(IDLE / 2 + Duration::from_secs(1)).await;
            loads.sweep();
        }
        loads.failed(A, &outlier, || 1);
        assert!(loads.is_ejected(A));
        tokio::time::advance(IDLE + Duration::from_secs(1)).await;
        loads.sweep();
        assert!(loads.is_empty());
    }
}
