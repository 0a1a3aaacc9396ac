//! Who the peer of a connection is: one place that reads its certificate and judges its chain.
//!
//! The rules (SPIFFE X509-SVID sections 2 and 5): exactly one URI SAN, which is a SPIFFE ID of a
//! service account; a chain to a root of that very trust domain; valid now. A server accepts any
//! identity of the domains that it has bundles of (policy judges later); a client only those that
//! it expects at the address.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::{CertificateError, CommonState, OtherError};
use rustls_pki_types::{CertificateDer, UnixTime};
use spiffe::TrustDomain;
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::X509Certificate;

use crate::bundle::{SharedBundles, TrustBundles};
use crate::identity::{Identity, IdentityError, shorten};
use crate::svid::LeafFacts;

/// Intermediates that a peer may send; ours sends one.
const MAX_CHAIN: usize = 8;

/// Why a peer's certificate was refused. The peer is at fault, but for clocks and bundles that
/// may be ours. A retry helps only after one side got a new certificate or bundle.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerError {
    /// A client without a certificate, or a connection whose handshake is not over.
    #[error("the peer presented no certificate")]
    NoCertificate,
    /// Past its end.
    #[error("the certificate of {identity} expired {} s ago", since(*.not_after, *.now))]
    Expired {
        /// Whom it names.
        identity: Identity,
        /// Its end.
        not_after: SystemTime,
        /// Our clock.
        now: SystemTime,
    },
    /// Before its start.
    #[error(
        "the certificate of {identity} is not valid before {} s from now (check both clocks)",
        since(*.now, *.not_before)
    )]
    NotYetValid {
        /// Whom it names.
        identity: Identity,
        /// Its start.
        not_before: SystemTime,
        /// Our clock.
        now: SystemTime,
    },
    /// Self-signed, or signed by a CA that is not one of its trust domain.
    #[error(
        "the certificate of {identity} is not signed by a CA of trust domain {}",
        .identity.trust_domain()
    )]
    UnknownIssuer {
        /// Whom it names.
        identity: Identity,
    },
    /// Of a domain that we have no bundle of.
    #[error("{identity} is of a trust domain that is not trusted here (trusted: {})", list(.trusted))]
    WrongTrustDomain {
        /// Whom it names.
        identity: Identity,
        /// Domains that are trusted.
        trusted: Vec<TrustDomain>,
    },
    /// No URI among its names.
    #[error("the certificate has no URI SAN")]
    NoSan,
    /// More than one URI.
    #[error("the certificate has {count} URI SANs, an SVID has exactly one")]
    SeveralSans {
        /// How many.
        count: usize,
    },
    /// Its URI is not a SPIFFE ID of a service account.
    #[error("the certificate's URI SAN is no workload's identity: {0}")]
    NotSpiffe(#[from] IdentityError),
    /// A valid certificate of somebody else than expected at this address.
    #[error("the peer is {actual}, expected was {expected}")]
    UnexpectedIdentity {
        /// Who it is.
        actual: Identity,
        /// Who was expected.
        expected: AcceptedIdentities,
    },
    /// Not to be parsed.
    #[error("the certificate can't be parsed: {reason}")]
    Malformed {
        /// What is wrong.
        reason: String,
    },
    /// Any other rule of path validation (RFC 5280).
    #[error("the certificate chain of {identity} is refused: {reason}")]
    Unsuitable {
        /// Whom it names.
        identity: Identity,
        /// What is wrong.
        reason: String,
    },
}

impl PeerError {
    /// A short constant name, for logs and metric labels.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no-certificate",
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not-yet-valid",
            Self::UnknownIssuer { .. } => "unknown-issuer",
            Self::WrongTrustDomain { .. } => "wrong-trust-domain",
            Self::NoSan => "no-san",
            Self::SeveralSans { .. } => "several-sans",
            Self::NotSpiffe(_) => "not-spiffe",
            Self::UnexpectedIdentity { .. } => "unexpected-identity",
            Self::Malformed { .. } => "malformed",
            Self::Unsuitable { .. } => "unsuitable",
        }
    }

    /// The verdict inside of an error of a handshake, if that is why it failed on our side.
    pub fn from_rustls(error: &rustls::Error) -> Option<Self> {
        match error {
            rustls::Error::NoCertificatesPresented => Some(Self::NoCertificate),
            rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
                inner.downcast_ref::<Self>().cloned()
            }
            _ => None,
        }
    }

    /// The same for what tokio-rustls returns.
    pub fn from_io(error: &std::io::Error) -> Option<Self> {
        Self::from_rustls(error.get_ref()?.downcast_ref::<rustls::Error>()?)
    }

    pub(crate) fn malformed(reason: &dyn fmt::Display) -> Self {
        Self::Malformed {
            reason: shorten(&reason.to_string()),
        }
    }
}

impl From<PeerError> for rustls::Error {
    fn from(error: PeerError) -> Self {
        match error {
            PeerError::NoCertificate => Self::NoCertificatesPresented,
            other => Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(other)))),
        }
    }
}

/// The identities that a client accepts at an address: the workload's own and its service's
/// subject alternative names. Sorted, without duplicates; cheap to clone; a key of pools.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AcceptedIdentities(Arc<[Identity]>);

impl AcceptedIdentities {
    /// Whether a peer with this identity is accepted.
    pub fn contains(&self, identity: &Identity) -> bool {
        self.0.binary_search(identity).is_ok()
    }

    /// All of them, sorted.
    pub fn iter(&self) -> impl Iterator<Item = &Identity> {
        self.0.iter()
    }

    /// True if nobody is accepted.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Identity> for AcceptedIdentities {
    fn from_iter<T: IntoIterator<Item = Identity>>(identities: T) -> Self {
        let mut sorted: Vec<_> = identities.into_iter().collect();
        sorted.sort_unstable();
        sorted.dedup();
        Self(sorted.into())
    }
}

impl From<Identity> for AcceptedIdentities {
    fn from(identity: Identity) -> Self {
        Self([identity].into())
    }
}

impl fmt::Display for AcceptedIdentities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, identity) in self.0.iter().enumerate() {
            write!(f, "{}{identity}", if index == 0 { "" } else { " or " })?;
        }
        Ok(())
    }
}

impl fmt::Debug for AcceptedIdentities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{self}]")
    }
}

/// What a verified certificate says of its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Who it is.
    pub identity: Identity,
    /// Until when.
    pub not_after: SystemTime,
    /// Serial number in lower-case hexadecimal.
    pub serial: String,
}

/// The peer's identity, from the certificate that the handshake verified.
///
/// # Errors
///
/// [`PeerError::NoCertificate`] before the handshake is over, [`PeerError::Expired`] when the
/// certificate ended since (a resumed session carries the certificate of its first handshake).
pub fn peer_identity(connection: &CommonState) -> Result<Identity, PeerError> {
    peer_certificate(connection).map(|certificate| certificate.identity)
}

/// As [`peer_identity`], with the certificate's end and serial.
///
/// # Errors
///
/// As [`peer_identity`].
pub fn peer_certificate(connection: &CommonState) -> Result<PeerCertificate, PeerError> {
    let leaf = connection
        .peer_certificates()
        .and_then(<[_]>::first)
        .ok_or(PeerError::NoCertificate)?;
    let facts = LeafFacts::read(leaf)?;
    let now = SystemTime::now();
    if now > facts.not_after {
        return Err(PeerError::Expired {
            identity: facts.identity,
            not_after: facts.not_after,
            now,
        });
    }
    Ok(PeerCertificate {
        identity: facts.identity,
        not_after: facts.not_after,
        serial: facts.serial,
    })
}

/// Judges chains; shared by the verifiers of both sides and the check of resumed sessions.
#[derive(Debug, Clone)]
pub(crate) struct ChainVerifier {
    pub(crate) bundles: Arc<SharedBundles>,
    pub(crate) algorithms: WebPkiSupportedAlgorithms,
}

impl ChainVerifier {
    /// The identity of a chain that ends in a root of its own trust domain.
    pub(crate) fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<Identity, PeerError> {
        let identity = LeafFacts::read(leaf)?.identity;
        if intermediates.len() > MAX_CHAIN {
            return Err(PeerError::Unsuitable {
                identity,
                reason: format!("{} intermediates, at most {MAX_CHAIN}", intermediates.len()),
            });
        }
        let bundles: Arc<TrustBundles> = self.bundles.load();
        let Some(anchors) = bundles.anchors(identity.trust_domain()) else {
            return Err(PeerError::WrongTrustDomain {
                identity,
                trusted: bundles.trust_domains().cloned().collect(),
            });
        };
        let end_entity =
            EndEntityCert::try_from(leaf).map_err(|error| PeerError::malformed(&error))?;
        match end_entity.verify_for_usage(
            self.algorithms.all,
            anchors,
            intermediates,
            now,
            usage,
            None,
            None,
        ) {
            Ok(_) => Ok(identity),
            Err(error) => Err(refusal(identity, error)),
        }
    }
}

fn refusal(identity: Identity, error: webpki::Error) -> PeerError {
    match error {
        webpki::Error::CertExpired { time, not_after } => PeerError::Expired {
            identity,
            not_after: unix(not_after),
            now: unix(time),
        },
        webpki::Error::CertNotValidYet { time, not_before } => PeerError::NotYetValid {
            identity,
            not_before: unix(not_before),
            now: unix(time),
        },
        // A chain whose names fit but whose signature doesn't is nobody's of this domain either.
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            PeerError::UnknownIssuer { identity }
        }
        other => PeerError::Unsuitable {
            identity,
            reason: other.to_string(),
        },
    }
}

/// The identity that a certificate claims; nothing is verified.
pub(crate) fn claimed_identity(certificate: &X509Certificate<'_>) -> Result<Identity, PeerError> {
    let san = certificate
        .subject_alternative_name()
        .map_err(|error| PeerError::malformed(&error))?
        .ok_or(PeerError::NoSan)?;
    let mut uris = san
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
    match (uris.next(), uris.count()) {
        (None, _) => Err(PeerError::NoSan),
        (Some(uri), 0) => Ok(uri.parse::<Identity>()?),
        (Some(_), more) => Err(PeerError::SeveralSans { count: more + 1 }),
    }
}

fn unix(time: UnixTime) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(time.as_secs())
}

fn since(earlier: SystemTime, later: SystemTime) -> u64 {
    later.duration_since(earlier).unwrap_or_default().as_secs()
}

fn list(domains: &[TrustDomain]) -> String {
    if domains.is_empty() {
        return "none".into();
    }
    let names: Vec<_> = domains.iter().map(TrustDomain::as_str).collect();
    names.join(", ")
}
