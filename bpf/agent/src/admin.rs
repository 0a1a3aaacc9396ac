//! The agent's pages: status, metrics, readiness. On loopback, for the node's operators.

use std::sync::Arc;

use prometheus_client::registry::Registry;
use seine_telemetry::Readiness;
use seine_telemetry::http;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::cni_chain::ChainStatus;
use crate::metrics::Metrics;
use crate::redirector::Redirector;
use crate::served::PodStatus;

const PAGES: [&str; 4] = ["/status", "/metrics", "/healthz/ready", "/healthz/live"];

/// What the pages show; cloning shares.
#[derive(Clone)]
pub(crate) struct Pages {
    pub(crate) node: String,
    pub(crate) readiness: Readiness,
    pub(crate) status: watch::Receiver<Arc<Vec<PodStatus>>>,
    pub(crate) chain: Option<watch::Receiver<ChainStatus>>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) metrics: Metrics,
    pub(crate) redirector: Arc<dyn Redirector>,
}

/// Serves the pages until the future is dropped.
pub(crate) async fn serve(listener: TcpListener, pages: Pages) {
    http::serve(listener, move |request| {
        let pages = pages.clone();
        async move {
            match request.uri().path() {
                "/healthz/ready" => pages.readiness.page(),
                "/status" => pages.status().await,
                "/metrics" => pages.metrics().await,
                "/healthz/live" => http::json(&json!({"alive": true})),
                _ => http::not_found(&PAGES),
            }
        }
    })
    .await;
}

/// Serves the probes alone until the future is dropped.
pub(crate) async fn serve_idle(listener: TcpListener, readiness: Readiness) {
    http::serve(listener, move |request| {
        let readiness = readiness.clone();
        async move {
            match request.uri().path() {
                "/healthz/ready" => readiness.page(),
                "/healthz/live" => http::json(&json!({"alive": true})),
                _ => http::not_found(&["/healthz/ready", "/healthz/live"]),
            }
        }
    })
    .await;
}

/// Serves the metrics alone until the future is dropped.
pub(crate) async fn serve_metrics(listener: TcpListener, pages: Pages) {
    http::serve(listener, move |request| {
        let pages = pages.clone();
        async move {
            match request.uri().path() {
                "/metrics" => pages.metrics().await,
                _ => http::not_found(&["/metrics"]),
            }
        }
    })
    .await;
}

impl Pages {
    async fn status(&self) -> http::Response {
        let pods = self.status.borrow().clone();
        let redirection = match self.kernel(|r| r.status()).await {
            Some(Ok(status)) => json!(status),
            Some(Err(error)) => json!({"error": error.to_string()}),
            None => json!(null),
        };
        http::json(&json!({
            "node": self.node,
            "version": env!("CARGO_PKG_VERSION"),
            "ready": self.readiness.is_ready(),
            "cni": self.chain.as_ref().map(|chain| chain.borrow().clone()),
            "pods": *pods,
            "redirection": redirection,
        }))
    }

    async fn metrics(&self) -> http::Response {
        if let Some(Ok(counters)) = self.kernel(|r| r.counters()).await {
            for (counter, value) in counters {
                Metrics::set(&self.metrics.redirection, counter.name(), value);
            }
        }
        http::metrics(&self.registry)
    }

    /// System calls, off the runtime's threads; `None` if it is shutting down.
    async fn kernel<T: Send + 'static>(
        &self,
        question: impl FnOnce(&dyn Redirector) -> T + Send + 'static,
    ) -> Option<T> {
        let redirector = self.redirector.clone();
        tokio::task::spawn_blocking(move || question(redirector.as_ref()))
            .await
            .ok()
    }
}
