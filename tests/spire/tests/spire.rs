//! Certificates and trust bundles from a SPIRE agent, by both of its APIs: issued, renewed, federated; with the agent
//! away, and when it refuses.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::ops::Deref;
use std::time::{Duration, SystemTime};

use seine_identity::testing::{TestCa, TestLeaf};
use seine_identity::{CertificateError, Identity, SpireApi};
use seine_spire::{Agent, THIS_PROCESS};
use support::{DOMAIN, World, until};
use tempfile::TempDir;

/// A proxy, its agent, and who signs for it.
struct Node {
    ca: TestCa,
    agent: Agent,
    world: World,
    _folder: TempDir,
}

impl Deref for Node {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl Node {
    fn new(api: SpireApi) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca = TestCa::new(DOMAIN);
        let agent = Agent::new(&folder.path().join("agent.sock"));
        agent.trust(DOMAIN, &[&ca]);
        Self {
            ca,
            world: World::at(agent.socket().to_owned(), api),
            agent,
            _folder: folder,
        }
    }

    fn issue(&self, identity: &Identity, life: Duration) {
        let mut leaf = TestLeaf::new(identity);
        leaf.not_after = SystemTime::now() + life;
        let namespace = format!("k8s:ns:{}", identity.namespace());
        let account = format!("k8s:sa:{}", identity.service_account());
        self.agent.issue(&[&namespace, &account], &self.ca, &leaf);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_pod_gets_its_own_and_a_new_one_before_it_ends() {
    let node = Node::new(SpireApi::Delegated);
    let _running = node.agent.start();
    let (web, api) = (
        node.ca.identity("shop", "web"),
        node.ca.identity("shop", "api"),
    );
    node.issue(&web, Duration::from_secs(3600));
    node.issue(&api, Duration::from_secs(4));
    node.certificates.prefetch(&web);
    node.certificates.prefetch(&api);
    let web_serial = node.serial(&web).await.unwrap();
    let first = node.serial(&api).await.unwrap();

    // SPIRE rotates; nobody waits for it, and nobody is without a certificate meanwhile.
    node.issue(&api, Duration::from_secs(3600));
    until("the certificate is renewed", async || {
        node.serial(&api).await.unwrap() != first
    })
    .await;
    assert_eq!(node.serial(&web).await.unwrap(), web_serial);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_certificates_a_pod_uses_the_one_of_its_identity() {
    let node = Node::new(SpireApi::Delegated);
    let _running = node.agent.start();
    let web = node.ca.identity("shop", "web");
    let mut leaf = TestLeaf::new(&web);
    leaf.uris = vec![format!("spiffe://{DOMAIN}/everybody/of/shop")];
    node.agent.issue(&["k8s:ns:shop"], &node.ca, &leaf);
    node.certificates.prefetch(&web);
    let error = node.serial(&web).await.unwrap_err().to_string();
    for words in [
        "SPIRE agent",
        "no registration entry gives spiffe://cluster.local/ns/shop/sa/web to k8s:ns:shop and k8s:sa:web",
        "1 with another SPIFFE ID",
    ] {
        assert!(error.contains(words), "{error}");
    }
    node.issue(&web, Duration::from_secs(3600));
    until("the entry is found", async || {
        node.serial(&web).await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roots_come_and_go_as_the_agent_says() {
    let node = Node::new(SpireApi::Delegated);
    let _running = node.agent.start();
    let web = node.ca.identity("shop", "web");
    node.issue(&web, Duration::from_secs(3600));
    node.certificates.prefetch(&web);
    let first = node.serial(&web).await.unwrap();
    assert_eq!(node.trusts(DOMAIN), [node.ca.root().to_vec()]);

    let partner = TestCa::new("partner.example");
    node.agent.trust("partner.example", &[&partner]);
    until("the partner is trusted", async || {
        node.trusts("partner.example") == [partner.root().to_vec()]
    })
    .await;
    node.agent.distrust("partner.example");
    until("the partner is not trusted", async || {
        node.trusts("partner.example").is_empty()
    })
    .await;

    // A new root beside the old one, then alone: a certificate of the old one is replaced at once.
    let new = TestCa::new(DOMAIN);
    node.agent.trust(DOMAIN, &[&node.ca, &new]);
    until("both roots are trusted", async || {
        node.trusts(DOMAIN).len() == 2
    })
    .await;
    assert_eq!(node.serial(&web).await.unwrap(), first);
    node.agent
        .issue(&["k8s:ns:shop", "k8s:sa:web"], &new, &TestLeaf::new(&web));
    node.agent.trust(DOMAIN, &[&new]);
    until("the certificate is the new root's", async || {
        node.serial(&web).await.unwrap() != first
    })
    .await;
    assert_eq!(node.trusts(DOMAIN), [new.root().to_vec()]);

    // An agent of another trust domain changes nothing.
    node.agent.distrust(DOMAIN);
    node.agent.trust("partner.example", &[&partner]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(node.trusts(DOMAIN), [new.root().to_vec()]);
    assert!(node.trusts("partner.example").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_issued_outlives_the_agent_and_who_comes_meanwhile_waits_for_it() {
    let node = Node::new(SpireApi::Delegated);
    let running = node.agent.start();
    let (web, api) = (
        node.ca.identity("shop", "web"),
        node.ca.identity("shop", "api"),
    );
    node.issue(&web, Duration::from_secs(3600));
    node.issue(&api, Duration::from_secs(3600));
    node.certificates.prefetch(&web);
    let serial = node.serial(&web).await.unwrap();
    drop(running);
    node.certificates.prefetch(&api);
    until("the failure is known", async || {
        let status = node.certificates.status();
        let error = status.iter().find(|one| one.identity == api).unwrap();
        let error = error.last_error.clone().unwrap_or_default();
        error.contains("is not available") && error.contains("agent.sock")
    })
    .await;
    assert_eq!(node.serial(&web).await.unwrap(), serial);
    assert_eq!(node.trusts(DOMAIN), [node.ca.root().to_vec()]);

    let _running = node.agent.start();
    node.serial(&api).await.unwrap();
    let partner = TestCa::new("partner.example");
    node.agent.trust("partner.example", &[&partner]);
    until("the bundles are followed again", async || {
        !node.trusts("partner.example").is_empty()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_is_no_delegate_is_told_what_to_do() {
    let node = Node::new(SpireApi::Delegated);
    node.agent.deny(true);
    let _running = node.agent.start();
    let web = node.ca.identity("shop", "web");
    node.issue(&web, Duration::from_secs(3600));
    node.certificates.prefetch(&web);
    let error = node.serial(&web).await.unwrap_err();
    assert!(matches!(error, CertificateError::Refused { .. }), "{error}");
    assert!(
        error.to_string().contains("authorized_delegates"),
        "{error}"
    );
    node.agent.deny(false);
    until("it is a delegate", async || node.serial(&web).await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_of_one_pod_gets_its_own_by_the_workload_api() {
    let node = Node::new(SpireApi::Workload);
    let _running = node.agent.start();
    let web = node.ca.identity("shop", "web");
    node.certificates.prefetch(&web);
    let error = node.serial(&web).await.unwrap_err();
    assert!(matches!(error, CertificateError::Refused { .. }), "{error}");

    let mut leaf = TestLeaf::new(&web);
    leaf.not_after = SystemTime::now() + Duration::from_secs(4);
    node.agent.issue(&[THIS_PROCESS], &node.ca, &leaf);
    until("the entry is found", async || {
        node.serial(&web).await.is_ok()
    })
    .await;
    let first = node.serial(&web).await.unwrap();
    node.agent
        .issue(&[THIS_PROCESS], &node.ca, &TestLeaf::new(&web));
    until("the certificate is renewed", async || {
        node.serial(&web).await.is_ok_and(|serial| serial != first)
    })
    .await;
    let partner = TestCa::new("partner.example");
    node.agent.trust("partner.example", &[&partner]);
    until("the partner is trusted", async || {
        node.trusts("partner.example") == [partner.root().to_vec()]
    })
    .await;
}
