//! The certificates of Gateways: Secrets, each read by its name.
//!
//! They are neither listed nor watched. Who may list a cluster's Secrets has all of them; who may get those that a Gateway
//! names need not even know that there are others. So a Secret that changed is seen within [`AGAIN`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Secret;
use kube::api::GetParams;
use kube::{Api, Client};
use seine_objects::{Kind, Object, ObjectKey, ObjectSet, parse_object};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

/// How often each is read.
const AGAIN: Duration = Duration::from_secs(10);
/// As many at a time.
const BESIDE: usize = 8;

/// What is known of a Secret; `None`: it is not there, or we may not read it.
type Known = BTreeMap<ObjectKey, Option<Object>>;

/// Publishes each set of objects with the Secrets that its Gateways may have, until nobody wants it or no set comes any more.
pub(crate) async fn add(
    client: Client,
    mut sets: watch::Receiver<Arc<ObjectSet>>,
    complete: watch::Sender<Arc<ObjectSet>>,
) {
    let mut known = Known::new();
    let mut next = Instant::now();
    // The first value is none yet.
    while sets.changed().await.is_ok() {
        loop {
            let set = sets.borrow_and_update().clone();
            let due = Instant::now() >= next;
            known = read(&client, &set, known, due).await;
            if due {
                next = Instant::now() + AGAIN;
            }
            publish(&set, &known, &complete);
            if known.is_empty() {
                break;
            }
            tokio::select! {
                changed = sets.changed() => if changed.is_err() { return },
                () = sleep_until(next) => {}
            }
        }
    }
}

fn publish(set: &Arc<ObjectSet>, known: &Known, complete: &watch::Sender<Arc<ObjectSet>>) {
    let mut all = set.clone();
    for (key, object) in known {
        if let Some(object) = object {
            Arc::make_mut(&mut all).insert(key.clone(), object.clone());
        }
    }
    complete.send_if_modified(|held| {
        // The very first set may be empty, and is one all the same.
        let changed = !Arc::ptr_eq(held, &all) && (known.is_empty() || **held != *all);
        if changed {
            *held = all;
        }
        changed
    });
}

/// The Secrets that this set's Gateways may have: those that are not known yet, or all anew. One that can't be read now stays
/// as it was.
async fn read(client: &Client, set: &ObjectSet, mut known: Known, anew: bool) -> Known {
    let wanted = set.gateway_secrets().into_iter().map(|key| {
        let before = known.remove(&key);
        async move {
            if let (Some(before), false) = (&before, anew) {
                return (key, before.clone());
            }
            let api = Api::<Secret>::namespaced(client.clone(), &key.namespace);
            // As the API server's cache has it: that is read without a word to its store.
            let got = api.get_with(&key.name, &GetParams::any()).await;
            let is = match got {
                Ok(secret) => object(secret),
                Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => {
                    if before.as_ref().is_none_or(Option::is_some) {
                        warn!(secret = %key, code = status.code, "a Gateway's certificate can't be read");
                    }
                    None
                }
                Err(error) => {
                    warn!(secret = %key, %error, "a Gateway's certificate can't be read; the earlier one stays");
                    before.flatten()
                }
            };
            (key, is)
        }
    });
    let wanted: Vec<_> = wanted.collect();
    stream::iter(wanted)
        .buffer_unordered(BESIDE)
        .collect()
        .await
}

fn object(secret: Secret) -> Option<Object> {
    let value = serde_json::to_value(secret).ok()?;
    let parsed = parse_object(Kind::Secret, value);
    parsed.ok().map(|(_, object)| object)
}
