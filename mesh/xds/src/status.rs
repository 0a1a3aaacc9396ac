//! What the client is doing, for readiness and for people.

use std::collections::BTreeMap;

/// The client's state, watched by others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The stream.
    pub connection: Connection,
    /// Whether the control plane has answered for every type once, and the answers were applied.
    pub ready: bool,
    /// Types that the control plane hasn't answered for yet.
    pub waiting_for: Vec<String>,
    /// Resources that were refused, with what is wrong with them; at most 100.
    pub refused: BTreeMap<String, String>,
}

/// The state of the stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Connection {
    /// The first connection is being made.
    #[default]
    Connecting,
    /// The stream is open.
    Connected,
    /// Waiting to connect again.
    Waiting {
        /// Why the last stream ended or couldn't be opened.
        because: String,
    },
}
