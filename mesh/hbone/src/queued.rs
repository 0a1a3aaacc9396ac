//! Bytes that a stream has sent and that have not left for the peer yet.
//!
//! h2 keeps them for as long as the tunnel's own TCP connection takes nothing, and doesn't tell how many they are.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Buf, Bytes};

/// How many bytes of one stream wait in its tunnel.
#[derive(Clone, Debug, Default)]
pub(crate) struct Queue(Arc<AtomicUsize>);

/// Some of them. They are counted until they were written, or dropped with a stream that was reset.
#[derive(Debug)]
pub(crate) struct Queued {
    bytes: Bytes,
    queue: Option<Queue>,
}

impl Queue {
    pub(crate) fn add(&self, bytes: Bytes) -> Queued {
        self.0.fetch_add(bytes.len(), Ordering::Relaxed);
        Queued {
            bytes,
            queue: Some(self.clone()),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Queued {
    /// What only ends a stream.
    pub(crate) const fn nothing() -> Self {
        Self {
            bytes: Bytes::new(),
            queue: None,
        }
    }

    fn left(&self, bytes: usize) {
        if let Some(Queue(queue)) = &self.queue {
            queue.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

impl Buf for Queued {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, written: usize) {
        self.bytes.advance(written);
        self.left(written);
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        self.left(self.bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_until_they_were_written_or_dropped() {
        let queue = Queue::default();
        let mut first = queue.add(Bytes::from_static(b"first"));
        let second = queue.add(Bytes::from_static(b"second"));
        first.advance(2);
        assert_eq!((queue.len(), first.chunk()), (9, b"rst".as_slice()));
        drop(first);
        assert_eq!(queue.len(), 6);
        drop((second, Queued::nothing()));
        assert_eq!(queue.len(), 0);
    }
}
