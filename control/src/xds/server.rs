//! The gRPC side of delta xDS: who may ask, and one task for each stream.
//!
//! A stream's task alone moves its client's state; the registry of clients is read by the admin
//! pages. A caller is authenticated before anything is sent, and again when it comes back after
//! [`ServerOptions::max_stream_age`].

use std::{
    collections::BTreeMap,
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use http::{HeaderValue, header::CONTENT_TYPE};

use parking_lot::Mutex;
use seine_proto::discovery::{
    DeltaDiscoveryRequest, aggregated_discovery_service_server::SERVICE_NAME,
};
use seine_telemetry::{Lines, limited};
use tokio::sync::watch;
use tonic::{Request, Status, body::Body, metadata::MetadataMap, server::NamedService};

use super::client::Client;
use super::messages::{self, Requests, Responses, Writer};
use crate::{
    authn::{self, Authenticator, Caller},
    model::Model,
};

/// The one method that is served.
const METHOD: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

const GONE: &str = "the client is gone";

/// Any pod can ask.
static REFUSED: Lines = Lines::new();

/// Settings of the xDS server.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Service accounts (`namespace/name`) that may read the configuration, beside those of Gateways.
    pub trusted_accounts: Vec<String>,
    /// A stream is closed after this time, so that its client shows a fresh token. It resumes with
    /// the versions that it holds.
    pub max_stream_age: Duration,
}

/// The service.
pub struct XdsServer {
    models: watch::Receiver<Arc<Model>>,
    authenticator: Arc<dyn Authenticator>,
    clients: Clients,
    options: ServerOptions,
    stop: watch::Receiver<bool>,
}

impl XdsServer {
    /// Serves the snapshots of `models` until `stop` becomes true.
    pub fn new(
        models: watch::Receiver<Arc<Model>>,
        authenticator: Arc<dyn Authenticator>,
        clients: Clients,
        options: ServerOptions,
        stop: watch::Receiver<bool>,
    ) -> Self {
        Self {
            models,
            authenticator,
            clients,
            options,
            stop,
        }
    }

    /// For a tonic router.
    pub fn into_service(self) -> XdsService {
        XdsService(Arc::new(self))
    }

    async fn authenticate(&self, request: &Request<()>) -> Result<Caller, Status> {
        let refused = |reason: &dyn std::fmt::Display| {
            limited!(REFUSED, "client", warn: from = ?request.remote_addr(), %reason, "xDS client refused");
        };
        let caller = authn::caller(&*self.authenticator, request.metadata())
            .await
            .inspect_err(|error| refused(error))
            .map_err(|error| error.status())?;
        let account = caller.account();
        if !self.options.trusted_accounts.contains(&account)
            && !self.models.borrow().is_gateway(&account)
        {
            let reason = format!(
                "service account {} may not read the mesh's configuration",
                caller.account()
            );
            refused(&reason);
            return Err(Status::permission_denied(reason));
        }
        Ok(caller)
    }

    async fn stream(&self, request: http::Request<Body>) -> Result<Responses, Status> {
        let (head, body) = request.into_parts();
        if head.uri.path() != METHOD {
            return Err(Status::unimplemented("delta xDS alone is served"));
        }
        let metadata = MetadataMap::from_headers(head.headers);
        let request = Request::from_parts(metadata, head.extensions, ());
        let caller = self.authenticate(&request).await?;
        let connected = self.clients.add(caller, request.remote_addr());
        let (writer, responses) = messages::responses();
        let stream_task = StreamTask {
            connected,
            writer,
            models: self.models.clone(),
            stop: self.stop.clone(),
            max_age: self.options.max_stream_age,
        };
        tokio::spawn(stream_task.run(Requests::new(body)));
        Ok(responses)
    }
}

/// The service of a tonic router.
#[derive(Clone)]
pub struct XdsService(Arc<XdsServer>);

impl NamedService for XdsService {
    const NAME: &str = SERVICE_NAME;
}

impl tower::Service<http::Request<Body>> for XdsService {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let server = self.0.clone();
        Box::pin(async move {
            Ok(match server.stream(request).await {
                Ok(responses) => {
                    let mut response = http::Response::new(Body::new(responses));
                    let headers = response.headers_mut();
                    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
                    response
                }
                Err(status) => status.into_http(),
            })
        })
    }
}

struct StreamTask {
    connected: Connected,
    writer: Writer,
    models: watch::Receiver<Arc<Model>>,
    stop: watch::Receiver<bool>,
    max_age: Duration,
}

impl StreamTask {
    async fn run(mut self, mut requests: Requests<Body>) {
        let entry = self.connected.entry.clone();
        tracing::info!(client = %entry, "xDS client connected");
        let (mut stop, max_age) = (self.stop.clone(), self.max_age);
        let end = tokio::select! {
            end = self.serve(&mut requests) => end,
            _ = stop.wait_for(|stop| *stop) => Err(Status::unavailable("shutting down")),
            () = tokio::time::sleep(max_age) => Ok("maximum age"),
        };
        // An orderly end would have the client take a part for the whole.
        let end = match self.writer.is_within_message() {
            true => end.and_then(|reason| Err(Status::unavailable(reason))),
            false => end,
        };
        match end {
            Ok(reason) => tracing::info!(client = %entry, reason, "xDS stream ends"),
            Err(status) => {
                tracing::info!(client = %entry, reason = status.message(), "xDS stream ends");
                self.writer.end(status);
            }
        }
    }

    async fn serve(&mut self, requests: &mut Requests<Body>) -> Result<&'static str, Status> {
        let entry = self.connected.entry.clone();
        let mut model = self.models.borrow_and_update().clone();
        loop {
            loop {
                // What is sent is then the latest, however long the wait was.
                if self.writer.ready().await.is_err() {
                    return Ok(GONE);
                }
                if self.models.has_changed().unwrap_or(false) {
                    model = self.models.borrow_and_update().clone();
                }
                let response = entry.client.lock().response(&model.snapshot);
                let Some(response) = response else { break };
                tracing::debug!(
                    client = %entry,
                    kind = response.type_url,
                    nonce = response.nonce,
                    resources = response.resources.len(),
                    removed = response.removed_resources.len(),
                    "push"
                );
                self.connected
                    .clients
                    .pushes
                    .fetch_add(1, Ordering::Relaxed);
                if self.writer.send(response).await.is_err() {
                    return Ok(GONE);
                }
            }
            tokio::select! {
                request = requests.next() => match request? {
                    Some(request) => self.request(&entry, request)?,
                    None => return Ok("the client closed it"),
                },
                changed = self.models.changed() => {
                    changed.map_err(|_| Status::unavailable("shutting down"))?;
                    model = self.models.borrow_and_update().clone();
                }
            }
        }
    }

    fn request(&self, entry: &Entry, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        if let Some(error) = &request.error_detail {
            self.connected
                .clients
                .rejections
                .fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                client = %entry,
                kind = request.type_url,
                nonce = request.response_nonce,
                reason = error.message,
                "xDS client rejected a push"
            );
        }
        let mut client = entry.client.lock();
        client
            .request(request)
            .map_err(|error| Status::resource_exhausted(error.to_string()))
    }
}

/// The clients that are connected now. Cloning shares them.
#[derive(Clone, Debug, Default)]
pub struct Clients(Arc<ClientsInner>);

#[derive(Debug, Default)]
struct ClientsInner {
    entries: Mutex<BTreeMap<u64, Arc<Entry>>>,
    next: AtomicU64,
    pushes: AtomicU64,
    rejections: AtomicU64,
}

impl Clients {
    /// Everyone, in the order in which they came.
    pub fn list(&self) -> Vec<Arc<Entry>> {
        self.0.entries.lock().values().cloned().collect()
    }

    /// Responses sent and responses rejected since the start.
    pub fn counts(&self) -> (u64, u64) {
        (
            self.0.pushes.load(Ordering::Relaxed),
            self.0.rejections.load(Ordering::Relaxed),
        )
    }

    fn add(&self, caller: Caller, address: Option<SocketAddr>) -> Connected {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let account = caller.account();
        let entry = Arc::new(Entry {
            id,
            caller,
            address,
            since: SystemTime::now(),
            client: Mutex::new(Client::new(account)),
        });
        self.0.entries.lock().insert(id, entry.clone());
        Connected {
            clients: self.0.clone(),
            entry,
        }
    }
}

/// One connected client.
#[derive(Debug)]
pub struct Entry {
    /// Counts the streams since the start.
    pub id: u64,
    /// Whom its token was given to.
    pub caller: Caller,
    /// Where it comes from.
    pub address: Option<SocketAddr>,
    /// When it came.
    pub since: SystemTime,
    /// What it holds. Locked for moments only.
    pub client: Mutex<Client>,
}

impl std::fmt::Display for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.caller)?;
        match self.address {
            Some(address) => write!(f, " from {address}"),
            None => Ok(()),
        }
    }
}

/// Takes the client out of the registry when its stream ends.
struct Connected {
    clients: Arc<ClientsInner>,
    entry: Arc<Entry>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.clients.entries.lock().remove(&self.entry.id);
    }
}
