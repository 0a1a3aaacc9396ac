//! From an accepted TCP connection to the requests in it: HBONE as this waypoint, a CONNECT for a service that is bound
//! here, and HTTP of either version within.
//!
//! Who the client is, TLS alone says; what a CONNECT claims of a first client is never read here.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use seine_hbone::{Authority, DrainSignal, Incoming, Io, Stream, accept};
use seine_telemetry::{Lines, limited};
use seine_workload::{AppProtocol, Service, Workload};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::failure::Failure;
use crate::judge::judge;
use crate::linger::Lingering;
use crate::request;
use crate::shared::Shared;
use crate::telemetry::Entry;
use crate::upstream::{self, Endpoint, First};

/// Of what strangers cause.
static LINES: Lines = Lines::new();
/// Handshakes at a time: they are what strangers can have this waypoint compute. Others wait for their turn.
const MAX_HANDSHAKES: usize = 64;
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

/// What a connection is bound to: the service that its client asked for, and who that is.
#[derive(Clone, Debug)]
pub struct Bound {
    /// The service.
    pub service: Arc<Service>,
    /// Its port.
    pub port: u16,
    /// What the client asked for; of a pod its service's address.
    pub destination: SocketAddr,
    /// The pod, where the client asked for that and not for the service.
    pub pod: Option<Pod>,
    /// The client.
    pub first: First,
}

/// A pod that is addressed itself. Policies of its services hold, and their routes don't.
#[derive(Clone, Debug)]
pub struct Pod {
    /// The pod.
    pub workload: Arc<Workload>,
    /// Where its application listens.
    pub address: SocketAddr,
    /// Further services and ports that lead there.
    pub also: Arc<[(Arc<Service>, u16)]>,
}

/// Accepts tunnels until `stop`.
pub(crate) async fn run(
    shared: Arc<Shared>,
    listener: TcpListener,
    drain: DrainSignal,
    stop: CancellationToken,
) {
    let tasks = shared.tasks.clone();
    let turns = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((tcp, peer)) => {
                let tunnel = tunnel(shared.clone(), tcp, peer, drain.clone(), turns.clone());
                tasks.spawn(tunnel);
            }
            Err(error) => {
                limited!(LINES, "accept", warn: %error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn tunnel(
    shared: Arc<Shared>,
    tcp: TcpStream,
    peer: SocketAddr,
    drain: DrainSignal,
    turns: Arc<Semaphore>,
) {
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
        let stream = stream(shared.clone(), incoming, drain.clone());
        shared.tasks.spawn(stream);
    });
    if let Err(error) = served.await {
        limited!(LINES, "ended", info: %peer, %error, "a tunnel ended");
    }
}

async fn stream(shared: Arc<Shared>, incoming: Incoming, drain: DrainSignal) {
    let peer = unmapped(incoming.peer);
    let asked = incoming.request.authority.clone();
    let Some(bound) = bind(&shared, &incoming) else {
        shared.telemetry.refused("not-bound");
        limited!(
            LINES, "not-bound",
            warn: %peer, identity = %incoming.peer_identity, %asked, flag = "NOT_BOUND",
            "a CONNECT is refused: nothing that is bound to this waypoint"
        );
        return incoming.reject(StatusCode::BAD_REQUEST);
    };
    if !is_http(&shared, &bound) {
        return opaque(&shared, bound, incoming).await;
    }
    match incoming.accept(None) {
        Ok(stream) => http(shared, Arc::new(bound), stream, drain).await,
        Err(error) => debug!(%peer, %error, "a client gave up"),
    }
}

/// What a CONNECT is for, if it is bound to this waypoint and the client may see it.
fn bind(shared: &Shared, incoming: &Incoming) -> Option<Bound> {
    let from = incoming.peer_identity.namespace();
    let authority = &incoming.request.authority;
    let service = match authority {
        Authority::Address(address) => shared.store.service_at(address.ip(), Some(from)),
        Authority::Host { host, .. } => shared.store.service_named(host.as_str(), Some(from)),
    };
    let (service, port, pod) = match service {
        Some(service) => (service, authority.port(), None),
        None => addressed_pod(shared, authority.address()?)?,
    };
    service.port(port)?;
    let address = service
        .addresses
        .iter()
        .find_map(|address| address.single());
    let asked = authority.address().filter(|_| pod.is_none());
    let destination = asked.or(address.map(|address| SocketAddr::new(address, port)))?;
    let peer = unmapped(incoming.peer);
    // The port is the application's own where the header agrees with the tunnel's address.
    let forwarded = incoming.request.forwarded.as_ref();
    let client = forwarded
        .and_then(|forwarded| forwarded.client)
        .map(unmapped);
    shared.serves(&service).then(|| Bound {
        first: First {
            identity: incoming.peer_identity.clone(),
            address: client
                .filter(|client| client.ip() == peer.ip())
                .unwrap_or(peer),
        },
        service,
        port,
        destination,
        pod,
    })
}

/// The pod at an address, with the services bound here that lead to its port: there is at least one.
fn addressed_pod(shared: &Shared, address: SocketAddr) -> Option<(Arc<Service>, u16, Option<Pod>)> {
    let workload = shared.store.workload_at(address.ip())?;
    if !shared.serves_pod(&workload) {
        return None;
    }
    let mut leading = Vec::new();
    for (key, ports) in &workload.services {
        let service = shared.store.service(key);
        let Some(service) = service.filter(|service| shared.serves(service)) else {
            continue;
        };
        let ports = ports
            .iter()
            .filter(|port| port.target_port == address.port());
        leading.extend(ports.map(|port| (service.clone(), port.service_port)));
    }
    // One that says what it speaks knows better than one that doesn't.
    leading.sort_by_key(|(service, port)| {
        let protocol = service.port(*port).map(|port| port.app_protocol);
        protocol == Some(AppProtocol::Unknown)
    });
    let mut leading = leading.into_iter();
    let (service, port) = leading.next()?;
    let also = leading.collect();
    let pod = Pod {
        workload,
        address,
        also,
    };
    Some((service, port, Some(pod)))
}

/// Whether a port speaks HTTP: because it says so, or because a route is about it. It is never guessed from the bytes.
fn is_http(shared: &Shared, bound: &Bound) -> bool {
    match bound.service.port(bound.port).map(|port| port.app_protocol) {
        Some(AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc) => true,
        Some(AppProtocol::Tcp | AppProtocol::Tls) | None => false,
        Some(AppProtocol::Unknown) => {
            let about = |of: &Option<u16>| of.is_none_or(|of| of == bound.port);
            shared.routes.of(&bound.service.key).iter().any(|rule| {
                let mut parents = rule.parents.iter();
                parents.any(|(service, port)| *service == bound.service.key && about(port))
            })
        }
    }
}

async fn http(shared: Arc<Shared>, bound: Arc<Bound>, stream: Stream, mut drain: DrainSignal) {
    let peer = bound.first.address;
    let service = service_fn(move |request| {
        let answer = request::answer(shared.clone(), bound.clone(), request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
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
        .max_header_list_size(MAX_HEAD as u32);
    let mut connection = std::pin::pin!(
        builder.serve_connection_with_upgrades(TokioIo::new(Lingering::from(stream)), service)
    );
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

/// Bytes that nobody parses, under the policies that don't need it.
async fn opaque(shared: &Shared, bound: Bound, incoming: Incoming) {
    let mut entry = Entry::of_connection(&bound);
    match opaque_upstream(shared, &bound, &mut entry).await {
        Err(failure) => {
            let denied = matches!(failure, Failure::Denied(_));
            incoming.reject(match denied {
                true => StatusCode::UNAUTHORIZED,
                false => StatusCode::SERVICE_UNAVAILABLE,
            });
            entry.failure = Some(failure);
        }
        Ok(mut upstream) => match incoming.accept(None) {
            Ok(mut stream) => match copy_bidirectional(&mut stream, &mut upstream).await {
                Ok((_, back)) => entry.bytes = back,
                Err(error) => debug!(peer = %bound.first.address, %error, "a connection broke"),
            },
            Err(error) => debug!(peer = %bound.first.address, %error, "a client gave up"),
        },
    }
    shared.telemetry.write(&entry);
}

async fn opaque_upstream(shared: &Shared, bound: &Bound, entry: &mut Entry) -> Result<Io, Failure> {
    let decision = judge(shared, bound, None).await;
    entry.decision = Some(decision.clone());
    if !decision.allowed {
        return Err(Failure::Denied(decision.because));
    }
    let client = bound.first.address.ip();
    let endpoint = match &bound.pod {
        Some(pod) => Endpoint::of_pod(pod, &bound.service, &[])?,
        None => upstream::endpoint(shared, &bound.service, bound.port, client, &[])?,
    };
    entry.endpoint = Some(endpoint.clone());
    let generation = upstream::generation(shared).await?;
    shared
        .upstreams
        .open(shared, &endpoint, &bound.first, generation)
        .await
}

fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
