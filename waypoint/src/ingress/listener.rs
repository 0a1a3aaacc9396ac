//! One listener, parsed from the wire.

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use seine_proto::waypoint as wire;
use seine_proto::waypoint::listener::Protocol as WireProtocol;
use seine_workload::ServiceKey;

use super::clients::Clients;
use super::hosts::Hosts;

/// What is spoken in TLS, by its names in ALPN.
const HTTP: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Where a Gateway takes connections from outside the mesh.
#[derive(Clone, Debug)]
pub struct Listener {
    /// `namespace/gateway/listener`.
    pub name: String,
    /// The Gateway's own service.
    pub service: ServiceKey,
    /// The port.
    pub port: u16,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Whose requests it takes.
    pub hosts: Hosts,
    /// What is asked of clients in TLS that ends here.
    pub clients: Option<Clients>,
    /// How many proxies before this one are believed what they say of the client.
    pub trusted_proxies: usize,
}

/// What is spoken at a listener.
#[derive(Clone, Debug)]
pub enum Protocol {
    /// HTTP.
    Http,
    /// HTTP in TLS, which ends here.
    Https(Arc<ServerConfig>),
    /// TLS, which ends here; what is in it is passed on.
    Tls(Arc<ServerConfig>),
    /// TLS, which is passed on.
    Passthrough,
    /// Whatever it is, it is passed on.
    Tcp,
}

impl Protocol {
    /// A client first says in TLS which host it asks for.
    pub fn begins_with_tls(&self) -> bool {
        !matches!(self, Self::Http | Self::Tcp)
    }

    /// TLS ends here, in this way.
    pub fn tls(&self) -> Option<&Arc<ServerConfig>> {
        match self {
            Self::Https(config) | Self::Tls(config) => Some(config),
            Self::Http | Self::Passthrough | Self::Tcp => None,
        }
    }
}

impl Listener {
    /// Reads one; `name` is that of its resource.
    pub fn parse(name: &str, message: &wire::Listener) -> Result<Self, String> {
        let provider = provider();
        let clients = message.clients.as_ref();
        let clients = clients.map(|clients| Clients::parse(clients, &provider));
        let clients = clients
            .transpose()
            .map_err(|why| format!("clients: {why}"))?;
        let tls = |alpn: &[&[u8]]| tls(&message.certificates, clients.as_ref(), alpn, &provider);
        let port = u16::try_from(message.port).ok().filter(|port| *port > 0);
        let protocol = match message.protocol() {
            WireProtocol::Http => Protocol::Http,
            WireProtocol::Https => Protocol::Https(tls(&HTTP)?),
            WireProtocol::Tls => Protocol::Tls(tls(&[])?),
            WireProtocol::TlsPassthrough => Protocol::Passthrough,
            WireProtocol::Tcp => Protocol::Tcp,
            WireProtocol::Unknown => return Err("protocol: it is not known here".into()),
        };
        Ok(Self {
            name: name.into(),
            service: ServiceKey {
                namespace: message.namespace.as_str().into(),
                hostname: message.service.to_ascii_lowercase().into(),
            },
            port: port.ok_or_else(|| format!("port: {} is none", message.port))?,
            protocol,
            hosts: Hosts::parse(&message.hostname).map_err(|error| format!("hostname: {error}"))?,
            clients,
            trusted_proxies: message.trusted_proxies as usize,
        })
    }
}

/// Of clients outside the mesh.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        kx_groups: vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
        ],
        ..aws_lc_rs::default_provider()
    })
}

/// TLS 1.2 too. Tickets are of this configuration alone, so that no session of one listener, or of an earlier certificate, is
/// resumed at another. Where clients show certificates nothing is resumed: each connection's are judged as they are then.
fn tls(
    certificates: &[wire::Certificate],
    clients: Option<&Clients>,
    alpn: &[&[u8]],
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<ServerConfig>, String> {
    let certificates = certificates.iter();
    let certificates = certificates
        .enumerate()
        .map(|(index, one)| {
            certified(one, provider).map_err(|why| format!("certificates[{index}]: {why}"))
        })
        .collect::<Result<Vec<_>, _>>()?;
    if certificates.is_empty() {
        return Err("certificates: none".into());
    }
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match clients {
        Some(clients) => builder.with_client_cert_verifier(clients.verifier()),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(Certificates(certificates)));
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    if clients.is_some() {
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    } else {
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(|error| error.to_string())?;
    }
    Ok(Arc::new(config))
}

fn certified(
    message: &wire::Certificate,
    provider: &CryptoProvider,
) -> Result<Arc<CertifiedKey>, String> {
    let chain = message.chain.iter().cloned();
    let chain = chain.map(CertificateDer::from).collect();
    let key = PrivateKeyDer::try_from(message.key.clone())?;
    let certified =
        CertifiedKey::from_der(chain, key, provider).map_err(|error| error.to_string())?;
    Ok(Arc::new(certified))
}

/// The first that the client can verify the signatures of.
#[derive(Debug)]
struct Certificates(Vec<Arc<CertifiedKey>>);

impl ResolvesServerCert for Certificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes = hello.signature_schemes();
        let mut known = self.0.iter();
        let known = known.find(|one| one.key.choose_scheme(schemes).is_some());
        known.or(self.0.first()).cloned()
    }
}
