//! What a process still waits for before it is ready.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

/// A set of named conditions; ready when none is pending. Cloning shares the set.
///
/// A condition is pending from the moment it is named, with a reason that a person can act on.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    pending: Arc<RwLock<BTreeMap<&'static str, String>>>,
}

impl Readiness {
    /// Names a condition that does not hold, and why; replaces an earlier reason.
    pub fn pending(&self, condition: &'static str, reason: impl Into<String>) {
        self.pending.write().insert(condition, reason.into());
    }

    /// The condition holds.
    pub fn done(&self, condition: &'static str) {
        self.pending.write().remove(condition);
    }

    /// The condition was named and does not hold.
    pub fn is_pending(&self, condition: &str) -> bool {
        self.pending.read().contains_key(condition)
    }

    /// Nothing is pending.
    pub fn is_ready(&self) -> bool {
        self.pending.read().is_empty()
    }

    /// The page that a readiness probe gets: 200, or 503 with a line for each pending condition.
    pub fn page(&self) -> crate::http::Response {
        let pending = self.pending.read();
        if pending.is_empty() {
            return crate::http::text(::http::StatusCode::OK, "ready\n".to_owned());
        }
        let lines = pending
            .iter()
            .map(|(condition, reason)| format!("{condition}: {reason}\n"));
        crate::http::text(::http::StatusCode::SERVICE_UNAVAILABLE, lines.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_tells_each_pending_condition_until_it_is_done() {
        let readiness = Readiness::default();
        readiness.pending("xds", "no answer from the control plane");
        readiness.pending("agent", "no snapshot");
        assert_eq!(readiness.page().status(), 503);
        readiness.done("xds");
        assert!(!readiness.is_pending("xds") && readiness.is_pending("agent"));
        assert!(!readiness.is_ready());
        readiness.done("agent");
        assert!(readiness.is_ready());
        assert_eq!(readiness.page().status(), 200);
    }
}
