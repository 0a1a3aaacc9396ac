//! Key sets that issuers publish, fetched when a token needs them and kept through rotation and outage.
//!
//! The waypoint fetches them itself, and not the control plane for all: the address is what somebody wrote who may configure
//! this namespace, and a waypoint is in that namespace and can reach what its pods can. So nobody gains a look from a place
//! where he has none. Who is asked proves to be the issuer: in the mesh by its identity, elsewhere by TLS.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, HOST};
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use seine_hbone::Io;
use seine_telemetry::{Lines, limited};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use crate::bind::First;
use crate::endpoint::{self, Wanted};
use crate::shared::Shared;
use crate::token::Keys;
use crate::upstream;

/// Keys older than this are fetched anew when they are needed; the request does not wait …
const REFRESH: Duration = Duration::from_secs(300);
/// … but if they are older than this, it waits for the attempt.
const STALE: Duration = Duration::from_secs(600);
/// Keys are used for so long after the last success: what an issuer withdrew while it can't be asked is trusted no longer.
const KEPT: Duration = Duration::from_secs(4 * 3600);
/// Between two attempts, whoever asks for what key.
const PAUSE: Duration = Duration::from_secs(10);
/// For one attempt as a whole.
const LIMIT: Duration = Duration::from_secs(5);
/// Bytes of an answer.
const MAX_BODY: usize = 256 << 10;

static LINES: Lines = Lines::new();

/// All that are in use, by their address.
#[derive(Debug, Default)]
pub(crate) struct KeySets(Mutex<HashMap<String, Weak<KeySet>>>);

/// The keys at one address.
#[derive(Debug)]
pub(crate) struct KeySet {
    uri: Uri,
    state: Mutex<State>,
    /// Held by the one attempt that is under way.
    attempt: tokio::sync::Mutex<()>,
}

#[derive(Clone, Debug, Default)]
struct State {
    keys: Option<(Arc<Keys>, Instant)>,
    attempted: Option<Instant>,
}

impl KeySets {
    /// The one at an address: those that name the same share it, and its keys outlive a change of their rules.
    pub(crate) fn at(&self, address: &str) -> Result<Arc<KeySet>, String> {
        let mut sets = self.0.lock();
        sets.retain(|_, set| set.strong_count() > 0);
        if let Some(set) = sets.get(address).and_then(Weak::upgrade) {
            return Ok(set);
        }
        let uri: Uri = address
            .parse()
            .map_err(|_| format!("{address:?} is no URL"))?;
        let known = matches!(uri.scheme_str(), Some("http" | "https"));
        let user = uri
            .authority()
            .is_none_or(|authority| authority.as_str().contains('@'));
        if !known || user {
            return Err(format!("{address:?} is no address of a key set"));
        }
        let set = Arc::new(KeySet {
            uri,
            state: Mutex::default(),
            attempt: tokio::sync::Mutex::default(),
        });
        sets.insert(address.to_owned(), Arc::downgrade(&set));
        Ok(set)
    }
}

impl KeySet {
    /// The keys, with the one of this name if the issuer has it. `None`: there are none that may be used.
    pub(crate) async fn keys(
        self: &Arc<Self>,
        source: &impl Source,
        id: Option<&str>,
    ) -> Option<Arc<Keys>> {
        let (usable, age) = self.usable(id);
        match usable {
            Some(keys) if age < REFRESH => return Some(keys),
            Some(keys) if age < STALE => {
                let (set, source) = (self.clone(), source.clone());
                let id = id.map(str::to_owned);
                tokio::spawn(async move { set.renew(&source, id.as_deref()).await });
                return Some(keys);
            }
            _ => self.renew(source, id).await,
        }
        let state = self.state.lock();
        let (keys, at) = state.keys.as_ref()?;
        (at.elapsed() < KEPT).then(|| keys.clone())
    }

    /// Keys that will do, and how old they are.
    fn usable(&self, id: Option<&str>) -> (Option<Arc<Keys>>, Duration) {
        let state = self.state.lock();
        let Some((keys, at)) = &state.keys else {
            return (None, Duration::ZERO);
        };
        let age = at.elapsed();
        let usable = age < KEPT && keys.may_have(id);
        (usable.then(|| keys.clone()), age)
    }

    /// Fetches them, if that is due and nobody else just did.
    async fn renew(&self, source: &impl Source, id: Option<&str>) {
        let _turn = self.attempt.lock().await;
        let (usable, age) = self.usable(id);
        let attempted = self.state.lock().attempted;
        let paused = attempted.is_some_and(|at| at.elapsed() < PAUSE);
        if paused || (usable.is_some() && age < REFRESH) {
            return;
        }
        self.state.lock().attempted = Some(Instant::now());
        let fetched = timeout(LIMIT, source.fetch(&self.uri)).await;
        let fetched = fetched.unwrap_or_else(|_| Err(format!("no answer within {LIMIT:?}")));
        match fetched.and_then(|body| Keys::parse(&body)) {
            Ok(keys) => {
                let keys = Some((Arc::new(keys), Instant::now()));
                self.state.lock().keys = keys;
            }
            Err(problem) => limited!(
                LINES, "keys",
                warn: uri = %self.uri, problem, "an issuer's keys can't be fetched; tried again"
            ),
        }
    }
}

/// Where key sets come from.
pub(crate) trait Source: Clone + Send + Sync + 'static {
    /// The text at an address.
    fn fetch(&self, uri: &Uri) -> impl Future<Output = Result<Bytes, String>> + Send;
}

impl Source for Arc<Shared> {
    async fn fetch(&self, uri: &Uri) -> Result<Bytes, String> {
        fetch(self, uri).await
    }
}

async fn fetch(shared: &Shared, uri: &Uri) -> Result<Bytes, String> {
    let authority = uri.authority().ok_or("it names no host")?;
    let host = authority.host().trim_matches(['[', ']']);
    let secure = uri.scheme_str() == Some("https");
    let port = authority.port_u16().unwrap_or(match secure {
        true => 443,
        false => 80,
    });
    let connected = in_mesh(shared, host, port).await?;
    if !secure {
        // Whoever is on the way could put his own keys there.
        let io = connected.ok_or(
            "http is for Services of the mesh alone, whose pods are in it: use https, or the Service's full name",
        )?;
        return get(io, uri).await;
    }
    let roots = shared.config.jwks_roots.as_deref();
    let roots = roots.ok_or("https needs roots: --jwks-roots FILE")?;
    let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
    let tls = TlsConnector::from(Arc::new(tls(roots)?));
    let io = match connected {
        Some(io) => io,
        None => Io::from(dial(host, port).await?),
    };
    let io = tls.connect(name, io).await;
    get(io.map_err(|error| error.to_string())?, uri).await
}

/// A connection to a Service of the mesh by its full name, as this waypoint; `None`: it is none, or its pods are outside.
async fn in_mesh(shared: &Shared, host: &str, port: u16) -> Result<Option<Io>, String> {
    let own = shared.config.pod_namespace.as_str();
    let Some(service) = shared.store.service_named(host, Some(own)) else {
        return Ok(None);
    };
    let first = First {
        identity: None,
        address: SocketAddr::new(shared.config.pod_ip, 0),
    };
    let wanted = Wanted::new(shared, (&service, port), &first, &HeaderMap::new());
    let error = |failure: crate::failure::Failure| failure.to_string();
    let endpoint = endpoint::choose(shared, &wanted, &[]).map_err(error)?;
    if endpoint.tunnel.is_none() {
        return Ok(None);
    }
    let generation = upstream::generation(shared).await.map_err(error)?;
    let upstreams = &shared.upstreams;
    let opened = upstreams
        .open(shared, &endpoint, &first, (generation, None))
        .await;
    opened.map(Some).map_err(error)
}

async fn dial(host: &str, port: u16) -> Result<TcpStream, String> {
    let connected = TcpStream::connect((host, port)).await;
    connected.map_err(|error| format!("connecting to {host} port {port}: {error}"))
}

fn tls(roots: &Path) -> Result<ClientConfig, String> {
    let problem = |why: String| format!("roots {}: {why}", roots.display());
    let mut store = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(roots);
    for certificate in certificates.map_err(|error| problem(error.to_string()))? {
        let certificate = certificate.map_err(|error| problem(error.to_string()))?;
        let added = store.add(certificate);
        added.map_err(|error| problem(error.to_string()))?;
    }
    if store.is_empty() {
        return Err(problem("there are none".into()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(config.with_root_certificates(store).with_no_client_auth())
}

async fn get(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    uri: &Uri,
) -> Result<Bytes, String> {
    let problem = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io))
        .await
        .map_err(problem)?;
    let connection = tokio::spawn(connection);
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let host = uri.authority().map_or("", |authority| authority.as_str());
    let request = Request::get(path)
        .header(HOST, host)
        .header(ACCEPT, "application/json")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(problem)?;
    let status = response.status();
    if status != StatusCode::OK {
        // Elsewhere is not where the issuer said that its keys are.
        return Err(format!("the answer is {status}"));
    }
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
    connection.abort();
    let body = body.map_err(|error| format!("the answer broke off or is too long: {error}"))?;
    Ok(body.to_bytes())
}

#[cfg(test)]
#[path = "key_set_tests.rs"]
mod tests;
