//! The certificate authority: who gets which certificate, and from which root.
//!
//! [`Authority`] holds the keys and signs; [`CertificateService`] is its gRPC face
//! (`IstioCertificateService`, WIRE.md section 2); [`ServerTls`] is the control plane's own server
//! certificate. What always holds: a certificate is made from checked parts only (an
//! [`Identity`](seine_identity::Identity) and a public key), so whatever else a request asks for is
//! not in it; no key is ever logged.
//!
//! # Files
//!
//! In the CA directory (0700):
//!
//! | file | mode | content |
//! |---|---|---|
//! | `state.json` | 0600 | which root and intermediate are in use, phase of a rotation |
//! | `root-N.pem` | 0600 | certificate and key of a root |
//! | `intermediate-N.pem` | 0600 | certificate and key of the intermediate that signs |
//! | `root-cert.pem` | 0644 | every root that is trusted now; for clients |
//! | `rotate-root` | any | made by an operator to start a rotation; removed when it started |
//!
//! Every file is written to a temporary name, synced and renamed; key files before `state.json`
//! that names them, so that a crash at any moment leaves either the old or the new state.
//!
//! # Rotation
//!
//! A new intermediate (at half of the old one's life) needs no care: peers know the root, and every
//! leaf brings the intermediate that signed it. A new root takes three phases, each as long as the
//! longest certificate lives, so that none from before the phase is left:
//!
//! 1. *trust both*: every answer and `root-cert.pem` carry both roots; the old one signs;
//! 2. *issue from the new*: both are trusted; the new one signs;
//! 3. *drop the old*: only the new one is trusted.
//!
//! No connection is dropped: at each moment each peer trusts the root of every certificate in use.

mod authority;
mod csr;
mod server_tls;
mod service;
mod store;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use seine_identity::TrustDomain;

pub use authority::{Authority, CaStatus, Issued, Phase};
pub use csr::{CsrError, CsrFacts};
pub use server_tls::{ServerTls, TlsIncoming, server_tls};
pub use service::{CertificateService, NodeAuthorizer};

/// Settings of the authority.
#[derive(Debug, Clone)]
pub struct CaOptions {
    /// The CA directory; made if it isn't there.
    pub directory: PathBuf,
    /// The domain whose identities are issued.
    pub trust_domain: TrustDomain,
    /// Lifetime of a certificate for which none is asked.
    pub default_lifetime: Duration,
    /// A request for less gets this.
    pub min_lifetime: Duration,
    /// A request for more gets this.
    pub max_lifetime: Duration,
    /// Lifetime of an intermediate; a new one is made at half of it.
    pub intermediate_lifetime: Duration,
    /// Lifetime of a root; its rotation starts by itself when a fifth is left.
    pub root_lifetime: Duration,
}

impl CaOptions {
    /// 24 h certificates of `trust_domain`, from keys in `directory`.
    pub fn new(directory: impl Into<PathBuf>, trust_domain: TrustDomain) -> Self {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        Self {
            directory: directory.into(),
            trust_domain,
            default_lifetime: DAY,
            min_lifetime: Duration::from_secs(300),
            max_lifetime: DAY,
            intermediate_lifetime: 60 * DAY,
            root_lifetime: 3650 * DAY,
        }
    }
}

/// Why the authority can't work. Ours to repair, nothing that a client can change.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// A file can't be read or written.
    #[error("{action} {}: {source}", .path.display())]
    Io {
        /// "read", "write", …
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is there but not what it should be.
    #[error("{}: {reason}", .path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The directory is of another trust domain.
    #[error("{} is the CA of trust domain {actual}, not of {wanted}", .path.display())]
    TrustDomain {
        /// Which directory.
        path: PathBuf,
        /// Its domain.
        actual: String,
        /// The domain wanted.
        wanted: TrustDomain,
    },
    /// Signing failed.
    #[error("making a {what}: {source}")]
    Signing {
        /// Of what.
        what: &'static str,
        /// Why.
        source: rcgen::Error,
    },
    /// A root's rotation is under way already.
    #[error("a rotation of the root is under way (phase {0})")]
    RotationUnderWay(Phase),
    /// TLS can't be set up with the certificate just made.
    #[error("server certificate: {0}")]
    Tls(#[from] rustls::Error),
    /// Nothing can be signed.
    #[error("the intermediate ended; the clock was moved, or this process stood still")]
    IntermediateEnded,
}
