//! The verdict on a connection towards a pod, and the verdict again whenever policy changes.
//!
//! Policies that the pod's workload names and that haven't arrived are waited for, within a bound; then the answer is
//! no. Everything else is [`seine_policy::verdict`]'s.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use seine_identity::Identity;
use seine_policy::{Applicable, Connection, Decision, verdict};
use seine_workload::Workload;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::info;

use crate::connection::{ConnectionInfo, Direction, Live};
use crate::failure::Failure;
use crate::pod::Pod;
use crate::shared::Shared;

/// How long a burst of changes is gathered.
const ROUND: Duration = Duration::from_millis(20);

/// Who wants to connect, from where, to which address and port of the pod.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The address that the connection comes from.
    pub client: SocketAddr,
    /// The pod's address and the application's port.
    pub destination: SocketAddr,
    /// The identity that was verified; none for plaintext.
    pub peer: Option<&'a Identity>,
    /// For whom a waypoint says it asks. Honoured only from the waypoint that is bound to the port.
    pub on_behalf_of: Option<&'a Identity>,
    /// The address of that one; the same.
    pub first_address: Option<SocketAddr>,
}

impl<'a> Subject<'a> {
    /// Of a connection towards a pod.
    pub fn of(info: &'a ConnectionInfo) -> Self {
        Self {
            client: info.client,
            destination: info.original,
            peer: info.source.identity.as_ref(),
            on_behalf_of: info.on_behalf_of.as_ref(),
            first_address: info.first_address,
        }
    }
}

/// Judges a connection, waiting for policies that are known by name alone for at most the configured time.
pub async fn judge(shared: &Shared, pod: &Pod, subject: Subject<'_>) -> Decision {
    let mut changes = shared.store.changed();
    let deadline = Instant::now() + shared.config.policy_wait;
    loop {
        changes.mark_unchanged();
        let missing = match judge_now(shared, pod, subject) {
            Ok(decision) => return decision,
            Err(missing) => missing,
        };
        match tokio::time::timeout_at(deadline, changes.changed()).await {
            Ok(Ok(())) => {}
            // The store lives as long as the process.
            Ok(Err(_)) | Err(_) => return Decision::missing(missing),
        }
    }
}

/// Judges by what is known now; the error names what is missing.
pub fn judge_now(
    shared: &Shared,
    pod: &Pod,
    subject: Subject<'_>,
) -> Result<Decision, Arc<[Arc<str>]>> {
    let Some(workload) = pod.workload(shared) else {
        return Err([Arc::from(format!(
            "the workload of pod {}/{}",
            pod.info.namespace, pod.info.name
        ))]
        .into());
    };
    let port = subject.destination.port();
    let bound = workload.bound_to(port).is_some();
    if !shared
        .store
        .admits(&workload, port, subject.peer, subject.client.ip())
    {
        return Ok(Decision::bound_to_waypoint(port));
    }
    let (client, identity) = if bound {
        (
            subject.first_address.unwrap_or(subject.client),
            subject.on_behalf_of.or(subject.peer),
        )
    } else {
        (subject.client, subject.peer)
    };
    match shared.store.policies_for(&workload.uid) {
        Applicable::Ready(policies) => {
            let connection = Connection {
                source: client,
                destination: subject.destination,
                identity,
                request: None,
            };
            Ok(verdict(&policies, &connection))
        }
        Applicable::Missing(names) => Err(names),
    }
}

/// Judges a connection again that has just been entered among the live ones, if the configuration has changed since
/// before its verdict. While the application was dialled, [`rejudge_on_change`] did not see it; from now on it does.
pub(crate) fn judge_entered(
    shared: &Shared,
    entered: &Live,
    since_verdict: &watch::Receiver<u64>,
) -> Result<(), Failure> {
    // Fails only when the store is gone, which `shared` holds.
    if !since_verdict.has_changed().unwrap_or(true) {
        return Ok(());
    }
    let info = &entered.info;
    let decision =
        judge_now(shared, &info.pod, Subject::of(info)).unwrap_or_else(Decision::missing);
    if decision.allowed {
        Ok(())
    } else {
        Err(Failure::Denied(decision.because))
    }
}

/// The workload that has an address on this node's network.
pub fn workload_at(shared: &Shared, address: SocketAddr) -> Option<Arc<Workload>> {
    shared.store.workload_at(address.ip())
}

/// Judges all live connections towards pods again on every change of the configuration, and ends those that are no
/// longer allowed. Runs as one task.
pub async fn rejudge_on_change(shared: Arc<Shared>) {
    let mut changes = shared.store.policies_changed();
    let mut certificates = shared.certificates.changes();
    // When a policy that is known by name alone will have been waited for long enough.
    let mut overdue_at: Option<Instant> = None;
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            changed = certificates.changed() => if changed.is_err() { return },
            () = sleep_until(overdue_at) => {}
            () = shared.life.cut().cancelled() => return,
        }
        // A burst of pushes is one round: a policy takes effect within this time.
        tokio::time::sleep(ROUND).await;
        changes.mark_unchanged();
        certificates.mark_unchanged();
        let overdue = overdue_at.is_some_and(|at| at <= Instant::now());
        let waits = rejudge(&shared, overdue);
        overdue_at = match (waits, overdue_at) {
            (false, _) => None,
            (true, Some(at)) if !overdue => Some(at),
            (true, _) => Some(Instant::now() + shared.config.policy_wait),
        };
    }
}

/// Whether a connection's policies are still missing. With `overdue`, those connections are ended.
fn rejudge(shared: &Shared, overdue: bool) -> bool {
    let (mut ended, mut waits) = (0, false);
    for live in shared.connections.list() {
        let info = &live.info;
        // The end of a pod ends its connections: its workload may go first.
        if info.direction != Direction::Inbound || info.pod.workload(shared).is_none() {
            continue;
        }
        let decision = match judge_now(shared, &info.pod, Subject::of(info)) {
            Ok(decision) => decision,
            Err(missing) if overdue => Decision::missing(missing),
            Err(_) => {
                waits = true;
                continue;
            }
        };
        if !decision.allowed {
            live.revoke(decision.because);
            ended += 1;
        }
    }
    if ended > 0 {
        info!(
            connections = ended,
            "a change of the configuration ends live connections"
        );
    }
    waits
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
