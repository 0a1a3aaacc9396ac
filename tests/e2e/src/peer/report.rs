//! What the clients report, as the tests read it.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;

use anyhow::Result;
use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// What a client was doing when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Looking the name up.
    Resolve,
    /// Connecting.
    Connect,
    /// Sending.
    Send,
    /// Receiving.
    Receive,
}

/// How a connection failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{stage:?}: {errno}")]
pub struct Failure {
    /// While doing what.
    pub stage: Stage,
    /// `ECONNREFUSED`; `PATIENCE` where the client gave up, `EOF` where the peer ended too
    /// early, `CONTENT` where something else came than was sent.
    pub errno: String,
}

impl Failure {
    /// From what the kernel said.
    pub fn new(stage: Stage, error: &io::Error) -> Self {
        let errno = match error.raw_os_error() {
            Some(number) => format!("{:?}", Errno::from_raw(number)),
            None if error.kind() == io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
            None if error.kind() == io::ErrorKind::TimedOut => "PATIENCE".to_owned(),
            None => error.to_string(),
        };
        Self { stage, errno }
    }

    /// Something that is no errno.
    pub fn named(stage: Stage, errno: &str) -> Self {
        Self {
            stage,
            errno: errno.to_owned(),
        }
    }

    /// `connect ECONNREFUSED`, to be counted by.
    pub fn key(&self) -> String {
        format!("{:?} {}", self.stage, self.errno).to_lowercase()
    }

    /// Whether it is this errno at this stage.
    pub fn is(&self, stage: Stage, errno: &str) -> bool {
        self.stage == stage && self.errno == errno
    }
}

/// One connection.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Asked {
    /// Its other end, as `getpeername` tells.
    pub peer: Option<SocketAddr>,
    /// Its own end.
    pub local: Option<SocketAddr>,
    /// All that was received.
    pub received: String,
    /// Where it did not end in order.
    pub failure: Option<Failure>,
}

impl Asked {
    /// Whether it failed with this errno at this stage.
    pub fn failed(&self, stage: Stage, errno: &str) -> bool {
        self.failure.as_ref().is_some_and(|f| f.is(stage, errno))
    }

    /// Whether it failed as TCP says that a connection is not wanted: refused, or reset before any
    /// answer. An end in order would be an answer of the application.
    pub fn was_refused(&self) -> bool {
        self.received.is_empty()
            && self.failure.as_ref().is_some_and(|failure| {
                failure.stage != Stage::Resolve
                    && ["ECONNREFUSED", "ECONNRESET", "EPIPE"].contains(&failure.errno.as_str())
            })
    }
}

/// What happens to a live connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum LiveEvent {
    /// It stands; its two ends.
    Connected {
        /// `getsockname`.
        local: SocketAddr,
        /// `getpeername`.
        peer: SocketAddr,
    },
    /// A line came.
    Line(String),
    /// It ended, with the failure or in order.
    Ended(Option<Failure>),
}

/// A transfer.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Transferred {
    /// The server's word about what was sent to it.
    pub sent: Option<Received>,
    /// What was received.
    pub received: Option<Received>,
    /// What failed.
    pub failures: Vec<Failure>,
}

/// A received stream of bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// How many.
    pub bytes: u64,
    /// The first that differs from what was to come.
    pub first_wrong: Option<u64>,
    /// Over all of them, in order.
    pub checksum: u64,
}

/// Connections that are held at the same time.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Held {
    /// How many answered.
    pub answered: usize,
    /// The others, by [`Failure::key`].
    pub failed: BTreeMap<String, usize>,
}

/// Load until it was told to end.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Loaded {
    /// Connections that were made, answered and ended in order.
    pub connections: u64,
    /// Exchanges on connections that last.
    pub exchanges: u64,
    /// Connections that failed, by [`Failure::key`].
    pub failed: BTreeMap<String, u64>,
    /// Lasting connections that failed, by [`Failure::key`].
    pub lasting_failed: BTreeMap<String, u64>,
}

/// An answer of a name server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Resolved {
    /// `NoError`.
    pub code: String,
    /// The data of its answers: addresses, or `port target` of SRV; sorted.
    pub answers: Vec<String>,
    /// The first answer's time to live.
    pub ttl: Option<u32>,
    /// The answer's "authoritative" flag.
    pub authoritative: bool,
    /// Its "truncated" flag.
    pub truncated: bool,
    /// Its size.
    pub bytes: usize,
}

/// A call of gRPC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Called {
    /// What the server has said of it.
    pub status: Option<u16>,
    /// The code of HTTP/2 that its stream was reset with.
    pub reset: Option<u32>,
}

/// What a server has said to frames that mean no good.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flooded {
    /// The code of HTTP/2 that it ended the connection with.
    pub go_away: Option<u32>,
    /// Those that it reset streams with.
    pub resets: Vec<u32>,
    /// It took no more of them.
    pub stuck: bool,
}

/// Prints a report.
pub fn print(report: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_in_order_a_wait_and_an_answer_are_no_refusal() {
        let asked = |received: &str, failure: Option<(Stage, &str)>| Asked {
            received: received.to_owned(),
            failure: failure.map(|(stage, errno)| Failure::named(stage, errno)),
            ..Asked::default()
        };
        for (stage, errno) in [
            (Stage::Connect, "ECONNREFUSED"),
            (Stage::Connect, "ECONNRESET"),
            (Stage::Receive, "ECONNRESET"),
        ] {
            assert!(asked("", Some((stage, errno))).was_refused());
            assert!(!asked("x", Some((stage, errno))).was_refused());
        }
        assert!(!asked("", None).was_refused());
        assert!(!asked("", Some((Stage::Receive, "PATIENCE"))).was_refused());
        assert!(!asked("", Some((Stage::Resolve, "ECONNREFUSED"))).was_refused());
    }
}
