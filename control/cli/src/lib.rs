//! The command line `seine`.
//!
//! What it says about policy comes from the same code that decides: the control plane's
//! translation and the proxies' store and verdict ([`world`], [`explain`]). Over files it needs no
//! cluster; over a cluster it uses the caller's own kubeconfig and permissions, and reaches the
//! programs' loopback pages through the API server ([`pages`]).
//!
//! The exit status is 0 if the answer is good, 1 if it is bad (denied, unhealthy, errors found),
//! and 2 if there is no answer.

#![forbid(unsafe_code)]

pub mod analyze;
mod args;
pub mod asked;
pub mod at_waypoint;
pub mod check;
pub mod cluster;
pub mod explain;
pub mod files;
pub mod finding;
pub mod output;
pub mod pages;
pub mod party;
pub mod status;
pub mod tap;
pub mod uninstall;
pub mod world;
pub mod ztunnel;

pub use args::main;
