//! SPIFFE identities, certificates and their renewal, TLS configurations.
//!
//! The way of a certificate: a [`CertificateSource`] issues an [`Svid`] for an [`Identity`]; the
//! [`CertificateManager`] asks for it when the identity is first used and renews it at half-life;
//! [`Credentials`] turn it into the two TLS configurations that HBONE uses. What a peer presents is
//! judged in [`peer`], against the [`TrustBundles`] of the trust domain that it claims and no other.
//!
//! What always holds: a private key is in memory only, is never formatted (`Debug` is redacted) and
//! leaves the process only as [`KeyExport`], over a socket that checks who reads it.

#![forbid(unsafe_code)]

pub mod bundle;
pub mod clock;
pub mod handover;
pub mod identity;
pub mod manager;
pub mod mesh_ca;
pub mod peer;
pub mod renewal;
pub mod source;
pub mod spire;
pub mod svid;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tls;
#[cfg(test)]
mod tls_tests;

pub use bundle::{BundleError, SharedBundles, TrustBundles};
pub use clock::Clock;
pub use handover::{HandoverError, KeyExport};
pub use identity::{Identity, IdentityError};
pub use manager::{
    CertificateError, CertificateManager, CertificateStatus, Changes, ManagerOptions,
};
pub use mesh_ca::{MeshCa, MeshCaOptions};
pub use peer::{AcceptedIdentities, PeerCertificate, PeerError, peer_certificate, peer_identity};
pub use renewal::{CertificateState, RenewalRules};
pub use source::{CertificateSource, SourceError};
pub use spiffe::{SpiffeId, TrustDomain, X509Bundle, X509BundleSet};
pub use spire::{Spire, SpireApi, SpireOptions};
#[doc(hidden)]
pub use svid::unverified_identity;
pub use svid::{Svid, SvidError};
pub use tls::{
    Credentials, PeerChain, TlsOptions, client_config, crypto_provider, server_config, server_name,
};
