//! `RequestAuthentication` for waypoints: one resource, which the services that it is attached to list.

use std::collections::BTreeMap;

use seine_objects::{
    ObjectKey, ObjectSet, gateway, istio,
    policy::{JwtRule, RequestAuthentication},
};
use seine_proto::waypoint as wire;

use super::{
    PolicyFinding, Resources, Settings,
    policy::{no_gateway, no_service, no_target},
    request, service,
};

/// Adds every object with a service that is bound to a waypoint, or that is a Gateway's own, and its name to the service.
pub(super) fn translate(
    objects: &ObjectSet,
    services: &mut BTreeMap<ObjectKey, service::Translated>,
    settings: &Settings,
    resources: &mut Resources,
) {
    for (key, policy) in &objects.request_authentications {
        let mut finding = PolicyFinding::default();
        let targets = targets(key, policy, objects, services, &mut finding);
        let rules = &policy.spec.jwt_rules;
        // No valid one is without, so that nobody knows what it says.
        let refused = rules.is_empty().then(|| not_valid(key));
        let message = compile(rules, refused);
        attach(
            key.to_string(),
            &targets,
            message,
            objects,
            services,
            resources,
            &mut finding,
        );
        let findings = &mut resources.findings.request_authentications;
        findings.insert(key.clone(), finding);
    }
    if settings.istio_root_namespace.is_none() {
        return;
    }
    for (key, policy) in &objects.istio_request_authentications {
        let mut finding = PolicyFinding::default();
        let targets = istio_targets(key, policy, objects, services, &mut finding);
        // Without a rule it says nothing.
        if !policy.spec.jwt_rules.is_empty() {
            finding.refused = policy.unobeyed();
            let unobeyed = || {
                let fields = finding.refused.join(", ");
                format!("RequestAuthentication {key} has {fields}, which is not obeyed")
            };
            let refused = match policy.is_stand_in() {
                true => Some(not_valid(key)),
                false => (!finding.refused.is_empty()).then(unobeyed),
            };
            let message = compile(&policy.rules(), refused);
            // No object has that name, so one of ours of the same name is another resource.
            let name = format!("{}/istio_{}", key.namespace, key.name);
            attach(
                name,
                &targets,
                message,
                objects,
                services,
                resources,
                &mut finding,
            );
        }
        let findings = &mut resources.findings.istio_request_authentications;
        findings.insert(key.clone(), finding);
    }
}

fn not_valid(key: &ObjectKey) -> String {
    format!("RequestAuthentication {key}, which is not valid")
}

/// Has the services list it by a name.
fn attach(
    name: String,
    targets: &[ObjectKey],
    message: wire::RequestAuthentication,
    objects: &ObjectSet,
    services: &mut BTreeMap<ObjectKey, service::Translated>,
    resources: &mut Resources,
    finding: &mut PolicyFinding,
) {
    for target in targets {
        let Some(service) = services.get_mut(target) else {
            continue;
        };
        if service.waypoint.is_none() && !request::is_ingress(objects, target) {
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
        resources.authentications.insert(name, message);
    }
}

/// The services that Istio's object is attached to. What it says of pods nobody checks there.
fn istio_targets(
    key: &ObjectKey,
    policy: &istio::RequestAuthentication,
    objects: &ObjectSet,
    services: &BTreeMap<ObjectKey, service::Translated>,
    finding: &mut PolicyFinding,
) -> Vec<ObjectKey> {
    let spec = &policy.spec;
    if policy.targets().next().is_none() {
        if policy.is_stand_in() && spec.selector.is_none() {
            return of_namespace(key, services);
        }
        let why = "without targetRefs it is about pods, whose node proxies see no tokens: a sidecar or gateway of Istio's may check them";
        finding.elsewhere.push(why.into());
        return Vec::new();
    }
    let mut found = Vec::new();
    for (path, target) in policy.targets() {
        let of = ObjectKey::new(&key.namespace, &target.name);
        match (target.group.as_str(), target.kind.as_str()) {
            ("" | "core", "Service") if services.contains_key(&of) => found.push(of),
            ("" | "core", "Service") => finding.unresolved.push(no_service(&target.name)),
            (gateway::GROUP, "Gateway")
                if request::is_ingress(objects, &of) && services.contains_key(&of) =>
            {
                found.push(of);
            }
            (_, kind) => finding.elsewhere.push(format!(
                "{path}: what is for {kind} {} is checked by its own proxy or by none",
                target.name
            )),
        }
    }
    found
}

fn of_namespace(
    key: &ObjectKey,
    services: &BTreeMap<ObjectKey, service::Translated>,
) -> Vec<ObjectKey> {
    let services = services.keys();
    let own = services.filter(|service| service.namespace == key.namespace);
    own.cloned().collect()
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
        return of_namespace(key, services);
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

fn compile(rules: &[JwtRule], refused: Option<String>) -> wire::RequestAuthentication {
    // What is refused need not be understood.
    let understood = rules.iter().filter(|_| refused.is_none());
    wire::RequestAuthentication {
        rules: understood.map(rule).collect(),
        refused: refused.unwrap_or_default(),
    }
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
