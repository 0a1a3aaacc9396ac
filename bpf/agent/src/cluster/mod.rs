//! What the agent tells the API server, and what it is asked there: the annotation of each pod of its
//! node, Events, the start-up taint, the uninstall; and the way there, which the CNI plugin takes while no agent runs.
//!
//! Nothing here decides about a pod: the keeper does, and works on with the API server away. Every
//! request has a limit in time, everything that fails is tried again, and nothing is written that
//! the API server already has.

mod access;
mod annotation;
mod events;
mod pods;
mod taint;
pub mod uninstall;

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use seine_objects::EnrolmentSettings;
use seine_objects::ObjectSet;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use access::KUBECONFIG_FILE;
pub use access::ServiceAccount;
pub use annotation::ENROLLED;
pub use annotation::REFUSED;
pub use taint::STARTUP_TAINT;

use crate::Agent;
use events::Events;

/// Of every write.
pub(crate) const FIELD_MANAGER: &str = "seine-agent";
/// No answer of the API server takes longer, or it is none.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Who this agent is to the API server.
#[derive(Clone, Debug)]
pub struct ClusterSettings {
    /// Its node.
    pub node: String,
    /// Take the start-up taint off the node.
    pub startup_taint: bool,
    /// Who is opted in.
    pub enrolment: EnrolmentSettings,
    /// The account of the agent's pod, if it is one.
    pub account: Option<ServiceAccount>,
    /// Where the CNI plugin finds its copy.
    pub kubeconfig: PathBuf,
}

/// The tasks that tell the API server. Dropping it ends them, and leaves what they wrote.
pub struct Reports {
    tasks: JoinSet<()>,
}

impl Reports {
    /// Begins to tell of the agent's pods, chain and readiness.
    pub fn start(
        client: &Client,
        settings: ClusterSettings,
        agent: &Agent,
        objects: watch::Receiver<Arc<ObjectSet>>,
    ) -> Self {
        let events = Events::new(client.clone(), &settings.node);
        let mut tasks = JoinSet::new();
        tasks.spawn(pods::annotate(
            client.clone(),
            settings.clone(),
            agent.status(),
            objects.clone(),
            events.clone(),
        ));
        if let Some(account) = settings.account.clone() {
            tasks.spawn(access::keep(account, settings.kubeconfig.clone()));
        }
        if let Some(chain) = agent.chain() {
            tasks.spawn(events::of_chain(
                events,
                chain,
                objects.clone(),
                settings.node.clone(),
            ));
        }
        if settings.startup_taint {
            tasks.spawn(taint::remove_when_ready(
                client.clone(),
                settings.node,
                agent.readiness().clone(),
                objects,
            ));
        }
        Self { tasks }
    }

    /// Ends them.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Why a request did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// It took too long.
    #[error("the API server did not answer within {REQUEST_TIMEOUT:?}")]
    Timeout,
    /// It was refused, or the API server can't be reached.
    #[error(transparent)]
    Request(#[from] kube::Error),
}

impl ApiError {
    /// The HTTP status of a refusal.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Request(kube::Error::Api(status)) => Some(status.code),
            _ => None,
        }
    }
}

async fn bounded<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, ApiError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(ApiError::Timeout),
    }
}

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
