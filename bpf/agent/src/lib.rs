//! The node agent: redirection by eBPF, enrolment of pods.
//!
//! What it owns: the eBPF programs and maps of the node ([`redirect`]), the listening sockets of
//! every enrolled pod ([`sockets`]), the registry of the node's pods ([`registry`]), and four local
//! sockets: for the CNI plugin, and three for node proxies ([`zds`], [`listeners_server`], [`handover`]). One thread,
//! the keeper, does everything to pods; the servers read what it publishes ([`served`]).
//!
//! What always holds: an enrolled pod stays so until its label goes or its last process ends,
//! whatever ends the agent; nothing is released because the agent stops, fails or starts. A key or
//! certificate is never seen here.
//!
//! **Restart of the agent.** Programs, maps and links are pinned. The listening sockets live on in
//! the node proxy, from where the new agent takes duplicates ([`sockets`]); with both gone,
//! connections are refused until the new agent has made new ones. The pods are known from the
//! registry; where a network namespace's path can't be opened any more, by the pod's processes.

pub mod redirect;

mod admin;
mod agent;
pub mod check;
pub mod cluster;
pub mod cni_chain;
mod cni_server;
mod config;
#[doc(hidden)]
pub mod conversation;
mod discover;
pub mod door;
pub mod handover;
mod interfaces;
mod keeper;
mod last_known;
pub mod listeners_server;
pub mod metrics;
mod netns;
pub mod plan;
mod pod;
mod redirector;
pub mod registry;
pub mod routing;
pub mod seqpacket;
pub mod served;
pub mod service;
pub mod sockets;
mod sysctl;
mod uninstall;
pub mod zds;

pub use agent::{
    Agent, CNI_SOCKET, HANDOVER_SOCKET, LAST_KNOWN_FILE, LISTENERS_SOCKET, StartError, StateLock,
    ZTUNNEL_SOCKET, is_running,
};
pub use config::{Config, Listeners, NodeProxy};
pub use netns::{Netns, NetnsError};
pub use redirector::Redirector;
pub use uninstall::{UninstallError, uninstall};
