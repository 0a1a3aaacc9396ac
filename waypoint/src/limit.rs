//! How many requests clients may make to a service: at a steady rate, and a burst of them after a pause.
//!
//! For each value that has a limit of its own the time is remembered at which its requests would all have come at the steady
//! rate (the generic cell rate algorithm of ATM). So many values are remembered at most; those that no place is left for
//! share one limit.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::Duration;

use http::HeaderMap;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::bind::{Bound, First};
use crate::failure::Failure;
use crate::shared::Shared;
use crate::traffic_policy::Rate;

/// Values with a limit of their own.
const MAX_VALUES: usize = 10_000;
/// How often those are looked for whose place can be taken.
const TIDY: Duration = Duration::from_secs(1);

/// One service's limit.
#[derive(Debug)]
pub(crate) struct Limiter {
    rate: Rate,
    state: Mutex<State>,
    /// Values are remembered as hashes: clients choose how long they are, and must not choose which ones collide.
    hasher: RandomState,
}

#[derive(Debug)]
struct State {
    /// When the requests so far would have come at the steady rate.
    due: HashMap<u64, Instant>,
    /// The same for those for which there is no place, and for requests without a value.
    others: Option<Instant>,
    tidied: Option<Instant>,
}

/// Whether a client may make one more request; it is counted if so. A pod that is addressed itself is behind each of its
/// services.
pub(crate) fn admit(shared: &Shared, bound: &Bound, headers: &HeaderMap) -> Result<(), Failure> {
    let also = bound.pod.iter().flat_map(|pod| pod.also.iter());
    let services = also.map(|(service, _)| service);
    for service in std::iter::once(&bound.service).chain(services) {
        let rules = shared.traffic.of(&service.key).rules();
        if let Some(limiter) = &rules.limiter {
            let admitted = limiter.admit(&bound.first, headers);
            admitted.map_err(Failure::Limited)?;
        }
    }
    Ok(())
}

impl Limiter {
    pub(crate) fn new(rate: Rate) -> Self {
        Self {
            rate,
            state: Mutex::new(State {
                due: HashMap::new(),
                others: None,
                tidied: None,
            }),
            hasher: RandomState::new(),
        }
    }

    pub(crate) fn rate(&self) -> &Rate {
        &self.rate
    }

    /// Whether one more request is within the limit; else after what time it would be.
    fn admit(&self, first: &First, headers: &HeaderMap) -> Result<(), Duration> {
        let per = self.rate.per.as_ref();
        let value = per.and_then(|per| per.value(first, headers));
        self.take(value.as_deref())
    }

    fn take(&self, value: Option<&[u8]>) -> Result<(), Duration> {
        let now = Instant::now();
        let value = value.map(|value| self.hasher.hash_one(value));
        let mut state = self.state.lock();
        let value = value.filter(|value| state.has_place(*value, now));
        let before = match value {
            Some(value) => state.due.get(&value).copied(),
            None => state.others,
        };
        let due = before.unwrap_or(now).max(now) + self.rate.every;
        let most = self.rate.every.saturating_mul(self.rate.burst);
        if let Some(wait) = (due - now).checked_sub(most).filter(|wait| !wait.is_zero()) {
            return Err(wait);
        }
        match value {
            Some(value) => drop(state.due.insert(value, due)),
            None => state.others = Some(due),
        }
        Ok(())
    }
}

impl State {
    fn has_place(&mut self, value: u64, now: Instant) -> bool {
        if self.due.len() < MAX_VALUES || self.due.contains_key(&value) {
            return true;
        }
        if self.tidied.is_none_or(|tidied| tidied + TIDY <= now) {
            self.tidied = Some(now);
            // One whose time has come is as one that never asked.
            self.due.retain(|_, due| *due > now);
        }
        self.due.len() < MAX_VALUES
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::advance;

    fn limiter(every: u64, burst: u32) -> Limiter {
        Limiter::new(Rate {
            every: Duration::from_millis(every),
            burst,
            per: None,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_passes_and_then_the_steady_rate() {
        let limiter = limiter(100, 3);
        let passed = || (0..10).filter(|_| limiter.take(None).is_ok()).count();
        assert_eq!(passed(), 3);
        assert_eq!(limiter.take(None), Err(Duration::from_millis(100)));
        advance(Duration::from_millis(40)).await;
        assert_eq!(limiter.take(None), Err(Duration::from_millis(60)));
        advance(Duration::from_millis(60)).await;
        assert_eq!(passed(), 1);
        advance(Duration::from_millis(250)).await;
        assert_eq!(passed(), 2);
        advance(Duration::from_secs(3600)).await;
        assert_eq!(passed(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn each_value_has_a_limit_of_its_own_and_those_without_a_place_share_one() {
        let limiter = limiter(1000, 1);
        let take = |number: usize| limiter.take(Some(number.to_string().as_bytes()));
        for number in 0..MAX_VALUES {
            assert_eq!(take(number), Ok(()));
        }
        assert!(take(0).is_err());
        assert_eq!(take(MAX_VALUES), Ok(()));
        assert!(take(MAX_VALUES + 1).is_err());
        assert_eq!(limiter.state.lock().due.len(), MAX_VALUES);
        // What is forgotten would be allowed anyway.
        advance(Duration::from_secs(2)).await;
        assert_eq!(take(MAX_VALUES + 1), Ok(()));
        assert_eq!(take(MAX_VALUES + 2), Ok(()));
        assert_eq!(limiter.state.lock().due.len(), 2);
    }
}
