//! How long things live: the proxy, a pod in it, a connection in that.
//!
//! A [`Lifetime`] ends in two steps. `stop`: nothing new is accepted, tunnels say GOAWAY, live connections go on.
//! `cut`: whatever still lives is reset. A child's steps follow its parent's.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The life of a thing that has connections.
#[derive(Debug, Clone, Default)]
pub struct Lifetime {
    stop: CancellationToken,
    cut: CancellationToken,
    tasks: TaskTracker,
}

impl Lifetime {
    /// A life of its own.
    pub fn new() -> Self {
        Self::default()
    }

    /// A life within this one, with tasks of its own.
    pub fn child(&self) -> Self {
        Self {
            stop: self.stop.child_token(),
            cut: self.cut.child_token(),
            tasks: TaskTracker::new(),
        }
    }

    /// Runs a task that [`drain`](Self::drain) waits for. The task watches [`cut`](Self::cut) itself.
    pub fn spawn<F>(&self, task: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(task);
    }

    /// What [`drain`](Self::drain) waits for, for tasks on other threads.
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// Done when nothing new shall be accepted.
    pub fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Done when what lives shall be reset.
    pub fn cut(&self) -> &CancellationToken {
        &self.cut
    }

    /// Stops, waits for the tasks until `deadline` has passed, then cuts. Returns how many were cut.
    pub async fn drain(&self, deadline: Duration) -> usize {
        self.stop.cancel();
        self.tasks.close();
        if tokio::time::timeout(deadline, self.tasks.wait())
            .await
            .is_ok()
        {
            return 0;
        }
        let left = self.tasks.len();
        self.cut.cancel();
        self.tasks.wait().await;
        left
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_drain_waits_for_what_lives_and_cuts_it_at_the_deadline() {
        let life = Lifetime::new();
        let cut = Arc::new(AtomicBool::new(false));
        let (token, noted) = (life.cut().clone(), cut.clone());
        life.spawn(async move {
            token.cancelled().await;
            noted.store(true, Ordering::SeqCst);
        });
        life.spawn(tokio::time::sleep(Duration::from_secs(1)));
        let begun = tokio::time::Instant::now();
        assert_eq!(life.drain(Duration::from_secs(30)).await, 1);
        assert_eq!(begun.elapsed(), Duration::from_secs(30));
        assert!(cut.load(Ordering::SeqCst));
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_early_when_everything_has_ended() {
        let life = Lifetime::new();
        life.spawn(tokio::time::sleep(Duration::from_secs(1)));
        let begun = tokio::time::Instant::now();
        assert_eq!(life.drain(Duration::from_secs(30)).await, 0);
        assert_eq!(begun.elapsed(), Duration::from_secs(1));
    }

    #[test]
    fn a_child_ends_with_its_parent_and_not_the_other_way_round() {
        let parent = Lifetime::new();
        let (one, other) = (parent.child(), parent.child());
        one.stop().cancel();
        assert!(!parent.stop().is_cancelled() && !other.stop().is_cancelled());
        parent.stop().cancel();
        assert!(other.stop().is_cancelled() && !other.cut().is_cancelled());
    }
}
