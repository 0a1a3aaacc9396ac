//! HBONE towards a pod: from the accepted TCP connection to the application.
//!
//! One task drives a tunnel (`serve_tunnel`), one more each of its streams (`serve_stream`). In order: a place among the
//! pod's peers, the first byte, a turn for the handshake, TLS as the pod's identity, then for each CONNECT: is it for this pod, is the port not ours, does
//! policy allow it, does the application accept, does policy still allow it. Only then 200.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use seine_hbone::{
    Accepted, Authority, Fault, Incoming, Io, Role, ServeError, Unanswered, accept, copy,
};
use seine_identity::CertificateError;
use seine_policy::{Decision, Reason};
use seine_telemetry::limited;
use seine_workload::Workload;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::accept::{may_accept, next};
use crate::connection::{ConnectionInfo, Direction, Party, Security};
use crate::failure::Failure;
use crate::interrupt::unless;
use crate::judge::{Subject, judge, judge_entered, workload_at};
use crate::peers::{Stranger, Tunnel};
use crate::pod::Pod;
use crate::proxy_protocol;
use crate::shared::{Place, Shared};
use crate::sockets::{Source, refuse, unmapped};

/// How long the streams of a tunnel that is ended have to say why.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Accepts tunnels to a pod until it ends.
pub async fn run(shared: Arc<Shared>, pod: Arc<Pod>, listener: TcpListener) {
    if !may_accept(&shared, &pod).await {
        return;
    }
    while let Some((tcp, peer)) = next(&listener, &pod).await {
        let Some(stranger) = pod.limits.stranger(peer.ip()) else {
            shared.telemetry.on_tunnel_refused("limit");
            limited!(
                pod.limits.tunnel_lines, "peers",
                warn: ?pod, %peer, flag = "LIMIT", "a tunnel is refused: too many peers wait for theirs"
            );
            refuse(tcp);
            continue;
        };
        let (shared, task_pod) = (shared.clone(), pod.clone());
        let place = shared.workers.for_tunnel(&pod.home);
        place.serve(
            &pod.home,
            pod.life.tasks(),
            tcp,
            move |place, tcp| async move {
                let cut = task_pod.life.cut().clone();
                tokio::select! {
                    () = serve_tunnel(shared, task_pod, place, stranger, tcp, peer) => {}
                    () = cut.cancelled() => {}
                }
            },
        );
    }
}

async fn serve_tunnel(
    shared: Arc<Shared>,
    pod: Arc<Pod>,
    place: Place,
    stranger: Stranger,
    tcp: TcpStream,
    peer: SocketAddr,
) {
    let lines = &pod.limits.tunnel_lines;
    let Ok(local) = tcp.local_addr().map(unmapped) else {
        return;
    };
    if local.ip().is_loopback() && !shared.environment.loopback_is_remote {
        limited!(lines, "own", warn: ?pod, %peer, %local, flag = "REFUSED", "HBONE from within the pod is refused");
        return refuse(tcp);
    }
    let trust = shared.trust.before_handshake();
    let (accepted, _tunnel) = match handshake(&shared, &pod, stranger, tcp, peer).await {
        Ok(accepted) => accepted,
        Err(Refused::Silent) => {
            shared.telemetry.on_tunnel_refused("timeout");
            return debug!(?pod, %peer, "a peer that said nothing is let go");
        }
        Err(Refused::Limit(of)) => {
            shared.telemetry.on_tunnel_refused("limit");
            return limited!(
                lines, of,
                warn: ?pod, %peer, flag = "LIMIT", "a tunnel is refused: too many {of} of this pod"
            );
        }
        Err(Refused::Identity(error)) => {
            shared.telemetry.on_tunnel_refused("own-certificate");
            return limited!(
                lines, "own-certificate",
                warn: ?pod, %peer, flag = "IDENTITY", %error, "a tunnel is refused"
            );
        }
        // A handshake that fails is somebody without the right certificate.
        Err(Refused::Peer(error, reason)) => {
            shared.telemetry.on_tunnel_refused(reason);
            return limited!(
                lines, reason,
                warn: ?pod, %peer, flag = "TLS_FAILURE", %error, "a tunnel is refused"
            );
        }
        Err(Refused::Tunnel(error)) => {
            return limited!(lines, "ended", info: ?pod, %peer, %error, "a tunnel ended");
        }
    };
    let chain = accepted.chain().clone();
    let distrust = watch::Sender::new(None);
    let served = accepted.serve(pod.draining(), |incoming| {
        let (shared, pod, distrusted) = (shared.clone(), pod.clone(), distrust.subscribe());
        let (place, life) = (place.clone(), pod.life.clone());
        life.spawn(serve_stream(
            shared, pod, place, local, distrusted, incoming,
        ));
    });
    let distrusted = async {
        let reason = trust.lost(chain).await;
        warn!(?pod, %peer, flag = "TLS_FAILURE", %reason, "a tunnel is ended: its peer is no longer trusted");
        distrust.send_replace(Some(reason));
        // Its streams end and say why, each for itself, before the tunnel under them goes.
        let _ = timeout(LAST_WORDS, distrust.closed()).await;
    };
    tokio::select! {
        served = served => if let Err(error) = served {
            limited!(lines, "ended", info: ?pod, %peer, %error, "a tunnel ended");
        },
        () = distrusted => {}
    }
}

/// Why a tunnel was not accepted.
enum Refused {
    /// Not a byte came.
    Silent,
    /// Too many of these.
    Limit(&'static str),
    Identity(CertificateError),
    Peer(ServeError, &'static str),
    Tunnel(ServeError),
}

/// Waits for the peer's first byte and for a turn, then TLS and HTTP/2.
///
/// A peer that says nothing takes nobody's turn, and neither does one that waits for our own certificate.
async fn handshake(
    shared: &Shared,
    pod: &Pod,
    stranger: Stranger,
    tcp: TcpStream,
    peer: SocketAddr,
) -> Result<(Accepted, Tunnel), Refused> {
    let limit = shared.config.handshake_timeout;
    if timeout(limit, tcp.readable()).await.is_err() {
        refuse(tcp);
        return Err(Refused::Silent);
    }
    let credentials = match shared.certificates.get(&pod.identity).await {
        Ok(credentials) => credentials,
        Err(error) => {
            refuse(tcp);
            return Err(Refused::Identity(error));
        }
    };
    let Ok(turn) = timeout(limit, stranger.turn()).await else {
        refuse(tcp);
        return Err(Refused::Limit("handshakes"));
    };
    let accepted = accept(Io::from(tcp), peer, &credentials, shared.hbone.clone()).await;
    drop(turn);
    let accepted = accepted.map_err(|error| match error.refusal() {
        Some(reason) => Refused::Peer(error, reason),
        None => Refused::Tunnel(error),
    })?;
    let tunnel = stranger.proved().ok_or(Refused::Limit("tunnels"))?;
    Ok((accepted, tunnel))
}

/// From a CONNECT to the end of its connection.
async fn serve_stream(
    shared: Arc<Shared>,
    pod: Arc<Pod>,
    _place: Place,
    local: SocketAddr,
    mut distrusted: watch::Receiver<Option<Arc<str>>>,
    mut incoming: Incoming,
) {
    let forwarded = incoming.request.forwarded.clone().unwrap_or_default();
    let peer = unmapped(incoming.peer);
    // The port is the application's own where the header agrees with the tunnel's address; it is for the log alone.
    let client = forwarded
        .client
        .map(unmapped)
        .filter(|client| client.ip() == peer.ip())
        .unwrap_or(peer);
    let asked = incoming.request.authority.clone();
    let asked_address = asked
        .address()
        .unwrap_or(SocketAddr::new(local.ip(), asked.port()));
    let mut info = ConnectionInfo::accepted(&pod, Direction::Inbound, client, asked_address);
    let trace = incoming.request.traceparent.as_ref();
    shared.telemetry.on_accept(&mut info, trace);
    info.security = Security::MutualTls;
    info.source = Party {
        identity: Some(incoming.peer_identity.clone()),
        workload: workload_at(&shared, peer),
    };
    info.destination = Party {
        identity: Some(pod.identity.clone()),
        workload: pod.workload(&shared),
    };
    info.on_behalf_of = incoming.request.first_client.clone();
    info.first_address = forwarded.client.map(unmapped);

    let since_verdict = shared.store.policies_changed();
    let cut = pod.life.cut().clone();
    let prepared = tokio::select! {
        prepared = prepare(&shared, &pod, local, &asked, &mut info) => prepared,
        why = incoming.unanswered(pod.copy.memory.as_ref()) => Err(match why {
            Unanswered::GivenUp(error) => {
                debug!(?pod, %peer, %error, "a client gave up");
                Failure::GivenUp
            }
            Unanswered::Stalled => Failure::Stalled(Fault::Upstream),
        }),
        reason = said(&mut distrusted) => Err(Failure::Distrusted(reason)),
        () = cut.cancelled() => Err(Failure::Cut("pod")),
    };
    let (application, _slot) = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => {
            incoming.reject(status(&failure));
            return shared.telemetry.on_fail(&info, &failure);
        }
    };
    let open = shared.connections.open(info);
    if let Err(failure) = judge_entered(&shared, &open, &since_verdict) {
        incoming.reject(status(&failure));
        refuse(application);
        return shared.telemetry.on_fail(&open.info, &failure);
    }
    let baggage = open
        .info
        .destination
        .workload
        .as_deref()
        .map(crate::route::baggage);
    let stream = match incoming.accept(baggage.as_ref()) {
        Ok(stream) => stream,
        Err(error) => {
            debug!(?pod, %peer, %error, "a client gave up");
            refuse(application);
            return shared.telemetry.on_fail(&open.info, &Failure::GivenUp);
        }
    };
    shared.telemetry.on_open(&open);
    let ended = async {
        tokio::select! {
            because = open.revoked() => Failure::Revoked(because),
            reason = said(&mut distrusted) => Failure::Distrusted(reason),
            () = cut.cancelled() => Failure::Cut("pod"),
        }
    };
    let copied = copy(application, stream, &pod.copy, &open.counters);
    let failure = match unless(pin!(copied), pin!(ended)).await {
        Ok(end) => Failure::of_copy(&end, Role::Inbound),
        Err(failure) => Some(failure),
    };
    shared.telemetry.on_close(&open, failure.as_ref());
}

/// Waits until the tunnel's peer is no longer trusted, and why.
async fn said(distrusted: &mut watch::Receiver<Option<Arc<str>>>) -> Arc<str> {
    let reason = distrusted
        .wait_for(Option::is_some)
        .await
        .map(|reason| reason.clone());
    match reason {
        Ok(Some(reason)) => reason,
        // The tunnel is gone, which its streams learn from itself.
        _ => std::future::pending().await,
    }
}

/// Everything between the CONNECT and the application's answer.
async fn prepare(
    shared: &Shared,
    pod: &Pod,
    local: SocketAddr,
    asked: &Authority,
    info: &mut ConnectionInfo,
) -> Result<(TcpStream, crate::limits::ConnectionSlot), Failure> {
    let slot = pod.limits.inbound().ok_or(Failure::Limit)?;
    let not_this_pod = || Failure::NotThisPod {
        authority: asked.to_string(),
        pod: pod.info.name.clone(),
    };
    let destination = destination(shared, pod, local, asked).ok_or_else(not_this_pod)?;
    info.original = destination;
    if pod.ports.contains(destination.port()) {
        return Err(Failure::OwnAddress(destination));
    }
    let decision = judge(shared, pod, Subject::of(info)).await;
    let bound = |workload: Arc<Workload>| workload.bound_to(destination.port()).is_some();
    if !pod.workload(shared).is_some_and(bound) || is_bypass(&decision) {
        // Nobody's word but a waypoint's: neither for the log nor for the application.
        (info.on_behalf_of, info.first_address) = (None, None);
    }
    shared.telemetry.on_verdict(info, &decision);
    info.because = Some(decision.because.clone());
    if !decision.allowed {
        return Err(Failure::Denied(decision.because));
    }
    let application = reach(shared, pod, destination, info).await?;
    Ok((application, slot))
}

/// Whether somebody else than the port's waypoint asks.
fn is_bypass(decision: &Decision) -> bool {
    matches!(decision.because, Reason::BoundToWaypoint { .. })
}

/// Connects to the application, or to where it takes the PROXY protocol, and tells it then who its client is.
async fn reach(
    shared: &Shared,
    pod: &Pod,
    destination: SocketAddr,
    info: &mut ConnectionInfo,
) -> Result<TcpStream, Failure> {
    let workload = info.destination.workload.as_deref();
    let tunnel = workload.and_then(|workload| workload.proxy_protocol_port);
    // Without a port of its own the protocol is spoken on the one that was asked for.
    let port = tunnel
        .filter(|port| *port != 0)
        .unwrap_or(destination.port());
    let to = SocketAddr::new(destination.ip(), port);
    if pod.ports.contains(port) {
        return Err(Failure::OwnAddress(to));
    }
    info.upstream = Some(to);
    let client = info.first_client();
    let mut application = dial_application(shared, pod, client, to).await?;
    if tunnel.is_some() {
        let identity = info.on_behalf_of.as_ref().or(info.source.identity.as_ref());
        let header = proxy_protocol::header(client, destination, identity);
        let written = application.write_all(&header).await;
        written.map_err(|source| Failure::Connect { to, source })?;
    }
    Ok(application)
}

/// Connects to the application as the client, so that it sees the client's address.
pub(crate) async fn dial_application(
    shared: &Shared,
    pod: &Pod,
    client: SocketAddr,
    to: SocketAddr,
) -> Result<TcpStream, Failure> {
    // A client of the other family can't be shown: the application then sees an address of the pod.
    let same_family = client.is_ipv4() == to.is_ipv4();
    let source = if shared.environment.preserve_client && same_family && client.ip() != to.ip() {
        Source::Foreign(client.ip())
    } else {
        Source::Any
    };
    pod.dialer
        .connect(to, source)
        .await
        .map_err(|source| Failure::Connect { to, source })
}

/// The address and port of the pod that an authority means; none if it is not for this pod.
fn destination(
    shared: &Shared,
    pod: &Pod,
    local: SocketAddr,
    asked: &Authority,
) -> Option<SocketAddr> {
    match asked {
        Authority::Address(address) => {
            let address = unmapped(*address);
            // The address that the tunnel came to is the pod's. Another one of its own is good, too.
            let own = address.ip() == local.ip()
                || pod
                    .workload(shared)
                    .is_some_and(|workload| workload.addresses.contains(&address.ip()));
            let loopback = address.ip().is_loopback() && !shared.environment.loopback_is_remote;
            (own && !loopback).then_some(address)
        }
        // A network gateway names the service and its port.
        Authority::Host { host, port } => {
            let workload = pod.workload(shared)?;
            let (service, _) = workload
                .services
                .iter()
                .find(|(service, _)| *service.hostname == *host.as_str())?;
            let target = workload.target_port(service, port.get())?;
            Some(SocketAddr::new(local.ip(), target))
        }
    }
}

fn status(failure: &Failure) -> StatusCode {
    match failure {
        Failure::Denied(_) => StatusCode::UNAUTHORIZED,
        Failure::NotThisPod { .. } => StatusCode::BAD_REQUEST,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}
