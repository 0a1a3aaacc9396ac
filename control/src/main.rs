//! The control plane's flags. Everything else is in the library.

#![forbid(unsafe_code)]

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use seine_control::{
    Files, Options, Place, cluster::Cluster, publish::held_map::Replica,
    publish::waypoint::Template, translate::Settings,
};
use seine_objects::EnrolmentSettings;
use seine_telemetry::{LogFormat, Telemetry};
use tokio::signal::unix::{SignalKind, signal};

/// Seine's control plane: configuration over xDS, and certificates.
#[derive(Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Subcommand)]
enum Command {
    /// Write the policy CRDs as YAML files.
    Crds {
        /// The folder to write them to.
        #[arg(default_value = "deploy/crds")]
        directory: PathBuf,
    },
}

#[derive(clap::Args)]
struct Serve {
    /// Folder of YAML objects to read and watch, in the place of a cluster.
    #[arg(long, env = "SEINE_DIRECTORY", requires_all = ["ca_dir", "token_public_key"])]
    directory: Option<PathBuf>,
    /// How to reach the API server; without it (and without `--directory`) by the pod's own service account.
    #[arg(long, conflicts_with = "directory")]
    kubeconfig: Option<PathBuf>,
    /// Address of the xDS and certificate services.
    #[arg(long, env = "SEINE_LISTEN", default_value = "[::]:15012")]
    listen: SocketAddr,
    /// Folder of the certificate authority; made at the first start. In a cluster a Secret has its keys.
    #[arg(long, env = "SEINE_CA_DIR", requires = "directory")]
    ca_dir: Option<PathBuf>,
    /// PEM file with the public half of the key that signs tokens. In a cluster the API server judges them.
    #[arg(long, env = "SEINE_TOKEN_PUBLIC_KEY", requires = "directory")]
    token_public_key: Option<PathBuf>,
    /// Issuer that tokens must name. In a cluster the API server knows.
    #[arg(long, env = "SEINE_TOKEN_ISSUER", default_value = "seine-lab")]
    token_issuer: String,
    /// Audience that tokens must name.
    #[arg(long, env = "SEINE_TOKEN_AUDIENCE", default_value = "seine-control")]
    token_audience: String,
    /// Service accounts (`namespace/name`) of node proxies and agents.
    #[arg(
        long = "trusted-account",
        env = "SEINE_TRUSTED_ACCOUNT",
        value_delimiter = ',',
        default_value = "seine-system/seine-ztunnel"
    )]
    trusted_accounts: Vec<String>,
    /// Trust domain of every identity.
    #[arg(long, env = "SEINE_TRUST_DOMAIN", default_value = "cluster.local")]
    trust_domain: String,
    /// Name of this cluster.
    #[arg(long, env = "SEINE_CLUSTER_ID", default_value = "Kubernetes")]
    cluster_id: String,
    /// Name of the network that all addresses are in.
    #[arg(long, env = "SEINE_NETWORK", default_value = "")]
    network: String,
    /// Domain of the cluster's DNS names.
    #[arg(long, env = "SEINE_DNS_DOMAIN", default_value = "cluster.local")]
    dns_domain: String,
    /// Take `istio.io/dataplane-mode=ambient` for an opt-in too.
    #[arg(long, env = "SEINE_ISTIO_ALIAS")]
    istio_alias: bool,
    /// Beginnings of the names of sandboxed runtimes, as classes and their handlers have them, beside the known ones (gVisor,
    /// Kata, …): pods of theirs are refused. The same for agent and control plane.
    #[arg(long, env = "SEINE_SANDBOXED_RUNTIMES", value_delimiter = ',')]
    sandboxed_runtimes: Vec<String>,
    /// Read Istio's AuthorizationPolicy, PeerAuthentication and RequestAuthentication too, where their CRDs are installed.
    #[arg(long, env = "SEINE_ISTIO_POLICIES")]
    istio_policies: bool,
    /// Namespace whose policies of Istio's hold for the whole mesh.
    #[arg(long, env = "SEINE_ISTIO_ROOT_NAMESPACE", default_value = seine_objects::istio::ROOT_NAMESPACE)]
    istio_root_namespace: String,
    /// DNS names in the server's certificate.
    #[arg(
        long = "server-name",
        env = "SEINE_SERVER_NAME",
        value_delimiter = ',',
        default_value = "seine-control.seine-system.svc"
    )]
    server_names: Vec<String>,
    /// Address of the admin pages.
    #[arg(long, env = "SEINE_ADMIN_ADDRESS", default_value = "127.0.0.1:15014")]
    admin_address: SocketAddr,
    /// Address of the metrics, for a scraper from elsewhere; the admin pages have them too.
    #[arg(long, env = "SEINE_METRICS_ADDRESS")]
    metrics_address: Option<SocketAddr>,
    /// Address of the readiness page, for the kubelet; the admin pages have it too.
    #[arg(long, env = "SEINE_READINESS_ADDRESS")]
    readiness_address: Option<SocketAddr>,
    /// Name of this replica's pod, in a cluster.
    #[arg(long, env = "POD_NAME")]
    pod_name: Option<String>,
    /// Its namespace.
    #[arg(long, env = "POD_NAMESPACE", default_value = "seine-system")]
    pod_namespace: String,
    /// Its UID, so that what it writes for itself goes with it.
    #[arg(long, env = "POD_UID")]
    pod_uid: Option<String>,
    /// JSON file that says what waypoints are made of, as the chart writes it; without it, who wants one makes its pods.
    #[arg(long, env = "SEINE_WAYPOINT_TEMPLATE", conflicts_with = "directory")]
    waypoint_template: Option<PathBuf>,
    /// Lifetime of the proxies' certificates, in seconds: at most, and where they ask for none.
    #[arg(long, env = "SEINE_CERTIFICATE_LIFETIME", default_value_t = 24 * 3600)]
    certificate_lifetime: u64,
    /// Lifetime of the intermediate that signs them, in seconds; a new one is made at half of it.
    /// No certificate lives longer than the one that signed it.
    #[arg(
        long,
        env = "SEINE_INTERMEDIATE_LIFETIME",
        default_value_t = 60 * 24 * 3600,
        value_parser = clap::value_parser!(u64).range(60..)
    )]
    intermediate_lifetime: u64,
    /// Seconds after which an xDS client must show a fresh token.
    #[arg(long, env = "SEINE_MAX_STREAM_AGE", default_value_t = 1800)]
    max_stream_age: u64,
    /// Log lines as `text` or `json`.
    #[arg(long, env = "SEINE_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
    /// `tracing` directives.
    #[arg(long, env = "SEINE_LOG_LEVEL", default_value = "info")]
    log_level: String,
    /// gRPC endpoint of an OpenTelemetry collector.
    #[arg(long, env = "SEINE_OTLP_ENDPOINT")]
    otlp_endpoint: Option<String>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Some(Command::Crds { directory }) => write_crds(&directory),
        None => serve(cli.serve).await,
    }
}

fn write_crds(directory: &std::path::Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    for (name, yaml) in seine_objects::policy::crds()? {
        let path = directory.join(name);
        std::fs::write(&path, yaml).with_context(|| path.display().to_string())?;
        println!("{}", path.display());
    }
    Ok(())
}

async fn place(flags: &Serve) -> anyhow::Result<Place> {
    if let Some(objects) = &flags.directory {
        return Ok(Place::Files(Files {
            objects: objects.clone(),
            ca: flags.ca_dir.clone().context("--ca-dir is missing")?,
            token_public_key: flags
                .token_public_key
                .clone()
                .context("--token-public-key is missing")?,
            token_issuer: flags.token_issuer.clone(),
        }));
    }
    Ok(Place::Cluster(Cluster {
        client: seine_kubernetes::client(flags.kubeconfig.as_deref()).await?,
        replica: Replica {
            namespace: flags.pod_namespace.clone(),
            pod: flags
                .pod_name
                .clone()
                .context("--pod-name (POD_NAME) says which replica this is")?,
            uid: flags.pod_uid.clone(),
        },
        waypoints: flags
            .waypoint_template
            .as_deref()
            .map(Template::read)
            .transpose()
            .context("--waypoint-template")?,
    }))
}

async fn serve(flags: Serve) -> anyhow::Result<()> {
    let telemetry = Telemetry::start(&seine_telemetry::Settings {
        service: "seine-control",
        instance: flags.cluster_id.clone(),
        format: flags.log_format,
        level: flags.log_level.clone(),
        otlp_endpoint: flags.otlp_endpoint.clone(),
        trace_sampling: 1.0,
    })?;
    let place = place(&flags).await?;
    let options = Options {
        place,
        listen: flags.listen,
        admin: flags.admin_address,
        metrics: flags.metrics_address,
        readiness: flags.readiness_address,
        token_audience: flags.token_audience,
        trusted_accounts: flags.trusted_accounts,
        server_names: flags.server_names,
        certificate_lifetime: Duration::from_secs(flags.certificate_lifetime),
        intermediate_lifetime: Duration::from_secs(flags.intermediate_lifetime),
        max_stream_age: Duration::from_secs(flags.max_stream_age),
        drain: Duration::from_secs(5),
        translation: Settings {
            trust_domain: flags.trust_domain,
            cluster_id: flags.cluster_id,
            network: flags.network,
            dns_domain: flags.dns_domain,
            istio_root_namespace: flags.istio_policies.then_some(flags.istio_root_namespace),
            enrolment: EnrolmentSettings {
                istio_alias: flags.istio_alias,
                ..EnrolmentSettings::also_sandboxed(flags.sandboxed_runtimes)
            },
            ..Settings::default()
        },
    };
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    let served = seine_control::run(options, stop).await;
    telemetry.stop();
    served
}
