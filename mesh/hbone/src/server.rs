//! The accepting side: TLS, HTTP/2, and a handler for each CONNECT.
//!
//! One task drives a connection ([`accept`], then [`Accepted::serve`]); its handler starts one task per stream. What a peer can
//! make it hold is bounded: handshakes in time, headers, streams, answers to streams that were
//! reset, and windows in bytes.

use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Response, StatusCode};
use seine_identity::{Clock, Credentials, Identity, PeerCertificate, PeerChain};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use crate::baggage::Baggage;
use crate::error::{Reason, ServeError, StreamError};
use crate::io::Io;
use crate::keepalive::Keepalive;
use crate::memory::{Memory, PATIENCE, Stalling};
use crate::queued::Queued;
use crate::read_ahead::ReadAhead;
use crate::request::{ConnectRequest, insert_baggage};
use crate::settings::Settings;
use crate::stream::{Place, Stream};

/// For so long after a GOAWAY streams are served that were on their way when it was sent. A client that opens
/// more has not read it: they are refused, so that it makes no connections that are cut soon.
pub const GOAWAY_GRACE: Duration = Duration::from_secs(1);

/// Tells connections to end: GOAWAY at once, and at the deadline whatever is left is cut.
#[derive(Debug)]
pub struct DrainTrigger(watch::Sender<Option<Instant>>);

/// What a connection watches to know when it has to end. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DrainSignal(watch::Receiver<Option<Instant>>);

/// A trigger and the signal that it sets. A trigger that is dropped never fires.
pub fn drain() -> (DrainTrigger, DrainSignal) {
    let (sender, receiver) = watch::channel(None);
    (DrainTrigger(sender), DrainSignal(receiver))
}

impl DrainTrigger {
    /// Begins the drain. A later call may move the deadline.
    pub fn drain(&self, deadline: Instant) {
        self.0.send_replace(Some(deadline));
    }
}

impl DrainSignal {
    /// Waits for the drain's begin and gives its deadline.
    pub async fn begun(&mut self) -> Instant {
        match self
            .0
            .wait_for(Option::is_some)
            .await
            .map(|deadline| *deadline)
        {
            Ok(Some(deadline)) => deadline,
            // The trigger is gone, so that nobody can begin a drain.
            _ => std::future::pending().await,
        }
    }
}

/// A place among a connection's streams, given back when dropped.
#[derive(Debug)]
pub(crate) struct Admitted(Arc<AtomicUsize>);

impl Admitted {
    fn new(live: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        if live.load(Ordering::Relaxed) >= limit {
            return None;
        }
        live.fetch_add(1, Ordering::Relaxed);
        Some(Self(Arc::clone(live)))
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A CONNECT that waits for its answer. Dropping it resets the stream.
pub struct Incoming {
    /// What is asked for.
    pub request: ConnectRequest,
    /// Who asks: the identity that TLS verified.
    pub peer_identity: Identity,
    /// Where the connection comes from.
    pub peer: SocketAddr,
    respond: h2::server::SendResponse<Queued>,
    recv: h2::RecvStream,
    admitted: Admitted,
}

impl Incoming {
    /// Answers 200: the application has accepted.
    pub fn accept(mut self, baggage: Option<&Baggage>) -> Result<Stream, StreamError> {
        let mut response = Response::new(());
        insert_baggage(response.headers_mut(), baggage);
        let send = self.respond.send_response(response, false)?;
        Ok(Stream::new(
            send,
            self.recv,
            Place::Server {
                _admitted: self.admitted,
            },
        ))
    }

    /// Answers with another status, without a word about the reason: 401 for denied by policy, 503
    /// for an upstream that failed, 400 for an authority that doesn't exist here.
    pub fn reject(mut self, status: StatusCode) {
        reject(&mut self.respond, status);
    }

    /// Waits until the CONNECT has to end without an answer. Whoever dials for long should watch it, so that streams
    /// that are opened and reset leave nothing behind, and what clients send before their answer is within `memory`.
    pub async fn unanswered(&mut self, memory: Option<&Arc<Memory>>) -> Unanswered {
        let mut stalling = Stalling::default();
        // Nobody reads yet, so nothing tells of bytes that come.
        let mut look = tokio::time::interval_at(Instant::now() + PATIENCE, PATIENCE);
        poll_fn(|cx| {
            if let Poll::Ready(error) = self.poll_given_up(cx) {
                return Poll::Ready(Unanswered::GivenUp(error));
            }
            while look.poll_tick(cx).is_ready() {}
            let held = self.recv.flow_control().used_capacity();
            let held = (held > 0).then_some(|| held);
            stalling
                .poll(cx, memory, held)
                .map(|()| Unanswered::Stalled)
        })
        .await
    }

    fn poll_given_up(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.respond.poll_reset(cx).map(|result| match result {
            Ok(reason) => StreamError::Reset(Reason(reason)),
            Err(error) => error.into(),
        })
    }
}

/// Why a CONNECT ends before its answer.
#[derive(Debug)]
pub enum Unanswered {
    /// The client doesn't want one any more.
    GivenUp(StreamError),
    /// What it has sent was more than the memory has left.
    Stalled,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming")
            .field("request", &self.request)
            .field("peer_identity", &self.peer_identity)
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

fn reject(respond: &mut h2::server::SendResponse<Queued>, status: StatusCode) {
    let mut response = Response::new(());
    *response.status_mut() = status;
    // Fails only if the client has reset the stream, and then wants no answer.
    let _ = respond.send_response(response, true);
}

/// A tunnel whose peer has proved who it is, and that is not yet served.
pub struct Accepted {
    connection: Connection,
    certificate: PeerCertificate,
    chain: PeerChain,
    peer: SocketAddr,
    settings: Arc<Settings>,
}

/// Makes the TLS and HTTP/2 handshakes, within [`Settings::handshake_timeout`].
pub async fn accept(
    io: Io,
    peer: SocketAddr,
    credentials: &Credentials,
    settings: Arc<Settings>,
) -> Result<Accepted, ServeError> {
    let limit = settings.handshake_timeout;
    // Boxed: the handshake's state is larger than all that lives after it.
    let handshake = Box::pin(handshake(io, peer, credentials, &settings));
    let (certificate, chain, connection) = tokio::time::timeout(limit, handshake)
        .await
        .map_err(|_| ServeError::HandshakeTimeout { peer, limit })??;
    Ok(Accepted {
        connection,
        certificate,
        chain,
        peer,
        settings,
    })
}

impl Accepted {
    /// What TLS verified of the peer.
    pub fn certificate(&self) -> &PeerCertificate {
        &self.certificate
    }

    /// What the peer presented, to be judged again when the trust bundles change.
    pub fn chain(&self) -> &PeerChain {
        &self.chain
    }

    /// Serves the tunnel until its end: `handler` is called for each CONNECT, and starts the task
    /// that answers it. From the end of the peer's certificate on there are no new ones; the streams
    /// that stand go on.
    ///
    /// Everything but a CONNECT with a good authority is answered here, with 400.
    pub async fn serve(
        self,
        mut drain: DrainSignal,
        handler: impl Fn(Incoming),
    ) -> Result<(), ServeError> {
        let Self {
            mut connection,
            certificate,
            chain,
            peer,
            settings,
        } = self;
        let not_after = chain.not_after();
        drop(chain);
        let identity = certificate.identity;
        let mut keepalive = connection
            .ping_pong()
            .map(|pings| Keepalive::new(pings, &settings));
        let live = Arc::new(AtomicUsize::new(0));
        let mut deadline = None;
        let mut no_more = None;
        let mut ended = pin!(Clock::SYSTEM.passed(not_after));
        let mut retired = false;
        let mut idle = Idle::new(settings.idle_timeout);
        loop {
            tokio::select! {
                accepted = connection.accept() => match accepted {
                    // Until the peer has taken the GOAWAY in, it may ask; one that ignores it, for ever.
                    Some(Ok((_, mut respond))) if Clock::SYSTEM.now() > not_after => {
                        debug!(%peer, %identity, "a CONNECT after the end of the peer's certificate");
                        respond.send_reset(h2::Reason::REFUSED_STREAM);
                    }
                    Some(Ok((_, mut respond))) if no_more.is_some_and(|at| Instant::now() > at) => {
                        debug!(%peer, %identity, "a CONNECT long after the GOAWAY");
                        respond.send_reset(h2::Reason::REFUSED_STREAM);
                    }
                    Some(Ok((request, respond))) => {
                        idle.used = true;
                        start(request, respond, &identity, peer, &live, &settings, &handler);
                    }
                    Some(Err(source)) if source.is_io() || retired || idle.over || deadline.is_some() => {
                        debug!(%peer, error = %source, "tunnel broke");
                        return Ok(());
                    }
                    Some(Err(source)) => return Err(ServeError::Protocol { peer, source }),
                    None => return Ok(()),
                },
                () = dead(&mut keepalive) => {
                    return Err(ServeError::Dead { peer, limit: settings.ping_timeout });
                }
                () = &mut ended, if !retired => {
                    debug!(%peer, %identity, "the peer's certificate has ended: no more streams");
                    connection.graceful_shutdown();
                    retired = true;
                }
                () = idle.begun(&live), if !idle.over => {
                    debug!(%peer, "a tunnel without streams is closed");
                    // Streams that are on their way still are served; the client learns that
                    // later ones have to go elsewhere.
                    connection.graceful_shutdown();
                }
                at = drain.begun(), if deadline.is_none() => {
                    connection.graceful_shutdown();
                    deadline = Some(at);
                    no_more = Some(Instant::now() + GOAWAY_GRACE);
                }
                () = until(deadline), if deadline.is_some() => {
                    return Err(ServeError::DrainDeadline { peer });
                }
            }
        }
    }
}

impl std::fmt::Debug for Accepted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Accepted")
            .field("peer", &self.peer)
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

/// [`accept`] and [`Accepted::serve`] in one; the handler's future runs as a task of its own.
pub async fn serve<H, F>(
    io: Io,
    peer: SocketAddr,
    credentials: Arc<Credentials>,
    settings: Arc<Settings>,
    drain: DrainSignal,
    handler: H,
) -> Result<(), ServeError>
where
    H: Fn(Incoming) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let accepted = accept(io, peer, &credentials, settings).await?;
    drop(credentials);
    let start = |incoming| drop(tokio::spawn(handler(incoming)));
    accepted.serve(drain, start).await
}

type Connection = h2::server::Connection<tokio_rustls::server::TlsStream<ReadAhead<Io>>, Queued>;

async fn handshake(
    io: Io,
    peer: SocketAddr,
    credentials: &Credentials,
    settings: &Settings,
) -> Result<(PeerCertificate, PeerChain, Connection), ServeError> {
    let mut tls = TlsAcceptor::from(credentials.server_config())
        .accept(ReadAhead::new(io))
        .await
        .map_err(|source| ServeError::Handshake { peer, source })?;
    let certificate = credentials
        .peer(tls.get_ref().1)
        .map_err(|error| ServeError::Identity {
            peer,
            reason: error.to_string(),
        })?;
    let chain = PeerChain::of_client(tls.get_ref().1).map_err(|error| ServeError::Identity {
        peer,
        reason: error.to_string(),
    })?;
    tls.get_mut().1.set_buffer_limit(Some(settings.tls_buffer));
    let connection = settings
        .server()
        .handshake(tls)
        .await
        .map_err(|source| ServeError::Protocol { peer, source })?;
    Ok((certificate, chain, connection))
}

fn start(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Queued>,
    identity: &Identity,
    peer: SocketAddr,
    live: &Arc<AtomicUsize>,
    settings: &Settings,
    handler: &impl Fn(Incoming),
) {
    let (head, recv) = request.into_parts();
    let request = match ConnectRequest::parse(&head) {
        Ok(request) => request,
        Err(error) => {
            debug!(%peer, %identity, %error, "bad request");
            return reject(&mut respond, StatusCode::BAD_REQUEST);
        }
    };
    // h2 counts a stream as over when the client resets it, but its handler may be dialling still.
    let Some(admitted) = Admitted::new(live, settings.streams_accepted as usize) else {
        debug!(%peer, %identity, "too many streams that were reset are still being served");
        return respond.send_reset(h2::Reason::REFUSED_STREAM);
    };
    let peer_identity = identity.clone();
    handler(Incoming {
        request,
        peer_identity,
        peer,
        respond,
        recv,
        admitted,
    });
}

/// Tells when a tunnel had no stream for the time limit, to twice the limit.
struct Idle {
    ticks: tokio::time::Interval,
    /// There was a stream since the last tick.
    used: bool,
    over: bool,
}

impl Idle {
    fn new(limit: Duration) -> Self {
        Self {
            ticks: tokio::time::interval_at(Instant::now() + limit, limit),
            used: false,
            over: false,
        }
    }

    async fn begun(&mut self, live: &AtomicUsize) {
        loop {
            self.ticks.tick().await;
            let used = std::mem::replace(&mut self.used, live.load(Ordering::Relaxed) > 0);
            if !used && !self.used {
                self.over = true;
                return;
            }
        }
    }
}

async fn dead(keepalive: &mut Option<Keepalive>) {
    match keepalive {
        Some(keepalive) => poll_fn(|cx| keepalive.poll_dead(cx)).await,
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
