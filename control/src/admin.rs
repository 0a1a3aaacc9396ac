//! The admin pages. They tell states and names; nothing secret is known here.

use std::sync::{Arc, atomic::AtomicU64};

use http::StatusCode;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use seine_objects::Problem;
use seine_telemetry::{
    Readiness,
    http::{self as pages, Request, Response},
};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::{
    ca::Authority,
    model::Model,
    status,
    xds::{ResourceType, client::TypeStream, server::Clients},
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
        page_of(&status::report(&model, &self.clients.list(), &problems))
    }

    fn clients(&self) -> Value {
        let describe = |stream: &TypeStream| {
            json!({
                "wildcard": stream.wildcard,
                "nonce": stream.last_nonce,
                "waitingForAnswer": stream.is_waiting(),
                "acceptedGeneration": stream.accepted_generation,
                "acceptedResources": stream.accepted(),
                "rejectedResources": stream.rejected().collect::<Vec<_>>(),
                "acks": stream.counts.0,
                "nacks": stream.counts.1,
                "lastRejection": stream.last_rejection,
            })
        };
        let generation = self.models.borrow().snapshot.generation;
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
            let resources = model.snapshot.of(kind).iter();
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
        #[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
        struct TypeLabel {
            r#type: &'static str,
        }
        let model = self.models.borrow().clone();
        let mut registry = Registry::with_prefix("seine_control");
        let gauge = |registry: &mut Registry, name: &str, help: &str, value: usize| {
            let gauge = Gauge::<i64>::default();
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
            registry.register(name, help, gauge);
        };
        let generation = usize::try_from(model.snapshot.generation).unwrap_or(usize::MAX);
        gauge(
            &mut registry,
            "generation",
            "Changes of the configuration since the start",
            generation,
        );
        let connected = self.clients.list().len();
        gauge(
            &mut registry,
            "xds_clients",
            "Connected xDS clients",
            connected,
        );
        let problems = self.problems.borrow().len();
        gauge(
            &mut registry,
            "invalid_objects",
            "Problems found in objects",
            problems,
        );
        let micros = usize::try_from(model.took.as_micros()).unwrap_or(usize::MAX);
        gauge(
            &mut registry,
            "translation_microseconds",
            "Time of the last translation",
            micros,
        );
        let refused = model.findings.refused_pods.len();
        gauge(
            &mut registry,
            "refused_pods",
            "Pods that opted in and can't be enrolled",
            refused,
        );

        let resources = Family::<TypeLabel, Gauge>::default();
        for (kind, name) in [
            (ResourceType::Address, "address"),
            (ResourceType::Authorization, "authorization"),
        ] {
            let count = i64::try_from(model.snapshot.of(kind).len()).unwrap_or(i64::MAX);
            resources
                .get_or_create(&TypeLabel { r#type: name })
                .set(count);
        }
        registry.register("resources", "Resources of the configuration", resources);

        let (pushes, rejections) = self.clients.counts();
        for (name, help, value) in [
            ("xds_pushes", "Responses sent to xDS clients", pushes),
            (
                "xds_rejections",
                "Responses that xDS clients rejected",
                rejections,
            ),
        ] {
            let counter = Counter::<u64, AtomicU64>::default();
            counter.inc_by(value);
            registry.register(name, help, counter);
        }
        pages::metrics(&registry)
    }
}

fn page_of<T: serde::Serialize>(value: &T) -> Response {
    match serde_json::to_value(value) {
        Ok(value) => pages::json(&value),
        Err(error) => pages::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}
