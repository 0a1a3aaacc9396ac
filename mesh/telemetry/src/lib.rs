//! Logs, metrics and traces, the same in every process of Seine.
//!
//! [`Telemetry::start`] installs the one `tracing` subscriber of the process: lines on standard
//! error as text or JSON, and, where an OTLP endpoint is given, the same events and spans as OTLP
//! logs and traces ([`trace`] carries a trace from process to process, [`propagation`] in the requests of applications). Metrics live in a `prometheus_client` registry; [`otlp_metrics`] sends that
//! registry's content to the same endpoint. [`http`] serves the admin, metrics and readiness pages.
//! [`Lines`] limits what strangers can have written.

#![forbid(unsafe_code)]

mod access_lines;
mod conventions;
pub mod http;
mod lines;
mod logging;
mod otlp;
pub mod otlp_metrics;
pub mod propagation;
mod readiness;
mod text;
pub mod trace;

pub use lines::Lines;
pub use logging::{LogFormat, Settings, StartError, Telemetry};
pub use readiness::Readiness;
#[doc(hidden)]
pub use tracing;
