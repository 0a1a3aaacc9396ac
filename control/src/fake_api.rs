//! A small API server in memory, for tests with paused time: objects as JSON by their path,
//! resourceVersions, conflicts, apply as a merge, watches. No schema, no field ownership: those are
//! for the tests against the real one.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_stream::wrappers::BroadcastStream;

type Answer = UnsyncBoxBody<Bytes, Infallible>;

/// Cheap to clone; clones share the objects.
#[derive(Clone, Default)]
pub(crate) struct FakeApi(Arc<Mutex<Objects>>);

/// One request that changed something, or tried to.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) code: u16,
    pub(crate) body: Value,
}

/// What becomes of one client's requests.
#[derive(Clone, Default)]
pub(crate) struct Gate(Arc<AtomicU8>);

struct Objects {
    by_path: BTreeMap<String, Value>,
    version: u64,
    writes: Vec<Write>,
    /// Groups whose kinds are not installed.
    unknown: BTreeSet<String>,
    events: broadcast::Sender<(String, Value)>,
}

impl Default for Objects {
    fn default() -> Self {
        Self {
            by_path: BTreeMap::new(),
            version: 100,
            writes: Vec::new(),
            unknown: BTreeSet::new(),
            events: broadcast::channel(1024).0,
        }
    }
}

impl Gate {
    pub(crate) fn pass(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// 503 for everything.
    pub(crate) fn refuse(&self) {
        self.0.store(1, Ordering::Relaxed);
    }

    /// No answer at all.
    pub(crate) fn hang(&self) {
        self.0.store(2, Ordering::Relaxed);
    }
}

impl FakeApi {
    pub(crate) fn client(&self) -> Client {
        self.gated().0
    }

    pub(crate) fn gated(&self) -> (Client, Gate) {
        let (api, gate) = (self.clone(), Gate::default());
        let passed = gate.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (api, gate) = (api.clone(), passed.clone());
            async move {
                match gate.0.load(Ordering::Relaxed) {
                    0 => Ok::<_, Infallible>(api.answer(request).await),
                    1 => Ok(failure(503, "ServiceUnavailable")),
                    _ => std::future::pending().await,
                }
            }
        });
        (Client::new(service, "default"), gate)
    }

    /// The object at a path; null if there is none.
    pub(crate) fn get(&self, path: &str) -> Value {
        self.0.lock().by_path.get(path).cloned().unwrap_or_default()
    }

    /// As if somebody else had written it.
    pub(crate) fn put(&self, path: &str, object: Value) {
        self.0.lock().store(path, object);
    }

    /// As if somebody else had deleted it.
    pub(crate) fn delete(&self, path: &str) {
        self.0.lock().delete(path);
    }

    /// The kinds of this group and version (`/apis/GROUP/VERSION`) are installed, or not.
    pub(crate) fn knows(&self, group: &str, known: bool) {
        let mut objects = self.0.lock();
        match known {
            true => drop(objects.unknown.remove(group)),
            false => drop(objects.unknown.insert(group.into())),
        }
    }

    /// Every request since the last call that was no reading.
    pub(crate) fn take_writes(&self) -> Vec<Write> {
        std::mem::take(&mut self.0.lock().writes)
    }

    async fn answer(&self, request: Request<Body>) -> Response<Answer> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes());
        let body = serde_json::from_slice(&body.unwrap_or_default()).unwrap_or(Value::Null);
        let path = head.uri.path().to_owned();
        let query = head.uri.query().unwrap_or_default();
        // Between reading and writing another task may come.
        tokio::task::yield_now().await;
        let mut objects = self.0.lock();
        if head.method == Method::GET {
            return objects.read(&path, query);
        }
        let apply = head
            .headers
            .get("content-type")
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/apply"));
        let outcome = objects.write(&head.method, &path, &body, apply);
        let creates = head.method == Method::POST;
        let code = outcome.as_ref().err().copied().unwrap_or(200);
        objects.writes.push(Write {
            method: head.method,
            path,
            code,
            body,
        });
        match outcome {
            Ok(object) => whole(object.to_string()),
            Err(404) => failure(404, "NotFound"),
            Err(409) if creates => failure(409, "AlreadyExists"),
            Err(409) => failure(409, "Conflict"),
            Err(code) => failure(code, "BadRequest"),
        }
    }
}

impl Objects {
    fn read(&self, path: &str, query: &str) -> Response<Answer> {
        if split(path).is_some_and(|(group, _)| self.unknown.contains(group)) {
            return failure(404, "NotFound");
        }
        // No streaming lists, as an older API server has none.
        if query.contains("sendInitialEvents=true") {
            return failure(422, "Invalid");
        }
        if query.contains("watch=true") || query.contains("watch=1") {
            return self.watch(path, query);
        }
        if let Some(object) = self.by_path.get(path) {
            return whole(object.to_string());
        }
        // An item is not there; a collection may be empty.
        let parts = split(path).map_or(0, |(_, rest)| rest.split('/').count());
        if parts.is_multiple_of(2) {
            return failure(404, "NotFound");
        }
        let items: Vec<&Value> = self
            .by_path
            .iter()
            .filter(|(found, object)| selects(path, query, found, object))
            .map(|(_, object)| object)
            .collect();
        let list = json!({
            "kind": "List", "apiVersion": "v1",
            "metadata": {"resourceVersion": self.version.to_string()}, "items": items,
        });
        whole(list.to_string())
    }

    fn watch(&self, path: &str, query: &str) -> Response<Answer> {
        let (path, query) = (path.to_owned(), query.to_owned());
        let events = BroadcastStream::new(self.events.subscribe()).filter_map(move |event| {
            let line = event.ok().and_then(|(found, event)| {
                selects(&path, &query, &found, &event["object"])
                    .then(|| Bytes::from(format!("{event}\n")))
            });
            std::future::ready(line.map(|line| Ok::<_, Infallible>(Frame::data(line))))
        });
        Response::new(StreamBody::new(events).boxed_unsync())
    }

    fn write(
        &mut self,
        method: &Method,
        path: &str,
        body: &Value,
        apply: bool,
    ) -> Result<Value, u16> {
        let named = |body: &Value, field: &str| body["metadata"][field].as_str().map(str::to_owned);
        match *method {
            Method::POST => {
                let item = format!("{path}/{}", named(body, "name").ok_or(400_u16)?);
                match self.by_path.contains_key(&item) {
                    true => Err(409),
                    false => Ok(self.store(&item, body.clone())),
                }
            }
            Method::PUT => {
                let old = self.by_path.get(path).ok_or(404_u16)?;
                let version = named(body, "resourceVersion");
                if version.is_some() && version != named(old, "resourceVersion") {
                    return Err(409);
                }
                Ok(self.store(path, body.clone()))
            }
            Method::PATCH => {
                let item = path.strip_suffix("/status").unwrap_or(path).to_owned();
                let mut object = match self.by_path.get(&item) {
                    Some(object) => object.clone(),
                    None if apply && item == path => json!({}),
                    None => return Err(404),
                };
                let uid = named(body, "uid");
                if uid.is_some() && uid != named(&object, "uid") {
                    return Err(409);
                }
                let version = named(body, "resourceVersion");
                if version.is_some() && version != named(&object, "resourceVersion") {
                    return Err(409);
                }
                merge(&mut object, body);
                Ok(self.store(&item, object))
            }
            Method::DELETE => {
                let old = self.by_path.get(path).ok_or(404_u16)?;
                let wanted = &body["preconditions"]["resourceVersion"];
                if wanted.is_string() && *wanted != old["metadata"]["resourceVersion"] {
                    return Err(409);
                }
                Ok(self.delete(path))
            }
            _ => Err(400),
        }
    }

    fn store(&mut self, path: &str, mut object: Value) -> Value {
        let old = self.by_path.get(path);
        let kind = if old.is_some() { "MODIFIED" } else { "ADDED" };
        let (name, namespace) = place(path);
        let metadata = &mut object["metadata"];
        metadata["name"] = name.into();
        if let Some(namespace) = namespace {
            metadata["namespace"] = namespace.into();
        }
        metadata["uid"] = match old {
            Some(old) => old["metadata"]["uid"].clone(),
            None => metadata
                .get("uid")
                .filter(|uid| uid.is_string())
                .cloned()
                .unwrap_or_else(|| format!("uid-{}", self.version).into()),
        };
        metadata["resourceVersion"] = old
            .map(|old| old["metadata"]["resourceVersion"].clone())
            .unwrap_or_default();
        if old == Some(&object) {
            return object;
        }
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.by_path.insert(path.into(), object.clone());
        let event = json!({"type": kind, "object": object});
        // Nobody may watch.
        let _ = self.events.send((path.into(), event));
        object
    }

    fn delete(&mut self, path: &str) -> Value {
        let Some(object) = self.by_path.remove(path) else {
            return Value::Null;
        };
        let event = json!({"type": "DELETED", "object": object});
        let _ = self.events.send((path.into(), event));
        object
    }
}

/// Whether a list or watch of `collection` has the object at `path`.
fn selects(collection: &str, query: &str, path: &str, object: &Value) -> bool {
    let Some((group, rest)) = split(path) else {
        return false;
    };
    let Some((wanted_group, wanted)) = split(collection) else {
        return false;
    };
    let parts: Vec<&str> = rest.split('/').collect();
    let kind_fits = match parts.as_slice() {
        ["namespaces", namespace, plural, _] => {
            wanted == *plural || wanted == format!("namespaces/{namespace}/{plural}")
        }
        [plural, _] => wanted == *plural,
        _ => false,
    };
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let name_fits = match query.split("metadata.name%3D").nth(1) {
        Some(asked) => asked.split('&').next() == Some(name),
        None => true,
    };
    let label_fits = match query.split("labelSelector=").nth(1) {
        Some(asked) => {
            let asked = asked.split('&').next().unwrap_or_default();
            let asked = asked.replace("%2F", "/").replace("%3D", "=");
            asked.split_once('=').is_some_and(|(label, value)| {
                object["metadata"]["labels"][label].as_str() == Some(value)
            })
        }
        None => true,
    };
    group == wanted_group && kind_fits && name_fits && label_fits
}

/// `/api/v1` or `/apis/GROUP/VERSION`, and what is after it.
fn split(path: &str) -> Option<(&str, &str)> {
    let depth = if path.starts_with("/apis/") { 4 } else { 3 };
    let (at, _) = path.match_indices('/').nth(depth - 1)?;
    Some((&path[..at], &path[at + 1..]))
}

fn place(path: &str) -> (&str, Option<&str>) {
    let parts: Vec<&str> = split(path)
        .map_or("", |(_, rest)| rest)
        .split('/')
        .collect();
    match parts.as_slice() {
        ["namespaces", namespace, _, name] => (name, Some(namespace)),
        [_, name] => (name, None),
        _ => ("", None),
    }
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (name, value) in from {
                match value {
                    Value::Null => drop(into.remove(name)),
                    value => merge(into.entry(name.as_str()).or_insert(Value::Null), value),
                }
            }
        }
        (into, from) => *into = from.clone(),
    }
}

fn whole(text: String) -> Response<Answer> {
    Response::new(Full::from(text).boxed_unsync())
}

fn failure(code: u16, reason: &str) -> Response<Answer> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "by the test", "reason": reason, "code": code,
    });
    let mut response = whole(status.to_string());
    *response.status_mut() = http::StatusCode::from_u16(code).expect("codes here are valid");
    response
}
