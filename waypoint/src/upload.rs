//! The body of a request as its client sends it: how long that has kept the backend waiting, and how long it may.
//!
//! What a client brings about is never held against a backend: neither a body that breaks off nor one that comes slowly.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

use crate::body::BodyError;
use crate::failure::Failure;

/// How long a backend that has not answered waits for a client that sends nothing of its body. A call of gRPC may
/// be silent for as long as it wants.
pub(crate) const MAX_SILENCE: Duration = Duration::from_secs(60);
/// Of the time of an attempt the client's share that counts for nothing: that of a body that comes as fast as networks are.
const NEGLIGIBLE: u32 = 10;

/// How far the client is with its body, also while that is sent to a backend.
#[derive(Clone, Debug)]
pub(crate) struct Upload(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// The client may be silent for ever.
    patient: bool,
    broken: AtomicBool,
    silent: AtomicBool,
    answered: AtomicBool,
    began: Instant,
    /// When the backend has begun to wait, in microseconds after the beginning and one; 0: it doesn't.
    since: AtomicU64,
    /// How long it has waited before, in microseconds.
    waited: AtomicU64,
}

impl Default for Upload {
    fn default() -> Self {
        Self::new(false)
    }
}

impl Upload {
    fn new(patient: bool) -> Self {
        Self(Arc::new(Inner {
            patient,
            broken: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            answered: AtomicBool::new(false),
            began: Instant::now(),
            since: AtomicU64::new(0),
            waited: AtomicU64::new(0),
        }))
    }

    /// What of a request that came to nothing was its client's doing.
    pub(crate) fn failure(&self) -> Option<Failure> {
        match (self.is_broken(), self.0.silent.load(Ordering::Acquire)) {
            (_, true) => Some(Failure::SlowBody(MAX_SILENCE)),
            (true, false) => Some(Failure::Body),
            (false, false) => None,
        }
    }

    /// It came to no good end.
    pub(crate) fn is_broken(&self) -> bool {
        self.0.broken.load(Ordering::Acquire)
    }

    /// The head of the answer is there: from now on both sides may be silent.
    pub(crate) fn answered(&self) {
        self.0.answered.store(true, Ordering::Release);
    }

    fn is_answered(&self) -> bool {
        self.0.answered.load(Ordering::Acquire)
    }

    /// How long the backend would have taken more of it than there was.
    fn waited(&self) -> Duration {
        let now = match self.0.since.load(Ordering::Acquire) {
            0 => 0,
            since => self.now().saturating_sub(since),
        };
        Duration::from_micros(self.0.waited.load(Ordering::Acquire) + now)
    }

    fn polled<T, E>(&self, polled: &Poll<Option<Result<T, E>>>) {
        let inner = &self.0;
        match polled {
            Poll::Pending if inner.since.load(Ordering::Acquire) == 0 => {
                inner.since.store(self.now(), Ordering::Release);
            }
            Poll::Pending => {}
            Poll::Ready(part) => {
                let since = inner.since.swap(0, Ordering::AcqRel);
                if since > 0 {
                    let waited = self.now().saturating_sub(since);
                    inner.waited.fetch_add(waited, Ordering::AcqRel);
                }
                if matches!(part, Some(Err(_))) {
                    inner.broken.store(true, Ordering::Release);
                }
            }
        }
    }

    fn now(&self) -> u64 {
        let micros = self.0.began.elapsed().as_micros();
        u64::try_from(micros)
            .unwrap_or(u64::MAX - 1)
            .saturating_add(1)
    }
}

/// The time of one attempt, and whose it was.
#[derive(Debug)]
pub(crate) struct Clock {
    upload: Upload,
    began: Instant,
    before: Duration,
}

impl Clock {
    /// Begins now.
    pub(crate) fn start(upload: &Upload) -> Self {
        Self {
            upload: upload.clone(),
            began: Instant::now(),
            before: upload.waited(),
        }
    }

    /// What the backend took of it.
    pub(crate) fn of_backend(&self) -> Duration {
        self.began.elapsed().saturating_sub(self.of_client())
    }

    /// The client has kept the backend waiting: what came of the attempt says nothing of the backend.
    pub(crate) fn was_client_slow(&self) -> bool {
        self.of_client() * NEGLIGIBLE > self.began.elapsed()
    }

    /// Why the attempt was given up after this time.
    pub(crate) fn late(&self, limit: Duration) -> Failure {
        match self.was_client_slow() && !self.upload.0.patient {
            true => Failure::SlowBody(limit),
            false => Failure::Timeout(limit),
        }
    }

    fn of_client(&self) -> Duration {
        self.upload.waited().saturating_sub(self.before)
    }
}

/// A body as it comes from the client.
#[derive(Debug)]
pub(crate) struct ClientBody<B = Incoming> {
    body: B,
    upload: Upload,
    silence: Option<Pin<Box<Sleep>>>,
}

impl<B> ClientBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    BodyError: From<B::Error>,
{
    /// A client that is `patient` may be silent for as long as it wants.
    pub(crate) fn new(body: B, patient: bool) -> Self {
        Self {
            body,
            upload: Upload::new(patient),
            silence: None,
        }
    }

    /// What is known of it, also after it was sent.
    pub(crate) fn upload(&self) -> Upload {
        self.upload.clone()
    }

    /// The next frame, or an error where the client has been silent for too long.
    pub(crate) fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.upload.polled(&polled);
        if polled.is_ready() {
            self.silence = None;
            return polled.map_err(BodyError::from);
        }
        let may_wait = self.upload.0.patient || self.upload.is_answered();
        if may_wait || self.silence().poll(cx).is_pending() {
            return Poll::Pending;
        }
        let flags = &self.upload.0;
        flags.broken.store(true, Ordering::Release);
        flags.silent.store(true, Ordering::Release);
        Poll::Ready(Some(Err(BodyError::Silent)))
    }

    fn silence(&mut self) -> Pin<&mut Sleep> {
        let new = || Box::pin(sleep(MAX_SILENCE));
        self.silence.get_or_insert_with(new).as_mut()
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::future::poll_fn;
    use tokio::sync::mpsc;
    use tokio::time::advance;

    impl From<Infallible> for BodyError {
        fn from(never: Infallible) -> Self {
            match never {}
        }
    }

    struct Frames(mpsc::UnboundedReceiver<Bytes>);

    impl Body for Frames {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            self.0
                .poll_recv(cx)
                .map(|part| part.map(|part| Ok(Frame::data(part))))
        }
    }

    /// A client that sends a byte so often, and then ends.
    fn drops(count: u32, every: Duration) -> Frames {
        let (send, frames) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            for _ in 0..count {
                sleep(every).await;
                let _ = send.send(Bytes::from_static(b"a"));
            }
        });
        Frames(frames)
    }

    async fn read<B>(body: &mut ClientBody<B>) -> Result<usize, BodyError>
    where
        B: Body<Data = Bytes> + Unpin,
        BodyError: From<B::Error>,
    {
        let mut bytes = 0;
        while let Some(frame) = poll_fn(|cx| body.poll(cx)).await {
            bytes += frame?.data_ref().map_or(0, Bytes::len);
        }
        Ok(bytes)
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_client_took_for_its_body_is_not_the_backends_time() {
        let mut body = ClientBody::new(drops(9, Duration::from_secs(10)), false);
        let clock = Clock::start(&body.upload());
        assert_eq!(read(&mut body).await.unwrap(), 9);
        advance(Duration::from_secs(10)).await;
        assert_eq!(clock.of_backend(), Duration::from_secs(10));
        // It has ended before the backend's time was over, and took most of it all the same.
        assert!(clock.was_client_slow());
        // Of a further attempt it is not.
        let again = Clock::start(&body.upload());
        advance(Duration::from_secs(1)).await;
        assert_eq!(again.of_backend(), Duration::from_secs(1));
        assert!(!again.was_client_slow());
    }

    #[tokio::test(start_paused = true)]
    async fn a_backend_that_reads_slowly_is_slow_itself() {
        let (send, frames) = mpsc::unbounded_channel();
        let mut body = ClientBody::new(Frames(frames), false);
        let clock = Clock::start(&body.upload());
        for _ in 0..9 {
            send.send(Bytes::from_static(b"a")).unwrap();
            advance(Duration::from_secs(10)).await;
            let frame = poll_fn(|cx| body.poll(cx)).await;
            assert!(matches!(frame, Some(Ok(_))));
        }
        drop(send);
        assert_eq!(read(&mut body).await.unwrap(), 0);
        assert!(!clock.was_client_slow());
        assert_eq!(clock.of_backend(), Duration::from_secs(90));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_may_be_slow_and_not_silent_unless_its_call_is_of_grpc_or_was_answered() {
        let mut slow = ClientBody::new(drops(9, MAX_SILENCE - Duration::from_secs(1)), false);
        assert_eq!(read(&mut slow).await.unwrap(), 9);
        assert!(slow.upload().failure().is_none());
        let silent = || drops(1, MAX_SILENCE + Duration::from_secs(1));
        let mut body = ClientBody::new(silent(), false);
        assert!(matches!(read(&mut body).await, Err(BodyError::Silent)));
        let failure = body.upload().failure();
        assert!(matches!(failure, Some(Failure::SlowBody(_))), "{failure:?}");
        let mut grpc = ClientBody::new(silent(), true);
        assert_eq!(read(&mut grpc).await.unwrap(), 1);
        let mut answered = ClientBody::new(silent(), false);
        answered.upload().answered();
        assert_eq!(read(&mut answered).await.unwrap(), 1);
    }
}
