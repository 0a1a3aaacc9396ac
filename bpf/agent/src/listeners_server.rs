//! The server that hands a pod's listening sockets to the node proxy (`seine.listeners.v1`).
//!
//! One request, one answer, in order, as many as the proxy wants on a connection. The agent keeps
//! its own descriptors of the same sockets, so that they outlive the proxy.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use prost::Message;
use seine_proto::listeners::Listener as ListenerEntry;
use seine_proto::listeners::ListenersRequest;
use seine_proto::listeners::ListenersResponse;
use seine_telemetry::limited;
use tokio::sync::watch;

use crate::door;
use crate::door::Door;
use crate::metrics::Metrics;
use crate::seqpacket::Connection;
use crate::seqpacket::Listener;
use crate::served::Served;
use crate::sockets::Held;

const MAX_MESSAGE: usize = 1024;

/// Serves proxies until the future is dropped.
pub async fn serve(
    listener: Listener,
    door: Door,
    served: watch::Receiver<Option<Arc<Served>>>,
    metrics: Metrics,
) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let connection = listener.next("a node proxy").await;
        while connections.try_join_next().is_some() {}
        if let Err(reason) = door.admit(&connection) {
            Metrics::count(&metrics.refused_peers, "listeners");
            limited!(door::REFUSED, "listeners", warn: %reason, "refused to hand listening sockets to a process");
            continue;
        }
        let served = served.clone();
        connections.spawn(async move {
            if let Err(error) = converse(&connection, &served).await {
                tracing::warn!(%error, "hand over listening sockets");
            }
        });
    }
}

pub(crate) async fn converse(
    connection: &Connection,
    served: &watch::Receiver<Option<Arc<Served>>>,
) -> io::Result<()> {
    while let Some((message, _)) = connection.receive(MAX_MESSAGE).await? {
        let request = ListenersRequest::decode(message.as_slice())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let now = served.borrow().clone();
        match listeners(now.as_deref(), &request.uid) {
            Ok(held) => {
                let listeners = held
                    .iter()
                    .map(|h| ListenerEntry {
                        kind: h.kind.into(),
                        family: h.family.into(),
                    })
                    .collect();
                let answer = ListenersResponse {
                    error: String::new(),
                    listeners,
                };
                let descriptors: Vec<_> = held.iter().map(AsFd::as_fd).collect();
                connection
                    .send(&answer.encode_to_vec(), &descriptors)
                    .await?;
            }
            Err(error) => {
                let answer = ListenersResponse {
                    error,
                    listeners: Vec::new(),
                };
                connection.send(&answer.encode_to_vec(), &[]).await?;
            }
        }
    }
    Ok(())
}

fn listeners(served: Option<&Served>, uid: &str) -> Result<Arc<Vec<Held>>, String> {
    let pod = served
        .ok_or("the agent has not taken over the pods of the node yet")?
        .get(uid)
        // The UID may be anything, so it is not repeated at full length.
        .ok_or_else(|| format!("no pod {:.64} is enrolled on this node", uid))?;
    pod.listeners.clone().ok_or_else(|| {
        "the pod's listening sockets are held by another process; see /status of the agent"
            .to_owned()
    })
}
