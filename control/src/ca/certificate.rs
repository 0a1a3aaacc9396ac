//! Certificates and keys of the CA itself: reading, making, comparing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::{CaError, CaOptions};

/// Certificates are valid from a bit before now, for clocks that are behind ours.
pub(super) const BACKDATE: Duration = Duration::from_secs(30);

/// A certificate of a CA, parsed once.
#[derive(Debug, Clone)]
pub(super) struct CaCertificate {
    pub(super) der: CertificateDer<'static>,
    pub(super) pem: String,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

impl CaCertificate {
    pub(super) fn parse(der: CertificateDer<'static>) -> Result<Self, String> {
        let (_, parsed) = X509Certificate::from_der(&der).map_err(|error| error.to_string())?;
        let time = |seconds: i64| {
            UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or_default())
        };
        let (not_before, not_after) = (
            time(parsed.validity().not_before.timestamp()),
            time(parsed.validity().not_after.timestamp()),
        );
        Ok(Self {
            pem: pem_of(&der),
            der,
            not_before,
            not_after,
        })
    }

    /// Every certificate of a PEM text; keys in it are passed over.
    pub(super) fn parse_all(pem: &[u8]) -> Result<Vec<Self>, String> {
        CertificateDer::pem_slice_iter(pem)
            .enumerate()
            .map(|(index, der)| {
                let der = der.map_err(|error| format!("PEM block {}: {error}", index + 1))?;
                Self::parse(der).map_err(|error| format!("certificate {}: {error}", index + 1))
            })
            .collect()
    }

    /// Which part of its life is left.
    pub(super) fn left(&self, now: SystemTime) -> f64 {
        let life = self
            .not_after
            .duration_since(self.not_before)
            .unwrap_or_default();
        let left = self.not_after.duration_since(now).unwrap_or_default();
        left.as_secs_f64() / life.as_secs_f64().max(1.0)
    }
}

/// Whether two lists have the same certificates, in whatever order and number.
pub(super) fn same_set(one: &[CaCertificate], other: &[CaCertificate]) -> bool {
    let within = |one: &[CaCertificate], other: &[CaCertificate]| {
        let has = |wanted: &CaCertificate| other.iter().any(|found| found.der == wanted.der);
        one.iter().all(has)
    };
    within(one, other) && within(other, one)
}

/// The private key of a PEM text: PKCS#8, PKCS#1 or SEC1.
pub(super) fn key_of(pem: &[u8]) -> Result<KeyPair, String> {
    let der = PrivateKeyDer::from_pem_slice(pem).map_err(|error| error.to_string())?;
    KeyPair::try_from(&der).map_err(|error| error.to_string())
}

/// A root that signs itself, and its key, in one PEM text.
pub(super) fn make_root(
    options: &CaOptions,
    number: u64,
    now: SystemTime,
) -> Result<Zeroizing<String>, CaError> {
    let key = KeyPair::generate().map_err(signing("root key"))?;
    let params = ca_params(options, "root", number, now, options.root_lifetime, 1);
    let certificate = params.self_signed(&key).map_err(signing("root"))?;
    Ok(with_key(&certificate.pem(), &key))
}

/// An intermediate below a root, and its key, in one PEM text.
pub(super) fn make_intermediate(
    options: &CaOptions,
    root: &CaCertificate,
    root_key: KeyPair,
    number: u64,
    now: SystemTime,
) -> Result<Zeroizing<String>, CaError> {
    let left = root.not_after.duration_since(now).unwrap_or_default();
    let lifetime = options.intermediate_lifetime.min(left);
    let issuer = Issuer::from_ca_cert_der(&root.der, root_key).map_err(signing("signer"))?;
    let key = KeyPair::generate().map_err(signing("intermediate key"))?;
    let params = ca_params(options, "intermediate", number, now, lifetime, 0);
    let certificate = params
        .signed_by(&key, &issuer)
        .map_err(signing("intermediate"))?;
    Ok(with_key(&certificate.pem(), &key))
}

/// 126 random bits, positive and of constant length (RFC 5280 section 4.1.2.2).
pub(super) fn new_serial() -> [u8; 16] {
    let mut serial: [u8; 16] = rand::random();
    serial[0] = serial[0] & 0x3f | 0x40;
    serial
}

pub(super) fn signing(what: &'static str) -> impl FnOnce(rcgen::Error) -> CaError {
    move |source| CaError::Signing { what, source }
}

fn ca_params(
    options: &CaOptions,
    what: &str,
    number: u64,
    now: SystemTime,
    lifetime: Duration,
    path_length: u8,
) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, options.trust_domain.as_str());
    // A name of its own for each: peers hold several during a rotation, and two stores of the
    // same domain never have the same.
    let serial = new_serial();
    let unique: String = serial[..4]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    name.push(
        DnType::CommonName,
        format!("Seine {what} {number} {unique}"),
    );
    params.distinguished_name = name;
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + lifetime).into();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = what != "root";
    params
}

fn with_key(certificate: &str, key: &KeyPair) -> Zeroizing<String> {
    let key = Zeroizing::new(key.serialize_pem());
    let mut text = Zeroizing::new(String::with_capacity(certificate.len() + key.len()));
    text.push_str(certificate);
    text.push_str(&key);
    text
}

fn pem_of(der: &CertificateDer<'_>) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", der.as_ref()), config)
}
