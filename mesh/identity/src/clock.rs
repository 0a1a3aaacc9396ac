//! The time by which certificates are judged.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

/// A system clock that is set while something waits for it is noticed within this time.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// The system's clock, or tokio's for tests with paused time.
#[derive(Debug, Clone, Copy)]
pub struct Clock(Option<(SystemTime, Instant)>);

impl Clock {
    /// The system's clock.
    pub const SYSTEM: Self = Self(None);

    /// A clock that starts with the system's time and goes on with tokio's, which tests can pause.
    /// Needs a tokio runtime.
    pub fn tokio() -> Self {
        Self(Some((SystemTime::now(), Instant::now())))
    }

    /// Now.
    pub fn now(&self) -> SystemTime {
        match self.0 {
            None => SystemTime::now(),
            Some((start, instant)) => start + instant.elapsed(),
        }
    }

    /// Waits until a time has passed by this clock, which may be set meanwhile.
    pub async fn passed(self, time: SystemTime) {
        while let Ok(left) = time.duration_since(self.now()) {
            // A millisecond more: timers are that coarse.
            let left = left + Duration::from_millis(1);
            tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
        }
    }
}
