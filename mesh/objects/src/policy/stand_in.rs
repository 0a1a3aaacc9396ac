//! What stands in for a policy that is invalid, where nobody knows what it said before: never less
//! than it may have said.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    Action, AuthorizationPolicy, AuthorizationPolicySpec, Errors, MeshTls, MeshTlsSpec, Mode,
    RequestAuthentication, RequestAuthenticationSpec, Rule, Selector,
};
use crate::{Kind, Object, istio};

/// A policy for the same pods (of a selector that can't be read: all of the namespace) that denies
/// every connection, or of `MeshTLS` every plaintext one. One of `RequestAuthentication` has no rules, which no
/// valid one has, and so accepts nobody; without targets it is for all Services of its namespace. `None`: another kind,
/// or a policy that says readably that it enforces nothing.
pub(crate) fn stand_in(kind: Kind, value: &Value) -> Option<Object> {
    match kind {
        Kind::IstioAuthorizationPolicy => return istio::authorization_stand_in(value),
        Kind::PeerAuthentication => return istio::peer_authentication_stand_in(value),
        Kind::IstioRequestAuthentication => return istio::request_authentication_stand_in(value),
        _ => {}
    }
    let metadata: ObjectMeta = read(&value["metadata"])?;
    let spec = &value["spec"];
    let selector = read(&spec["selector"]).filter(is_valid);
    Some(match kind {
        Kind::AuthorizationPolicy => {
            if spec["dryRun"] == true || spec["action"] == "Audit" {
                return None;
            }
            // Of a policy with both nobody can say which of them is meant.
            let (selector, target_refs) = match (&spec["selector"], read(&spec["targetRefs"])) {
                (Value::Null, targets) => (None, targets.unwrap_or_default()),
                (_, None) => (selector, Vec::new()),
                (_, Some(_)) => (None, Vec::new()),
            };
            Object::AuthorizationPolicy(Arc::new(AuthorizationPolicy {
                metadata,
                spec: AuthorizationPolicySpec {
                    action: Action::Deny,
                    selector,
                    target_refs,
                    rules: vec![Rule::default()],
                    ..Default::default()
                },
                status: None,
            }))
        }
        Kind::MeshTls => Object::MeshTls(Arc::new(MeshTls {
            metadata,
            spec: MeshTlsSpec {
                mode: Some(Mode::Strict),
                selector,
                ports: Vec::new(),
            },
            status: None,
        })),
        Kind::RequestAuthentication => {
            Object::RequestAuthentication(Arc::new(RequestAuthentication {
                metadata,
                spec: RequestAuthenticationSpec {
                    target_refs: read(&spec["targetRefs"]).unwrap_or_default(),
                    jwt_rules: Vec::new(),
                },
                status: None,
            }))
        }
        _ => return None,
    })
}

fn read<T: DeserializeOwned>(value: &Value) -> Option<T> {
    T::deserialize(value).ok()
}

fn is_valid(selector: &Selector) -> bool {
    let mut errors = Errors::default();
    selector.validate("", &mut errors);
    errors.0.is_empty()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn policy(spec: &Value) -> Option<AuthorizationPolicySpec> {
        let value = json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": spec});
        match stand_in(Kind::AuthorizationPolicy, &value)? {
            Object::AuthorizationPolicy(policy) => Some(policy.spec.clone()),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn everything_is_denied_to_what_the_policy_selects_as_far_as_that_can_be_read() {
        let db = json!({"matchLabels": {"app": "db"}});
        let web = json!([{"kind": "Service", "name": "web"}]);
        // The selector's labels and the target's name that the stand-in has.
        let cases = [
            (json!({"selector": db, "rules": 1}), Some("db"), None),
            (json!({"targetRefs": web, "rule": []}), None, Some("web")),
            (json!({"rules": 1}), None, None),
            (json!({"selector": {"matchLabel": {}}}), None, None),
            (json!({"selector": {}}), None, None),
            (json!({"selector": db, "targetRefs": web}), None, None),
            (json!({"targetRefs": "web"}), None, None),
            (json!("odd"), None, None),
        ];
        for (spec, label, target) in cases {
            let found = policy(&spec).unwrap();
            assert_eq!((found.action, found.dry_run), (Action::Deny, false));
            assert_eq!(found.rules, [Rule::default()], "{spec}");
            let selector = found.selector.as_ref();
            let labels = selector.and_then(|selector| selector.match_labels.get("app"));
            assert_eq!(labels.map(String::as_str), label, "{spec}");
            let name = found.target_refs.first().map(|found| &*found.name);
            assert_eq!(name, target, "{spec}");
        }
    }

    #[test]
    fn a_policy_that_enforces_nothing_has_no_stand_in() {
        assert_eq!(policy(&json!({"dryRun": true, "rules": 1})), None);
        assert_eq!(policy(&json!({"action": "Audit", "rules": 1})), None);
        assert!(policy(&json!({"dryRun": "true", "rules": 1})).is_some());
        let pod = json!({"metadata": {"name": "p"}, "spec": 1});
        assert_eq!(stand_in(Kind::Pod, &pod), None);
    }

    #[test]
    fn plaintext_is_denied_by_the_stand_in_of_a_mesh_tls() {
        let value = json!({
            "metadata": {"name": "p", "namespace": "shop"},
            "spec": {"mode": "Strickt", "selector": {"matchLabels": {"app": "db"}}},
        });
        let Some(Object::MeshTls(found)) = stand_in(Kind::MeshTls, &value) else {
            panic!("no stand-in");
        };
        assert_eq!(found.spec.mode, Some(Mode::Strict));
        assert!(found.spec.selector.is_some());
    }

    #[test]
    fn nobody_is_accepted_by_the_stand_in_of_a_request_authentication() {
        let stand_in_of = |spec: Value| {
            let value = json!({"metadata": {"name": "p", "namespace": "shop"}, "spec": spec});
            match stand_in(Kind::RequestAuthentication, &value) {
                Some(Object::RequestAuthentication(found)) => found.spec.clone(),
                other => panic!("{other:?}"),
            }
        };
        let web = json!([{"kind": "Service", "name": "web"}]);
        let found = stand_in_of(json!({"targetRefs": web, "jwtRule": []}));
        assert_eq!((found.target_refs.len(), found.jwt_rules.len()), (1, 0));
        assert!(stand_in_of(json!({"jwtRules": 1})).target_refs.is_empty());
    }
}
