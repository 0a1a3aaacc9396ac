//! One pod as this proxy serves it: who it is, where its sockets are made, what it may use, how long it lives.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use seine_hbone::{
    Connected, Connector, CopyOptions, DrainSignal, DrainTrigger, Io, Memory, TrustWatch, TunnelKey,
};
use seine_identity::{CertificateManager, Identity};
use seine_workload::Workload;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::drain::Lifetime;
use crate::limits::PodLimits;
use crate::listeners::Ports;
use crate::shared::{Shared, Worker};
use crate::sockets::{Dialer, Source};
use crate::trust::Trust;
use crate::zds::PodInfo;

/// Tells the pods apart that had one address after the other.
static GENERATION: AtomicU64 = AtomicU64::new(1);

/// A pod that is served.
pub struct Pod {
    /// As the agent named it.
    pub info: PodInfo,
    /// What it proves to be.
    pub identity: Identity,
    /// Makes connections from its network namespace.
    pub dialer: Dialer,
    /// Its proxy's ports.
    pub ports: Ports,
    /// What it may use.
    pub limits: PodLimits,
    /// Limits of its connections that stand.
    pub copy: CopyOptions,
    /// How long it lives.
    pub life: Lifetime,
    /// Makes its tunnels.
    pub connector: Arc<dyn Connector>,
    /// The thread that its listeners and connections are on.
    pub home: Arc<Worker>,
    /// Which of the pods that this process has served, by number.
    pub generation: u64,
    /// Its listeners are there, and accepted from.
    served: AtomicBool,
    drain: DrainTrigger,
    draining: DrainSignal,
}

impl Pod {
    /// A pod, before its listeners are accepted from.
    pub fn new(shared: &Shared, info: PodInfo, identity: Identity, dialer: Dialer) -> Self {
        let (drain, draining) = seine_hbone::drain();
        let limits = PodLimits::new(&shared.config, &shared.descriptors);
        Self {
            copy: CopyOptions {
                memory: Some(Memory::new(shared.config.max_stalled_memory.get() as usize)),
                ..shared.copy.clone()
            },
            life: shared.life.child(),
            generation: GENERATION.fetch_add(1, Ordering::Relaxed),
            ports: shared.ports,
            home: shared.workers.home(),
            connector: Arc::new(PodConnector {
                dialer: dialer.clone(),
                certificates: shared.certificates.clone(),
                trust: shared.trust.clone(),
                handshakes: limits.handshakes().clone(),
            }),
            limits,
            info,
            identity,
            dialer,
            served: AtomicBool::new(false),
            drain,
            draining,
        }
    }

    /// What the control plane says of the pod; none until it has.
    pub fn workload(&self, shared: &Shared) -> Option<Arc<Workload>> {
        let found = shared.store.pod(
            &shared.config.cluster_id,
            &self.info.namespace,
            &self.info.name,
        )?;
        // A resource that names another service account is about another pod of this name.
        (found.identity.service_account() == self.info.service_account).then_some(found)
    }

    /// Its listeners have come.
    pub fn set_served(&self) {
        self.served.store(true, Ordering::Release);
    }

    /// Whether its listeners have come.
    pub fn is_served(&self) -> bool {
        self.served.load(Ordering::Acquire)
    }

    /// For a tunnel's server side: when to say GOAWAY.
    pub fn draining(&self) -> DrainSignal {
        self.draining.clone()
    }

    /// Stops accepting, lets tunnels say GOAWAY, waits for live connections until `deadline`, then resets them. Returns
    /// how many were reset.
    pub async fn drain(&self, deadline: Duration) -> usize {
        // Tunnels have a little longer, so that it is their streams that end, each with its own word in the log.
        self.drain
            .drain(Instant::now() + deadline + Duration::from_secs(1));
        self.life.drain(deadline).await
    }

    /// The address that a connection of the pod comes from, for the wire: the application's own, if it can be that.
    pub fn source_address(
        &self,
        shared: &Shared,
        client: SocketAddr,
        to: IpAddr,
    ) -> Option<IpAddr> {
        let client = client.ip().to_canonical();
        if client.is_ipv4() == to.is_ipv4()
            && (!client.is_loopback() || shared.environment.loopback_is_remote)
        {
            return Some(client);
        }
        let workload = self.workload(shared)?;
        workload
            .addresses
            .iter()
            .copied()
            .find(|address| address.is_ipv4() == to.is_ipv4())
    }
}

impl fmt::Debug for Pod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.info.namespace, self.info.name)
    }
}

/// Makes the tunnels of one pod: TCP from its namespace, TLS as its identity.
#[derive(Debug)]
pub struct PodConnector {
    /// Makes the TCP connections.
    pub dialer: Dialer,
    /// Gives the certificates.
    pub certificates: CertificateManager,
    pub(crate) trust: Trust,
    /// Turns for handshakes.
    pub handshakes: Arc<Semaphore>,
}

impl Connector for PodConnector {
    fn connect<'a>(
        &'a self,
        key: &'a TunnelKey,
    ) -> std::pin::Pin<Box<dyn Future<Output = std::io::Result<Connected>> + Send + 'a>> {
        Box::pin(async move {
            let credentials = self
                .certificates
                .get(&key.source)
                .await
                .map_err(std::io::Error::other)?;
            let tls = credentials
                .client_config(&key.destinations)
                .map_err(std::io::Error::other)?;
            let source = if key.source_address.is_unspecified() {
                Source::Any
            } else {
                Source::Own(key.source_address)
            };
            let stream = self.dialer.connect(key.peer, source).await?;
            Ok(Connected {
                io: Io::from(stream),
                tls,
                // Never closed.
                turn: self.handshakes.clone().acquire_owned().await.ok(),
            })
        })
    }

    fn watch_trust(&self) -> TrustWatch {
        self.trust.watch()
    }
}
