//! From an accepted TCP connection to the requests in it: HBONE as this waypoint, a CONNECT for what is bound here
//! ([`bind`]), and within it HTTP of either version ([`request`]), or bytes that nobody parses ([`opaque`]).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use hyper::Request;
use hyper::body::Incoming as Body;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use seine_hbone::{DrainSignal, Incoming, Io, accept};
use seine_telemetry::{Lines, limited};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::bind::{self, Bound, unmapped};
use crate::linger::Lingering;
use crate::patience::Patient;
use crate::shared::{Place, Shared, Worker, Workers};
use crate::unread::Streams;
use crate::{opaque, request};

/// Of what strangers cause.
static LINES: Lines = Lines::new();
/// Handshakes at a time: they are what strangers can have this waypoint compute. Others wait for their turn.
pub(crate) const MAX_HANDSHAKES: usize = 64;
/// How long one waits for its turn.
const TURN: Duration = Duration::from_secs(5);
/// How long a client may take for a request's head: a slow one holds a connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Headers of an HTTP/1.1 request.
const MAX_HEADERS: usize = 100;
/// Bytes of a request's head; as much as common servers take.
const MAX_HEAD: usize = 64 << 10;
/// Requests at a time on one connection of HTTP/2.
const MAX_STREAMS: u32 = 100;
/// How often a client of HTTP/2 is asked whether it is still there, and how long it has to answer.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Accepts tunnels until `stop`.
pub(crate) async fn run(
    workers: Arc<Workers>,
    home: Arc<Worker>,
    listener: TcpListener,
    drain: DrainSignal,
    stop: CancellationToken,
) {
    let turns = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((tcp, peer)) => {
                let (drain, turns) = (drain.clone(), turns.clone());
                let place = workers.for_tunnel(&home);
                place.serve(&home, &home.own().tasks, tcp, move |place, tcp| {
                    tunnel(place, tcp, peer, drain, turns)
                });
            }
            Err(error) => {
                limited!(LINES, "accept", warn: %error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn tunnel(
    place: Place,
    tcp: TcpStream,
    peer: SocketAddr,
    drain: DrainSignal,
    turns: Arc<Semaphore>,
) {
    let shared = place.own();
    // Held until the handshake is done.
    let Ok(Ok(turn)) = timeout(TURN, turns.acquire_owned()).await else {
        shared.telemetry.refused("handshakes");
        return limited!(
            LINES, "handshakes",
            warn: %peer, "a tunnel is refused: too many handshakes are under way"
        );
    };
    let credentials = match shared.certificates.get(&shared.identity).await {
        Ok(credentials) => credentials,
        Err(error) => {
            shared.telemetry.refused("own-certificate");
            return limited!(
                LINES, "own-certificate",
                warn: %peer, flag = "IDENTITY", %error, "a tunnel is refused"
            );
        }
    };
    let accepted = match accept(Io::from(tcp), peer, &credentials, shared.hbone.clone()).await {
        Ok(accepted) => accepted,
        Err(error) => {
            shared.telemetry.refused("handshake");
            return limited!(
                LINES, "handshake",
                warn: %peer, flag = "TLS_FAILURE", %error, "a tunnel is refused"
            );
        }
    };
    drop(turn);
    let served = accepted.serve(drain.clone(), |incoming| {
        let (shared, place) = (shared.clone(), place.clone());
        let stream = stream(shared.clone(), incoming, drain.clone());
        shared.tasks.spawn(async move {
            stream.await;
            drop(place);
        });
    });
    if let Err(error) = served.await {
        limited!(LINES, "ended", info: %peer, %error, "a tunnel ended");
    }
}

async fn stream(shared: Arc<Shared>, incoming: Incoming, drain: DrainSignal) {
    let peer = unmapped(incoming.peer);
    let asked = incoming.request.authority.clone();
    let Some(bound) = bind::bind(&shared, &incoming) else {
        shared.telemetry.refused("not-bound");
        limited!(
            LINES, "not-bound",
            warn: %peer, identity = %incoming.peer_identity, %asked, flag = "NOT_BOUND",
            "a CONNECT is refused: nothing that is bound to this waypoint"
        );
        return incoming.reject(StatusCode::BAD_REQUEST);
    };
    let bound = Arc::new(bound);
    if !bind::is_http(&shared, &bound) {
        return opaque::carry(&shared, &bound, incoming).await;
    }
    match incoming.accept(None) {
        Ok(stream) => {
            let peer = bound.first.address;
            let of_request = move |_: &mut Request<Body>| bound.clone();
            http(shared, peer, of_request, Lingering::from(stream), drain).await;
        }
        Err(error) => debug!(%peer, %error, "a client gave up"),
    }
}

/// HTTP of either version; `of_request` knows what each request is bound to.
pub(crate) async fn http<S>(
    shared: Arc<Shared>,
    peer: SocketAddr,
    of_request: impl Fn(&mut Request<Body>) -> Arc<Bound> + Send,
    stream: S,
    mut drain: DrainSignal,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |mut request| {
        let bound = of_request(&mut request);
        // Boxed: it has all of a request's state, and would be moved with each of hyper's tasks.
        let answer = Box::pin(request::answer(shared.clone(), bound, request));
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut builder = auto::Builder::new(Streams);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        // A client that has said all it wants still waits for the answer.
        .half_close(true)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .max_header_list_size(MAX_HEAD as u32);
    let stream = TokioIo::new(Patient::new(stream, HEAD_TIMEOUT));
    let mut connection = std::pin::pin!(builder.serve_connection_with_upgrades(stream, service));
    let served = tokio::select! {
        served = connection.as_mut() => served,
        _ = drain.begun() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        debug!(%peer, %error, "a connection ended");
    }
}
