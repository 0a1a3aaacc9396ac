use seine_objects::ObjectSet;

use super::*;
use crate::fake_api::FakeApi;
use crate::publish::waypoint::Outcome;
use crate::translate::Settings;

const CLASS: &str = "/apis/gateway.networking.k8s.io/v1/gatewayclasses/seine-waypoint";
const GATEWAY: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/gateways/wp";
const ROUTE: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/r";

const OBJECTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {seine.dev/mesh: enabled, seine.dev/use-waypoint: wp}}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: wp, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: wp}}
spec: {clusterIP: 10.0.0.2, clusterIPs: [10.0.0.2], ports: [{port: 15008}]}
---
apiVersion: v1
kind: Pod
metadata: {name: wp-1, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: wp}}
spec: {containers: []}
status: {phase: Running, podIP: 10.1.0.1, conditions: [{type: Ready, status: \"True\"}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop, generation: 1}
spec: {gatewayClassName: seine-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop, generation: 1}
spec:
  parentRefs: [{group: '', kind: Service, name: web}, {name: others}]
  rules: [{backendRefs: [{name: web, port: 80}]}]
";

struct World {
    api: FakeApi,
    models: watch::Sender<Arc<Model>>,
    made: watch::Sender<Made>,
}

fn model(yaml: &str) -> Arc<Model> {
    let (objects, problems) = ObjectSet::from_yaml(yaml);
    assert_eq!(problems, []);
    Arc::new(Model::default().next(Arc::new(objects), &Settings::default()))
}

impl World {
    fn start() -> Self {
        let api = FakeApi::default();
        let version = "gateway.networking.k8s.io/v1";
        for (path, kind, spec) in [
            (CLASS, "GatewayClass", json!({"controllerName": CONTROLLER})),
            (
                GATEWAY,
                "Gateway",
                json!({"gatewayClassName": "seine-waypoint"}),
            ),
            (ROUTE, "HTTPRoute", json!({})),
        ] {
            let metadata = json!({"generation": 1, "uid": format!("uid-of-{kind}")});
            api.put(
                path,
                json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec}),
            );
        }
        let (models, receiver) = watch::channel(model(OBJECTS));
        let (made, outcomes) = watch::channel(Made::new());
        let settings = EnrolmentSettings::default();
        tokio::spawn(write(api.client(), settings, receiver, outcomes));
        Self { api, models, made }
    }

    fn outcome(&self, outcome: Outcome) {
        let key = ObjectKey::new("shop", "wp");
        self.made.send_replace([(key, outcome)].into());
    }

    async fn until(&self, path: &str, pointer: &str, expected: &str) {
        let found = || {
            self.api
                .get(path)
                .pointer(pointer)
                .cloned()
                .unwrap_or_default()
        };
        let wait = async {
            while found() != expected {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(300), wait).await;
        waited.unwrap_or_else(|_| panic!("{pointer} of {path}: {}", found()));
    }
}

#[tokio::test(start_paused = true)]
async fn class_gateway_and_route_are_told_and_nothing_equal_is_written() {
    let world = World::start();
    world
        .until(CLASS, "/status/conditions/0/status", "True")
        .await;
    world
        .until(GATEWAY, "/status/conditions/1/reason", "Pending")
        .await;
    world.outcome(Outcome::Failed("there is a Service".into()));
    world
        .until(GATEWAY, "/status/conditions/1/reason", "NoResources")
        .await;
    world.outcome(Outcome::Made);
    world
        .until(GATEWAY, "/status/conditions/1/status", "True")
        .await;
    world
        .until(GATEWAY, "/status/addresses/0/value", "10.0.0.2")
        .await;
    world
        .until(GATEWAY, "/status/listeners/0/conditions/3/status", "True")
        .await;
    world
        .until(ROUTE, "/status/parents/0/conditions/0/reason", "Accepted")
        .await;
    let route = world.api.get(ROUTE);
    assert_eq!(route["status"]["parents"].as_array().unwrap().len(), 1);
    assert_eq!(route["status"]["parents"][0]["controllerName"], CONTROLLER);
    assert!(route["status"]["parents"][0]["conditions"][0]["lastTransitionTime"].is_string());

    tokio::time::sleep(Duration::from_secs(5)).await;
    world.api.take_writes();
    world.models.send_replace(model(OBJECTS));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.api.take_writes().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_another_controller_says_of_a_route_stays_and_ours_goes_with_its_parent() {
    let world = World::start();
    world
        .until(ROUTE, "/status/parents/0/controllerName", CONTROLLER)
        .await;
    let theirs = json!({"parentRef": {"name": "others"}, "controllerName": "example.com/other", "conditions": []});
    let mut route = world.api.get(ROUTE);
    // As a controller that applies its own alone does.
    route["status"]["parents"] = json!([theirs]);
    world.api.put(ROUTE, route);
    world
        .until(ROUTE, "/status/parents/1/controllerName", CONTROLLER)
        .await;
    assert_eq!(world.api.get(ROUTE)["status"]["parents"][0], theirs);

    let elsewhere = OBJECTS.replace("{group: '', kind: Service, name: web}, ", "");
    world.models.send_replace(model(&elsewhere));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.api.get(ROUTE)["status"]["parents"], json!([theirs]));
}

#[tokio::test(start_paused = true)]
async fn of_a_newer_version_than_the_model_knows_and_of_anothers_class_nothing_is_said() {
    let world = World::start();
    world
        .until(ROUTE, "/status/parents/0/controllerName", CONTROLLER)
        .await;
    let mut class = world.api.get(CLASS);
    class["spec"]["controllerName"] = json!("example.com/other");
    class["status"] = json!({});
    let mut route = world.api.get(ROUTE);
    route["metadata"]["generation"] = json!(2);
    route["status"] = json!({});
    world.api.put(CLASS, class);
    world.api.put(ROUTE, route);
    tokio::time::sleep(Duration::from_secs(60)).await;
    for path in [CLASS, ROUTE] {
        assert_eq!(world.api.get(path)["status"], json!({}), "{path}");
    }
    let newer = OBJECTS.replace(
        "name: r, namespace: shop, generation: 1",
        "name: r, namespace: shop, generation: 2",
    );
    world.models.send_replace(model(&newer));
    world
        .until(ROUTE, "/status/parents/0/controllerName", CONTROLLER)
        .await;
    assert_eq!(
        world.api.get(ROUTE)["status"]["parents"][0]["conditions"][0]["observedGeneration"],
        2
    );
}
