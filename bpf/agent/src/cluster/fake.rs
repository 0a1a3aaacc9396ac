//! An API server in memory: get, list, merge patch with its conditions, and create. Its watches break off.

use std::collections::BTreeMap;
use std::collections::VecDeque;
use std::sync::Arc;

use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::Value;
use serde_json::json;

/// Cloning shares.
#[derive(Clone, Default)]
pub(crate) struct FakeApi(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    objects: BTreeMap<String, Value>,
    writes: Vec<(String, Value)>,
    failures: VecDeque<u16>,
    version: u64,
}

impl FakeApi {
    pub(crate) fn client(&self) -> Client {
        let fake = self.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let fake = fake.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                let body = serde_json::from_slice(&body).unwrap_or_default();
                let watch = parts
                    .uri
                    .query()
                    .is_some_and(|query| query.contains("watch="));
                let (code, answer) = match watch {
                    // As an API server that has forgotten the version: list again.
                    true => (200, json!({"type": "ERROR", "object": refusal(410).1})),
                    false => fake.answer(&parts.method, parts.uri.path(), body),
                };
                let response = http::Response::builder()
                    .status(code)
                    .body(Body::from(answer.to_string().into_bytes()));
                Ok::<_, Box<dyn std::error::Error + Send + Sync>>(response?)
            }
        });
        Client::new(service, "default")
    }

    pub(crate) fn put(&self, path: &str, mut object: Value) {
        let mut state = self.0.lock();
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        state.objects.insert(path.into(), object);
    }

    pub(crate) fn get(&self, path: &str) -> Value {
        self.0.lock().objects.get(path).cloned().unwrap_or_default()
    }

    /// The next writes get these answers.
    pub(crate) fn fail(&self, codes: &[u16]) {
        self.0.lock().failures.extend(codes);
    }

    /// What was written to paths that have this in them, also what was refused.
    pub(crate) fn writes(&self, part: &str) -> Vec<Value> {
        let state = self.0.lock();
        let writes = state.writes.iter().filter(|(path, _)| path.contains(part));
        writes.map(|(_, body)| body.clone()).collect()
    }

    fn answer(&self, method: &http::Method, path: &str, body: Value) -> (u16, Value) {
        let mut state = self.0.lock();
        let state = &mut *state;
        if *method != http::Method::GET {
            state.writes.push((path.to_owned(), body.clone()));
            if let Some(code) = state.failures.pop_front() {
                return refusal(code);
            }
        }
        if *method == http::Method::POST {
            return (201, body);
        }
        let key = path.strip_suffix("/status").unwrap_or(path);
        if *method == http::Method::GET && !state.objects.contains_key(key) {
            let below = format!("{key}/");
            let items: Vec<_> = state
                .objects
                .iter()
                .filter(|(path, _)| path.starts_with(&below))
                .map(|(_, object)| object.clone())
                .collect();
            // A folder without objects can't be told from an object that is not there.
            return match items.is_empty() {
                true => refusal(404),
                false => (
                    200,
                    json!({"metadata": {"resourceVersion": "1"}, "items": items}),
                ),
            };
        }
        let Some(object) = state.objects.get_mut(key) else {
            return refusal(404);
        };
        if *method == http::Method::PATCH {
            for field in ["uid", "resourceVersion"] {
                let wanted = &body["metadata"][field];
                if !wanted.is_null() && *wanted != object["metadata"][field] {
                    return refusal(409);
                }
            }
            merge(object, body);
            state.version += 1;
            object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        }
        (200, object.clone())
    }
}

fn refusal(code: u16) -> (u16, Value) {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "no", "reason": if code == 404 { "NotFound" } else { "No" }, "code": code});
    (code, status)
}

/// RFC 7386.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(fields) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in fields {
        if value.is_null() {
            target.as_object_mut().map(|map| map.remove(&key));
        } else {
            merge(&mut target[key], value);
        }
    }
}
