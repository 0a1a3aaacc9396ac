//! What the Gateway API wants said of a `BackendTLSPolicy`, for each Gateway that sends to its targets. Pure.

use seine_objects::gateway::{BackendTlsPolicy, CONTROLLER, GROUP};
use seine_objects::{ObjectKey, ObjectSet};
use serde_json::{Value, json};

use super::condition;
use crate::translate::Claims;
use crate::translate::backend_tls::{self, Judged};
use crate::translate::ingress::Because;

/// The items of `status.ancestors` that are ours.
pub fn ancestor_statuses(
    objects: &ObjectSet,
    claims: &Claims,
    key: &ObjectKey,
    policy: &BackendTlsPolicy,
) -> Vec<Value> {
    let generation = policy.metadata.generation;
    let Judged {
        refused,
        unresolved,
        ..
    } = backend_tls::judge(objects, key, policy);
    let said = |kind: &'static str, because: &Option<Because>, good: &'static str| {
        let (status, reason, message) = match because {
            Some(Because { reason, message }) => (false, *reason, message.clone()),
            None => (true, good, "nothing is wrong with it".to_owned()),
        };
        condition(kind, status, reason, message, generation)
    };
    let gateways = backend_tls::gateways(objects, claims, key, policy).into_iter();
    let items = gateways.map(|gateway| {
        json!({
            "ancestorRef": {
                "group": GROUP, "kind": "Gateway", "namespace": gateway.namespace, "name": gateway.name,
            },
            "controllerName": CONTROLLER,
            "conditions": [
                said("Accepted", &refused, "Accepted"),
                said("ResolvedRefs", &unresolved, "ResolvedRefs"),
            ],
        })
    });
    // As many as the API has room for.
    items.take(16).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gateway_that_sends_to_a_target_is_told() {
        let yaml = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: in, namespace: edge}
spec: {gatewayClassName: seine, listeners: [{name: a, port: 80, protocol: HTTP, allowedRoutes: {namespaces: {from: All}}}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: idle, namespace: edge}
spec: {gatewayClassName: seine, listeners: [{name: a, port: 80, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: r, namespace: shop}
spec: {parentRefs: [{name: in, namespace: edge}], rules: [{backendRefs: [{name: web, port: 443}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: p, namespace: shop, generation: 4}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  validation: {hostname: a.example, caCertificateRefs: [{group: '', kind: ConfigMap, name: gone}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: BackendTLSPolicy
metadata: {name: unused, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: other}]
  validation: {hostname: a.example, caCertificateRefs: [{group: '', kind: ConfigMap, name: gone}]}
";
        let (objects, problems) = ObjectSet::from_yaml(yaml);
        assert_eq!(problems, []);
        let statuses = |name: &str| {
            let key = ObjectKey::new("shop", name);
            let policy = &objects.backend_tls_policies[&key];
            ancestor_statuses(&objects, &Claims::of(&objects), &key, policy)
        };
        let told = statuses("p");
        assert_eq!(told.len(), 1);
        assert_eq!(told[0]["ancestorRef"]["name"], "in");
        let conditions = told[0]["conditions"].as_array().unwrap().iter();
        let said = conditions.map(|one| {
            assert_eq!(one["observedGeneration"], 4);
            format!(
                "{} {}",
                one["status"].as_str().unwrap(),
                one["reason"].as_str().unwrap()
            )
        });
        let said: Vec<_> = said.collect();
        assert_eq!(
            said,
            [
                "False NoValidCACertificate",
                "False InvalidCACertificateRef"
            ]
        );
        assert!(statuses("unused").is_empty());
    }
}
