//! An intermediate that somebody else made: Secret `seine-intermediate`, as cert-manager writes it.
//!
//! `tls.crt` has the intermediate and what leads from it to the root, `tls.key` its key, `ca.crt`
//! the roots. It is taken only if a certificate signed with it is one that every peer accepts.

use std::time::SystemTime;

use rcgen::{
    CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PublicKeyData as _,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use seine_identity::TrustDomain;
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::Zeroizing;

use super::certificate::{CaCertificate, key_of, same_set};

/// The Secret's name.
pub const SECRET: &str = "seine-intermediate";

/// What there is from outside.
#[derive(Debug, Clone, Default)]
pub enum External {
    /// No such Secret: the CA has a root of its own, or goes on with what it was given before.
    #[default]
    Absent,
    /// Good when it was looked at.
    Valid(Intermediate),
    /// The Secret is there and can't be used; why, and what to do.
    Invalid(String),
}

impl External {
    /// Nobody needs to be told of the other.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Absent, Self::Absent) => true,
            (Self::Invalid(one), Self::Invalid(other)) => one == other,
            (Self::Valid(one), Self::Valid(other)) => {
                one.chain_and_key_pem() == other.chain_and_key_pem()
                    && same_set(&one.roots, &other.roots)
            }
            _ => false,
        }
    }
}

/// A checked intermediate with its key. Never printed but for its end.
#[derive(Clone)]
pub struct Intermediate {
    chain: Vec<CaCertificate>,
    key_pem: Zeroizing<String>,
    roots: Vec<CaCertificate>,
}

impl Intermediate {
    /// Checks everything that would make peers refuse what it signs.
    ///
    /// # Errors
    ///
    /// What is wrong, for the user who made the Secret.
    pub fn check(
        tls_crt: &[u8],
        tls_key: &[u8],
        ca_crt: &[u8],
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, String> {
        let in_field = |field: &'static str| move |error| format!("{field}: {error}");
        let mut chain = CaCertificate::parse_all(tls_crt).map_err(in_field("tls.crt"))?;
        let roots = CaCertificate::parse_all(ca_crt).map_err(in_field("ca.crt"))?;
        if roots.is_empty() {
            return Err(
                "ca.crt has no certificate: put the root there that tls.crt leads to".into(),
            );
        }
        // Peers have the roots.
        chain.retain(|certificate| roots.iter().all(|root| root.der != certificate.der));
        let Some(intermediate) = chain.first() else {
            return Err(
                "tls.crt has no intermediate (a root itself is not taken: its key can't be replaced)"
                    .into(),
            );
        };
        let key = key_of(tls_key).map_err(in_field("tls.key"))?;
        check_certificate(intermediate, &key, now).map_err(in_field("tls.crt"))?;
        let key_pem = std::str::from_utf8(tls_key).map_err(|error| format!("tls.key: {error}"))?;
        let key_pem = Zeroizing::new(key_pem.trim().to_owned() + "\n");
        try_it(&chain, key, &roots, trust_domain, now)?;
        Ok(Self {
            chain,
            key_pem,
            roots,
        })
    }

    pub(super) fn roots(&self) -> &[CaCertificate] {
        &self.roots
    }

    pub(super) fn roots_pem(&self) -> Zeroizing<String> {
        let pems = self.roots.iter().map(|root| root.pem.as_str());
        Zeroizing::new(pems.collect())
    }

    pub(super) fn chain_and_key_pem(&self) -> Zeroizing<String> {
        let certificates: usize = self.chain.iter().map(|one| one.pem.len()).sum();
        // Never grown: a copy of the key would be left behind.
        let mut text = Zeroizing::new(String::with_capacity(certificates + self.key_pem.len()));
        for certificate in &self.chain {
            text.push_str(&certificate.pem);
        }
        text.push_str(&self.key_pem);
        text
    }
}

impl std::fmt::Debug for Intermediate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Intermediate")
            .field("not_after", &self.chain.first().map(|one| one.not_after))
            .finish_non_exhaustive()
    }
}

fn check_certificate(
    certificate: &CaCertificate,
    key: &KeyPair,
    now: SystemTime,
) -> Result<(), String> {
    let (_, parsed) =
        X509Certificate::from_der(&certificate.der).map_err(|error| error.to_string())?;
    if parsed.public_key().raw != key.subject_public_key_info() {
        return Err("its public key is not that of tls.key".into());
    }
    let constraints = parsed
        .basic_constraints()
        .map_err(|error| error.to_string())?;
    if !constraints.is_some_and(|constraints| constraints.value.ca) {
        return Err("it is no CA (basic constraints CA:TRUE; in cert-manager, isCA: true)".into());
    }
    let usage = parsed.key_usage().map_err(|error| error.to_string())?;
    if usage.is_some_and(|usage| !usage.value.key_cert_sign()) {
        return Err("its key usage doesn't include signing certificates (cert sign)".into());
    }
    let time = parsed.validity();
    if certificate.not_after <= now {
        return Err(format!("it ended at {}", time.not_after));
    }
    if certificate.not_before > now {
        return Err(format!("it begins at {} only", time.not_before));
    }
    Ok(())
}

/// Signs a certificate and judges it as a peer does. Finds what the fields don't tell one by one:
/// path lengths, name constraints, usages, a chain with a gap.
fn try_it(
    chain: &[CaCertificate],
    key: KeyPair,
    roots: &[CaCertificate],
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<(), String> {
    let unusable = |error: &dyn std::fmt::Display| format!("a certificate can't be made: {error}");
    let issuer = Issuer::from_ca_cert_der(&chain[0].der, key).map_err(|error| unusable(&error))?;
    let name = format!("spiffe://{trust_domain}/ns/seine-system/sa/check");
    let name = name.try_into().map_err(|error| unusable(&error))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.subject_alt_names = vec![rcgen::SanType::URI(name)];
    params.not_before = now.into();
    params.not_after = chain[0].not_after.into();
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    params.is_ca = IsCa::ExplicitNoCa;
    let leaf_key = KeyPair::generate().map_err(|error| unusable(&error))?;
    let leaf = params
        .signed_by(&leaf_key, &issuer)
        .map_err(|error| unusable(&error))?;

    let mut trusted = rustls::RootCertStore::empty();
    for root in roots {
        trusted
            .add(root.der.clone())
            .map_err(|error| format!("ca.crt: {error}"))?;
    }
    let leaf = rustls::server::ParsedCertificate::try_from(leaf.der())
        .map_err(|error| unusable(&error))?;
    let between: Vec<CertificateDer<'_>> = chain.iter().map(|one| one.der.clone()).collect();
    let since_1970 = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    rustls::client::verify_server_cert_signed_by_trust_anchor(
        &leaf,
        &trusted,
        &between,
        UnixTime::since_unix_epoch(since_1970),
        seine_identity::crypto_provider()
            .signature_verification_algorithms
            .all,
    )
    .map_err(|error| format!("peers would refuse what it signs: tls.crt doesn't lead to a root in ca.crt, or a CA on the way limits it: {error}"))
}
