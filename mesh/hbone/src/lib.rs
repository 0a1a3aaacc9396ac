//! HBONE: HTTP/2 CONNECT tunnels in SPIFFE mutual TLS.
//!
//! The transport between two proxies. A client's [`Pool`] opens a [`Stream`] for a
//! [`ConnectRequest`] in a tunnel that equal [`TunnelKey`]s share; [`accept`] makes the handshakes of the
//! other side, and [`Accepted::serve`] gives an [`Incoming`] for each CONNECT, whose handler answers it and so gets the [`Stream`]. [`copy()`] joins a stream
//! and an application's TCP connection until both directions are over.
//!
//! What always holds: a stream is carried by a TLS 1.3 connection whose two identities were
//! verified and are those of the key; bytes are acknowledged to their sender only when they were
//! passed on, so that a slow reader slows its own sender and nobody else; a reset passes as a
//! reset and an orderly end as an orderly end.
//!
//! The choice of the transport is made in one place, [`Pool::open`] for the client and [`accept`] for
//! the server, after ALPN; [`Stream`] is all that the rest sees of it.

#![forbid(unsafe_code)]

mod baggage;
pub mod copy;
mod error;
mod io;
mod keepalive;
mod memory;
mod pool;
mod queued;
mod read_ahead;
mod request;
mod server;
mod settings;
mod stream;
mod tunnel;

pub use baggage::{Baggage, WorkloadKind};
pub use copy::{CopyEnd, CopyOptions, Counters, Ended, Role, copy, copy_plain};
pub use error::{Fault, OpenError, Reason, ServeError, StreamError};
pub use io::{Duplex, Io};
pub use memory::Memory;
pub use pool::{Opened, Pool, Stats, TunnelKey};
pub use request::{
    Authority, BadRequest, ConnectRequest, Forwarded, Host, MAX_HEADER_VALUE, ProxyKind,
    TraceParent,
};
pub use server::{
    Accepted, DrainSignal, DrainTrigger, GOAWAY_GRACE, Incoming, Unanswered, accept, drain, serve,
};
pub use settings::Settings;
pub use stream::{Reset, Stream};
pub use tunnel::{Connected, Connector, Distrusted, TrustWatch};
