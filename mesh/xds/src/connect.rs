//! Opening a stream: the boundary between the driver and gRPC.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use seine_proto::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use seine_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

/// The largest message either way: initial versions of 100,000 names are about 8 MB.
const MAX_MESSAGE: usize = 200 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// More than any token, less than any file given by mistake.
const MAX_FILE: u64 = 1 << 20;

/// What the server sends, until the stream ends.
pub type Responses = BoxStream<'static, Result<DeltaDiscoveryResponse, ConnectError>>;

/// Opens streams.
pub trait Connect: Send + Sync + 'static {
    /// Opens one that sends these requests.
    fn connect(
        &self,
        requests: mpsc::Receiver<DeltaDiscoveryRequest>,
    ) -> BoxFuture<'_, Result<Responses, ConnectError>>;
}

/// Why there is no stream. It is tried again in every case.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A file of this node can't be used.
    #[error("{what} {path}: {problem}")]
    File {
        /// What the file is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The address or the roots make no sense.
    #[error("control plane address {address}: {problem}")]
    Configuration {
        /// The address.
        address: String,
        /// What is wrong.
        problem: String,
    },
    /// No connection, or no TLS with the name and roots expected.
    #[error("connecting to the control plane at {address}: {problem}")]
    Transport {
        /// The address.
        address: String,
        /// The chain of errors.
        problem: String,
    },
    /// The control plane refused or ended the stream.
    #[error("the control plane ended the stream: {code}: {message}")]
    Refused {
        /// gRPC's code.
        code: String,
        /// What it said.
        message: String,
    },
}

/// How to reach the control plane.
#[derive(Clone)]
pub struct GrpcOptions {
    /// `https://HOST:PORT`.
    pub address: String,
    /// PEM file of the roots that its certificate is checked against; read for each connection.
    pub roots_file: PathBuf,
    /// The DNS name in its certificate.
    pub server_name: String,
    /// File of the service account token; read for each connection, since it is replaced.
    pub token_file: PathBuf,
    /// Sent as `clusterid`.
    pub cluster_id: String,
}

impl fmt::Debug for GrpcOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} ({}), cluster {}",
            self.address, self.server_name, self.cluster_id
        )
    }
}

/// Streams over gRPC and TLS.
#[derive(Clone, Debug)]
pub struct Grpc {
    options: GrpcOptions,
}

impl Grpc {
    /// Does no I/O.
    pub fn new(options: GrpcOptions) -> Self {
        Self { options }
    }

    async fn open(
        &self,
        requests: mpsc::Receiver<DeltaDiscoveryRequest>,
    ) -> Result<Responses, ConnectError> {
        let token = self.token().await?;
        let channel = self.channel().await?;
        let mut request = Request::new(ReceiverStream::new(requests));
        request.metadata_mut().insert("authorization", token);
        let cluster = self
            .options
            .cluster_id
            .parse()
            .map_err(|_| ConnectError::Configuration {
                address: self.options.address.clone(),
                problem: format!("`{}` can't be a cluster id", self.options.cluster_id),
            })?;
        request.metadata_mut().insert("clusterid", cluster);
        let response = AggregatedDiscoveryServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE)
            .delta_aggregated_resources(request)
            .await
            .map_err(|status| refused(&status))?;
        let responses = response.into_inner();
        Ok(responses
            .map(|message| message.map_err(|status| refused(&status)))
            .boxed())
    }

    async fn channel(&self) -> Result<Channel, ConnectError> {
        let GrpcOptions {
            address,
            roots_file,
            server_name,
            ..
        } = &self.options;
        let roots = read("roots file", roots_file).await?;
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(roots))
            .domain_name(server_name)
            .timeout(CONNECT_TIMEOUT);
        let configuration = |problem: String| ConnectError::Configuration {
            address: address.clone(),
            problem,
        };
        if !address.starts_with("https://") {
            return Err(configuration(
                "is not https, and nothing else is spoken".to_owned(),
            ));
        }
        let endpoint = Endpoint::from_shared(address.clone())
            .and_then(|endpoint| endpoint.tls_config(tls))
            .map_err(|error| configuration(chain_of(&error)))?;
        let connecting = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .connect()
            .await;
        connecting.map_err(|error| ConnectError::Transport {
            address: address.clone(),
            problem: chain_of(&error),
        })
    }

    async fn token(&self) -> Result<MetadataValue<Ascii>, ConnectError> {
        let path = &self.options.token_file;
        let bad = |problem: &str| ConnectError::File {
            what: "token file",
            path: path.clone(),
            problem: problem.to_owned(),
        };
        let bytes = read("token file", path).await?;
        let text = String::from_utf8(bytes).map_err(|_| bad("is not text"))?;
        if text.trim().is_empty() {
            return Err(bad("is empty"));
        }
        let value = format!("Bearer {}", text.trim());
        let mut value: MetadataValue<Ascii> = value
            .parse()
            .map_err(|_| bad("has characters that no token has"))?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl Connect for Grpc {
    fn connect(
        &self,
        requests: mpsc::Receiver<DeltaDiscoveryRequest>,
    ) -> BoxFuture<'_, Result<Responses, ConnectError>> {
        self.open(requests).boxed()
    }
}

async fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, ConnectError> {
    let bad = |problem: String| ConnectError::File {
        what,
        path: path.to_owned(),
        problem,
    };
    let metadata = tokio::fs::metadata(path)
        .await
        .map_err(|error| bad(error.to_string()))?;
    if metadata.len() > MAX_FILE {
        return Err(bad(format!(
            "has {} bytes, which is too many",
            metadata.len()
        )));
    }
    tokio::fs::read(path)
        .await
        .map_err(|error| bad(error.to_string()))
}

fn refused(status: &tonic::Status) -> ConnectError {
    ConnectError::Refused {
        code: format!("{:?}", status.code()),
        message: status.message().to_owned(),
    }
}

fn chain_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}
