//! The node agent's command line.

use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use clap::Parser;
use clap::Subcommand;
use clap::ValueEnum;
use seine_agent::CNI_SOCKET;
use seine_agent::Config;
use seine_agent::LAST_KNOWN_FILE;
use seine_agent::Listeners;
use seine_agent::NodeProxy;
use seine_agent::check;
use seine_agent::cluster::KUBECONFIG_FILE;
use seine_agent::cluster::ServiceAccount;
use seine_agent::cluster::uninstall::Agents;
use seine_agent::cni_chain;
use seine_agent::cni_chain::ChainSettings;
use seine_agent::redirect::OlderConnections;
use seine_agent::redirect::RedirectConfig;
use seine_agent::redirect::Udp;
use seine_agent::service;
use seine_cni::PluginEntry;
use seine_kubernetes::Scope;
use seine_kubernetes::Source;
use seine_objects::EnrolmentSettings;
use seine_telemetry::LogFormat;
use seine_telemetry::Settings;
use seine_telemetry::Telemetry;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;

/// Redirects the connections of the node's opted-in pods to the node proxy.
#[derive(Parser)]
#[command(name = "seine-agent", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Log level, or tracing directives.
    #[arg(long, env = "SEINE_LOG_LEVEL", default_value = "info", global = true)]
    log_level: String,
    /// Log lines as text or json.
    #[arg(long, env = "SEINE_LOG_FORMAT", default_value = "text", global = true)]
    log_format: LogFormat,
}

#[derive(Subcommand)]
enum Command {
    /// Run on this node.
    Run(Box<Run>),
    /// Say what this node lacks.
    Check(Check),
    /// Release every pod and remove everything from this node. Pods talk in plaintext afterwards.
    Uninstall(Uninstall),
}

#[derive(Args)]
struct Places {
    /// The cgroup that holds the node's pods.
    #[arg(
        long,
        env = "SEINE_PODS_CGROUP",
        default_value = "/sys/fs/cgroup/kubepods.slice"
    )]
    pods_cgroup: PathBuf,
    /// The kubelet's own cgroup; without it no probe is recognised.
    #[arg(long, env = "SEINE_KUBELET_CGROUP")]
    kubelet_cgroup: Option<PathBuf>,
    /// Folder for pinned programs and maps, on a bpffs.
    #[arg(long, env = "SEINE_BPFFS", default_value = "/sys/fs/bpf/seine")]
    bpffs: PathBuf,
}

#[derive(Args)]
struct Run {
    /// This node's name.
    #[arg(long, env = "SEINE_NODE")]
    node: String,
    /// A folder of Kubernetes objects, in the place of a cluster.
    #[arg(long, env = "SEINE_DIRECTORY")]
    directory: Option<PathBuf>,
    #[command(flatten)]
    cluster: InCluster,
    #[command(flatten)]
    places: Places,
    #[command(flatten)]
    chain: Chain,
    /// The cgroup that the node proxy's processes are below. In a cluster those of its pods are found.
    #[arg(long, env = "SEINE_ZTUNNEL_CGROUP")]
    ztunnel_cgroup: Option<PathBuf>,
    /// In a cluster, the service account of the node proxy's pods, in the agent's own namespace.
    #[arg(long, env = "SEINE_ZTUNNEL_ACCOUNT", default_value = "seine-ztunnel")]
    ztunnel_account: String,
    /// The cgroup that the CNI plugin's processes are below; without it any but the pods'.
    #[arg(long, env = "SEINE_CNI_CGROUP")]
    cni_cgroup: Option<PathBuf>,
    /// Folder of the local sockets.
    #[arg(long, env = "SEINE_RUN_DIR", default_value = "/run/seine")]
    run_dir: PathBuf,
    /// Folder of what a restarted agent must know.
    #[arg(long, env = "SEINE_STATE_DIR", default_value = "/var/lib/seine/agent")]
    state_dir: PathBuf,
    /// Status, metrics, readiness.
    #[arg(long, env = "SEINE_ADMIN_ADDRESS", default_value = "127.0.0.1:15010")]
    admin_address: SocketAddr,
    /// Metrics alone, where a scraper can reach them.
    #[arg(long, env = "SEINE_METRICS_ADDRESS")]
    metrics_address: Option<SocketAddr>,
    /// Who makes the pods' listening sockets: the agent, or a node proxy that can't take them over.
    #[arg(long, env = "SEINE_LISTENERS", default_value = "agent")]
    listeners: ListenersBy,
    /// TCP connections that a pod has when it is enrolled.
    #[arg(long, env = "SEINE_OLDER_CONNECTIONS", default_value = "leave")]
    older_connections: Older,
    /// UDP that leaves a pod, but for DNS and what its annotations exclude; annotation seine.dev/udp
    /// of a pod overrules it.
    #[arg(long, env = "SEINE_UDP", default_value = "pass")]
    udp: UdpOfPods,
    /// Seconds between two comparisons with what is really attached.
    #[arg(long, env = "SEINE_RECONCILE_SECONDS", default_value = "5", value_parser = clap::value_parser!(u64).range(1..))]
    reconcile_seconds: u64,
    /// Seconds between two connections of the agent's own that must be caught.
    #[arg(long, env = "SEINE_CANARY_SECONDS", default_value = "60", value_parser = clap::value_parser!(u64).range(1..))]
    canary_seconds: u64,
    /// Seconds that a pod's start waits for its object to appear.
    #[arg(long, env = "SEINE_POD_WAIT_SECONDS", default_value = "5")]
    pod_wait_seconds: u64,
    /// Take `istio.io/dataplane-mode=ambient` for an opt-in too.
    #[arg(long, env = "SEINE_ISTIO_ALIAS")]
    istio_alias: bool,
    /// Beginnings of the names of sandboxed runtimes, as classes and their handlers have them, beside the known ones (gVisor,
    /// Kata, …): pods of theirs are refused. The same for agent and control plane.
    #[arg(long, env = "SEINE_SANDBOXED_RUNTIMES", value_delimiter = ',')]
    sandboxed_runtimes: Vec<String>,
}

#[derive(Args)]
struct InCluster {
    /// How to reach the API server; without it (and without --directory) by the pod's own service account.
    #[arg(long, conflicts_with = "directory")]
    kubeconfig: Option<PathBuf>,
    /// Name of the agents' DaemonSet, whose annotation asks for an uninstall.
    #[arg(long, env = "SEINE_DAEMON_SET", default_value = "seine-agent")]
    daemon_set: String,
    /// Take the taint seine.dev/agent-not-ready off the node once the agent is ready.
    #[arg(long, env = "SEINE_STARTUP_TAINT")]
    startup_taint: bool,
    /// Name of the agent's own pod.
    #[arg(long, env = "POD_NAME")]
    pod_name: Option<String>,
}

impl InCluster {
    async fn connect(self, namespace: &str) -> anyhow::Result<service::Cluster> {
        let account = match &self.kubeconfig {
            // Who gives one sees to the plugin's too.
            Some(_) => None,
            None => Some(ServiceAccount::of_pod()?),
        };
        Ok(service::Cluster {
            client: seine_kubernetes::client(self.kubeconfig.as_deref()).await?,
            account,
            agents: Agents {
                namespace: namespace.to_owned(),
                daemon_set: self.daemon_set,
            },
            pod: self
                .pod_name
                .context("--pod-name (POD_NAME) says which pod this agent is")?,
            startup_taint: self.startup_taint,
        })
    }
}

#[derive(Args)]
struct Chain {
    /// The folder from which the container runtime runs CNI plugins: seine-cni is copied there.
    #[arg(long, env = "SEINE_CNI_BIN_DIR", requires = "cni_conf_dir")]
    cni_bin_dir: Option<PathBuf>,
    /// The folder of the container runtime's network configurations: seine-cni is put into the one
    /// that the runtime uses. Without it something else has to call the plugin.
    #[arg(long, env = "SEINE_CNI_CONF_DIR", requires = "cni_bin_dir")]
    cni_conf_dir: Option<PathBuf>,
    /// The program that is copied.
    #[arg(long, env = "SEINE_CNI_PROGRAM", default_value = "/usr/bin/seine-cni")]
    cni_program: PathBuf,
    /// Namespaces whose pods start whatever happens, separated by commas; that of the mesh itself
    /// (POD_NAMESPACE) always is one.
    #[arg(
        long,
        env = "SEINE_ALWAYS_START",
        value_delimiter = ',',
        default_value = "kube-system"
    )]
    always_start: Vec<String>,
    /// Seconds that a pod's start waits for the agent, before the runtime tries again.
    #[arg(long, env = "SEINE_CNI_TIMEOUT_SECONDS", default_value = "20", value_parser = clap::value_parser!(u64).range(1..=120))]
    cni_timeout_seconds: u64,
    /// The namespace of the mesh itself.
    #[arg(long, env = "POD_NAMESPACE", default_value = "seine-system")]
    own_namespace: String,
}

impl Chain {
    fn settings(self, run_dir: &Path, state_dir: &Path) -> Option<ChainSettings> {
        let mut always_start_namespaces = self.always_start;
        if !always_start_namespaces.contains(&self.own_namespace) {
            always_start_namespaces.push(self.own_namespace);
        }
        Some(ChainSettings {
            program: self.cni_program,
            bin_dir: self.cni_bin_dir?,
            conf_dir: self.cni_conf_dir?,
            entry: PluginEntry {
                agent_socket: run_dir.join(CNI_SOCKET),
                state_file: state_dir.join(LAST_KNOWN_FILE),
                kubeconfig: state_dir.join(KUBECONFIG_FILE),
                always_start_namespaces,
                timeout_seconds: self.cni_timeout_seconds,
            },
        })
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum ListenersBy {
    /// The agent: connections wait while no ztunnel runs.
    Agent,
    /// The node proxy: connections are refused while it is away, and plaintext to the pods always.
    Ztunnel,
}

#[derive(Clone, Copy, ValueEnum)]
enum Older {
    /// Reset them, so that the application connects again through the mesh.
    Reset,
    /// Leave them as they are, in plaintext, until they end.
    Leave,
}

#[derive(Clone, Copy, ValueEnum)]
enum UdpOfPods {
    /// It passes untouched.
    Pass,
    /// It is dropped.
    Drop,
}

#[derive(Args)]
struct Check {
    #[command(flatten)]
    places: Places,
    /// How to print the result.
    #[arg(short, long, default_value = "text")]
    output: Output,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// A table.
    Text,
    /// For programs.
    Json,
}

#[derive(Args)]
struct Uninstall {
    #[command(flatten)]
    places: Places,
    #[command(flatten)]
    chain: Chain,
    /// Folder of what a restarted agent must know.
    #[arg(long, env = "SEINE_STATE_DIR", default_value = "/var/lib/seine/agent")]
    state_dir: PathBuf,
}

fn main() -> ExitCode {
    match execute(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("seine-agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Check(args) => report(args),
        Command::Uninstall(args) => {
            let _telemetry = telemetry(&cli.log_level, cli.log_format, String::new())?;
            if let Some(chain) = args.chain.settings(Path::new("/"), &args.state_dir) {
                cni_chain::remove(&chain)?;
            }
            seine_agent::uninstall(redirect(args.places, None), &args.state_dir)?;
            println!("Removed. The pods of this node talk in plaintext now.");
            Ok(ExitCode::SUCCESS)
        }
        Command::Run(args) => {
            let telemetry = telemetry(&cli.log_level, cli.log_format, args.node.clone())?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .context("start the runtime")?;
            let result = runtime.block_on(run(*args));
            telemetry.stop();
            result.map(|()| ExitCode::SUCCESS)
        }
    }
}

fn report(args: Check) -> anyhow::Result<ExitCode> {
    let report = check::check(&check::Places {
        pods_cgroup: args.places.pods_cgroup,
        kubelet_cgroup: args.places.kubelet_cgroup,
        bpffs: args.places.bpffs,
    });
    match args.output {
        Output::Text => print!("{report}"),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(if report.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn telemetry(level: &str, format: LogFormat, instance: String) -> anyhow::Result<Telemetry> {
    let settings = Settings {
        service: "seine-agent",
        instance,
        format,
        level: level.to_owned(),
        otlp_endpoint: None,
        trace_sampling: 1.0,
    };
    Ok(Telemetry::start(&settings)?)
}

fn redirect(places: Places, ztunnel_cgroup: Option<&PathBuf>) -> RedirectConfig {
    RedirectConfig {
        bpffs: places.bpffs,
        pods_cgroup: places.pods_cgroup,
        // One that does not exist yet is told later, when it does.
        ztunnel_cgroups: ztunnel_cgroup
            .filter(|path| path.exists())
            .cloned()
            .into_iter()
            .collect(),
        kubelet_cgroup: places.kubelet_cgroup,
    }
}

async fn run(args: Run) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::pin!(stop);
    let (source, cluster) = match args.directory {
        Some(directory) => (Source::directory(directory, None).await?, None),
        None => {
            let cluster = args.cluster.connect(&args.chain.own_namespace).await?;
            let scope = Scope::Node(args.node.clone());
            let source = tokio::select! {
                source = Source::cluster(cluster.client.clone(), scope) => source,
                () = &mut stop => return Ok(()),
            };
            (source, Some(cluster))
        }
    };
    let config = Config {
        node: args.node,
        pods_cgroup: Some(args.places.pods_cgroup.clone()),
        proxy: match (&args.ztunnel_cgroup, &cluster) {
            (Some(path), _) => NodeProxy::Cgroup(path.clone()),
            (None, Some(_)) => NodeProxy::ServiceAccount {
                namespace: args.chain.own_namespace.clone(),
                name: args.ztunnel_account,
            },
            (None, None) => NodeProxy::AnyProcess,
        },
        cni_cgroup: args.cni_cgroup,
        chain: args.chain.settings(&args.run_dir, &args.state_dir),
        run_dir: args.run_dir,
        state_dir: args.state_dir,
        admin_address: args.admin_address,
        metrics_address: args.metrics_address,
        listeners: match args.listeners {
            ListenersBy::Agent => Listeners::Agent,
            ListenersBy::Ztunnel => Listeners::Ztunnel,
        },
        older_connections: match args.older_connections {
            Older::Reset => OlderConnections::Reset,
            Older::Leave => OlderConnections::Leave,
        },
        udp: match args.udp {
            UdpOfPods::Pass => Udp::Pass,
            UdpOfPods::Drop => Udp::Drop,
        },
        reconcile_every: Duration::from_secs(args.reconcile_seconds),
        canary_every: Duration::from_secs(args.canary_seconds),
        pod_wait: Duration::from_secs(args.pod_wait_seconds),
        enrolment: EnrolmentSettings {
            istio_alias: args.istio_alias,
            ..EnrolmentSettings::also_sandboxed(args.sandboxed_runtimes)
        },
    };
    let kernel = Arc::new(redirect(args.places, args.ztunnel_cgroup.as_ref()));
    service::serve(config, kernel, source.objects(), cluster, stop).await?;
    Ok(())
}
