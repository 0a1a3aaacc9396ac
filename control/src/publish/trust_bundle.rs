//! The roots for everybody who is no proxy of ours: ConfigMap `seine-ca-root` in the system's
//! namespace, in each that opted in and in each with a waypoint, and a ClusterTrustBundle where the server has those.
//!
//! Only what carries our label is written or deleted: a ConfigMap of that name that somebody else
//! made stays as it is, and the log says so.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::certificates::v1beta1::ClusterTrustBundle;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Client, ResourceExt};
use seine_objects::{EnrolmentSettings, ObjectSet, enrolment};
use serde_json::json;
use tokio::sync::watch;
use tracing::{info, warn};

use super::{FIELD_MANAGER, MANAGED_BY};
use crate::model::Model;

/// The ConfigMap's name.
pub const CONFIG_MAP: &str = "seine-ca-root";
/// Its key: every root in PEM.
pub const KEY: &str = "root-cert.pem";
/// The ClusterTrustBundle's signer; its object is `seine.dev:mesh:root`.
pub const SIGNER: &str = "seine.dev/mesh";
const BUNDLE: &str = "seine.dev:mesh:root";
const BUNDLE_GROUP: &str = "certificates.k8s.io/v1beta1";

/// Changes are gathered for so long; what failed is tried again after it.
const QUIET: Duration = Duration::from_millis(200);
const AGAIN: Duration = Duration::from_secs(10);
/// Writes at one time.
const BESIDE: usize = 8;

/// Whose bundle it is.
#[derive(Clone, Debug)]
pub struct BundleOptions {
    /// Gets one whether it opted in or not.
    pub system_namespace: String,
    /// Who is opted in.
    pub enrolment: EnrolmentSettings,
}

/// What there is in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    ours: bool,
    pem: Option<String>,
    version: Option<String>,
}

/// What is to be done in a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Apply,
    Delete { version: Option<String> },
    NotOurs,
}

/// Publishes until it is dropped: the leader's.
pub async fn publish(
    client: Client,
    options: BundleOptions,
    mut models: watch::Receiver<Arc<Model>>,
    mut roots: watch::Receiver<Arc<str>>,
) {
    let (maps, writer) = reflector::store();
    let config = watcher::Config::default().fields(&format!("metadata.name={CONFIG_MAP}"));
    let changes = watcher(Api::<ConfigMap>::all(client.clone()), config)
        .default_backoff()
        .modify(|map| map.managed_fields_mut().clear())
        .reflect(writer);
    let mut changes = pin!(changes);
    let mut told = HashSet::new();
    let mut bundle = ClusterBundle::Unknown;
    let mut ready = false;
    loop {
        // What goes on while this waits is gathered.
        let wait = if ready { AGAIN } else { QUIET };
        tokio::select! {
            change = changes.next() => match change {
                Some(Ok(event)) => ready |= matches!(event, watcher::Event::InitDone),
                Some(Err(error)) => {
                    warn!(%error, "watching the trust bundles failed; tried again");
                    continue;
                }
                None => return,
            },
            changed = models.changed() => if changed.is_err() { return },
            changed = roots.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(wait) => {}
        }
        while let Ok(Some(change)) = tokio::time::timeout(QUIET, changes.next()).await {
            ready |= matches!(change, Ok(watcher::Event::InitDone));
        }
        let model = models.borrow_and_update().clone();
        let pem = roots.borrow_and_update().clone();
        // Before everything is known, a namespace that opted in looks like one that did not.
        if !ready || model.snapshot.generation == 0 {
            continue;
        }
        let found = maps.state().iter().filter_map(|map| found(map)).collect();
        let wanted = wanted(&model.objects, &options);
        let gone = |namespace: &str| is_going(&model.objects, namespace);
        let steps = plan(&found, &wanted, &pem, gone);
        let work = steps.into_iter().map(|(namespace, step)| {
            let (client, pem) = (client.clone(), pem.clone());
            async move {
                let done = carry_out(client, &namespace, &step, &pem).await;
                (namespace, step, done)
            }
        });
        let mut work = pin!(futures::stream::iter(work).buffer_unordered(BESIDE));
        while let Some((namespace, step, done)) = work.next().await {
            match (step, done) {
                (Step::NotOurs, _) if told.insert(namespace.clone()) => warn!(
                    namespace,
                    "ConfigMap {CONFIG_MAP} is not ours (no label {MANAGED_BY}={FIELD_MANAGER}) and \
                     stays; delete it to get the mesh's roots there"
                ),
                (Step::NotOurs, _) => {}
                (_, Ok(())) => drop(told.remove(&namespace)),
                (_, Err(error)) => {
                    warn!(namespace, %error, "the trust bundle can't be published; tried again");
                }
            }
        }
        bundle = bundle.publish(&client, &pem).await;
    }
}

fn found(map: &ConfigMap) -> Option<(String, Found)> {
    let ours = map
        .labels()
        .get(MANAGED_BY)
        .is_some_and(|by| by == FIELD_MANAGER);
    let pem = map.data.as_ref().and_then(|data| data.get(KEY)).cloned();
    let version = map.resource_version();
    Some((map.namespace()?, Found { ours, pem, version }))
}

fn wanted(objects: &ObjectSet, options: &BundleOptions) -> BTreeSet<String> {
    let mut wanted: BTreeSet<String> = objects
        .namespaces
        .iter()
        .filter(|(_, namespace)| enrolment::namespace_opted_in(namespace, &options.enrolment))
        .map(|(key, _)| key.name.clone())
        .collect();
    let waypoints = objects.gateways.iter();
    let waypoints = waypoints.filter(|(_, gateway)| gateway.is_waypoint() || gateway.is_ingress());
    wanted.extend(waypoints.map(|(key, _)| key.namespace.clone()));
    wanted.insert(options.system_namespace.clone());
    wanted
}

/// Nothing can be made in a namespace that is being deleted, and what is in it goes with it.
fn is_going(objects: &ObjectSet, namespace: &str) -> bool {
    objects
        .namespace(namespace)
        .is_some_and(|found| found.metadata.deletion_timestamp.is_some())
}

fn plan(
    found: &BTreeMap<String, Found>,
    wanted: &BTreeSet<String>,
    pem: &str,
    is_going: impl Fn(&str) -> bool,
) -> Vec<(String, Step)> {
    let write = wanted.iter().filter_map(|namespace| {
        let step = match found.get(namespace) {
            Some(found) if !found.ours => Step::NotOurs,
            Some(found) if found.pem.as_deref() == Some(pem) => return None,
            _ => Step::Apply,
        };
        Some((namespace.clone(), step))
    });
    let remove = found.iter().filter_map(|(namespace, found)| {
        let version = found.version.clone();
        let unwanted = found.ours && !wanted.contains(namespace);
        unwanted.then(|| (namespace.clone(), Step::Delete { version }))
    });
    write
        .chain(remove)
        .filter(|(namespace, _)| !is_going(namespace))
        .collect()
}

async fn carry_out(
    client: Client,
    namespace: &str,
    step: &Step,
    pem: &str,
) -> Result<(), kube::Error> {
    let maps = Api::<ConfigMap>::namespaced(client, namespace);
    match step {
        Step::NotOurs => Ok(()),
        Step::Apply => {
            let map = json!({
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": CONFIG_MAP, "labels": {MANAGED_BY: FIELD_MANAGER}},
                "data": {KEY: pem},
            });
            let parameters = PatchParams::apply(FIELD_MANAGER).force();
            maps.patch(CONFIG_MAP, &parameters, &Patch::Apply(&map))
                .await?;
            info!(namespace, "trust bundle published");
            Ok(())
        }
        Step::Delete { version } => {
            let parameters = DeleteParams::default().preconditions(Preconditions {
                resource_version: version.clone(),
                uid: None,
            });
            match maps.delete(CONFIG_MAP, &parameters).await {
                Ok(_) => info!(
                    namespace,
                    "trust bundle removed: nobody there needs it any more"
                ),
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                Err(error) => return Err(error),
            }
            Ok(())
        }
    }
}

/// The ClusterTrustBundle, as far as is known.
#[derive(Debug)]
enum ClusterBundle {
    /// Not asked yet.
    Unknown,
    /// The server doesn't serve them.
    NotServed,
    /// Has these roots.
    Holds(Arc<str>),
    /// Refused, and said so.
    Refused(Arc<str>),
}

impl ClusterBundle {
    async fn publish(self, client: &Client, pem: &Arc<str>) -> Self {
        match &self {
            Self::NotServed => return self,
            Self::Holds(held) | Self::Refused(held) if held == pem => return self,
            Self::Unknown => match client.list_api_group_resources(BUNDLE_GROUP).await {
                Ok(list)
                    if list
                        .resources
                        .iter()
                        .any(|one| one.kind == "ClusterTrustBundle") => {}
                Ok(_) => return Self::NotServed,
                Err(kube::Error::Api(status)) if status.code == 404 => return Self::NotServed,
                Err(error) => {
                    warn!(%error, "can't ask for {BUNDLE_GROUP}; tried again");
                    return self;
                }
            },
            Self::Holds(_) | Self::Refused(_) => {}
        }
        let bundle = json!({
            "apiVersion": BUNDLE_GROUP,
            "kind": "ClusterTrustBundle",
            "metadata": {"name": BUNDLE, "labels": {MANAGED_BY: FIELD_MANAGER}},
            "spec": {"signerName": SIGNER, "trustBundle": &**pem},
        });
        let parameters = PatchParams::apply(FIELD_MANAGER).force();
        let applied = Api::<ClusterTrustBundle>::all(client.clone())
            .patch(BUNDLE, &parameters, &Patch::Apply(&bundle))
            .await;
        match applied {
            Ok(_) => {
                info!(name = BUNDLE, "cluster trust bundle published");
                Self::Holds(pem.clone())
            }
            Err(error @ kube::Error::Api(_)) => {
                warn!(name = BUNDLE, %error, "the cluster trust bundle is refused; the ConfigMaps have the roots");
                Self::Refused(pem.clone())
            }
            Err(error) => {
                warn!(name = BUNDLE, %error, "the cluster trust bundle can't be published; tried again");
                self
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_api::FakeApi;
    use crate::translate::Settings;

    fn path(namespace: &str) -> String {
        format!("/api/v1/namespaces/{namespace}/configmaps/{CONFIG_MAP}")
    }

    fn model(opted_in: &[&str], all: &[&str]) -> Arc<Model> {
        let yaml: String = all
            .iter()
            .map(|name| {
                let label = match opted_in.contains(name) {
                    true => "enabled",
                    false => "disabled",
                };
                format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{seine.dev/mesh: {label}}}}}\n")
            })
            .collect();
        let (objects, problems) = ObjectSet::from_yaml(&yaml);
        assert_eq!(problems, []);
        Arc::new(Model::default().next(Arc::new(objects), &Settings::default()))
    }

    async fn until(what: &str, holds: impl Fn() -> bool) {
        let wait = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(300), wait).await;
        waited.expect(what);
    }

    #[tokio::test(start_paused = true)]
    async fn each_opted_in_namespace_has_the_roots_and_nobody_elses_map_is_touched() {
        let api = FakeApi::default();
        let strange =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}, "data": {"a": "b"}});
        api.put(&path("theirs"), strange);
        let all = ["seine-system", "shop", "bank", "theirs"];
        let (models, receiver) = watch::channel(model(&["shop", "theirs"], &all));
        let (roots, pems) = watch::channel(Arc::<str>::from("one"));
        let options = BundleOptions {
            system_namespace: "seine-system".into(),
            enrolment: EnrolmentSettings::default(),
        };
        tokio::spawn(publish(api.client(), options, receiver, pems));
        let has = |namespace: &str, pem: &str| api.get(&path(namespace))["data"][KEY] == pem;
        until("published", || {
            has("shop", "one") && has("seine-system", "one")
        })
        .await;
        assert!(api.get(&path("bank")).is_null());

        // Nothing to do is nothing written.
        tokio::time::sleep(Duration::from_secs(1)).await;
        api.take_writes();
        models.send_replace(model(&["shop", "theirs"], &all));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(api.take_writes().len(), 0);

        roots.send_replace("two".into());
        until("rotated", || {
            has("shop", "two") && has("seine-system", "two")
        })
        .await;

        // Somebody deletes or edits it.
        api.delete(&path("shop"));
        until("is back", || has("shop", "two")).await;
        let mut edited = api.get(&path("shop"));
        edited["data"][KEY] = "x".into();
        api.put(&path("shop"), edited);
        until("is right again", || has("shop", "two")).await;

        models.send_replace(model(&["bank", "theirs"], &all));
        until("moved", || {
            has("bank", "two") && api.get(&path("shop")).is_null()
        })
        .await;
        assert_eq!(api.get(&path("theirs"))["data"], json!({"a": "b"}));
        models.send_replace(model(&[], &all));
        until("removed", || api.get(&path("bank")).is_null()).await;
        assert!(has("seine-system", "two") && api.get(&path("theirs")).is_object());
    }

    #[test]
    fn a_namespace_that_is_being_deleted_is_left_alone() {
        let ours = Found {
            ours: true,
            pem: None,
            version: None,
        };
        let found = [("old".to_owned(), ours)].into();
        let wanted = ["new".to_owned()].into();
        assert_eq!(plan(&found, &wanted, "p", |_| true), []);
        assert_eq!(plan(&found, &wanted, "p", |_| false).len(), 2);
    }
}
