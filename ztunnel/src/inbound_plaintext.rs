//! Plaintext towards a pod, captured before it reaches the application: the same verdict, without an identity.

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use seine_hbone::{Role, copy_plain};
use tokio::net::{TcpListener, TcpStream};

use crate::accept::{may_accept, next};
use crate::connection::{ConnectionInfo, Direction, Party};
use crate::failure::Failure;
use crate::inbound::dial_application;
use crate::interrupt::unless;
use crate::judge::{Subject, judge, judge_entered, workload_at};
use crate::limits::ConnectionSlot;
use crate::pod::Pod;
use crate::shared::{Place, Shared};
use crate::sockets::{end_as_reset, refuse, unmapped};

/// Accepts plaintext to a pod until it ends.
pub async fn run(shared: Arc<Shared>, pod: Arc<Pod>, listener: TcpListener) {
    if !may_accept(&shared, &pod).await {
        return;
    }
    let own_port = listener
        .local_addr()
        .map_or(shared.ports.inbound_plaintext, |address| address.port());
    while let Some((tcp, client)) = next(&listener, &pod).await {
        let (shared, task_pod) = (shared.clone(), pod.clone());
        let place = shared.workers.for_connection(&pod.home);
        place.serve(&pod.home, pod.life.tasks(), tcp, move |place, tcp| {
            serve(shared, task_pod, place, tcp, client, own_port)
        });
    }
}

async fn serve(
    shared: Arc<Shared>,
    pod: Arc<Pod>,
    _place: Place,
    tcp: TcpStream,
    client: SocketAddr,
    own_port: u16,
) {
    end_as_reset(&tcp);
    // Steered by sk_lookup, the socket's own address is where the client wanted to go; redirected by conntrack, it
    // has to be asked for.
    let original = (shared.environment.original_destination)(&tcp)
        .or_else(|| tcp.local_addr().ok().map(unmapped));
    let Some(original) = original else { return };
    let mut info = ConnectionInfo::accepted(&pod, Direction::Inbound, client, original);
    shared.telemetry.on_accept(&mut info, None);
    info.source.workload = workload_at(&shared, client);
    info.destination = Party {
        identity: Some(pod.identity.clone()),
        workload: pod.workload(&shared),
    };

    let since_verdict = shared.store.policies_changed();
    let cut = pod.life.cut().clone();
    let prepared = tokio::select! {
        prepared = prepare(&shared, &pod, own_port, &mut info) => prepared,
        () = cut.cancelled() => Err(Failure::Cut("pod")),
    };
    let (application, _slot) = match prepared {
        Ok(prepared) => prepared,
        Err(failure) => {
            // First, so that the client need not wait for the log.
            drop(tcp);
            return shared.telemetry.on_fail(&info, &failure);
        }
    };

    let open = shared.connections.open(info);
    if let Err(failure) = judge_entered(&shared, &open, &since_verdict) {
        drop(tcp);
        refuse(application);
        return shared.telemetry.on_fail(&open.info, &failure);
    }
    shared.telemetry.on_open(&open);
    let ended = async {
        tokio::select! {
            because = open.revoked() => Failure::Revoked(because),
            () = cut.cancelled() => Failure::Cut("pod"),
        }
    };
    // The application first, as in a tunnel.
    let copied = copy_plain(application, tcp, &pod.copy, &open.counters);
    let failure = match unless(pin!(copied), pin!(ended)).await {
        Ok(end) => Failure::of_copy(&end, Role::Inbound),
        Err(failure) => Some(failure),
    };
    shared.telemetry.on_close(&open, failure.as_ref());
}

/// Everything until the application has accepted.
async fn prepare(
    shared: &Shared,
    pod: &Pod,
    own_port: u16,
    info: &mut ConnectionInfo,
) -> Result<(TcpStream, ConnectionSlot), Failure> {
    let slot = pod.limits.inbound();
    let slot = slot.and_then(|slot| pod.limits.both_sockets(slot));
    let slot = slot.ok_or(Failure::Limit)?;
    let loopback = info.original.ip().is_loopback() && !shared.environment.loopback_is_remote;
    if loopback || info.original.port() == own_port || pod.ports.contains(info.original.port()) {
        return Err(Failure::OwnAddress(info.original));
    }
    let decision = judge(shared, pod, Subject::of(info)).await;
    shared.telemetry.on_verdict(info, &decision);
    info.because = Some(decision.because.clone());
    if !decision.allowed {
        return Err(Failure::Denied(decision.because));
    }
    info.upstream = Some(info.original);
    let application = dial_application(shared, pod, info.client, info.original).await?;
    Ok((application, slot))
}
