//! [`Svid`]: a certificate chain, its key, and the roots that came with it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use spiffe::X509Bundle;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use crate::identity::Identity;
use crate::peer::{self, PeerError};
use crate::tls::crypto_provider;

/// An X.509-SVID with its private key.
///
/// `Debug` shows identity, serial and validity, never the key.
pub struct Svid {
    identity: Identity,
    certified: Arc<CertifiedKey>,
    key: Zeroizing<Vec<u8>>,
    serial: String,
    not_before: SystemTime,
    not_after: SystemTime,
    bundle: X509Bundle,
}

/// Why a chain and a key make no SVID.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SvidError {
    /// The chain is empty.
    #[error("the certificate chain is empty")]
    Empty,
    /// The leaf can't be read, or its SAN is not that of a workload.
    #[error("the leaf certificate can't be used: {0}")]
    Leaf(#[from] PeerError),
    /// The leaf is for somebody else.
    #[error("the certificate is for {actual}, asked was {wanted}")]
    WrongIdentity {
        /// What was asked for.
        wanted: Identity,
        /// What came.
        actual: Identity,
    },
    /// The key can't be used, or is not the certificate's.
    #[error("the private key does not fit the certificate: {0}")]
    Key(rustls::Error),
    /// The bundle is of another trust domain than the leaf.
    #[error("the roots are those of {bundle}, the certificate is of {leaf}")]
    WrongBundle {
        /// The bundle's domain.
        bundle: spiffe::TrustDomain,
        /// The leaf's domain.
        leaf: spiffe::TrustDomain,
    },
}

impl Svid {
    /// Joins a chain (leaf first, without the root), its PKCS#8 key and its domain's roots.
    ///
    /// # Errors
    ///
    /// If they don't belong together. The chain is not checked against the roots: a peer will.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: Zeroizing<Vec<u8>>,
        bundle: X509Bundle,
    ) -> Result<Self, SvidError> {
        let leaf = chain.first().ok_or(SvidError::Empty)?;
        let facts = LeafFacts::read(leaf)?;
        if bundle.trust_domain() != facts.identity.trust_domain() {
            return Err(SvidError::WrongBundle {
                bundle: bundle.trust_domain().clone(),
                leaf: facts.identity.trust_domain().clone(),
            });
        }
        let signer = crypto_provider()
            .key_provider
            .load_private_key(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec())))
            .map_err(SvidError::Key)?;
        let certified = CertifiedKey::new(chain, signer);
        certified.keys_match().map_err(SvidError::Key)?;
        Ok(Self {
            identity: facts.identity,
            certified: Arc::new(certified),
            key,
            serial: facts.serial,
            not_before: facts.not_before,
            not_after: facts.not_after,
            bundle,
        })
    }

    /// Refuses an SVID that is not `wanted`'s.
    ///
    /// # Errors
    ///
    /// [`SvidError::WrongIdentity`].
    pub fn expect(self, wanted: &Identity) -> Result<Self, SvidError> {
        if self.identity == *wanted {
            Ok(self)
        } else {
            Err(SvidError::WrongIdentity {
                wanted: wanted.clone(),
                actual: self.identity,
            })
        }
    }

    /// Whose it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The serial number in lower-case hexadecimal.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Valid from.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// Valid until.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The roots of its trust domain, as they came with it.
    pub fn bundle(&self) -> &X509Bundle {
        &self.bundle
    }

    /// Chain, leaf first, without the root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// Chain and key for rustls.
    pub fn certified_key(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }

    /// Another of the same, for the hand-over to a new process alone.
    pub(crate) fn duplicate(&self) -> Self {
        Self {
            identity: self.identity.clone(),
            certified: Arc::clone(&self.certified),
            key: self.key.clone(),
            serial: self.serial.clone(),
            not_before: self.not_before,
            not_after: self.not_after,
            bundle: self.bundle.clone(),
        }
    }

    /// The key in PKCS#8, for the hand-over to a new process alone.
    pub(crate) fn key(&self) -> &Zeroizing<Vec<u8>> {
        &self.key
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("identity", &self.identity)
            .field("serial", &self.serial)
            .field("not_before", &self.not_before)
            .field("not_after", &self.not_after)
            .field("key", &"<redacted>")
            .finish_non_exhaustive()
    }
}

/// What is read from a leaf certificate.
pub(crate) struct LeafFacts {
    pub(crate) identity: Identity,
    pub(crate) serial: String,
    pub(crate) not_before: SystemTime,
    pub(crate) not_after: SystemTime,
}

impl LeafFacts {
    /// Reads SAN, serial and validity; nothing is verified.
    pub(crate) fn read(leaf: &CertificateDer<'_>) -> Result<Self, PeerError> {
        let (rest, certificate) =
            X509Certificate::from_der(leaf).map_err(|error| PeerError::malformed(&error))?;
        if !rest.is_empty() {
            return Err(PeerError::malformed(&"bytes after the certificate"));
        }
        let identity = peer::claimed_identity(&certificate)?;
        let validity = certificate.validity();
        Ok(Self {
            identity,
            serial: hex(certificate.tbs_certificate.serial.to_bytes_be().as_slice()),
            not_before: system_time(validity.not_before.timestamp()),
            not_after: system_time(validity.not_after.timestamp()),
        })
    }
}

/// The end of any certificate.
pub(crate) fn end_of(certificate: &CertificateDer<'_>) -> Result<SystemTime, PeerError> {
    let (_, certificate) =
        X509Certificate::from_der(certificate).map_err(|error| PeerError::malformed(&error))?;
    Ok(system_time(certificate.validity().not_after.timestamp()))
}

/// Whom a leaf certificate claims to be, nothing verified: what the bytes of a stranger go through first, for
/// tests of that alone.
#[doc(hidden)]
pub fn unverified_identity(leaf: &CertificateDer<'_>) -> Result<Identity, PeerError> {
    LeafFacts::read(leaf).map(|facts| facts.identity)
}

/// A time before 1970 counts as 1970.
fn system_time(seconds: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}
