//! What stands in for one of Istio's policies that is invalid; as for our own (`policy/stand_in.rs`).

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{
    Action, AuthorizationPolicy, AuthorizationPolicySpec, JwtRule, MutualTls, PeerAuthentication,
    PeerAuthenticationSpec, RequestAuthentication, RequestAuthenticationSpec, Rule, TargetRef,
    TlsMode, WorkloadSelector,
};
use crate::{Object, policy::Errors};

/// Denies every connection to what the policy selects, as far as that can be read. `None`: it says readably that it
/// enforces nothing.
pub(crate) fn authorization_stand_in(value: &Value) -> Option<Object> {
    let spec = &value["spec"];
    let one: Option<TargetRef> = read(&spec["targetRef"]);
    let many: Option<Vec<TargetRef>> = read(&spec["targetRefs"]);
    let attached = !spec["targetRef"].is_null() || !spec["targetRefs"].is_null();
    let both = attached && !spec["selector"].is_null();
    let policy = AuthorizationPolicy {
        metadata: read(&value["metadata"])?,
        spec: AuthorizationPolicySpec {
            action: Action::Deny,
            selector: selector(spec).filter(|_| !both),
            target_ref: one.filter(|_| !both),
            target_refs: many.filter(|_| !both).unwrap_or_default(),
            rules: vec![Rule::default()],
            ..Default::default()
        },
        ..Default::default()
    };
    if policy.is_dry_run() || spec["action"] == "AUDIT" {
        return None;
    }
    Some(Object::IstioAuthorizationPolicy(Arc::new(policy)))
}

/// Denies plaintext to what it selects.
pub(crate) fn peer_authentication_stand_in(value: &Value) -> Option<Object> {
    let metadata: ObjectMeta = read(&value["metadata"])?;
    let strict = PeerAuthentication {
        metadata,
        spec: PeerAuthenticationSpec {
            selector: selector(&value["spec"]),
            mtls: Some(MutualTls {
                mode: TlsMode::Strict,
            }),
            ..Default::default()
        },
        ..Default::default()
    };
    Some(Object::PeerAuthentication(Arc::new(strict)))
}

/// Accepts no request to what it is attached to; where that can't be read, it has neither targets nor a selector.
pub(crate) fn request_authentication_stand_in(value: &Value) -> Option<Object> {
    let spec = &value["spec"];
    let attached = !spec["targetRef"].is_null() || !spec["targetRefs"].is_null();
    let one: Option<TargetRef> = read(&spec["targetRef"]);
    let many: Option<Vec<TargetRef>> = read(&spec["targetRefs"]);
    let nobody = RequestAuthentication {
        metadata: read(&value["metadata"])?,
        spec: RequestAuthenticationSpec {
            selector: (!attached).then(|| selector(spec).unwrap_or_default()),
            target_ref: one,
            target_refs: many.unwrap_or_default(),
            // No valid one is without an issuer.
            jwt_rules: vec![JwtRule::default()],
        },
        ..Default::default()
    };
    Some(Object::IstioRequestAuthentication(Arc::new(nobody)))
}

/// One that is valid; another may have selected anything.
fn selector(spec: &Value) -> Option<WorkloadSelector> {
    read(&spec["selector"]).filter(|selector: &WorkloadSelector| {
        let mut errors = Errors::default();
        selector.validate("", &mut errors);
        errors.0.is_empty()
    })
}

fn read<T: DeserializeOwned>(value: &Value) -> Option<T> {
    T::deserialize(value).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn everything_is_denied_to_what_an_invalid_policy_selects() {
        let db = json!({"matchLabels": {"app": "db"}});
        let service = json!({"kind": "Service", "name": "web"});
        let cases = [
            (json!({"selector": db, "rules": 1}), true, 0),
            (json!({"selector": {"matchLabel": {}}}), false, 0),
            (json!({"targetRefs": [service], "x": 1}), false, 1),
            (json!({"targetRef": service, "x": 1}), false, 1),
            (json!({"selector": db, "targetRefs": [service]}), false, 0),
            (json!("odd"), false, 0),
        ];
        for (spec, selects, targets) in cases {
            let value = json!({"metadata": {"name": "p"}, "spec": spec});
            let Some(Object::IstioAuthorizationPolicy(found)) = authorization_stand_in(&value)
            else {
                panic!("{spec}");
            };
            assert_eq!(found.spec.action, Action::Deny);
            assert_eq!(found.spec.rules, [Rule::default()]);
            assert_eq!(found.selector().is_some(), selects, "{spec}");
            assert_eq!(found.targets().count(), targets, "{spec}");
        }
        let audit = json!({"metadata": {}, "spec": {"action": "AUDIT", "x": 1}});
        assert_eq!(authorization_stand_in(&audit), None);
        let annotations = json!({"istio.io/dry-run": "true"});
        let dry = json!({"metadata": {"annotations": annotations}, "spec": {"x": 1}});
        assert_eq!(authorization_stand_in(&dry), None);
    }

    #[test]
    fn plaintext_is_denied_by_the_stand_in_of_a_peer_authentication() {
        let value = json!({"metadata": {"name": "p"}, "spec": {"mtls": {"mode": "ODD"}}});
        let Some(Object::PeerAuthentication(found)) = peer_authentication_stand_in(&value) else {
            panic!("no stand-in");
        };
        assert_eq!(found.spec.mtls.unwrap().mode, TlsMode::Strict);
    }
}
