//! When a request is sent again, and how many may be: a budget for each service, so that retries never multiply the
//! load of a service that fails.

use std::collections::VecDeque;
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use rand::RngExt;
use tokio::time::Instant;

use crate::failure::Failure;
use crate::rule::Retry;
use crate::traffic_policy::BudgetSize;

/// The back-off doubles up to so many times the first one.
const MAX_BACKOFF: u32 = 10;

impl Retry {
    /// Whether this end of an attempt calls for another one.
    pub(crate) fn wants(&self, result: Result<StatusCode, &Failure>) -> bool {
        match result {
            Ok(status) => self.codes.contains(&status),
            Err(failure) => failure.is_of_backend(),
        }
    }

    /// How long to wait before the attempt after this many: never less than the route says, and not all at once.
    pub(crate) fn wait(&self, attempts: u32) -> Duration {
        let factor = 2_u32.saturating_pow(attempts).min(MAX_BACKOFF);
        let most = self.backoff.saturating_mul(factor);
        self.backoff + most.mul_f64(rand::rng().random_range(0.0..1.0))
    }
}

/// What was sent to a service, and sent again.
#[derive(Debug)]
pub(crate) struct Budget {
    began: Instant,
    /// Of the last seconds, the oldest first; those without a request are not there.
    seconds: Mutex<VecDeque<Second>>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Second {
    number: u64,
    requests: u64,
    retries: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            seconds: Mutex::default(),
        }
    }
}

impl Budget {
    /// Counts a request.
    pub(crate) fn request(&self) {
        self.now(&mut self.seconds.lock()).requests += 1;
    }

    /// Whether one more retry may be made; it is counted if so.
    pub(crate) fn retry(&self, size: &BudgetSize) -> bool {
        let mut seconds = self.seconds.lock();
        let since = self.number().saturating_sub(size.seconds - 1);
        let recent = seconds.iter().filter(|second| second.number >= since);
        let (requests, retries) = recent.fold((0, 0), |(requests, retries), second| {
            (requests + second.requests, retries + second.retries)
        });
        let least = size.min_per_second * size.seconds;
        let allowed = retries < least.max(requests * size.percent / 100);
        self.now(&mut seconds).retries += u64::from(allowed);
        allowed
    }

    /// Whether nothing of what it knows counts any more.
    pub(crate) fn is_idle(&self) -> bool {
        let since = self.number().saturating_sub(BudgetSize::MAX_SECONDS);
        let seconds = self.seconds.lock();
        seconds.back().is_none_or(|last| last.number < since)
    }

    fn number(&self) -> u64 {
        self.began.elapsed().as_secs()
    }

    /// This second's count.
    fn now<'a>(&self, seconds: &'a mut VecDeque<Second>) -> &'a mut Second {
        let number = self.number();
        let old = |second: &Second| second.number + BudgetSize::MAX_SECONDS <= number;
        while seconds.front().is_some_and(old) {
            seconds.pop_front();
        }
        if seconds.back().is_none_or(|last| last.number != number) {
            seconds.push_back(Second {
                number,
                ..Second::default()
            });
        }
        seconds.back_mut().expect("it was just put in")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn retries_are_a_share_of_the_requests_or_some_a_second() {
        let budget = Budget::default();
        let size = BudgetSize::default();
        let spend = |size| (0..10_000).take_while(|_| budget.retry(size)).count();
        assert_eq!(spend(&size), 100);
        (0..1000).for_each(|_| budget.request());
        assert_eq!(spend(&size), 100);
        tokio::time::advance(Duration::from_secs(size.seconds)).await;
        assert_eq!(spend(&size), 100);
        // Those are not counted in a shorter time, and the earlier ones in a longer one.
        tokio::time::advance(Duration::from_secs(5)).await;
        let small = BudgetSize {
            percent: 50,
            min_per_second: 0,
            seconds: 5,
        };
        assert_eq!(spend(&small), 0);
        (0..10).for_each(|_| budget.request());
        assert_eq!(spend(&small), 5);
        let long = BudgetSize {
            seconds: 60,
            ..small
        };
        assert_eq!(spend(&long), 505 - 305);
        assert!(!budget.is_idle());
        tokio::time::advance(Duration::from_secs(62)).await;
        assert!(budget.is_idle());
    }

    #[test]
    fn what_the_route_names_is_tried_again_and_never_too_soon() {
        let retry = Retry {
            codes: vec![StatusCode::SERVICE_UNAVAILABLE],
            attempts: 2,
            backoff: Duration::from_millis(100),
        };
        assert!(retry.wants(Ok(StatusCode::SERVICE_UNAVAILABLE)));
        assert!(!retry.wants(Ok(StatusCode::INTERNAL_SERVER_ERROR)));
        assert!(retry.wants(Err(&Failure::Timeout(Duration::ZERO))));
        assert!(!retry.wants(Err(&Failure::NoRoute)));
        for attempts in 0..40 {
            let wait = retry.wait(attempts);
            assert!(
                (retry.backoff..=retry.backoff * 11).contains(&wait),
                "{wait:?}"
            );
        }
    }
}
