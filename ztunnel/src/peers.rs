//! Who may hold what at a pod's HBONE port, by address: peers that have not proved who they are, and tunnels.
//!
//! Anybody in the cluster can connect to the port. What always holds: one address has at most a quarter of the pod's
//! places and of its turns for a handshake, so that three quarters are left to the others.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::descriptors::Held;

/// Connections of strangers that may wait, for each handshake that may go on.
const WAITING: usize = 8;

/// The peers of one pod.
#[derive(Debug)]
pub struct Peers {
    /// Most strangers, and most tunnels.
    most: (usize, usize),
    handshakes: usize,
    turns: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    strangers: usize,
    tunnels: usize,
    by_address: HashMap<IpAddr, Peer>,
}

#[derive(Debug)]
struct Peer {
    strangers: usize,
    tunnels: usize,
    turns: Arc<Semaphore>,
}

/// One address's part.
fn part(all: usize) -> usize {
    (all / 4).max(1)
}

impl Peers {
    /// For so many handshakes at once and so many tunnels.
    pub fn new(handshakes: usize, tunnels: usize) -> Arc<Self> {
        let handshakes = handshakes.clamp(1, Semaphore::MAX_PERMITS);
        Arc::new(Self {
            most: (handshakes.saturating_mul(WAITING), tunnels),
            handshakes,
            turns: Arc::new(Semaphore::new(handshakes)),
            state: Mutex::default(),
        })
    }

    /// A place for a connection that was accepted; none if the address, or all of them, have too many.
    pub fn stranger(self: &Arc<Self>, address: IpAddr, held: Held) -> Option<Stranger> {
        let mut state = self.state.lock();
        let peer = state.peer(address, self.handshakes);
        let too_many = peer.strangers >= part(self.most.0);
        if too_many || state.strangers >= self.most.0 {
            state.forget(address);
            return None;
        }
        state.peer(address, self.handshakes).strangers += 1;
        state.strangers += 1;
        Some(Stranger(Place {
            peers: self.clone(),
            address,
            proved: false,
            _held: held,
        }))
    }
}

impl State {
    fn peer(&mut self, address: IpAddr, handshakes: usize) -> &mut Peer {
        self.by_address.entry(address).or_insert_with(|| Peer {
            strangers: 0,
            tunnels: 0,
            turns: Arc::new(Semaphore::new(part(handshakes))),
        })
    }

    /// Drops the entry of an address that has nothing.
    fn forget(&mut self, address: IpAddr) {
        let nothing = |peer: &Peer| peer.strangers == 0 && peer.tunnels == 0;
        if self.by_address.get(&address).is_some_and(nothing) {
            self.by_address.remove(&address);
        }
    }
}

/// A connection whose peer has not proved who it is.
#[derive(Debug)]
pub struct Stranger(Place);

/// A tunnel.
#[derive(Debug)]
pub struct Tunnel(#[expect(dead_code, reason = "held for its drop")] Place);

/// A turn to make a handshake.
#[derive(Debug)]
pub struct Turn(
    #[expect(dead_code, reason = "held for its drop")] [Option<OwnedSemaphorePermit>; 2],
);

impl Stranger {
    /// Waits for a turn to make the handshake: first among its address's own, then among all.
    pub async fn turn(&self) -> Turn {
        let place = &self.0;
        let own = place.own_turns();
        // Neither is ever closed.
        let own = own.acquire_owned().await.ok();
        let all = place.peers.turns.clone().acquire_owned().await.ok();
        Turn([own, all])
    }

    /// The peer has proved who it is. None: it, or all, have too many tunnels.
    pub fn proved(self) -> Option<Tunnel> {
        let mut place = self.0;
        let peers = place.peers.clone();
        let mut state = peers.state.lock();
        let most = peers.most.1;
        let peer = state.peer(place.address, peers.handshakes);
        if peer.tunnels >= part(most) || state.tunnels >= most {
            // The drop of the place locks again.
            drop(state);
            return None;
        }
        let peer = state.peer(place.address, peers.handshakes);
        peer.strangers -= 1;
        peer.tunnels += 1;
        state.strangers -= 1;
        state.tunnels += 1;
        place.proved = true;
        Some(Tunnel(place))
    }
}

/// What is counted, until it is dropped.
#[derive(Debug)]
struct Place {
    peers: Arc<Peers>,
    address: IpAddr,
    proved: bool,
    _held: Held,
}

impl Place {
    fn own_turns(&self) -> Arc<Semaphore> {
        let mut state = self.peers.state.lock();
        state
            .peer(self.address, self.peers.handshakes)
            .turns
            .clone()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.peers.state.lock();
        let peer = state.peer(self.address, self.peers.handshakes);
        if self.proved {
            peer.tunnels -= 1;
            state.tunnels -= 1;
        } else {
            peer.strangers -= 1;
            state.strangers -= 1;
        }
        state.forget(self.address);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::descriptors::{Descriptors, Share};

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn share() -> Share {
        Descriptors::new(1 << 20).share()
    }

    #[test]
    fn one_address_has_at_most_a_quarter_of_the_places() {
        let (peers, share) = (Peers::new(8, 8), share());
        let arrive = |last| peers.stranger(address(last), share.take(1).unwrap());
        let first: Vec<_> = std::iter::from_fn(|| arrive(1)).take(65).collect();
        assert_eq!(first.len(), 16);
        let others: Vec<_> = (2..=4)
            .flat_map(|last| std::iter::from_fn(move || Some(last)).take(16))
            .map(|last| arrive(last).unwrap())
            .collect();
        assert!(arrive(5).is_none(), "all places are taken");
        drop(first);
        assert!(arrive(5).is_some());
        drop(others);
        assert!(peers.state.lock().by_address.is_empty());
    }

    #[test]
    fn one_address_has_at_most_a_quarter_of_the_tunnels_and_gets_one_back() {
        let (peers, share) = (Peers::new(8, 8), share());
        let arrive = |last| {
            let stranger = peers.stranger(address(last), share.take(1).unwrap());
            stranger.unwrap().proved()
        };
        let mut tunnels: Vec<_> = (0..2).map(|_| arrive(1).unwrap()).collect();
        assert!(arrive(1).is_none());
        tunnels.extend((2..=4).flat_map(|last| [arrive(last).unwrap(), arrive(last).unwrap()]));
        assert!(arrive(5).is_none(), "all are taken");
        tunnels.pop();
        assert!(arrive(5).is_some());
        drop(tunnels);
        assert!(peers.state.lock().by_address.is_empty());
    }

    #[tokio::test]
    async fn handshakes_of_one_address_leave_turns_to_the_others() {
        let (peers, share) = (Peers::new(4, 8), share());
        let arrive = |last| {
            let stranger = peers.stranger(address(last), share.take(1).unwrap());
            stranger.unwrap()
        };
        let (one, again, other) = (arrive(1), arrive(1), arrive(2));
        let first = one.turn().now_or_never();
        assert!(first.is_some());
        assert!(again.turn().now_or_never().is_none());
        assert!(other.turn().now_or_never().is_some());
        drop(first);
        assert!(again.turn().now_or_never().is_some());
    }
}
