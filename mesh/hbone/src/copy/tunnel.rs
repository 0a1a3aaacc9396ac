//! TCP to tunnel and back.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::net::TcpStream;

use super::{
    Batch, CopyEnd, CopyOptions, Counters, Ended, LARGEST_BATCH, Side, Watchdog, end_as_reset,
    end_in_order, failed, finish, poll_read, poll_write,
};
use crate::error::{Reason, StreamError};
use crate::memory::Stalling;
use crate::stream::{Reset, Stream};

/// Pieces that one system call writes.
const PIECES: usize = 16;
/// So little in a tunnel's queue is not counted, so that no timer runs for a small message on its way out. It is less than the
/// connection itself costs.
const NEGLIGIBLE: usize = super::SMALLEST_BATCH;

/// Moves bytes both ways between an application's connection and a stream, until both directions
/// are finished or one fails.
// Not an `async fn`, whose arguments would end without a reset if it were never polled.
pub fn copy<'a>(
    tcp: TcpStream,
    stream: Stream,
    options: &'a CopyOptions,
    counters: &'a Counters,
) -> impl Future<Output = CopyEnd> + Send + use<'a> {
    end_as_reset(&tcp);
    let mut join = Join {
        stream,
        options,
        counters,
        batch: Batch::new(),
        pieces: VecDeque::new(),
        held: 0,
        sending: true,
        receiving: Receiving::Open,
        watchdog: Watchdog::new(),
        reader: Stalling::default(),
        tunnel: Stalling::default(),
        left: 0,
        orderly: false,
    };
    async move {
        let mut failed = pin!(failed(&tcp));
        let how = poll_fn(|cx| join.poll(cx, &tcp, failed.as_mut())).await;
        join.end(how, &tcp)
    }
}

struct Join<'a> {
    stream: Stream,
    options: &'a CopyOptions,
    counters: &'a Counters,
    batch: Batch,
    /// Received from the stream and not yet taken by the socket.
    pieces: VecDeque<Bytes>,
    held: usize,
    sending: bool,
    receiving: Receiving,
    watchdog: Watchdog,
    /// Whether the application takes nothing.
    reader: Stalling,
    /// Whether the tunnel takes nothing, and how much it has taken.
    tunnel: Stalling,
    left: u64,
    orderly: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Receiving {
    Open,
    /// The peer has finished; what is held has still to be written.
    Ending,
    Finished,
}

impl Join<'_> {
    fn end(&mut self, how: Ended, tcp: &TcpStream) -> CopyEnd {
        self.orderly = matches!(how, Ended::Finished);
        if self.orderly {
            end_in_order(tcp);
        }
        CopyEnd {
            how,
            forth: self.counters.forth(),
            back: self.counters.back(),
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        tcp: &TcpStream,
        mut failed: Pin<&mut impl Future<Output = io::Error>>,
    ) -> Poll<Ended> {
        let mut moved = false;
        if self.receiving != Receiving::Finished
            && let Poll::Ready(Err(ended)) = self.poll_receive(cx, tcp, &mut moved)
        {
            return Poll::Ready(ended);
        }
        if self.sending
            && let Poll::Ready(Err(ended)) = self.poll_send(cx, tcp, failed.as_mut(), &mut moved)
        {
            return Poll::Ready(ended);
        }
        // Who waits for the stream's bytes learns of a reset from them.
        if !(self.receiving == Receiving::Open && self.has_room())
            && let Poll::Ready(error) = self.stream.poll_reset(cx)
            && let Err(ended) = self.not_wanted(error)
        {
            return Poll::Ready(ended);
        }
        let received = self.receiving == Receiving::Finished;
        if received && !self.sending {
            return Poll::Ready(Ended::Finished);
        }
        if !self.sending
            && let Poll::Ready(error) = failed.poll(cx)
        {
            return Poll::Ready(error.into());
        }
        if let Poll::Ready(side) = self.poll_stalled(cx) {
            return Poll::Ready(Ended::Stalled(side));
        }
        self.watchdog
            .poll(cx, self.options, moved, received || !self.sending)
    }

    /// Ready with the side that takes nothing, when the connection has to end for that.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<Side> {
        let memory = self.options.memory.as_ref();
        let stream = &mut self.stream;
        let queued = stream.queued();
        let left = self.counters.forth() - queued as u64;
        if left != std::mem::replace(&mut self.left, left) {
            self.tunnel.taken();
        }
        let held = (self.held > 0).then_some(|| stream.held());
        if self.reader.poll(cx, memory, held).is_ready() {
            return Poll::Ready(Side::First);
        }
        let queued = (queued > NEGLIGIBLE).then_some(|| queued);
        self.tunnel.poll(cx, memory, queued).map(|()| Side::Second)
    }

    /// TCP to stream.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        tcp: &TcpStream,
        failed: Pin<&mut impl Future<Output = io::Error>>,
        moved: &mut bool,
    ) -> Poll<Result<(), Ended>> {
        loop {
            ready!(tcp.poll_read_ready(cx))?;
            // The capacity comes from the whole tunnel's: it is asked for only when bytes wait, and
            // what was not used is given back.
            let wanted = self.batch.size();
            let capacity = match self.stream.poll_capacity(cx, wanted) {
                Poll::Ready(Ok(capacity)) => capacity,
                Poll::Ready(Err(error)) => return Poll::Ready(self.not_wanted(error)),
                Poll::Pending => return failed.poll(cx).map(|error| Err(error.into())),
            };
            let bytes = match poll_read(tcp, cx, capacity) {
                Poll::Ready(bytes) => bytes?,
                Poll::Pending => {
                    self.stream.give_back();
                    return Poll::Pending;
                }
            };
            if bytes.is_empty() {
                self.sending = false;
                return Poll::Ready(self.stream.finish().map_err(Ended::Stream));
            }
            let read = bytes.len();
            *moved = true;
            self.counters
                .forth
                .fetch_add(read as u64, Ordering::Relaxed);
            self.stream.send(bytes).map_err(Ended::Stream)?;
            if read < capacity {
                self.stream.give_back();
            }
            if read == wanted || capacity == wanted {
                self.batch.adapt(read);
            }
        }
    }

    /// The stream takes no more bytes.
    fn not_wanted(&mut self, error: StreamError) -> Result<(), Ended> {
        if error == StreamError::Reset(Reason(h2::Reason::NO_ERROR)) {
            // RFC 9113, section 8.1: all was answered, and no more is wanted. The same as an
            // application that closes its socket after its last byte. Whether all has arrived is
            // what the bytes end with.
            self.sending = false;
            return Ok(());
        }
        Err(Ended::Stream(error))
    }

    /// Whether more bytes are asked for before those that are held are written.
    fn has_room(&self) -> bool {
        self.held < LARGEST_BATCH && self.pieces.len() < PIECES
    }

    /// Stream to TCP.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        tcp: &TcpStream,
        moved: &mut bool,
    ) -> Poll<Result<(), Ended>> {
        loop {
            while self.receiving == Receiving::Open && self.has_room() {
                match self.stream.poll_data(cx) {
                    Poll::Ready(Some(Ok(bytes))) => {
                        self.held += bytes.len();
                        self.pieces.push_back(bytes);
                    }
                    // What is held goes with the connection, as with TCP's own reset.
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(Ended::Stream(error))),
                    Poll::Ready(None) => self.receiving = Receiving::Ending,
                    Poll::Pending => break,
                }
            }
            if self.pieces.is_empty() {
                if self.receiving == Receiving::Open {
                    return Poll::Pending;
                }
                finish(tcp)?;
                self.receiving = Receiving::Finished;
                return Poll::Ready(Ok(()));
            }
            let written = ready!(self.poll_write(cx, tcp))?;
            *moved = true;
            self.counters
                .back
                .fetch_add(written as u64, Ordering::Relaxed);
            self.reader.taken();
            self.taken(written);
        }
    }

    fn poll_write(&self, cx: &mut Context<'_>, tcp: &TcpStream) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); PIECES];
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            *slice = IoSlice::new(piece);
        }
        poll_write(tcp, cx, &slices[..self.pieces.len()])
    }

    /// The socket has taken so many bytes: the peer may send as many.
    fn taken(&mut self, written: usize) {
        self.held -= written;
        let mut left = written;
        while let Some(piece) = self.pieces.front_mut() {
            if piece.len() > left {
                piece.advance(left);
                break;
            }
            left -= piece.len();
            self.pieces.pop_front();
        }
        self.stream.release(written);
    }
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Tcp(Side::First, error)
    }
}

impl Drop for Join<'_> {
    fn drop(&mut self) {
        if !self.orderly {
            self.stream.reset(Reset::Cancel);
        }
    }
}
