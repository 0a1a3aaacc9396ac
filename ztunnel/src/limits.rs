//! What one pod may use, so that no pod starves another's small requests.

use std::net::IpAddr;
use std::sync::Arc;

use seine_telemetry::Lines;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::config::Config;
use crate::connection::Direction;
use crate::descriptors::{Descriptors, Held, Share};
use crate::peers::{Peers, Stranger};

/// The limits of one pod, shared by its tasks.
#[derive(Debug)]
pub struct PodLimits {
    /// The log's lines about tunnels towards it that were refused, or broke.
    pub tunnel_lines: Lines,
    /// The log's lines about connections that were not made, by their flag.
    pub connection_lines: Lines<(Direction, &'static str)>,
    outbound: Arc<Semaphore>,
    inbound: Arc<Semaphore>,
    handshakes: Arc<Semaphore>,
    peers: Arc<Peers>,
    descriptors: Share,
}

/// A connection's place and the descriptor of its own socket; given back when dropped. Its other side is a stream of a
/// tunnel, unless [`PodLimits::both_sockets`] was asked.
#[derive(Debug)]
pub struct ConnectionSlot((OwnedSemaphorePermit, Held, Option<Held>));

impl PodLimits {
    /// The limits that the settings give to every pod.
    pub fn new(config: &Config, descriptors: &Arc<Descriptors>) -> Self {
        let connections = config.max_connections.min(Semaphore::MAX_PERMITS);
        let handshakes = config.max_handshakes.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            tunnel_lines: Lines::new(),
            connection_lines: Lines::new(),
            outbound: Arc::new(Semaphore::new(connections)),
            inbound: Arc::new(Semaphore::new(connections)),
            handshakes: Arc::new(Semaphore::new(handshakes)),
            peers: Peers::new(handshakes, config.max_tunnels),
            descriptors: descriptors.share(),
        }
    }

    /// A place for a connection that the pod makes; none when all are taken. Its own connections can't take the places
    /// of those that others make to it, nor the other way round.
    pub fn outbound(&self) -> Option<ConnectionSlot> {
        self.slot(&self.outbound)
    }

    /// A place for a connection towards the pod.
    pub fn inbound(&self) -> Option<ConnectionSlot> {
        self.slot(&self.inbound)
    }

    fn slot(&self, places: &Arc<Semaphore>) -> Option<ConnectionSlot> {
        let place = places.clone().try_acquire_owned().ok()?;
        let held = self.descriptors.take(1)?;
        Some(ConnectionSlot((place, held, None)))
    }

    /// The same place for a connection with a socket on its other side, too; none when descriptors run out.
    pub fn both_sockets(&self, slot: ConnectionSlot) -> Option<ConnectionSlot> {
        let ConnectionSlot((place, first, _)) = slot;
        Some(ConnectionSlot((
            place,
            first,
            Some(self.descriptors.take(1)?),
        )))
    }

    /// A place for a connection to the pod's HBONE port; none when its address, or all of them, have too many.
    pub fn stranger(&self, address: IpAddr) -> Option<Stranger> {
        self.peers.stranger(address, self.descriptors.take(1)?)
    }

    /// Turns for the handshakes that the pod makes as a client.
    pub fn handshakes(&self) -> &Arc<Semaphore> {
        &self.handshakes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pod_that_used_its_places_gets_one_back_when_a_connection_ends() {
        let mut config = Config::defaults();
        config.max_connections = 1;
        let limits = PodLimits::new(&config, &Descriptors::new(1 << 20));
        let slot = limits.outbound();
        assert!(slot.is_some() && limits.outbound().is_none());
        assert!(
            limits.inbound().is_some(),
            "inbound connections have places of their own"
        );
        drop(slot);
        assert!(limits.outbound().is_some());
    }

    #[tokio::test]
    async fn connections_and_tunnels_take_descriptors() {
        let limits = PodLimits::new(&Config::defaults(), &Descriptors::new(16));
        let slots: Vec<_> = std::iter::from_fn(|| limits.outbound()).take(20).collect();
        assert_eq!(slots.len(), 14);
        assert!(limits.inbound().is_none());
        assert!(limits.stranger([10, 0, 0, 1].into()).is_none());
        drop(slots);
        assert!(limits.stranger([10, 0, 0, 1].into()).is_some());
        let plain = || limits.both_sockets(limits.inbound()?);
        let slots: Vec<_> = std::iter::from_fn(plain).take(20).collect();
        assert_eq!(slots.len(), 7);
    }
}
