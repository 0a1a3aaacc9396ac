//! Workloads and services as the proxies see them: model, index, load balancing.
//!
//! [`Store`] holds what the control plane sent. It has one writer (the xDS stream, or the file of
//! the last good configuration) and many readers, which take a short read lock and go away with
//! `Arc`s. Resources are parsed at the border ([`parse`]), one by one: a bad one is refused with
//! its name and field, and what was held under its name stays in force.
//!
//! [`Store::resolve`] answers where a connection goes, [`Store::policies_for`] what judges it.

#![forbid(unsafe_code)]

mod balance;
mod encode;
mod index;
mod intern;
pub mod model;
pub mod parse;
mod policies;
mod resolve;
#[cfg(test)]
mod resolve_tests;
mod snapshot;
mod store;
#[cfg(test)]
mod store_tests;
#[cfg(test)]
mod testing;

pub use model::{
    AppProtocol, BoundPort, GatewayAddress, GatewayDestination, HealthPolicy, IpFamilies,
    LoadBalancing, Locality, Mode, NetworkAddress, Port, RoutingScope, Service, ServiceAddress,
    ServiceKey, TunnelProtocol, WeightedWaypoint, Workload, WorkloadType,
};
pub use parse::ParseError;
pub use resolve::{
    Destination, HBONE_PORT, Spread, Target, Transport, Unavailable, UnavailableReason, Upstream,
    Waypoint,
};
pub use snapshot::SnapshotError;
pub use store::{Counts, Rejected, Store};
