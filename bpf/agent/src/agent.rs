//! A running agent: its keeper thread, its servers, and their beginning and end.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::fcntl::Flock;
use nix::fcntl::FlockArg;
use prometheus_client::registry::Registry as MetricsRegistry;
use seine_objects::ObjectSet;
use seine_telemetry::Readiness;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::admin;
use crate::cni_chain::ChainStatus;
use crate::cni_chain::Installer;
use crate::cni_server::CniServer;
use crate::config::Config;
use crate::config::NodeProxy;
use crate::door::Cgroups;
use crate::door::Door;
use crate::handover;
use crate::interfaces::Watcher;
use crate::keeper::Command;
use crate::keeper::Keeper;
use crate::keeper::PODS;
use crate::keeper::REDIRECTION;
use crate::last_known::LastKnownFile;
use crate::listeners_server;
use crate::metrics::Metrics;
use crate::redirector::Redirector;
use crate::registry::Registry;
use crate::seqpacket::Listener;
use crate::served::PodStatus;
use crate::zds;

/// Socket for node proxies: pods to serve.
pub const ZTUNNEL_SOCKET: &str = "ztunnel.sock";
/// Socket for node proxies: listening sockets of a pod.
pub const LISTENERS_SOCKET: &str = "listeners.sock";
/// Socket for node proxies: who starts meets who runs.
pub const HANDOVER_SOCKET: &str = "handover.sock";
/// Socket for the CNI plugin.
pub const CNI_SOCKET: &str = "cni.sock";
/// All of them.
pub(crate) const SOCKETS: [&str; 4] = [
    ZTUNNEL_SOCKET,
    LISTENERS_SOCKET,
    HANDOVER_SOCKET,
    CNI_SOCKET,
];
/// What the CNI plugin reads while the agent is away, also after a restart of the node: in the state
/// folder.
pub const LAST_KNOWN_FILE: &str = "last-known.json";

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A folder, socket or file of the agent can't be made.
    #[error("{path}: {source}")]
    Path {
        /// Which one.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The admin address is taken, or no address of this machine.
    #[error("listen on the admin address {address}: {source}")]
    Admin {
        /// As configured.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// No thread could be started.
    #[error("start a thread: {0}")]
    Thread(#[source] io::Error),
}

/// A running agent. Dropping it ends its servers and its thread as [`Agent::stop`] does; neither
/// releases a pod.
pub struct Agent {
    commands: mpsc::Sender<Command>,
    keeper: Option<thread::JoinHandle<()>>,
    tasks: JoinSet<()>,
    status: watch::Receiver<Arc<Vec<PodStatus>>>,
    readiness: Readiness,
    admin_address: SocketAddr,
    installer: Option<Installer>,
    _lock: StateLock,
}

impl Agent {
    /// Takes over what an earlier agent left, and serves.
    ///
    /// # Errors
    ///
    /// See [`StartError`].
    pub async fn start(
        lock: StateLock,
        config: Config,
        redirector: Arc<dyn Redirector>,
        objects: watch::Receiver<Arc<ObjectSet>>,
    ) -> Result<Self, StartError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| StartError::Path { path, source }
        };
        fs::create_dir_all(&config.run_dir).map_err(at(&config.run_dir))?;
        let registry = Registry::open(&config.state_dir).map_err(at(&config.state_dir))?;
        let admin = TcpListener::bind(config.admin_address)
            .await
            .map_err(|source| StartError::Admin {
                address: config.admin_address,
                source,
            })?;
        let scraped = match config.metrics_address {
            Some(address) => Some(
                TcpListener::bind(address)
                    .await
                    .map_err(|source| StartError::Admin { address, source })?,
            ),
            None => None,
        };
        let admin_address = admin.local_addr().unwrap_or(config.admin_address);
        let socket = |name: &str| {
            let path = config.run_dir.join(name);
            Listener::bind(&path).map_err(at(&path))
        };
        let (ztunnel, listeners, meeting, cni) = (
            socket(ZTUNNEL_SOCKET)?,
            socket(LISTENERS_SOCKET)?,
            socket(HANDOVER_SOCKET)?,
            socket(CNI_SOCKET)?,
        );

        let mut metrics_registry = MetricsRegistry::default();
        let metrics = Metrics::register(&mut metrics_registry);
        let readiness = Readiness::default();
        readiness.pending(REDIRECTION, "no connection was caught yet");
        readiness.pending(PODS, "the pods of the node are not taken over yet");
        let config = Arc::new(config);
        let proxies = match &config.proxy {
            NodeProxy::Cgroup(path) => Cgroups::new(vec![path.clone()]),
            NodeProxy::AnyProcess | NodeProxy::ServiceAccount { .. } => Cgroups::default(),
        };
        let (commands, received) = mpsc::channel();
        let (served_out, served) = watch::channel(None);
        let (status_out, status) = watch::channel(Arc::new(Vec::new()));
        let keeper = Keeper {
            config: config.clone(),
            redirector: redirector.clone(),
            registry,
            metrics: metrics.clone(),
            readiness: readiness.clone(),
            objects: objects.clone(),
            served: served_out,
            status: status_out,
            last_known: LastKnownFile::new(config.state_dir.join(LAST_KNOWN_FILE)),
            pods: BTreeMap::new(),
            unclaimed: BTreeMap::new(),
            proxies: proxies.clone(),
            watcher: Watcher {
                runtime: tokio::runtime::Handle::current(),
                to: commands.clone(),
            },
            proxy_cgroups: Vec::new(),
            caught: None,
        };
        let keeper = thread::Builder::new()
            .name("keeper".into())
            .spawn(move || keeper.run(&received))
            .map_err(StartError::Thread)?;
        // A plugin in the chain before there is redirection would keep every opted-in pod waiting.
        let installer = config.chain.clone().map(|chain| {
            let first = &[REDIRECTION, PODS];
            Installer::start(chain, readiness.clone(), first, metrics.clone())
        });
        let installer = installer.transpose().map_err(StartError::Thread)?;

        let mut tasks = JoinSet::new();
        let of_ztunnel = Door {
            below: (config.proxy != NodeProxy::AnyProcess).then_some(proxies),
            outside: match config.proxy {
                NodeProxy::AnyProcess => config.pods_cgroup.clone(),
                NodeProxy::Cgroup(_) | NodeProxy::ServiceAccount { .. } => None,
            },
        };
        let of_cni = match &config.cni_cgroup {
            Some(cgroup) => Door {
                below: Some(Cgroups::new(vec![cgroup.clone()])),
                outside: None,
            },
            None => Door {
                below: None,
                outside: config.pods_cgroup.clone(),
            },
        };
        tasks.spawn(zds::serve(
            ztunnel,
            of_ztunnel.clone(),
            served.clone(),
            commands.clone(),
            metrics.clone(),
        ));
        tasks.spawn(handover::serve(
            meeting,
            of_ztunnel.clone(),
            commands.clone(),
            metrics.clone(),
        ));
        tasks.spawn(listeners_server::serve(
            listeners,
            of_ztunnel,
            served,
            metrics.clone(),
        ));
        let server = CniServer {
            config: config.clone(),
            commands: commands.clone(),
            objects: objects.clone(),
            readiness: readiness.clone(),
            metrics: metrics.clone(),
        };
        tasks.spawn(server.serve(cni, of_cni));
        let pages = admin::Pages {
            node: config.node.clone(),
            readiness: readiness.clone(),
            status: status.clone(),
            chain: installer.as_ref().map(Installer::status),
            registry: Arc::new(metrics_registry),
            metrics,
            redirector,
        };
        if let Some(scraped) = scraped {
            tasks.spawn(admin::serve_metrics(scraped, pages.clone()));
        }
        tasks.spawn(admin::serve(admin, pages));
        tasks.spawn(tell_of_changes(objects, commands.clone()));
        Ok(Self {
            commands,
            keeper: Some(keeper),
            tasks,
            status,
            readiness,
            admin_address,
            installer,
            _lock: lock,
        })
    }

    /// The pods of the node as they are now, and told of changes.
    pub fn status(&self) -> watch::Receiver<Arc<Vec<PodStatus>>> {
        self.status.clone()
    }

    /// Where our plugin stands in the container runtime's chain, if the agent looks after that.
    pub fn chain(&self) -> Option<watch::Receiver<ChainStatus>> {
        self.installer.as_ref().map(Installer::status)
    }

    /// What it waits for.
    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    /// Where status and metrics are.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Ends the work on the runtime's chain, and leaves the plugin in it.
    pub fn let_chain_be(&mut self) {
        drop(self.installer.take());
    }

    /// Ends the servers and the keeper, after the work that it is at. Everything in the kernel
    /// stays as it is, so that no pod falls back to plaintext.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
        drop(self.installer.take());
        let keeper = self.end();
        let joined = tokio::task::spawn_blocking(|| keeper.map(thread::JoinHandle::join)).await;
        if !matches!(joined, Ok(None | Some(Ok(())))) {
            tracing::error!("the keeper's thread panicked");
        }
    }

    fn end(&mut self) -> Option<thread::JoinHandle<()>> {
        // It may have ended by itself.
        let _ = self.commands.send(Command::Stop);
        self.keeper.take()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.end();
    }
}

async fn tell_of_changes(mut objects: watch::Receiver<Arc<ObjectSet>>, to: mpsc::Sender<Command>) {
    while objects.changed().await.is_ok() {
        objects.mark_unchanged();
        if to.send(Command::ObjectsChanged).is_err() {
            return;
        }
    }
}

/// Held by the one agent of a state folder, from before it touches anything in the kernel.
#[derive(Debug)]
pub struct StateLock {
    _file: Flock<fs::File>,
}

impl StateLock {
    /// Makes the folder and takes its lock. During an upgrade the new agent waits here for the end
    /// of the old one.
    ///
    /// # Errors
    ///
    /// The folder can't be made or locked.
    pub async fn take(state_dir: &Path) -> Result<Self, StartError> {
        let at = |source| StartError::Path {
            path: state_dir.to_owned(),
            source,
        };
        fs::create_dir_all(state_dir).map_err(at)?;
        // The state names pods and addresses, which is nobody else's business.
        fs::set_permissions(state_dir, fs::Permissions::from_mode(0o700)).map_err(at)?;
        let path = state_dir.join("agent.lock");
        let mut told = false;
        loop {
            let file = fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(&path)
                .map_err(at)?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(file) => return Ok(Self { _file: file }),
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                    if !told {
                        tracing::info!(path = %path.display(), "another agent runs: waiting for its end");
                        told = true;
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Err((_, errno)) => return Err(at(errno.into())),
            }
        }
    }
}

/// Whether an agent runs with this state folder.
pub fn is_running(state_dir: &Path) -> bool {
    let Ok(file) = fs::File::open(state_dir.join("agent.lock")) else {
        return false;
    };
    matches!(
        Flock::lock(file, FlockArg::LockExclusiveNonblock),
        Err((_, nix::errno::Errno::EWOULDBLOCK))
    )
}
