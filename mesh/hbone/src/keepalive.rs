//! PINGs: whether the peer is alive. Used by the task that drives a connection.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use crate::settings::Settings;

/// Sends a PING every interval and tells when one stays without an answer.
pub(crate) struct Keepalive {
    ping_pong: h2::PingPong,
    timer: Pin<Box<Sleep>>,
    waiting: bool,
    interval: Duration,
    timeout: Duration,
}

impl Keepalive {
    pub(crate) fn new(ping_pong: h2::PingPong, settings: &Settings) -> Self {
        Self {
            ping_pong,
            timer: Box::pin(tokio::time::sleep(settings.ping_interval)),
            waiting: false,
            interval: settings.ping_interval,
            timeout: settings.ping_timeout,
        }
    }

    /// Ready when the peer is dead. Poll it beside the connection, which sends the PINGs.
    pub(crate) fn poll_dead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            if self.waiting {
                match self.ping_pong.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => {
                        self.waiting = false;
                        self.timer.as_mut().reset(Instant::now() + self.interval);
                    }
                    // The connection is over: whoever polls it learns why.
                    Poll::Ready(Err(_)) => return Poll::Pending,
                    Poll::Pending => {
                        ready!(self.timer.as_mut().poll(cx));
                        return Poll::Ready(());
                    }
                }
            } else {
                ready!(self.timer.as_mut().poll(cx));
                if self.ping_pong.send_ping(h2::Ping::opaque()).is_err() {
                    return Poll::Pending;
                }
                self.waiting = true;
                self.timer.as_mut().reset(Instant::now() + self.timeout);
            }
        }
    }
}
