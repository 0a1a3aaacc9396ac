//! What other objects name: Secrets with the certificates of Gateways and ConfigMaps with authorities, each read by its name.
//!
//! They are neither listed nor watched. Who may list a cluster's Secrets has all of them; who may get those that a Gateway
//! names need not even know that there are others. So one that changed is seen within [`AGAIN`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use kube::api::{DynamicObject, GetParams};
use kube::{Api, Client};
use seine_objects::{Kind, Object, ObjectKey, ObjectSet, parse_object};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use crate::scope::resource;

/// How often each is read.
const AGAIN: Duration = Duration::from_secs(10);
/// As many at a time.
const BESIDE: usize = 8;

/// What is known of one; `None`: it is not there, or we may not read it.
type Known = BTreeMap<(Kind, ObjectKey), Option<Object>>;

/// Publishes each set of objects with what its Gateways name and may have, until nobody wants it or no set comes any more.
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
    for ((_, key), object) in known {
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

/// What this set's Gateways name and may have: those that are not known yet, or all anew. One that can't be read now stays
/// as it was.
async fn read(client: &Client, set: &ObjectSet, mut known: Known, anew: bool) -> Known {
    let wanted = set.named().into_iter().map(|wanted| {
        let before = known.remove(&wanted);
        async move {
            if let (Some(before), false) = (&before, anew) {
                return (wanted, before.clone());
            }
            let (kind, key) = &wanted;
            let of_kind = resource(*kind);
            let api = Api::<DynamicObject>::namespaced_with(client.clone(), &key.namespace, &of_kind);
            // As the API server's cache has it: that is read without a word to its store.
            let got = api.get_with(&key.name, &GetParams::any()).await;
            let is = match got {
                Ok(found) => object(*kind, found),
                Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => {
                    if before.as_ref().is_none_or(Option::is_some) {
                        warn!(%kind, %key, code = status.code, "what a Gateway names can't be read");
                    }
                    None
                }
                Err(error) => {
                    warn!(%kind, %key, %error, "what a Gateway names can't be read; the earlier one stays");
                    before.flatten()
                }
            };
            (wanted, is)
        }
    });
    let wanted: Vec<_> = wanted.collect();
    stream::iter(wanted)
        .buffer_unordered(BESIDE)
        .collect()
        .await
}

fn object(kind: Kind, found: DynamicObject) -> Option<Object> {
    let value = serde_json::to_value(found).ok()?;
    let parsed = parse_object(kind, value);
    parsed.ok().map(|(_, object)| object)
}
