//! A proxy whose certificates and trust come from a SPIRE agent; the control plane's CA gives nothing.

use std::sync::Arc;
use std::time::Duration;

use seine_hbone::OpenError;
use seine_identity::testing::{TestCa, TestLeaf};
use seine_identity::{Credentials, SharedBundles, TlsOptions, TrustBundles};
use seine_spire::Agent;

use crate::{Client, Node, exchange, finish};

impl Node {
    /// A connection from beginning to end, as whoever has these credentials.
    async fn exchange_as(&self, credentials: &Arc<Credentials>) -> Result<(), OpenError> {
        let mut client = Client::of(self);
        client.credentials = credentials.clone();
        let mut stream = client.open(self.application).await?;
        exchange(&mut stream).await.unwrap();
        finish(stream).await.unwrap();
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spire_says_who_a_pod_is_and_whom_it_trusts() {
    let Some(node) = Node::new() else {
        println!("SKIPPED certificates from SPIRE: it needs root");
        return;
    };
    let _control = node.control.start_without_ca();
    let ca = TestCa::new("cluster.local");
    let agent = Agent::new(&node.folder.path().join("spire"));
    agent.trust("cluster.local", &[&ca]);
    let running = agent.start();
    let socket = agent.socket().to_str().unwrap();
    let proxy = node.proxy_with("proxy", &[("--spire-socket", socket)]);

    // No entry yet: the reason is to be seen, and what to register.
    proxy
        .logs(&["no registration entry gives spiffe://cluster.local/ns/shop/sa/b"])
        .await;
    assert!(!proxy.readiness().contains("200 OK"));
    let leaf = TestLeaf::new(&ca.identity("shop", "b"));
    agent.issue(&["k8s:ns:shop", "k8s:sa:b"], &ca, &leaf);
    proxy.says(&["200 OK"]).await;
    node.exchange_as(&ca.credentials("shop", "web"))
        .await
        .unwrap();
    // SPIRE alone is trusted.
    node.exchange().await.unwrap_err();

    // A client of a federated domain, as soon as the agent names its roots.
    let partner = TestCa::new("partner.example");
    let theirs = Credentials::new(
        Arc::new(partner.svid("shop", "web")),
        Arc::new(SharedBundles::new(
            TrustBundles::new().with(ca.bundle()).unwrap(),
        )),
        TlsOptions::default(),
    );
    let theirs = Arc::new(theirs.unwrap());
    node.exchange_as(&theirs).await.unwrap_err();
    agent.trust("partner.example", &[&partner]);
    proxy.logs(&["trust_domain=partner.example"]).await;
    node.exchange_as(&theirs).await.unwrap();
    agent.distrust("partner.example");
    proxy.logs(&["not trusted any more"]).await;
    node.exchange_as(&theirs).await.unwrap_err();

    // With the agent away everything goes on.
    drop(running);
    proxy.logs(&["its trust bundles are not followed"]).await;
    node.exchange_as(&ca.credentials("shop", "web"))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(proxy.readiness().contains("200 OK"));
}
