//! When a request is sent again, and how many may be: a budget for each service, so that retries never multiply the
//! load of a service that fails.

use std::collections::HashMap;
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use rand::RngExt;
use seine_workload::ServiceKey;
use tokio::time::Instant;

use crate::failure::Failure;
use crate::rule::Retry;

/// The Gateway API's defaults of a budget (GEP-3388): a fifth of the requests of the last ten seconds, and so that
/// few requests have retries too, ten for each second.
const SECONDS: u64 = 10;
const PERCENT: u64 = 20;
const MIN_RETRIES: u64 = 10 * SECONDS;
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

/// The budgets of all services.
#[derive(Debug)]
pub(crate) struct Budgets {
    began: Instant,
    windows: Mutex<HashMap<ServiceKey, Window>>,
}

/// Requests and retries of the last seconds.
#[derive(Debug, Default)]
struct Window {
    seconds: [Second; SECONDS as usize],
}

#[derive(Clone, Copy, Debug, Default)]
struct Second {
    number: u64,
    requests: u64,
    retries: u64,
}

impl Default for Budgets {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            windows: Mutex::default(),
        }
    }
}

impl Budgets {
    /// Counts a request to a service.
    pub(crate) fn request(&self, service: &ServiceKey) {
        self.with(service, |second, _| second.requests += 1);
    }

    /// Whether one more retry may be made; it is counted if so.
    pub(crate) fn retry(&self, service: &ServiceKey) -> bool {
        self.with(service, |second, (requests, retries)| {
            let allowed = retries < MIN_RETRIES.max(requests * PERCENT / 100);
            second.retries += u64::from(allowed);
            allowed
        })
    }

    fn with<T>(&self, service: &ServiceKey, act: impl FnOnce(&mut Second, (u64, u64)) -> T) -> T {
        let now = self.began.elapsed().as_secs();
        let mut windows = self.windows.lock();
        if !windows.contains_key(service) {
            windows.insert(service.clone(), Window::default());
        }
        let window = windows.get_mut(service).expect("it was just put in");
        let recent = window.seconds.iter();
        let recent = recent.filter(|second| second.number + SECONDS > now);
        let sums = recent.fold((0, 0), |(requests, retries), second| {
            (requests + second.requests, retries + second.retries)
        });
        let second = &mut window.seconds[(now % SECONDS) as usize];
        if second.number != now {
            *second = Second {
                number: now,
                ..Second::default()
            };
        }
        act(second, sums)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn web() -> ServiceKey {
        ServiceKey {
            namespace: "shop".into(),
            hostname: "web".into(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn retries_are_a_fifth_of_the_requests_or_ten_a_second() {
        let budgets = Budgets::default();
        let spend = || (0..10_000).take_while(|_| budgets.retry(&web())).count();
        assert_eq!(spend(), 100);
        (0..1000).for_each(|_| budgets.request(&web()));
        assert_eq!(spend(), 100);
        // Of another service.
        let other = ServiceKey {
            hostname: "other".into(),
            ..web()
        };
        assert!(budgets.retry(&other));
        tokio::time::advance(Duration::from_secs(SECONDS + 1)).await;
        assert_eq!(spend(), 100);
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
