//! Who may use a local socket: user and cgroup of the process at the other end.
//!
//! A process is below a cgroup if the cgroup's own list of processes names it. That holds whatever
//! cgroup namespace the agent has, in which paths of `/proc/PID/cgroup` would mean something else;
//! the agent must see the processes (the host's PID namespace).

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;
use nix::unistd::geteuid;
use parking_lot::RwLock;
use seine_telemetry::Lines;

use crate::seqpacket::Connection;
use crate::seqpacket::Credentials;

/// The log's lines about peers that were turned away, by their socket: any process of the node may knock.
pub(crate) static REFUSED: Lines = Lines::new();

/// What a peer must be.
#[derive(Clone, Debug, Default)]
pub struct Door {
    /// The peer is a process of one of these cgroups or one below.
    pub below: Option<Cgroups>,
    /// The peer is no process of this cgroup, nor of one below it.
    pub outside: Option<PathBuf>,
}

/// Cgroups that may change while doors are judged by them; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Cgroups(Arc<RwLock<Vec<PathBuf>>>);

impl Cgroups {
    /// These.
    pub fn new(cgroups: Vec<PathBuf>) -> Self {
        Self(Arc::new(RwLock::new(cgroups)))
    }

    /// Others from now on.
    pub fn set(&self, cgroups: Vec<PathBuf>) {
        *self.0.write() = cgroups;
    }

    /// Those of now.
    pub fn list(&self) -> Vec<PathBuf> {
        self.0.read().clone()
    }
}

/// Why a peer is turned away.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The kernel does not tell who it is.
    #[error("the peer's credentials: {0}")]
    Credentials(#[from] io::Error),
    /// Not root and not the agent's own user.
    #[error("process {pid} is of user {uid}, and only user 0 and the agent's own may connect")]
    User {
        /// The peer's process.
        pid: i32,
        /// Its user.
        uid: u32,
    },
    /// In a PID namespace that the agent does not see.
    #[error("the peer's process is not visible: the agent needs the host's PID namespace")]
    Invisible,
    /// Not where the socket's users are.
    #[error("process {pid} is not below cgroup {cgroups}")]
    NotBelow {
        /// The peer's process.
        pid: i32,
        /// Where it should be.
        cgroups: String,
    },
    /// Nobody may use the socket yet.
    #[error("process {0} can't be told from others: no node proxy's pod is known on this node")]
    NobodyKnown(i32),
    /// Where the socket's users never are.
    #[error("process {pid} is below cgroup {}, which holds pods", cgroup.display())]
    Below {
        /// The peer's process.
        pid: i32,
        /// Where it must not be.
        cgroup: PathBuf,
    },
    /// The process ended, so that its number may already be another's.
    #[error("process {0} has ended")]
    Ended(i32),
}

impl Door {
    /// Judges the peer of a fresh connection.
    ///
    /// # Errors
    ///
    /// Why it is turned away, for the log.
    pub fn admit(&self, connection: &Connection) -> Result<Credentials, Refused> {
        let Credentials { pid, uid } = connection.credentials()?;
        if uid != 0 && uid != geteuid().as_raw() {
            return Err(Refused::User { pid, uid });
        }
        if self.below.is_none() && self.outside.is_none() {
            return Ok(Credentials { pid, uid });
        }
        if pid <= 0 {
            return Err(Refused::Invisible);
        }
        if let Some(cgroups) = &self.below {
            let cgroups = cgroups.list();
            if cgroups.is_empty() {
                return Err(Refused::NobodyKnown(pid));
            }
            if !cgroups.iter().any(|cgroup| holds(cgroup, pid)) {
                let paths: Vec<_> = cgroups.iter().map(|path| path.to_string_lossy()).collect();
                return Err(Refused::NotBelow {
                    pid,
                    cgroups: paths.join(" or "),
                });
            }
        }
        if let Some(cgroup) = &self.outside
            && holds(cgroup, pid)
        {
            return Err(Refused::Below {
                pid,
                cgroup: cgroup.clone(),
            });
        }
        // The number was looked up above; if the process that connected is still there now, then
        // the number was its own all the time.
        if let Some(process) = connection.peer_pidfd()
            && has_ended(&process)
        {
            return Err(Refused::Ended(pid));
        }
        Ok(Credentials { pid, uid })
    }
}

fn has_ended(process: &OwnedFd) -> bool {
    let mut polled = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Is the process in this cgroup, or in one below it?
pub fn holds(cgroup: &Path, pid: i32) -> bool {
    any_below(cgroup, &mut |folder| processes_in(folder).contains(&pid))
}

/// All processes of a cgroup and those below it.
pub fn processes(cgroup: &Path) -> Vec<i32> {
    let mut all = Vec::new();
    any_below(cgroup, &mut |folder| {
        all.extend(processes_in(folder));
        false
    });
    all
}

fn processes_in(folder: &Path) -> Vec<i32> {
    // A cgroup may go away at any time, and a threaded one has no such list.
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.parse().ok())
        .filter(|pid| *pid > 0)
        .collect()
}

/// Does the test hold for the folder or one below it?
pub(crate) fn any_below(folder: &Path, test: &mut dyn FnMut(&Path) -> bool) -> bool {
    if test(folder) {
        return true;
    }
    let Ok(entries) = fs::read_dir(folder) else {
        return false;
    };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .any(|entry| any_below(&entry.path(), test))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seqpacket::Listener;

    fn cgroup(root: &Path, name: &str, pids: &[u32]) -> PathBuf {
        let folder = root.join(name);
        fs::create_dir_all(&folder).unwrap();
        let text: String = pids.iter().map(|pid| format!("{pid}\n")).collect();
        fs::write(folder.join("cgroup.procs"), text).unwrap();
        folder
    }

    #[tokio::test]
    async fn a_peer_must_be_below_its_cgroup_and_outside_of_the_pods() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = Listener::bind(&path).unwrap();
        let _client = Connection::connect(&path).unwrap();
        let server = listener.accept().await.unwrap();
        let own = std::process::id();
        let parent = cgroup(folder.path(), "parent", &[]);
        cgroup(folder.path(), "parent/child", &[1, own]);
        let other = cgroup(folder.path(), "other", &[1]);

        let among = |cgroups: &[&PathBuf]| Door {
            below: Some(Cgroups::new(cgroups.iter().copied().cloned().collect())),
            outside: None,
        };
        let below = |cgroup: &PathBuf| among(&[cgroup]);
        let outside = |cgroup: &PathBuf| Door {
            below: None,
            outside: Some(cgroup.clone()),
        };
        assert!(Door::default().admit(&server).is_ok());
        assert!(below(&parent).admit(&server).is_ok());
        assert!(among(&[&other, &parent]).admit(&server).is_ok());
        let refused = among(&[]).admit(&server).unwrap_err();
        assert!(matches!(refused, Refused::NobodyKnown(_)), "{refused}");
        assert!(outside(&other).admit(&server).is_ok());
        let refused = below(&other).admit(&server).unwrap_err();
        assert!(
            refused.to_string().contains("not below cgroup"),
            "{refused}"
        );
        let refused = outside(&parent).admit(&server).unwrap_err();
        assert!(refused.to_string().contains("holds pods"), "{refused}");
    }
}
