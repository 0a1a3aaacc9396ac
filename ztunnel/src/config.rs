//! The settings of a node proxy, each a flag and an environment variable `SEINE_…`.
//!
//! Parsed once by `main`, then shared unchanged by every task. A default states why it is what it is.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Parser, ValueEnum};

use crate::agent::AgentSocket;
use crate::federation::FederatedBundle;
use crate::tuning::{Tuning, size};

/// How one line about a closed connection is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AccessLog {
    /// `key=value` pairs.
    Text,
    /// One JSON object a line.
    Json,
    /// Only denials and failures, through the ordinary log.
    Off,
}

/// Under which names the metrics are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum MetricNames {
    /// Our own names, by OpenTelemetry convention.
    Seine,
    /// The names that existing dashboards know (`istio_tcp_…`).
    Istio,
    /// Both.
    Both,
}

/// The settings of a node proxy.
#[derive(Debug, Clone, Parser)]
#[command(
    name = "seine-ztunnel",
    version,
    about = "The L4 node proxy of the Seine mesh"
)]
pub struct Config {
    /// Name of the node.
    #[arg(long, env = "SEINE_NODE", default_value = "")]
    pub node: String,
    /// Name of the proxy's own pod, in its xDS node id.
    #[arg(long, env = "SEINE_POD_NAME", default_value = "seine-ztunnel")]
    pub proxy_name: String,
    /// Namespace of the proxy's own pod, in its xDS node id.
    #[arg(long, env = "SEINE_POD_NAMESPACE", default_value = "seine-system")]
    pub proxy_namespace: String,
    /// Address of the proxy's own pod, in its xDS node id.
    #[arg(long, env = "SEINE_POD_IP", default_value = "127.0.0.1")]
    pub proxy_ip: IpAddr,

    /// Where configuration comes from, `https://HOST:15012`. Without it, only the configuration on disk is served.
    #[arg(long, env = "SEINE_XDS_ADDRESS")]
    pub xds_address: Option<String>,
    /// Where certificates come from, `https://HOST:15012`.
    #[arg(long, env = "SEINE_CA_ADDRESS")]
    pub ca_address: Option<String>,
    /// Certificates and trust bundles come from the SPIRE agent of this node, by this Unix socket of it: its admin
    /// socket, or with --dedicated that of its Workload API.
    #[arg(long, env = "SEINE_SPIRE_SOCKET", conflicts_with_all = ["ca_address", "federated_bundle"])]
    pub spire_socket: Option<PathBuf>,
    /// PEM file of the roots that vouch for the control plane's server certificate.
    #[arg(long, env = "SEINE_CA_ROOTS")]
    pub ca_roots: Option<PathBuf>,
    /// The name in the control plane's server certificate, where it is not the host of its address.
    #[arg(long, env = "SEINE_SERVER_NAME")]
    pub server_name: Option<String>,
    /// File of the token that authenticates this proxy to the control plane; read anew for every use.
    #[arg(long, env = "SEINE_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// The trust domain of this cluster's identities.
    #[arg(long, env = "SEINE_TRUST_DOMAIN", default_value = "cluster.local")]
    pub trust_domain: String,
    /// Another trust domain whose identities are accepted, and the PEM file of its roots, `DOMAIN=FILE`; several with
    /// commas. A file is read anew when it changes. Its roots vouch for no other domain. One that is empty withdraws the
    /// trust in its domain, and ends its connections.
    #[arg(long, env = "SEINE_FEDERATED_BUNDLES", value_delimiter = ',')]
    pub federated_bundle: Vec<FederatedBundle>,
    /// How long after the end of its certificate a live connection of another trust domain's identity may go on, if that
    /// identity shows no newer one. Long enough for an outage of its CA; an ended certificate opens nothing new.
    #[arg(long, env = "SEINE_FEDERATED_GRACE", default_value = "1h", value_parser = duration)]
    pub federated_grace: Duration,
    /// Name of the cluster.
    #[arg(long, env = "SEINE_CLUSTER_ID", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// Name of the network that this node's pods are on.
    #[arg(long, env = "SEINE_NETWORK", default_value = "")]
    pub network: String,

    /// The agent's socket that names the pods to serve.
    #[arg(long, env = "SEINE_ZDS_SOCKET")]
    pub zds_socket: Option<PathBuf>,
    /// The agent's socket that hands over listening sockets. Without it the proxy binds its own in each pod,
    /// as it must under another mesh's agent.
    #[arg(long, env = "SEINE_LISTENERS_SOCKET")]
    pub listeners_socket: Option<PathBuf>,
    /// The agent's socket at which a proxy that starts meets the one that runs, to take over its keys. Without it a new
    /// proxy asks the CA for its certificates.
    #[arg(long, env = "SEINE_HANDOVER_SOCKET", conflicts_with = "dedicated")]
    pub handover_socket: Option<PathBuf>,
    /// cgroup (as in /proc/PID/cgroup) below which the agent is. Nobody else is taken for the agent. It needs a PID
    /// namespace in which the agent is visible: in a pod of its own the proxy sees only that the agent is root.
    #[arg(long, env = "SEINE_AGENT_CGROUP")]
    pub agent_cgroup: Option<String>,
    /// Where the last good configuration is kept.
    #[arg(long, env = "SEINE_STATE_DIR")]
    pub state_dir: Option<PathBuf>,

    /// Serve the network namespace of this process alone, without an agent.
    #[arg(long, env = "SEINE_DEDICATED", requires_all = ["pod_name", "pod_namespace"])]
    pub dedicated: bool,
    /// Dedicated: the name of the pod that is served.
    #[arg(long, env = "SEINE_DEDICATED_POD_NAME")]
    pub pod_name: Option<String>,
    /// Dedicated: the namespace of the pod that is served.
    #[arg(long, env = "SEINE_DEDICATED_POD_NAMESPACE")]
    pub pod_namespace: Option<String>,
    /// Dedicated: the service account of the pod that is served.
    #[arg(
        long,
        env = "SEINE_DEDICATED_SERVICE_ACCOUNT",
        default_value = "default"
    )]
    pub service_account: String,

    /// Resolver for names that the mesh does not own, `ADDRESS:PORT`; several with commas. By default those of
    /// /etc/resolv.conf.
    #[arg(long, env = "SEINE_DNS_UPSTREAM", value_delimiter = ',')]
    pub dns_upstream: Vec<SocketAddr>,

    /// Admin endpoint. Loopback only: whoever reaches it can read the configuration and drain the proxy.
    #[arg(long, env = "SEINE_ADMIN_ADDRESS", default_value_t = SocketAddr::from((Ipv4Addr::LOCALHOST, 15000)), value_parser = loopback)]
    pub admin_address: SocketAddr,
    /// Prometheus endpoint.
    #[arg(long, env = "SEINE_METRICS_ADDRESS", default_value_t = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 15020)))]
    pub metrics_address: SocketAddr,
    /// Readiness endpoint.
    #[arg(long, env = "SEINE_READINESS_ADDRESS", default_value_t = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 15021)))]
    pub readiness_address: SocketAddr,
    /// How closed connections are logged.
    #[arg(long, env = "SEINE_ACCESS_LOG", value_enum, default_value = "text")]
    pub access_log: AccessLog,
    /// Log filter, as `info,access=info,h2=warn`.
    #[arg(long, env = "SEINE_LOG", default_value = "info")]
    pub log: String,
    /// Names of the metrics.
    #[arg(long, env = "SEINE_METRIC_NAMES", value_enum, default_value = "both")]
    pub metric_names: MetricNames,
    /// Where metrics, logs and traces are exported by OTLP.
    #[arg(long, env = "SEINE_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,

    /// How often metrics are pushed by OTLP.
    #[arg(long, env = "SEINE_OTLP_METRICS_INTERVAL", default_value = "15s", value_parser = duration)]
    pub otlp_metrics_interval: Duration,

    /// How long live connections may go on after SIGTERM. Kubernetes kills after 30 s by default.
    #[arg(long, env = "SEINE_DRAIN_DEADLINE", default_value = "30s", value_parser = duration)]
    pub drain_deadline: Duration,
    /// Stay, idle, once another proxy has taken over, until SIGTERM: what keeps processes running, as Kubernetes does
    /// with those of a pod, would start one that ended anew, and that one would take over in turn.
    #[arg(long, env = "SEINE_STAY_WHEN_REPLACED")]
    pub stay_when_replaced: bool,
    /// How long a connection to an endpoint may take. Below the 5 s that many clients allow in all, so that a second
    /// endpoint can be tried.
    #[arg(long, env = "SEINE_CONNECT_TIMEOUT", default_value = "4s", value_parser = duration)]
    pub connect_timeout: Duration,
    /// How many endpoints are tried before a connection is given up.
    #[arg(long, env = "SEINE_CONNECT_ATTEMPTS", default_value_t = 3)]
    pub connect_attempts: usize,
    /// How long a peer may take for its first byte, wait for its turn, and take for the TLS handshake itself, each. A
    /// handshake is two round trips; who takes longer holds one of the pod's turns.
    #[arg(long, env = "SEINE_HANDSHAKE_TIMEOUT", default_value = "10s", value_parser = duration)]
    pub handshake_timeout: Duration,
    /// How long an inbound connection waits for the pod's workload and its policies before it is denied.
    #[arg(long, env = "SEINE_POLICY_WAIT", default_value = "5s", value_parser = duration)]
    pub policy_wait: Duration,
    /// Live connections a pod may have, each way. Beyond it, new ones are reset. At about 12 KB each, the limit holds a
    /// pod below some 250 MB.
    #[arg(long, env = "SEINE_MAX_CONNECTIONS", default_value_t = 20_000)]
    pub max_connections: usize,
    /// TLS handshakes that a pod may have going on at once, each way; others wait. A core makes about 2,000 a second, so
    /// this many keep it busy for 60 ms, and other pods get their turn. Peers of one address have a quarter of them. Eight
    /// times as many may wait; more are reset.
    #[arg(long, env = "SEINE_MAX_HANDSHAKES", default_value_t = 128)]
    pub max_handshakes: usize,
    /// Tunnels that a pod's peers may have, those of one address a quarter of them. Each carries 100 connections and more.
    #[arg(long, env = "SEINE_MAX_TUNNELS", default_value_t = 8_000)]
    pub max_tunnels: usize,
    /// What the connections of a pod whose readers take nothing may hold together: what came for an application, also
    /// before it has accepted, and what waits for a tunnel whose other end is stuck. Beyond it, the one that has stalled
    /// longest is reset. Each holds at most the stream window, or the send buffer, so that this is 512 of them; four pods
    /// that do their worst stay below the 2 GiB of the charts.
    #[arg(long, env = "SEINE_MAX_STALLED_MEMORY", default_value = "512MiB", value_parser = size)]
    pub max_stalled_memory: NonZeroU32,
    /// Threads that move bytes; 0 is one for each core.
    #[arg(long, env = "SEINE_WORKER_THREADS", default_value_t = 0)]
    pub worker_threads: usize,
    /// Sizes and times of tunnels, connections and DNS.
    #[command(flatten)]
    pub tuning: Tuning,
}

impl Config {
    /// A socket of the agent's.
    pub fn agent(&self, path: &Path) -> AgentSocket {
        AgentSocket::new(path, self.agent_cgroup.as_deref())
    }

    /// The settings with every flag left out, for tests and embedding.
    pub fn defaults() -> Self {
        Self::parse_from(["seine-ztunnel"])
    }
}

/// Parses an address of loopback with a port.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|error| format!("{text:?}: {error}"))?;
    if address.ip().to_canonical().is_loopback() {
        Ok(address)
    } else {
        Err(format!(
            "{address} can be reached from elsewhere, and the pages ask nobody who they are: use 127.0.0.1 or [::1]"
        ))
    }
}

/// Parses `250ms`, `30s`, `5m`, `1h`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number
        .parse()
        .map_err(|_| format!("{text:?} has no number, as in 30s"))?;
    let millis = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => return Err(format!("{text:?} has no unit: ms, s, m or h")),
    };
    millis
        .map(Duration::from_millis)
        .ok_or_else(|| format!("{text:?} is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_need_a_number_and_a_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        for bad in [
            "",
            "s",
            "30",
            "30 s",
            "-1s",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn admin_pages_are_on_loopback_or_nowhere() {
        let admin = |address| Config::try_parse_from(["seine-ztunnel", "--admin-address", address]);
        for address in ["127.0.0.1:0", "[::1]:15000", "[::ffff:127.0.0.1]:1"] {
            assert!(admin(address).is_ok(), "{address}");
        }
        for address in ["0.0.0.0:15000", "[::]:15000", "10.0.0.1:15000"] {
            let refused = admin(address).unwrap_err().to_string();
            assert!(refused.contains("from elsewhere"), "{refused}");
        }
    }

    #[test]
    fn a_dedicated_proxy_must_say_which_pod_it_serves() {
        assert!(Config::try_parse_from(["seine-ztunnel", "--dedicated"]).is_err());
        let named = [
            "seine-ztunnel",
            "--dedicated",
            "--pod-name",
            "a",
            "--pod-namespace",
            "b",
        ];
        assert!(Config::try_parse_from(named).is_ok());
    }
}
