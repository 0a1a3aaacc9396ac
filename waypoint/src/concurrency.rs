//! How many requests may be under way to a service, found out by how long its answers take: as long as they take no longer than usual the
//! limit grows, and when they do it shrinks, before the pods are so busy that nothing of what they do is in time.
//!
//! It is the gradient of Netflix's concurrency-limits (`Gradient2Limit`): a window's average is compared with a long one's.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::failure::{Failure, Overload};
use crate::traffic_policy::Adaptive;

/// A window is at least so long, and has at least so many answers.
const WINDOW: Duration = Duration::from_millis(500);
const SAMPLES: u32 = 10;
/// How many windows the long average is of.
const LONG: f64 = 600.0;
/// How much of a new limit comes at once.
const SMOOTHING: f64 = 0.2;

/// Of one service.
#[derive(Debug)]
pub(crate) struct Concurrency {
    rule: Adaptive,
    under_way: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    limit: f64,
    /// In seconds; 0: there was no window yet.
    long: f64,
    windows: u32,
    began: Instant,
    sum: f64,
    count: u32,
    /// The most that were under way in this window.
    most: usize,
}

/// A request that is under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Arc<Concurrency>);

impl Concurrency {
    pub(crate) fn new(rule: Adaptive) -> Self {
        Self {
            rule,
            under_way: AtomicUsize::new(0),
            state: Mutex::new(State {
                // As many as are certainly allowed; it grows within seconds.
                limit: f64::from(rule.min),
                long: 0.0,
                windows: 0,
                began: Instant::now(),
                sum: 0.0,
                count: 0,
                most: 0,
            }),
        }
    }

    pub(crate) fn rule(&self) -> Adaptive {
        self.rule
    }

    /// A place, if there is one.
    pub(crate) fn take(self: &Arc<Self>) -> Result<Place, Failure> {
        let mut state = self.state.lock();
        let under_way = self.under_way.load(Ordering::Relaxed);
        let limit = state.limit();
        if under_way >= limit {
            return Err(Failure::Overloaded(Overload::Concurrency(limit)));
        }
        self.under_way.store(under_way + 1, Ordering::Relaxed);
        state.most = state.most.max(under_way + 1);
        Ok(Place(self.clone()))
    }
}

impl Place {
    /// The head of the answer took so long.
    pub(crate) fn answered(&self, took: Duration) {
        let mut state = self.0.state.lock();
        state.sum += took.as_secs_f64();
        state.count += 1;
        if state.count >= SAMPLES && state.began.elapsed() >= WINDOW {
            state.end(&self.0.rule);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _state = self.0.state.lock();
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

impl State {
    fn limit(&self) -> usize {
        self.limit as usize
    }

    /// A window is over.
    fn end(&mut self, rule: &Adaptive) {
        let short = (self.sum / f64::from(self.count)).max(1e-6);
        let most = std::mem::take(&mut self.most);
        (self.sum, self.count, self.began) = (0.0, 0, Instant::now());
        self.windows = self.windows.saturating_add(1);
        let weight = (1.0 / f64::from(self.windows)).max(2.0 / (LONG + 1.0));
        self.long += (short - self.long) * weight;
        // It was slow for long, and is not any more.
        if self.long > 2.0 * short {
            self.long *= 0.95;
        }
        // What is not used says nothing of whether more could be.
        if most * 2 < self.limit() {
            return;
        }
        let tolerance = f64::from(rule.tolerance_percent) / 100.0;
        let gradient = (tolerance * self.long / short).clamp(0.5, 1.0);
        let wanted = self.limit * gradient + self.limit.sqrt();
        let limit = self.limit + (wanted - self.limit) * SMOOTHING;
        self.limit = limit.clamp(f64::from(rule.min), f64::from(rule.max));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Adaptive = Adaptive {
        min: 5,
        max: 100,
        tolerance_percent: 150,
    };

    /// Windows in which as many requests are under way as may be, or this part of them, and each takes so long.
    async fn windows(all: &Arc<Concurrency>, count: usize, millis: u64, part: usize) {
        for _ in 0..count {
            tokio::time::advance(WINDOW).await;
            let limit = all.state.lock().limit();
            let places: Vec<_> = (0..limit.div_ceil(part))
                .map(|_| all.take().unwrap())
                .collect();
            for _ in 0..SAMPLES {
                places[0].answered(Duration::from_millis(millis));
            }
        }
    }

    fn limit(all: &Arc<Concurrency>) -> usize {
        all.state.lock().limit()
    }

    #[tokio::test(start_paused = true)]
    async fn the_limit_grows_while_answers_take_no_longer_and_shrinks_when_they_do() {
        let all = Arc::new(Concurrency::new(RULE));
        assert_eq!(limit(&all), 5);
        windows(&all, 200, 10, 1).await;
        assert_eq!(limit(&all), 100);
        windows(&all, 20, 100, 1).await;
        let shrunk = limit(&all);
        assert!(shrunk < 30, "{shrunk}");
        windows(&all, 20, 10, 1).await;
        assert!(limit(&all) > shrunk, "{} after {shrunk}", limit(&all));
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_that_is_not_reached_stays_and_one_that_is_refuses() {
        let all = Arc::new(Concurrency::new(RULE));
        windows(&all, 100, 10, 5).await;
        assert_eq!(limit(&all), 5);
        let places: Vec<_> = (0..5).map(|_| all.take().unwrap()).collect();
        let refused = all.take();
        assert!(matches!(
            refused,
            Err(Failure::Overloaded(Overload::Concurrency(5)))
        ));
        drop(places);
        assert!(all.take().is_ok());
    }
}
