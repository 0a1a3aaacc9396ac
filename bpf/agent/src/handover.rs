//! Where a ztunnel that starts meets the one that runs, to take over its keys (`seine.handover.v1`).
//!
//! Neither can see who the other is: in Kubernetes each has a PID namespace of its own. The agent
//! sees both, admits each by its door, and gives them the two ends of a socket. What they say on it
//! passes by the agent, which never sees a key.

use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use nix::sys::socket::AddressFamily;
use nix::sys::socket::SockFlag;
use nix::sys::socket::SockType;
use nix::sys::socket::socketpair;
use prost::Message;
use seine_proto::handover::Hello;
use seine_proto::handover::Introduction;
use seine_proto::handover::Peer;
use seine_proto::handover::Role;
use seine_telemetry::limited;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio::time::timeout;
use tokio::time::timeout_at;

use crate::door;
use crate::door::Door;
use crate::keeper::Command;
use crate::metrics::Metrics;
use crate::seqpacket::Connection;
use crate::seqpacket::Listener;

const MAX_MESSAGE: usize = 1024;
/// A proxy that says or takes nothing for so long is not one.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// For so long after the agent's start, one that starts waits for one that runs: that one, if there
/// is any, comes back to the new agent within a few tenths of a second.
const GRACE: Duration = Duration::from_secs(1);

/// The proxies that run, the newest last. A hand-over that fails leaves the older one in its place.
type Running = watch::Sender<Vec<Arc<Connection>>>;

/// Serves proxies until the future is dropped.
pub(crate) async fn serve(
    listener: Listener,
    door: Door,
    commands: Sender<Command>,
    metrics: Metrics,
) {
    let running = Running::default();
    let all_are_back = Instant::now() + GRACE;
    let mut proxies = tokio::task::JoinSet::new();
    loop {
        let connection = listener.next("a node proxy").await;
        while proxies.try_join_next().is_some() {}
        let (door, running, metrics) = (door.clone(), running.clone(), metrics.clone());
        let (reply, known) = oneshot::channel();
        // A keeper that is gone ends this task too.
        let _ = commands.send(Command::ProxyArrived { reply });
        proxies.spawn(async move {
            // Until the keeper has looked for its cgroup, the door may not know it.
            let _ = known.await;
            let pid = match door.admit(&connection) {
                Ok(credentials) => credentials.pid,
                Err(reason) => {
                    Metrics::count(&metrics.refused_peers, "handover");
                    limited!(door::REFUSED, "handover", warn: %reason, "refused to let a process take part in a hand-over");
                    return;
                }
            };
            if let Err(error) = attend(connection, &running, all_are_back).await {
                tracing::warn!(pid, %error, "a hand-over between node proxies");
            }
        });
    }
}

/// Hears one proxy, that came through no door and has the agent to itself.
pub(crate) async fn hear(proxy: Connection) -> io::Result<()> {
    attend(proxy, &Running::default(), Instant::now()).await
}

async fn attend(
    connection: Connection,
    running: &Running,
    all_are_back: Instant,
) -> io::Result<()> {
    let unexpected = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let Some((message, _)) = timed(connection.receive(MAX_MESSAGE)).await? else {
        return Ok(());
    };
    let hello = Hello::decode(message.as_slice())
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    match hello.role() {
        Role::Running => {
            let connection = Arc::new(connection);
            let _listed = Listed::new(running, connection.clone());
            match connection.receive(MAX_MESSAGE).await? {
                None => Ok(()),
                Some(_) => Err(unexpected(
                    "a message of one that runs, which has nothing to say",
                )),
            }
        }
        Role::Successor => {
            let mut changes = running.subscribe();
            let anybody = changes.wait_for(|running| !running.is_empty());
            let _ = timeout_at(all_are_back, anybody).await;
            introduce(&connection, running).await
        }
        Role::Unspecified => Err(unexpected("neither running nor a successor")),
    }
}

/// Gives the successor and the newest proxy that takes it the ends of a socket.
async fn introduce(successor: &Connection, running: &Running) -> io::Result<()> {
    let candidates = running.borrow().clone();
    for candidate in candidates.iter().rev() {
        let (here, there) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        )?;
        match tell(candidate, Peer::Connected, Some(here)).await {
            Ok(()) => return tell(successor, Peer::Connected, Some(there)).await,
            Err(error) => tracing::info!(%error, "a node proxy that ran has gone"),
        }
    }
    tell(successor, Peer::Nobody, None).await
}

async fn tell(connection: &Connection, peer: Peer, end: Option<OwnedFd>) -> io::Result<()> {
    let message = Introduction { peer: peer.into() }.encode_to_vec();
    let descriptors: Vec<_> = end.iter().map(AsFd::as_fd).collect();
    timed(connection.send(&message, &descriptors)).await
}

async fn timed<T>(step: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(STEP_TIMEOUT, step)
        .await
        .map_err(|_| io::ErrorKind::TimedOut)?
}

/// Among those that run, for as long as this lives.
struct Listed<'a> {
    running: &'a Running,
    connection: Arc<Connection>,
}

impl<'a> Listed<'a> {
    fn new(running: &'a Running, connection: Arc<Connection>) -> Self {
        running.send_modify(|running| running.push(connection.clone()));
        Self {
            running,
            connection,
        }
    }
}

impl Drop for Listed<'_> {
    fn drop(&mut self) {
        self.running
            .send_modify(|running| running.retain(|one| !Arc::ptr_eq(one, &self.connection)));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::path::PathBuf;

    use super::*;
    use crate::door::Cgroups;

    fn start(door: Door) -> (tempfile::TempDir, PathBuf, Metrics) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("h");
        let listener = Listener::bind(&path).unwrap();
        let metrics = Metrics::default();
        // No keeper: nobody has to know of the proxy's cgroup.
        let commands = std::sync::mpsc::channel().0;
        tokio::spawn(serve(listener, door, commands, metrics.clone()));
        (folder, path, metrics)
    }

    async fn come(path: &Path, role: Role) -> Connection {
        let connection = Connection::connect(path).unwrap();
        let hello = Hello { role: role.into() };
        connection.send(&hello.encode_to_vec(), &[]).await.unwrap();
        connection
    }

    async fn told(connection: &Connection) -> (Peer, Option<UnixStream>) {
        let (message, mut descriptors) = connection.receive(MAX_MESSAGE).await.unwrap().unwrap();
        let introduction = Introduction::decode(message.as_slice()).unwrap();
        // Read and write are those of any socket.
        (introduction.peer(), descriptors.pop().map(UnixStream::from))
    }

    fn are_joined(one: UnixStream, other: UnixStream) {
        (&one).write_all(b"keys").unwrap();
        let mut buffer = [0; 8];
        let length = (&other).read(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"keys");
    }

    #[tokio::test]
    async fn one_that_starts_meets_the_newest_of_those_that_run() {
        let (_folder, path, _) = start(Door::default());
        let _old = come(&path, Role::Running).await;
        let first = come(&path, Role::Successor).await;
        let (Peer::Connected, Some(_end)) = told(&first).await else {
            panic!("the old one was not found");
        };
        let newer = come(&path, Role::Running).await;
        // It is listed once somebody is led to it.
        let (mine, its) = loop {
            let successor = come(&path, Role::Successor).await;
            let (Peer::Connected, Some(mine)) = told(&successor).await else {
                panic!("nobody was found");
            };
            if let Ok((Peer::Connected, Some(its))) =
                timeout(Duration::from_millis(50), told(&newer)).await
            {
                break (mine, its);
            }
        };
        are_joined(mine, its);
    }

    #[tokio::test]
    async fn one_that_went_away_is_passed_over() {
        let (_folder, path, _) = start(Door::default());
        let old = come(&path, Role::Running).await;
        let first = come(&path, Role::Successor).await;
        assert_eq!(told(&first).await.0, Peer::Connected);
        drop(told(&old).await);
        let newer = come(&path, Role::Running).await;
        drop(newer);
        let successor = come(&path, Role::Successor).await;
        let (Peer::Connected, Some(mine)) = told(&successor).await else {
            panic!("the old one was not found");
        };
        are_joined(mine, told(&old).await.1.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_right_after_the_agents_start_waits_for_one_that_runs_and_not_for_ever() {
        let (_folder, path, _) = start(Door::default());
        let begun = Instant::now();
        let successor = come(&path, Role::Successor).await;
        assert_eq!(told(&successor).await.0, Peer::Nobody);
        assert!(begun.elapsed() >= GRACE, "{:?}", begun.elapsed());
        let later = come(&path, Role::Successor).await;
        let asked = Instant::now();
        assert_eq!(told(&later).await.0, Peer::Nobody);
        assert!(asked.elapsed() < GRACE);
    }

    #[tokio::test]
    async fn one_outside_of_the_proxies_cgroup_and_garbage_are_turned_away() {
        let door = Door {
            below: Some(Cgroups::new(vec!["/no/such/cgroup".into()])),
            outside: None,
        };
        let (_folder, path, metrics) = start(door);
        let successor = Connection::connect(&path).unwrap();
        assert!(successor.receive(MAX_MESSAGE).await.unwrap().is_none());
        let refused = metrics
            .refused_peers
            .get_or_create(&crate::metrics::Label { kind: "handover" })
            .get();
        assert_eq!(refused, 1);

        let (_folder, path, _) = start(Door::default());
        for role in [Role::Unspecified] {
            let one = come(&path, role).await;
            assert!(one.receive(MAX_MESSAGE).await.unwrap().is_none());
        }
        let garbage = Connection::connect(&path).unwrap();
        garbage.send(&[0xff; 100], &[]).await.unwrap();
        assert!(garbage.receive(MAX_MESSAGE).await.unwrap().is_none());
    }
}
