//! The ConfigMap `seine-control-held-<pod>`: each replica writes its own, the leader reads all.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tracing::{debug, warn};

use super::{FIELD_MANAGER, Held, MANAGED_BY, Totals};
use crate::model::Model;
use crate::xds::server::Clients;

const KEY: &str = "held.json";
const LABEL: &str = "seine.dev/held";

/// A replica writes at most once in this time.
const PERIOD: Duration = Duration::from_secs(1);

/// Which replica this is.
#[derive(Clone, Debug)]
pub struct Replica {
    /// Namespace of the control plane.
    pub namespace: String,
    /// Name of its pod.
    pub pod: String,
    /// UID of its pod, which then owns the ConfigMap.
    pub uid: Option<String>,
}

/// Writes what this replica's proxies hold whenever it is another, until it is dropped.
pub async fn write(
    client: Client,
    replica: Replica,
    models: watch::Receiver<Arc<Model>>,
    clients: Clients,
) {
    let maps = Api::<ConfigMap>::namespaced(client, &replica.namespace);
    let name = format!("seine-control-held-{}", replica.pod);
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looked = None;
    let mut written = None;
    let mut failed = false;
    loop {
        ticks.tick().await;
        let model = models.borrow().clone();
        let list = clients.list();
        let fingerprint = Held::fingerprint(&model, &list);
        if model.snapshot.generation == 0 || looked == Some(fingerprint) {
            continue;
        }
        let held = Held::of(&model, &list);
        if written.as_ref() != Some(&held) {
            let map = map_of(&replica, &name, &held);
            let parameters = PatchParams::apply(FIELD_MANAGER).force();
            match maps.patch(&name, &parameters, &Patch::Apply(&map)).await {
                Ok(_) => (written, failed) = (Some(held), false),
                Err(error) => {
                    if !failed {
                        warn!(name, %error, "what the proxies hold can't be written; tried again");
                    }
                    failed = true;
                    continue;
                }
            }
        }
        looked = Some(fingerprint);
    }
}

fn map_of(replica: &Replica, name: &str, held: &Held) -> serde_json::Value {
    let text = serde_json::to_string(held).expect("names and numbers become JSON");
    let mut map = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {MANAGED_BY: FIELD_MANAGER, LABEL: "true"}},
        "data": {KEY: text},
    });
    if let Some(uid) = &replica.uid {
        map["metadata"]["ownerReferences"] = json!([
            {"apiVersion": "v1", "kind": "Pod", "name": replica.pod, "uid": uid}
        ]);
    }
    map
}

/// Adds up what all replicas wrote, until it is dropped. Nothing is sent before all were read.
pub async fn read(client: Client, namespace: String, totals: watch::Sender<Option<Totals>>) {
    let maps = Api::<ConfigMap>::namespaced(client, &namespace);
    let config = watcher::Config::default().labels(&format!("{LABEL}=true"));
    let mut events = pin!(watcher(maps, config).default_backoff());
    let mut replicas: BTreeMap<String, Held> = BTreeMap::new();
    let mut complete = false;
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => {
                replicas.clear();
                complete = false;
            }
            Ok(watcher::Event::InitApply(map) | watcher::Event::Apply(map)) => {
                match held_of(&map) {
                    Ok(held) => drop(replicas.insert(map.name_any(), held)),
                    Err(error) => {
                        warn!(name = map.name_any(), %error, "can't be read; not counted");
                        replicas.remove(&map.name_any());
                    }
                }
            }
            Ok(watcher::Event::Delete(map)) => drop(replicas.remove(&map.name_any())),
            Ok(watcher::Event::InitDone) => complete = true,
            Err(error) => {
                warn!(%error, "watching what the proxies hold failed; tried again");
                continue;
            }
        }
        if complete {
            debug!(replicas = replicas.len(), "what the proxies hold");
            totals.send_replace(Some(Totals::of(replicas.values().cloned())));
        }
    }
}

fn held_of(map: &ConfigMap) -> Result<Held, String> {
    let data = map.data.as_ref().and_then(|data| data.get(KEY));
    let text = data.ok_or_else(|| format!("has no {KEY}"))?;
    serde_json::from_str(text).map_err(|error| error.to_string())
}
