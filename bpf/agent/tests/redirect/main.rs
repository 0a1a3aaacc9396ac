//! Redirection on the real kernel: every test has a node, a pod and an outside host of its own, made
//! of network namespaces, and loads the committed eBPF object. Needs root; says SKIPPED without.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod client;
mod frames;
mod process;
mod world;

mod guard;
mod inbound;
mod lifecycle;
mod outbound;
