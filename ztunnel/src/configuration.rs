//! The control plane's stream into the store.
//!
//! One task runs the client for the life of the process; it writes the store, and nobody else does. What is held stays
//! in force whatever happens to the stream.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use seine_xds::{Client, Connection, Grpc, GrpcOptions, NodeInfo, Protocol, Status};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::app::host_of;
use crate::config::Config;
use crate::shared::Shared;

/// How long a control plane that is not known to be away has to say what changed while this proxy was, before the last
/// good configuration is served: a policy that came meanwhile holds from the first connection on. Clients wait so long.
const HEAD_START: Duration = Duration::from_secs(2);

/// Starts the task that follows the control plane. `saved`: the store holds the last good configuration.
pub fn start(shared: &Arc<Shared>, saved: bool) -> anyhow::Result<()> {
    let config = &shared.config;
    let Some(address) = config.xds_address.clone() else {
        if saved {
            shared.set_configured();
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
    let status = watch_status(shared.clone(), client.status(), saved);
    shared.vital.spawn("status of the control plane", status);
    let stop = shared.life.cut().clone();
    shared.vital.spawn("control plane", async move {
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
async fn watch_status(shared: Arc<Shared>, mut status: watch::Receiver<Status>, saved: bool) {
    let mut head_start = pin!(tokio::time::sleep(HEAD_START));
    loop {
        let now = status.borrow_and_update().clone();
        shared.control_plane.send_replace(now.clone());
        if now.ready {
            if !*shared.configured.borrow() {
                info!(counts = ?shared.store.counts(), "the control plane's configuration is there");
            }
            shared.set_configured();
        } else if *shared.configured.borrow() {
            // What is there stays in force.
        } else if saved
            && (head_start.is_elapsed() || matches!(now.connection, Connection::Waiting { .. }))
        {
            warn!("the last good configuration is served until the control plane's comes");
            shared.set_configured();
        } else {
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
        tokio::select! {
            changed = status.changed() => if changed.is_err() { return },
            () = &mut head_start, if !head_start.is_elapsed() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::app::share;
    use crate::shared::Environment;
    use crate::testing::NoSource;

    #[tokio::test(start_paused = true)]
    async fn a_saved_configuration_is_served_when_the_control_plane_is_away_or_slow() {
        let away = || Connection::Waiting {
            because: "refused".into(),
        };
        for (what, connection, ready, saved, served_after) in [
            ("away", away(), false, true, Some(Duration::ZERO)),
            (
                "slow",
                Connection::Connecting,
                false,
                true,
                Some(HEAD_START),
            ),
            (
                "silent",
                Connection::Connected,
                false,
                true,
                Some(HEAD_START),
            ),
            (
                "there",
                Connection::Connected,
                true,
                true,
                Some(Duration::ZERO),
            ),
            ("away, and nothing saved", away(), false, false, None),
            (
                "slow, and nothing saved",
                Connection::Connecting,
                false,
                false,
                None,
            ),
        ] {
            let config = Config::defaults();
            let shared = share(config, Arc::new(NoSource), Environment::default()).unwrap();
            let began = Instant::now();
            let status = watch::Sender::new(Status {
                connection,
                ready,
                ..Status::default()
            });
            tokio::spawn(watch_status(shared.clone(), status.subscribe(), saved));
            let served = tokio::time::timeout(HEAD_START * 10, shared.configured()).await;
            let after = served.ok().map(|()| began.elapsed());
            // Timers are as coarse as a millisecond.
            let whole = after.map(|after| Duration::from_secs(after.as_secs()));
            assert_eq!(whole, served_after, "{what}");
        }
    }
}
