//! Start-up and shutdown.
//!
//! Start: the last configuration from disk, the control plane, the pages; keys from the proxy that runs already, then the
//! pods. When ready, the old proxy is told to let go, and this one waits for its own successor.
//!
//! Shutdown, by SIGTERM, by the admin page, or by a successor: nothing new is accepted (listeners stay open at the
//! agent), tunnels say GOAWAY, live connections go on until they end or the deadline passes, then they are reset. A
//! second signal ends the process at once.

use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use seine_hbone::{Pool, Settings};
use seine_identity::{
    CertificateManager, CertificateSource, ManagerOptions, MeshCa, MeshCaOptions, Spire, SpireApi,
    SpireOptions, TrustDomain,
};
use seine_telemetry::Readiness;
use seine_workload::Store;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin::Admin;
use crate::agent::AgentSocket;
use crate::config::Config;
use crate::descriptors::{self, Descriptors};
use crate::drain::Lifetime;
use crate::handover::{self, Predecessor};
use crate::judge::rejudge_on_change;
use crate::listeners::{ListenerSource, Ports};
use crate::netns::Netns;
use crate::pods::{AgentSink, Pods};
use crate::shared::{Environment, Shared, Workers};
use crate::telemetry::{self, Telemetry};
use crate::trust::Trust;
use crate::vital::Vital;
use crate::zds::{self, PodInfo};
use crate::{configuration, pod_dns, state};

/// How long a proxy that ends waits for whoever reads its last pages.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Runs a proxy until it is told to end.
pub async fn run(
    config: Config,
    log: Option<Arc<seine_telemetry::Telemetry>>,
) -> anyhow::Result<()> {
    descriptors::raise_limit();
    let spire = spire(&config)?;
    let source: Arc<dyn CertificateSource> = match &spire {
        Some(spire) => spire.clone(),
        None => Arc::new(mesh_ca(&config)?),
    };
    let shared = share(config, source, Environment::default())?;
    if let Some(spire) = spire {
        let follow = spire.follow_bundles(shared.certificates.clone());
        shared.vital.spawn("trust bundles of SPIRE", follow);
    }
    tokio::select! {
        outcome = serve(&shared, log) => outcome,
        task = shared.vital.lost() => bail!(
            "the task `{task}` panicked: a bug. The proxy would no longer follow what changes, so it ends; new connections wait for the next one"
        ),
    }
}

async fn serve(
    shared: &Arc<Shared>,
    log: Option<Arc<seine_telemetry::Telemetry>>,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let config = &shared.config;
    federate(shared)?;

    let saved = config
        .state_dir
        .as_ref()
        .is_some_and(|folder| state::load_at_start(&shared.store, folder));
    configuration::start(shared, saved)?;
    if let Some(folder) = &config.state_dir {
        tokio::spawn(state::keep(shared.clone(), folder.clone()));
    }
    shared
        .vital
        .spawn("verdicts", rejudge_on_change(shared.clone()));
    tokio::spawn(telemetry::keep_counting_traffic(shared.connections.clone()));
    tokio::spawn(telemetry::keep_observing(shared.clone()));
    telemetry::push_metrics(&shared.telemetry, config)?;

    let pods = Pods::new(shared.clone(), listener_source(config));
    let agent = if config.dedicated {
        serve_own_pod(shared, &pods).await?;
        None
    } else {
        let path = config.zds_socket.as_ref().context(
            "--zds-socket names the agent's socket; without an agent, --dedicated serves this namespace",
        )?;
        Some(config.agent(path))
    };
    shared
        .vital
        .spawn("readiness", pods.clone().watch_certificates());
    let drain = CancellationToken::new();
    let admin = Admin {
        shared: shared.clone(),
        pods: pods.clone(),
        log,
        drain: drain.clone(),
    };
    let pages = Lifetime::new();
    admin.start(&pages);
    let replaced = CancellationToken::new();
    let succession = tokio::spawn(succeed(
        shared.clone(),
        agent,
        pods.clone(),
        replaced.clone(),
    ));

    let (by_successor, by_signal) = tokio::select! {
        _ = terminate.recv() => { info!("SIGTERM"); (false, true) }
        _ = interrupt.recv() => { info!("SIGINT"); (false, true) }
        () = drain.cancelled() => (false, false),
        () = replaced.cancelled() => (true, false),
    };
    succession.abort();
    shared.readiness.pending("drain", "the proxy is ending");
    // The successor has pages of its own; otherwise the drain can be watched on these.
    if by_successor {
        pages.stop().cancel();
    }
    // A proxy that drains already gets its one SIGTERM while it does: Kubernetes sends it to a pod
    // whose successor is ready. Only a further one means haste.
    let signals = AtomicUsize::new(usize::from(by_signal));
    let haste = async {
        while signals.load(Ordering::Relaxed) < 2 {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            signals.fetch_add(1, Ordering::Relaxed);
        }
    };
    let deadline = shared.config.drain_deadline;
    info!(
        connections = shared.connections.len(),
        ?deadline,
        "draining"
    );
    tokio::select! {
        cut = shut_down(shared, &pods, deadline) => match cut {
            0 => info!("drained"),
            cut => warn!(connections = cut, "the deadline passed: connections were reset"),
        },
        () = haste => warn!("told to end once more: ending at once"),
    }
    if by_successor && config.stay_when_replaced && signals.load(Ordering::Relaxed) == 0 {
        info!("replaced: idle until told to end");
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    }
    pages.drain(LAST_ANSWERS).await;
    Ok(())
}

async fn shut_down(shared: &Shared, pods: &Pods, deadline: Duration) -> usize {
    shared.life.stop().cancel();
    let cut = pods.drain(deadline).await;
    // Tunnels without streams go now; those with streams went with them.
    for pool in shared.workers.own() {
        pool.drain();
    }
    shared.life.cut().cancel();
    cut
}

/// What all tasks share; for tests with another source of certificates and without privileges.
pub fn share(
    config: Config,
    source: Arc<dyn CertificateSource>,
    environment: Environment,
) -> anyhow::Result<Arc<Shared>> {
    let hbone = Settings {
        handshake_timeout: config.handshake_timeout,
        connect_timeout: config.connect_timeout,
        ..config.tuning.tunnels()
    };
    let threads = match config.worker_threads {
        0 => available_parallelism().map_or(1, NonZero::get),
        threads => threads,
    };
    let workers = Workers::start(threads, || Pool::new(hbone.clone()))
        .context("starting the worker threads")?;
    let telemetry = Telemetry::new(&config);
    let readiness = Readiness::default();
    readiness.pending(
        "configuration",
        "nothing has come from the control plane, and there is no good copy on disk",
    );
    if config.zds_socket.is_some() && !config.dedicated {
        readiness.pending("agent", "the agent has not named this node's pods");
    }
    readiness.pending("certificates", "this node's pods are not known");
    let certificates = CertificateManager::new(source, Arc::default(), ManagerOptions::default());
    let vital = Vital::default();
    vital.watch("certificates", certificates.broken());
    Ok(Arc::new(Shared {
        store: Arc::new(Store::new(&config.network)),
        trust: Trust::new(certificates.clone(), &config),
        certificates,
        workers,
        hbone: Arc::new(hbone),
        copy: config.tuning.connections(),
        descriptors: Descriptors::of_process().context("the limit of file descriptors")?,
        connections: Arc::default(),
        dns: pod_dns::options(&config, telemetry.dns()),
        telemetry,
        control_plane: watch::Sender::default(),
        configured: watch::Sender::new(false),
        vital,
        readiness,
        life: Lifetime::new(),
        ports: Ports::default(),
        environment,
        config,
    }))
}

fn federate(shared: &Shared) -> anyhow::Result<()> {
    for bundle in &shared.config.federated_bundle {
        ensure!(
            bundle.trust_domain.as_str() != shared.config.trust_domain,
            "--federated-bundle: {} is this mesh's own trust domain, whose roots come with its certificates",
            bundle.trust_domain
        );
        let follow = bundle.clone().follow(shared.certificates.clone());
        shared.vital.spawn("federated bundles", follow);
    }
    Ok(())
}

fn spire(config: &Config) -> anyhow::Result<Option<Arc<Spire>>> {
    let Some(socket) = config.spire_socket.clone() else {
        return Ok(None);
    };
    let trust_domain = TrustDomain::new(&config.trust_domain).with_context(|| {
        format!(
            "--trust-domain {:?} is no trust domain",
            config.trust_domain
        )
    })?;
    Ok(Some(Arc::new(Spire::new(SpireOptions {
        socket,
        api: match config.dedicated {
            true => SpireApi::Workload,
            false => SpireApi::Delegated,
        },
        trust_domain,
    }))))
}

fn mesh_ca(config: &Config) -> anyhow::Result<MeshCa> {
    let address = config
        .ca_address
        .clone()
        .context("--ca-address or --spire-socket says where certificates come from")?;
    let server_name = match &config.server_name {
        Some(name) => name.clone(),
        None => {
            host_of(&address).with_context(|| format!("--ca-address {address:?} has no host"))?
        }
    };
    Ok(MeshCa::new(MeshCaOptions {
        server_name,
        address,
        roots_file: config
            .ca_roots
            .clone()
            .context("--ca-roots says whom to trust as the control plane")?,
        token_file: config
            .token_file
            .clone()
            .context("--token-file authenticates this proxy")?,
        cluster_id: config.cluster_id.clone(),
        lifetime: Duration::from_secs(24 * 3600),
        impersonate: !config.dedicated,
    }))
}

pub(crate) fn host_of(address: &str) -> Option<String> {
    let uri: http::Uri = address.parse().ok()?;
    Some(uri.host()?.trim_matches(['[', ']']).to_owned())
}

fn listener_source(config: &Config) -> ListenerSource {
    match &config.listeners_socket {
        Some(path) if !config.dedicated => ListenerSource::Agent(config.agent(path)),
        _ => ListenerSource::Own(Ports::default()),
    }
}

async fn serve_own_pod(shared: &Shared, pods: &Arc<Pods>) -> anyhow::Result<()> {
    let config = &shared.config;
    let (Some(name), Some(namespace)) = (&config.pod_name, &config.pod_namespace) else {
        bail!("--dedicated needs --pod-name and --pod-namespace: whose namespace this is");
    };
    let pod = PodInfo {
        uid: format!("{namespace}/{name}"),
        name: name.clone(),
        namespace: namespace.clone(),
        service_account: config.service_account.clone(),
    };
    let listeners = ListenerSource::Own(shared.ports)
        .obtain(&pod.uid, &Netns::home())
        .await?;
    pods.serve(pod, Netns::home(), listeners)
        .map_err(anyhow::Error::msg)?;
    pods.all_named();
    Ok(())
}

/// Follows the agent with the keys of the proxy that runs already; tells that one to let go once this one is ready, and
/// then waits for the one that replaces this one.
async fn succeed(
    shared: Arc<Shared>,
    agent: Option<AgentSocket>,
    pods: Arc<Pods>,
    replaced: CancellationToken,
) {
    let config = &shared.config;
    let meeting = config.handover_socket.as_deref().map(|at| config.agent(at));
    // The keys come first: for a pod without one the CA would be asked.
    let predecessor = match &meeting {
        Some(meeting) => begin_handover(meeting, &shared).await,
        None => None,
    };
    if let Some(agent) = agent {
        let (sink, stop) = (AgentSink(pods), shared.life.stop().clone());
        shared.vital.spawn("agent", async move {
            zds::follow(&agent, &sink, stop).await;
        });
    }
    while !shared.readiness.is_ready() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    info!("ready");
    if let Some(predecessor) = predecessor {
        match predecessor.take_over().await {
            Ok(()) => info!("the old proxy drains"),
            Err(error) => warn!(%error, "the old proxy may be accepting connections still"),
        }
    }
    if let Some(meeting) = &meeting {
        handover::serve(meeting, &shared.certificates).await;
        replaced.cancel();
    }
}

async fn begin_handover(meeting: &AgentSocket, shared: &Shared) -> Option<Predecessor> {
    match handover::begin(meeting, &shared.certificates).await {
        Ok(predecessor) => predecessor,
        Err(error) => {
            error!(%error, "no keys from the running proxy: certificates have to come from the CA");
            None
        }
    }
}
