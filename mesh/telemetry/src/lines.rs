//! A limit for log lines of which strangers decide how many there are.
//!
//! What they can cause in numbers is counted by a metric, always. Of the lines that tell of it, [`limited!`](crate::limited!)
//! writes the first ones and then few: a disk or a log collector that is flooded helps nobody, and hides the line that matters.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// So many lines of one reason at once...
const BURST: u32 = 50;
/// ...and one more in each of these.
const EVERY: Duration = Duration::from_secs(1);

/// Lines by their reason, each reason with a limit of its own: a flood of one hides no other. There have to be few reasons;
/// a stranger's words are none.
#[derive(Debug)]
pub struct Lines<K = &'static str>(Mutex<BTreeMap<K, Bucket>>);

#[derive(Debug)]
struct Bucket {
    /// When as many lines as at the beginning may be written again.
    full_at: Instant,
    suppressed: u64,
}

impl<K> Default for Lines<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K> Lines<K> {
    /// Without a line yet.
    pub const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }
}

impl<K: Ord> Lines<K> {
    /// Whether a line may be written now, and then how many of its reason were suppressed since the last one.
    pub fn admit(&self, reason: K) -> Option<u64> {
        self.admit_at(reason, Instant::now())
    }

    fn admit_at(&self, reason: K, now: Instant) -> Option<u64> {
        let mut buckets = self.0.lock();
        let bucket = buckets.entry(reason).or_insert(Bucket {
            full_at: now,
            suppressed: 0,
        });
        if bucket.full_at > now + EVERY * (BURST - 1) {
            bucket.suppressed += 1;
            return None;
        }
        bucket.full_at = bucket.full_at.max(now) + EVERY;
        Some(std::mem::take(&mut bucket.suppressed))
    }
}

/// Writes a line if its [`Lines`] admit it: `limited!(LINES, "reason", warn: %peer, "a peer is refused")`. It says how many
/// were `suppressed` before it.
#[macro_export]
macro_rules! limited {
    ($lines:expr, $reason:expr, $level:ident: target: $target:expr, $($line:tt)+) => {
        if let Some(suppressed) = $lines.admit($reason) {
            let suppressed = (suppressed > 0).then_some(suppressed);
            $crate::tracing::$level!(target: $target, suppressed, $($line)+)
        }
    };
    ($lines:expr, $reason:expr, $level:ident: $($line:tt)+) => {
        if let Some(suppressed) = $lines.admit($reason) {
            let suppressed = (suppressed > 0).then_some(suppressed);
            $crate::tracing::$level!(suppressed, $($line)+)
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_of_at_its_beginning_then_each_second_and_by_its_number() {
        let lines = Lines::new();
        let start = Instant::now();
        let written = |reason, count: u32, now| {
            let admitted = (0..count).filter_map(|_| lines.admit_at(reason, now));
            admitted.collect::<Vec<_>>()
        };
        assert_eq!(written("tls", 1000, start), [0; BURST as usize]);
        assert_eq!(written("limit", 1, start), [0], "another reason");
        assert_eq!(written("tls", 10, start + EVERY), [950]);
        assert_eq!(written("tls", 10, start + EVERY * 2), [9]);
        let later = start + EVERY * 1000;
        let mut whole = vec![0; BURST as usize];
        whole[0] = 9;
        assert_eq!(written("tls", 1000, later), whole, "after a silence");
    }
}
