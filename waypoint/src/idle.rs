//! Connections to backends that wait for their next request.
//!
//! Each thread has a pool of its own, whose connections are driven there. Only where the number of a service's connections has
//! a limit, and another one would be beyond it, one of another thread's is used, or closed.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use hyper::client::conn::{http1, http2};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::body::Outgoing;
use crate::connections::Connections;
use crate::upstream::Key;

/// A connection that nobody used for this long is closed.
pub(crate) const IDLE: Duration = Duration::from_secs(60);

pub(crate) enum Sender {
    One(http1::SendRequest<Outgoing>),
    Two(http2::SendRequest<Outgoing>),
}

/// A connection, and of which limit it is.
pub(crate) type Pooled = (Sender, Option<Arc<Connections>>);

struct Idle {
    sender: Sender,
    of: Option<Arc<Connections>>,
    since: Instant,
}

type Lists = HashMap<Key, Vec<Idle>>;
/// In the order in which they are locked, where several are.
type Pools = Mutex<Vec<Weak<Mutex<Lists>>>>;

/// Those of a thread.
pub(crate) struct IdleConnections {
    own: Arc<Mutex<Lists>>,
    all: Arc<Pools>,
}

impl Default for IdleConnections {
    fn default() -> Self {
        Self::among(Arc::default())
    }
}

impl IdleConnections {
    /// Those of another thread.
    pub(crate) fn beside(&self) -> Self {
        Self::among(self.all.clone())
    }

    fn among(all: Arc<Pools>) -> Self {
        let own = Arc::<Mutex<Lists>>::default();
        all.lock().push(Arc::downgrade(&own));
        Self { own, all }
    }

    /// One of this thread's.
    pub(crate) fn checkout(&self, key: &Key) -> Option<Pooled> {
        checkout(&mut self.own.lock(), key)
    }

    /// One of any thread's.
    pub(crate) fn checkout_anywhere(&self, key: &Key) -> Option<Pooled> {
        let pools = self.pools();
        pools
            .iter()
            .find_map(|pool| checkout(&mut pool.lock(), key))
    }

    /// It stays here from now on.
    pub(crate) fn put_back(&self, key: &Key, (sender, of): Pooled) {
        let since = Instant::now();
        let mut own = self.own.lock();
        own.entry(key.clone())
            .or_default()
            .push(Idle { sender, of, since });
    }

    /// Closes those that nobody used for long.
    pub(crate) fn sweep(&self) {
        self.own.lock().retain(|_, list| {
            list.retain(|idle| !idle.is_closed() && idle.since.elapsed() < IDLE);
            !list.is_empty()
        });
    }

    /// Closes the connection of these that has been idle for longest, if there is one.
    pub(crate) fn close_oldest(&self, all: &Arc<Connections>) -> bool {
        let pools = self.pools();
        let mut pools: Vec<MutexGuard<'_, Lists>> = pools.iter().map(|pool| pool.lock()).collect();
        let is_of = |idle: &Idle| idle.of.as_ref().is_some_and(|of| Arc::ptr_eq(of, all));
        // Of HTTP/2 nobody here knows whether it is idle.
        let is_one = |idle: &Idle| matches!(idle.sender, Sender::One(_)) && idle.is_ready();
        let mut oldest: Option<(Instant, usize, Key, usize)> = None;
        for (number, pool) in pools.iter().enumerate() {
            for (key, list) in pool.iter() {
                for (place, idle) in list.iter().enumerate() {
                    let older = oldest
                        .as_ref()
                        .is_none_or(|(since, ..)| idle.since < *since);
                    if older && is_of(idle) && is_one(idle) {
                        oldest = Some((idle.since, number, key.clone(), place));
                    }
                }
            }
        }
        let Some((_, number, key, place)) = oldest else {
            return false;
        };
        let list = pools[number].get_mut(&key);
        list.map(|list| list.swap_remove(place)).is_some()
    }

    fn pools(&self) -> Vec<Arc<Mutex<Lists>>> {
        self.all.lock().iter().filter_map(Weak::upgrade).collect()
    }
}

#[expect(
    clippy::mutable_key_type,
    reason = "what changes in a key's TLS has no part in its hash"
)]
fn checkout(lists: &mut Lists, key: &Key) -> Option<Pooled> {
    let list = lists.get_mut(key)?;
    list.retain(|idle| !idle.is_closed());
    let ready = list.iter().position(Idle::is_ready)?;
    let Idle { sender, of, .. } = list.swap_remove(ready);
    Some((sender, of))
}

impl Idle {
    fn is_closed(&self) -> bool {
        match &self.sender {
            Sender::One(sender) => sender.is_closed(),
            Sender::Two(sender) => sender.is_closed(),
        }
    }

    fn is_ready(&self) -> bool {
        match &self.sender {
            Sender::One(sender) => sender.is_ready(),
            Sender::Two(sender) => sender.is_ready(),
        }
    }
}
