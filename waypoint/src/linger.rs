//! A client's stream whose end is orderly.
//!
//! An HTTP server closes a connection when its last answer is written, while the client may not have ended its own
//! direction: a stream that is dropped then is reset, and the client's application may lose the end of the answer.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use seine_hbone::Stream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::timeout;

/// How long a client has to end its direction after ours.
const LINGER: Duration = Duration::from_secs(5);

/// Reads what still comes, for a while, when it is dropped after our direction has ended.
pub(crate) struct Lingering {
    stream: Option<Stream>,
    ended: bool,
}

impl From<Stream> for Lingering {
    fn from(stream: Stream) -> Self {
        Self {
            stream: Some(stream),
            ended: false,
        }
    }
}

impl Lingering {
    fn stream(&mut self) -> Pin<&mut Stream> {
        Pin::new(self.stream.as_mut().expect("it is there until the drop"))
    }
}

impl Drop for Lingering {
    fn drop(&mut self) {
        let Some(mut stream) = self.stream.take().filter(|_| self.ended) else {
            return;
        };
        if stream.is_read_out() {
            return;
        }
        tokio::spawn(timeout(LINGER, async move {
            let mut rest = [0; 4096];
            while matches!(stream.read(&mut rest).await, Ok(1..)) {}
        }));
    }
}

impl AsyncRead for Lingering {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.stream().poll_read(cx, buf)
    }
}

impl AsyncWrite for Lingering {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.stream().poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ended = true;
        self.stream().poll_shutdown(cx)
    }
}
