//! The L4 node proxy.
//!
//! The path of a connection, top to bottom: a pod's sockets come from the agent ([`agent`], [`zds`], [`listeners`]) and are made in
//! its network namespace ([`netns`], [`sockets`]); [`outbound`] takes what the pod opens, resolves it and connects
//! (`route`); [`inbound`] and [`inbound_plaintext`] take what others open towards it, and let through what [`judge`]
//! allows. [`seine_workers`] are the threads that they run on; [`connection`] knows all that live, [`telemetry`] tells of them. [`app`] starts and ends it all.
//!
//! What always holds: nothing is accepted before there is a configuration; an application is dialled only after the
//! verdict; the bytes of a pod are carried by sockets of its own namespace under a certificate of its own identity.

#![forbid(unsafe_code)]

mod accept;
pub mod admin;
pub mod agent;
pub mod app;
pub mod config;
pub mod configuration;
pub mod connection;
pub mod descriptors;
pub mod dns;
pub mod drain;
pub mod failure;
pub mod federation;
pub mod handover;
pub mod inbound;
pub mod inbound_plaintext;
mod interrupt;
pub mod judge;
pub mod limits;
pub mod listeners;
pub mod netns;
pub mod outbound;
pub mod peers;
pub mod pod;
mod pod_dns;
pub mod pods;
mod proxy_protocol;
mod route;
pub mod secrecy;
pub mod seqpacket;
pub mod shared;
pub mod sockets;
pub mod state;
pub mod telemetry;
#[cfg(test)]
mod testing;
mod trust;
pub mod tuning;
pub mod vital;
pub mod zds;
