//! The server that tells node proxies which pods to serve (`istio.workload.zds`).
//!
//! One task for each connected proxy; there are two during a hand-over. A task sends what differs
//! between the pods that the keeper publishes and what it has sent, one message at a time, each
//! after the answer to the one before. A pod that the proxy answered with an error is sent again
//! later.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use prost::Message;
use seine_proto::zds::AddWorkload;
use seine_proto::zds::DelWorkload;
use seine_proto::zds::SnapshotSent;
use seine_proto::zds::Version;
use seine_proto::zds::WorkloadInfo;
use seine_proto::zds::WorkloadRequest;
use seine_proto::zds::WorkloadResponse;
use seine_proto::zds::ZdsHello;
use seine_proto::zds::workload_request::Payload;
use seine_proto::zds::workload_response;
use seine_telemetry::limited;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio::time::sleep_until;
use tokio::time::timeout;

use crate::door;
use crate::door::Door;
use crate::keeper::Command;
use crate::metrics::Metrics;
use crate::seqpacket::Connection;
use crate::seqpacket::Listener;
use crate::served::Served;
use crate::served::ServedPod;

const MAX_MESSAGE: usize = 1024;
/// A proxy that says nothing for so long is not one.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// A proxy answers when it listens for the pod, for which it may wait for its certificate.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// Until a pod that the proxy refused is sent again.
const RETRY: Duration = Duration::from_secs(5);

/// Why a connection to a proxy ended.
#[derive(Debug, thiserror::Error)]
pub enum ZdsError {
    /// The socket broke, or a message was too long.
    #[error(transparent)]
    Socket(#[from] io::Error),
    /// The proxy closed in the middle of an exchange.
    #[error("the proxy closed before it answered")]
    Closed,
    /// The proxy did not answer.
    #[error("the proxy did not answer within {0:?}")]
    Silent(Duration),
    /// The proxy sent what the protocol has not.
    #[error("the proxy sent what the protocol does not have here: {0}")]
    Protocol(String),
    /// The proxy does not speak version 1.
    #[error("the proxy speaks version {0} of the protocol, the agent speaks 1")]
    Version(i32),
}

/// Serves proxies until the future is dropped.
pub(crate) async fn serve(
    listener: Listener,
    door: Door,
    served: watch::Receiver<Option<Arc<Served>>>,
    commands: Sender<Command>,
    metrics: Metrics,
) {
    let mut proxies = tokio::task::JoinSet::new();
    loop {
        let connection = listener.next("a node proxy").await;
        while proxies.try_join_next().is_some() {}
        let (door, served, metrics) = (door.clone(), served.clone(), metrics.clone());
        let (reply, known) = oneshot::channel();
        // A keeper that is gone ends this task too.
        let _ = commands.send(Command::ProxyArrived { reply });
        proxies.spawn(async move {
            // Until the kernel knows its cgroup, its own connections would be caught; nor does the
            // door know it.
            let _ = known.await;
            let pid = match door.admit(&connection) {
                Ok(credentials) => credentials.pid,
                Err(reason) => {
                    Metrics::count(&metrics.refused_peers, "ztunnel");
                    limited!(door::REFUSED, "ztunnel", warn: %reason, "refused to tell a process of the node's pods");
                    return;
                }
            };
            tracing::info!(pid, "a node proxy connected");
            metrics.proxies.inc();
            let ended = Proxy {
                connection,
                pid,
                metrics: metrics.clone(),
            }
            .follow(served)
            .await;
            metrics.proxies.dec();
            match ended {
                Ok(()) => tracing::info!(pid, "a node proxy went away"),
                Err(error) => tracing::warn!(pid, %error, "a node proxy went away"),
            }
        });
    }
}

/// Tells one proxy, that came through no door.
pub(crate) async fn hear(
    connection: Connection,
    served: watch::Receiver<Option<Arc<Served>>>,
) -> Result<(), ZdsError> {
    let proxy = Proxy {
        connection,
        pid: 0,
        metrics: Metrics::default(),
    };
    proxy.follow(served).await
}

struct Proxy {
    connection: Connection,
    pid: i32,
    metrics: Metrics,
}

/// What a proxy was told of a pod: its network namespace's cookie.
type Told = BTreeMap<String, u64>;

impl Proxy {
    async fn follow(
        self,
        mut served: watch::Receiver<Option<Arc<Served>>>,
    ) -> Result<(), ZdsError> {
        if !self.hello().await? {
            return Ok(());
        }
        let mut told = Told::new();
        let mut in_snapshot = true;
        loop {
            let Some(now) = served.borrow_and_update().clone() else {
                // Before the pods of an earlier agent are taken over nobody is told anything.
                if served.changed().await.is_err() {
                    return Ok(());
                }
                continue;
            };
            let complete = self.bring_to(&now, &mut told).await?;
            if in_snapshot {
                self.exchange(Payload::SnapshotSent(SnapshotSent {}), None)
                    .await?;
                in_snapshot = false;
                tracing::info!(pid = self.pid, pods = told.len(), "snapshot sent");
            }
            let retry = Instant::now() + RETRY;
            tokio::select! {
                changed = served.changed() => if changed.is_err() { return Ok(()) },
                () = sleep_until(retry), if !complete => {}
                received = self.connection.receive(MAX_MESSAGE) => match received? {
                    None => return Ok(()),
                    Some(_) => return Err(ZdsError::Protocol("a message without a request".into())),
                },
            }
        }
    }

    /// Version exchange; false if the proxy went away at once.
    async fn hello(&self) -> Result<bool, ZdsError> {
        let received = timeout(HELLO_TIMEOUT, self.connection.receive(MAX_MESSAGE))
            .await
            .map_err(|_| ZdsError::Silent(HELLO_TIMEOUT))??;
        let Some((message, _)) = received else {
            return Ok(false);
        };
        let hello = ZdsHello::decode(message.as_slice())
            .map_err(|error| ZdsError::Protocol(error.to_string()))?;
        if hello.version != i32::from(Version::V1) {
            return Err(ZdsError::Version(hello.version));
        }
        Ok(true)
    }

    /// Sends the difference; false if the proxy refused something.
    async fn bring_to(&self, now: &Served, told: &mut Told) -> Result<bool, ZdsError> {
        let gone: Vec<_> = told
            .keys()
            .filter(|uid| !now.contains_key(*uid))
            .cloned()
            .collect();
        for uid in gone {
            self.exchange(Payload::Del(DelWorkload { uid: uid.clone() }), None)
                .await?;
            told.remove(&uid);
        }
        let mut complete = true;
        for (uid, pod) in now.iter() {
            if told.get(uid) == Some(&pod.cookie) {
                continue;
            }
            if self.exchange(add(pod), Some(pod.netns.as_fd())).await? {
                told.insert(uid.clone(), pod.cookie);
            } else {
                complete = false;
            }
        }
        Ok(complete)
    }

    /// One message and its answer; false if the answer is an error, which is logged.
    async fn exchange(
        &self,
        payload: Payload,
        netns: Option<BorrowedFd<'_>>,
    ) -> Result<bool, ZdsError> {
        let what = describe(&payload);
        let message = WorkloadRequest {
            payload: Some(payload),
        }
        .encode_to_vec();
        let descriptors: Vec<_> = netns.into_iter().collect();
        self.connection.send(&message, &descriptors).await?;
        let (answer, _) = timeout(ANSWER_TIMEOUT, self.connection.receive(MAX_MESSAGE))
            .await
            .map_err(|_| ZdsError::Silent(ANSWER_TIMEOUT))??
            .ok_or(ZdsError::Closed)?;
        let answer = WorkloadResponse::decode(answer.as_slice())
            .map_err(|error| ZdsError::Protocol(error.to_string()))?;
        match answer.payload {
            Some(workload_response::Payload::Ack(ack)) if ack.error.is_empty() => Ok(true),
            Some(workload_response::Payload::Ack(ack)) => {
                self.metrics.proxy_errors.inc();
                tracing::warn!(pid = self.pid, %what, error = %ack.error, "the node proxy refused");
                Ok(false)
            }
            None => Err(ZdsError::Protocol("an answer without content".into())),
        }
    }
}

fn add(pod: &ServedPod) -> Payload {
    Payload::Add(AddWorkload {
        uid: pod.uid.clone(),
        workload_info: Some(WorkloadInfo {
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            service_account: pod.service_account.clone(),
        }),
    })
}

fn describe(payload: &Payload) -> String {
    match payload {
        Payload::Add(add) => format!("add of {}", add.uid),
        Payload::Del(del) => format!("removal of {}", del.uid),
        Payload::SnapshotSent(_) => "end of the snapshot".to_owned(),
        Payload::Keep(keep) => format!("keep of {}", keep.uid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use seine_proto::zds::Ack;
    use std::fs::File;

    fn pods(uids: &[(&str, u64)]) -> Option<Arc<Served>> {
        let pod = |uid: &str, cookie| ServedPod {
            uid: uid.into(),
            name: format!("pod-{uid}"),
            namespace: "shop".into(),
            service_account: "web".into(),
            cookie,
            netns: Arc::new(File::open("/dev/null").unwrap().into()),
            listeners: None,
        };
        Some(Arc::new(
            uids.iter()
                .map(|(uid, cookie)| ((*uid).to_owned(), Arc::new(pod(uid, *cookie))))
                .collect(),
        ))
    }

    struct TestProxy(Connection);

    impl TestProxy {
        async fn connect(path: &std::path::Path) -> Self {
            let proxy = Self(Connection::connect(path).unwrap());
            let hello = ZdsHello {
                version: Version::V1.into(),
            };
            proxy.0.send(&hello.encode_to_vec(), &[]).await.unwrap();
            proxy
        }

        async fn next(&self, error: &str) -> (Payload, usize) {
            let (message, descriptors) = self.0.receive(1024).await.unwrap().unwrap();
            let payload = WorkloadRequest::decode(message.as_slice())
                .unwrap()
                .payload
                .unwrap();
            let ack = workload_response::Payload::Ack(Ack {
                error: error.into(),
            });
            let answer = WorkloadResponse { payload: Some(ack) };
            self.0.send(&answer.encode_to_vec(), &[]).await.unwrap();
            (payload, descriptors.len())
        }

        async fn expect(&self, wanted: &str) {
            let (payload, descriptors) = self.next("").await;
            assert_eq!(describe(&payload), wanted);
            assert_eq!(descriptors, usize::from(matches!(payload, Payload::Add(_))));
        }
    }

    fn start(
        first: Option<Arc<Served>>,
    ) -> (
        tempfile::TempDir,
        std::path::PathBuf,
        watch::Sender<Option<Arc<Served>>>,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("z");
        let listener = Listener::bind(&path).unwrap();
        let (sender, receiver) = watch::channel(first);
        tokio::spawn(serve(
            listener,
            Door::default(),
            receiver,
            // No keeper: nobody has to know of the proxy's cgroup.
            std::sync::mpsc::channel().0,
            Metrics::default(),
        ));
        (folder, path, sender)
    }

    #[tokio::test]
    async fn a_proxy_gets_the_snapshot_and_then_what_changes() {
        let (_folder, path, pods_now) = start(pods(&[("a", 1), ("b", 2)]));
        let proxy = TestProxy::connect(&path).await;
        proxy.expect("add of a").await;
        proxy.expect("add of b").await;
        proxy.expect("end of the snapshot").await;
        pods_now.send_replace(pods(&[("b", 2), ("c", 3)]));
        proxy.expect("removal of a").await;
        proxy.expect("add of c").await;
        // A pod in a new network namespace is told of again.
        pods_now.send_replace(pods(&[("b", 9), ("c", 3)]));
        proxy.expect("add of b").await;
    }

    #[tokio::test]
    async fn two_proxies_are_told_each_for_itself_and_nobody_before_the_pods_are_known() {
        let (_folder, path, pods_now) = start(None);
        let (old, new) = (
            TestProxy::connect(&path).await,
            TestProxy::connect(&path).await,
        );
        let early = timeout(Duration::from_millis(50), old.next("")).await;
        assert!(early.is_err(), "told {early:?} too early");
        pods_now.send_replace(pods(&[("a", 1)]));
        for proxy in [&old, &new] {
            proxy.expect("add of a").await;
            proxy.expect("end of the snapshot").await;
        }
    }

    #[tokio::test]
    async fn a_pod_that_the_proxy_refused_is_sent_again() {
        let (_folder, path, _pods_now) = start(pods(&[("a", 1)]));
        let proxy = TestProxy::connect(&path).await;
        let (payload, _) = proxy.next("no certificate").await;
        assert_eq!(describe(&payload), "add of a");
        proxy.expect("end of the snapshot").await;
        tokio::time::pause();
        proxy.expect("add of a").await;
    }

    #[tokio::test]
    async fn another_version_and_garbage_end_the_connection() {
        let (_folder, path, _pods_now) = start(pods(&[]));
        for bytes in [ZdsHello { version: 7 }.encode_to_vec(), vec![0xff; 100]] {
            let connection = Connection::connect(&path).unwrap();
            connection.send(&bytes, &[]).await.unwrap();
            assert!(connection.receive(1024).await.unwrap().is_none());
        }
    }
}
