//! The client's tunnels: who may share one, and how a stream gets a place in one.
//!
//! A tunnel is shared only by streams with an equal [`TunnelKey`]. The pool's state is behind one
//! lock that is never held across an await; each tunnel's connection is driven by a task of its
//! own, and each attempt to make one too, so that an opener that gives up harms nobody.

mod state;

use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use seine_identity::{AcceptedIdentities, Clock, Identity};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::debug;

pub use self::state::Stats;
use self::state::{AttemptId, Decision, Served, State, TunnelId};
use crate::baggage::Baggage;
use crate::error::{OpenError, StreamError};
use crate::request::{ConnectRequest, response_baggage};
use crate::settings::Settings;
use crate::stream::{Place, Stream};
use crate::tunnel::{Connector, Handle, Tunnel, establish};

/// What streams must have in common to share a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TunnelKey {
    /// Who the source is.
    pub source: Identity,
    /// Who the peer may be.
    pub destinations: AcceptedIdentities,
    /// The other proxy's HBONE address.
    pub peer: SocketAddr,
    /// The source pod's address, which the connection comes from.
    pub source_address: IpAddr,
    /// Tells apart what the other fields can't: the pods that had an address one after the other,
    /// and the certificates of an identity before and after its trust changed. Whoever opens
    /// streams chooses it, so that it changes when an old tunnel must not be used again.
    pub generation: u64,
}

/// A stream that the other proxy accepted.
#[derive(Debug)]
pub struct Opened {
    /// The bytes.
    pub stream: Stream,
    /// What the peer says of the workload that answers.
    pub baggage: Option<Baggage>,
}

type Waiter = oneshot::Sender<Result<Seat, OpenError>>;

/// The client's tunnels. Cheap to clone.
#[derive(Clone)]
pub struct Pool {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State<Arc<TunnelKey>, Handle, Waiter>>,
    settings: Settings,
}

/// A slot together with the handle to open its stream.
struct Seat {
    handle: Handle,
    slot: Slot,
}

/// A place in a tunnel, given back when dropped.
pub(crate) struct Slot {
    pool: Weak<Inner>,
    key: Arc<TunnelKey>,
    tunnel: TunnelId,
}

impl Drop for Slot {
    fn drop(&mut self) {
        let Some(pool) = self.pool.upgrade() else {
            return;
        };
        let served = pool
            .state
            .lock()
            .released(&self.key, self.tunnel, Instant::now());
        pool.seat(&self.key, served);
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot")
            .field("tunnel", &self.tunnel)
            .finish_non_exhaustive()
    }
}

impl Pool {
    /// An empty pool. Starts a task that releases idle tunnels, so it has to be called within a
    /// tokio runtime.
    pub fn new(settings: Settings) -> Self {
        let state = Mutex::new(State::new(settings.streams_used, settings.idle_timeout));
        let every = (settings.idle_timeout / 10).max(Duration::from_millis(100));
        let inner = Arc::new(Inner { state, settings });
        tokio::spawn(sweep(Arc::downgrade(&inner), every));
        Self { inner }
    }

    /// Opens a stream: in a tunnel of this key if there is one with room, else in a new one made
    /// with `connector`, which others with the same key may share.
    ///
    /// A tunnel that turns out to be ending is replaced once, if the peer has not seen the CONNECT.
    pub async fn open(
        &self,
        key: &Arc<TunnelKey>,
        connector: &Arc<dyn Connector>,
        request: &ConnectRequest,
    ) -> Result<Opened, OpenError> {
        let head = request.encode()?;
        match self.attempt(key, connector, head.clone()).await {
            Err(OpenError::Tunnel {
                unsent: true,
                source,
                peer,
            }) => {
                debug!(%peer, error = %source, "tunnel was ending, opening the stream in another");
                self.attempt(key, connector, head).await
            }
            result => result,
        }
    }

    async fn attempt(
        &self,
        key: &Arc<TunnelKey>,
        connector: &Arc<dyn Connector>,
        head: http::Request<()>,
    ) -> Result<Opened, OpenError> {
        let peer = key.peer;
        let Seat { mut handle, slot } = self.seat(key, connector).await?;
        let unsent = |error: h2::Error| {
            // Whatever ends this handle, no later stream will do better.
            self.inner.retire(&slot.key, slot.tunnel);
            OpenError::Tunnel {
                peer,
                source: error.into(),
                unsent: true,
            }
        };
        poll_fn(|cx| handle.poll_ready(cx)).await.map_err(unsent)?;
        let (response, send) = handle.send_request(head, false).map_err(unsent)?;
        let limit = self.inner.settings.response_timeout;
        let response = tokio::time::timeout(limit, response)
            .await
            .map_err(|_| OpenError::ResponseTimeout { peer, limit })?
            .map_err(|error| self.failed_response(&slot, error))?;
        // By now the peer's settings have arrived. What it allows beyond our own limit isn't used.
        let allowed = handle.current_max_send_streams();
        if allowed < self.inner.settings.streams_used {
            self.inner
                .state
                .lock()
                .allow(&slot.key, slot.tunnel, allowed);
        }
        let (head, recv) = response.into_parts();
        if head.status != StatusCode::OK {
            return Err(OpenError::Status {
                peer,
                status: head.status,
            });
        }
        let stream = Stream::new(send, recv, Place::Client { _slot: slot });
        Ok(Opened {
            stream,
            baggage: response_baggage(&head.headers),
        })
    }

    /// Waits for a place in a tunnel.
    async fn seat(
        &self,
        key: &Arc<TunnelKey>,
        connector: &Arc<dyn Connector>,
    ) -> Result<Seat, OpenError> {
        let (sender, receiver) = oneshot::channel();
        let decision = self.inner.state.lock().open(key, sender);
        match decision {
            Decision::Use(tunnel, handle, _) => {
                return Ok(Seat {
                    handle,
                    slot: self.inner.slot(key, tunnel),
                });
            }
            Decision::Refuse(_) => return Err(OpenError::Draining),
            Decision::Wait => {}
            Decision::Connect(attempt) => self.inner.connect(key, connector, attempt),
        }
        let limit = self.inner.settings.connect_timeout;
        match tokio::time::timeout(limit, receiver).await {
            Ok(Ok(seat)) => seat,
            // Dropped unanswered: the source was forgotten or the pool is drained.
            Ok(Err(_)) => Err(OpenError::Draining),
            Err(_) => Err(OpenError::ConnectTimeout {
                peer: key.peer,
                limit,
            }),
        }
    }

    fn failed_response(&self, slot: &Slot, error: h2::Error) -> OpenError {
        let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
        if !error.is_reset() {
            self.inner.retire(&slot.key, slot.tunnel);
        }
        let source = StreamError::from(error);
        // RFC 9113, section 8.7: neither has been processed by the peer.
        let unsent = refused || matches!(source, StreamError::GoAway(_));
        OpenError::Tunnel {
            peer: slot.key.peer,
            source,
            unsent,
        }
    }

    /// Lets go of all tunnels of a source: its certificate, its trust or its pod is gone. Streams
    /// that are open go on; their tunnels end with them. Those who wait fail.
    pub fn forget(&self, source: &Identity) {
        self.forget_where(|key| &key.source == source);
    }

    /// As [`Pool::forget`], for every key that matches.
    pub fn forget_where(&self, matches: impl Fn(&TunnelKey) -> bool) {
        let forgotten = self.inner.state.lock().forget(|key| matches(key));
        // Dropped here, outside of the lock: the last handle's drop wakes the driver.
        drop(forgotten);
    }

    /// Takes no more streams; those who wait fail, open streams go on.
    pub fn drain(&self) {
        let drained = self.inner.state.lock().drain();
        drop(drained);
    }

    /// Figures of this moment.
    pub fn stats(&self) -> Stats {
        self.inner.state.lock().stats()
    }

    /// The pool's settings.
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Pool").field(&self.stats()).finish()
    }
}

impl Inner {
    fn slot(self: &Arc<Self>, key: &Arc<TunnelKey>, tunnel: TunnelId) -> Slot {
        Slot {
            pool: Arc::downgrade(self),
            key: Arc::clone(key),
            tunnel,
        }
    }

    /// Gives slots to those who waited. What one who left would have got serves the next.
    fn seat(self: &Arc<Self>, key: &Arc<TunnelKey>, mut served: Served<Handle, Waiter>) {
        while let Some((tunnel, handle, waiter)) = served.pop() {
            let Err(Ok(mut seat)) = waiter.send(Ok(Seat {
                handle,
                slot: self.slot(key, tunnel),
            })) else {
                continue;
            };
            // Not by dropping the slot: many who left would make that a deep recursion.
            seat.slot.pool = Weak::new();
            served.extend(self.state.lock().released(key, tunnel, Instant::now()));
        }
    }

    fn retire(&self, key: &Arc<TunnelKey>, tunnel: TunnelId) {
        let retired = self.state.lock().retire(key, tunnel);
        drop(retired);
    }

    /// Makes a tunnel in a task of its own: the opener that started it may give up.
    fn connect(
        self: &Arc<Self>,
        key: &Arc<TunnelKey>,
        connector: &Arc<dyn Connector>,
        attempt: AttemptId,
    ) {
        let (inner, key, connector) = (Arc::clone(self), Arc::clone(key), Arc::clone(connector));
        tokio::spawn(async move {
            let limit = inner.settings.connect_timeout;
            let establish = Box::pin(establish(&key, &*connector, &inner.settings));
            let result = match tokio::time::timeout(limit, establish).await {
                Ok(result) => result,
                Err(_) => Err(OpenError::ConnectTimeout {
                    peer: key.peer,
                    limit,
                }),
            };
            match result {
                Ok(tunnel) => inner.connected(&key, attempt, tunnel),
                Err(error) => {
                    debug!(peer = %key.peer, %error, "no tunnel");
                    let failed = inner.state.lock().failed(&key, attempt);
                    for waiter in failed {
                        let _ = waiter.send(Err(error.clone()));
                    }
                }
            }
        });
    }

    fn connected<D: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        key: &Arc<TunnelKey>,
        attempt: AttemptId,
        Tunnel {
            handle,
            not_after,
            driver,
        }: Tunnel<D>,
    ) {
        let result = self
            .state
            .lock()
            .connected(key, attempt, handle, Instant::now());
        // Without a place in the pool the handle's drop closes the connection.
        let Ok((tunnel, served)) = result else { return };
        let (pool, driven) = (Arc::downgrade(self), Arc::clone(key));
        tokio::spawn(async move {
            let retire = || {
                if let Some(pool) = pool.upgrade() {
                    pool.retire(&driven, tunnel);
                }
            };
            let mut driver = pin!(driver);
            // Whoever still proves to be the peer has got another certificate, which a new tunnel shows.
            tokio::select! {
                () = &mut driver => return retire(),
                () = Clock::SYSTEM.passed(not_after) => retire(),
            }
            driver.await;
        });
        self.seat(key, served);
    }
}

/// Releases idle tunnels until the pool is gone.
async fn sweep(pool: Weak<Inner>, every: Duration) {
    let mut ticks = tokio::time::interval(every);
    loop {
        ticks.tick().await;
        let Some(pool) = pool.upgrade() else { return };
        let idle = pool.state.lock().sweep(Instant::now());
        drop(idle);
    }
}
