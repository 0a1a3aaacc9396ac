//! Start-up and shutdown.
//!
//! Tunnels are taken only when policies, routes, services and the own certificate are there: before, nothing could be
//! judged. At SIGTERM nothing new is taken, tunnels say GOAWAY, and requests go on until the deadline.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZero;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use anyhow::Context;
use seine_hbone::{DrainSignal, DrainTrigger, Pool, Settings, drain};
use seine_identity::{
    CertificateManager, CertificateSource, Identity, ManagerOptions, MeshCa, MeshCaOptions,
    TrustDomain,
};
use seine_proto::{
    ADDRESS_TYPE, AUTHENTICATION_TYPE, AUTHORIZATION_TYPE, LISTENER_TYPE, ROUTE_RULE_TYPE,
    TRAFFIC_POLICY_TYPE,
};
use seine_telemetry::Readiness;
use seine_workload::Store;
use seine_xds::{Client, Connection, Grpc, GrpcOptions, NodeInfo, Protocol, Status};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use crate::admin;
use crate::config::Config;
use crate::ingress::door;
use crate::ingress::listeners::Listeners;
use crate::mirror::MAX_MIRRORS;
use crate::routes::{Configuration, Routes};
use crate::serve;
use crate::shared::{Shared, Workers};
use crate::telemetry::Telemetry;
use crate::traffic::Traffic;
use crate::upstream::Upstreams;

/// The types in the order in which they are needed.
const TYPES: [&str; 5] = [
    AUTHORIZATION_TYPE,
    AUTHENTICATION_TYPE,
    ROUTE_RULE_TYPE,
    TRAFFIC_POLICY_TYPE,
    ADDRESS_TYPE,
];
/// The same of a Gateway that takes connections from outside.
const INGRESS_TYPES: [&str; 6] = [
    AUTHORIZATION_TYPE,
    AUTHENTICATION_TYPE,
    ROUTE_RULE_TYPE,
    TRAFFIC_POLICY_TYPE,
    LISTENER_TYPE,
    ADDRESS_TYPE,
];

/// Runs a waypoint until it is told to end.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let source = MeshCa::new(MeshCaOptions {
        address: config.ca_address.clone(),
        roots_file: config.ca_roots.clone(),
        server_name: config.server_name.clone(),
        token_file: config.token_file.clone(),
        cluster_id: config.cluster_id.clone(),
        lifetime: Duration::from_secs(24 * 3600),
        impersonate: false,
    });
    let shared = share(config, Arc::new(source))?;
    admin::start(&shared).await?;
    shared.telemetry.push(&shared.config)?;
    let client = follow(&shared);
    tokio::spawn(watch_status(shared.clone(), client.status()));
    tokio::spawn(client.run());
    tokio::spawn(watch_certificate(shared.clone()));

    let serving = async {
        while !shared.readiness.is_ready() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let server = match shared.config.ingress {
            true => Server::ingress(&shared),
            false => {
                let listener = TcpListener::bind(shared.config.listen).await;
                let listener =
                    listener.with_context(|| format!("listening on {}", shared.config.listen))?;
                Server::start(&shared, listener)
            }
        };
        let server = server.context("starting the worker threads")?;
        info!(identity = %shared.identity, "ready");
        anyhow::Ok(server)
    };
    let server = tokio::select! {
        server = serving => server?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("draining");
    shared.readiness.pending("drain", "the waypoint is ending");
    server.drain(shared.config.drain).await;
    Ok(())
}

/// What all tasks share; for tests with another source of certificates.
pub fn share(config: Config, source: Arc<dyn CertificateSource>) -> anyhow::Result<Arc<Shared>> {
    let domain = TrustDomain::new(&config.trust_domain).context("--trust-domain")?;
    let identity = Identity::new(domain, &config.pod_namespace, &config.service_account)
        .context("who this waypoint is")?;
    let hbone = Settings::default();
    let certificates = CertificateManager::new(source, Arc::default(), ManagerOptions::default());
    certificates.prefetch(&identity);
    let readiness = Readiness::default();
    readiness.pending("configuration", "nothing has come from the control plane");
    readiness.pending("certificate", "it is asked for");
    let traffic = Arc::<Traffic>::default();
    let store = Arc::new(Store::new(&config.network));
    let pool = Pool::new(hbone.clone());
    Ok(Arc::new(Shared {
        identity,
        store: store.clone(),
        routes: Arc::default(),
        authentications: Arc::default(),
        listeners: Arc::default(),
        upstreams: Upstreams::new(pool, certificates.clone(), traffic.clone()),
        certificates,
        hbone: Arc::new(hbone),
        traffic,
        mirrors: Arc::new(Semaphore::new(MAX_MIRRORS)),
        tasks: TaskTracker::new(),
        telemetry: Telemetry::new(config.metric_names, store),
        readiness,
        config,
    }))
}

fn follow(shared: &Shared) -> Client<Grpc> {
    let config = &shared.config;
    let connect = Grpc::new(GrpcOptions {
        address: config.xds_address.clone(),
        roots_file: config.ca_roots.clone(),
        server_name: config.server_name.clone(),
        token_file: config.token_file.clone(),
        cluster_id: config.cluster_id.clone(),
    });
    let node = NodeInfo {
        address: config.pod_ip,
        pod: config.pod_name.clone(),
        namespace: config.pod_namespace.clone(),
        // It serves no node.
        node: String::new(),
        metadata: BTreeMap::new(),
    };
    let configuration = Configuration {
        store: shared.store.clone(),
        routes: Arc::<Routes>::clone(&shared.routes),
        traffic: shared.traffic.clone(),
        authentications: shared.authentications.clone(),
        listeners: Arc::<Listeners>::clone(&shared.listeners),
    };
    let types = match config.ingress {
        true => &INGRESS_TYPES[..],
        false => &TYPES,
    };
    Client::new(
        connect,
        Protocol::of_types(&node, types),
        Arc::new(configuration),
    )
}

/// Says when the configuration is there, and until then why it isn't. What is there stays in force.
async fn watch_status(shared: Arc<Shared>, mut status: watch::Receiver<Status>) {
    loop {
        let now = status.borrow_and_update().clone();
        let why = match now.connection {
            _ if now.ready && shared.own_workload().is_some() => {
                return shared.readiness.done("configuration");
            }
            _ if now.ready => "the control plane does not know this pod".to_owned(),
            Connection::Connecting => "connecting to the control plane".to_owned(),
            Connection::Connected => format!(
                "the control plane has not sent {}",
                now.waiting_for.join(", ")
            ),
            Connection::Waiting { because } => because,
        };
        shared.readiness.pending("configuration", why);
        // The pod may become known without a change of the status.
        tokio::select! {
            changed = status.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(Duration::from_millis(100)) => {}
        }
    }
}

async fn watch_certificate(shared: Arc<Shared>) {
    loop {
        match shared.certificates.get(&shared.identity).await {
            Ok(_) => return shared.readiness.done("certificate"),
            Err(error) => shared.readiness.pending("certificate", error.to_string()),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Takes tunnels, or connections from outside.
pub struct Server {
    trigger: DrainTrigger,
    stop: CancellationToken,
    tasks: TaskTracker,
    _workers: Arc<Workers>,
}

impl Server {
    /// Takes tunnels from a listener.
    pub fn start(shared: &Shared, listener: TcpListener) -> io::Result<Self> {
        Self::with(shared, |workers, signal, stop| {
            let home = workers.home();
            let own = home.clone();
            home.listen(&shared.tasks, listener, |listener| {
                serve::run(workers, own, listener, signal, stop)
            });
        })
    }

    /// Takes connections from outside, where there are listeners.
    pub fn ingress(shared: &Arc<Shared>) -> io::Result<Self> {
        Self::with(shared, |workers, signal, stop| {
            tokio::spawn(door::run(shared.clone(), workers, signal, stop));
        })
    }

    fn with(
        shared: &Shared,
        serve: impl FnOnce(Arc<Workers>, DrainSignal, CancellationToken),
    ) -> io::Result<Self> {
        let threads = match shared.config.worker_threads {
            0 => available_parallelism().map_or(1, NonZero::get),
            threads => threads,
        };
        let workers = Workers::start(threads, || Arc::new(shared.of_worker()))?;
        let workers = Arc::new(workers);
        let (trigger, signal) = drain();
        let stop = CancellationToken::new();
        serve(workers.clone(), signal, stop.clone());
        Ok(Self {
            trigger,
            stop,
            tasks: shared.tasks.clone(),
            _workers: workers,
        })
    }

    /// Takes nothing new, and waits for what goes on until the deadline.
    pub async fn drain(self, limit: Duration) {
        self.stop.cancel();
        self.trigger.drain(Instant::now() + limit);
        self.tasks.close();
        match tokio::time::timeout(limit, self.tasks.wait()).await {
            Ok(()) => info!("drained"),
            Err(_) => warn!(tasks = self.tasks.len(), "the deadline passed"),
        }
    }
}
