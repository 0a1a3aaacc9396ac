//! The statuses of the Gateway API's objects: the leader's task.
//!
//! They are no plain lists of conditions as our own kinds have, so they are written apart from those: a route has
//! conditions for each parent, beside those that other controllers write into the same list.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use seine_kubernetes::resource;
use seine_objects::gateway::{CONTROLLER, GROUP, VERSION};
use seine_objects::{EnrolmentSettings, Kind, ObjectKey};
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::compare::contains;
use super::watched::Watched;
use super::waypoint::Made;
use super::writer::apply;
use crate::model::Model;
use crate::status::backend_tls::ancestor_statuses;
use crate::status::gateway::{class_status, gateway_status};
use crate::status::ingress::ingress_status;
use crate::status::route::parent_statuses;

/// Changes are gathered for so long; what failed is tried again after it.
const GATHER: Duration = Duration::from_millis(500);
const AGAIN: Duration = Duration::from_secs(10);
/// Writes at one time.
const BESIDE: usize = 8;

/// Writes until it is dropped.
pub async fn write(
    client: Client,
    settings: EnrolmentSettings,
    mut models: watch::Receiver<Arc<Model>>,
    mut made: watch::Receiver<Made>,
) {
    let watches = KINDS.iter().enumerate().map(|(index, kind)| {
        let objects = Api::<DynamicObject>::all_with(client.clone(), &kind.resource());
        let events = watcher(objects, watcher::Config::default()).default_backoff();
        events.map(move |event| (index, event)).boxed()
    });
    let mut events = pin!(stream::select_all(watches));
    let mut known = KINDS.map(|_| Watched::<Object>::default());
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some((index, event)) => see(&mut known, index, event),
                None => return,
            },
            changed = models.changed() => if changed.is_err() { return },
            changed = made.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN) => {}
        }
        let mut gathered = pin!(tokio::time::sleep(GATHER));
        loop {
            tokio::select! {
                () = &mut gathered => break,
                event = events.next() => match event {
                    Some((index, event)) => see(&mut known, index, event),
                    None => return,
                },
            }
        }
        let (model, made) = (
            models.borrow_and_update().clone(),
            made.borrow_and_update().clone(),
        );
        // Half of what is known would look like parents that are not there.
        if model.snapshot.generation == 0 {
            continue;
        }
        let now = Timestamp::now();
        let due = KINDS
            .iter()
            .zip(&known)
            .enumerate()
            .flat_map(|(index, (kind, known))| {
                let due = |(key, object): (&ObjectKey, &Object)| {
                    let wanted = kind.wanted(key, object, &settings, &model, &made)?;
                    Some((
                        index,
                        key.clone(),
                        due(key, kind.resource(), object, wanted, now)?,
                    ))
                };
                known.iter().filter_map(due).collect::<Vec<_>>()
            });
        let due = due.collect::<Vec<_>>();
        let writes = due.into_iter().map(|(index, key, status)| {
            let client = client.clone();
            async move {
                let written = apply(client, &KINDS[index].resource(), &key, &status).await;
                (index, key, written)
            }
        });
        let writes = writes.collect::<Vec<_>>();
        let mut writes = pin!(stream::iter(writes).buffer_unordered(BESIDE));
        while let Some((index, key, written)) = writes.next().await {
            match written {
                Ok(object) => known[index].put(key, Object::read(object)),
                // Deleted, made anew, or written by another controller: the watch tells.
                Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                    debug!(%key, %status, "the object is another by now");
                }
                Err(error) => {
                    let kind = KINDS[index].resource().kind;
                    warn!(kind, %key, %error, "the status can't be written; tried again");
                }
            }
        }
    }
}

fn see(
    known: &mut [Watched<Object>; KINDS.len()],
    index: usize,
    event: watcher::Result<watcher::Event<DynamicObject>>,
) {
    let kind = KINDS[index].resource().kind;
    known[index].see(&kind, event, Object::read);
}

/// A kind with a status of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Class,
    Gateway,
    Route(Kind),
    BackendTls,
}

const KINDS: [Told; 7] = [
    Told::Class,
    Told::Gateway,
    Told::Route(Kind::HttpRoute),
    Told::Route(Kind::GrpcRoute),
    Told::Route(Kind::TlsRoute),
    Told::Route(Kind::TcpRoute),
    Told::BackendTls,
];

impl Told {
    fn resource(self) -> ApiResource {
        match self {
            Self::Class => {
                let kind = GroupVersionKind::gvk(GROUP, VERSION, "GatewayClass");
                ApiResource::from_gvk_with_plural(&kind, "gatewayclasses")
            }
            Self::Gateway => resource(Kind::Gateway),
            Self::Route(kind) => resource(kind),
            Self::BackendTls => resource(Kind::BackendTlsPolicy),
        }
    }

    /// The status that the object should have, without times; `None`: it is not ours to say.
    fn wanted(
        self,
        key: &ObjectKey,
        object: &Object,
        settings: &EnrolmentSettings,
        model: &Model,
        made: &Made,
    ) -> Option<Value> {
        let (objects, claims) = (&model.objects, &model.findings.claims);
        // A model that is behind is about an older version; its successor is under way.
        let is_current =
            |generation: Option<i64>| generation.unwrap_or_default() >= object.generation;
        match self {
            Self::Class => {
                let ours = object.controller == CONTROLLER;
                ours.then(|| class_status(&key.name, Some(object.generation)))
            }
            Self::Gateway => {
                let gateway = objects.gateways.get(key)?;
                let outcome = made.get(key);
                match is_current(gateway.metadata.generation) {
                    true if gateway.is_waypoint() => {
                        Some(gateway_status(objects, key, gateway, outcome))
                    }
                    true if gateway.is_ingress() => {
                        Some(ingress_status(objects, key, gateway, claims, outcome))
                    }
                    _ => None,
                }
            }
            Self::BackendTls => {
                let policy = objects.backend_tls_policies.get(key)?;
                is_current(policy.metadata.generation)
                    .then(|| json!({"ancestors": ancestor_statuses(objects, claims, key, policy)}))
            }
            Self::Route(kind) => {
                let route = objects.route(kind, key)?;
                is_current(route.metadata.generation).then(|| {
                    let found = model.findings.routes.get(&(kind, key.clone()));
                    let refused = found.map_or(&[][..], |found| &found.refused);
                    json!({"parents": parent_statuses(objects, settings, &route, claims, refused)})
                })
            }
        }
    }
}

/// What the API server has of an object.
#[derive(Clone, Debug, Default)]
struct Object {
    uid: String,
    generation: i64,
    resource_version: String,
    /// `spec.controllerName`, of a class.
    controller: String,
    status: Value,
}

impl Object {
    fn read(object: DynamicObject) -> Self {
        let controller = object.data["spec"]["controllerName"].as_str();
        Self {
            uid: object.uid().unwrap_or_default(),
            generation: object.metadata.generation.unwrap_or_default(),
            resource_version: object.resource_version().unwrap_or_default(),
            controller: controller.unwrap_or_default().to_owned(),
            status: object.data["status"].clone(),
        }
    }
}

/// What is to be applied; `None`: nothing is new.
fn due(
    key: &ObjectKey,
    resource: ApiResource,
    object: &Object,
    mut wanted: Value,
    now: Timestamp,
) -> Option<Value> {
    with_times(&mut wanted, &object.status, now);
    // The list of parents, or of ancestors, is one value to the API server: who applies it has all of it. So the others' items are
    // written too, as they were in the version that is named; the API server refuses if that is not the newest.
    let list = ["parents", "ancestors"]
        .into_iter()
        .find(|list| wanted[*list].is_array());
    let items = |status: &Value, list: &str, own: bool| -> Vec<Value> {
        let all = status[list].as_array();
        let all = all.into_iter().flatten();
        all.filter(|one| (one["controllerName"] == CONTROLLER) == own)
            .cloned()
            .collect()
    };
    let is = match list {
        Some(list) => json!({list: items(&object.status, list, true)}),
        None => object.status.clone(),
    };
    if is_same(&is, &wanted) {
        return None;
    }
    // With the UID: not of another object that came to have the name.
    let mut metadata = json!({"name": key.name, "uid": object.uid});
    if !key.namespace.is_empty() {
        metadata["namespace"] = json!(key.namespace);
    }
    if let Some(list) = list {
        metadata["resourceVersion"] = json!(object.resource_version);
        let (others, own) = (
            items(&object.status, list, false),
            items(&wanted, list, true),
        );
        wanted[list] = json!([others, own].concat());
    }
    Some(json!({
        "apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata, "status": wanted,
    }))
}

/// Lists that are ours as a whole, of which nothing may be left over.
const WHOLE: [&str; 5] = [
    "addresses",
    "ancestors",
    "listeners",
    "parents",
    "supportedFeatures",
];

fn is_same(is: &Value, wanted: &Value) -> bool {
    let length = |value: &Value| value.as_array().map_or(0, Vec::len);
    let nothing_over = |field: &str| length(&is[field]) == length(&wanted[field]);
    contains(is, wanted) && WHOLE.into_iter().all(nothing_over)
}

/// Gives each condition the time since when it has its status: at the top, and of listeners and parents.
fn with_times(wanted: &mut Value, known: &Value, now: Timestamp) {
    if let Some(conditions) = wanted.get_mut("conditions").and_then(Value::as_array_mut) {
        for condition in conditions {
            let before = known["conditions"].as_array().into_iter().flatten();
            let before = before
                .filter(|before| before["type"] == condition["type"])
                .find(|before| before["status"] == condition["status"]);
            condition["lastTransitionTime"] = match before {
                Some(before) => before["lastTransitionTime"].clone(),
                None => json!(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now)),
            };
        }
    }
    for (list, keys) in [
        ("listeners", &["name"][..]),
        ("parents", &["parentRef", "controllerName"]),
        ("ancestors", &["ancestorRef", "controllerName"]),
    ] {
        let Some(items) = wanted.get_mut(list).and_then(Value::as_array_mut) else {
            continue;
        };
        for item in items {
            let known = known[list].as_array().into_iter().flatten();
            let mut known = known.filter(|known| keys.iter().all(|key| known[*key] == item[*key]));
            with_times(item, known.next().unwrap_or(&Value::Null), now);
        }
    }
}

#[cfg(test)]
mod tests;
