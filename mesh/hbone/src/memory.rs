//! What connections whose readers stall may hold together: an application that takes nothing, one that has not accepted yet,
//! or a tunnel whose other end takes nothing.
//!
//! Flow control bounds what one of them holds, not how many there are. Those that share a [`Memory`], as the connections
//! of one pod do, hold at most its size: beyond it, the one that has stalled longest is ended. Only who takes nothing at
//! all is counted, so that a connection whose bytes flow costs nothing here, however slow it is.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, Sleep};

/// Who takes nothing for so long stalls.
pub(crate) const PATIENCE: Duration = Duration::from_millis(250);

/// A bound for all that share it.
#[derive(Debug)]
pub struct Memory {
    most: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: usize,
    /// In the order in which they stalled. One that isn't here any more has to end.
    stalled: BTreeMap<u64, (usize, Waker)>,
    next: u64,
}

impl Memory {
    /// For so many bytes.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            state: Mutex::default(),
        })
    }

    /// What is held by those that stall.
    pub fn held(&self) -> usize {
        self.state.lock().held
    }

    fn enter(self: &Arc<Self>, bytes: usize, waker: &Waker) -> Stall {
        let mut state = self.state.lock();
        let id = state.next;
        state.next += 1;
        state.held += bytes;
        state.stalled.insert(id, (bytes, waker.clone()));
        state.end_oldest(self.most);
        Stall {
            memory: self.clone(),
            id,
        }
    }
}

impl State {
    fn end_oldest(&mut self, most: usize) {
        while self.held > most
            && let Some((_, (bytes, waker))) = self.stalled.pop_first()
        {
            self.held -= bytes;
            waker.wake();
        }
    }
}

/// One that stalls, until it is dropped.
#[derive(Debug)]
struct Stall {
    memory: Arc<Memory>,
    id: u64,
}

impl Stall {
    /// It holds so much now. False: it has to end.
    fn update(&self, bytes: usize, waker: &Waker) -> bool {
        let mut state = self.memory.state.lock();
        let Some(entry) = state.stalled.get_mut(&self.id) else {
            return false;
        };
        let before = std::mem::replace(&mut entry.0, bytes);
        entry.1.clone_from(waker);
        state.held = state.held - before + bytes;
        state.end_oldest(self.memory.most);
        state.stalled.contains_key(&self.id)
    }
}

impl Drop for Stall {
    fn drop(&mut self) {
        let mut state = self.memory.state.lock();
        if let Some((bytes, _)) = state.stalled.remove(&self.id) {
            state.held -= bytes;
        }
    }
}

/// Watches whether one connection stalls. No timer runs while it holds nothing.
#[derive(Debug, Default)]
pub(crate) struct Stalling {
    timer: Option<Pin<Box<Sleep>>>,
    /// Something was taken since the timer was set.
    taken: bool,
    stall: Option<Stall>,
}

impl Stalling {
    /// Some bytes were taken.
    pub(crate) fn taken(&mut self) {
        self.taken = true;
        self.stall = None;
    }

    /// Ready when the connection has to end. `held` says what it holds; `None`: nothing.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        memory: Option<&Arc<Memory>>,
        held: Option<impl FnMut() -> usize>,
    ) -> Poll<()> {
        let Some(memory) = memory else {
            return Poll::Pending;
        };
        let Some(mut held) = held else {
            // The timer isn't touched: what flows fast holds something at every other moment.
            self.stall = None;
            if let Some(timer) = &mut self.timer
                && timer.as_mut().poll(cx).is_ready()
            {
                self.timer = None;
            }
            return Poll::Pending;
        };
        if let Some(stall) = &self.stall
            && !stall.update(held(), cx.waker())
        {
            return Poll::Ready(());
        }
        let timer = self.timer.get_or_insert_with(|| {
            self.taken = false;
            Box::pin(tokio::time::sleep(PATIENCE))
        });
        while timer.as_mut().poll(cx).is_ready() {
            timer.as_mut().reset(Instant::now() + PATIENCE);
            if !std::mem::take(&mut self.taken) && self.stall.is_none() {
                self.stall = Some(memory.enter(held(), cx.waker()));
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_the_bound_whoever_stalled_first_is_ended() {
        let memory = Memory::new(100);
        let waker = Waker::noop();
        let first = memory.enter(40, waker);
        let second = memory.enter(40, waker);
        assert!(first.update(40, waker) && second.update(60, waker));
        assert_eq!(memory.held(), 100);
        let third = memory.enter(10, waker);
        assert!(!first.update(40, waker), "the first is ended");
        assert!(second.update(60, waker) && third.update(10, waker));
        assert_eq!(memory.held(), 70);
        drop((first, second));
        assert_eq!(memory.held(), 10);
        assert!(!third.update(101, waker), "nobody is left but itself");
        assert_eq!(memory.held(), 0);
    }
}
