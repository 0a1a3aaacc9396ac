//! How long to wait between attempts.

use std::time::Duration;

use rand::{Rng, RngExt};

const FIRST: Duration = Duration::from_millis(10);
const LAST: Duration = Duration::from_secs(15);

/// Doubles from 10 ms to 15 s, less up to half at random, so that the proxies of a mesh don't come
/// back all at once.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The wait after one more failure.
    pub fn after_failure(&mut self, random: &mut impl Rng) -> Duration {
        let full = self.next;
        self.next = (full * 2).min(LAST);
        full.mul_f64(random.random_range(0.5..=1.0))
    }

    /// To be called when the other side works.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_from_10_ms_to_15_s_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::default();
        let random = &mut rand::rng();
        let mut full = FIRST;
        for _ in 0..20 {
            let wait = backoff.after_failure(random);
            assert!(wait <= full && wait >= full / 2, "{wait:?} of {full:?}");
            full = (full * 2).min(LAST);
        }
        assert_eq!(full, LAST);
        backoff.reset();
        assert!(backoff.after_failure(random) <= FIRST);
    }
}
