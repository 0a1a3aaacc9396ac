//! Streams of HTTP/2 whose client takes nothing of the answer: it gives its window to other streams, or to none, while a
//! backend's connection and a place among the requests that may be under way are held. Such a stream is reset.
//!
//! hyper runs each stream as a task of its executor, and asks the answer's body for more when the client would take it. So a
//! task that waits, and whose body gave something when it was asked last, waits for its client.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use hyper::rt::Executor;

use crate::patience::{MAX_UNREAD, Unread};

/// What is given in one piece may be taken slowly, but not more slowly than this many bytes a second.
const LEAST_RATE: usize = 1 << 10;

thread_local! {
    /// Whether the body of the task that is polled now was asked, and what it gave.
    static GAVE: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The body of an answer was asked for more, and gave so many bytes.
pub(crate) fn body_gave(bytes: usize) {
    GAVE.set(Some(bytes));
}

/// Runs the streams of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Streams;

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        tokio::spawn(watched(stream));
    }
}

/// Runs a stream to its end, or until its client has taken nothing for too long; what is dropped then is reset.
async fn watched(stream: impl Future) {
    let mut stream = pin!(stream);
    let (mut unread, mut waits_for_client) = (Unread::default(), None);
    poll_fn(|cx| {
        GAVE.set(None);
        if stream.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if let Some(bytes) = GAVE.take() {
            unread.taken();
            waits_for_client = (bytes > 0).then(|| patience(bytes));
        }
        match waits_for_client {
            Some(limit) if unread.is_too_long(cx, limit) => Poll::Ready(()),
            _ => Poll::Pending,
        }
    })
    .await;
}

fn patience(bytes: usize) -> Duration {
    let seconds = bytes / LEAST_RATE;
    MAX_UNREAD + Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, sleep};

    /// Gives so many bytes, if any, so many times, when its client takes some, and then goes on to wait.
    async fn stream(bytes: usize, times: u32, every: Duration) {
        for _ in 0..times {
            body_gave(bytes);
            sleep(every).await;
        }
        std::future::pending::<()>().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_whose_client_takes_nothing_is_given_up() {
        let begin = Instant::now();
        watched(stream(1, 1, Duration::ZERO)).await;
        assert_eq!(begin.elapsed(), MAX_UNREAD);
        // From when it took something last, and for longer when that was much.
        let begin = Instant::now();
        let often = MAX_UNREAD - Duration::from_secs(1);
        watched(stream(100 * LEAST_RATE, 9, often)).await;
        assert_eq!(begin.elapsed(), often * 8 + patience(100 * LEAST_RATE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_waits_for_its_backend_is_not() {
        let idle = MAX_UNREAD * 100;
        let waits = watched(stream(0, 3, Duration::from_secs(1)));
        assert!(tokio::time::timeout(idle, waits).await.is_err());
        let before = watched(std::future::pending::<()>());
        assert!(tokio::time::timeout(idle, before).await.is_err());
    }
}
