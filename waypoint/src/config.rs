//! The settings of a waypoint, each a flag and an environment variable `SEINE_…`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLines {
    /// `key=value` pairs.
    Text,
    /// One JSON object a line.
    Json,
}

/// Under which names requests are counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MetricNames {
    /// OpenTelemetry's, as `http_server_request_duration_seconds`.
    Seine,
    /// Istio's, as `istio_requests_total`.
    Istio,
    /// Both.
    Both,
}

/// The settings of a waypoint.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "seine-waypoint",
    version,
    about = "The L7 proxy of the Seine mesh"
)]
pub struct Config {
    /// Name of this pod.
    #[arg(long, env = "SEINE_POD_NAME")]
    pub pod_name: String,
    /// Namespace of this pod.
    #[arg(long, env = "SEINE_POD_NAMESPACE")]
    pub pod_namespace: String,
    /// Address of this pod, in its xDS node id.
    #[arg(long, env = "SEINE_POD_IP", default_value = "127.0.0.1")]
    pub pod_ip: IpAddr,
    /// Service account of this pod: who the waypoint is.
    #[arg(long, env = "SEINE_SERVICE_ACCOUNT")]
    pub service_account: String,

    /// Where configuration comes from, `https://HOST:15012`.
    #[arg(long, env = "SEINE_XDS_ADDRESS")]
    pub xds_address: String,
    /// Where certificates come from, `https://HOST:15012`.
    #[arg(long, env = "SEINE_CA_ADDRESS")]
    pub ca_address: String,
    /// PEM file of the roots that vouch for the control plane's server certificate.
    #[arg(long, env = "SEINE_CA_ROOTS")]
    pub ca_roots: PathBuf,
    /// The name in the control plane's server certificate.
    #[arg(
        long,
        env = "SEINE_SERVER_NAME",
        default_value = "seine-control.seine-system.svc"
    )]
    pub server_name: String,
    /// File of the token that authenticates this proxy to the control plane; read anew for every use.
    #[arg(long, env = "SEINE_TOKEN_FILE")]
    pub token_file: PathBuf,
    /// The trust domain of this cluster's identities.
    #[arg(long, env = "SEINE_TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Name of the cluster.
    #[arg(long, env = "SEINE_CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// Name of the network that this pod is on.
    #[arg(long, env = "SEINE_NETWORK", default_value = "")]
    pub network: String,

    /// PEM file of the roots that vouch for issuers whose keys are fetched by https; read anew for every use.
    #[arg(long, env = "SEINE_JWKS_ROOTS")]
    pub jwks_roots: Option<PathBuf>,

    /// Takes connections from outside the mesh, at the listeners of this pod's Gateway, and no tunnels.
    #[arg(long, env = "SEINE_INGRESS", default_value = "false")]
    pub ingress: bool,
    /// Where tunnels are taken; of this address, too, are the ports of a Gateway's listeners.
    #[arg(long, env = "SEINE_LISTEN", default_value_t = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 15008)))]
    pub listen: SocketAddr,
    /// Admin endpoint. Whoever reaches it can read the configuration.
    #[arg(long, env = "SEINE_ADMIN_ADDRESS", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 15000)))]
    pub admin_address: SocketAddr,
    /// Prometheus endpoint.
    #[arg(long, env = "SEINE_METRICS_ADDRESS", default_value_t = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 15020)))]
    pub metrics_address: SocketAddr,
    /// Readiness endpoint.
    #[arg(long, env = "SEINE_READINESS_ADDRESS", default_value_t = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 15021)))]
    pub readiness_address: SocketAddr,
    /// How lines are written.
    #[arg(long, env = "SEINE_LOG_LINES", value_enum, default_value = "text")]
    pub log_lines: LogLines,
    /// Log filter; `access=off` leaves out a line for each request.
    #[arg(long, env = "SEINE_LOG", default_value = "info")]
    pub log: String,

    /// Names of the metrics.
    #[arg(long, env = "SEINE_METRIC_NAMES", value_enum, default_value = "seine")]
    pub metric_names: MetricNames,
    /// OTLP endpoint (gRPC) of a collector for traces, logs and metrics, such as `http://collector:4317`; none by default.
    #[arg(long, env = "SEINE_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// How often metrics are sent to the OTLP endpoint.
    #[arg(long, env = "SEINE_OTLP_METRICS_INTERVAL_MS", default_value = "15000", value_parser = millis)]
    pub otlp_metrics_interval: Duration,
    /// Share of the requests that come without a trace of which one is exported, from 0 to 1. Of others, whoever began the
    /// trace decides.
    #[arg(long, env = "SEINE_TRACE_SAMPLING", default_value = "1", value_parser = share)]
    pub trace_sampling: f64,

    /// Threads that move bytes; 0 is one for each core, by the container's limit.
    #[arg(long, env = "SEINE_WORKER_THREADS", default_value_t = 0)]
    pub worker_threads: usize,
    /// How long a request waits for policies that are known by name alone before it is denied.
    #[arg(long, env = "SEINE_POLICY_WAIT_MS", default_value = "5000", value_parser = millis)]
    pub policy_wait: Duration,
    /// How long requests may go on after SIGTERM. Kubernetes kills after 30 s by default.
    #[arg(long, env = "SEINE_DRAIN_MS", default_value = "20000", value_parser = millis)]
    pub drain: Duration,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text
        .parse()
        .ok()
        .filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| format!("{text:?} is no number from 0 to 1"))
}

fn millis(text: &str) -> Result<Duration, String> {
    let number = text.parse().map(Duration::from_millis);
    number.map_err(|error| format!("{text:?} is no number of milliseconds: {error}"))
}
