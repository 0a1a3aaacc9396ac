//! The delta xDS client: a state machine without I/O ([`Protocol`]) and the stream that drives it
//! ([`Client`]).
//!
//! What always holds: a response is applied before it is answered; the good resources of a
//! response are applied even if others of it are refused; what was refused isn't reported as held.
//! One task runs [`Client::run`]; [`Status`] is watched by others.

#![forbid(unsafe_code)]

mod backoff;
mod client;
#[cfg(test)]
mod client_tests;
mod connect;
#[cfg(test)]
mod grpc_tests;
mod handler;
mod protocol;
mod status;

pub use backoff::Backoff;
pub use client::Client;
pub use connect::{Connect, ConnectError, Grpc, GrpcOptions, Responses};
pub use handler::{Handler, Refused};
pub use protocol::{NodeInfo, Protocol, UnknownType};
pub use status::{Connection, Status};
