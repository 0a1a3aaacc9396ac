//! From a running proxy to the one that replaces it: keys in memory, and when to let go.
//!
//! The running proxy listens on a `SEQPACKET` socket of its own. The new one says `HELLO` and is sent all keys (they
//! never touch a disk); then it gets its pods and listeners from the agent, and once it accepts connections itself it
//! says `TAKE_OVER`: the old one stops accepting and drains. Until then nothing has changed for the old one, so that
//! a new one that fails costs nothing. The peer must be root or this user and, where a cgroup is set, below it.
//!
//! ```text
//! new: "seine-handover 1"   old: "keys <length>", then the export in packets of 64 KiB
//! new: "take over"          old: "draining"
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use seine_identity::{CertificateManager, KeyExport};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use zeroize::Zeroizing;

use crate::seqpacket::{SeqPacket, SeqPacketListener};

const HELLO: &[u8] = b"seine-handover 1";
const TAKE_OVER: &[u8] = b"take over";
const DRAINING: &[u8] = b"draining";
/// Below the smallest send buffer that Linux gives.
const PART: usize = 64 * 1024;
/// More keys than a node can have pods.
const MAX_EXPORT: usize = 64 * 1024 * 1024;
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a hand-over did not happen. The new proxy asks the CA for its certificates instead.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The socket failed.
    #[error("the hand-over socket {path} failed: {source}")]
    Socket {
        /// Path of the socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The other proxy said something else than the protocol wants.
    #[error("the running proxy does not hand over: {0}")]
    Protocol(String),
    /// The keys that came can't be used.
    #[error("the keys that were handed over can't be used: {0}")]
    Keys(#[from] seine_identity::HandoverError),
}

/// A running proxy that has handed over its keys and goes on until it is told.
#[derive(Debug)]
pub struct Predecessor(SeqPacket);

/// Asks the running proxy, if there is one, for its keys.
pub async fn begin(
    path: &Path,
    certificates: &CertificateManager,
) -> Result<Option<Predecessor>, HandoverError> {
    let failed = |source| HandoverError::Socket {
        path: path.to_owned(),
        source,
    };
    let socket = match SeqPacket::connect(path) {
        Ok(socket) => socket,
        // Nobody is there, or the one who was has died.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    // Keys are taken from a trusted process only, as they are given to one.
    let peer = socket.peer().map_err(failed)?;
    peer.is_trusted(None).map_err(HandoverError::Protocol)?;
    socket.send_bytes(HELLO).await.map_err(failed)?;
    let bytes = timed(receive_keys(&socket)).await.map_err(failed)?;
    let count = certificates.import(KeyExport::from_bytes(&bytes)?);
    info!(
        keys = count,
        pid = peer.pid,
        "the running proxy handed over its keys"
    );
    Ok(Some(Predecessor(socket)))
}

async fn receive_keys(socket: &SeqPacket) -> io::Result<Zeroizing<Vec<u8>>> {
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

/// Waits for the proxy that replaces this one; cancels `replaced` when it has taken over.
pub async fn serve(
    path: PathBuf,
    cgroup: Option<String>,
    certificates: CertificateManager,
    replaced: CancellationToken,
) -> Result<(), HandoverError> {
    let listener = SeqPacketListener::replace(&path).map_err(|source| HandoverError::Socket {
        path: path.clone(),
        source,
    })?;
    loop {
        let socket = match listener.accept().await {
            Ok(socket) => socket,
            Err(error) => {
                warn!(%error, "accept on the hand-over socket failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let trusted = socket
            .peer()
            .map_err(|error| error.to_string())
            .and_then(|peer| {
                peer.is_trusted(cgroup.as_deref())?;
                Ok(peer)
            });
        let peer = match trusted {
            Ok(peer) => peer,
            Err(reason) => {
                warn!(%reason, "a process that may not take over was refused");
                continue;
            }
        };
        match hand_over(&socket, &certificates).await {
            Ok(()) => {
                info!(pid = peer.pid, "another proxy has taken over");
                replaced.cancel();
                return Ok(());
            }
            Err(error) => warn!(pid = peer.pid, %error, "a hand-over was begun and not finished"),
        }
    }
}

async fn hand_over(socket: &SeqPacket, certificates: &CertificateManager) -> io::Result<()> {
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
    socket.send_bytes(DRAINING).await
}

async fn timed<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(STEP_TIMEOUT, step)
        .await
        .map_err(|_| io::ErrorKind::TimedOut)?
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::future::BoxFuture;
    use seine_identity::testing::TestCa;
    use seine_identity::{CertificateSource, Identity, ManagerOptions, SourceError, Svid};

    use super::*;

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

    #[tokio::test]
    async fn a_new_proxy_gets_the_keys_with_the_ca_away_and_then_takes_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover");
        let new = manager(None);
        assert!(
            begin(&path, &new).await.unwrap().is_none(),
            "nobody runs yet"
        );

        let ca = TestCa::new("cluster.local");
        let identity = ca.identity("shop", "web");
        let old = manager(Some(ca));
        let serial = old.get(&identity).await.unwrap().svid().serial().to_owned();
        let replaced = CancellationToken::new();
        let serving = tokio::spawn(serve(path.clone(), None, old, replaced.clone()));
        while !path.exists() {
            tokio::task::yield_now().await;
        }

        // One that gives up changes nothing.
        drop(begin(&path, &manager(None)).await.unwrap());
        let predecessor = begin(&path, &new).await.unwrap().unwrap();
        assert!(!replaced.is_cancelled());
        assert_eq!(new.get(&identity).await.unwrap().svid().serial(), serial);
        predecessor.take_over().await.unwrap();
        replaced.cancelled().await;
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_process_outside_of_the_cgroup_gets_no_keys() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("handover");
        let cgroup = Some("/no/such/cgroup".to_owned());
        let serving = tokio::spawn(serve(
            path.clone(),
            cgroup,
            manager(None),
            CancellationToken::new(),
        ));
        while !path.exists() {
            tokio::task::yield_now().await;
        }
        let refused = begin(&path, &manager(None)).await;
        assert!(
            matches!(refused, Err(HandoverError::Socket { .. })),
            "{refused:?}"
        );
        serving.abort();
    }
}
