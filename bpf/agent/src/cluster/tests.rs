//! The tasks against an API server in memory.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use seine_objects::EnrolmentSettings;
use seine_objects::ObjectSet;
use seine_telemetry::Readiness;
use serde_json::Value;
use serde_json::json;
use tokio::sync::watch;

use super::events::Events;
use super::fake::FakeApi;
use super::uninstall::AgentPod;
use super::uninstall::Agents;
use super::uninstall::UNINSTALL;
use super::uninstall::UNINSTALLED;
use super::uninstall::answer;
use super::*;
use crate::cni_chain::ChainStatus;
use crate::served::PodStatus;
use crate::served::State;

const HOST: &str = "/api/v1/namespaces/shop/pods/host";
const WEB: &str = "/api/v1/namespaces/shop/pods/web";
const NODE: &str = "/api/v1/nodes/n1";
const SET: &str = "/apis/apps/v1/namespaces/seine-system/daemonsets/seine-agent";
const AGENT: &str = "/api/v1/namespaces/seine-system/pods/seine-agent-1";
const EVENTS: &str = "/events";

fn settings() -> ClusterSettings {
    ClusterSettings {
        account: None,
        kubeconfig: "not written".into(),
        node: "n1".into(),
        startup_taint: true,
        enrolment: EnrolmentSettings::default(),
    }
}

fn agents() -> Agents {
    Agents {
        namespace: "seine-system".into(),
        daemon_set: "seine-agent".into(),
    }
}

fn object(kind: &str, namespace: &str, name: &str, spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": kind, "spec": spec,
        "metadata": {"name": name, "namespace": namespace, "uid": format!("u-{name}")}})
}

fn pods() -> FakeApi {
    let api = FakeApi::default();
    let web = json!({"nodeName": "n1", "containers": []});
    let host = json!({"nodeName": "n1", "hostNetwork": true, "containers": []});
    api.put(WEB, object("Pod", "shop", "web", web));
    api.put(HOST, object("Pod", "shop", "host", host));
    api
}

/// What a watch would show of the API server.
fn seen(api: &FakeApi) -> Arc<ObjectSet> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "shop", "labels": {"seine.dev/mesh": "enabled"}}});
    let objects = [namespace, api.get(WEB), api.get(HOST), api.get(NODE)];
    let texts = objects.iter().filter(|object| !object.is_null());
    let text: Vec<_> = texts.map(Value::to_string).collect();
    let (set, problems) = ObjectSet::from_yaml(&text.join("\n---\n"));
    assert!(problems.is_empty(), "{problems:?}");
    Arc::new(set)
}

fn status(state: State, since: Option<u64>, reason: Option<&str>) -> Arc<Vec<PodStatus>> {
    Arc::new(vec![PodStatus {
        uid: "u-web".into(),
        namespace: "shop".into(),
        name: "web".into(),
        state,
        reason: reason.map(Into::into),
        since: 1,
        enrolled_since: since,
        netns_cookie: 1,
        listeners: 0,
        older_connections: 0,
        older_connections_reset: 0,
        warnings: Vec::new(),
        terminating: false,
    }])
}

async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let patience = Duration::from_secs(60);
    tokio::time::timeout(patience, wait)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {patience:?}"));
}

fn annotation(api: &FakeApi, path: &str) -> Value {
    api.get(path)["metadata"]["annotations"][ENROLLED].clone()
}

#[tokio::test]
async fn pods_are_annotated_through_a_refusal_and_told_of_once() {
    let api = pods();
    let (objects_out, objects) = watch::channel(seen(&api));
    let failing = status(State::Failing, None, Some("no bpffs"));
    let (status_out, statuses) = watch::channel(failing);
    let events = Events::new(api.client(), "n1");
    api.fail(&[500, 500]);
    let task = tokio::spawn(super::pods::annotate(
        api.client(),
        settings(),
        statuses,
        objects,
        events,
    ));
    eventually("both are written, after a refusal of each", || {
        annotation(&api, WEB) == "refused: no bpffs" && annotation(&api, HOST).is_string()
    })
    .await;
    eventually("each has an Event", || api.writes(EVENTS).len() == 2).await;
    let event = &api.writes(EVENTS)[0];
    assert_eq!(event["type"], "Warning", "{event}");
    assert_eq!(event["reason"], "NotEnrolled", "{event}");

    objects_out.send_replace(seen(&api));
    status_out.send_replace(status(State::Enrolled, Some(0), None));
    eventually("enrolled", || {
        annotation(&api, WEB) == "1970-01-01T00:00:00Z"
    })
    .await;
    eventually("it is told of", || api.writes(EVENTS).len() == 3).await;
    assert_eq!(api.writes(EVENTS)[2]["reason"], "Enrolled");

    let before = api.writes("/pods/").len();
    objects_out.send_replace(seen(&api));
    status_out.send_replace(status(State::Enrolled, Some(0), None));
    // A pod of that name with another UID is another pod: its agent will write it.
    let mut other = api.get(WEB);
    other["metadata"]["uid"] = json!("u-other");
    api.put(WEB, other);
    status_out.send_replace(status(State::Enrolled, Some(60), None));
    eventually("the write is refused as a conflict", || {
        api.writes("/pods/").len() == before + 1
    })
    .await;
    assert_eq!(annotation(&api, WEB), "1970-01-01T00:00:00Z");
    task.abort();
}

#[tokio::test]
async fn the_taint_goes_when_the_agent_is_ready_and_other_taints_stay() {
    let api = FakeApi::default();
    let taints = json!([{"key": "a", "effect": "NoSchedule"}, {"key": STARTUP_TAINT, "effect": "NoSchedule"}]);
    api.put(NODE, object("Node", "", "n1", json!({"taints": taints})));
    let (_objects_out, objects) = watch::channel(seen(&api));
    let readiness = Readiness::default();
    readiness.pending("cni", "not yet");
    let task = tokio::spawn(taint::remove_when_ready(
        api.client(),
        "n1".into(),
        readiness.clone(),
        objects,
    ));
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(api.writes(NODE).is_empty(), "not while it is not ready");
    readiness.done("cni");
    eventually("the taint is gone", || {
        api.get(NODE)["spec"]["taints"] == json!([{"key": "a", "effect": "NoSchedule"}])
    })
    .await;
    assert!(
        api.writes(NODE)[0]["metadata"]["resourceVersion"].is_string(),
        "only if nobody else changed the list"
    );
    task.abort();
}

#[tokio::test]
async fn a_repair_of_the_chain_is_an_event_of_the_node() {
    let api = FakeApi::default();
    api.put(NODE, object("Node", "", "n1", json!({})));
    let (_objects_out, objects) = watch::channel(seen(&api));
    let (chain_out, chain) = watch::channel(ChainStatus::default());
    let events = Events::new(api.client(), "n1");
    let task = tokio::spawn(events::of_chain(events, chain, objects, "n1".into()));
    chain_out.send_modify(|chain| {
        chain.repairs = 1;
        chain.last_repair = Some("the network configuration x had lost it".into());
    });
    eventually("it is told of", || api.writes(EVENTS).len() == 1).await;
    let event = &api.writes(EVENTS)[0];
    assert_eq!(event["reason"], "CniConfigurationRepaired", "{event}");
    assert_eq!(event["regarding"]["uid"], "u-n1", "{event}");
    chain_out.send_modify(|chain| chain.waiting = Some("there is none".into()));
    eventually("that too", || api.writes(EVENTS).len() == 2).await;
    assert_eq!(api.writes(EVENTS)[1]["reason"], "CniConfigurationWaits");
    task.abort();
}

#[tokio::test]
async fn the_answer_comes_after_the_annotations_and_the_taint_are_gone() {
    let api = pods();
    api.put(SET, daemon_set(None));
    let spec = json!({"nodeName": "n1", "containers": []});
    api.put(AGENT, object("Pod", "seine-system", "seine-agent-1", spec));
    let taints = json!([{"key": STARTUP_TAINT, "effect": "NoSchedule"}]);
    api.put(NODE, object("Node", "", "n1", json!({"taints": taints})));
    let mut web = api.get(WEB);
    web["metadata"]["annotations"] = json!({ENROLLED: "x", "other": "stays"});
    api.put(WEB, web);

    let (client, agents) = (api.client(), agents());
    assert_eq!(agents.asked(&client).await.unwrap(), None);
    api.put(SET, daemon_set(Some("now")));
    let value = agents.asked(&client).await.unwrap().expect("asked for");
    let place = AgentPod {
        node: "n1".into(),
        name: "seine-agent-1".into(),
    };
    api.fail(&[500]);
    answer(&client, &place, &agents, &seen(&api), &value, true)
        .await
        .expect_err("a refusal");
    assert_eq!(api.writes(AGENT).len(), 0, "no answer before all is done");
    answer(&client, &place, &agents, &seen(&api), &value, true)
        .await
        .unwrap();
    assert_eq!(
        api.get(WEB)["metadata"]["annotations"],
        json!({"other": "stays"})
    );
    assert!(
        api.writes(HOST).is_empty(),
        "nothing is taken from a pod that has nothing"
    );
    assert_eq!(api.get(NODE)["spec"]["taints"], json!([]));
    assert_eq!(
        api.get(AGENT)["metadata"]["annotations"][UNINSTALLED],
        "now"
    );
    let none = FakeApi::default();
    assert_eq!(agents.asked(&none.client()).await.unwrap(), None);
}

fn daemon_set(asked: Option<&str>) -> Value {
    let spec = json!({"selector": {"matchLabels": {"app": "seine-agent"}}, "template": {}});
    let mut set = object("DaemonSet", "seine-system", "seine-agent", spec);
    set["apiVersion"] = json!("apps/v1");
    set["metadata"]["annotations"] = json!({UNINSTALL: asked});
    if asked.is_none() {
        set["metadata"]["annotations"] = json!({});
    }
    set
}

#[tokio::test]
async fn a_watch_that_breaks_off_goes_on_and_shows_the_request() {
    let api = FakeApi::default();
    api.put(SET, daemon_set(None));
    let mut asked = Box::pin(agents().watch(&api.client()));
    assert_eq!(asked.next().await, Some(None));
    api.put(SET, daemon_set(Some("now")));
    let until = async {
        while let Some(asked) = asked.next().await {
            if asked.as_deref() == Some("now") {
                return;
            }
        }
        panic!("the watch ended");
    };
    tokio::time::timeout(Duration::from_secs(60), until)
        .await
        .expect("it is seen");
}
