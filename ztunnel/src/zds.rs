//! The client of the agent's pod socket (`istio.workload.zds`): which pods this proxy serves.
//!
//! One task runs [`follow`] for as long as the proxy accepts connections. The agent begins each connection with a
//! snapshot; what the snapshot does not name is removed at its end, never before: a restart of the agent disturbs no
//! pod. Every message is answered before the next. Works the same with the agent of another ambient mesh.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use prost::Message;
use seine_proto::zds::{
    Ack, Version, WorkloadRequest, WorkloadResponse, ZdsHello, workload_request::Payload,
    workload_response,
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::agent::{AgentError, AgentSocket};
use crate::netns::Netns;

/// Longest message of the protocol, in bytes.
const MAX_MESSAGE: usize = 1024;
const FIRST_BACKOFF: Duration = Duration::from_millis(10);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// A pod, as the agent names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PodInfo {
    /// The pod's uid; the key.
    pub uid: String,
    /// Name of the pod.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
}

/// Receives what the agent says. Called by one task, in the agent's order.
pub trait PodSink: Send + Sync {
    /// Serve this pod. An error is told to the agent.
    fn add(&self, pod: PodInfo, netns: Netns) -> impl Future<Output = Result<(), String>> + Send;
    /// Serve it no more.
    fn remove(&self, uid: &str);
    /// Serve no pods but these.
    fn retain(&self, uids: &HashSet<String>);
    /// The agent's first snapshot has been taken over.
    fn synced(&self);
}

/// Why a connection to the agent ended.
#[derive(Debug, thiserror::Error)]
pub enum ZdsError {
    /// It could not be spoken to.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The agent went away.
    #[error("the agent closed {0}")]
    Closed(PathBuf),
    /// The agent sent something that is no message of the protocol.
    #[error("the agent sent what this protocol doesn't have: {0}")]
    Protocol(String),
}

/// Follows the agent until `stop`, reconnecting with a backoff of 10 ms doubling to 5 s.
pub async fn follow(agent: &AgentSocket, sink: &impl PodSink, stop: CancellationToken) {
    let mut backoff = FIRST_BACKOFF;
    loop {
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = converse(agent, sink) => ended,
        };
        if ended.messages > 0 {
            backoff = FIRST_BACKOFF;
        }
        // Live connections and accepted listeners go on meanwhile.
        warn!(error = %ended.error, retry_in = ?backoff, "the agent is away");
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(backoff) => {}
        }
        backoff = (backoff * 2).min(MAX_BACKOFF);
    }
}

struct Ended {
    messages: usize,
    error: ZdsError,
}

async fn converse(agent: &AgentSocket, sink: &impl PodSink) -> Ended {
    let mut messages = 0;
    let outcome: Result<(), ZdsError> = async {
        let socket = agent.connect()?;
        let hello = ZdsHello {
            version: Version::V1 as i32,
        };
        socket
            .send_bytes(&hello.encode_to_vec())
            .await
            .map_err(|source| agent.failed(source))?;
        let mut snapshot = Some(HashSet::new());
        let mut buffer = [0; MAX_MESSAGE];
        loop {
            let received = socket
                .recv(&mut buffer)
                .await
                .map_err(|source| agent.failed(source))?;
            let Some((length, descriptors)) = received else {
                return Err(ZdsError::Closed(agent.path().to_owned()));
            };
            messages += 1;
            let request = parse(&buffer[..length], descriptors)?;
            let error = apply(request, sink, &mut snapshot)
                .await
                .err()
                .unwrap_or_default();
            let answer = WorkloadResponse {
                payload: Some(workload_response::Payload::Ack(Ack {
                    error: bounded(error),
                })),
            };
            socket
                .send_bytes(&answer.encode_to_vec())
                .await
                .map_err(|source| agent.failed(source))?;
        }
    }
    .await;
    match outcome {
        Ok(()) => Ended {
            messages,
            error: ZdsError::Closed(agent.path().to_owned()),
        },
        Err(error) => Ended { messages, error },
    }
}

#[derive(Debug)]
enum Request {
    Add(PodInfo, Netns),
    Keep(String),
    Remove(String),
    SnapshotSent,
}

/// `snapshot` holds the uids named so far, until the snapshot ends.
async fn apply(
    request: Request,
    sink: &impl PodSink,
    snapshot: &mut Option<HashSet<String>>,
) -> Result<(), String> {
    match request {
        Request::Add(pod, netns) => {
            if let Some(named) = snapshot {
                named.insert(pod.uid.clone());
            }
            info!(pod = %pod.name, namespace = %pod.namespace, uid = %pod.uid, "the agent names a pod to serve");
            sink.add(pod, netns).await
        }
        Request::Keep(uid) => {
            if let Some(named) = snapshot {
                named.insert(uid);
            }
            Ok(())
        }
        Request::Remove(uid) => {
            if let Some(named) = snapshot {
                named.remove(&uid);
            }
            info!(%uid, "the agent takes a pod back");
            sink.remove(&uid);
            Ok(())
        }
        Request::SnapshotSent => {
            // A second one has nothing left to compare with.
            if let Some(named) = snapshot.take() {
                debug!(pods = named.len(), "the agent's snapshot is complete");
                sink.retain(&named);
                sink.synced();
            }
            Ok(())
        }
    }
}

/// Whether bytes from the agent's socket are a request, for tests of that alone.
#[doc(hidden)]
pub fn understands(bytes: &[u8], descriptors: Vec<OwnedFd>) -> bool {
    parse(bytes, descriptors).is_ok()
}

fn parse(bytes: &[u8], mut descriptors: Vec<OwnedFd>) -> Result<Request, ZdsError> {
    let protocol = |why: String| ZdsError::Protocol(why);
    let message = WorkloadRequest::decode(bytes).map_err(|error| protocol(error.to_string()))?;
    match message.payload {
        Some(Payload::Add(add)) => {
            let info = add
                .workload_info
                .ok_or_else(|| protocol(format!("pod {:?} without its name", add.uid)))?;
            let (Some(descriptor), true) = (descriptors.pop(), descriptors.is_empty()) else {
                return Err(protocol(format!(
                    "pod {:?} needs exactly one descriptor",
                    add.uid
                )));
            };
            if add.uid.is_empty() || info.name.is_empty() || info.namespace.is_empty() {
                return Err(protocol("a pod without uid, name or namespace".to_owned()));
            }
            let netns = Netns::from_descriptor(descriptor).map_err(|error| {
                protocol(format!(
                    "the network namespace of pod {:?}: {error}",
                    add.uid
                ))
            })?;
            let service_account = if info.service_account.is_empty() {
                "default".to_owned()
            } else {
                info.service_account
            };
            Ok(Request::Add(
                PodInfo {
                    uid: add.uid,
                    name: info.name,
                    namespace: info.namespace,
                    service_account,
                },
                netns,
            ))
        }
        Some(Payload::Keep(keep)) => Ok(Request::Keep(keep.uid)),
        Some(Payload::Del(del)) => Ok(Request::Remove(del.uid)),
        Some(Payload::SnapshotSent(_)) => Ok(Request::SnapshotSent),
        None => Err(protocol("a request of no known kind".to_owned())),
    }
}

/// An error that fits into one message with room to spare.
fn bounded(mut error: String) -> String {
    let limit = MAX_MESSAGE - 64;
    if error.len() > limit {
        let cut = (0..=limit)
            .rev()
            .find(|&at| error.is_char_boundary(at))
            .unwrap_or(0);
        error.truncate(cut);
    }
    error
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use seine_proto::zds::{AddWorkload, DelWorkload, KeepWorkload, SnapshotSent, WorkloadInfo};

    use super::*;
    use crate::seqpacket::{SeqPacket, SeqPacketListener};

    #[derive(Default)]
    struct Recorded(Mutex<Vec<String>>);

    impl Recorded {
        fn note(&self, line: String) {
            self.0.lock().push(line);
        }
    }

    impl PodSink for Recorded {
        async fn add(&self, pod: PodInfo, _netns: Netns) -> Result<(), String> {
            self.note(format!("add {} {}", pod.uid, pod.service_account));
            if pod.uid == "bad" {
                Err("no room".repeat(500))
            } else {
                Ok(())
            }
        }
        fn remove(&self, uid: &str) {
            self.note(format!("remove {uid}"));
        }
        fn retain(&self, uids: &HashSet<String>) {
            let mut uids: Vec<_> = uids.iter().cloned().collect();
            uids.sort();
            self.note(format!("retain {}", uids.join(",")));
        }
        fn synced(&self) {
            self.note("synced".to_owned());
        }
    }

    fn add(uid: &str) -> Payload {
        let workload_info = Some(WorkloadInfo {
            name: "n".into(),
            namespace: "ns".into(),
            service_account: String::new(),
        });
        Payload::Add(AddWorkload {
            uid: uid.into(),
            workload_info,
        })
    }

    async fn say(agent: &SeqPacket, payload: Payload) -> String {
        let bytes = WorkloadRequest {
            payload: Some(payload.clone()),
        }
        .encode_to_vec();
        if matches!(payload, Payload::Add(_)) {
            agent
                .send(&bytes, &[std::fs::File::open("/proc/self/ns/net").unwrap()])
                .await
                .unwrap();
        } else {
            agent.send_bytes(&bytes).await.unwrap();
        }
        let mut buffer = [0; MAX_MESSAGE];
        let (length, _) = agent.recv(&mut buffer).await.unwrap().expect("an answer");
        match WorkloadResponse::decode(&buffer[..length]).unwrap().payload {
            Some(workload_response::Payload::Ack(ack)) => ack.error,
            None => panic!("no ack"),
        }
    }

    /// `setns` into even one's own namespace needs CAP_SYS_ADMIN.
    fn privileged() -> bool {
        let own = std::fs::File::open("/proc/self/ns/net").unwrap();
        Netns::from_descriptor(own.into()).is_ok()
    }

    #[tokio::test]
    async fn pods_that_a_snapshot_does_not_name_are_removed_at_its_end() {
        if !privileged() {
            println!("SKIPPED what a snapshot removes: it needs root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("zds");
        let listener = SeqPacketListener::replace(&path).unwrap();
        let sink = Recorded::default();
        let stop = CancellationToken::new();
        let agent = async {
            let agent = listener.accept().await.unwrap();
            let mut buffer = [0; MAX_MESSAGE];
            let (length, _) = agent.recv(&mut buffer).await.unwrap().unwrap();
            assert_eq!(
                ZdsHello::decode(&buffer[..length]).unwrap().version,
                Version::V1 as i32
            );
            assert_eq!(say(&agent, add("a")).await, "");
            assert!(say(&agent, add("bad")).await.starts_with("no room"));
            assert_eq!(
                say(&agent, Payload::Keep(KeepWorkload { uid: "k".into() })).await,
                ""
            );
            assert_eq!(
                say(&agent, Payload::SnapshotSent(SnapshotSent {})).await,
                ""
            );
            assert_eq!(
                say(&agent, Payload::Del(DelWorkload { uid: "a".into() })).await,
                ""
            );
            drop(agent);
            // It comes back by itself.
            listener.accept().await.unwrap();
            stop.cancel();
        };
        let socket = AgentSocket::new(&path, None);
        tokio::join!(follow(&socket, &sink, stop.clone()), agent);
        let seen = sink.0.lock().clone();
        assert_eq!(
            seen,
            [
                "add a default",
                "add bad default",
                "retain a,bad,k",
                "synced",
                "remove a"
            ]
        );
    }

    #[tokio::test]
    async fn a_request_without_its_descriptor_ends_the_connection() {
        let bytes = WorkloadRequest {
            payload: Some(add("a")),
        }
        .encode_to_vec();
        assert!(matches!(
            parse(&bytes, Vec::new()),
            Err(ZdsError::Protocol(_))
        ));
        assert!(matches!(
            parse(&[0xff; 40], Vec::new()),
            Err(ZdsError::Protocol(_))
        ));
        assert!(matches!(parse(&[], Vec::new()), Err(ZdsError::Protocol(_))));
    }
}
