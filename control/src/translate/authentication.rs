//! `RequestAuthentication` for waypoints: one resource, which the services that it is attached to list.

use std::collections::BTreeMap;

use seine_objects::{
    ObjectKey, ObjectSet, gateway,
    policy::{JwtRule, RequestAuthentication},
};
use seine_proto::waypoint as wire;

use super::{
    PolicyFinding, Resources,
    policy::{no_gateway, no_service, no_target},
    request, service,
};

/// Adds every object with a service that is bound to a waypoint, or that is a Gateway's own, and its name to the service.
pub(super) fn translate(
    objects: &ObjectSet,
    services: &mut BTreeMap<ObjectKey, service::Translated>,
    resources: &mut Resources,
) {
    for (key, policy) in &objects.request_authentications {
        let mut finding = PolicyFinding::default();
        let name = key.to_string();
        for target in targets(key, policy, objects, services, &mut finding) {
            let Some(service) = services.get_mut(&target) else {
                continue;
            };
            if service.waypoint.is_none() && !request::is_ingress(objects, &target) {
                let what = format!("the tokens of requests to Service {target}");
                finding.unenforced.push(what);
                continue;
            }
            if !service.authentications.contains(&name) {
                service.authentications.push(name.clone());
            }
            finding.authentications.insert(name.clone());
        }
        if !finding.authentications.is_empty() {
            let found = compile(key, policy);
            resources.authentications.insert(name, found);
        }
        let findings = &mut resources.findings.request_authentications;
        findings.insert(key.clone(), finding);
    }
}

/// The services that it is attached to. What stands in for one that can't be read may have no target, and then is for
/// all of its namespace.
fn targets(
    key: &ObjectKey,
    policy: &RequestAuthentication,
    objects: &ObjectSet,
    services: &BTreeMap<ObjectKey, service::Translated>,
    finding: &mut PolicyFinding,
) -> Vec<ObjectKey> {
    let spec = &policy.spec;
    if spec.target_refs.is_empty() {
        let own = services
            .keys()
            .filter(|service| service.namespace == key.namespace);
        return own.cloned().collect();
    }
    let mut found = Vec::new();
    for target in &spec.target_refs {
        let service = ObjectKey::new(&key.namespace, &target.name);
        match (target.group.as_str(), target.kind.as_str()) {
            ("" | "core", "Service") if services.contains_key(&service) => found.push(service),
            ("" | "core", "Service") => finding.unresolved.push(no_service(&target.name)),
            (gateway::GROUP, "Gateway") => {
                match request::is_ingress(objects, &service) && services.contains_key(&service) {
                    true => found.push(service),
                    false => finding.unresolved.push(no_gateway(&service)),
                }
            }
            (group, kind) => finding.unresolved.push(no_target(group, kind)),
        }
    }
    found
}

fn compile(key: &ObjectKey, policy: &RequestAuthentication) -> wire::RequestAuthentication {
    let rules: Vec<_> = policy.spec.jwt_rules.iter().map(rule).collect();
    // No valid one is without, so that nobody knows what it says.
    let refused = match rules.is_empty() {
        true => format!("RequestAuthentication {key}, which is not valid"),
        false => String::new(),
    };
    wire::RequestAuthentication { rules, refused }
}

fn rule(rule: &JwtRule) -> wire::JwtRule {
    let headers = rule.from_headers.iter();
    let outputs = rule.output_claim_to_headers.iter();
    wire::JwtRule {
        issuer: rule.issuer.clone(),
        audiences: rule.audiences.clone(),
        jwks: rule.jwks.clone().unwrap_or_default(),
        jwks_uri: rule.jwks_uri.clone().unwrap_or_default(),
        from_headers: headers
            .map(|header| wire::TokenHeader {
                name: header.name.to_ascii_lowercase(),
                prefix: header.prefix.clone(),
            })
            .collect(),
        from_params: rule.from_params.clone(),
        forward: rule.forward_original_token,
        claim_headers: outputs
            .map(|output| wire::ClaimHeader {
                header: output.header.to_ascii_lowercase(),
                path: output.path.clone(),
            })
            .collect(),
    }
}
