//! File descriptors: one number for the whole process, which all pods share.
//!
//! What is counted is what strangers and applications can ask for: one for each socket of a connection, one for a tunnel. Listeners,
//! resolvers and the control plane live from what is kept in reserve. While there are plenty a pod may have as many as
//! it likes; when they run out, only a pod that has less than its fair share gets more.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::{info, warn};

/// Raises the process's limit as far as it may go: the usual 1,024 were made for programs that use select(2).
pub fn raise_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        Ok((soft, hard))
    });
    match raised {
        Ok((soft, hard)) => info!(was = soft, limit = hard, "file descriptors"),
        Err(error) => warn!(%error, "the limit of file descriptors stays as it is"),
    }
}

/// Those of the process.
#[derive(Debug)]
pub struct Descriptors {
    most: usize,
    held: AtomicUsize,
    pods: AtomicUsize,
}

impl Descriptors {
    /// As many as the process may have now.
    pub fn of_process() -> io::Result<Arc<Self>> {
        let (soft, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
        Ok(Self::new(usize::try_from(soft).unwrap_or(usize::MAX)))
    }

    /// So many, of which an eighth stays in reserve.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            most: limit - limit / 8,
            held: AtomicUsize::new(0),
            pods: AtomicUsize::new(0),
        })
    }

    /// The share of one more pod.
    pub fn share(self: &Arc<Self>) -> Share {
        self.pods.fetch_add(1, Ordering::Relaxed);
        Share(Arc::new(Part {
            all: self.clone(),
            held: AtomicUsize::new(0),
        }))
    }
}

/// What one pod has of them.
#[derive(Debug)]
pub struct Share(Arc<Part>);

#[derive(Debug)]
struct Part {
    all: Arc<Descriptors>,
    held: AtomicUsize,
}

impl Drop for Part {
    fn drop(&mut self) {
        self.all.pods.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Some descriptors, given back when dropped.
#[derive(Debug)]
pub struct Held {
    part: Arc<Part>,
    count: usize,
}

impl Share {
    /// Descriptors for something new; none when the process, or the pod, has too many already.
    pub fn take(&self, count: usize) -> Option<Held> {
        let part = &self.0;
        let all = &part.all;
        // Given back by the drop if they are too many.
        let held = Held {
            part: part.clone(),
            count,
        };
        let of_all = all.held.fetch_add(count, Ordering::Relaxed) + count;
        let of_pod = part.held.fetch_add(count, Ordering::Relaxed) + count;
        let plenty = of_all <= all.most / 4 * 3;
        let fair = all.most / all.pods.load(Ordering::Relaxed).max(1);
        (plenty || (of_pod <= fair && of_all <= all.most)).then_some(held)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.part.held.fetch_sub(self.count, Ordering::Relaxed);
        self.part.all.held.fetch_sub(self.count, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_the_limit_only_a_pod_below_its_share_gets_more() {
        let descriptors = Descriptors::new(1000);
        let (greedy, modest) = (descriptors.share(), descriptors.share());
        let mut held = Vec::new();
        while let Some(more) = greedy.take(2) {
            held.push(more);
            assert!(held.len() <= 500, "nothing stops it");
        }
        assert!(held.len() >= 300, "plenty were there: {}", held.len());
        let more: Vec<_> = std::iter::from_fn(|| modest.take(2)).take(100).collect();
        assert!(
            more.len() >= 50,
            "the other's share is left: {}",
            more.len()
        );
        drop((held, more));
        assert!(greedy.take(2).is_some());
        assert_eq!(descriptors.held.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_pod_that_goes_leaves_its_share_to_the_others() {
        let descriptors = Descriptors::new(1000);
        let (one, other) = (descriptors.share(), descriptors.share());
        let held: Vec<_> = std::iter::from_fn(|| one.take(2)).collect();
        assert!(one.take(2).is_none());
        drop(other);
        assert!(one.take(2).is_some());
        drop(held);
    }

    #[test]
    fn the_soft_limit_is_raised_to_the_hard_one() {
        raise_limit();
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        assert_eq!(soft, hard);
    }
}
