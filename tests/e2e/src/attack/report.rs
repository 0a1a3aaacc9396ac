//! What the attackers report, as the tests read it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

/// A tunnel, or the attempt.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Tunneled {
    /// The attacker's end of the TCP connection, by which logs name it.
    pub local: Option<SocketAddr>,
    /// The answer to the CONNECT; none where the tunnel did not stand.
    pub status: Option<u16>,
    /// What came through the tunnel.
    pub received: String,
    /// Where it ended early.
    pub failure: Option<String>,
}

/// What became of garbage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Garbage {
    /// To whom.
    pub address: SocketAddr,
    /// The attacker's end; its port is right, its address may be none of its own.
    pub local: Option<SocketAddr>,
    /// How many bytes came back.
    pub received: usize,
    /// How it ended.
    pub end: GarbageEnd,
}

/// How a connection ended that carried garbage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum GarbageEnd {
    /// It was not accepted.
    Refused(String),
    /// The other side accepted it and ended it.
    Ended,
    /// The other side still waits for more.
    Open,
}

/// A certificate, or the attempt.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Certified {
    /// The serial number of the certificate that was issued.
    pub serial: Option<String>,
    /// Why none was.
    pub failure: Option<String>,
}

/// A packet on a local socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Said {
    /// `connect` failed.
    NotConnected(String),
    /// The other side closed without an answer.
    Closed,
    /// Its answer.
    Answered(Vec<u8>),
    /// No answer and no end came.
    Silence,
}
