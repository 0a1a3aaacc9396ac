//! Certificates of clients from outside the mesh: which are good, and what backends are told of them.

use std::fmt::Write as _;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use http::HeaderValue;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use seine_proto::waypoint as wire;
use x509_parser::extensions::GeneralName;
use x509_parser::objects::{oid_registry, oid2abbrev};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::{RelativeDistinguishedName, X509Name};

/// What a listener asks of its clients.
#[derive(Clone, Debug)]
pub struct Clients {
    judge: Arc<dyn ClientCertVerifier>,
    optional: bool,
}

impl Clients {
    /// Reads it.
    pub(super) fn parse(
        message: &wire::ClientCertificates,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for (index, authority) in message.authorities.iter().enumerate() {
            let authority = CertificateDer::from(authority.clone());
            let added = roots.add(authority);
            added.map_err(|error| format!("authorities[{index}]: {error}"))?;
        }
        let judge =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build();
        Ok(Self {
            judge: judge.map_err(|error| error.to_string())?,
            optional: message.optional,
        })
    }

    /// Who decides in the handshake.
    pub(super) fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        match self.optional {
            true => Arc::new(Lenient(self.judge.clone())),
            false => self.judge.clone(),
        }
    }

    /// What backends are told of a client that showed this chain, as the value of `x-forwarded-client-cert`: of one that is not
    /// good nothing.
    pub(super) fn told(&self, chain: &[CertificateDer<'_>]) -> Option<HeaderValue> {
        let (leaf, intermediates) = chain.split_first()?;
        let verified = self
            .judge
            .verify_client_cert(leaf, intermediates, UnixTime::now());
        verified.ok()?;
        HeaderValue::try_from(described(leaf)?).ok()
    }
}

/// In Envoy's format, so that applications need not learn another one.
fn described(leaf: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(leaf).ok()?;
    let mut text = "Hash=".to_owned();
    for byte in digest(&SHA256, leaf).as_ref() {
        write!(text, "{byte:02x}").expect("a String takes all that is written");
    }
    text += &format!(";Subject=\"{}\"", plain(&distinguished(parsed.subject())?));
    let names = parsed.subject_alternative_name().ok()?;
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::URI(uri) => text += &format!(";URI={}", quoted(uri)),
            GeneralName::DNSName(name) => text += &format!(";DNS={}", quoted(name)),
            _ => {}
        }
    }
    Some(text)
}

/// As RFC 2253 writes a name, so that no part of it can look like another one; `None`: it has one that is no text.
fn distinguished(name: &X509Name<'_>) -> Option<String> {
    let escaped = |text: &str| {
        let mut escaped = String::with_capacity(text.len());
        for char in text.chars() {
            if ",+\"\\<>;=#".contains(char) {
                escaped.push('\\');
            }
            escaped.push(char);
        }
        escaped
    };
    let of_part = |part: &RelativeDistinguishedName<'_>| -> Option<String> {
        let all = part.iter().map(|one| {
            let kind = oid2abbrev(one.attr_type(), oid_registry());
            let kind = kind.map_or_else(|_| one.attr_type().to_id_string(), str::to_owned);
            Some(format!("{kind}={}", escaped(one.as_str().ok()?)))
        });
        Some(all.collect::<Option<Vec<_>>>()?.join("+"))
    };
    let mut parts = name.iter_rdn().map(of_part).collect::<Option<Vec<_>>>()?;
    parts.reverse();
    Some(parts.join(","))
}

/// In quotes where something in it would end the value.
fn quoted(text: &str) -> String {
    match text.contains([';', ',', '=', '"', '\\']) {
        true => format!("\"{}\"", plain(text)),
        false => plain(text),
    }
}

/// What can be within quotes in a header.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'"' | b'\\' => plain.extend(['\\', char::from(byte)]),
            b' '..=b'~' => plain.push(char::from(byte)),
            _ => write!(plain, "%{byte:02X}").expect("a String takes all that is written"),
        }
    }
    plain
}

/// Lets in whoever holds the key of what is shown, and whoever shows nothing. What is good is judged afterwards.
#[derive(Debug)]
struct Lenient(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for Lenient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, CertifiedIssuer, DnType, KeyPair, SanType, string::Ia5String};
    use rustls::crypto::aws_lc_rs;

    use super::*;

    fn authority() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    #[test]
    fn backends_are_told_of_good_certificates_alone_and_names_end_where_they_end() {
        let (ours, other) = (authority(), authority());
        let message = wire::ClientCertificates {
            authorities: vec![ours.der().to_vec()],
            optional: true,
        };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let clients = Clients::parse(&message, &provider).unwrap();
        let shown = |of: &CertifiedIssuer<'static, KeyPair>, name: &str, uri: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            let uri = Ia5String::try_from(uri).unwrap();
            params.subject_alt_names = vec![SanType::URI(uri)];
            params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
            let key = KeyPair::generate().unwrap();
            let made = params.signed_by(&key, of).unwrap();
            let told = clients.told(&[made.der().clone()])?;
            Some(told.to_str().unwrap().to_owned())
        };
        let told = shown(&ours, "joe", "spiffe://a/b").unwrap();
        assert!(told.starts_with("Hash="), "{told}");
        assert!(told.ends_with(";URI=spiffe://a/b"), "{told}");
        assert!(told.contains("CN=joe\""), "{told}");
        let told = shown(&ours, "a\";O=root\r\né", "x;URI=root").unwrap();
        assert!(
            told.contains(r#"CN=a\\\"\\;O\\=root%0D%0A%C3%A9""#),
            "{told}"
        );
        assert!(told.ends_with(";URI=\"x;URI=root\""), "{told}");
        assert_eq!(shown(&other, "joe", "spiffe://a/b"), None);
        assert_eq!(clients.told(&[]), None);
    }
}
