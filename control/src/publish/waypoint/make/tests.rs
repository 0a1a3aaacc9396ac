use serde_json::json;

use super::*;
use crate::fake_api::FakeApi;
use crate::translate::Settings;

const KIND_PATHS: [&str; 5] = [
    "/api/v1/namespaces/shop/serviceaccounts/wp",
    "/api/v1/namespaces/shop/services/wp",
    "/apis/apps/v1/namespaces/shop/deployments/wp",
    "/apis/autoscaling/v2/namespaces/shop/horizontalpodautoscalers/wp",
    "/apis/policy/v1/namespaces/shop/poddisruptionbudgets/wp",
];

fn template() -> Template {
    serde_json::from_value(json!({
        "minReplicas": 1, "maxReplicas": 3, "targetCpu": 80,
        "pod": {"spec": {"containers": [{"name": "waypoint", "image": "w:1"}]}},
    }))
    .unwrap()
}

fn model(class: &str, annotations: &str) -> Arc<Model> {
    let yaml = format!(
        "apiVersion: v1
kind: Namespace
metadata: {{name: shop}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: wp, namespace: shop, uid: gateway-uid}}
spec:
  gatewayClassName: {class}
  listeners: [{{name: mesh, port: 15008, protocol: HBONE}}]
  infrastructure: {{annotations: {{{annotations}}}}}
"
    );
    let (objects, problems) = ObjectSet::from_yaml(&yaml);
    assert_eq!(problems, []);
    Arc::new(Model::default().next(Arc::new(objects), &Settings::default()))
}

struct World {
    api: FakeApi,
    models: watch::Sender<Arc<Model>>,
    made: watch::Receiver<Made>,
}

impl World {
    fn start(api: FakeApi, model: Arc<Model>) -> Self {
        let (models, receiver) = watch::channel(model);
        let (sender, made) = watch::channel(Made::new());
        tokio::spawn(make(api.client(), template(), receiver, sender));
        Self { api, models, made }
    }

    async fn until(&mut self, what: &str, holds: impl Fn(&Outcome) -> bool) {
        let key = ObjectKey::new("shop", "wp");
        let wait = self
            .made
            .wait_for(|made| made.get(&key).is_some_and(&holds));
        let waited = tokio::time::timeout(Duration::from_secs(300), wait).await;
        waited.expect(what).expect(what);
    }
}

fn is_made(outcome: &Outcome) -> bool {
    *outcome == Outcome::Made
}

fn says(text: &'static str) -> impl Fn(&Outcome) -> bool {
    move |outcome| match outcome {
        Outcome::Made => false,
        Outcome::BadParameters(why) | Outcome::Failed(why) => why.contains(text),
    }
}

#[tokio::test(start_paused = true)]
async fn a_waypoint_gets_its_objects_once_and_what_others_change_is_put_right() {
    let mut world = World::start(FakeApi::default(), model("seine-waypoint", ""));
    world.until("made", is_made).await;
    for path in KIND_PATHS {
        let object = world.api.get(path);
        assert_eq!(
            object["metadata"]["ownerReferences"][0]["uid"], "gateway-uid",
            "{path}"
        );
    }
    assert_eq!(world.api.take_writes().len(), KIND_PATHS.len());

    // The autoscaler's, and another's annotation: not ours to change.
    let mut deployment = world.api.get(KIND_PATHS[2]);
    deployment["spec"]["replicas"] = json!(3);
    deployment["metadata"]["annotations"]["other"] = json!("x");
    world.api.put(KIND_PATHS[2], deployment);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.api.take_writes().len(), 0);

    let mut deployment = world.api.get(KIND_PATHS[2]);
    deployment["spec"]["template"]["spec"]["serviceAccountName"] = json!("default");
    world.api.put(KIND_PATHS[2], deployment);
    world.api.delete(KIND_PATHS[4]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    let pod = &world.api.get(KIND_PATHS[2])["spec"]["template"]["spec"];
    assert_eq!(pod["serviceAccountName"], "wp");
    assert!(world.api.get(KIND_PATHS[4]).is_object());
    assert_eq!(world.api.take_writes().len(), 2);

    let bigger = model("seine-waypoint", r#"seine.dev/min-replicas: "2""#);
    world.models.send_replace(bigger);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.api.get(KIND_PATHS[3])["spec"]["minReplicas"], 2);
    world
        .models
        .send_replace(model("seine-waypoint", "seine.dev/max-replicas: none"));
    world.until("refused", says("max-replicas")).await;
}

#[tokio::test(start_paused = true)]
async fn somebody_elses_object_is_not_taken_over_and_nothing_is_made_beside_it() {
    let api = FakeApi::default();
    let theirs = json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"labels": {"app": "theirs"}},
    });
    api.put(KIND_PATHS[0], theirs);
    let before = api.get(KIND_PATHS[0]);
    let mut world = World::start(api, model("seine-waypoint", ""));
    world
        .until("refused", says("ServiceAccount shop/wp already"))
        .await;
    assert_eq!(world.api.get(KIND_PATHS[0]), before);
    assert_eq!(world.api.take_writes().len(), 0);

    world.api.delete(KIND_PATHS[0]);
    world.until("made", is_made).await;
}

#[tokio::test(start_paused = true)]
async fn a_gateway_of_another_class_gets_nothing() {
    let mut world = World::start(FakeApi::default(), model("other", ""));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.api.take_writes().len(), 0);
    world.models.send_replace(model("seine-waypoint", ""));
    world.until("made", is_made).await;
}
