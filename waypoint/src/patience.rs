//! For how long a client's connection may stand still: while nobody knows yet which version of HTTP it speaks, and while it
//! takes nothing of what is written to it. What one stream of HTTP/2 takes is [`crate::unread`]'s.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// How long a client may take nothing of what is there for it.
pub(crate) const MAX_UNREAD: Duration = Duration::from_secs(60);
/// What a client of HTTP/2 says first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A client's connection, which breaks when it stands still for too long.
pub(crate) struct Patient<S> {
    stream: S,
    /// Until the version is known: what has come of the preface, and for how long it may come.
    opening: Option<(usize, Pin<Box<Sleep>>)>,
    unread: Unread,
}

impl<S> Patient<S> {
    /// Its first bytes may take so long.
    pub(crate) fn new(stream: S, first: Duration) -> Self {
        Self {
            stream,
            opening: Some((0, Box::pin(sleep(first)))),
            unread: Unread::default(),
        }
    }
}

/// Since when nothing was taken. The timer is made once, and only for those that are ever slow.
#[derive(Debug, Default)]
pub(crate) struct Unread {
    since: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Unread {
    /// Something was taken, or there is nothing to take.
    pub(crate) fn taken(&mut self) {
        self.since = None;
    }

    /// Nothing can be written now; whether that has been so for too long.
    pub(crate) fn is_too_long(&mut self, cx: &mut Context<'_>, limit: Duration) -> bool {
        if self.since.is_none() {
            let now = Instant::now();
            self.since = Some(now);
            match &mut self.timer {
                Some(timer) => timer.as_mut().reset(now + limit),
                None => self.timer = Some(Box::pin(sleep(limit))),
            }
        }
        let timer = self.timer.as_mut();
        timer.is_some_and(|timer| timer.as_mut().poll(cx).is_ready())
    }

    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.taken();
            return polled;
        }
        match self.is_too_long(cx, MAX_UNREAD) {
            true => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client takes nothing",
            ))),
            false => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.stream).poll_read(cx, buf);
        let Some((known, timer)) = &mut this.opening else {
            return polled;
        };
        if polled.is_pending() {
            return timer.as_mut().poll(cx).map(|()| {
                Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the client does not say which HTTP it speaks",
                ))
            });
        }
        let new = &buf.filled()[before..];
        let goes_on = PREFACE[*known..].starts_with(new) && !new.is_empty();
        *known += new.len();
        if !goes_on || *known == PREFACE.len() {
            this.opening = None;
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write(cx, buf);
        this.unread.watch(cx, polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.stream).poll_write_vectored(cx, bufs);
        this.unread.watch(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const FIRST: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_say_what_it_speaks_is_let_go() {
        for said in ["", "PRI * HT"] {
            let (mut client, stream) = duplex(100);
            let mut stream = Patient::new(stream, FIRST);
            client.write_all(said.as_bytes()).await.unwrap();
            let mut read = Vec::new();
            let begin = Instant::now();
            let error = stream.read_to_end(&mut read).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert_eq!((&*read, begin.elapsed()), (said.as_bytes(), FIRST));
        }
        // One that has said it may be silent for as long as HTTP lets it.
        for said in ["GET ", "PRINT", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
            let (mut client, stream) = duplex(100);
            let mut stream = Patient::new(stream, FIRST);
            tokio::spawn(async move {
                for byte in said.bytes() {
                    client.write_u8(byte).await.unwrap();
                }
                sleep(2 * FIRST).await;
                client.write_u8(b'a').await.unwrap();
            });
            let mut read = String::new();
            stream.read_to_string(&mut read).await.unwrap();
            assert_eq!(read, format!("{said}a"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_let_go_and_one_that_takes_a_little_is_not() {
        let (mut client, stream) = duplex(100);
        let mut stream = Patient::new(stream, FIRST);
        let reader = tokio::spawn(async move {
            for _ in 0..9 {
                sleep(MAX_UNREAD - Duration::from_secs(1)).await;
                client.read_u8().await.unwrap();
            }
            sleep(2 * MAX_UNREAD).await;
            drop(client);
        });
        let begin = Instant::now();
        let error = stream.write_all(&[0; 1000]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(
            begin.elapsed(),
            9 * (MAX_UNREAD - Duration::from_secs(1)) + MAX_UNREAD
        );
        reader.abort();
    }
}
