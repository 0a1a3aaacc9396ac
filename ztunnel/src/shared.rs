//! What every task of the proxy reads: settings, configuration, certificates, the pool, telemetry.

use std::net::SocketAddr;
use std::sync::Arc;

use seine_hbone::{CopyOptions, Pool, Settings};
use seine_identity::CertificateManager;
use seine_telemetry::Readiness;
use seine_workload::Store;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::config::Config;
use crate::connection::Connections;
use crate::descriptors::Descriptors;
use crate::dns::DnsOptions;
use crate::drain::Lifetime;
use crate::listeners::Ports;
use crate::sockets;
use crate::telemetry::Telemetry;
use crate::trust::Trust;
use crate::vital::Vital;

/// The threads that move bytes, each with tunnels of its own.
pub(crate) type Workers = seine_workers::Workers<Pool>;
/// One of them. A pod has one as its home, where its listeners and its DNS are.
pub(crate) type Worker = seine_workers::Worker<Pool>;
/// The place of a connection or tunnel on one.
pub(crate) type Place = seine_workers::Place<Pool>;

/// Shared by all tasks, and unchanged for the life of the process but for what locks itself.
pub struct Shared {
    /// The settings.
    pub config: Config,
    /// What the control plane sent. Written by the xDS task alone.
    pub store: Arc<Store>,
    /// The certificates of the pods' identities.
    pub certificates: CertificateManager,
    /// Whether the peers of live tunnels are trusted still.
    pub(crate) trust: Trust,
    /// The threads that move bytes, and their tunnels to other proxies.
    pub workers: Workers,
    /// Sizes and times of tunnels.
    pub hbone: Arc<Settings>,
    /// Limits of connections that stand; each pod has its own memory.
    pub copy: CopyOptions,
    /// The process's file descriptors.
    pub descriptors: Arc<Descriptors>,
    /// Live connections.
    pub connections: Arc<Connections>,
    /// Metrics and access log.
    pub telemetry: Telemetry,
    /// How the DNS proxy serves.
    pub dns: DnsOptions,
    /// The state of the control plane's stream.
    pub control_plane: watch::Sender<seine_xds::Status>,
    /// Whether there is a configuration: the control plane's, or the last good one from disk. Before, nothing is accepted:
    /// an address that the mesh does not know goes out in plaintext, and without a configuration that is every one.
    pub configured: watch::Sender<bool>,
    /// The tasks without which the process ends.
    pub vital: Vital,
    /// What the process waits for before it is ready.
    pub readiness: Readiness,
    /// The life of the process; that of each pod is a child.
    pub life: Lifetime,
    /// The ports that this proxy listens on.
    pub ports: Ports,
    /// What a test without privileges replaces.
    pub environment: Environment,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("node", &self.config.node)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// There is a configuration from now on.
    pub fn set_configured(&self) {
        self.configured.send_replace(true);
        self.readiness.done("configuration");
    }

    /// Waits until there is a configuration.
    pub async fn configured(&self) {
        // Fails only when the sender is gone, which `self` holds.
        let _ = self
            .configured
            .subscribe()
            .wait_for(|configured| *configured)
            .await;
    }
}

/// What of the kernel's doing a test on loopback and without privileges replaces.
#[derive(Clone, Copy, Debug)]
pub struct Environment {
    /// Where a redirected connection wanted to go.
    pub original_destination: fn(&TcpStream) -> Option<SocketAddr>,
    /// The application sees the client's own address as the source. Needs CAP_NET_ADMIN.
    pub preserve_client: bool,
    /// Addresses of 127/8 are taken for those of pods.
    pub loopback_is_remote: bool,
}

impl Default for Environment {
    fn default() -> Self {
        Self {
            original_destination: sockets::original_destination,
            preserve_client: true,
            loopback_is_remote: false,
        }
    }
}
