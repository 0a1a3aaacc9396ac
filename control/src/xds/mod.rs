//! Delta xDS: what every proxy should hold, what each one does hold, and the stream between.
//!
//! [`Snapshot`] is what should be held, [`client::Client`] decides without I/O what one proxy is
//! sent next, [`server`] moves messages. A client has at most one response of a type in flight:
//! while it is slow nothing is queued for it, and when it is ready it gets the latest.

pub mod client;
mod held;
pub mod messages;
mod resource;
pub mod server;
mod snapshot;

pub use resource::Resource;
pub use snapshot::{Snapshot, TypeResources};

/// The types that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceType {
    /// Policies; they are sent first, since workloads name them.
    Authorization,
    /// Rules on tokens, for waypoints.
    Authentication,
    /// Rules of routes, for waypoints.
    Route,
    /// How requests to services are treated, for waypoints.
    Traffic,
    /// Of a Gateway that takes connections from outside: its own alone.
    Listener,
    /// Workloads and services.
    Address,
}

impl ResourceType {
    /// All, in the order of sending.
    pub const ALL: [Self; 6] = [
        Self::Authorization,
        Self::Authentication,
        Self::Route,
        Self::Traffic,
        Self::Listener,
        Self::Address,
    ];

    /// The type's URL on the wire.
    pub fn url(self) -> &'static str {
        match self {
            Self::Authorization => seine_proto::AUTHORIZATION_TYPE,
            Self::Authentication => seine_proto::AUTHENTICATION_TYPE,
            Self::Route => seine_proto::ROUTE_RULE_TYPE,
            Self::Traffic => seine_proto::TRAFFIC_POLICY_TYPE,
            Self::Listener => seine_proto::LISTENER_TYPE,
            Self::Address => seine_proto::ADDRESS_TYPE,
        }
    }

    /// The type of that URL.
    pub fn from_url(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.url() == url)
    }
}

#[cfg(test)]
mod server_tests;
