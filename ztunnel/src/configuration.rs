//! The control plane's stream into the store.
//!
//! One task runs the client for the life of the process; it writes the store, and nobody else does. What is held stays
//! in force whatever happens to the stream.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, bail};
use seine_xds::{Client, Connection, Grpc, GrpcOptions, NodeInfo, Protocol, Status};
use tokio::sync::watch;
use tracing::info;

use crate::app::host_of;
use crate::config::Config;
use crate::shared::Shared;

/// Starts the task that follows the control plane.
pub fn start(shared: &Arc<Shared>) -> anyhow::Result<()> {
    let config = &shared.config;
    let Some(address) = config.xds_address.clone() else {
        if *shared.configured.borrow() {
            return Ok(());
        }
        bail!(
            "--xds-address says where configuration comes from; without it, --state-dir must hold a good copy"
        );
    };
    let server_name = match &config.server_name {
        Some(name) => name.clone(),
        None => {
            host_of(&address).with_context(|| format!("--xds-address {address:?} has no host"))?
        }
    };
    let connect = Grpc::new(GrpcOptions {
        address,
        roots_file: config
            .ca_roots
            .clone()
            .context("--ca-roots says whom to trust as the control plane")?,
        server_name,
        token_file: config
            .token_file
            .clone()
            .context("--token-file authenticates this proxy")?,
        cluster_id: config.cluster_id.clone(),
    });
    let client = Client::new(connect, Protocol::new(&node(config)), shared.store.clone());
    tokio::spawn(watch_status(shared.clone(), client.status()));
    let stop = shared.life.cut().clone();
    tokio::spawn(async move {
        tokio::select! {
            never = client.run() => match never {},
            () = stop.cancelled() => {}
        }
    });
    Ok(())
}

fn node(config: &Config) -> NodeInfo {
    NodeInfo {
        address: config.proxy_ip,
        pod: config.proxy_name.clone(),
        namespace: config.proxy_namespace.clone(),
        node: config.node.clone(),
        metadata: BTreeMap::new(),
    }
}

/// Says when the first configuration is there, and until then why it isn't.
async fn watch_status(shared: Arc<Shared>, mut status: watch::Receiver<Status>) {
    loop {
        let now = status.borrow_and_update().clone();
        shared.control_plane.send_replace(now.clone());
        if now.ready {
            if !*shared.configured.borrow() {
                info!(counts = ?shared.store.counts(), "the control plane's configuration is there");
            }
            shared.set_configured();
        } else if !*shared.configured.borrow() {
            let why = match &now.connection {
                Connection::Connecting => "connecting to the control plane".to_owned(),
                Connection::Connected => format!(
                    "the control plane has not sent {}",
                    now.waiting_for.join(", ")
                ),
                Connection::Waiting { because } => because.clone(),
            };
            shared.readiness.pending("configuration", why);
        }
        if status.changed().await.is_err() {
            return;
        }
    }
}
