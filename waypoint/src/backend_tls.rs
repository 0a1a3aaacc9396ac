//! TLS to a backend that speaks it itself, within the tunnel that leads there, and who it must be then.

use std::hash::{Hash, Hasher};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use seine_hbone::Io;
use seine_proto::waypoint as wire;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// How long a backend may take for the handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// What a backend speaks, and who it is.
#[derive(Clone, Debug)]
pub struct BackendTls {
    /// Two that say the same share connections.
    said: Vec<u8>,
    name: ServerName<'static>,
    bytes: Arc<ClientConfig>,
    one: Arc<ClientConfig>,
    two: Arc<ClientConfig>,
}

/// What is spoken within TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Within {
    /// HTTP/1.1.
    One,
    /// HTTP/2.
    Two,
    /// Whatever the client says.
    Bytes,
}

impl BackendTls {
    /// Reads it.
    pub(crate) fn parse(message: &wire::BackendTls) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for (index, authority) in message.authorities.iter().enumerate() {
            let added = roots.add(CertificateDer::from(authority.clone()));
            added.map_err(|error| format!("tls.authorities[{index}]: {error}"))?;
        }
        let host = |name: &String| {
            let read = ServerName::try_from(name.clone());
            read.map_err(|_| format!("tls: {name:?} is no host"))
        };
        let hosts = message.hostnames.iter().map(host);
        let hosts = hosts.collect::<Result<Vec<_>, _>>()?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let judge = Judge {
            roots,
            hosts,
            uris: message.uris.clone(),
            algorithms: provider.signature_verification_algorithms,
        };
        let bytes = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(judge))
            .with_no_client_auth();
        let (mut one, mut two) = (bytes.clone(), bytes.clone());
        one.alpn_protocols = vec![b"http/1.1".to_vec()];
        two.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self {
            said: message.encode_to_vec(),
            name: host(&message.hostname)?,
            bytes: Arc::new(bytes),
            one: Arc::new(one),
            two: Arc::new(two),
        })
    }

    /// TLS over what leads to the backend.
    pub(crate) async fn over(&self, io: Io, within: Within) -> io::Result<Io> {
        let config = match within {
            Within::One => &self.one,
            Within::Two => &self.two,
            Within::Bytes => &self.bytes,
        };
        let connector = TlsConnector::from(config.clone());
        let handshake = timeout(HANDSHAKE, connector.connect(self.name.clone(), io)).await;
        let late = || io::Error::new(io::ErrorKind::TimedOut, "its TLS handshake takes too long");
        let stream = handshake.unwrap_or_else(|_| Err(late()))?;
        Ok(Io::Other(Box::new(stream)))
    }
}

impl PartialEq for BackendTls {
    fn eq(&self, other: &Self) -> bool {
        self.said == other.said
    }
}

impl Eq for BackendTls {}

impl Hash for BackendTls {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.said.hash(state);
    }
}

/// Of one of these names the certificate is, and of one of these authorities. What was asked for in TLS is none of them by itself.
#[derive(Debug)]
struct Judge {
    roots: RootCertStore,
    hosts: Vec<ServerName<'static>>,
    uris: Vec<String>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        let mut hosts = self.hosts.iter();
        let is_host = hosts.any(|host| verify_server_name(&certificate, host).is_ok());
        match is_host || names_one_of(end_entity, &self.uris) {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(CertificateError::NotValidForName.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn names_one_of(certificate: &CertificateDer<'_>, uris: &[String]) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return false;
    };
    let Ok(Some(names)) = parsed.subject_alternative_name() else {
        return false;
    };
    let mut names = names.value.general_names.iter();
    names.any(|name| matches!(name, GeneralName::URI(uri) if uris.iter().any(|one| one == uri)))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, CertifiedIssuer, KeyPair, SanType, string::Ia5String};

    use super::*;

    type Authority = CertifiedIssuer<'static, KeyPair>;

    fn authority() -> Authority {
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_backend_is_who_its_policy_says_or_nobody() {
        let (ours, other) = (authority(), authority());
        let wanted = |hostnames: &[&str], uris: &[&str]| {
            let message = wire::BackendTls {
                hostname: "asked.example".into(),
                authorities: vec![ours.der().to_vec()],
                hostnames: hostnames.iter().map(|&name| name.to_owned()).collect(),
                uris: uris.iter().map(|&uri| uri.to_owned()).collect(),
                refused: String::new(),
            };
            BackendTls::parse(&message).unwrap()
        };
        let shows = async |wanted: BackendTls, of: &Authority| {
            let mut params = CertificateParams::new(vec!["a.example".to_owned()]).unwrap();
            let uri = Ia5String::try_from("spiffe://a/b").unwrap();
            params.subject_alt_names.push(SanType::URI(uri));
            let key = KeyPair::generate().unwrap();
            let made = params.signed_by(&key, of).unwrap();
            let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
            let config = rustls::ServerConfig::builder_with_provider(Arc::new(
                aws_lc_rs::default_provider(),
            ))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.der().clone()], key)
            .unwrap();
            let (client, server) = tokio::io::duplex(64 << 10);
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            let accepting = tokio::spawn(acceptor.accept(server));
            // Held until the other end is done: in TLS 1.3 that is the last to know.
            let connected = wanted.over(Io::from(client), Within::One).await;
            let accepted = accepting.await.unwrap();
            let asked = accepted
                .ok()
                .and_then(|stream| stream.get_ref().1.server_name().map(str::to_owned));
            connected.is_ok().then(|| asked.unwrap())
        };
        let good = shows(wanted(&["a.example"], &[]), &ours).await;
        assert_eq!(good.as_deref(), Some("asked.example"));
        assert!(shows(wanted(&[], &["spiffe://a/b"]), &ours).await.is_some());
        assert!(
            shows(wanted(&["b.example", "a.example"], &["x:"]), &ours)
                .await
                .is_some()
        );
        assert!(shows(wanted(&["a.example"], &[]), &other).await.is_none());
        assert!(
            shows(wanted(&["b.example"], &["spiffe://a/c"]), &ours)
                .await
                .is_none()
        );
        // What is asked for is not who it is.
        assert!(
            shows(wanted(&["asked.example"], &[]), &ours)
                .await
                .is_none()
        );
        assert!(shows(wanted(&[], &[]), &ours).await.is_none());
    }
}
