//! The one that writes conditions and Events: the leader's task.
//!
//! It watches the objects that have a status for what the API server has of them, since the
//! objects' source leaves statuses out: else each write would be a change of the configuration.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use seine_kubernetes::resource;
use seine_objects::{Kind as ObjectKind, ObjectKey, Problem};
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::conditions::{Known, Target, due};
use super::events::{Announcer, send};
use super::watched::Watched;
use super::{FIELD_MANAGER, Totals, held_map};
use crate::model::Model;
use crate::status::{self, ObjectStatus};

/// Changes are gathered for so long, so an object is written at most once in this time.
const GATHER: Duration = Duration::from_secs(1);
/// What failed, and what was not yet worth an Event, is looked at again.
const AGAIN: Duration = Duration::from_secs(10);
/// Writes at one time.
const BESIDE: usize = 8;

/// What is written about.
#[derive(Clone, Debug)]
pub struct Sources {
    /// What follows from the objects.
    pub models: watch::Receiver<Arc<Model>>,
    /// What is invalid.
    pub problems: watch::Receiver<Arc<Vec<Problem>>>,
}

/// Writes until it is dropped. `reporter` is the pod's name; `namespace` has the ConfigMaps of
/// [`held_map`]; `istio`: of Istio's policies too.
pub async fn write(
    client: Client,
    reporter: String,
    namespace: String,
    sources: Sources,
    istio: bool,
) {
    let (totals, receiver) = watch::channel(None);
    let read = held_map::read(client.clone(), namespace, totals);
    let writer = Writer {
        kinds: kinds(istio).map(Kind::new).collect(),
        announcer: Announcer::default(),
        client,
        reporter,
    };
    tokio::select! {
        () = read => {}
        () = writer.run(sources, receiver) => {}
    }
}

struct Writer {
    client: Client,
    reporter: String,
    kinds: Vec<Kind>,
    announcer: Announcer,
}

/// A kind with a status, and what the API server has.
struct Kind {
    /// As in the report.
    name: String,
    resource: ApiResource,
    /// Before the types of our conditions, where others have conditions of their own.
    prefix: &'static str,
    /// Who applies one of them has all of them.
    atomic: bool,
    known: Watched<Known>,
}

/// What stands before the types of our conditions. Other controllers write conditions of their own beside ours.
pub fn condition_prefix(kind: ObjectKind) -> &'static str {
    match is_atomic(kind) || kind == ObjectKind::Service {
        true => "seine.dev/",
        false => "",
    }
}

/// Its list of conditions is one value to the API server.
fn is_atomic(kind: ObjectKind) -> bool {
    matches!(
        kind,
        ObjectKind::IstioAuthorizationPolicy
            | ObjectKind::PeerAuthentication
            | ObjectKind::IstioRequestAuthentication
    )
}

type Seen = (usize, watcher::Result<watcher::Event<DynamicObject>>);

fn kinds(istio: bool) -> impl Iterator<Item = ObjectKind> {
    let own = [
        ObjectKind::AuthorizationPolicy,
        ObjectKind::MeshTls,
        ObjectKind::TrafficPolicy,
        ObjectKind::RequestAuthentication,
        ObjectKind::Service,
    ];
    let istio = istio.then_some([
        ObjectKind::IstioAuthorizationPolicy,
        ObjectKind::PeerAuthentication,
        ObjectKind::IstioRequestAuthentication,
    ]);
    own.into_iter().chain(istio.into_iter().flatten())
}

impl Writer {
    async fn run(mut self, mut sources: Sources, mut totals: watch::Receiver<Option<Totals>>) {
        let watches = self.kinds.iter().enumerate().map(|(index, kind)| {
            let objects = Api::<DynamicObject>::all_with(self.client.clone(), &kind.resource);
            watch_statuses(objects, index).boxed()
        });
        let mut seen = pin!(stream::select_all(watches.collect::<Vec<_>>()));
        loop {
            tokio::select! {
                event = seen.next() => match event {
                    Some(event) => self.see(event),
                    None => return,
                },
                changed = sources.models.changed() => if changed.is_err() { return },
                changed = sources.problems.changed() => if changed.is_err() { return },
                changed = totals.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(AGAIN) => {}
            }
            let gathered = tokio::time::sleep(GATHER);
            let mut gathered = pin!(gathered);
            loop {
                tokio::select! {
                    () = &mut gathered => break,
                    event = seen.next() => match event {
                        Some(event) => self.see(event),
                        None => return,
                    },
                }
            }
            let model = sources.models.borrow_and_update().clone();
            let problems = sources.problems.borrow_and_update().clone();
            let totals = totals.borrow_and_update().clone();
            // Half of what is known would look like a mesh without proxies or policies.
            let (Some(totals), 1..) = (totals, model.snapshot.generation) else {
                continue;
            };
            let report = status::report(&model, &totals, &problems);
            self.write_conditions(&report).await;
            self.announce(&report, &model).await;
        }
    }

    fn see(&mut self, (index, event): Seen) {
        let kind = &mut self.kinds[index];
        let read = |object| known_of(&object, kind.prefix);
        kind.known.see(&kind.name, event, read);
    }

    async fn write_conditions(&mut self, report: &[ObjectStatus]) {
        let known: HashMap<Target, Known> = self
            .kinds
            .iter()
            .filter(|kind| kind.known.is_complete())
            .flat_map(|kind| {
                let of_kind = |(key, known): (&ObjectKey, &Known)| {
                    ((kind.name.clone(), key.clone()), known.clone())
                };
                kind.known.iter().map(of_kind)
            })
            .collect();
        let writes = due(report, &known, Timestamp::now())
            .into_iter()
            .filter_map(|(target, conditions)| {
                let index = self.kinds.iter().position(|kind| kind.name == target.0)?;
                let kind = &self.kinds[index];
                let status = kind.status(&target.1, &known[&target], &conditions);
                let (client, resource) = (self.client.clone(), kind.resource.clone());
                Some(async move {
                    let key = target.1;
                    let written = apply(client, &resource, &key, &status).await;
                    (index, key, written)
                })
            })
            .collect::<Vec<_>>();
        let mut writes = pin!(stream::iter(writes).buffer_unordered(BESIDE));
        while let Some((index, key, written)) = writes.next().await {
            match written {
                Ok(object) => {
                    let kind = &mut self.kinds[index];
                    let known = known_of(&object, kind.prefix);
                    kind.known.put(key, known);
                }
                // Deleted, or made anew: the watch tells.
                Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                    debug!(%key, %status, "the object is another by now");
                }
                Err(error) => warn!(
                    kind = self.kinds[index].name, %key, %error,
                    "the status can't be written; tried again"
                ),
            }
        }
    }

    async fn announce(&mut self, report: &[ObjectStatus], model: &Model) {
        let others = without_status(report, model);
        let policies = self.kinds.iter().flat_map(|kind| {
            let reference = |(key, known): (&ObjectKey, &Known)| ObjectReference {
                api_version: Some(kind.resource.api_version.clone()),
                kind: Some(kind.resource.kind.clone()),
                namespace: Some(key.namespace.clone()),
                name: Some(key.name.clone()),
                uid: Some(known.uid.clone()),
                ..ObjectReference::default()
            };
            let told = move |(key, known)| {
                let known: &Known = known;
                (reference((key, known)), known.conditions.as_slice())
            };
            kind.known.iter().map(told)
        });
        let others = others
            .iter()
            .map(|(reference, conditions)| (reference.clone(), conditions.as_slice()));
        let due = self.announcer.due(policies.chain(others), Timestamp::now());
        for announcement in due {
            match send(self.client.clone(), &self.reporter, &announcement).await {
                Ok(()) => self.announcer.told(&announcement),
                // The namespace is going, or there is no such object any more.
                Err(error @ kube::Error::Api(_)) => {
                    warn!(object = ?announcement.regarding.name, %error, "an Event is refused");
                    self.announcer.told(&announcement);
                }
                Err(error) => {
                    warn!(%error, "Events can't be written; tried again");
                    return;
                }
            }
        }
    }
}

impl Kind {
    fn new(kind: ObjectKind) -> Self {
        Self {
            name: kind.to_string(),
            resource: resource(kind),
            prefix: condition_prefix(kind),
            atomic: is_atomic(kind),
            known: Watched::default(),
        }
    }

    /// What is applied.
    ///
    /// The list of conditions in Istio's CRDs is atomic to the API server: who applies it has all of it. So we write
    /// the others' conditions too, as they were in the version that we name; the API server refuses if that is not
    /// the newest, and the watch brings what is. A controller that applies its own alone takes ours away, once: it
    /// finds them unchanged after that, and is done.
    fn status(&self, key: &ObjectKey, known: &Known, conditions: &[Condition]) -> Value {
        // With the UID: not of another object that came to have the name.
        let mut metadata = json!({"name": key.name, "namespace": key.namespace, "uid": known.uid});
        let ours = conditions.iter().map(|condition| {
            json!(Condition {
                type_: format!("{}{}", self.prefix, condition.type_),
                ..condition.clone()
            })
        });
        let others = known.others.iter().filter(|_| self.atomic);
        let all: Vec<Value> = others.cloned().chain(ours).collect();
        if self.atomic {
            metadata["resourceVersion"] = json!(known.resource_version);
        }
        json!({
            "apiVersion": self.resource.api_version,
            "kind": self.resource.kind,
            "metadata": metadata,
            "status": {"conditions": all},
        })
    }
}

fn watch_statuses(objects: Api<DynamicObject>, index: usize) -> impl Stream<Item = Seen> {
    watcher(objects, watcher::Config::default())
        .default_backoff()
        .modify(|object| {
            object.metadata.managed_fields = None;
            if let Some(data) = object.data.as_object_mut() {
                data.retain(|name, _| name == "status");
            }
        })
        .map(move |event| (index, event))
}

/// Applies a status.
pub(super) async fn apply(
    client: Client,
    resource: &ApiResource,
    key: &ObjectKey,
    object: &Value,
) -> Result<DynamicObject, kube::Error> {
    let objects = match key.namespace.as_str() {
        "" => Api::<DynamicObject>::all_with(client, resource),
        namespace => Api::namespaced_with(client, namespace, resource),
    };
    let parameters = PatchParams::apply(FIELD_MANAGER).force();
    objects
        .patch_status(&key.name, &parameters, &Patch::Apply(object))
        .await
}

fn known_of(object: &DynamicObject, prefix: &str) -> Known {
    let mut known = Known {
        uid: object.uid().unwrap_or_default(),
        generation: object.metadata.generation.unwrap_or_default(),
        resource_version: object.resource_version().unwrap_or_default(),
        ..Known::default()
    };
    let conditions = object.data.pointer("/status/conditions");
    for value in conditions.and_then(Value::as_array).into_iter().flatten() {
        let kind = value["type"].as_str().unwrap_or_default();
        match kind.strip_prefix(prefix) {
            // What can't be read is written anew.
            Some(kind) => known.conditions.extend(
                serde_json::from_value::<Condition>(value.clone())
                    .ok()
                    .map(|condition| Condition {
                        type_: kind.to_owned(),
                        ..condition
                    }),
            ),
            None => known.others.push(value.clone()),
        }
    }
    known
}

/// Pods and NetworkPolicies have no status of ours; only Events tell of them.
fn without_status(
    report: &[ObjectStatus],
    model: &Model,
) -> Vec<(ObjectReference, Vec<Condition>)> {
    let of = |object: &ObjectStatus| {
        let key = ObjectKey::new(&object.namespace, &object.name);
        let (api_version, metadata) = match object.kind.as_str() {
            "Pod" => (
                "v1",
                &model.objects.pod(&key.namespace, &key.name)?.metadata,
            ),
            "NetworkPolicy" => (
                "networking.k8s.io/v1",
                &model.objects.network_policies.get(&key)?.metadata,
            ),
            _ => return None,
        };
        let reference = ObjectReference {
            api_version: Some(api_version.into()),
            kind: Some(object.kind.clone()),
            namespace: Some(key.namespace),
            name: Some(key.name),
            uid: metadata.uid.clone(),
            ..ObjectReference::default()
        };
        // An Event that was seen since the object is there has told it.
        let since = metadata.creation_timestamp.clone();
        let conditions = object.conditions.iter().map(|condition| Condition {
            type_: condition.kind.into(),
            status: condition.status.into(),
            reason: condition.reason.into(),
            message: condition.message.clone(),
            observed_generation: None,
            last_transition_time: since.clone().unwrap_or(Time(Timestamp::UNIX_EPOCH)),
        });
        Some((reference, conditions.collect()))
    };
    report.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_api::FakeApi;
    use crate::publish::Held;
    use crate::publish::held_map::Replica;
    use crate::translate::Settings;
    use crate::xds::server::Clients;
    use seine_objects::{InForce, ObjectSet};
    use tokio::time::{sleep, timeout};

    const POLICY: &str = "/apis/policy.seine.dev/v1alpha1/namespaces/shop/meshtls/p";
    const OBJECTS: &str = "apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {seine.dev/mesh: enabled}}
---
apiVersion: policy.seine.dev/v1alpha1
kind: MeshTLS
metadata: {name: p, namespace: shop, generation: 2}
spec: {mode: Strict}
---
apiVersion: v1
kind: Pod
metadata: {name: h, namespace: shop, uid: pod-uid, creationTimestamp: \"2026-01-01T00:00:00Z\"}
spec: {hostNetwork: true, containers: []}
";

    struct World {
        api: FakeApi,
        model: Arc<Model>,
        models: watch::Sender<Arc<Model>>,
        problems: watch::Sender<Arc<Vec<Problem>>>,
    }

    impl World {
        fn new() -> Self {
            let (objects, problems) = ObjectSet::from_yaml(OBJECTS);
            assert_eq!(problems, []);
            let model = Model::default().next(Arc::new(objects), &Settings::default());
            let api = FakeApi::default();
            api.put(
                POLICY,
                json!({
                    "apiVersion": "policy.seine.dev/v1alpha1", "kind": "MeshTLS",
                    "metadata": {"generation": 2, "uid": "u"}, "spec": {"mode": "Strict"},
                }),
            );
            let model = Arc::new(model);
            Self {
                api,
                models: watch::channel(model.clone()).0,
                model,
                problems: watch::channel(Arc::default()).0,
            }
        }

        fn sources(&self) -> Sources {
            Sources {
                models: self.models.subscribe(),
                problems: self.problems.subscribe(),
            }
        }

        /// A replica whose proxies all hold everything.
        fn replica(&self, pod: &str, nodes: &[&str]) {
            let all = Held::of(&self.model, &[]);
            let mut held = serde_json::to_value(&all).unwrap();
            held["proxies"] = nodes.iter().map(|node| (*node, 1)).collect();
            let path =
                format!("/api/v1/namespaces/seine-system/configmaps/seine-control-held-{pod}");
            let map = json!({
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"labels": {"seine.dev/held": "true"}},
                "data": {"held.json": held.to_string()},
            });
            self.api.put(&path, map);
        }

        fn condition(&self, kind: &str) -> serde_json::Value {
            let policy = self.api.get(POLICY);
            let conditions = policy["status"]["conditions"].as_array().cloned();
            let mut conditions = conditions.unwrap_or_default().into_iter();
            conditions
                .find(|found| found["type"] == kind)
                .unwrap_or_default()
        }

        async fn until(&self, kind: &str, what: &str) {
            let wait = async {
                while !self.condition(kind).to_string().contains(what) {
                    sleep(Duration::from_millis(100)).await;
                }
            };
            let waited = timeout(Duration::from_secs(300), wait).await;
            waited.unwrap_or_else(|_| panic!("{what}: {}", self.condition(kind)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_all_replicas_hold_is_added_up_and_nothing_equal_is_written() {
        let world = World::new();
        world.replica("a", &["n1", "n2"]);
        world.replica("b", &["n3"]);
        let client = world.api.client();
        tokio::spawn(write(
            client,
            "a".into(),
            "seine-system".into(),
            world.sources(),
            false,
        ));
        world.until("Programmed", "accepted by 3 of 3").await;
        assert_eq!(world.condition("Enforced")["observedGeneration"], 2);
        assert_eq!(world.condition("Programmed")["status"], "True");

        sleep(Duration::from_secs(5)).await;
        let writes = world.api.take_writes();
        let statuses = writes
            .iter()
            .filter(|write| write.path.ends_with("/status"));
        assert_eq!(statuses.clone().count(), 1, "{writes:?}");
        assert!(
            statuses
                .into_iter()
                .all(|write| write.body["metadata"]["uid"] == "u")
        );
        world.models.send_replace(world.model.clone());
        sleep(Duration::from_secs(60)).await;
        assert_eq!(world.api.take_writes().len(), 0);

        // A replica's last proxy goes.
        world.replica("b", &[]);
        world.until("Programmed", "accepted by 2 of 2").await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_invalid_policy_and_a_refused_pod_get_a_warning_each() {
        let world = World::new();
        world.replica("a", &["n1"]);
        let client = world.api.client();
        tokio::spawn(write(
            client,
            "a".into(),
            "seine-system".into(),
            world.sources(),
            false,
        ));
        world.until("Accepted", "True").await;
        let problem = Problem {
            file: "api".into(),
            line: None,
            object: Some("MeshTLS shop/p".into()),
            generation: Some(2),
            field: Some("spec.mode".into()),
            message: "is no mode".into(),
            in_force: InForce::LastGood,
        };
        world.problems.send_replace(Arc::new(vec![problem]));
        world.until("Accepted", "is no mode").await;
        // What is in force stays told.
        assert_eq!(world.condition("Enforced")["status"], "True");
        sleep(Duration::from_secs(15)).await;
        let writes = world.api.take_writes();
        let events: Vec<_> = writes
            .iter()
            .filter(|write| write.path.contains("/events"))
            .map(|write| {
                let regarding = &write.body["regarding"];
                format!(
                    "{} {} {}",
                    write.method, regarding["kind"], write.body["reason"]
                )
            })
            .collect();
        assert_eq!(
            events,
            [r#"POST "Pod" "Refused""#, r#"POST "MeshTLS" "Invalid""#]
        );

        world.problems.send_replace(Arc::default());
        world.until("Accepted", "Valid").await;
        sleep(Duration::from_secs(15)).await;
        let writes = world.api.take_writes();
        let good = writes.iter().find(|write| write.path.contains("/events"));
        assert_eq!(good.unwrap().body["type"], "Normal");
    }

    #[tokio::test(start_paused = true)]
    async fn beside_istios_conditions_ours_stand_with_a_prefix_and_neither_writes_for_ever() {
        const PATH: &str = "/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies/p";
        let yaml = "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: p, namespace: shop, generation: 3}
spec: {action: CUSTOM, rules: [{}]}
";
        let (objects, problems) = ObjectSet::from_yaml(yaml);
        assert_eq!(problems, []);
        let settings = Settings {
            istio_root_namespace: Some("istio-system".into()),
            ..Settings::default()
        };
        let mut world = World::new();
        let model = Arc::new(Model::default().next(Arc::new(objects), &settings));
        world.model = model.clone();
        world.models.send_replace(model);
        world.replica("a", &["n1"]);
        // As istiod has it: its numbers are strings.
        let theirs =
            json!({"type": "ZtunnelAccepted", "status": "False", "observedGeneration": "3"});
        let object = json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"generation": 3, "uid": "u"}, "status": {"conditions": [theirs]},
        });
        world.api.put(PATH, object.clone());
        let client = world.api.client();
        let sources = world.sources();
        tokio::spawn(write(
            client,
            "a".into(),
            "seine-system".into(),
            sources,
            true,
        ));
        let conditions = || world.api.get(PATH)["status"]["conditions"].clone();
        let written = async || {
            while conditions().as_array().unwrap().len() < 5 {
                sleep(Duration::from_millis(100)).await;
            }
            let types = conditions().as_array().unwrap().clone().into_iter();
            let types: Vec<_> = types.map(|found| found["type"].clone()).collect();
            assert_eq!(
                types,
                [
                    "ZtunnelAccepted",
                    "seine.dev/Accepted",
                    "seine.dev/ResolvedRefs",
                    "seine.dev/Programmed",
                    "seine.dev/Enforced"
                ]
            );
        };
        timeout(Duration::from_secs(300), written()).await.unwrap();
        assert_eq!(conditions()[0], theirs);
        assert_eq!(conditions()[4]["reason"], "NeedsWaypoint");
        assert_eq!(conditions()[4]["observedGeneration"], 3);

        // istiod applies its own alone, which takes the whole list.
        let changed =
            json!({"type": "ZtunnelAccepted", "status": "True", "observedGeneration": "3"});
        let mut object = object;
        object["status"]["conditions"] = json!([changed]);
        world.api.put(PATH, object);
        timeout(Duration::from_secs(300), written()).await.unwrap();
        assert_eq!(conditions()[0], changed);
        world.api.take_writes();
        sleep(Duration::from_secs(120)).await;
        let writes = world.api.take_writes();
        let again = writes.iter().filter(|write| write.path.contains("/status"));
        assert_eq!(again.count(), 0, "{writes:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_is_told_of_its_waypoint_in_a_condition_of_its_own_until_it_is_bound_to_none()
    {
        const PATH: &str = "/api/v1/namespaces/shop/services/web";
        let model = |labels: &str| {
            let (objects, problems) = ObjectSet::from_yaml(&format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop, labels: {{{labels}}}}}\nspec: {{clusterIP: 10.0.0.1}}\n"
            ));
            assert_eq!(problems, []);
            Arc::new(Model::default().next(Arc::new(objects), &Settings::default()))
        };
        let mut world = World::new();
        world.model = model("seine.dev/use-waypoint: wp");
        world.models.send_replace(world.model.clone());
        world.replica("a", &["n1"]);
        let theirs = json!({"type": "LoadBalancerPortsError", "status": "True"});
        let object = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"uid": "u"},
            "status": {"conditions": [theirs]},
        });
        world.api.put(PATH, object);
        let (client, sources) = (world.api.client(), world.sources());
        tokio::spawn(write(
            client,
            "a".into(),
            "seine-system".into(),
            sources,
            false,
        ));
        let mut writes = Vec::new();
        let mut written = async |what: &str| {
            let wait = async {
                loop {
                    writes.extend(world.api.take_writes());
                    let found = writes.iter().position(|write| write.path.contains(what));
                    if let Some(found) = found {
                        return writes.remove(found).body;
                    }
                    sleep(Duration::from_millis(100)).await;
                }
            };
            timeout(Duration::from_secs(300), wait).await.unwrap()
        };
        let applied = written("/services/web/status").await;
        // The others' are theirs to apply.
        let conditions = applied["status"]["conditions"].as_array().unwrap();
        assert_eq!(conditions.len(), 1, "{applied}");
        assert_eq!(conditions[0]["type"], "seine.dev/WaypointBound");
        assert_eq!(conditions[0]["reason"], "NoWaypoint");
        assert_eq!(
            applied["metadata"]["resourceVersion"],
            serde_json::Value::Null
        );
        let event = written("/events").await;
        assert_eq!(
            (&event["reason"], &event["regarding"]["kind"]),
            (&json!("NoWaypoint"), &json!("Service"))
        );

        world.models.send_replace(model(""));
        let applied = written("/services/web/status").await;
        assert_eq!(applied["status"]["conditions"], json!([]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_writes_what_its_proxies_hold_once() {
        let world = World::new();
        let replica = Replica {
            namespace: "seine-system".into(),
            pod: "c".into(),
            uid: Some("pod-uid".into()),
        };
        let client = world.api.client();
        let models = world.models.subscribe();
        tokio::spawn(crate::publish::held_map::write(
            client,
            replica,
            models,
            Clients::default(),
        ));
        sleep(Duration::from_secs(30)).await;
        let writes = world.api.take_writes();
        assert_eq!(writes.len(), 1);
        let metadata = &writes[0].body["metadata"];
        assert_eq!(metadata["ownerReferences"][0]["uid"], "pod-uid");
    }
}
