//! What a certificate signing request may ask for (WIRE.md section 2).
//!
//! Pure: PEM in, an identity and a public key out. Everything else in the request is ignored.

use rcgen::SubjectPublicKeyInfo;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use seine_identity::{Identity, IdentityError};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY, OID_NIST_EC_P384};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo as ParsedKey;

/// A request with one name and one key has about 400 bytes of PEM.
const MAX_CSR: usize = 16 * 1024;

/// What was found in a request, checked.
#[derive(Debug)]
pub struct CsrFacts {
    /// Whom the certificate is for.
    pub identity: Identity,
    /// The key to certify; the request is signed with it.
    pub public_key: SubjectPublicKeyInfo,
}

/// Why a request is refused. The caller is at fault; the same request never succeeds.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CsrError {
    /// Not PEM, not a request, or too long.
    #[error("the CSR can't be parsed: {0}")]
    Malformed(String),
    /// The signature is not by the key in it: the caller may not have that key.
    #[error("the CSR's signature is not by its own key")]
    Signature,
    /// A key that we don't certify.
    #[error("the CSR's key is not ECDSA on P-256 or P-384")]
    Key,
    /// A subject, which an SVID doesn't have.
    #[error("the CSR's subject is not empty")]
    Subject,
    /// No SAN at all.
    #[error("the CSR has no subject alternative name")]
    NoSan,
    /// Several SANs, or one that is no URI.
    #[error("the CSR must have exactly one subject alternative name, a URI; it has {count} names")]
    Sans {
        /// How many of all kinds.
        count: usize,
    },
    /// A URI that is no workload's identity.
    #[error("the CSR's name can't be issued: {0}")]
    Identity(#[from] IdentityError),
}

impl CsrFacts {
    /// Checks a request in PEM.
    ///
    /// # Errors
    ///
    /// The first rule that it breaks.
    pub fn from_pem(pem: &str) -> Result<Self, CsrError> {
        if pem.len() > MAX_CSR {
            return Err(CsrError::Malformed(format!("longer than {MAX_CSR} bytes")));
        }
        let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
            .map_err(|error| CsrError::Malformed(error.to_string()))?;
        let (rest, csr) = X509CertificationRequest::from_der(&der)
            .map_err(|error| CsrError::Malformed(error.to_string()))?;
        if !rest.is_empty() {
            return Err(CsrError::Malformed("bytes after the request".into()));
        }
        let info = &csr.certification_request_info;
        check_key(&info.subject_pki)?;
        csr.verify_signature().map_err(|_| CsrError::Signature)?;
        if info.subject.iter().next().is_some() {
            return Err(CsrError::Subject);
        }
        let identity = name(&csr)?;
        let public_key =
            SubjectPublicKeyInfo::from_der(info.subject_pki.raw).map_err(|_| CsrError::Key)?;
        Ok(Self {
            identity,
            public_key,
        })
    }
}

fn check_key(key: &ParsedKey<'_>) -> Result<(), CsrError> {
    let curve = key
        .algorithm
        .parameters
        .as_ref()
        .and_then(|parameters| parameters.as_oid().ok());
    let known = curve.is_some_and(|curve| [OID_EC_P256, OID_NIST_EC_P384].contains(&curve));
    if key.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && known {
        Ok(())
    } else {
        Err(CsrError::Key)
    }
}

fn name(csr: &X509CertificationRequest<'_>) -> Result<Identity, CsrError> {
    let mut names = Vec::new();
    for extension in csr.requested_extensions().into_iter().flatten() {
        if let ParsedExtension::SubjectAlternativeName(san) = extension {
            names.extend(&san.general_names);
        }
    }
    match names[..] {
        [] => Err(CsrError::NoSan),
        [GeneralName::URI(uri)] => Ok(uri.parse::<Identity>()?),
        _ => Err(CsrError::Sans { count: names.len() }),
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
        IsCa, KeyPair, SanType,
    };

    use super::*;

    const API: &str = "spiffe://cluster.local/ns/shop/sa/api";

    fn params(sans: Vec<SanType>) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = sans;
        params
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    fn csr(params: &CertificateParams, key: &KeyPair) -> String {
        params.serialize_request(key).unwrap().pem().unwrap()
    }

    #[test]
    fn a_request_for_one_identity_with_an_ec_key_is_accepted() {
        for algorithm in [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
        ] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let facts = CsrFacts::from_pem(&csr(&params(vec![uri(API)]), &key)).unwrap();
            assert_eq!(facts.identity.as_str(), API);
        }
    }

    #[test]
    fn each_rule_refuses_what_breaks_it() {
        let key = KeyPair::generate().unwrap();
        let dns = || SanType::DnsName("api.shop.svc".try_into().unwrap());
        let sans = |sans| csr(&params(sans), &key);
        let mut subject = params(vec![uri(API)]);
        subject.distinguished_name.push(DnType::CommonName, "root");
        let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let p521 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
        type Expected = fn(&CsrError) -> bool;
        let table: Vec<(String, Expected)> = vec![
            (sans(vec![]), |e| *e == CsrError::NoSan),
            (sans(vec![dns()]), |e| *e == CsrError::Sans { count: 1 }),
            (sans(vec![uri(API), dns()]), |e| {
                *e == CsrError::Sans { count: 2 }
            }),
            (sans(vec![uri(API), uri(API)]), |e| {
                *e == CsrError::Sans { count: 2 }
            }),
            (sans(vec![uri("spiffe://cluster.local/x")]), |e| {
                matches!(e, CsrError::Identity(_))
            }),
            (sans(vec![uri("https://cluster.local/")]), |e| {
                matches!(e, CsrError::Identity(_))
            }),
            (csr(&subject, &key), |e| *e == CsrError::Subject),
            (csr(&params(vec![uri(API)]), &ed25519), |e| {
                *e == CsrError::Key
            }),
            (csr(&params(vec![uri(API)]), &p521), |e| *e == CsrError::Key),
            (String::new(), |e| matches!(e, CsrError::Malformed(_))),
            ("x".repeat(20_000), |e| matches!(e, CsrError::Malformed(_))),
            (key.public_key_pem(), |e| {
                matches!(e, CsrError::Malformed(_))
            }),
        ];
        for (index, (pem, expected)) in table.into_iter().enumerate() {
            let error = CsrFacts::from_pem(&pem).unwrap_err();
            assert!(expected(&error), "row {index}: {error:?}");
        }
    }

    #[test]
    fn a_request_whose_name_was_changed_after_signing_is_refused() {
        let key = KeyPair::generate().unwrap();
        let good = params(vec![uri(API)]).serialize_request(&key).unwrap();
        let mut der = good.der().to_vec();
        let at = der.windows(3).position(|bytes| bytes == b"api").unwrap();
        der[at..at + 3].copy_from_slice(b"web");
        let forged = pem_of(&der);
        assert_eq!(
            CsrFacts::from_pem(&forged).unwrap_err(),
            CsrError::Signature
        );
    }

    #[test]
    fn other_wishes_in_a_request_change_nothing() {
        let key = KeyPair::generate().unwrap();
        let mut wishes = params(vec![uri(API)]);
        wishes.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        wishes.extended_key_usages = vec![ExtendedKeyUsagePurpose::CodeSigning];
        let facts = CsrFacts::from_pem(&csr(&wishes, &key)).unwrap();
        assert_eq!(facts.identity.as_str(), API);
    }

    fn pem_of(der: &[u8]) -> String {
        // Base64 by hand, as no crate for it is at hand here.
        const ALPHABET: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut text = String::from("-----BEGIN CERTIFICATE REQUEST-----\n");
        for (index, chunk) in der.chunks(3).enumerate() {
            let n = chunk
                .iter()
                .fold(0_u32, |n, byte| n << 8 | u32::from(*byte))
                << (8 * (3 - chunk.len()));
            for position in 0..4 {
                if position > chunk.len() {
                    text.push('=');
                } else {
                    let sextet = (n >> (18 - 6 * position)) & 63;
                    text.push(char::from(ALPHABET[sextet as usize]));
                }
            }
            if index % 16 == 15 {
                text.push('\n');
            }
        }
        text + "\n-----END CERTIFICATE REQUEST-----\n"
    }
}
