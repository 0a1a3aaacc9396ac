//! What one pod may use, so that no pod starves another's small requests.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit};

use crate::config::Config;

/// The limits of one pod, shared by its tasks.
#[derive(Debug)]
pub struct PodLimits {
    outbound: Arc<Semaphore>,
    inbound: Arc<Semaphore>,
    handshakes: Semaphore,
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub struct ConnectionSlot(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl PodLimits {
    /// The limits that the settings give to every pod.
    pub fn new(config: &Config) -> Self {
        let connections = config.max_connections.min(Semaphore::MAX_PERMITS);
        Self {
            outbound: Arc::new(Semaphore::new(connections)),
            inbound: Arc::new(Semaphore::new(connections)),
            handshakes: Semaphore::new(config.max_handshakes.clamp(1, Semaphore::MAX_PERMITS)),
        }
    }

    /// A place for a connection that the pod makes; none when all are taken. Its own connections can't take the places
    /// of those that others make to it, nor the other way round.
    pub fn outbound(&self) -> Option<ConnectionSlot> {
        self.outbound
            .clone()
            .try_acquire_owned()
            .ok()
            .map(ConnectionSlot)
    }

    /// A place for a connection towards the pod.
    pub fn inbound(&self) -> Option<ConnectionSlot> {
        self.inbound
            .clone()
            .try_acquire_owned()
            .ok()
            .map(ConnectionSlot)
    }

    /// Waits for a turn to make a TLS handshake.
    pub async fn handshake(&self) -> Option<SemaphorePermit<'_>> {
        // The semaphore is never closed.
        self.handshakes.acquire().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pod_that_used_its_places_gets_one_back_when_a_connection_ends() {
        let mut config = Config::defaults();
        config.max_connections = 1;
        let limits = PodLimits::new(&config);
        let slot = limits.outbound();
        assert!(slot.is_some() && limits.outbound().is_none());
        assert!(
            limits.inbound().is_some(),
            "inbound connections have places of their own"
        );
        drop(slot);
        assert!(limits.outbound().is_some());
    }
}
