//! Connections that a pod makes: from the redirected connection to the chosen endpoint.
//!
//! In order: where did it want to go, is that not ourselves, which endpoint is that now, connect; at a failure that
//! left no trace another endpoint; then bytes.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use seine_hbone::{OpenError, Pool, Role, copy, copy_plain};
use seine_workload::{Destination, UnavailableReason};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tracing::debug;

use crate::accept::{may_accept, next};
use crate::connection::{ConnectionInfo, Direction, Party};
use crate::failure::Failure;
use crate::interrupt::unless;
use crate::limits::ConnectionSlot;
use crate::pod::Pod;
use crate::route::{self, Way};
use crate::shared::{Place, Shared};
use crate::sockets::end_as_reset;

/// Accepts the pod's redirected connections until it ends.
pub async fn run(shared: Arc<Shared>, pod: Arc<Pod>, listener: TcpListener) {
    if !may_accept(&shared, &pod).await {
        return;
    }
    while let Some((tcp, client)) = next(&listener, &pod).await {
        let (shared, task_pod) = (shared.clone(), pod.clone());
        let place = shared.workers.for_connection(&pod.home);
        place.serve(&pod.home, pod.life.tasks(), tcp, move |place, tcp| {
            serve(shared, task_pod, place, tcp, client)
        });
    }
}

async fn serve(
    shared: Arc<Shared>,
    pod: Arc<Pod>,
    place: Place,
    tcp: TcpStream,
    client: SocketAddr,
) {
    end_as_reset(&tcp);
    let Some(original) = (shared.environment.original_destination)(&tcp) else {
        let info = ConnectionInfo::accepted(&pod, Direction::Outbound, client, client);
        return shared
            .telemetry
            .on_fail(&info, &Failure::NoOriginalDestination(client));
    };
    let mut info = ConnectionInfo::accepted(&pod, Direction::Outbound, client, original);
    shared.telemetry.on_accept(&mut info, None);
    info.source = Party {
        identity: Some(pod.identity.clone()),
        workload: pod.workload(&shared),
    };

    let cut = pod.life.cut().clone();
    let prepared = tokio::select! {
        // Boxed: its state is larger than all that a standing connection needs.
        prepared = Box::pin(prepare(&shared, &pod, place.own(), &mut info)) => prepared,
        () = reset(&tcp) => Err(Failure::GivenUp),
        () = cut.cancelled() => Err(Failure::Cut("pod")),
    };
    let (way, _slot) = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => {
            // First, so that the client need not wait for the log.
            drop(tcp);
            return shared.telemetry.on_fail(&info, &failure);
        }
    };

    let open = shared.connections.open(info);
    shared.telemetry.on_open(&open);
    let copied = async {
        match way {
            Way::Tunnel(stream) => copy(tcp, *stream, &pod.copy, &open.counters).await,
            Way::Plain(upstream) => copy_plain(tcp, upstream, &pod.copy, &open.counters).await,
        }
    };
    let ended = async {
        tokio::select! {
            because = open.revoked() => Failure::Revoked(because),
            () = cut.cancelled() => Failure::Cut("pod"),
        }
    };
    let failure = match unless(pin!(copied), pin!(ended)).await {
        Ok(end) => Failure::of_copy(&end, Role::Outbound),
        Err(failure) => Some(failure),
    };
    shared.telemetry.on_close(&open, failure.as_ref());
}

/// Waits until the client resets its connection. One that only finished sending is heard to its end.
async fn reset(tcp: &TcpStream) {
    // Fails only when the runtime ends.
    let _ = tcp.ready(Interest::ERROR).await;
}

/// Everything until the other side has accepted.
async fn prepare(
    shared: &Shared,
    pod: &Pod,
    pool: &Pool,
    info: &mut ConnectionInfo,
) -> Result<(Way, ConnectionSlot), Failure> {
    let slot = pod.limits.outbound().ok_or(Failure::Limit)?;
    if is_own(shared, pod, info) {
        return Err(Failure::OwnAddress(info.original));
    }
    let mut tried: Vec<Arc<str>> = Vec::new();
    let mut last: Option<Failure> = None;
    loop {
        let source = info.source.workload.as_deref();
        let destination = match shared.store.resolve(info.original, source, &tried) {
            Ok(destination) => destination,
            Err(unavailable) => {
                info.service.clone_from(&unavailable.service);
                // The failure of the last endpoint says more than that there is no further one.
                let all_tried = unavailable.reason == UnavailableReason::AllTried;
                let failure = last.filter(|_| all_tried);
                return Err(
                    failure.unwrap_or_else(|| Failure::Unavailable(unavailable.to_string()))
                );
            }
        };
        let failure = match route::connect(shared, pod, pool, &destination, info).await {
            Ok(Way::Plain(upstream)) => {
                let slot = pod.limits.both_sockets(slot).ok_or(Failure::Limit)?;
                return Ok((Way::Plain(upstream), slot));
            }
            Ok(way) => return Ok((way, slot)),
            Err(failure) => failure,
        };
        // Only a choice among several can be made again.
        let chosen = match &destination {
            Destination::Workload(upstream) if upstream.service.is_some() => &upstream.workload.uid,
            Destination::Waypoint(waypoint) if waypoint.waypoint_service.is_some() => {
                &waypoint.workload.uid
            }
            _ => return Err(failure),
        };
        tried.push(chosen.clone());
        if !left_no_trace(&failure) || tried.len() >= shared.config.connect_attempts {
            return Err(failure);
        }
        debug!(?pod, original = %info.original, %failure, "trying another endpoint");
        last = Some(failure);
    }
}

/// Whether the application has certainly not seen the attempt.
fn left_no_trace(failure: &Failure) -> bool {
    match failure {
        Failure::Connect { .. } => true,
        Failure::Tunnel(error) => OpenError::retryable(error),
        _ => false,
    }
}

/// A connection to the proxy's own ports in this pod would come back here for ever.
fn is_own(shared: &Shared, pod: &Pod, info: &ConnectionInfo) -> bool {
    let ip = info.original.ip();
    let loopback = ip.is_loopback() && !shared.environment.loopback_is_remote;
    let own = ip == info.client.ip()
        || info
            .source
            .workload
            .as_ref()
            .is_some_and(|workload| workload.addresses.contains(&ip));
    ip.is_unspecified() || loopback || (own && pod.ports.contains(info.original.port()))
}
