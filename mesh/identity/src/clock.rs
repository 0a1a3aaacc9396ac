//! The time by which certificates are judged.

use std::time::SystemTime;

use tokio::time::Instant;

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
}
