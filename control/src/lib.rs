//! The control plane: sources, model, xDS server, certificate authority.
//!
//! Objects come from a source (a folder, [`seine_objects`], or an API server, [`seine_kubernetes`]), [`translate`] turns them into resources without
//! looking at anything else, [`model`] is the one task that does so on every change, and [`xds`]
//! compares and sends what changed. [`ca`] signs the proxies' certificates; [`authn`] says who
//! calls. [`run()`] puts them together.

#![forbid(unsafe_code)]

pub mod admin;
pub mod authn;
pub mod ca;
pub mod cluster;
#[cfg(test)]
mod fake_api;
pub mod leader;
pub mod metrics;
pub mod model;
pub mod publish;
mod run;
pub mod status;
pub mod translate;
pub mod xds;

use std::net::IpAddr;

pub use run::{Files, Options, Place, run};

/// 4 or 16 bytes, as the wire has them. A mapped IPv4 address is an IPv4 address.
pub(crate) fn ip_bytes(address: IpAddr) -> Vec<u8> {
    match address.to_canonical() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// What [`ip_bytes`] made.
pub(crate) fn ip_from_bytes(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}
