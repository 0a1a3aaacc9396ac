//! The driver: keeps a stream open, hands responses to the handler and sends the answers.

use std::convert::Infallible;
use std::sync::Arc;

use futures::StreamExt;
use seine_proto::discovery::DeltaDiscoveryResponse;
use tokio::sync::{mpsc, watch};

use crate::backoff::Backoff;
use crate::connect::{Connect, ConnectError};
use crate::handler::Handler;
use crate::protocol::Protocol;
use crate::status::{Connection, Status};

/// Answers that may wait to be sent; each waits for the one before, so few do.
const PENDING_REQUESTS: usize = 16;

/// A delta xDS client.
pub struct Client<C> {
    connect: C,
    handler: Arc<dyn Handler>,
    protocol: Protocol,
    status: watch::Sender<Status>,
}

/// How a stream ended.
enum Ended {
    ByServer,
    Failed(ConnectError),
}

impl<C: Connect> Client<C> {
    /// A client that does nothing until it is run.
    pub fn new(connect: C, protocol: Protocol, handler: Arc<dyn Handler>) -> Self {
        let waiting_for = protocol.waiting_for().map(str::to_owned).collect();
        let status = watch::Sender::new(Status {
            waiting_for,
            ..Status::default()
        });
        Self {
            connect,
            handler,
            protocol,
            status,
        }
    }

    /// Tells of every change of the client's state.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Connects, and connects again whenever the stream ends; never returns. Dropping the future
    /// closes the stream.
    pub async fn run(mut self) -> Infallible {
        let mut backoff = Backoff::default();
        loop {
            let because = match self.stream(&mut backoff).await {
                Ended::ByServer => "the control plane closed the stream".to_owned(),
                Ended::Failed(error) => error.to_string(),
            };
            let wait = backoff.after_failure(&mut rand::rng());
            tracing::warn!(
                because,
                ?wait,
                "no configuration stream; keeping what is held"
            );
            self.status
                .send_modify(|s| s.connection = Connection::Waiting { because });
            tokio::time::sleep(wait).await;
        }
    }

    /// One stream from its beginning to its end.
    async fn stream(&mut self, backoff: &mut Backoff) -> Ended {
        let handler = self.handler.clone();
        let opening = self.protocol.open(|type_url| handler.held(type_url));
        let (requests, receiver) = mpsc::channel(PENDING_REQUESTS.max(opening.len()));
        for request in opening {
            requests
                .try_send(request)
                .expect("the channel has room for the opening requests");
        }
        let mut responses = match self.connect.connect(receiver).await {
            Ok(responses) => responses,
            Err(error) => return Ended::Failed(error),
        };
        tracing::info!("configuration stream is open");
        self.status
            .send_modify(|s| s.connection = Connection::Connected);
        while let Some(response) = responses.next().await {
            let response = match response {
                Ok(response) => response,
                Err(error) => return Ended::Failed(error),
            };
            backoff.reset();
            if let Err(unknown) = self.protocol.check(&response) {
                tracing::warn!(%unknown, "ignored");
                continue;
            }
            let answer = self.apply(response).await;
            if requests.send(answer).await.is_err() {
                // The stream's sending half is gone; its receiving half says why.
                continue;
            }
        }
        Ended::ByServer
    }

    /// Applies a response on a thread that may take its time, then answers it.
    async fn apply(
        &mut self,
        response: DeltaDiscoveryResponse,
    ) -> seine_proto::discovery::DeltaDiscoveryRequest {
        let handler = self.handler.clone();
        let apply = move || {
            let DeltaDiscoveryResponse {
                type_url,
                resources,
                removed_resources,
                ..
            } = &response;
            let refused = handler.apply(type_url, resources, removed_resources);
            (response, refused)
        };
        let (response, refused) = match tokio::task::spawn_blocking(apply).await {
            Ok(applied) => applied,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime is shutting down.
                Err(_) => std::future::pending().await,
            },
        };
        for refused in &refused {
            let (name, problem) = (&refused.name, &refused.problem);
            tracing::warn!(
                name,
                problem,
                "the control plane sent a resource that is refused"
            );
        }
        tracing::debug!(
            type_url = response.type_url,
            resources = response.resources.len(),
            removed = response.removed_resources.len(),
            refused = refused.len(),
            "applied"
        );
        let answer = self.protocol.answer(&response, &refused);
        self.status.send_if_modified(|status| {
            let waiting_for: Vec<_> = self.protocol.waiting_for().map(str::to_owned).collect();
            let now = Status {
                connection: status.connection.clone(),
                ready: waiting_for.is_empty(),
                waiting_for,
                refused: self.protocol.refused().clone(),
            };
            let changed = *status != now;
            *status = now;
            changed
        });
        answer
    }
}
