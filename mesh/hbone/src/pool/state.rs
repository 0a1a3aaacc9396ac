//! The pool's decisions, without I/O and without a clock: which tunnel a stream gets, when a new one
//! is made, which ones end.
//!
//! What always holds: a tunnel carries at most its limit of streams; a stream that waits is covered
//! by a connection attempt of its own key (`waiting <= attempts * limit`) or by a slot that will
//! be released; a tunnel that was retired gets no new stream.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::Duration;

use tokio::time::Instant;

/// One tunnel of the pool, never used twice.
pub(crate) type TunnelId = u64;

/// One attempt to make a tunnel.
pub(crate) type AttemptId = u64;

/// `K` is the key, `H` a handle to a tunnel, `W` somebody who waits for one.
#[derive(Debug)]
pub(crate) struct State<K, H, W> {
    keys: HashMap<K, Entry<H, W>>,
    limit: usize,
    idle_timeout: Duration,
    draining: bool,
    next: u64,
}

#[derive(Debug)]
struct Entry<H, W> {
    tunnels: Vec<Tunnel<H>>,
    attempts: Vec<AttemptId>,
    waiting: VecDeque<W>,
}

impl<H, W> Default for Entry<H, W> {
    fn default() -> Self {
        Self {
            tunnels: Vec::new(),
            attempts: Vec::new(),
            waiting: VecDeque::new(),
        }
    }
}

#[derive(Debug)]
struct Tunnel<H> {
    id: TunnelId,
    handle: H,
    streams: usize,
    /// What the peer allows, at most the pool's own limit.
    limit: usize,
    idle_since: Instant,
}

impl<H> Tunnel<H> {
    fn has_room(&self) -> bool {
        self.streams < self.limit
    }
}

/// What to do for a stream.
#[derive(Debug, PartialEq)]
pub(crate) enum Decision<H, W> {
    /// Put it on this tunnel; its slot is taken.
    Use(TunnelId, H, W),
    /// It waits, and a new tunnel has to be made for it.
    Connect(AttemptId),
    /// It waits for an attempt that others started.
    Wait,
    /// The pool is drained.
    Refuse(W),
}

/// Streams that were waiting and got a slot.
pub(crate) type Served<H, W> = Vec<(TunnelId, H, W)>;

/// Figures of the pool, for the admin page and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Different keys with a tunnel or an attempt.
    pub keys: usize,
    /// Tunnels that take new streams.
    pub tunnels: usize,
    /// Streams in those tunnels.
    pub streams: usize,
    /// Tunnels in the making.
    pub connecting: usize,
    /// Streams that wait for one.
    pub waiting: usize,
}

impl<K: Clone + Eq + Hash, H: Clone, W> State<K, H, W> {
    pub(crate) fn new(limit: usize, idle_timeout: Duration) -> Self {
        Self {
            keys: HashMap::new(),
            limit: limit.max(1),
            idle_timeout,
            draining: false,
            next: 0,
        }
    }

    /// A stream wants a tunnel.
    pub(crate) fn open(&mut self, key: &K, waiter: W) -> Decision<H, W> {
        if self.draining {
            return Decision::Refuse(waiter);
        }
        let limit = self.limit;
        let entry = match self.keys.get_mut(key) {
            Some(entry) => entry,
            None => self.keys.entry(key.clone()).or_default(),
        };
        if let Some(tunnel) = entry.tunnels.iter_mut().find(|tunnel| tunnel.has_room()) {
            tunnel.streams += 1;
            return Decision::Use(tunnel.id, tunnel.handle.clone(), waiter);
        }
        entry.waiting.push_back(waiter);
        if entry.waiting.len() <= entry.attempts.len() * limit {
            return Decision::Wait;
        }
        let id = self.next;
        self.next += 1;
        entry.attempts.push(id);
        Decision::Connect(id)
    }

    /// An attempt succeeded. Gives those who waited for it, or the handle back if nobody may use it
    /// any more.
    pub(crate) fn connected(
        &mut self,
        key: &K,
        attempt: AttemptId,
        handle: H,
        now: Instant,
    ) -> Result<(TunnelId, Served<H, W>), H> {
        let Some(entry) = self.keys.get_mut(key) else {
            return Err(handle);
        };
        let Some(index) = entry.attempts.iter().position(|id| *id == attempt) else {
            return Err(handle);
        };
        entry.attempts.swap_remove(index);
        let id = self.next;
        self.next += 1;
        entry.tunnels.push(Tunnel {
            id,
            handle,
            streams: 0,
            limit: self.limit,
            idle_since: now,
        });
        Ok((id, entry.serve()))
    }

    /// The peer allows fewer streams than this side would use. Those that are too many already wait
    /// in HTTP/2 for others to end.
    pub(crate) fn allow(&mut self, key: &K, id: TunnelId, limit: usize) {
        let tunnels = self
            .keys
            .get_mut(key)
            .into_iter()
            .flat_map(|entry| &mut entry.tunnels);
        for tunnel in tunnels.filter(|tunnel| tunnel.id == id) {
            tunnel.limit = limit.clamp(1, self.limit);
        }
    }

    /// An attempt failed. Gives those who fail with it: all that no other attempt covers.
    pub(crate) fn failed(&mut self, key: &K, attempt: AttemptId) -> Vec<W> {
        let Some(entry) = self.keys.get_mut(key) else {
            return Vec::new();
        };
        let Some(index) = entry.attempts.iter().position(|id| *id == attempt) else {
            return Vec::new();
        };
        entry.attempts.swap_remove(index);
        let covered = entry.attempts.len() * self.limit;
        // The oldest have waited for this attempt.
        let failed = entry.waiting.len().saturating_sub(covered);
        let failed = entry.waiting.drain(..failed).collect();
        self.clean(key);
        failed
    }

    /// A stream is over: its slot is free.
    pub(crate) fn released(&mut self, key: &K, id: TunnelId, now: Instant) -> Served<H, W> {
        let Some(entry) = self.keys.get_mut(key) else {
            return Vec::new();
        };
        let Some(tunnel) = entry.tunnels.iter_mut().find(|tunnel| tunnel.id == id) else {
            return Vec::new();
        };
        tunnel.streams -= 1;
        tunnel.idle_since = now;
        entry.serve()
    }

    /// The tunnel takes no more streams: its connection ended or is about to. Gives its handle,
    /// whose drop closes the connection when its last stream is over.
    pub(crate) fn retire(&mut self, key: &K, id: TunnelId) -> Option<H> {
        let entry = self.keys.get_mut(key)?;
        let index = entry.tunnels.iter().position(|tunnel| tunnel.id == id)?;
        let tunnel = entry.tunnels.remove(index);
        self.clean(key);
        Some(tunnel.handle)
    }

    /// Takes out the tunnels that have carried nothing for the idle time.
    pub(crate) fn sweep(&mut self, now: Instant) -> Vec<H> {
        let mut idle = Vec::new();
        let timeout = self.idle_timeout;
        self.keys.retain(|_, entry| {
            for tunnel in entry.tunnels.extract_if(.., |tunnel| {
                tunnel.streams == 0 && now.duration_since(tunnel.idle_since) >= timeout
            }) {
                idle.push(tunnel.handle);
            }
            !entry.is_empty()
        });
        idle
    }

    /// Takes out all tunnels whose key matches, and those who wait for one. Attempts under way end
    /// unused.
    pub(crate) fn forget(&mut self, matches: impl Fn(&K) -> bool) -> (Vec<H>, Vec<W>) {
        let (mut handles, mut waiting) = (Vec::new(), Vec::new());
        self.keys.retain(|key, entry| {
            if !matches(key) {
                return true;
            }
            handles.extend(entry.tunnels.drain(..).map(|tunnel| tunnel.handle));
            waiting.extend(entry.waiting.drain(..));
            false
        });
        (handles, waiting)
    }

    /// Forgets everything and takes nothing new.
    pub(crate) fn drain(&mut self) -> (Vec<H>, Vec<W>) {
        self.draining = true;
        self.forget(|_| true)
    }

    pub(crate) fn stats(&self) -> Stats {
        let mut stats = Stats {
            keys: self.keys.len(),
            ..Stats::default()
        };
        for entry in self.keys.values() {
            stats.tunnels += entry.tunnels.len();
            stats.streams += entry
                .tunnels
                .iter()
                .map(|tunnel| tunnel.streams)
                .sum::<usize>();
            stats.connecting += entry.attempts.len();
            stats.waiting += entry.waiting.len();
        }
        stats
    }

    fn clean(&mut self, key: &K) {
        if self.keys.get(key).is_some_and(Entry::is_empty) {
            self.keys.remove(key);
        }
    }
}

impl<H: Clone, W> Entry<H, W> {
    fn serve(&mut self) -> Served<H, W> {
        let mut served = Vec::new();
        for tunnel in &mut self.tunnels {
            while tunnel.has_room() {
                let Some(waiter) = self.waiting.pop_front() else {
                    return served;
                };
                tunnel.streams += 1;
                served.push((tunnel.id, tunnel.handle.clone(), waiter));
            }
        }
        served
    }
}

impl<H, W> Entry<H, W> {
    fn is_empty(&self) -> bool {
        self.tunnels.is_empty() && self.attempts.is_empty() && self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(300);

    fn state(limit: usize) -> State<&'static str, char, u32> {
        State::new(limit, IDLE)
    }

    #[tokio::test(start_paused = true)]
    async fn openers_share_one_attempt_up_to_the_limit() {
        let mut state = state(2);
        assert_eq!(state.open(&"k", 1), Decision::Connect(0));
        assert_eq!(state.open(&"k", 2), Decision::Wait);
        assert_eq!(state.open(&"k", 3), Decision::Connect(1));
        let now = Instant::now();
        let (first, served) = state.connected(&"k", 0, 'a', now).unwrap();
        assert_eq!(served, [(first, 'a', 1), (first, 'a', 2)]);
        let (second, served) = state.connected(&"k", 1, 'b', now).unwrap();
        assert_eq!(served, [(second, 'b', 3)]);
        assert_eq!(state.open(&"k", 4), Decision::Use(second, 'b', 4));
        assert_eq!(state.open(&"k", 5), Decision::Connect(4));
        assert_eq!(state.stats().streams, 4);
    }

    #[tokio::test(start_paused = true)]
    async fn a_released_slot_goes_to_who_waits() {
        let mut state = state(1);
        state.open(&"k", 1);
        let (id, _) = state.connected(&"k", 0, 'a', Instant::now()).unwrap();
        assert!(matches!(state.open(&"k", 2), Decision::Connect(_)));
        assert_eq!(state.released(&"k", id, Instant::now()), [(id, 'a', 2)]);
        assert_eq!(state.stats().waiting, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_allows_fewer_streams_gets_fewer() {
        let mut state = state(100);
        state.open(&"k", 1);
        let (id, _) = state.connected(&"k", 0, 'a', Instant::now()).unwrap();
        state.allow(&"k", id, 2);
        assert_eq!(state.open(&"k", 2), Decision::Use(id, 'a', 2));
        assert!(matches!(state.open(&"k", 3), Decision::Connect(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_attempt_fails_only_those_that_no_other_covers() {
        let mut state = state(2);
        for waiter in 1..=3 {
            state.open(&"k", waiter);
        }
        assert_eq!(state.failed(&"k", 0), [1]);
        assert_eq!(state.failed(&"k", 1), [2, 3]);
        assert_eq!(state.stats(), Stats::default());
        assert!(state.failed(&"k", 1).is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn keys_do_not_share_tunnels() {
        let mut state = state(100);
        state.open(&"k", 1);
        state.connected(&"k", 0, 'a', Instant::now()).unwrap();
        assert!(matches!(state.open(&"other", 2), Decision::Connect(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_tunnel_ends_after_its_time_and_a_busy_one_does_not() {
        let mut state = state(100);
        state.open(&"k", 1);
        let (id, _) = state.connected(&"k", 0, 'a', Instant::now()).unwrap();
        tokio::time::advance(IDLE * 2).await;
        assert!(state.sweep(Instant::now()).is_empty());
        state.released(&"k", id, Instant::now());
        tokio::time::advance(IDLE - Duration::from_secs(1)).await;
        assert!(state.sweep(Instant::now()).is_empty());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(state.sweep(Instant::now()), ['a']);
        assert_eq!(state.stats(), Stats::default());
        assert_eq!(state.retire(&"k", id), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_forgotten_source_keeps_neither_tunnels_nor_attempts() {
        let mut state = state(1);
        state.open(&"k", 1);
        state.connected(&"k", 0, 'a', Instant::now()).unwrap();
        assert_eq!(state.open(&"k", 2), Decision::Connect(2));
        assert_eq!(state.forget(|key| *key == "k"), (vec!['a'], vec![2]));
        assert_eq!(state.connected(&"k", 2, 'b', Instant::now()), Err('b'));
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_from_before_forgetting_does_not_serve_later_openers() {
        let mut state = state(1);
        assert_eq!(state.open(&"k", 1), Decision::Connect(0));
        state.forget(|_| true);
        assert_eq!(state.open(&"k", 2), Decision::Connect(1));
        assert_eq!(state.connected(&"k", 0, 'a', Instant::now()), Err('a'));
        let (id, served) = state.connected(&"k", 1, 'b', Instant::now()).unwrap();
        assert_eq!(served, [(id, 'b', 2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drained_pool_refuses() {
        let mut state = state(1);
        state.drain();
        assert_eq!(state.open(&"k", 1), Decision::Refuse(1));
    }
}
