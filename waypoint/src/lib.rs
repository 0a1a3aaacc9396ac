//! The L7 proxy: HTTP to the services that are bound to it, routed and guarded request by request.
//!
//! The way of a request, from module to module: `serve` takes the tunnel, and `bind` knows what its CONNECT is for and
//! who the client is; [`head`] refuses what is ambiguous; `request` asks [`authentication`] who asks by a token, `judge` for policy
//! and `limit` whether it is too much, then [`router`] for the rule, and applies its filters; `forward` makes copies and attempts; for
//! each attempt [`endpoint`] chooses whom to ask, and
//! [`upstream`] sends the request there on behalf of its client; `telemetry` writes its line. What isn't HTTP goes from
//! `bind` to `opaque`.
//!
//! At a Gateway there is no tunnel: [`ingress`] takes connections from outside, and the way goes on with [`head`].

#![forbid(unsafe_code)]

mod admin;
pub mod app;
pub mod authentication;
mod backend_tls;
mod balance;
mod bind;
mod body;
mod concurrency;
pub mod config;
mod connections;
mod cookie;
mod cors;
pub mod endpoint;
mod external;
pub mod failure;
mod forward;
pub mod grpc;
pub mod head;
mod idle;
pub mod ingress;
mod judge;
mod key_set;
mod limit;
mod linger;
mod metrics;
mod mirror;
mod opaque;
pub mod path;
mod patience;
mod place;
mod refusal;
mod request;
mod retry;
pub mod router;
pub mod routes;
pub mod rule;
mod serve;
pub mod service_rules;
pub mod session;
pub mod shared;
mod tap;
mod telemetry;
pub mod token;
mod trace;
pub mod traffic;
mod traffic_policy;
mod unread;
mod upgrade;
mod upload;
pub mod upstream;
pub mod why;

pub use bind::Bound;
pub use telemetry::Telemetry;
