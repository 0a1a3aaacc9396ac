//! The admin pages. They tell states and names; nothing secret is known here.

use std::sync::Arc;

use http::StatusCode;
use seine_objects::Problem;
use seine_telemetry::{
    Readiness,
    http::{self as pages, Request, Response},
};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    ca::Authority,
    metrics,
    model::Model,
    publish::{Held, Totals},
    status::{self, ObjectStatus},
    xds::{
        ResourceType,
        client::TypeStream,
        server::{Clients, Entry},
    },
};

const PAGES: [&str; 6] = [
    "/healthz/ready",
    "/status",
    "/debug/clients",
    "/debug/resources",
    "/debug/ca",
    "/metrics",
];

/// What the pages are about.
pub struct Admin {
    /// The latest model.
    pub models: watch::Receiver<Arc<Model>>,
    /// Invalid objects.
    pub problems: watch::Receiver<Arc<Vec<Problem>>>,
    /// Connected proxies.
    pub clients: Clients,
    /// The certificate authority.
    pub authority: Arc<Authority>,
    /// Whether requests can be served.
    pub readiness: Readiness,
}

impl Admin {
    /// The page of a request.
    pub fn page(&self, request: &Request) -> Response {
        match request.uri().path() {
            "/healthz/ready" => self.readiness.page(),
            "/status" => self.status(),
            "/debug/clients" => pages::json(&self.clients()),
            "/debug/resources" => pages::json(&self.resources()),
            "/debug/ca" => page_of(&self.authority.status()),
            "/metrics" => self.metrics(),
            _ => pages::not_found(&PAGES),
        }
    }

    fn status(&self) -> Response {
        let model = self.models.borrow().clone();
        let problems = self.problems.borrow().clone();
        page_of(&report(&model, &self.clients.list(), &problems))
    }

    fn clients(&self) -> Value {
        let generation = self.models.borrow().snapshot.generation;
        let describe = |stream: &TypeStream| {
            json!({
                "current": stream.is_current(generation),
                "wildcard": stream.wildcard,
                "nonce": stream.last_nonce,
                "waitingForAnswer": stream.is_waiting(),
                "acceptedGeneration": stream.accepted_generation,
                "acceptedResources": stream.accepted(),
                "rejectedResources": stream.rejected().collect::<Vec<_>>(),
                "perhapsRejectedResources": stream.perhaps_rejected().collect::<Vec<_>>(),
                "acks": stream.counts.0,
                "nacks": stream.counts.1,
                "lastRejection": stream.last_rejection,
            })
        };
        let clients: Vec<Value> = self
            .clients
            .list()
            .iter()
            .map(|entry| {
                let client = entry.client.lock();
                let types: serde_json::Map<String, Value> = ResourceType::ALL
                    .into_iter()
                    .filter_map(|kind| Some((kind.url().into(), describe(client.stream(kind)?))))
                    .collect();
                json!({
                    "id": entry.id,
                    "nodeId": client.node_id,
                    "node": client.node_name,
                    "account": entry.caller.account(),
                    "address": entry.address.map(|address| address.to_string()),
                    "connectedSeconds": entry.since.elapsed().unwrap_or_default().as_secs(),
                    "types": types,
                })
            })
            .collect();
        json!({ "generation": generation, "clients": clients })
    }

    fn resources(&self) -> Value {
        let model = self.models.borrow().clone();
        let list = |kind: ResourceType| {
            let resources = model.snapshot.all(kind);
            resources
                .map(|found| (found.name.to_string(), json!(*found.version)))
                .collect()
        };
        let lists: serde_json::Map<String, Value> = ResourceType::ALL
            .into_iter()
            .map(|kind| (kind.url().to_owned(), Value::Object(list(kind))))
            .collect();
        json!({ "generation": model.snapshot.generation, "resources": lists })
    }

    fn metrics(&self) -> Response {
        let model = self.models.borrow().clone();
        let problems = self.problems.borrow().clone();
        let clients = self.clients.list();
        pages::metrics(&metrics::registry(&metrics::Facts {
            model: &model,
            invalid: problems.len(),
            clients: &clients,
            counts: self.clients.counts(),
            report: &report(&model, &clients, &problems),
            authority_seconds_left: self.authority.status().intermediate_seconds_left,
        }))
    }
}

/// Of this replica's proxies; what all of them hold is added up by the leader.
fn report(model: &Model, clients: &[Arc<Entry>], problems: &[Problem]) -> Vec<ObjectStatus> {
    status::report(model, &Totals::of([Held::of(model, clients)]), problems)
}

fn page_of<T: serde::Serialize>(value: &T) -> Response {
    match serde_json::to_value(value) {
        Ok(value) => pages::json(&value),
        Err(error) => pages::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}
