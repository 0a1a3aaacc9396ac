//! Where certificates come from: one trait, and whose fault a failure is.

use futures::future::BoxFuture;

use crate::identity::Identity;
use crate::svid::{Svid, SvidError};

/// Issues SVIDs: a CA ([`MeshCa`](crate::MeshCa)), or SPIRE ([`Spire`](crate::Spire)).
///
/// Called by the certificate manager's task alone, several calls at a time. A call may be dropped
/// before it is over.
pub trait CertificateSource: Send + Sync + 'static {
    /// A new certificate with a new key.
    fn fetch<'a>(&'a self, identity: &'a Identity) -> BoxFuture<'a, Result<Svid, SourceError>>;
}

/// Why no certificate came.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The source can't be reached or is not ready; the same request may succeed later.
    #[error("{source_name} is not available: {reason}")]
    Unavailable {
        /// Which source, with its address.
        source_name: String,
        /// What failed.
        reason: String,
    },
    /// The source refuses this identity or this caller. Nothing changes by asking at once again;
    /// it may when a pod becomes known to the source.
    #[error("{source_name} refuses a certificate: {reason}")]
    Refused {
        /// Which source, with its address.
        source_name: String,
        /// Its words.
        reason: String,
    },
    /// The source answered something that can't be used: its fault.
    #[error("{source_name} answered with a certificate that can't be used: {reason}")]
    BadAnswer {
        /// Which source, with its address.
        source_name: String,
        /// What is wrong.
        reason: String,
    },
    /// Our side failed before the source was asked: a key, a token, a file.
    #[error("a certificate can't be asked for: {reason}")]
    Local {
        /// What failed and on what.
        reason: String,
    },
}

impl SourceError {
    /// True if the source understood and said no.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    pub(crate) fn bad_answer(source_name: &str, error: &SvidError) -> Self {
        Self::BadAnswer {
            source_name: source_name.into(),
            reason: error.to_string(),
        }
    }
}

/// An error with its causes: those of tonic say nothing by themselves.
pub(crate) fn chain_of(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
