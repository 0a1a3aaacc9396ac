//! The lab: a mesh on one Linux machine, from a directory of Kubernetes manifests.
//!
//! Nodes and pods are network namespaces joined by veth pairs, pods run local programs in
//! cgroups of their own, and the real control plane, agents and ztunnels run on them. The
//! kubelet, the API server, kube-proxy and cluster DNS are stood in for by the lab's
//! supervisor. [`Lab`] is the way for tests to use one; it drives the `seine-lab` program.
//!
//! The processes of a lab, and why nothing outlives it, are described in [`keeper`].

#![forbid(unsafe_code)]

pub mod ca;
pub mod cgroup;
pub mod cli;
pub mod client;
pub mod clock;
pub mod cni;
pub mod collect;
pub mod container;
pub mod control_alone;
pub mod control_socket;
pub mod dns;
pub mod enter;
pub mod expand;
pub mod gateway;
pub mod keeper;
pub mod kubelet;
pub mod locks;
pub mod manifest;
pub mod mesh;
pub mod names;
pub mod netns;
pub mod network;
pub mod objects;
pub mod pause;
pub mod pcap;
pub mod pod;
pub mod prober;
pub mod protocol;
pub mod proxy;
pub mod services;
pub mod supervisor;
pub mod table;
pub mod token;
pub mod volumes;

mod handle;

pub use handle::{Capture, Lab, Options, Output};

/// Where programs are looked for that a manifest names without a path, and the lab's own.
pub const SEARCH_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
