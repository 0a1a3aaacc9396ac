//! An agent's life: it serves until it is told to stop, which releases nobody, or until the cluster asks it
//! to leave the node, which releases everybody.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use futures::StreamExt;
use kube::Client;
use seine_objects::ObjectSet;
use seine_telemetry::Readiness;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::Agent;
use crate::Config;
use crate::Redirector;
use crate::StartError;
use crate::StateLock;
use crate::UninstallError;
use crate::admin;
use crate::agent::SOCKETS;
use crate::cluster::ClusterSettings;
use crate::cluster::KUBECONFIG_FILE;
use crate::cluster::Reports;
use crate::cluster::ServiceAccount;
use crate::cluster::uninstall;
use crate::cluster::uninstall::AgentPod;
use crate::cluster::uninstall::Agents;
use crate::cni_chain;
use crate::last_known;
use crate::redirect::Redirect;
use crate::redirect::RedirectConfig;
use crate::redirect::RedirectError;

/// Between two tries of a step of an uninstall.
const RETRY: Duration = Duration::from_secs(2);
/// Readiness condition of an agent that has left its node.
const UNINSTALLED: &str = "uninstalled";

/// The cluster that the agent belongs to.
pub struct Cluster {
    /// Its API server.
    pub client: Client,
    /// By which the agent is known there, where it runs as a pod.
    pub account: Option<ServiceAccount>,
    /// The agents.
    pub agents: Agents,
    /// This one.
    pub pod: String,
    /// Take the start-up taint off the node.
    pub startup_taint: bool,
}

/// What a service does to the kernel.
pub trait Kernel: Send + Sync + 'static {
    /// Loads and attaches the programs, or takes over what is there.
    ///
    /// # Errors
    ///
    /// The node lacks something.
    fn load(&self) -> Result<Arc<dyn Redirector>, RedirectError>;

    /// Releases every pod and removes everything. No agent runs.
    ///
    /// # Errors
    ///
    /// Something may be left.
    fn clean(&self, state_dir: &Path) -> Result<(), UninstallError>;
}

impl Kernel for RedirectConfig {
    fn load(&self) -> Result<Arc<dyn Redirector>, RedirectError> {
        Ok(Arc::new(Redirect::load(self.clone())?))
    }

    fn clean(&self, state_dir: &Path) -> Result<(), UninstallError> {
        crate::uninstall(self.clone(), state_dir)
    }
}

/// Why a service ends by itself.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The agent does not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The programs can't be loaded.
    #[error("load the programs: {0}")]
    Load(#[from] RedirectError),
    /// A task of ours panicked, which its log line says.
    #[error("a task panicked")]
    Panicked,
}

/// Serves until `stop`, or until an uninstall that was asked for is asked for no more.
///
/// # Errors
///
/// See [`ServiceError`].
pub async fn serve(
    config: Config,
    kernel: Arc<dyn Kernel>,
    objects: watch::Receiver<Arc<ObjectSet>>,
    cluster: Option<Cluster>,
    stop: impl Future<Output = ()>,
) -> Result<(), ServiceError> {
    tokio::pin!(stop);
    let Some(cluster) = cluster else {
        let agent = start(&config, kernel, objects).await?;
        stop.await;
        tracing::info!("stopping; the pods stay enrolled");
        agent.stop().await;
        return Ok(());
    };
    // An agent that starts during an uninstall enrols nobody first. With the API server away it can't be
    // asked, and the pods of this node need their agent.
    let asked = match cluster.agents.asked(&cluster.client).await {
        Ok(asked) => asked,
        Err(error) => {
            tracing::warn!(%error, "whether the mesh is to be uninstalled is not known yet");
            None
        }
    };
    let mut requests = Box::pin(cluster.agents.watch(&cluster.client));
    let mut value = match asked {
        Some(value) => value,
        None => {
            let mut agent = start(&config, kernel.clone(), objects.clone()).await?;
            let settings = ClusterSettings {
                node: config.node.clone(),
                startup_taint: cluster.startup_taint,
                enrolment: config.enrolment.clone(),
                account: cluster.account.clone(),
                kubeconfig: config.state_dir.join(KUBECONFIG_FILE),
            };
            let reports = Reports::start(&cluster.client, settings, &agent, objects.clone());
            let asked = tokio::select! {
                () = &mut stop => None,
                value = next_request(&mut requests) => Some(value),
            };
            if asked.is_some() {
                // While the agent still answers the plugin; if it fails it is tried again below.
                agent.let_chain_be();
                leave_chain(&config);
            }
            reports.stop().await;
            agent.stop().await;
            match asked {
                Some(value) => value,
                None => {
                    tracing::info!("stopping; the pods stay enrolled");
                    return Ok(());
                }
            }
        }
    };
    tracing::warn!(%value, "the mesh is uninstalled: every pod of this node is released");
    loop {
        let left = async {
            leave(&config, &kernel, &objects, &cluster, &value).await?;
            tracing::info!("nothing of the mesh is left on this node");
            idle(&config).await
        };
        tokio::select! {
            () = &mut stop => return Ok(()),
            ended = left => return ended,
            other = next_other(&mut requests, &value) => match other {
                // Asked for once more: whoever asks waits for this value in the answer.
                Some(other) => value = other,
                None => {
                    tracing::info!("the uninstall was called off: starting anew");
                    return Ok(());
                }
            },
        }
    }
}

/// The first request, once there is one.
async fn next_request(requests: &mut (impl Stream<Item = Option<String>> + Unpin)) -> String {
    loop {
        match requests.next().await {
            Some(Some(value)) => return value,
            Some(None) => {}
            // A watch has no end.
            None => std::future::pending().await,
        }
    }
}

/// What is asked for instead of `value`.
async fn next_other(
    requests: &mut (impl Stream<Item = Option<String>> + Unpin),
    value: &str,
) -> Option<String> {
    loop {
        match requests.next().await {
            Some(other) if other.as_deref() != Some(value) => return other,
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

async fn start(
    config: &Config,
    kernel: Arc<dyn Kernel>,
    objects: watch::Receiver<Arc<ObjectSet>>,
) -> Result<Agent, ServiceError> {
    let lock = StateLock::take(&config.state_dir).await?;
    let redirector = tokio::task::spawn_blocking(move || kernel.load())
        .await
        .map_err(|_| ServiceError::Panicked)??;
    let agent = Agent::start(lock, config.clone(), redirector, objects).await?;
    tracing::info!(admin = %agent.admin_address(), "running");
    Ok(agent)
}

/// Each step again until it succeeds: who asked waits for the answer, and sees in the log why there is none.
async fn leave(
    config: &Config,
    kernel: &Arc<dyn Kernel>,
    objects: &watch::Receiver<Arc<ObjectSet>>,
    cluster: &Cluster,
    value: &str,
) -> Result<(), ServiceError> {
    while !leave_chain(config) {
        tokio::time::sleep(RETRY).await;
    }
    loop {
        let (kernel, state_dir) = (kernel.clone(), config.state_dir.clone());
        let cleaned = tokio::task::spawn_blocking(move || kernel.clean(&state_dir))
            .await
            .map_err(|_| ServiceError::Panicked)?;
        match cleaned {
            Ok(()) => break,
            Err(error) => tracing::error!(%error, "release the pods of this node"),
        }
        tokio::time::sleep(RETRY).await;
    }
    last_known::remove_all(&config.state_dir);
    for name in SOCKETS {
        // Nobody looks at what is left of them: the plugin is out of the chain.
        let _ = std::fs::remove_file(config.run_dir.join(name));
    }
    let pod = AgentPod {
        node: config.node.clone(),
        name: cluster.pod.clone(),
    };
    loop {
        let objects = objects.borrow().clone();
        let (client, agents) = (&cluster.client, &cluster.agents);
        let taint = cluster.startup_taint;
        match uninstall::answer(client, &pod, agents, &objects, value, taint).await {
            Ok(()) => return Ok(()),
            Err(error) => tracing::error!(%error, "answer the request to uninstall"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Whether our plugin is out of the chain.
fn leave_chain(config: &Config) -> bool {
    let removed = config.chain.as_ref().map_or(Ok(()), cni_chain::remove);
    if let Err(error) = &removed {
        tracing::error!(%error, "leave the container runtime's chain");
    }
    removed.is_ok()
}

/// Alive and not ready, until the pod is deleted: an end would only be followed by a start.
async fn idle(config: &Config) -> Result<(), ServiceError> {
    let readiness = Readiness::default();
    readiness.pending(UNINSTALLED, "the mesh was uninstalled from this node");
    let address = config.admin_address;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| StartError::Admin { address, source })?;
    admin::serve_idle(listener, readiness).await;
    Ok(())
}

#[cfg(test)]
mod tests;
