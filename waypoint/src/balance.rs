//! How loaded each endpoint is, as seen from here, and which ones fail: what a request's endpoint is chosen by.
//!
//! Of two endpoints drawn at random the one with the lesser cost is taken: the moving average of the time to its
//! answers, in which a slow answer counts at once and is forgotten slowly, times the requests that are under way.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use tokio::time::Instant;

/// After this long a slow answer weighs a third.
const DECAY: Duration = Duration::from_secs(10);
/// An endpoint of which no answer is known yet gets one request at first.
const UNKNOWN: f64 = 1e6;
/// Failures in a row after which an endpoint gets nothing for a while.
const FAILURES: u32 = 5;
/// How long that is, times how often it happened.
const EJECTION: Duration = Duration::from_secs(10);
const MAX_EJECTION: Duration = Duration::from_secs(300);
/// One that nobody used for this long is forgotten.
const IDLE: Duration = Duration::from_secs(600);

/// What is known of all endpoints.
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
    seen: Instant,
    failures: u32,
    ejections: u32,
    ejected: Option<Instant>,
}

/// A request that is under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct InFlight {
    load: Arc<Load>,
    began: Instant,
}

impl Loads {
    /// A request begins.
    pub(crate) fn begin(&self, endpoint: SocketAddr) -> InFlight {
        let load = self.load(endpoint);
        load.under_way.fetch_add(1, Ordering::Relaxed);
        InFlight {
            load,
            began: Instant::now(),
        }
    }

    /// The lesser the better.
    pub(crate) fn cost(&self, endpoint: SocketAddr) -> f64 {
        let Some(load) = self.0.lock().get(&endpoint).cloned() else {
            return 0.0;
        };
        let under_way = f64::from(load.under_way.load(Ordering::Relaxed));
        let state = load.state.lock();
        let average = state.average * decay(state.seen.elapsed());
        match average > 0.0 {
            true => average * (under_way + 1.0),
            false => UNKNOWN * under_way,
        }
    }

    /// Whether it failed too often lately.
    pub(crate) fn is_ejected(&self, endpoint: SocketAddr) -> bool {
        let load = self.0.lock().get(&endpoint).cloned();
        load.is_some_and(|load| {
            let ejected = load.state.lock().ejected;
            ejected.is_some_and(|until| until > Instant::now())
        })
    }

    /// An attempt came to nothing.
    pub(crate) fn failed(&self, endpoint: SocketAddr) {
        self.load(endpoint).result(false);
    }

    /// Forgets those that are gone.
    pub(crate) fn sweep(&self) {
        self.0.lock().retain(|_, load| {
            let idle = load.state.lock().seen.elapsed() > IDLE;
            !idle || load.under_way.load(Ordering::Relaxed) > 0
        });
    }

    fn load(&self, endpoint: SocketAddr) -> Arc<Load> {
        let mut loads = self.0.lock();
        let load = loads.entry(endpoint).or_insert_with(|| {
            Arc::new(Load {
                under_way: AtomicU32::new(0),
                state: Mutex::new(State {
                    average: 0.0,
                    seen: Instant::now(),
                    failures: 0,
                    ejections: 0,
                    ejected: None,
                }),
            })
        });
        load.clone()
    }
}

impl Load {
    fn result(&self, good: bool) {
        let mut state = self.state.lock();
        if good {
            // One that fails again soon after its time is no new case.
            if state.failures == 0 && state.ejected.is_none_or(|until| until.elapsed() > DECAY) {
                state.ejections = 0;
            }
            state.failures = 0;
            return;
        }
        state.failures += 1;
        let now = Instant::now();
        if state.failures >= FAILURES && state.ejected.is_none_or(|until| until <= now) {
            state.failures = 0;
            state.ejections += 1;
            let time = EJECTION.saturating_mul(state.ejections).min(MAX_EJECTION);
            state.ejected = Some(now + time);
        }
    }
}

impl InFlight {
    /// The head of the answer is there.
    pub(crate) fn answered(&self, status: StatusCode) {
        let gateway = [
            StatusCode::BAD_GATEWAY,
            StatusCode::SERVICE_UNAVAILABLE,
            StatusCode::GATEWAY_TIMEOUT,
        ];
        self.load.result(!gateway.contains(&status));
        let took = self.began.elapsed().as_secs_f64();
        let mut state = self.load.state.lock();
        let kept = decay(state.seen.elapsed());
        state.seen = Instant::now();
        state.average = match took > state.average * kept {
            true => took,
            false => state.average * kept + took * (1.0 - kept),
        };
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
        let request = loads.begin(endpoint);
        tokio::time::advance(Duration::from_millis(millis)).await;
        request.answered(StatusCode::OK);
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
        let busy: Vec<_> = (0..20).map(|_| loads.begin(A)).collect();
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
        let fail = |times| (0..times).for_each(|_| loads.failed(A));
        fail(4);
        answer(&loads, A, 1).await;
        fail(4);
        assert!(!loads.is_ejected(A));
        fail(1);
        assert!(loads.is_ejected(A) && !loads.is_ejected(B));
        tokio::time::advance(EJECTION + Duration::from_secs(1)).await;
        assert!(!loads.is_ejected(A));
        fail(5);
        tokio::time::advance(EJECTION + Duration::from_secs(1)).await;
        assert!(loads.is_ejected(A), "the second time is longer");
    }
}
