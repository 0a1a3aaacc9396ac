//! What can go wrong between the agent and the kernel.

use std::{io, path::PathBuf};

use thiserror::Error;

/// A failed operation on the redirection. Each says which object it was about; unless the variant
/// says otherwise, nothing was changed that [`super::Redirect::reconcile`] would not repair.
#[derive(Debug, Error)]
pub enum RedirectError {
    /// A system call failed.
    #[error("{call} of {object}: {source}")]
    Call {
        /// The call, as in the kernel's documentation.
        call: &'static str,
        /// What it was about.
        object: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The object file, a map or a program was refused. The verifier's log is in the source.
    #[error("{what}: {source}")]
    Program {
        /// What was being done, to which program or map.
        what: String,
        /// aya's error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Pinned maps were made by an agent with other map layouts. They are left as they are.
    #[error(
        "the maps pinned in {path} have layout {found}, this agent needs {expected}: \
         run the agent that made them, or release every pod with `seine-agent uninstall`"
    )]
    Schema {
        /// The folder of the pins.
        path: PathBuf,
        /// Schema version that was found.
        found: u32,
        /// Schema version of this agent.
        expected: u32,
    },
    /// A pinned map has the right schema version and yet another shape: it is not ours.
    #[error("the map pinned at {path} is not the one this agent pins there ({detail})")]
    ForeignMap {
        /// The pin.
        path: PathBuf,
        /// Which property differs.
        detail: String,
    },
    /// A cgroup path can't be used.
    #[error("cgroup {path}: {reason}")]
    Cgroup {
        /// The path as configured.
        path: PathBuf,
        /// Why not, and what to do.
        reason: String,
    },
    /// The pod can't be enrolled; the reason is for the pod's owner.
    #[error("pod can't be enrolled: {0}")]
    Refused(String),
    /// No pod with this netns cookie is enrolled.
    #[error("no pod with netns cookie {0} is enrolled")]
    NotEnrolled(u64),
    /// The canary's connection was not caught: redirection does not work on this node.
    #[error("the canary connection was not caught: {0}")]
    Canary(String),
    /// A network or address is of no use here.
    #[error("{0}")]
    Invalid(String),
}

impl RedirectError {
    pub(super) fn call(
        call: &'static str,
        object: impl Into<String>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::Call {
            call,
            object: object.into(),
            source: source.into(),
        }
    }

    pub(super) fn program(
        what: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::Program {
            what: what.into(),
            source: Box::new(source),
        }
    }

    /// The errno behind this error, where a system call failed.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Call { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}
