//! From a running proxy to the one that replaces it: keys in memory, and when to let go.
//!
//! The two meet at the agent, which alone can see who each of them is, and which gives them the ends of a socket of
//! their own (`seine.handover.v1`). On it the new one says `HELLO` and is sent all keys (they never touch a disk);
//! then it gets its pods and listeners from the agent, and once it accepts connections itself it says `TAKE_OVER`: the
//! old one stops accepting and drains. Until then nothing has changed for the old one, so that a new one that fails
//! costs nothing, and of several the first that says so takes over.
//!
//! ```text
//! new: "seine-handover 1"   old: "keys <length>", then the export in packets of 64 KiB
//! new: "take over"          old: "draining"
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prost::Message;
use seine_identity::{CertificateManager, KeyExport};
use seine_proto::handover::{Hello, Introduction, Peer, Role};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::agent::{AgentError, AgentSocket};
use crate::seqpacket::SeqPacket;

const HELLO: &[u8] = b"seine-handover 1";
const TAKE_OVER: &[u8] = b"take over";
const DRAINING: &[u8] = b"draining";
/// Below the smallest send buffer that Linux gives.
const PART: usize = 64 * 1024;
/// More keys than a node can have pods.
const MAX_EXPORT: usize = 64 * 1024 * 1024;
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than the agent lets one that starts wait for one that runs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const MAX_MESSAGE: usize = 1024;
/// A new agent lets one that starts wait for a second, so that this proxy can be back before.
const RETRY: Duration = Duration::from_millis(100);

/// Why a hand-over did not happen. The new proxy asks the CA for its certificates instead.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The agent could not be spoken to.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The agent turned this proxy away, and its log says why.
    #[error("the agent closed its hand-over socket without an answer: its log says why")]
    TurnedAway,
    /// The agent's answer is no message of the protocol.
    #[error("the agent's answer about a hand-over is broken: {0}")]
    Protocol(String),
    /// The other proxy went away, or said something else than the protocol wants.
    #[error("the running proxy does not hand over: {0}")]
    Predecessor(#[from] io::Error),
    /// The keys that came can't be used.
    #[error("the keys that were handed over can't be used: {0}")]
    Keys(#[from] seine_identity::HandoverError),
}

/// A running proxy that has handed over its keys and goes on until it is told.
#[derive(Debug)]
pub struct Predecessor(SeqPacket);

/// Takes the keys of the running proxy, if there is one. Waits for the agent: without it this proxy has no pods either.
pub async fn begin(
    agent: &AgentSocket,
    certificates: &CertificateManager,
) -> Result<Option<Predecessor>, HandoverError> {
    let mut complaint = Complaint::default();
    let met = loop {
        match meet(agent).await {
            Ok(met) => break met,
            Err(error) => complaint.about(&error),
        }
        tokio::time::sleep(RETRY).await;
    };
    let Some(socket) = met else {
        return Ok(None);
    };
    socket.send_bytes(HELLO).await?;
    let bytes = timed(receive_keys(&socket)).await?;
    let count = certificates.import(KeyExport::from_bytes(&bytes)?);
    info!(keys = count, "the running proxy handed over its keys");
    Ok(Some(Predecessor(socket)))
}

async fn meet(agent: &AgentSocket) -> Result<Option<SeqPacket>, HandoverError> {
    let socket = come(agent, Role::Successor).await?;
    let answer = introduced(agent, &socket);
    tokio::time::timeout(ANSWER_TIMEOUT, answer)
        .await
        .map_err(|_| agent.failed(io::ErrorKind::TimedOut.into()))?
}

async fn come(agent: &AgentSocket, role: Role) -> Result<SeqPacket, HandoverError> {
    let socket = agent.connect()?;
    let hello = Hello { role: role.into() };
    socket
        .send_bytes(&hello.encode_to_vec())
        .await
        .map_err(|source| agent.failed(source))?;
    Ok(socket)
}

/// The socket to the other proxy, if there is one.
async fn introduced(
    agent: &AgentSocket,
    socket: &SeqPacket,
) -> Result<Option<SeqPacket>, HandoverError> {
    let mut buffer = [0; MAX_MESSAGE];
    let (length, descriptors) = socket
        .recv(&mut buffer)
        .await
        .map_err(|source| agent.failed(source))?
        .ok_or(HandoverError::TurnedAway)?;
    introduction(&buffer[..length], descriptors)
}

/// Whether bytes from the agent's socket are an introduction, for tests of that alone.
#[doc(hidden)]
pub fn understands(bytes: &[u8], descriptors: Vec<OwnedFd>) -> bool {
    introduction(bytes, descriptors).is_ok()
}

fn introduction(
    bytes: &[u8],
    descriptors: Vec<OwnedFd>,
) -> Result<Option<SeqPacket>, HandoverError> {
    let introduction =
        Introduction::decode(bytes).map_err(|error| HandoverError::Protocol(error.to_string()))?;
    match (introduction.peer(), descriptors.into_iter().next()) {
        (Peer::Nobody, None) => Ok(None),
        (Peer::Connected, Some(end)) => SeqPacket::from_descriptor(end)
            .map(Some)
            .map_err(|error| HandoverError::Protocol(error.to_string())),
        (peer, end) => Err(HandoverError::Protocol(format!(
            "{} with{} a socket",
            peer.as_str_name(),
            if end.is_some() { "" } else { "out" },
        ))),
    }
}

/// Says the same thing once, however often it is tried again.
#[derive(Default)]
struct Complaint(String);

impl Complaint {
    fn about(&mut self, error: &HandoverError) {
        let text = error.to_string();
        if text != self.0 {
            warn!(error = %text, "no hand-over for now");
            self.0 = text;
        }
    }
}

/// What the running proxy hands over. Also for tests of that alone.
#[doc(hidden)]
pub async fn receive_keys(socket: &SeqPacket) -> io::Result<Zeroizing<Vec<u8>>> {
    let unexpected = || io::Error::new(io::ErrorKind::InvalidData, "unexpected answer");
    let mut buffer = Zeroizing::new(vec![0; PART]);
    let (length, _) = socket
        .recv(&mut buffer)
        .await?
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    let announced = std::str::from_utf8(&buffer[..length])
        .ok()
        .and_then(|text| text.strip_prefix("keys "));
    let total: usize = announced
        .and_then(|text| text.parse().ok())
        .ok_or_else(unexpected)?;
    if total > MAX_EXPORT {
        return Err(unexpected());
    }
    // Sized beforehand: a vector that grows leaves copies of keys behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(total));
    while bytes.len() < total {
        let (length, _) = socket
            .recv(&mut buffer)
            .await?
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        if length == 0 || bytes.len() + length > total {
            return Err(unexpected());
        }
        bytes.extend_from_slice(&buffer[..length]);
    }
    Ok(bytes)
}

impl Predecessor {
    /// This proxy accepts connections: the old one shall drain.
    pub async fn take_over(self) -> io::Result<()> {
        self.0.send_bytes(TAKE_OVER).await?;
        let mut buffer = [0; 64];
        let answer = timed(self.0.recv(&mut buffer)).await?;
        match answer {
            Some((length, _)) if buffer[..length] == *DRAINING => Ok(()),
            _ => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the old proxy did not say that it drains",
            )),
        }
    }
}

/// Waits for the proxy that replaces this one; returns when it has taken over.
pub async fn serve(agent: &AgentSocket, certificates: &CertificateManager) {
    let replaced = CancellationToken::new();
    tokio::select! {
        () = replaced.cancelled() => {}
        () = accept(agent, certificates, &replaced) => {}
    }
}

/// Never returns. Dropped, it ends every hand-over that is not finished.
async fn accept(
    agent: &AgentSocket,
    certificates: &CertificateManager,
    replaced: &CancellationToken,
) {
    let taken = Arc::new(AtomicBool::new(false));
    let mut complaint = Complaint::default();
    let mut successors = JoinSet::new();
    loop {
        let error = match come(agent, Role::Running).await {
            Ok(socket) => loop {
                match introduced(agent, &socket).await {
                    Ok(Some(successor)) => {
                        while successors.try_join_next().is_some() {}
                        // Each by itself: one that hangs keeps no other from taking over.
                        successors.spawn(serve_one(
                            successor,
                            certificates.clone(),
                            taken.clone(),
                            replaced.clone(),
                        ));
                    }
                    Ok(None) => {}
                    Err(error) => break error,
                }
            },
            Err(error) => error,
        };
        complaint.about(&error);
        tokio::time::sleep(RETRY).await;
    }
}

async fn serve_one(
    successor: SeqPacket,
    certificates: CertificateManager,
    taken: Arc<AtomicBool>,
    replaced: CancellationToken,
) {
    match hand_over(&successor, &certificates, &taken).await {
        Ok(()) => {
            info!("another proxy has taken over");
            replaced.cancel();
        }
        Err(error) => warn!(%error, "a hand-over was begun and not finished"),
    }
}

async fn hand_over(
    socket: &SeqPacket,
    certificates: &CertificateManager,
    taken: &AtomicBool,
) -> io::Result<()> {
    let unexpected = || io::Error::new(io::ErrorKind::InvalidData, "unexpected message");
    let mut buffer = [0; 64];
    let hello = timed(socket.recv(&mut buffer))
        .await?
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    if buffer[..hello.0] != *HELLO {
        return Err(unexpected());
    }
    let bytes = certificates.export().to_bytes();
    timed(async {
        socket
            .send_bytes(format!("keys {}", bytes.len()).as_bytes())
            .await?;
        for part in bytes.chunks(PART) {
            socket.send_bytes(part).await?;
        }
        Ok(())
    })
    .await?;
    drop(bytes);
    // However long the new one takes to become ready.
    let ready = socket
        .recv(&mut buffer)
        .await?
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    if buffer[..ready.0] != *TAKE_OVER {
        return Err(unexpected());
    }
    if taken.swap(true, Ordering::SeqCst) {
        return Err(io::Error::other("another one was first"));
    }
    socket.send_bytes(DRAINING).await
}

async fn timed<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(STEP_TIMEOUT, step)
        .await
        .map_err(|_| io::ErrorKind::TimedOut)?
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use futures::future::BoxFuture;
    use seine_identity::testing::TestCa;
    use seine_identity::{CertificateSource, Identity, ManagerOptions, SourceError, Svid};

    use super::*;
    use crate::seqpacket::SeqPacketListener;

    struct Source(Option<TestCa>);

    impl CertificateSource for Source {
        fn fetch<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Svid, SourceError>> {
            Box::pin(async move {
                let away = || SourceError::Unavailable {
                    source_name: "test".into(),
                    reason: "away".into(),
                };
                let ca = self.0.as_ref().ok_or_else(away)?;
                Ok(ca.svid(identity.namespace(), identity.service_account()))
            })
        }
    }

    fn manager(ca: Option<TestCa>) -> CertificateManager {
        CertificateManager::new(
            Arc::new(Source(ca)),
            Arc::default(),
            ManagerOptions::default(),
        )
    }

    /// What the agent does: who starts is led to the last one that said that it runs.
    struct Agent {
        listener: SeqPacketListener,
        running: Option<SeqPacket>,
    }

    impl Agent {
        fn at(path: &Path) -> Self {
            Self {
                listener: SeqPacketListener::replace(path).unwrap(),
                running: None,
            }
        }

        async fn one(&mut self, role: Role) {
            let socket = self.listener.accept().await.unwrap();
            let mut buffer = [0; MAX_MESSAGE];
            let (length, _) = socket.recv(&mut buffer).await.unwrap().unwrap();
            assert_eq!(Hello::decode(&buffer[..length]).unwrap().role(), role);
            let message = |peer: Peer| Introduction { peer: peer.into() }.encode_to_vec();
            match &self.running {
                _ if role == Role::Running => self.running = Some(socket),
                None => socket.send_bytes(&message(Peer::Nobody)).await.unwrap(),
                Some(running) => {
                    let (here, there) = SeqPacket::pair().unwrap();
                    let connected = message(Peer::Connected);
                    running.send(&connected, &[here]).await.unwrap();
                    socket.send(&connected, &[there]).await.unwrap();
                }
            }
        }
    }

    #[tokio::test]
    async fn a_new_proxy_gets_the_keys_with_the_ca_away_and_then_takes_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover");
        let socket = AgentSocket::new(&path, None);
        let mut agent = Agent::at(&path);
        let new = manager(None);
        let (nobody, ()) = tokio::join!(begin(&socket, &new), agent.one(Role::Successor));
        assert!(nobody.unwrap().is_none());

        let ca = TestCa::new("cluster.local");
        let identity = ca.identity("shop", "web");
        let old = manager(Some(ca));
        old.prefetch(&identity);
        let serial = old.get(&identity).await.unwrap().svid().serial().to_owned();
        let serving = tokio::spawn({
            let socket = socket.clone();
            async move { serve(&socket, &old).await }
        });
        agent.one(Role::Running).await;

        let begin = async |certificates: &CertificateManager, agent: &mut Agent| {
            let (begun, ()) =
                tokio::join!(begin(&socket, certificates), agent.one(Role::Successor));
            begun.unwrap().unwrap()
        };
        // One that gives up changes nothing, nor does one that hangs or a new agent.
        drop(begin(&manager(None), &mut agent).await);
        let hanging = begin(&manager(None), &mut agent).await;
        drop(agent);
        let mut agent = Agent::at(&path);
        agent.one(Role::Running).await;
        let predecessor = begin(&new, &mut agent).await;
        assert!(!serving.is_finished());
        assert_eq!(new.get(&identity).await.unwrap().svid().serial(), serial);
        predecessor.take_over().await.unwrap();
        serving.await.unwrap();
        // The first takes it all.
        assert!(hanging.take_over().await.is_err());
    }

    #[tokio::test]
    async fn keys_are_taken_from_nobody_whom_another_than_the_agent_introduced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover");
        let agent = Agent::at(&path);
        let poses = AgentSocket::new(&path, Some("/no/such/cgroup"));
        let certificates = manager(None);
        // It waits for the agent, and says nothing to who is not.
        tokio::select! {
            begun = begin(&poses, &certificates) => panic!("{begun:?}"),
            said = agent.listener.accept() => {
                let mut buffer = [0; MAX_MESSAGE];
                assert!(said.unwrap().recv(&mut buffer).await.unwrap().is_none());
            }
        }
    }
}
