//! Has the API server have the objects of Gateways, waypoints and ways into the mesh: the leader's task.
//!
//! Objects that carry our label are watched, and put right when they are not what they should be. An object
//! of the same name that does not belong to the Gateway stays as it is, and then the waypoint gets nothing at all: half
//! of it under somebody else's account would be worse than none.

use std::collections::{BTreeMap, HashMap};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use seine_objects::gateway::Gateway;
use seine_objects::{ObjectKey, ObjectSet};
use serde_json::Value;
use tokio::sync::watch;
use tracing::{info, warn};

use super::objects::{Template, objects};
use crate::model::Model;
use crate::publish::compare::contains;
use crate::publish::watched::Watched;
use crate::publish::{FIELD_MANAGER, MANAGED_BY};

/// Who we are to server-side apply, of these objects.
const MANAGER: &str = "seine-control-waypoint";
/// Changes are gathered for so long; what failed is tried again after it.
const QUIET: Duration = Duration::from_millis(200);
const AGAIN: Duration = Duration::from_secs(10);
/// Waypoints that are made at one time.
const BESIDE: usize = 8;

/// What became of each waypoint that has been looked at.
pub type Made = BTreeMap<ObjectKey, Outcome>;

/// What became of the objects of a waypoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// They are there.
    Made,
    /// The Gateway's parameters can't be obeyed; what was made before stays.
    BadParameters(String),
    /// There are others in their place, or the API server doesn't want them.
    Failed(String),
}

/// Makes the objects until it is dropped.
pub async fn make(
    client: Client,
    template: Template,
    mut models: watch::Receiver<Arc<Model>>,
    made: watch::Sender<Made>,
) {
    let watches = KINDS.iter().enumerate().map(|(index, kind)| {
        let objects = Api::<DynamicObject>::all_with(client.clone(), &kind());
        let config = watcher::Config::default().labels(&format!("{MANAGED_BY}={FIELD_MANAGER}"));
        let events = watcher(objects, config).default_backoff();
        events.map(move |event| (index, event)).boxed()
    });
    let mut events = pin!(stream::select_all(watches));
    let mut known = Known::default();
    loop {
        tokio::select! {
            event = events.next() => match event {
                Some((index, event)) => known.see(index, event),
                None => return,
            },
            changed = models.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN) => {}
        }
        while let Ok(Some((index, event))) = tokio::time::timeout(QUIET, events.next()).await {
            known.see(index, event);
        }
        let model = models.borrow_and_update().clone();
        if !known.is_complete() || model.snapshot.generation == 0 {
            continue;
        }
        let waypoints = waypoints(&model.objects).map(|(key, gateway)| {
            let (client, template, known) = (&client, &template, &known);
            async move {
                let outcome = of_one(client, key, gateway, template, known).await;
                (key.clone(), outcome)
            }
        });
        let waypoints = waypoints.collect::<Vec<_>>();
        let outcomes: Vec<_> = stream::iter(waypoints)
            .buffer_unordered(BESIDE)
            .collect()
            .await;
        let mut new = Made::new();
        for (key, (outcome, applied)) in outcomes {
            known.remember(applied);
            if made.borrow().get(&key) != Some(&outcome) {
                match &outcome {
                    Outcome::Made => info!(gateway = %key, "the waypoint's objects are there"),
                    Outcome::BadParameters(why) | Outcome::Failed(why) => {
                        warn!(gateway = %key, why, "the waypoint's objects are not made");
                    }
                }
            }
            new.insert(key, outcome);
        }
        made.send_if_modified(|held| {
            let changed = *held != new;
            *held = new;
            changed
        });
    }
}

const KINDS: [fn() -> ApiResource; 5] = [
    || ApiResource::erase::<ServiceAccount>(&()),
    || ApiResource::erase::<Service>(&()),
    || ApiResource::erase::<Deployment>(&()),
    || ApiResource::erase::<HorizontalPodAutoscaler>(&()),
    || ApiResource::erase::<PodDisruptionBudget>(&()),
];

/// Gateways of ours that are not about to go.
fn waypoints(objects: &ObjectSet) -> impl Iterator<Item = (&ObjectKey, &Arc<Gateway>)> {
    objects.gateways.iter().filter(|(key, gateway)| {
        let namespace = objects.namespace(&key.namespace);
        let going = namespace.is_none_or(|found| found.metadata.deletion_timestamp.is_some());
        let ours = gateway.is_waypoint() || gateway.is_ingress();
        ours && gateway.metadata.deletion_timestamp.is_none() && !going
    })
}

/// Index of the kind, and the object.
type Place = (usize, ObjectKey);

/// What the API server has of our objects.
#[derive(Default)]
struct Known {
    kinds: [Watched<Value>; KINDS.len()],
    /// What was applied, and what the API server made of it: it may write a value in another way.
    applied: HashMap<Place, (Value, Value)>,
}

impl Known {
    fn see(&mut self, index: usize, event: watcher::Result<watcher::Event<DynamicObject>>) {
        self.kinds[index].see(&KINDS[index]().kind, event, read);
    }

    fn is_complete(&self) -> bool {
        self.kinds.iter().all(Watched::is_complete)
    }

    fn remember(&mut self, applied: Vec<(Place, Value, Value)>) {
        for (place, wanted, is) in applied {
            let (index, key) = place.clone();
            self.kinds[index].put(key, is.clone());
            self.applied.insert(place, (wanted, is));
        }
    }

    fn is_right(&self, place: &Place, wanted: &Value) -> bool {
        let Some(is) = self.kinds[place.0].get(&place.1) else {
            return false;
        };
        let as_applied = || {
            let applied = self.applied.get(place);
            applied.is_some_and(|(before, then)| before == wanted && then == is)
        };
        contains(is, wanted) || as_applied()
    }
}

/// Makes what is missing of one waypoint; also what was applied, and what came of it.
async fn of_one(
    client: &Client,
    key: &ObjectKey,
    gateway: &Gateway,
    template: &Template,
    known: &Known,
) -> (Outcome, Vec<(Place, Value, Value)>) {
    let mut applied = Vec::new();
    let wanted = match objects(key, gateway, template) {
        Ok(wanted) => wanted,
        Err(error) => return (Outcome::BadParameters(error.to_string()), applied),
    };
    let due = wanted
        .into_iter()
        .enumerate()
        .map(|(index, wanted)| ((index, key.clone()), wanted))
        .filter(|(place, wanted)| !known.is_right(place, wanted))
        .collect::<Vec<_>>();
    let outcome = async {
        for (place, wanted) in &due {
            refuse_others(client, place, wanted).await?;
        }
        for (place, wanted) in due {
            let parameters = PatchParams::apply(MANAGER).force();
            let written = api(client, &place)
                .patch(&key.name, &parameters, &Patch::Apply(&wanted))
                .await;
            let written = written.map_err(|error| failed(&place, &error))?;
            applied.push((place, wanted, read(written)));
        }
        Ok(())
    };
    let outcome = outcome.await;
    let outcome = outcome.map_or_else(Outcome::Failed, |()| Outcome::Made);
    (outcome, applied)
}

/// An object that is there under the name must be the Gateway's. The watch sees those with our labels alone.
async fn refuse_others(client: &Client, place: &Place, wanted: &Value) -> Result<(), String> {
    let found = api(client, place).get_opt(&place.1.name).await;
    let Some(found) = found.map_err(|error| failed(place, &error))? else {
        return Ok(());
    };
    let owner = &wanted["metadata"]["ownerReferences"][0]["uid"];
    let owners = found.metadata.owner_references.unwrap_or_default();
    match owners.iter().any(|found| *owner == *found.uid) {
        true => Ok(()),
        false => Err(format!(
            "there is a {} {} already, which does not belong to this Gateway and stays as it is: delete it, or name the \
             Gateway otherwise",
            KINDS[place.0]().kind,
            place.1
        )),
    }
}

fn failed(place: &Place, error: &kube::Error) -> String {
    let said = match error {
        kube::Error::Api(status) => status.message.clone(),
        error => error.to_string(),
    };
    format!("{} {}: {said}", KINDS[place.0]().kind, place.1)
}

fn api(client: &Client, (index, key): &Place) -> Api<DynamicObject> {
    Api::namespaced_with(client.clone(), &key.namespace, &KINDS[*index]())
}

/// Without what changes by itself.
fn read(object: DynamicObject) -> Value {
    let mut object = serde_json::to_value(object).unwrap_or_default();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
        // Items of a list come without them.
        fields.remove("apiVersion");
        fields.remove("kind");
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for field in ["managedFields", "resourceVersion", "generation"] {
            metadata.remove(field);
        }
    }
    object
}

#[cfg(test)]
mod tests;
