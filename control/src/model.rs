//! The one task between source and pushes: it waits for objects, translates, and publishes.
//!
//! It alone makes [`Model`]s. Everyone else (xDS streams, certificate authority, admin pages) reads
//! the latest from a `watch` channel and never waits for it.

use std::{collections::HashSet, sync::Arc, time::Duration};

use seine_identity::Identity;
use seine_objects::{ObjectSet, enrolment, pods};
use tokio::sync::watch;

use crate::{
    ca::NodeAuthorizer,
    translate::{Findings, Settings, translate},
    xds::Snapshot,
};

/// Everything that follows from the objects of one moment.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// The objects.
    pub objects: Arc<ObjectSet>,
    /// What proxies should hold.
    pub snapshot: Snapshot,
    /// What users should know.
    pub findings: Findings,
    /// Node, namespace and service account of each unfinished pod in the mesh.
    accounts: HashSet<(String, String, String)>,
    /// Service accounts (`namespace/name`) of waypoints and of Gateways that take connections from outside.
    gateways: HashSet<String>,
    /// How long the translation took.
    pub took: Duration,
}

impl Model {
    /// The model after this one.
    pub fn next(&self, objects: Arc<ObjectSet>, settings: &Settings) -> Self {
        let start = std::time::Instant::now();
        let resources = translate(&objects, settings);
        let snapshot = self
            .snapshot
            .next(&resources, settings)
            .unwrap_or_else(|| self.snapshot.clone());
        let accounts = accounts(&objects, settings);
        let gateways = objects.gateways.iter();
        let gateways = gateways
            .filter(|(_, gateway)| gateway.is_waypoint() || gateway.is_ingress())
            .map(|(key, _)| key.to_string())
            .collect();
        let findings = resources.findings;
        Self {
            objects,
            snapshot,
            findings,
            accounts,
            gateways,
            took: start.elapsed(),
        }
    }

    /// Whether a Gateway of ours has this service account.
    pub fn is_gateway(&self, account: &str) -> bool {
        self.gateways.contains(account)
    }

    /// Whether an unfinished pod in the mesh with this service account is on the node.
    pub fn runs(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        self.accounts
            .contains(&(node.into(), namespace.into(), service_account.into()))
    }
}

fn accounts(objects: &ObjectSet, settings: &Settings) -> HashSet<(String, String, String)> {
    let enrolled = objects.pods.iter().filter(|(key, pod)| {
        !pods::is_finished(pod)
            && enrolment(objects, &key.namespace, pod, &settings.enrolment).is_enrolled()
    });
    enrolled
        .filter_map(|(key, pod)| {
            let account = pods::service_account(pod).to_owned();
            Some((pods::node(pod)?.to_owned(), key.namespace.clone(), account))
        })
        .collect()
}

/// Translates the objects until their source is gone. The first model is made at once. Sources gather changes that come
/// together; those that come while one is made are all in the next.
pub async fn run(
    mut objects: watch::Receiver<Arc<ObjectSet>>,
    settings: Settings,
    models: watch::Sender<Arc<Model>>,
) {
    let settings = Arc::new(settings);
    loop {
        let set = objects.borrow_and_update().clone();
        let (held, settings) = (models.borrow().clone(), settings.clone());
        // A big cluster takes a while, which is not the runtime's.
        let next = tokio::task::spawn_blocking(move || held.next(set, &settings));
        match next.await {
            Ok(next) => {
                let generation = next.snapshot.generation;
                if generation != models.borrow().snapshot.generation {
                    tracing::info!(
                        generation,
                        addresses = next.snapshot.addresses.len(),
                        policies = next.snapshot.authorizations.len(),
                        took_ms = next.took.as_millis(),
                        "new configuration"
                    );
                }
                models.send_replace(Arc::new(next));
            }
            // The last good model stays.
            Err(error) => tracing::error!(%error, "translation failed"),
        }
        if objects.changed().await.is_err() {
            return;
        }
    }
}

/// A node may have certificates for the pods that run on it.
pub struct PodAuthorizer(watch::Receiver<Arc<Model>>);

impl PodAuthorizer {
    /// Judges by the latest model.
    pub fn new(models: watch::Receiver<Arc<Model>>) -> Self {
        Self(models)
    }
}

impl NodeAuthorizer for PodAuthorizer {
    fn may_issue(&self, node: &str, identity: &Identity) -> Result<(), String> {
        let (namespace, account) = (identity.namespace(), identity.service_account());
        match self.0.borrow().runs(node, namespace, account) {
            true => Ok(()),
            false => Err(format!(
                "no unfinished pod in the mesh with service account {namespace}/{account} runs on node {node}"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(services: usize) -> Arc<ObjectSet> {
        let service = |number| {
            format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: a}}\nspec: {{}}\n"
            )
        };
        let (set, problems) = ObjectSet::from_yaml(&(0..services).map(service).collect::<String>());
        assert_eq!(problems, []);
        Arc::new(set)
    }

    #[test]
    fn a_gateways_account_is_that_of_a_gateway_of_our_class() {
        let gateway = |name: &str, class: &str| {
            format!(
                "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{gatewayClassName: {class}, listeners: []}}\n"
            )
        };
        let yaml = gateway("wp", "seine-waypoint")
            + &gateway("in", "seine")
            + &gateway("other", "istio-waypoint");
        let (set, problems) = ObjectSet::from_yaml(&yaml);
        assert_eq!(problems, []);
        let model = Model::default().next(Arc::new(set), &Settings::default());
        assert!(model.is_gateway("shop/wp") && model.is_gateway("shop/in"));
        for other in ["shop/other", "other/wp", "wp"] {
            assert!(!model.is_gateway(other), "{other}");
        }
    }

    #[tokio::test]
    async fn what_comes_while_a_model_is_made_is_in_the_next_and_nothing_new_makes_no_generation() {
        let (objects, receiver) = watch::channel(set(0));
        let (models, mut seen) = watch::channel(Arc::<Model>::default());
        tokio::spawn(run(receiver, Settings::default(), models));
        for number in 1..=50 {
            objects.send_replace(set(number));
        }
        let has = |model: &Arc<Model>| model.snapshot.addresses.len() == 50;
        let first = seen.wait_for(has).await.unwrap().snapshot.generation;
        assert!(first <= 2, "{first} generations of what came at once");
        objects.send_replace(set(50));
        seen.changed().await.unwrap();
        assert_eq!(seen.borrow_and_update().snapshot.generation, first);
        objects.send_replace(set(51));
        seen.changed().await.unwrap();
        assert_eq!(seen.borrow_and_update().snapshot.generation, first + 1);
    }

    #[test]
    fn a_node_may_only_have_the_identities_of_its_own_unfinished_enrolled_pods() {
        let pod = |namespace: &str, name: &str, node: &str, phase: &str| {
            format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{nodeName: {node}, serviceAccountName: {name}, containers: []}}\nstatus: {{phase: {phase}}}\n"
            )
        };
        let yaml = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {seine.dev/mesh: enabled}}\n"
            .to_owned()
            + &pod("shop", "web", "n1", "Pending")
            + &pod("shop", "done", "n1", "Succeeded")
            + &pod("plain", "out", "n1", "Running");
        let (objects, _) = ObjectSet::from_yaml(&yaml);
        let model = Model::default().next(Arc::new(objects), &Settings::default());
        let (_sender, models) = watch::channel(Arc::new(model));
        let authorizer = PodAuthorizer::new(models);
        let may = |node: &str, id: &str| authorizer.may_issue(node, &id.parse().unwrap());
        assert_eq!(may("n1", "spiffe://cluster.local/ns/shop/sa/web"), Ok(()));
        assert!(may("n2", "spiffe://cluster.local/ns/shop/sa/web").is_err());
        assert!(may("n1", "spiffe://cluster.local/ns/shop/sa/done").is_err());
        assert!(may("n1", "spiffe://cluster.local/ns/plain/sa/out").is_err());
    }
}
