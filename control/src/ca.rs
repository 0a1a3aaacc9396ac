//! The certificate authority: who gets which certificate, and from which root.
//!
//! [`Authority`] holds the keys and signs; [`CertificateService`] is its gRPC face
//! (`IstioCertificateService`, WIRE.md section 2); [`ServerTls`] is the control plane's own server
//! certificate. What always holds: a certificate is made from checked parts only (an
//! [`Identity`](seine_identity::Identity) and a public key), so whatever else a request asks for is
//! not in it; no key is ever logged.
//!
//! # Keys
//!
//! A [`Store`] keeps them: a directory (0700), or the Secret `seine-ca` with the first three rows as
//! its data, which replicas share and the leader writes.
//!
//! | file | mode | content |
//! |---|---|---|
//! | `state.json` | 0600 | which root and intermediate are in use, phase of a rotation |
//! | `root-N.pem` | 0600 | certificate and key of a root; of one from outside no key |
//! | `intermediate-N.pem` | 0600 | certificate and key of the intermediate that signs (and of one from outside that will) |
//! | `root-cert.pem` | 0644 | every root that is trusted now; for clients |
//! | `rotate-root` | any | made by an operator to start a rotation; removed when it started (of the Secret: annotation `seine.dev/rotate-root`) |
//!
//! In a directory every file is written to a temporary name, synced and renamed; key files before `state.json`
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
//! Where several processes sign, each phase is longer by the time after which one that can't read
//! the store stops signing.
//!
//! # An intermediate from outside
//!
//! Where the Secret `seine-intermediate` is ([`external`]), what it has is copied into the store once
//! it is checked. So the last good one stays, over restarts too, when the Secret is invalid or gone;
//! a renewed one signs at once; and other roots than before, a root of our own among them, are
//! rotated to in the same three phases, for which the old intermediate is still needed.
//!
//! No connection is dropped: at each moment each peer trusts the root of every certificate in force, and a live
//! connection is forgiven a root that went after the certificate of its handshake had ended.

mod authority;
mod certificate;
mod csr;
pub mod external;
mod follow;
mod material;
mod server_tls;
mod service;
mod store;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

use seine_identity::TrustDomain;

pub use authority::{Authority, CaStatus, Issued};
pub use csr::{CsrError, CsrFacts};
pub use external::External;
pub use follow::follow_external;
pub use material::{Material, Phase};
pub use server_tls::{ServerTls, TlsIncoming, server_tls};
pub use service::{CertificateService, NodeAuthorizer};
pub use store::{DirectoryStore, Loaded, Revision, SecretStore, Store};

/// Settings of the authority.
#[derive(Debug, Clone)]
pub struct CaOptions {
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
    /// 24 h certificates of `trust_domain`.
    pub fn new(trust_domain: TrustDomain) -> Self {
        const DAY: Duration = Duration::from_secs(24 * 3600);
        Self {
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
    /// A file or Secret is there but not what it should be.
    #[error("{place}: {reason}")]
    Material {
        /// Which one.
        place: String,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The API server can't be asked, or refuses.
    #[error("{action} {object}: {source}")]
    Api {
        /// "reading", "writing", …
        action: &'static str,
        /// Which object.
        object: String,
        /// Why.
        source: Box<kube::Error>,
    },
    /// Somebody else wrote first; nothing was written.
    #[error("{0} was changed by another replica")]
    Conflict(String),
    /// The keys may have been replaced without our knowing.
    #[error(
        "{0} could not be read for so long that its keys may have been replaced; \
         nothing is signed until it can"
    )]
    Stale(String),
    /// There is nothing to start with.
    #[error("Secret seine-intermediate can't be used, and there is no earlier one: {0}")]
    External(String),
    /// Rotation is another CA's.
    #[error(
        "the intermediate was made elsewhere: rotate it there, and Secret seine-intermediate with it"
    )]
    RootIsExternal,
    /// The keys are of another trust domain.
    #[error("{place} is the CA of trust domain {actual}, not of {wanted}")]
    TrustDomain {
        /// Which directory or Secret.
        place: String,
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
