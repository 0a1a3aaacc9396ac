//! What may end a connection from outside, at no cost while it doesn't.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures::task::AtomicWaker;

/// Runs `work` until it is done or `interrupt` is.
///
/// Unlike a select, a wake-up for `work` doesn't poll `interrupt`, which waits on locks that all connections of a pod
/// share: it is polled when it was woken itself.
pub(crate) async fn unless<W, I>(mut work: W, mut interrupt: I) -> Result<W::Output, I::Output>
where
    W: Future + Unpin,
    I: Future + Unpin,
{
    let woken = Arc::new(Woken {
        yes: AtomicBool::new(true),
        task: AtomicWaker::new(),
    });
    let waker = Waker::from(woken.clone());
    poll_fn(move |cx| {
        woken.task.register(cx.waker());
        if woken.yes.load(Ordering::Acquire) {
            woken.yes.store(false, Ordering::Release);
            let interrupted =
                std::pin::Pin::new(&mut interrupt).poll(&mut Context::from_waker(&waker));
            if let Poll::Ready(why) = interrupted {
                return Poll::Ready(Err(why));
            }
        }
        std::pin::Pin::new(&mut work).poll(cx).map(Ok)
    })
    .await
}

/// Notes that the interrupt was woken, and wakes the task for it.
struct Woken {
    yes: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.yes.store(true, Ordering::Release);
        self.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::pin::pin;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn an_interrupt_ends_the_work_and_is_polled_only_when_it_was_woken() {
        let (tell, told) = oneshot::channel();
        let polls = Cell::new(0);
        let mut told = pin!(told);
        let interrupt = poll_fn(|cx| {
            polls.set(polls.get() + 1);
            told.as_mut().poll(cx)
        });
        let mut tell = Some(tell);
        let mut turns = 0;
        let work = poll_fn(|cx| {
            turns += 1;
            if turns == 100 {
                tell.take().unwrap().send("stop").unwrap();
            } else {
                cx.waker().wake_by_ref();
            }
            Poll::<()>::Pending
        });
        assert_eq!(unless(work, interrupt).await, Err(Ok("stop")));
        assert_eq!(polls.get(), 2);
    }

    #[tokio::test]
    async fn work_that_is_done_is_done() {
        let never = std::future::pending::<()>();
        assert_eq!(unless(std::future::ready(7), pin!(never)).await, Ok(7));
    }
}
