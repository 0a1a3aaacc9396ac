//! Saying what goes on, and waiting for what takes effect later.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Says what comes now, with the seconds since the first one.
pub fn step(what: impl std::fmt::Display) {
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    let begun = BEGUN.get_or_init(Instant::now);
    println!("  {:4} s  {what}", begun.elapsed().as_secs());
}

/// Asks until there is an answer, for at most so many seconds. An error of `ask` may be about to end; the
/// last one is told when time is up.
pub fn within<T>(
    seconds: u64,
    what: &str,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        let error = match ask() {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => None,
            Err(error) => Some(error),
        };
        if Instant::now() >= deadline {
            let what = format!("waited {seconds} s in vain until {what}");
            match error {
                Some(error) => return Err(error).context(what),
                None => bail!(what),
            }
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
