//! What a replica does with the API server beside reading objects: its part of the CA, the
//! election, and what [`crate::publish`] writes.

use std::sync::Arc;

use kube::Client;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    ca::{Authority, CaError, CaOptions, SecretStore, follow_external},
    leader::{Election, ElectionOptions, Leadership},
    publish::{
        gateway_status,
        held_map::{self, Replica},
        trust_bundle::{self, BundleOptions},
        waypoint::{self, Made, Template},
        writer::{self, Sources},
    },
    translate::Settings,
    xds::server::Clients,
};

/// The cluster that this replica is part of.
#[derive(Clone)]
pub struct Cluster {
    /// For its API server.
    pub client: Client,
    /// Which replica this is.
    pub replica: Replica,
    /// What waypoints are made of; without it none are.
    pub waypoints: Option<Template>,
}

impl Cluster {
    /// The CA of Secret `seine-ca`, and the task that follows Secret `seine-intermediate`.
    ///
    /// # Errors
    ///
    /// When the Secrets can't be read or written, or are no good.
    pub async fn open_authority(
        &self,
        options: CaOptions,
    ) -> Result<(Arc<Authority>, AbortOnDropHandle<()>), CaError> {
        let namespace = &self.replica.namespace;
        let domain = options.trust_domain.clone();
        let (external, follows) = follow_external(self.client.clone(), namespace, domain).await?;
        let store = Box::new(SecretStore::new(self.client.clone(), namespace));
        let authority = Authority::open(options, store, external).await?;
        Ok((authority, follows))
    }

    /// Begins to take part in the election of the leader.
    pub fn elect(&self) -> Election {
        let options = ElectionOptions::new(&self.replica.namespace, &self.replica.pod);
        Election::start(self.client.clone(), options)
    }

    /// Writes what every replica writes, and while it leads what the leader does. Never ends.
    pub async fn write(
        self,
        leadership: Leadership,
        authority: Arc<Authority>,
        sources: Sources,
        clients: Clients,
        settings: Settings,
    ) {
        let models = sources.models.clone();
        let held = held_map::write(self.client.clone(), self.replica.clone(), models, clients);
        let lead = self.lead(leadership, authority, sources, settings);
        tokio::join!(held, lead);
    }

    async fn lead(
        &self,
        mut leadership: Leadership,
        authority: Arc<Authority>,
        sources: Sources,
        settings: Settings,
    ) {
        let (client, replica) = (&self.client, &self.replica);
        loop {
            leadership.acquired().await;
            let bundles = trust_bundle::publish(
                client.clone(),
                BundleOptions {
                    system_namespace: replica.namespace.clone(),
                    enrolment: settings.enrolment.clone(),
                },
                sources.models.clone(),
                authority.subscribe_roots(),
            );
            let statuses = writer::write(
                client.clone(),
                replica.pod.clone(),
                replica.namespace.clone(),
                sources.clone(),
                settings.istio_root_namespace.is_some(),
            );
            let (made, outcomes) = watch::channel(Made::new());
            let gateways = gateway_status::write(
                client.clone(),
                settings.enrolment.clone(),
                sources.models.clone(),
                outcomes,
            );
            let waypoints = async {
                match self.waypoints.clone() {
                    Some(template) => {
                        waypoint::make(client.clone(), template, sources.models.clone(), made)
                            .await;
                    }
                    // The Gateways' statuses wait for it.
                    None => {
                        let _made = made;
                        std::future::pending().await
                    }
                }
            };
            let work = async { tokio::join!(bundles, statuses, waypoints, gateways) };
            if leadership.lead(work).await.is_some() {
                // The model is gone: the process ends.
                return;
            }
        }
    }
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("replica", &self.replica)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use seine_kubernetes::{KubernetesSource, Scope};
    use seine_objects::{ObjectKey, ObjectSet};
    use serde_json::{Value, json};

    use crate::fake_api::FakeApi;

    const ISTIO: &str = "/apis/security.istio.io/v1";

    fn define(api: &FakeApi, plural: &str, version: &str) {
        let name = format!("{plural}.security.istio.io");
        api.put(
            &format!("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"),
            json!({
                "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                "spec": {
                    "group": "security.istio.io", "scope": "Namespaced",
                    "names": {"kind": "K", "plural": plural},
                    "versions": [{"name": version, "served": true, "storage": true}],
                },
                "status": {"conditions": [{"type": "Established", "status": "True"}]},
            }),
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_secrets_that_gateways_name_are_read_by_their_names_and_anew() {
        let api = FakeApi::default();
        let secret = |key: &str| {
            json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {}, "type": "kubernetes.io/tls",
                "data": {"tls.crt": "Yw==", "tls.key": key},
            })
        };
        let path =
            |namespace: &str, name: &str| format!("/api/v1/namespaces/{namespace}/secrets/{name}");
        for (namespace, name) in [("shop", "named"), ("shop", "other"), ("team", "named")] {
            api.put(&path(namespace, name), secret("a2V5"));
        }
        let listener = |namespace: &str, name: &str| {
            json!({
                "name": "a", "port": 443, "protocol": "HTTPS",
                "tls": {"certificateRefs": [{"namespace": namespace, "name": name}]},
            })
        };
        let gateway = |class: &str, listeners: Value| {
            json!({
                "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {},
                "spec": {"gatewayClassName": class, "listeners": listeners},
            })
        };
        let gateways = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/gateways";
        let ours = json!([
            listener("shop", "named"),
            listener("shop", "gone"),
            listener("team", "named")
        ]);
        api.put(&format!("{gateways}/ours"), gateway("seine", ours));
        let others = json!([listener("shop", "other")]);
        api.put(&format!("{gateways}/others"), gateway("other", others));
        let source = KubernetesSource::start(api.client(), Scope::Cluster { istio: false }).await;
        // The very first set has them, and of another namespace none that no grant admits.
        let key = ObjectKey::new("shop", "named");
        let first = source.objects();
        let names: Vec<_> = first.secrets.keys().collect();
        assert_eq!(names, [&key]);
        assert_eq!(first.secrets[&key].pair().unwrap().1, b"key");

        let mut objects = source.subscribe();
        api.put(&path("shop", "named"), secret("bmV3"));
        let is_new = |set: &Arc<ObjectSet>| {
            let found = set.secrets.get(&key);
            found.is_some_and(|secret| secret.pair().unwrap().1 == b"new")
        };
        let wait = Duration::from_secs(30);
        let changed = tokio::time::timeout(wait, objects.wait_for(is_new)).await;
        drop(changed.unwrap().unwrap());
        api.delete(&path("shop", "named"));
        let gone = objects.wait_for(|set| set.secrets.is_empty());
        drop(tokio::time::timeout(wait, gone).await.unwrap().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn istios_policies_are_read_once_their_crds_have_our_version_and_nothing_waits_for_them()
    {
        let api = FakeApi::default();
        api.knows(ISTIO, false);
        // An older Istio's.
        define(&api, "peerauthentications", "v1beta1");
        let source = KubernetesSource::start(api.client(), Scope::Cluster { istio: true }).await;
        let set = source.objects();
        assert!(set.istio_authorization_policies.is_empty() && set.peer_authentications.is_empty());

        api.knows(ISTIO, true);
        for (plural, kind) in [
            ("authorizationpolicies", "AuthorizationPolicy"),
            ("peerauthentications", "PeerAuthentication"),
            ("requestauthentications", "RequestAuthentication"),
        ] {
            define(&api, plural, "v1");
            let path = format!("{ISTIO}/namespaces/shop/{plural}/p");
            let object = json!({"apiVersion": "security.istio.io/v1", "kind": kind, "metadata": {}, "spec": {}});
            api.put(&path, object);
        }
        let mut objects = source.subscribe();
        let key = ObjectKey::new("shop", "p");
        let both = objects.wait_for(|set| {
            set.istio_authorization_policies.contains_key(&key)
                && set.peer_authentications.contains_key(&key)
                && set.istio_request_authentications.contains_key(&key)
        });
        let both = tokio::time::timeout(Duration::from_secs(300), both).await;
        both.unwrap().unwrap();

        // As when its CRD is deleted, which deletes it.
        api.delete(&format!("{ISTIO}/namespaces/shop/authorizationpolicies/p"));
        let gone = objects.wait_for(|set| set.istio_authorization_policies.is_empty());
        let gone = tokio::time::timeout(Duration::from_secs(300), gone).await;
        assert_eq!(gone.unwrap().unwrap().peer_authentications.len(), 1);
    }
}
