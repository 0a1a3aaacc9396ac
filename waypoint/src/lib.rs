//! The L7 proxy: HTTP to the services that are bound to it, routed and guarded request by request.
//!
//! The way of a request, from module to module: `serve` takes the tunnel and the CONNECT and knows who the client is;
//! [`head`] refuses what is ambiguous; `request` asks policy, then [`router`] for the rule, and applies its filters;
//! [`upstream`] finds an endpoint and sends the request there on behalf of its client; `telemetry` writes its line.

#![forbid(unsafe_code)]

mod admin;
pub mod app;
mod balance;
mod body;
pub mod config;
mod cors;
pub mod failure;
mod forward;
pub mod head;
mod judge;
mod linger;
mod mirror;
pub mod path;
mod refusal;
mod request;
mod retry;
pub mod router;
pub mod routes;
pub mod rule;
mod serve;
pub mod shared;
mod telemetry;
mod upgrade;
pub mod upstream;

pub use serve::Bound;
pub use telemetry::Telemetry;
