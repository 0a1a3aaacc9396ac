//! What the keeper publishes for the servers: the enrolled pods, and the state of all.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde::Serialize;

use crate::sockets::Held;

/// The enrolled pods by UID.
pub type Served = BTreeMap<String, Arc<ServedPod>>;

/// An enrolled pod as ztunnel is told of it.
#[derive(Debug)]
pub struct ServedPod {
    /// Its UID.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its service account.
    pub service_account: String,
    /// Cookie of its network namespace.
    pub cookie: u64,
    /// Its network namespace.
    pub netns: Arc<OwnedFd>,
    /// Its listening sockets; nothing while another process has them and they can't be taken over.
    pub listeners: Option<Arc<Vec<Held>>>,
}

/// Where a pod stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Part of the mesh.
    Enrolled,
    /// Not part of the mesh, and not to be.
    NotEnrolled,
    /// Should be part of the mesh or changed, and can't; it is tried again.
    Failing,
}

impl State {
    /// As it stands in status and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::NotEnrolled => "not-enrolled",
            Self::Failing => "failing",
        }
    }
}

/// A pod in `/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// Its UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Where it stands.
    pub state: State,
    /// Why, where it is not enrolled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// Since when it is enrolled, in seconds since 1970, across restarts of the agent; nothing while
    /// it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enrolled_since: Option<u64>,
    /// Cookie of its network namespace.
    pub netns_cookie: u64,
    /// Listening sockets that the agent holds for it.
    pub listeners: usize,
    /// TCP connections that were older than its enrolment.
    pub older_connections: usize,
    /// How many of them were reset.
    pub older_connections_reset: usize,
    /// What is wrong in its annotations and probes, or with its guard.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The runtime took its network down, and a process in it is left.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub terminating: bool,
}
