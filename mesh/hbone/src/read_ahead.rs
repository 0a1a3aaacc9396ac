//! Reads ahead of TLS when much arrives.
//!
//! rustls asks the socket for 4 KiB at a time: five system calls for one full record. Once such a
//! read is filled, this reads larger pieces and serves rustls from memory; as soon as a piece comes
//! back small, the memory is given back. Small messages and idle tunnels never have any.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// Fits the second-level cache beside the records that are made from it.
const PIECE: usize = 64 * 1024;
/// A read at least so long that is filled means that more waits.
const FULL: usize = 4096;

/// A byte stream that reads ahead.
#[derive(Debug)]
pub(crate) struct ReadAhead<T> {
    inner: T,
    held: BytesMut,
    /// Whether the last read was filled.
    busy: bool,
}

impl<T> ReadAhead<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self {
            inner,
            held: BytesMut::new(),
            busy: false,
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ReadAhead<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.held.is_empty() {
            if !this.busy {
                let (before, room) = (buf.filled().len(), buf.remaining());
                ready!(Pin::new(&mut this.inner).poll_read(cx, buf))?;
                this.busy = room >= FULL && buf.filled().len() - before == room;
                return Poll::Ready(Ok(()));
            }
            this.held.reserve(PIECE);
            let read = std::pin::pin!(this.inner.read_buf(&mut this.held));
            let read = match Future::poll(read, cx) {
                Poll::Ready(Ok(read)) => read,
                other => {
                    this.held = BytesMut::new();
                    this.busy = false;
                    return other.map_ok(|_| ());
                }
            };
            this.busy = read >= PIECE / 2;
        }
        let taken = this.held.len().min(buf.remaining());
        buf.put_slice(&this.held[..taken]);
        this.held.advance(taken);
        if this.held.is_empty() && !this.busy {
            this.held = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ReadAhead<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives pieces of the sizes that it is told, `None` for pending.
    struct Script(Vec<Option<usize>>, u8);

    impl AsyncRead for Script {
        fn poll_read(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            if self.0.is_empty() {
                return Poll::Ready(Ok(()));
            }
            match self.0.remove(0) {
                Some(size) => {
                    let size = size.min(buf.remaining());
                    for _ in 0..size {
                        let next = self.1;
                        buf.put_slice(&[next]);
                        self.1 = next.wrapping_add(1);
                    }
                    Poll::Ready(Ok(()))
                }
                None => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
            }
        }
    }

    #[tokio::test]
    async fn bytes_come_in_order_and_memory_is_given_back() {
        let script = [
            Some(100),
            Some(4096),
            Some(65_536),
            None,
            Some(4096),
            Some(50_000),
            Some(300),
            Some(4096),
            None,
            Some(20),
        ];
        let mut reader = ReadAhead::new(Script(script.to_vec(), 0));
        let (mut got, mut piece) = (Vec::new(), [0; 4096]);
        loop {
            let read = reader.read(&mut piece).await.unwrap();
            if read == 0 {
                break;
            }
            got.extend_from_slice(&piece[..read]);
        }
        let want: Vec<u8> = (0..got.len()).map(|n| n as u8).collect();
        assert_eq!(got.len(), script.iter().flatten().sum::<usize>());
        assert!(got == want);
        assert_eq!(reader.held.capacity(), 0);
    }
}
