//! The Kubernetes objects that Seine reads, their sources, and the policy CRDs.
//!
//! What control plane and node agent know of a cluster is an [`ObjectSet`]: an immutable snapshot
//! of typed objects. A source keeps making new ones; the one here is [`DirectorySource`], a folder
//! of YAML; the one that watches an API server is a crate of its own, `seine-kubernetes`. Everything
//! that both must decide alike is decided here and nowhere else: who is opted in ([`enrolment()`]),
//! which pods are finished, which objects are valid.
//!
//! An object that is in a set is valid: what didn't parse or validate never gets in, it becomes a
//! [`Problem`] and the last good version of it stays.

#![forbid(unsafe_code)]

mod ca_bundle;
mod directory;
mod document;
pub mod enrolment;
pub mod gateway;
pub mod istio;
mod kept;
mod kind;
pub mod network_policy;
mod parse;
pub mod pods;
pub mod policy;
mod problem;
mod set;
mod tls_secret;

pub use ca_bundle::CaBundle;
pub use directory::{DirectoryOptions, DirectorySource, SourceError};
pub use enrolment::{Enrolment, EnrolmentSettings, Refusal, enrolment};
pub use k8s_openapi;
pub use kind::{Kind, Object};
pub use parse::{ParsedFile, parse_object, parse_text};
pub use problem::{InForce, Invalid, Problem};
pub use set::{ObjectKey, ObjectSet, Objects};
pub use tls_secret::TlsSecret;
