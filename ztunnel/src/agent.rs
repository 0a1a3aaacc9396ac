//! The node agent's sockets, and whether it is the agent that listens there.
//!
//! Whoever names pods, hands over their network namespaces and introduces one proxy to another decides whose keys are
//! used where.

use std::io;
use std::path::{Path, PathBuf};

use crate::seqpacket::SeqPacket;

/// One socket of the agent.
#[derive(Debug, Clone)]
pub struct AgentSocket {
    path: PathBuf,
    cgroup: Option<String>,
}

/// Why the agent can't be spoken to.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The socket failed, or is not there.
    #[error("the agent's socket {path} failed: {source}; is seine-agent running?")]
    Socket {
        /// Path of the socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Whoever listens there is neither root nor of the proxy's own user, or not where the agent is.
    #[error("the process that listens on {path} is not the agent: {reason}")]
    NotTheAgent {
        /// Path of the socket.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl AgentSocket {
    /// The socket at `path`, where a process below `cgroup` listens: as in `/proc/PID/cgroup`, if that is known.
    pub fn new(path: &Path, cgroup: Option<&str>) -> Self {
        Self {
            path: path.to_owned(),
            cgroup: cgroup.map(str::to_owned),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A connection to the agent, who was looked at.
    pub fn connect(&self) -> Result<SeqPacket, AgentError> {
        let socket = SeqPacket::connect(&self.path).map_err(|source| self.failed(source))?;
        let peer = socket.peer().map_err(|source| self.failed(source))?;
        peer.is_trusted(self.cgroup.as_deref())
            .map_err(|reason| AgentError::NotTheAgent {
                path: self.path.clone(),
                reason,
            })?;
        Ok(socket)
    }

    /// What is said of the socket when it fails.
    pub fn failed(&self, source: io::Error) -> AgentError {
        AgentError::Socket {
            path: self.path.clone(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seqpacket::SeqPacketListener;

    #[tokio::test]
    async fn a_process_outside_of_the_agents_cgroup_is_not_spoken_to() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let _listener = SeqPacketListener::replace(&path).unwrap();
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("0::"));
        AgentSocket::new(&path, own).connect().unwrap();
        AgentSocket::new(&path, None).connect().unwrap();
        let refused = AgentSocket::new(&path, Some("/no/such/cgroup")).connect();
        assert!(
            matches!(&refused, Err(AgentError::NotTheAgent { reason, .. }) if reason.contains("not below")),
            "{refused:?}"
        );
    }
}
