//! An HBONE client that is no proxy of ours: it presents whatever certificate it was given.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use seine_hbone::{
    Authority, ConnectRequest, Connected, Connector, Io, OpenError, Pool, Settings, TunnelKey,
};
use seine_identity::{
    Identity, SharedBundles, Svid, TlsOptions, TrustBundles, X509Bundle, client_config,
    crypto_provider,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::report::Tunneled;

/// Longest that a tunnel, or an answer through one, is waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// File of a certificate's folder: the chain, leaf first, in PEM.
pub const CHAIN: &str = "chain.pem";
/// File of a certificate's folder: its PKCS#8 key in PEM.
pub const KEY: &str = "key.pem";
/// File of a certificate's folder: the roots that it trusts, in PEM.
pub const ROOTS: &str = "roots.pem";

/// What a client presents to the server.
#[derive(Clone, Debug)]
pub enum Presents {
    /// Its own good SVID.
    Own,
    /// The certificate of another folder.
    Other(PathBuf),
    /// No certificate.
    Nothing,
}

/// A client of HBONE.
pub struct Client {
    source: Identity,
    expects: Identity,
    tls: Arc<ClientConfig>,
}

impl Client {
    /// Reads the SVID's folder and what it presents.
    pub fn new(svid: &Path, presents: &Presents, expects: Identity) -> Result<Self> {
        let own = load(svid)?;
        let bundles = TrustBundles::new().with(own.bundle().clone())?;
        let good = client_config(
            &own,
            &Arc::new(SharedBundles::new(bundles)),
            expects.clone().into(),
            &TlsOptions::default(),
        )?;
        let mut tls = ClientConfig::clone(&good);
        let presented = match presents {
            Presents::Own => None,
            Presents::Nothing => Some(CertifiedKey::new(
                Vec::new(),
                Arc::clone(&own.certified_key().key),
            )),
            Presents::Other(folder) => Some(certified(folder)?),
        };
        if let Some(presented) = presented {
            tls.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(presented));
        }
        Ok(Self {
            source: own.identity().clone(),
            expects,
            tls: Arc::new(tls),
        })
    }

    /// One CONNECT in a tunnel of its own.
    pub async fn ask(&self, peer: SocketAddr, authority: &str, send: &str) -> Result<Tunneled> {
        let authority = match authority.parse::<SocketAddr>() {
            Ok(address) => Authority::from(address),
            Err(_) => {
                let (host, port) = authority.rsplit_once(':').context("HOST:PORT")?;
                Authority::host(host, port.parse()?)?
            }
        };
        let unspecified: IpAddr = match peer {
            SocketAddr::V4(_) => [0; 4].into(),
            SocketAddr::V6(_) => [0; 16].into(),
        };
        let key = Arc::new(TunnelKey {
            source: self.source.clone(),
            destinations: self.expects.clone().into(),
            peer,
            source_address: unspecified,
            generation: 0,
        });
        let dialer = Arc::new(Dialer {
            tls: Arc::clone(&self.tls),
            local: Mutex::default(),
        });
        let connector: Arc<dyn Connector> = dialer.clone();
        let mut report = Tunneled::default();
        let pool = Pool::new(Settings::default());
        let exchange = async {
            let opened = pool
                .open(&key, &connector, &ConnectRequest::new(authority))
                .await;
            let mut stream = match opened {
                Ok(opened) => {
                    report.status = Some(200);
                    opened.stream
                }
                Err(error) => {
                    if let OpenError::Status { status, .. } = &error {
                        report.status = Some(status.as_u16());
                    }
                    return Err(error.to_string());
                }
            };
            let talk = async {
                stream.write_all(send.as_bytes()).await?;
                stream.shutdown().await?;
                stream.read_to_string(&mut report.received).await
            };
            talk.await.map_err(|error| error.to_string()).map(drop)
        };
        let outcome = tokio::time::timeout(PATIENCE, exchange)
            .await
            .unwrap_or_else(|_| Err(format!("nothing in {PATIENCE:?}")));
        report.failure = outcome.err();
        report.local = *dialer.local.lock();
        Ok(report)
    }
}

/// Makes the one TCP connection and remembers its own end.
struct Dialer {
    tls: Arc<ClientConfig>,
    local: Mutex<Option<SocketAddr>>,
}

impl Connector for Dialer {
    fn connect<'a>(&'a self, key: &'a TunnelKey) -> BoxFuture<'a, io::Result<Connected>> {
        Box::pin(async move {
            let tcp = TcpStream::connect(key.peer).await?;
            *self.local.lock() = tcp.local_addr().ok();
            Ok(Connected {
                io: Io::from(tcp),
                tls: Arc::clone(&self.tls),
                turn: None,
            })
        })
    }
}

fn load(folder: &Path) -> Result<Svid> {
    let chain = certificates(&folder.join(CHAIN))?;
    let key = key(folder)?.secret_pkcs8_der().to_vec().into();
    let roots = certificates(&folder.join(ROOTS))?;
    let roots: Vec<&[u8]> = roots.iter().map(AsRef::as_ref).collect();
    let domain = seine_identity::TrustDomain::new("cluster.local")?;
    let bundle = X509Bundle::from_x509_authorities(domain, &roots)?;
    Ok(Svid::new(chain, key, bundle)?)
}

fn certified(folder: &Path) -> Result<CertifiedKey> {
    let key = crypto_provider()
        .key_provider
        .load_private_key(PrivateKeyDer::Pkcs8(key(folder)?))?;
    Ok(CertifiedKey::new(certificates(&folder.join(CHAIN))?, key))
}

fn key(folder: &Path) -> Result<PrivatePkcs8KeyDer<'static>> {
    let path = folder.join(KEY);
    PrivatePkcs8KeyDer::from_pem_file(&path).with_context(|| path.display().to_string())
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .with_context(|| path.display().to_string())
}
