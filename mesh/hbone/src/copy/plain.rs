//! TCP to TCP, for destinations outside of the mesh.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

use super::{
    Batch, CopyEnd, CopyOptions, Counters, Ended, Side, Watchdog, end_as_reset, end_in_order,
    poll_read,
};

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
        first,
        second,
        forth: Direction::new(Side::First),
        back: Direction::new(Side::Second),
        watchdog: Watchdog::new(),
    };
    async move {
        let how = poll_fn(|cx| join.poll(cx, options, counters)).await;
        join.end(how, counters)
    }
}

struct Join {
    first: TcpStream,
    second: TcpStream,
    forth: Direction,
    back: Direction,
    watchdog: Watchdog,
}

impl Join {
    fn end(&mut self, how: Ended, counters: &Counters) -> CopyEnd {
        if matches!(how, Ended::Finished) {
            end_in_order(&self.first);
            end_in_order(&self.second);
        }
        CopyEnd {
            how,
            forth: counters.forth(),
            back: counters.back(),
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        options: &CopyOptions,
        counters: &Counters,
    ) -> Poll<Ended> {
        let (first, second) = (&mut self.first, &mut self.second);
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
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &mut TcpStream,
        count: &AtomicU64,
        moved: &mut bool,
    ) -> Poll<Result<(), Ended>> {
        let source = self.from;
        let sink = if source == Side::First {
            Side::Second
        } else {
            Side::First
        };
        let read_error = |error| Ended::Tcp(source, error);
        let write_error = |error| Ended::Tcp(sink, error);
        while !self.finished {
            if !self.held.is_empty() {
                let written =
                    ready!(Pin::new(&mut *to).poll_write(cx, &self.held)).map_err(write_error)?;
                self.held.advance(written);
                count.fetch_add(written as u64, Ordering::Relaxed);
                *moved = true;
                continue;
            }
            if self.ending {
                ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(write_error)?;
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
