//! The server that the CNI plugin asks: it waits, with a bound, for a pod's object to appear, and
//! passes the request to the keeper.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use seine_cni::api::Attachment;
use seine_cni::api::MAX_MESSAGE;
use seine_cni::api::Request;
use seine_cni::api::Response;
use seine_objects::ObjectSet;
use seine_objects::pods;
use seine_telemetry::Readiness;
use seine_telemetry::limited;
use tokio::sync::oneshot;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio::time::timeout;
use tokio::time::timeout_at;

use crate::config::Config;
use crate::door;
use crate::door::Door;
use crate::keeper::Command;
use crate::keeper::PODS;
use crate::keeper::REDIRECTION;
use crate::metrics::Metrics;
use crate::plan;
use crate::seqpacket::Connection;
use crate::seqpacket::Listener;

/// A plugin sends its request at once.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// Readiness conditions without which no pod can be enrolled.
const ENROLS: [&str; 2] = [REDIRECTION, PODS];

/// What the server works with; cloning shares.
#[derive(Clone)]
pub(crate) struct CniServer {
    pub(crate) config: Arc<Config>,
    pub(crate) commands: Sender<Command>,
    pub(crate) objects: watch::Receiver<Arc<ObjectSet>>,
    pub(crate) readiness: Readiness,
    pub(crate) metrics: Metrics,
}

impl CniServer {
    /// Serves plugins until the future is dropped.
    pub(crate) async fn serve(self, listener: Listener, door: Door) {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let connection = listener.next("a CNI plugin").await;
            while connections.try_join_next().is_some() {}
            if let Err(reason) = door.admit(&connection) {
                Metrics::count(&self.metrics.refused_peers, "cni");
                limited!(door::REFUSED, "cni", warn: %reason, "refused a process that came as a CNI plugin");
                continue;
            }
            let server = self.clone();
            connections.spawn(async move {
                if let Err(error) = server.converse(&connection).await {
                    tracing::warn!(%error, "request of the CNI plugin");
                }
            });
        }
    }

    async fn converse(&self, connection: &Connection) -> io::Result<()> {
        let received = timeout(REQUEST_TIMEOUT, connection.receive(MAX_MESSAGE)).await??;
        let Some((message, descriptors)) = received else {
            return Ok(());
        };
        let response = match serde_json::from_slice::<Request>(&message) {
            Ok(request) => {
                tracing::debug!(?request, "CNI");
                self.answer(request, descriptors).await
            }
            Err(error) => failed(format!("the request can't be read: {error}")),
        };
        let kind = match &response {
            Response::Enrolled => "enrolled",
            Response::NotEnrolled { .. } => "not-enrolled",
            Response::Done => "done",
            Response::Failed { reason } => {
                tracing::warn!(%reason, "the CNI plugin's request failed");
                "failed"
            }
        };
        Metrics::count(&self.metrics.cni_requests, kind);
        connection.send(&serde_json::to_vec(&response)?, &[]).await
    }

    async fn answer(&self, request: Request, descriptors: Vec<OwnedFd>) -> Response {
        match request {
            Request::Add(attachment) => self.add(attachment, descriptors).await,
            Request::Check(attachment) => {
                let uid = self.key_of(&attachment);
                self.ask(|reply| Command::Check {
                    attachment,
                    uid,
                    reply,
                })
                .await
            }
            Request::Del { container_id } => {
                self.ask(|reply| Command::Delete {
                    container_id,
                    reply,
                })
                .await
            }
            Request::Gc { valid_containers } => {
                self.ask(|reply| Command::CollectGarbage {
                    valid_containers,
                    reply,
                })
                .await
            }
            // Whether the chain has the plugin is not for the plugin to ask.
            Request::Status if ENROLS.iter().all(|name| !self.readiness.is_pending(name)) => {
                Response::Done
            }
            Request::Status => failed("the agent is not ready; /healthz/ready says why".to_owned()),
        }
    }

    async fn add(&self, attachment: Attachment, descriptors: Vec<OwnedFd>) -> Response {
        let Ok([netns]) = <[OwnedFd; 1]>::try_from(descriptors) else {
            return failed(
                "the request must come with one descriptor, the network namespace".to_owned(),
            );
        };
        if let Err(reason) = self.wait_for_object(&attachment).await {
            return failed(reason);
        }
        let uid = self.key_of(&attachment);
        self.ask(|reply| Command::Add {
            attachment,
            uid,
            netns,
            reply,
        })
        .await
    }

    /// Waits until the pod's object is there, where it matters.
    async fn wait_for_object(&self, attachment: &Attachment) -> Result<(), String> {
        let deadline = Instant::now() + self.config.pod_wait;
        let mut objects = self.objects.clone();
        loop {
            let now = objects.borrow_and_update().clone();
            let namespace = now.namespace(&attachment.namespace);
            if namespace.is_some_and(|n| !plan::may_enrol(n, &self.config.enrolment)) {
                return Ok(());
            }
            if namespace.is_some() && self.is_there(&now, attachment) {
                return Ok(());
            }
            match timeout_at(deadline, objects.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err("the agent is shutting down".to_owned()),
                Err(_) => return Err(unknown(attachment)),
            }
        }
    }

    fn is_there(&self, objects: &ObjectSet, attachment: &Attachment) -> bool {
        let pod = objects.pod(&attachment.namespace, &attachment.name);
        pod.is_some_and(|pod| match (&attachment.uid, pods::node_uid(pod)) {
            (Some(wanted), Some(found)) => wanted == found,
            _ => true,
        })
    }

    /// Of a namespace that is not opted in, a pod whose object did not come yet is kept under its
    /// sandbox's identifier: it can't be told from one that never comes.
    fn key_of(&self, attachment: &Attachment) -> String {
        let uid = self.uid_of(attachment);
        uid.unwrap_or_else(|| attachment.container_id.clone())
    }

    fn uid_of(&self, attachment: &Attachment) -> Option<String> {
        attachment.uid.clone().or_else(|| {
            let objects = self.objects.borrow();
            let pod = objects.pod(&attachment.namespace, &attachment.name)?;
            // A pod of a hand-written file may have none: its name is as good there.
            let name = || format!("{}.{}", attachment.namespace, attachment.name);
            Some(pods::node_uid(pod).map_or_else(name, str::to_owned))
        })
    }

    async fn ask(&self, command: impl FnOnce(oneshot::Sender<Response>) -> Command) -> Response {
        let (reply, response) = oneshot::channel();
        let stopping = || failed("the agent is shutting down".to_owned());
        if self.commands.send(command(reply)).is_err() {
            return stopping();
        }
        response.await.unwrap_or_else(|_| stopping())
    }
}

fn failed(reason: String) -> Response {
    Response::Failed { reason }
}

fn unknown(attachment: &Attachment) -> String {
    format!(
        "pod {}/{} is not among the objects that the agent sees; it may come: try again",
        attachment.namespace, attachment.name
    )
}
