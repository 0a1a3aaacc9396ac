//! The chained CNI plugin, which asks the node agent to enrol a pod before its first process
//! starts.
//!
//! It changes nothing in the pod: the agent does. The plugin passes the network namespace and the
//! pod's name to the agent, and the result of the plugins before it on, as it came.
//!
//! What always holds: a pod that is opted in starts only after the agent said that it is enrolled;
//! with the agent away, a pod of a namespace that was last known not to be opted in starts, and so
//! does every pod of the namespaces that must always start. Of a namespace that the agent never saw the API
//! server is asked. Nothing waits without a bound.
//!
//! Small on purpose: one thread, run once for each pod; a runtime only where the API server is asked.

#![forbid(unsafe_code)]

pub mod api;
mod api_server;
mod client;
mod config;
mod error;
mod last_known;
mod plugin;

pub use client::Client;
pub use client::ClientError;
pub use config::PLUGIN_TYPE;
pub use config::PluginEntry;
pub use config::SUPPORTED as SUPPORTED_VERSIONS;
#[doc(hidden)]
pub use config::facts_of;
pub use error::CniError;
pub use last_known::LastKnown;
pub use last_known::NamespaceState;
pub use plugin::Environment;
pub use plugin::run;
