//! TLS configurations for HBONE, made from an [`Svid`] and the trust bundles.
//!
//! What always holds: TLS 1.3 only; X25519MLKEM768 before X25519 before P-256; both sides present
//! certificates; no SNI is sent and none is looked at; session tickets and caches belong to one
//! local identity (and, at the client, one set of accepted peers) and carry no early data.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::version::TLS13;
use rustls::{
    ClientConfig, CommonState, DigitallySignedStruct, DistinguishedName, HandshakeKind,
    ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::KeyUsage;

use crate::bundle::SharedBundles;
use crate::identity::Identity;
use crate::peer::{
    AcceptedIdentities, ChainVerifier, PeerCertificate, PeerError, peer_certificate,
};
use crate::svid::{LeafFacts, Svid, end_of};

/// Sets of accepted peers that one local identity keeps a client configuration for. When there are
/// more, all are made anew: that costs full handshakes, never correctness.
const MAX_CLIENT_CONFIGS: usize = 512;

/// Sessions that a client remembers per configuration, one for each destination address.
const CLIENT_SESSIONS: usize = 64;

/// What callers may choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsOptions {
    /// Protocols offered and accepted, most wanted first. A peer that has none of them is refused.
    pub alpn: Vec<Vec<u8>>,
    /// Whether sessions are resumed. A resumed session's certificate is judged anew by
    /// [`Credentials::peer`].
    pub resumption: bool,
}

impl Default for TlsOptions {
    fn default() -> Self {
        Self {
            alpn: vec![b"h2".to_vec()],
            resumption: true,
        }
    }
}

/// The cryptography of every connection: aws-lc-rs with TLS 1.3 suites and the groups that the
/// mesh uses.
pub fn crypto_provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        Arc::new(CryptoProvider {
            // No 1.2 suite is left by mistake.
            cipher_suites: aws_lc_rs::DEFAULT_CIPHER_SUITES
                .iter()
                .filter(|suite| suite.tls13().is_some())
                .copied()
                .collect(),
            kx_groups: vec![
                kx_group::X25519MLKEM768,
                kx_group::X25519,
                kx_group::SECP256R1,
            ],
            ..aws_lc_rs::default_provider()
        })
    });
    &PROVIDER
}

/// A name for rustls's client, which wants one: it is never sent, never verified, and is the key
/// of the session cache.
pub fn server_name(address: IpAddr) -> ServerName<'static> {
    ServerName::IpAddress(address.into())
}

/// The configuration of the accepting side: any peer of a trusted domain, with a certificate.
///
/// # Errors
///
/// Only if the cryptographic library fails to make a ticket key.
pub fn server_config(
    svid: &Svid,
    bundles: &Arc<SharedBundles>,
    options: &TlsOptions,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let verifier = Arc::new(MeshClientVerifier(chain_verifier(bundles)));
    let mut config = ServerConfig::builder_with_provider(Arc::clone(crypto_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(
            svid.certified_key(),
        ))));
    config.alpn_protocols.clone_from(&options.alpn);
    config.max_early_data_size = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    if options.resumption {
        config.ticketer = aws_lc_rs::Ticketer::new()?;
        config.send_tls13_tickets = 1;
    } else {
        config.send_tls13_tickets = 0;
    }
    Ok(Arc::new(config))
}

/// The configuration of the connecting side: only peers that are in `accepted`.
///
/// # Errors
///
/// Only if the cryptographic library does not support TLS 1.3.
pub fn client_config(
    svid: &Svid,
    bundles: &Arc<SharedBundles>,
    accepted: AcceptedIdentities,
    options: &TlsOptions,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let verifier = Arc::new(MeshServerVerifier {
        chain: chain_verifier(bundles),
        accepted,
    });
    let mut config = ClientConfig::builder_with_provider(Arc::clone(crypto_provider()))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(
            svid.certified_key(),
        ))));
    config.alpn_protocols.clone_from(&options.alpn);
    config.enable_sni = false;
    config.enable_early_data = false;
    config.resumption = if options.resumption {
        Resumption::in_memory_sessions(CLIENT_SESSIONS)
    } else {
        Resumption::disabled()
    };
    Ok(Arc::new(config))
}

/// One identity, ready to accept and to connect. Immutable but for its caches: after a renewal or a
/// change of the bundles there is a new one.
pub struct Credentials {
    svid: Arc<Svid>,
    bundles: Arc<SharedBundles>,
    options: TlsOptions,
    server: Arc<ServerConfig>,
    clients: Mutex<HashMap<AcceptedIdentities, Arc<ClientConfig>>>,
}

impl Credentials {
    /// Makes the configurations.
    ///
    /// # Errors
    ///
    /// As [`server_config`].
    pub fn new(
        svid: Arc<Svid>,
        bundles: Arc<SharedBundles>,
        options: TlsOptions,
    ) -> Result<Self, rustls::Error> {
        let server = server_config(&svid, &bundles, &options)?;
        Ok(Self {
            svid,
            bundles,
            options,
            server,
            clients: Mutex::default(),
        })
    }

    /// Who we are.
    pub fn identity(&self) -> &Identity {
        self.svid.identity()
    }

    /// The certificate.
    pub fn svid(&self) -> &Arc<Svid> {
        &self.svid
    }

    /// Who is trusted to sign, at this moment.
    pub fn bundles(&self) -> &Arc<SharedBundles> {
        &self.bundles
    }

    /// For accepting.
    pub fn server_config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.server)
    }

    /// For connecting to one of `accepted`. The same set gives the same configuration, and so
    /// shares its sessions.
    ///
    /// # Errors
    ///
    /// As [`client_config`].
    pub fn client_config(
        &self,
        accepted: &AcceptedIdentities,
    ) -> Result<Arc<ClientConfig>, rustls::Error> {
        let mut clients = self.clients.lock();
        if let Some(config) = clients.get(accepted) {
            return Ok(Arc::clone(config));
        }
        let config = client_config(&self.svid, &self.bundles, accepted.clone(), &self.options)?;
        if clients.len() >= MAX_CLIENT_CONFIGS {
            clients.clear();
        }
        clients.insert(accepted.clone(), Arc::clone(&config));
        Ok(config)
    }

    /// The same certificate with configurations that share no session with these.
    pub(crate) fn renewed_configurations(&self) -> Result<Self, rustls::Error> {
        let (svid, bundles) = (Arc::clone(&self.svid), Arc::clone(&self.bundles));
        Self::new(svid, bundles, self.options.clone())
    }

    /// Whether a peer that has our bundles would accept our own certificate.
    pub(crate) fn verify_own_chain(&self, now: SystemTime) -> Result<(), PeerError> {
        let Some((leaf, intermediates)) = self.svid.chain().split_first() else {
            return Err(PeerError::NoCertificate);
        };
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        chain_verifier(&self.bundles)
            .verify(
                leaf,
                intermediates,
                UnixTime::since_unix_epoch(now),
                KeyUsage::server_auth(),
            )
            .map(drop)
    }

    /// The peer of an accepted connection after its handshake. The chain of a resumed session,
    /// which rustls took from the ticket without a look, is verified against today's bundles.
    ///
    /// # Errors
    ///
    /// Whatever makes the peer unacceptable now.
    pub fn peer(&self, connection: &CommonState) -> Result<PeerCertificate, PeerError> {
        let peer = peer_certificate(connection)?;
        if connection.handshake_kind() == Some(HandshakeKind::Resumed) {
            let (leaf, intermediates) = connection
                .peer_certificates()
                .and_then(<[_]>::split_first)
                .ok_or(PeerError::NoCertificate)?;
            chain_verifier(&self.bundles).verify(
                leaf,
                intermediates,
                UnixTime::now(),
                KeyUsage::client_auth(),
            )?;
        }
        Ok(peer)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("svid", &self.svid)
            .field("bundles", &self.bundles.load())
            .finish_non_exhaustive()
    }
}

/// The chain that a live connection's peer presented, to be judged again when the bundles change.
#[derive(Clone)]
pub struct PeerChain {
    chain: Arc<[CertificateDer<'static>]>,
    usage: KeyUsage,
    accepted_at: UnixTime,
    identity: Identity,
    not_after: SystemTime,
}

impl PeerChain {
    /// Of the client of an accepted connection, whose handshake is over and was found good now.
    ///
    /// # Errors
    ///
    /// There is no certificate, or one that can't be read.
    pub fn of_client(connection: &CommonState) -> Result<Self, PeerError> {
        Self::of(connection, KeyUsage::client_auth())
    }

    /// Of the server of a connection that was made, whose handshake is over and was found good now.
    ///
    /// # Errors
    ///
    /// As [`PeerChain::of_client`].
    pub fn of_server(connection: &CommonState) -> Result<Self, PeerError> {
        Self::of(connection, KeyUsage::server_auth())
    }

    fn of(connection: &CommonState, usage: KeyUsage) -> Result<Self, PeerError> {
        let chain = connection.peer_certificates().unwrap_or_default();
        let leaf = chain.first().ok_or(PeerError::NoCertificate)?;
        let LeafFacts {
            identity,
            mut not_after,
            ..
        } = LeafFacts::read(leaf)?;
        for intermediate in &chain[1..] {
            not_after = not_after.min(end_of(intermediate)?);
        }
        Ok(Self {
            chain: chain.into(),
            usage,
            accepted_at: UnixTime::now(),
            identity,
            not_after,
        })
    }

    /// Whom it names.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The end of the first of its certificates that ends.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Whether `bundles` lead to the chain still.
    ///
    /// That the certificate has ended since is no reason to refuse: connections outlive certificates.
    /// Nor is it that a root is gone after that: an orderly rotation drops one when the last
    /// certificate below it has ended. One that goes before is distrusted, and so is a trust domain
    /// that has no roots any more.
    ///
    /// # Errors
    ///
    /// Why the peer would be refused by these bundles.
    pub fn verify(&self, bundles: &Arc<SharedBundles>, now: SystemTime) -> Result<(), PeerError> {
        let (leaf, intermediates) = self.chain.split_first().ok_or(PeerError::NoCertificate)?;
        let verdict =
            chain_verifier(bundles).verify(leaf, intermediates, self.accepted_at, self.usage);
        match verdict {
            Err(PeerError::UnknownIssuer { .. }) if self.not_after < now => Ok(()),
            other => other.map(drop),
        }
    }
}

impl fmt::Debug for PeerChain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerChain")
            .field("certificates", &self.chain.len())
            .finish_non_exhaustive()
    }
}

fn chain_verifier(bundles: &Arc<SharedBundles>) -> ChainVerifier {
    ChainVerifier {
        bundles: Arc::clone(bundles),
        algorithms: algorithms(),
    }
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    crypto_provider().signature_verification_algorithms
}

/// The accepting side's judge.
#[derive(Debug)]
struct MeshClientVerifier(ChainVerifier);

impl ClientCertVerifier for MeshClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // No hints: a client has one certificate, and hints would tell strangers our roots' names.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.0
            .verify(end_entity, intermediates, now, KeyUsage::client_auth())?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.algorithms.supported_schemes()
    }
}

/// The connecting side's judge.
#[derive(Debug)]
struct MeshServerVerifier {
    chain: ChainVerifier,
    accepted: AcceptedIdentities,
}

impl ServerCertVerifier for MeshServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let actual = self
            .chain
            .verify(end_entity, intermediates, now, KeyUsage::server_auth())?;
        if !self.accepted.contains(&actual) {
            return Err(PeerError::UnexpectedIdentity {
                actual,
                expected: self.accepted.clone(),
            }
            .into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.chain.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.algorithms.supported_schemes()
    }
}

fn no_tls12() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not spoken here".into())
}
