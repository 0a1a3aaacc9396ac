//! The gRPC side of delta xDS: who may ask, and one task for each stream.
//!
//! A stream's task alone moves its client's state; the registry of clients is read by the admin
//! pages. A caller is authenticated before anything is sent, and again when it comes back after
//! [`ServerOptions::max_stream_age`].

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use seine_proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
    aggregated_discovery_service_server::{
        AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
    },
};
use seine_telemetry::{Lines, limited};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::client::Client;
use crate::{
    authn::{self, Authenticator, Caller},
    model::Model,
};

/// Both directions: the initial versions of 100,000 resources are about 8 MB.
pub const MAX_MESSAGE: usize = 200 << 20;

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
    pub fn into_server(self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
    }

    async fn authenticate(
        &self,
        request: &Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Caller, Status> {
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
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for XdsServer {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let caller = self.authenticate(&request).await?;
        let connected = self.clients.add(caller, request.remote_addr());
        // One response on its way to the transport; everything later is made when it is needed.
        let (responses, stream) = mpsc::channel(1);
        let stream_task = StreamTask {
            connected,
            responses,
            models: self.models.clone(),
            stop: self.stop.clone(),
            max_age: self.options.max_stream_age,
        };
        tokio::spawn(stream_task.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

struct StreamTask {
    connected: Connected,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    models: watch::Receiver<Arc<Model>>,
    stop: watch::Receiver<bool>,
    max_age: Duration,
}

impl StreamTask {
    async fn run(mut self, mut requests: Streaming<DeltaDiscoveryRequest>) {
        let entry = self.connected.entry.clone();
        tracing::info!(client = %entry, "xDS client connected");
        let (mut stop, max_age) = (self.stop.clone(), self.max_age);
        let end = tokio::select! {
            end = self.serve(&mut requests) => end,
            _ = stop.wait_for(|stop| *stop) => Err(Status::unavailable("shutting down")),
            () = tokio::time::sleep(max_age) => Ok("maximum age"),
        };
        match end {
            Ok(reason) => tracing::info!(client = %entry, reason, "xDS stream ends"),
            Err(status) => {
                tracing::info!(client = %entry, reason = status.message(), "xDS stream ends");
                // Full or closed: then the client is past caring.
                let _ = self.responses.try_send(Err(status));
            }
        }
    }

    async fn serve(
        &mut self,
        requests: &mut Streaming<DeltaDiscoveryRequest>,
    ) -> Result<&'static str, Status> {
        let entry = self.connected.entry.clone();
        let mut model = self.models.borrow_and_update().clone();
        loop {
            loop {
                // A place first: what is sent is then the latest, however long the wait was.
                let waits = self.responses.clone();
                let Ok(place) = waits.reserve().await else {
                    return Ok("the client is gone");
                };
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
                place.send(Ok(response));
            }
            tokio::select! {
                request = requests.message() => match request? {
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
