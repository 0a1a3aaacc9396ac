//! One stream of a tunnel: bytes both ways with back pressure, half close, reset.
//!
//! A stream is used by one task at a time. Received bytes hold the sender's credit until
//! [`Stream::release`] gives it back, so that call it only when they have been passed on. Capacity
//! to send is taken from the connection that all streams share, so that hold it only while there
//! is something to send: [`Stream::poll_capacity`] when bytes wait, [`Stream::give_back`] after.
//!
//! This is the only type that knows how bytes travel; a second transport becomes a second variant
//! in here.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::error::{Reason, StreamError};
use crate::pool::Slot;
use crate::queued::{Queue, Queued};
use crate::server::Admitted;

/// Bytes both ways between two proxies, for one application connection.
///
/// Dropping it before both directions are finished resets it.
pub struct Stream {
    send: h2::SendStream<Queued>,
    recv: h2::RecvStream,
    send_open: bool,
    recv_open: bool,
    /// Bytes read by `AsyncRead` of which the reader has not taken all.
    rest: Bytes,
    queue: Queue,
    /// What counts the stream against its connection's limit; after `send` and `recv`, so that
    /// h2 has seen the end of the stream when the place becomes free.
    _place: Place,
}

/// The place that a stream holds on its connection.
#[derive(Debug)]
pub(crate) enum Place {
    Client { _slot: Slot },
    Server { _admitted: Admitted },
}

/// How to end a stream at once, in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reset {
    /// The application's connection was reset or given up.
    Cancel,
    /// A limit or a changed policy ends the connection.
    Refused,
    /// A mistake on this side.
    Internal,
}

impl Reset {
    fn reason(self) -> h2::Reason {
        match self {
            Self::Cancel => h2::Reason::CANCEL,
            Self::Refused => h2::Reason::ENHANCE_YOUR_CALM,
            Self::Internal => h2::Reason::INTERNAL_ERROR,
        }
    }
}

impl Stream {
    pub(crate) fn new(send: h2::SendStream<Queued>, recv: h2::RecvStream, place: Place) -> Self {
        Self {
            send,
            recv,
            send_open: true,
            recv_open: true,
            rest: Bytes::new(),
            queue: Queue::default(),
            _place: place,
        }
    }

    /// The next bytes from the peer; `None` when it has finished its direction.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, StreamError>>> {
        if !self.recv_open {
            return Poll::Ready(None);
        }
        loop {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(bytes)) if bytes.is_empty() && !self.recv.is_end_stream() => {}
                Some(Ok(bytes)) if bytes.is_empty() => {
                    self.recv_open = false;
                    return Poll::Ready(None);
                }
                Some(Ok(bytes)) => return Poll::Ready(Some(Ok(bytes))),
                Some(Err(error)) => {
                    self.recv_open = false;
                    return Poll::Ready(Some(Err(error.into())));
                }
                None => {
                    self.recv_open = false;
                    return Poll::Ready(None);
                }
            }
        }
    }

    /// Lets the peer send `bytes` more: call it when so many have been passed on.
    pub fn release(&mut self, bytes: usize) {
        // Fails only for more than was received, which `poll_data` gave out.
        let released = self.recv.flow_control().release_capacity(bytes);
        debug_assert!(released.is_ok(), "released more than was received");
    }

    /// Bytes that have come and were not released, those among them that were not read yet.
    pub fn held(&mut self) -> usize {
        self.recv.flow_control().used_capacity()
    }

    /// Waits until some of `wanted` bytes may be sent, and says how many (never 0).
    pub fn poll_capacity(
        &mut self,
        cx: &mut Context<'_>,
        wanted: usize,
    ) -> Poll<Result<usize, StreamError>> {
        if !self.send_open {
            return Poll::Ready(Err(StreamError::Closed));
        }
        self.send.reserve_capacity(wanted);
        loop {
            let capacity = self.send.capacity();
            if capacity > 0 {
                return Poll::Ready(Ok(capacity.min(wanted)));
            }
            match ready!(self.send.poll_capacity(cx)) {
                // A wake-up may have been for capacity that is used up by now.
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => return Poll::Ready(Err(self.why_not_sending(cx))),
            }
        }
    }

    /// Gives capacity that was not used back to the tunnel's other streams.
    pub fn give_back(&mut self) {
        if self.send_open {
            self.send.reserve_capacity(0);
        }
    }

    /// Sends bytes. What is more than the capacity at hand waits in memory.
    pub fn send(&mut self, bytes: Bytes) -> Result<(), StreamError> {
        if !self.send_open {
            return Err(StreamError::Closed);
        }
        let bytes = self.queue.add(bytes);
        self.send.send_data(bytes, false).map_err(Into::into)
    }

    /// Bytes that were sent and that the tunnel's own connection has not taken yet.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Finishes this side's direction, after all that was sent.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        if !self.send_open {
            return Ok(());
        }
        self.send_open = false;
        self.send
            .send_data(Queued::nothing(), true)
            .map_err(Into::into)
    }

    /// Ends both directions at once; the peer's application sees a reset. What had been sent and
    /// not yet left is dropped.
    pub fn reset(&mut self, why: Reset) {
        self.send_open = false;
        self.recv_open = false;
        self.send.send_reset(why.reason());
    }

    /// Waits for a reset by the peer or the end of the tunnel. Only needed by who neither reads
    /// nor sends at the moment.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        match ready!(self.send.poll_reset(cx)) {
            Ok(reason) => Poll::Ready(StreamError::Reset(Reason(reason))),
            Err(error) => Poll::Ready(error.into()),
        }
    }

    /// Whether the peer has finished its direction and everything of it was read.
    pub fn is_read_out(&self) -> bool {
        !self.recv_open || self.recv.is_end_stream()
    }

    fn why_not_sending(&mut self, cx: &mut Context<'_>) -> StreamError {
        match self.poll_reset(cx) {
            Poll::Ready(error) => error,
            Poll::Pending => StreamError::Closed,
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("id", &self.recv.stream_id())
            .field("send_open", &self.send_open)
            .field("recv_open", &self.recv_open)
            .finish_non_exhaustive()
    }
}

/// For what stands on byte streams, as the TLS connection within a tunnel through a gateway.
impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.rest.is_empty() {
            match ready!(this.poll_data(cx)) {
                Some(Ok(bytes)) => this.rest = bytes,
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => return Poll::Ready(Ok(())),
            }
        }
        let taken = this.rest.len().min(buf.remaining());
        buf.put_slice(&this.rest[..taken]);
        this.rest.advance(taken);
        this.release(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let capacity = ready!(this.poll_capacity(cx, buf.len()))?;
        this.send(Bytes::copy_from_slice(&buf[..capacity]))?;
        Poll::Ready(Ok(capacity))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().finish().map_err(Into::into))
    }
}
