//! A certificate authority in memory, for tests.
//!
//! Everything that an attack certificate needs can be set; [`TestCa::svid`] makes a good one.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::CertificateDer;
use spiffe::{TrustDomain, X509Bundle};
use zeroize::Zeroizing;

use crate::bundle::{SharedBundles, TrustBundles};
use crate::identity::Identity;
use crate::svid::Svid;
use crate::tls::{Credentials, TlsOptions};

/// A root of one trust domain that signs leaves itself.
pub struct TestCa {
    trust_domain: TrustDomain,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate to be made; fields may be changed to attack.
#[derive(Debug, Clone)]
pub struct TestLeaf {
    /// URI SANs.
    pub uris: Vec<String>,
    /// DNS SANs.
    pub dns: Vec<String>,
    /// IP SANs.
    pub ips: Vec<IpAddr>,
    /// Start.
    pub not_before: SystemTime,
    /// End.
    pub not_after: SystemTime,
    /// A CA certificate, as no leaf may be.
    pub is_ca: bool,
}

impl TestLeaf {
    /// A good certificate: valid from a minute ago, for an hour.
    pub fn new(identity: &Identity) -> Self {
        let now = SystemTime::now();
        Self {
            uris: vec![identity.to_string()],
            dns: Vec::new(),
            ips: Vec::new(),
            not_before: now - Duration::from_secs(60),
            not_after: now + Duration::from_secs(3600),
            is_ca: false,
        }
    }

    /// What an issuer is to sign.
    pub fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let ia5 = |text: &String| text.as_str().try_into().expect("test names are ASCII");
        params.subject_alt_names = self
            .uris
            .iter()
            .map(|uri| SanType::URI(ia5(uri)))
            .chain(self.dns.iter().map(|name| SanType::DnsName(ia5(name))))
            .chain(self.ips.iter().map(|ip| SanType::IpAddress(*ip)))
            .collect();
        params.not_before = self.not_before.into();
        params.not_after = self.not_after.into();
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.is_ca = match self.is_ca {
            true => IsCa::Ca(BasicConstraints::Unconstrained),
            false => IsCa::ExplicitNoCa,
        };
        params
    }
}

impl TestCa {
    /// A new root with a key of its own.
    pub fn new(trust_domain: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::OrganizationName, trust_domain);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key can be made");
        Self {
            trust_domain: TrustDomain::new(trust_domain).expect("a test's domain is valid"),
            issuer: CertifiedIssuer::self_signed(params, key).expect("a root can be made"),
        }
    }

    /// An identity in this domain.
    pub fn identity(&self, namespace: &str, service_account: &str) -> Identity {
        Identity::new(self.trust_domain.clone(), namespace, service_account)
            .expect("a test's names are valid")
    }

    /// The root.
    pub fn root(&self) -> &CertificateDer<'static> {
        self.issuer.der()
    }

    /// The root as PEM.
    pub fn root_pem(&self) -> String {
        self.issuer.pem()
    }

    /// The root as the domain's bundle.
    pub fn bundle(&self) -> X509Bundle {
        X509Bundle::from_x509_authorities(self.trust_domain.clone(), &[self.root()])
            .expect("the root was just made")
    }

    /// This domain's bundle alone, shared.
    pub fn bundles(&self) -> Arc<SharedBundles> {
        let bundles = TrustBundles::new()
            .with(self.bundle())
            .expect("the root was just made");
        Arc::new(SharedBundles::new(bundles))
    }

    /// Signs whatever is asked: certificate and PKCS#8 key.
    pub fn sign(&self, leaf: &TestLeaf) -> (CertificateDer<'static>, Zeroizing<Vec<u8>>) {
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = leaf
            .params()
            .signed_by(&key, &self.issuer)
            .expect("a certificate can be signed");
        (
            certificate.der().clone(),
            Zeroizing::new(key.serialize_der()),
        )
    }

    /// A good SVID, valid for an hour.
    pub fn svid(&self, namespace: &str, service_account: &str) -> Svid {
        self.svid_from(&TestLeaf::new(&self.identity(namespace, service_account)))
    }

    /// An SVID from a leaf that names exactly one identity.
    pub fn svid_from(&self, leaf: &TestLeaf) -> Svid {
        let (certificate, key) = self.sign(leaf);
        Svid::new(vec![certificate], key, self.bundle()).expect("the leaf names one identity")
    }

    /// Good credentials that trust this domain alone.
    pub fn credentials(&self, namespace: &str, service_account: &str) -> Arc<Credentials> {
        let svid = Arc::new(self.svid(namespace, service_account));
        let credentials = Credentials::new(svid, self.bundles(), TlsOptions::default());
        Arc::new(credentials.expect("the configurations can be made"))
    }
}

/// A certificate signed by its own key: certificate and PKCS#8 key.
pub fn self_signed(leaf: &TestLeaf) -> (CertificateDer<'static>, Zeroizing<Vec<u8>>) {
    let key = KeyPair::generate().expect("a key can be made");
    let certificate = leaf
        .params()
        .self_signed(&key)
        .expect("a certificate can be signed");
    (
        certificate.der().clone(),
        Zeroizing::new(key.serialize_der()),
    )
}
