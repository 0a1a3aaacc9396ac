//! Moving the bytes of a connection: the hot path.
//!
//! [`copy()`] joins an application's TCP connection and a [`Stream`]; [`copy_plain`] joins two TCP
//! connections. Each is one task, so that a connection's two directions share their wake-ups.
//!
//! What always holds: a connection that is idle holds no buffer; each direction holds one batch
//! beyond what the flow control of its two sides holds; received bytes are given back to the
//! sender's window only when the other side's socket has taken them; an orderly end (FIN,
//! END_STREAM) passes as such and in its direction only, everything else ends both directions as a
//! reset (RST, RST_STREAM), also while bytes wait for a side that takes none. Dropping the future resets both sides, too: that is how a connection is
//! cut. So does the end of the process, even by SIGKILL: an answer that was cut off never looks
//! like a whole one.

mod plain;
mod tunnel;

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

pub use self::plain::copy_plain;
pub use self::tunnel::copy;
use crate::error::{Fault, StreamError};
use crate::memory::Memory;
#[cfg(doc)]
use crate::stream::Stream;

/// Most bytes that one system call reads. Measured: CPU per byte falls up to 256 KiB, and no further.
const LARGEST_BATCH: usize = 256 * 1024;
/// What is read first from a connection that was idle.
const SMALLEST_BATCH: usize = 8 * 1024;

/// Which way the connection was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The application opened it: TCP is downstream, the tunnel upstream.
    Outbound,
    /// It came through the tunnel: the tunnel is downstream, TCP upstream.
    Inbound,
}

/// Time limits of a connection that stands.
#[derive(Clone, Debug)]
pub struct CopyOptions {
    /// Ends a connection on which nothing moved for so long. `None` by default: TCP knows no such
    /// limit, databases keep connections for days, and a dead peer is found by keepalives.
    pub idle_timeout: Option<Duration>,
    /// Ends a connection of which one direction is finished and on which nothing moved for so
    /// long. One hour by default: a client that only closed its sending side waits for an answer,
    /// but nobody waits for ever.
    pub half_closed_timeout: Option<Duration>,
    /// What bounds the memory of this connection and others together, should their readers stall.
    /// `None` by default.
    pub memory: Option<Arc<Memory>>,
}

impl Default for CopyOptions {
    fn default() -> Self {
        Self {
            idle_timeout: None,
            half_closed_timeout: Some(Duration::from_secs(3600)),
            memory: None,
        }
    }
}

/// Bytes so far, readable while the connection lives.
#[derive(Debug, Default)]
pub struct Counters {
    /// From the first side ([`copy()`]: TCP) to the second (the tunnel).
    pub forth: AtomicU64,
    /// From the second side to the first.
    pub back: AtomicU64,
}

impl Counters {
    /// Bytes from the first side to the second.
    pub fn forth(&self) -> u64 {
        self.forth.load(Ordering::Relaxed)
    }

    /// Bytes from the second side to the first.
    pub fn back(&self) -> u64 {
        self.back.load(Ordering::Relaxed)
    }
}

/// One of the two sides that are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The first: TCP in [`copy()`].
    First,
    /// The second: the tunnel in [`copy()`].
    Second,
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::First => Self::Second,
            Self::Second => Self::First,
        }
    }
}

/// How a connection ended.
#[derive(Debug)]
pub enum Ended {
    /// Both directions were finished.
    Finished,
    /// A side's TCP connection failed, most often by a reset.
    Tcp(Side, io::Error),
    /// The stream was reset, or its tunnel broke.
    Stream(StreamError),
    /// Nothing moved for the time limit.
    Idle(Duration),
    /// One direction was finished and nothing moved in the other for the time limit.
    HalfClosed(Duration),
    /// This side took nothing, and the [memory](CopyOptions::memory) was used up.
    Stalled(Side),
}

/// The end of a connection.
#[derive(Debug)]
pub struct CopyEnd {
    /// How it ended.
    pub how: Ended,
    /// Bytes from the first side to the second.
    pub forth: u64,
    /// Bytes from the second side to the first.
    pub back: u64,
}

impl CopyEnd {
    /// Whose fault the end is; `None` for an orderly one. For [`copy_plain`] the role says which
    /// side was the client: the first of an outbound connection.
    pub fn fault(&self, role: Role) -> Option<Fault> {
        let side = match &self.how {
            Ended::Finished => return None,
            Ended::Idle(_) | Ended::HalfClosed(_) => return Some(Fault::Internal),
            Ended::Tcp(side, _) | Ended::Stalled(side) => *side,
            Ended::Stream(_) => Side::Second,
        };
        Some(match (side, role) {
            (Side::First, Role::Outbound) | (Side::Second, Role::Inbound) => Fault::Downstream,
            _ => Fault::Upstream,
        })
    }
}

/// How large the next read is: grows while reads fill it, shrinks when they don't.
#[derive(Debug)]
struct Batch(u32);

impl Batch {
    const fn new() -> Self {
        Self(SMALLEST_BATCH as u32)
    }

    fn size(&self) -> usize {
        self.0 as usize
    }

    fn adapt(&mut self, read: usize) {
        let size = self.size();
        if read == size {
            self.0 = (size * 4).min(LARGEST_BATCH) as u32;
        } else if read < size / 8 {
            self.0 = (size / 2).max(SMALLEST_BATCH) as u32;
        }
    }
}

thread_local! {
    /// Where small reads go first, so that what waits to be sent takes the memory of its own bytes only.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; SMALLEST_BATCH].into());
}

/// Reads up to `limit` bytes, once the socket has some: no memory is taken before.
fn poll_read(tcp: &TcpStream, cx: &mut Context<'_>, limit: usize) -> Poll<io::Result<Bytes>> {
    loop {
        ready!(tcp.poll_read_ready(cx))?;
        let read = if limit <= SMALLEST_BATCH {
            SCRATCH.with_borrow_mut(|scratch| {
                let buffer = &mut scratch[..limit];
                let read = attempt(tcp, Interest::READABLE, limit, || tcp.try_read(buffer))?;
                Ok(Bytes::copy_from_slice(&scratch[..read]))
            })
        } else {
            let mut buffer = BytesMut::with_capacity(limit);
            let mut limited = (&mut buffer).limit(limit);
            attempt(tcp, Interest::READABLE, limit, || {
                tcp.try_read_buf(&mut limited)
            })
            .map(|_| buffer.freeze())
        };
        match read {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return Poll::Ready(read),
        }
    }
}

/// Writes as much as the socket takes.
fn poll_write(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    pieces: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let all = pieces.iter().map(|piece| piece.len()).sum();
    loop {
        ready!(tcp.poll_write_ready(cx))?;
        let write = || match pieces {
            [piece] => tcp.try_write(piece),
            pieces => tcp.try_write_vectored(pieces),
        };
        match attempt(tcp, Interest::WRITABLE, all, write) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            written => return Poll::Ready(written),
        }
    }
}

/// A system call that moves up to `most` bytes. One that moves fewer has emptied or filled the socket, which is then
/// not ready any more: no second call has to find that out. The same that tokio does where it has the socket to itself.
fn attempt(
    tcp: &TcpStream,
    interest: Interest,
    most: usize,
    call: impl FnOnce() -> io::Result<usize>,
) -> io::Result<usize> {
    let mut fewer = None;
    let moved = tcp.try_io(interest, || match call()? {
        moved if 0 < moved && moved < most => {
            fewer = Some(moved);
            Err(io::ErrorKind::WouldBlock.into())
        }
        moved => Ok(moved),
    });
    fewer.map_or(moved, Ok)
}

/// Finishes a socket's sending direction.
fn finish(tcp: &TcpStream) -> io::Result<()> {
    SockRef::from(tcp).shutdown(Shutdown::Write)
}

/// Done when a socket fails, and why.
///
/// Who waits for bytes of a socket learns of its reset from the read. But who holds bytes that the
/// other side doesn't take waits for no more of them, perhaps for ever.
async fn failed(tcp: &TcpStream) -> io::Error {
    // Fails only when the runtime ends.
    let _ = tcp.ready(Interest::ERROR).await;
    let error = tcp.take_error().ok().flatten();
    error.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())
}

/// The time limits. Costs a connection nothing when there is none, and one timer otherwise, which
/// is not touched when bytes move.
#[derive(Debug)]
struct Watchdog {
    timer: Option<Pin<Box<Sleep>>>,
    moved: Instant,
    half_closed: bool,
}

impl Watchdog {
    fn new() -> Self {
        Self {
            timer: None,
            moved: Instant::now(),
            half_closed: false,
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        options: &CopyOptions,
        moved: bool,
        half_closed: bool,
    ) -> Poll<Ended> {
        if half_closed != self.half_closed {
            self.half_closed = half_closed;
            self.timer = None;
            self.moved = Instant::now();
        }
        let limit = if half_closed {
            options.half_closed_timeout
        } else {
            options.idle_timeout
        };
        let Some(limit) = limit else {
            return Poll::Pending;
        };
        if moved {
            self.moved = Instant::now();
        }
        let deadline = self.moved + limit;
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        loop {
            ready!(std::future::Future::poll(timer.as_mut(), cx));
            if Instant::now() >= deadline {
                let how = if half_closed {
                    Ended::HalfClosed(limit)
                } else {
                    Ended::Idle(limit)
                };
                return Poll::Ready(how);
            }
            timer.as_mut().reset(deadline);
        }
    }
}

/// Makes the socket's end a reset, whoever closes it, the kernel included.
fn end_as_reset(tcp: &TcpStream) {
    // Fails only for a socket that is closed already.
    let _ = tcp.set_zero_linger();
}

/// Both directions were finished: what the socket still holds is delivered after its end.
fn end_in_order(tcp: &TcpStream) {
    let _ = SockRef::from(tcp).set_linger(None);
}
