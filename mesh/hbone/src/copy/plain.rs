//! TCP to TCP, for destinations outside of the mesh.

use std::future::poll_fn;
use std::io::IoSlice;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::net::TcpStream;

use super::{
    Batch, CopyEnd, CopyOptions, Counters, Ended, Side, Watchdog, end_as_reset, end_in_order,
    failed, finish, poll_read, poll_write,
};
use crate::memory::Stalling;

/// Moves bytes both ways between two connections, until both directions are finished or one fails.
// Not an `async fn`, for the same reason as `copy`.
pub fn copy_plain<'a>(
    first: TcpStream,
    second: TcpStream,
    options: &'a CopyOptions,
    counters: &'a Counters,
) -> impl Future<Output = CopyEnd> + Send + use<'a> {
    end_as_reset(&first);
    end_as_reset(&second);
    let mut join = Join {
        forth: Direction::new(Side::First),
        back: Direction::new(Side::Second),
        watchdog: Watchdog::new(),
    };
    async move {
        let (mut first_failed, mut second_failed) = (pin!(failed(&first)), pin!(failed(&second)));
        let how = poll_fn(|cx| {
            if let Poll::Ready(how) = join.poll(cx, &first, &second, options, counters) {
                return Poll::Ready(how);
            }
            if !join.forth.reads()
                && let Poll::Ready(error) = first_failed.as_mut().poll(cx)
            {
                return Poll::Ready(Ended::Tcp(Side::First, error));
            }
            if !join.back.reads()
                && let Poll::Ready(error) = second_failed.as_mut().poll(cx)
            {
                return Poll::Ready(Ended::Tcp(Side::Second, error));
            }
            Poll::Pending
        });
        let how = how.await;
        if matches!(how, Ended::Finished) {
            end_in_order(&first);
            end_in_order(&second);
        }
        CopyEnd {
            how,
            forth: counters.forth(),
            back: counters.back(),
        }
    }
}

struct Join {
    forth: Direction,
    back: Direction,
    watchdog: Watchdog,
}

impl Join {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        first: &TcpStream,
        second: &TcpStream,
        options: &CopyOptions,
        counters: &Counters,
    ) -> Poll<Ended> {
        let mut moved = false;
        let forth = self
            .forth
            .poll(cx, first, second, &counters.forth, &mut moved);
        if let Poll::Ready(Err(ended)) = forth {
            return Poll::Ready(ended);
        }
        let back = self
            .back
            .poll(cx, second, first, &counters.back, &mut moved);
        if let Poll::Ready(Err(ended)) = back {
            return Poll::Ready(ended);
        }
        if self.forth.finished && self.back.finished {
            return Poll::Ready(Ended::Finished);
        }
        for direction in [&mut self.forth, &mut self.back] {
            if direction.poll_stalling(cx, options).is_ready() {
                return Poll::Ready(Ended::Stalled(direction.from.other()));
            }
        }
        self.watchdog.poll(
            cx,
            options,
            moved,
            self.forth.finished || self.back.finished,
        )
    }
}

struct Direction {
    from: Side,
    batch: Batch,
    /// Read and not yet written; without memory while there is none.
    held: Bytes,
    ending: bool,
    finished: bool,
    stalling: Stalling,
}

impl Direction {
    fn new(from: Side) -> Self {
        let held = Bytes::new();
        Self {
            from,
            batch: Batch::new(),
            held,
            ending: false,
            finished: false,
            stalling: Stalling::default(),
        }
    }

    /// Whether it waits for bytes, and so learns of its source's end.
    fn reads(&self) -> bool {
        self.held.is_empty() && !self.ending
    }

    fn poll_stalling(&mut self, cx: &mut Context<'_>, options: &CopyOptions) -> Poll<()> {
        // All of the batch, however little of it is left.
        let all = self.batch.size();
        let held = (!self.held.is_empty()).then_some(|| all);
        self.stalling.poll(cx, options.memory.as_ref(), held)
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        count: &AtomicU64,
        moved: &mut bool,
    ) -> Poll<Result<(), Ended>> {
        let source = self.from;
        let sink = source.other();
        let read_error = |error| Ended::Tcp(source, error);
        let write_error = |error| Ended::Tcp(sink, error);
        while !self.finished {
            if !self.held.is_empty() {
                let piece = [IoSlice::new(&self.held)];
                let written = ready!(poll_write(to, cx, &piece)).map_err(write_error)?;
                self.held.advance(written);
                self.stalling.taken();
                count.fetch_add(written as u64, Ordering::Relaxed);
                *moved = true;
                continue;
            }
            if self.ending {
                finish(to).map_err(write_error)?;
                self.finished = true;
                break;
            }
            self.held = Bytes::new();
            ready!(from.poll_read_ready(cx)).map_err(read_error)?;
            let size = self.batch.size();
            self.held = ready!(poll_read(from, cx, size)).map_err(read_error)?;
            self.batch.adapt(self.held.len());
            self.ending = self.held.is_empty();
        }
        Poll::Ready(Ok(()))
    }
}
