//! The Secret as a store: two replicas, failures, and what an operator does to it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use seine_identity::TrustDomain;
use serde_json::json;
use tokio::sync::watch;
use tokio::time::timeout;

use super::external::Elsewhere;
use super::{DAY, leaf, leaf_at, options, trusted};
use crate::ca::{Authority, CaError, External, Phase, SecretStore, follow_external};
use crate::fake_api::FakeApi;
use crate::leader::Leadership;

const PATH: &str = "/api/v1/namespaces/seine-system/secrets/seine-ca";
const GIVEN: &str = "/api/v1/namespaces/seine-system/secrets/seine-intermediate";

async fn open(client: kube::Client) -> Result<Arc<Authority>, CaError> {
    let store = Box::new(SecretStore::new(client, "seine-system"));
    Authority::open(options(), store, watch::channel(External::Absent).1).await
}

/// Waits (paused time makes it short) until it holds.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(300), wait).await.expect(what);
}

#[tokio::test(start_paused = true)]
async fn of_replicas_that_start_at_once_one_makes_the_root() {
    for _ in 0..20 {
        let api = FakeApi::default();
        let replicas = (0..4).map(|_| open(api.client()));
        let replicas = futures::future::try_join_all(replicas).await.unwrap();
        let roots = replicas[0].roots_pem();
        for replica in &replicas {
            assert_eq!(replica.roots_pem(), roots);
            assert!(trusted(&leaf(replica), &roots, SystemTime::now()));
        }
        let made = api
            .take_writes()
            .into_iter()
            .filter(|write| write.code == 200);
        assert_eq!(made.count(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_somebody_made_empty_is_filled_and_keeps_its_labels() {
    let api = FakeApi::default();
    let empty = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"labels": {"a": "b"}}});
    api.put(PATH, empty);
    open(api.client()).await.unwrap();
    let secret = api.get(PATH);
    assert_eq!(secret["metadata"]["labels"]["a"], "b");
    assert!(secret["data"]["state.json"].is_string());
}

#[tokio::test(start_paused = true)]
async fn who_does_not_lead_follows_the_root_rotation_of_the_leader_and_writes_nothing() {
    let api = FakeApi::default();
    let leader = open(api.client()).await.unwrap();
    let follower = open(api.client()).await.unwrap();
    tokio::spawn(leader.clone().run(Leadership::always()));
    tokio::spawn(follower.clone().run(Leadership::never()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    api.take_writes();

    let mut secret = api.get(PATH);
    secret["metadata"]["annotations"] = json!({"seine.dev/rotate-root": "yes"});
    api.put(PATH, secret);
    until("follows", || follower.status().phase == Phase::TrustBoth).await;
    assert_eq!(follower.roots_pem(), leader.roots_pem());
    assert_eq!(follower.status().trusted_roots, 2);
    until("answered", || {
        api.get(PATH)["metadata"]["annotations"]
            .as_object()
            .is_none_or(serde_json::Map::is_empty)
    })
    .await;
    assert!(api.take_writes().iter().all(|write| write.code == 200));
}

#[tokio::test(start_paused = true)]
async fn of_two_that_rotate_at_once_one_does_and_both_sign_under_its_root() {
    let api = FakeApi::default();
    let (one, two) = (
        open(api.client()).await.unwrap(),
        open(api.client()).await.unwrap(),
    );
    one.start_root_rotation().await.unwrap();
    let error = two.start_root_rotation().await.unwrap_err();
    assert!(matches!(error, CaError::Conflict(_)), "{error}");
    two.tick(SystemTime::now()).await.unwrap();
    assert_eq!(two.roots_pem(), one.roots_pem());
    // Longer than in a directory: the other replica may be cut off for a while.
    let day = SystemTime::now() + DAY + Duration::from_secs(120);
    one.tick(day).await.unwrap();
    assert_eq!(one.status().phase, Phase::TrustBoth);
    one.tick(day + Duration::from_secs(600)).await.unwrap();
    assert_eq!(one.status().phase, Phase::IssueFromNew);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_can_not_read_the_secret_stops_signing_before_a_phase_passes_it_by() {
    let api = FakeApi::default();
    let (client, gate) = api.gated();
    let authority = open(client).await.unwrap();
    tokio::spawn(authority.clone().run(Leadership::never()));
    tokio::time::sleep(Duration::from_secs(30)).await;
    gate.refuse();
    tokio::time::sleep(Duration::from_secs(300)).await;
    leaf(&authority);
    tokio::time::sleep(Duration::from_secs(300)).await;
    let name = "spiffe://cluster.local/ns/a/sa/b".parse().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let error = authority.issue(&name, &key, DAY).unwrap_err();
    assert!(matches!(error, CaError::Stale(_)), "{error}");
    gate.pass();
    until("signs again", || authority.issue(&name, &key, DAY).is_ok()).await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_secret_is_written_again_with_the_same_root() {
    let api = FakeApi::default();
    let authority = open(api.client()).await.unwrap();
    let roots = authority.roots_pem();
    tokio::spawn(authority.clone().run(Leadership::always()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    api.delete(PATH);
    until("is back", || api.get(PATH).is_object()).await;
    assert_eq!(open(api.client()).await.unwrap().roots_pem(), roots);
}

#[tokio::test(start_paused = true)]
async fn keys_without_a_state_and_another_domain_are_refused() {
    let api = FakeApi::default();
    open(api.client()).await.unwrap();
    let whole = api.get(PATH);
    let mut broken = whole.clone();
    broken["data"].as_object_mut().unwrap().remove("state.json");
    api.put(PATH, broken);
    let error = open(api.client()).await.unwrap_err();
    assert!(
        error.to_string().contains("has keys but no state.json"),
        "{error}"
    );
    api.put(PATH, whole);
    let mut other = options();
    other.trust_domain = TrustDomain::new("other.example").unwrap();
    let store = Box::new(SecretStore::new(api.client(), "seine-system"));
    let opened = Authority::open(other, store, watch::channel(External::Absent).1).await;
    assert!(matches!(opened, Err(CaError::TrustDomain { .. })));
}

#[tokio::test(start_paused = true)]
async fn the_intermediate_of_the_secret_is_followed() {
    let api = FakeApi::default();
    let ca = Elsewhere::new("one");
    let put = |kind: &str, key: Option<String>| {
        let files = ca.intermediate();
        let encode = |text: String| k8s_openapi::ByteString(text.into_bytes());
        let data = json!({
            "tls.crt": encode(files.0), "tls.key": encode(key.unwrap_or(files.1)), "ca.crt": encode(files.2),
        });
        api.put(GIVEN, json!({"apiVersion": "v1", "kind": "Secret", "metadata": {}, "type": kind, "data": data}));
    };
    put("kubernetes.io/tls", None);
    let domain = TrustDomain::new("cluster.local").unwrap();
    let (given, _task) = follow_external(api.client(), "seine-system", domain)
        .await
        .unwrap();
    let store = Box::new(SecretStore::new(api.client(), "seine-system"));
    let authority = Authority::open(options(), store, given.clone())
        .await
        .unwrap();
    tokio::spawn(authority.clone().run(Leadership::always()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let first = leaf(&authority);
    assert!(authority.status().external);

    put("kubernetes.io/tls", None);
    until("renewed", || authority.status().intermediate == 2).await;
    let now = SystemTime::now();
    assert_ne!(leaf_at(&authority, now)[1], first[1]);

    for (kind, key, reason) in [
        ("Opaque", None, "is of type Opaque"),
        ("kubernetes.io/tls", Some("x".to_owned()), "tls.key: "),
    ] {
        put(kind, key);
        until("says so", || {
            let problem = authority.status().external_problem;
            problem.is_some_and(|problem| problem.contains(reason))
        })
        .await;
        assert_eq!(authority.status().intermediate, 2);
    }
}
