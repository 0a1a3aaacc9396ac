//! What the Gateway API wants said of a Gateway that takes connections from outside the mesh. Pure.

use std::collections::BTreeMap;

use seine_objects::gateway::{GROUP, Gateway};
use seine_objects::{ObjectKey, ObjectSet};
use serde_json::{Value, json};

use super::gateway::programmed;
use super::{Condition, condition};
use crate::publish::waypoint::Outcome;
use crate::translate::ingress::{self, Because, Candidate, State};
use crate::translate::{Claims, clients};

type Verdict = (bool, &'static str, String);

/// The status of such a Gateway. `outcome`: what became of its objects, where that is known.
pub fn ingress_status(
    objects: &ObjectSet,
    key: &ObjectKey,
    gateway: &Gateway,
    claims: &Claims,
    outcome: Option<&Outcome>,
) -> Value {
    let generation = gateway.metadata.generation;
    let states = ingress::listeners(objects, key, gateway);
    let addresses = addresses(objects, key);
    let accepted = accepted(gateway, &states, outcome);
    let no_address = "its Service has no address: the cluster's load balancer gives it one";
    let no_address = addresses.is_empty().then_some(no_address);
    let programmed = match accepted.0 {
        true => programmed(objects, key, outcome, no_address),
        false => (false, "Invalid", "it is not accepted".into()),
    };
    let attached = attached(objects, key, claims);
    let listeners: Vec<_> = states
        .iter()
        .enumerate()
        .map(|(index, state)| {
            json!({
                "name": state.listener.name,
                "attachedRoutes": attached.get(&index).copied().unwrap_or_default(),
                "supportedKinds": state.kinds.iter()
                    .map(|kind| json!({"group": GROUP, "kind": kind.to_string()}))
                    .collect::<Vec<_>>(),
                "conditions": of_listener(state, &programmed, generation),
            })
        })
        .collect();
    let insecure = clients::is_insecure(gateway).then(|| {
        let why =
            "AllowInsecureFallback: clients without a good certificate are let in at some port";
        (true, "ConfigurationChanged", why.to_owned())
    });
    let said = |kind, (status, reason, message): Verdict| {
        condition(kind, status, reason, message, generation)
    };
    let mut conditions = vec![said("Accepted", accepted), said("Programmed", programmed)];
    conditions.extend(insecure.map(|verdict| said("InsecureFrontendValidationMode", verdict)));
    json!({
        "listeners": listeners,
        "conditions": conditions,
        "addresses": addresses,
    })
}

fn accepted(gateway: &Gateway, states: &[State<'_>], outcome: Option<&Outcome>) -> Verdict {
    let wrong = states
        .iter()
        .filter_map(|state| state.refused.as_ref().or(state.conflict.as_ref()));
    let wrong: Vec<_> = wrong.map(|why| why.message.as_str()).collect();
    if let Some(Because { reason, message }) = ingress::refused(gateway) {
        return (false, reason, message);
    }
    if !gateway.spec.addresses.is_empty() {
        let why =
            "spec.addresses: a Gateway has the addresses that its Service is given, and no others";
        return (false, "UnsupportedAddress", why.into());
    }
    if !wrong.is_empty() {
        let some = wrong.len() < states.len();
        return (some, "ListenersNotValid", wrong.join("; "));
    }
    match outcome {
        Some(Outcome::BadParameters(why)) => (false, "InvalidParameters", why.clone()),
        _ => (
            true,
            "Accepted",
            "it takes connections at its listeners".into(),
        ),
    }
}

fn of_listener(state: &State<'_>, programmed: &Verdict, generation: Option<i64>) -> Vec<Condition> {
    let or = |because: &Option<Because>, good: Verdict| match because {
        Some(Because { reason, message }) => (!good.0, *reason, message.clone()),
        None => good,
    };
    let first = [&state.refused, &state.conflict, &state.unresolved];
    let first = first.into_iter().find_map(Option::as_ref);
    let programmed = match first {
        Some(because) => (false, "Invalid", because.message.clone()),
        None => programmed.clone(),
    };
    let is = |reason: &'static str| (true, reason, "nothing is wrong with it".to_owned());
    let alone = (false, "NoConflicts", "no other is in its way".to_owned());
    // One that can't stand beside another is none either.
    let refused = state.refused.as_ref().or(state.conflict.as_ref()).cloned();
    [
        ("Accepted", or(&refused, is("Accepted"))),
        ("Conflicted", or(&state.conflict, alone)),
        ("ResolvedRefs", or(&state.unresolved, is("ResolvedRefs"))),
        ("Programmed", programmed),
    ]
    .into_iter()
    .map(|(kind, (status, reason, message))| condition(kind, status, reason, message, generation))
    .collect()
}

/// How many routes are attached to each listener, by its index.
fn attached(objects: &ObjectSet, key: &ObjectKey, claims: &Claims) -> BTreeMap<usize, usize> {
    let mut found = BTreeMap::new();
    for route in objects.routes() {
        let mut listeners: Vec<usize> = Vec::new();
        for parent in route.parents {
            match ingress::attach(objects, &Candidate::new(&route, claims), parent) {
                Some((gateway, Ok(attached))) if gateway == *key => listeners.extend(attached),
                _ => {}
            }
        }
        listeners.sort_unstable();
        listeners.dedup();
        for index in listeners {
            *found.entry(index).or_default() += 1;
        }
    }
    found
}

/// Where the load balancer of the Gateway's Service takes what is for it.
fn addresses(objects: &ObjectSet, key: &ObjectKey) -> Vec<Value> {
    let service = objects.services.get(key);
    let status = service.and_then(|service| service.status.as_ref());
    let balancer = status.and_then(|status| status.load_balancer.as_ref());
    let points = balancer.and_then(|balancer| balancer.ingress.as_deref());
    let points = points.unwrap_or_default().iter();
    let address = points.filter_map(|point| match (&point.ip, &point.hostname) {
        (Some(ip), _) => Some(json!({"type": "IPAddress", "value": ip})),
        (None, Some(name)) => Some(json!({"type": "Hostname", "value": name})),
        (None, None) => None,
    });
    address.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
metadata: {name: gw, namespace: shop}
spec: {clusterIP: 10.0.0.9}
status: {loadBalancer: {ingress: [{ip: 192.0.2.1}, {hostname: gw.example}]}}
---
apiVersion: v1
kind: Pod
metadata: {name: gw-1, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: gw}}
spec: {containers: []}
status: {phase: Running, podIP: 10.1.0.1, conditions: [{type: Ready, status: \"True\"}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: both, namespace: shop}
spec: {parentRefs: [{name: gw, sectionName: a}, {name: gw}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: one, namespace: shop}
spec: {parentRefs: [{name: gw, sectionName: b}], hostnames: [b.example]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GRPCRoute
metadata: {name: elsewhere, namespace: shop}
spec: {parentRefs: [{name: other}], rules: []}
";

    fn status(spec: Value, outcome: Option<&Outcome>) -> Value {
        let mut spec = spec;
        spec["gatewayClassName"] = json!("seine");
        let gateway = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {"name": "gw", "namespace": "shop", "generation": 3}, "spec": spec,
        });
        let (objects, problems) = ObjectSet::from_yaml(&format!("{YAML}---\n{gateway}\n"));
        assert_eq!(problems, []);
        let key = ObjectKey::new("shop", "gw");
        let claims = Claims::of(&objects);
        ingress_status(&objects, &key, &objects.gateways[&key], &claims, outcome)
    }

    fn said(list: &Value) -> Vec<String> {
        let conditions = list.as_array().unwrap().iter();
        let said = conditions.map(|one| {
            assert_eq!(one["observedGeneration"], 3);
            let text = |field: &str| one[field].as_str().unwrap().to_owned();
            format!("{} {} {}", text("type"), text("status"), text("reason"))
        });
        said.collect()
    }

    #[test]
    fn a_gateway_has_the_addresses_of_its_load_balancer_and_its_listeners_count_their_routes() {
        let spec = json!({"listeners": [
            {"name": "a", "port": 80, "protocol": "HTTP"},
            {"name": "b", "port": 81, "protocol": "HTTP", "hostname": "*.example"},
            {"name": "c", "port": 443, "protocol": "HTTPS", "tls": {"certificateRefs": [{"name": "gone"}]}},
            {"name": "d", "port": 82, "protocol": "UDP"},
        ]});
        let is = status(spec, Some(&Outcome::Made));
        assert_eq!(
            is["addresses"],
            json!([{"type": "IPAddress", "value": "192.0.2.1"}, {"type": "Hostname", "value": "gw.example"}])
        );
        // One of them is none, and the others hold.
        assert_eq!(
            said(&is["conditions"]),
            [
                "Accepted True ListenersNotValid",
                "Programmed True Programmed"
            ]
        );
        let listeners = is["listeners"].as_array().unwrap();
        let counts: Vec<_> = listeners.iter().map(|one| &one["attachedRoutes"]).collect();
        assert_eq!(counts, [1, 2, 1, 0]);
        let kinds: Vec<_> = listeners
            .iter()
            .map(|one| one["supportedKinds"].as_array().unwrap().len())
            .collect();
        assert_eq!(kinds, [2, 2, 2, 0]);
        let all: Vec<_> = listeners
            .iter()
            .map(|one| said(&one["conditions"]).join(", "))
            .collect();
        assert_eq!(
            all[1..],
            [
                "Accepted True Accepted, Conflicted False NoConflicts, ResolvedRefs True ResolvedRefs, Programmed True Programmed",
                "Accepted True Accepted, Conflicted False NoConflicts, ResolvedRefs False InvalidCertificateRef, Programmed False Invalid",
                "Accepted False UnsupportedProtocol, Conflicted False NoConflicts, ResolvedRefs True ResolvedRefs, Programmed False Invalid",
            ]
        );
    }

    #[test]
    fn that_clients_without_a_good_certificate_are_let_in_is_said_of_the_gateway() {
        let conditions = |mode: &str| {
            let spec = json!({
                "listeners": [{"name": "a", "port": 80, "protocol": "HTTP"}],
                "tls": {"frontend": {"default": {"validation": {"mode": mode}}}},
            });
            said(&status(spec, Some(&Outcome::Made))["conditions"])
        };
        let expected = "InsecureFrontendValidationMode True ConfigurationChanged";
        assert_eq!(conditions("AllowInsecureFallback")[2], expected);
        assert_eq!(conditions("AllowValidOnly").len(), 2);
    }

    #[test]
    fn what_is_in_the_way_is_said() {
        let good = json!({"listeners": [{"name": "a", "port": 80, "protocol": "HTTP"}]});
        let with = |field: &str, value: Value| {
            let mut spec = good.clone();
            spec[field] = value;
            spec
        };
        let foreign = Outcome::Failed("there is a Service".into());
        let made = Some(&Outcome::Made);
        let twice = json!([{"name": "a", "port": 80, "protocol": "HTTP"}, {"name": "b", "port": 80, "protocol": "HTTP"}]);
        for (spec, outcome, expected) in [
            (
                good.clone(),
                None,
                ["Accepted True Accepted", "Programmed False Pending"],
            ),
            (
                good.clone(),
                Some(&foreign),
                ["Accepted True Accepted", "Programmed False NoResources"],
            ),
            (
                with("addresses", json!([{"value": "192.0.2.1"}])),
                made,
                [
                    "Accepted False UnsupportedAddress",
                    "Programmed False Invalid",
                ],
            ),
            (
                with(
                    "tls",
                    json!({"frontend": {"default": {"validation": {}, "x": 1}}}),
                ),
                made,
                ["Accepted False Invalid", "Programmed False Invalid"],
            ),
            (
                with("listeners", twice),
                made,
                [
                    "Accepted False ListenersNotValid",
                    "Programmed False Invalid",
                ],
            ),
        ] {
            let is = status(spec, outcome);
            assert_eq!(said(&is["conditions"]), expected);
        }
    }
}
