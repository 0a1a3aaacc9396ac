//! What the Gateway API wants said of a waypoint's GatewayClass and Gateway. Pure.

use seine_objects::gateway::{
    GATEWAY_NAME_LABEL, Gateway, INGRESS_CLASS, Listener, WAYPOINT_CLASS, WAYPOINT_FOR_LABEL,
    WAYPOINT_PORT,
};
use seine_objects::{ObjectKey, ObjectSet, pods};
use serde_json::{Value, json};

use super::{Condition, condition, features};
use crate::publish::waypoint::Outcome;

/// Protocol of a waypoint's listener.
const HBONE: &str = "HBONE";

/// The status of a GatewayClass with our controller's name. What kind its Gateways are its own name says.
pub fn class_status(name: &str, generation: Option<i64>) -> Value {
    let (features, message) = match name {
        WAYPOINT_CLASS => (
            features::of_waypoints(),
            "Seine makes waypoints of its Gateways",
        ),
        INGRESS_CLASS => (
            features::of_ingress(),
            "Seine lets connections into the mesh at its Gateways",
        ),
        // A Gateway of it would be neither of the two.
        _ => {
            let message = format!(
                "Seine knows the classes {INGRESS_CLASS} and {WAYPOINT_CLASS} and no others: nothing becomes of its Gateways"
            );
            let refused = condition("Accepted", false, "Unsupported", message, generation);
            return json!({"conditions": [refused]});
        }
    };
    let accepted = condition("Accepted", true, "Accepted", message.to_owned(), generation);
    json!({
        "conditions": [accepted],
        "supportedFeatures": features.iter().map(|name| json!({"name": name})).collect::<Vec<_>>(),
    })
}

/// The status of a waypoint. `outcome`: what became of its objects, where that is known.
pub fn gateway_status(
    objects: &ObjectSet,
    key: &ObjectKey,
    gateway: &Gateway,
    outcome: Option<&Outcome>,
) -> Value {
    let generation = gateway.metadata.generation;
    let listeners = &gateway.spec.listeners;
    let wrong: Vec<_> = listeners.iter().filter_map(wrong_listener).collect();
    let (accepted, reason, message) = match outcome {
        Some(Outcome::BadParameters(why)) => (false, "InvalidParameters", why.clone()),
        _ if !gateway.spec.addresses.is_empty() => {
            let why = "spec.addresses: a waypoint has the address of its Service, and no other";
            (false, "UnsupportedAddress", why.into())
        }
        _ if gateway.unknown_use().is_some() => {
            let what = gateway.unknown_use().unwrap_or_default();
            let why = format!(
                "label {WAYPOINT_FOR_LABEL}: {what:?} is nothing that a waypoint is for: service or all"
            );
            (false, "InvalidParameters", why)
        }
        _ if !wrong.is_empty() => {
            let why = wrong.iter().map(|(_, why)| why.as_str());
            let why = why.collect::<Vec<_>>().join("; ");
            (wrong.len() < listeners.len(), "ListenersNotValid", why)
        }
        _ => (true, "Accepted", "it is a waypoint".into()),
    };
    let addresses = addresses(objects, key);
    let no_address = "its Service has no address yet";
    let no_address = addresses.is_empty().then_some(no_address);
    let programmed = programmed(objects, key, outcome, no_address);
    let (is_programmed, because, how) = match accepted {
        true => programmed,
        false => (false, "Invalid", "it is not accepted".into()),
    };
    json!({
        "conditions": [
            condition("Accepted", accepted, reason, message, generation),
            condition("Programmed", is_programmed, because, how.clone(), generation),
        ],
        "addresses": addresses,
        "listeners": listeners.iter().map(|listener| json!({
            "name": listener.name,
            // Routes are attached to the services that are bound to the waypoint.
            "attachedRoutes": 0,
            "supportedKinds": [],
            "conditions": listener_conditions(listener, is_programmed, because, &how, generation),
        })).collect::<Vec<_>>(),
    })
}

/// Whether what a Gateway needs is there. `no_address`: why it has none, if it hasn't.
pub(super) fn programmed(
    objects: &ObjectSet,
    key: &ObjectKey,
    outcome: Option<&Outcome>,
    no_address: Option<&str>,
) -> (bool, &'static str, String) {
    let ready = ready_pods(objects, key);
    match (outcome, no_address) {
        (None, _) => (false, "Pending", "its objects are not made yet".into()),
        (Some(Outcome::BadParameters(why)), _) => (false, "Invalid", why.clone()),
        (Some(Outcome::Failed(why)), _) => (false, "NoResources", why.clone()),
        (Some(Outcome::Made), Some(why)) => (false, "AddressNotAssigned", why.into()),
        (Some(Outcome::Made), None) if ready == 0 => {
            let why = format!(
                "none of its pods is ready: kubectl -n {} get pods -l {GATEWAY_NAME_LABEL}={}",
                key.namespace, key.name
            );
            (false, "Pending", why)
        }
        (Some(Outcome::Made), None) => {
            (true, "Programmed", format!("{ready} of its pods are ready"))
        }
    }
}

/// Why a listener is none of a waypoint's: the reason, and a sentence.
fn wrong_listener(listener: &Listener) -> Option<(&'static str, String)> {
    let Listener {
        name,
        port,
        protocol,
        ..
    } = listener;
    if protocol != HBONE {
        let why = format!("listener {name}: a waypoint speaks {HBONE}, not {protocol}");
        return Some(("UnsupportedProtocol", why));
    }
    (*port != WAYPOINT_PORT).then(|| {
        let why = format!("listener {name}: a waypoint's port is {WAYPOINT_PORT}, not {port}");
        ("PortUnavailable", why)
    })
}

fn listener_conditions(
    listener: &Listener,
    programmed: bool,
    because: &'static str,
    how: &str,
    generation: Option<i64>,
) -> Vec<Condition> {
    let wrong = wrong_listener(listener);
    let is_right = wrong.is_none();
    let (reason, message) = wrong.unwrap_or(("Accepted", "it takes tunnels".into()));
    let (programmed, because, how) = match is_right {
        true => (programmed, because, how.to_owned()),
        false => (false, "Invalid", message.clone()),
    };
    let none = |text: &str| text.to_owned();
    vec![
        condition("Accepted", is_right, reason, message, generation),
        condition(
            "Conflicted",
            false,
            "NoConflicts",
            none("there is no other"),
            generation,
        ),
        condition(
            "ResolvedRefs",
            true,
            "ResolvedRefs",
            none("it has none"),
            generation,
        ),
        condition("Programmed", programmed, because, how, generation),
    ]
}

fn addresses(objects: &ObjectSet, key: &ObjectKey) -> Vec<Value> {
    let service = objects.services.get(key);
    let spec = service.and_then(|service| service.spec.as_ref());
    let addresses = spec.and_then(|spec| spec.cluster_ips.clone());
    let addresses = addresses.into_iter().flatten();
    addresses
        .filter(|address| address != "None")
        .map(|address| json!({"type": "IPAddress", "value": address}))
        .collect()
}

fn ready_pods(objects: &ObjectSet, key: &ObjectKey) -> usize {
    let of_namespace = objects
        .pods
        .range(ObjectKey::new(&key.namespace, "")..)
        .take_while(|(pod, _)| pod.namespace == key.namespace);
    let ready = of_namespace.filter(|(_, pod)| {
        let labels = pod.metadata.labels.as_ref();
        let gateway = labels.and_then(|labels| labels.get(GATEWAY_NAME_LABEL));
        let is_up = pods::is_ready(pod) && !pods::is_terminating(pod) && !pods::is_finished(pod);
        gateway == Some(&key.name) && is_up
    });
    ready.count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = "
apiVersion: v1
kind: Service
metadata: {name: wp, namespace: shop}
spec: {clusterIP: 10.0.0.9, clusterIPs: [10.0.0.9]}
---
apiVersion: v1
kind: Pod
metadata: {name: wp-1, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: wp}}
spec: {containers: []}
status: {phase: Running, podIP: 10.1.0.1, conditions: [{type: Ready, status: \"True\"}]}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: shop, labels: {gateway.networking.k8s.io/gateway-name: other}}
spec: {containers: []}
status: {phase: Running, podIP: 10.1.0.2, conditions: [{type: Ready, status: \"True\"}]}
";

    fn status(spec: Value, outcome: Option<&Outcome>) -> Value {
        of(spec, json!({}), outcome)
    }

    fn labelled(spec: Value, use_: &str) -> Value {
        of(
            spec,
            json!({WAYPOINT_FOR_LABEL: use_}),
            Some(&Outcome::Made),
        )
    }

    fn of(mut spec: Value, labels: Value, outcome: Option<&Outcome>) -> Value {
        spec["gatewayClassName"] = json!("seine-waypoint");
        let gateway: Gateway = serde_json::from_value(json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {"name": "wp", "namespace": "shop", "generation": 3, "labels": labels}, "spec": spec,
        }))
        .unwrap();
        let (objects, problems) = ObjectSet::from_yaml(YAML);
        assert_eq!(problems, []);
        gateway_status(&objects, &ObjectKey::new("shop", "wp"), &gateway, outcome)
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
    fn each_class_of_our_controller_is_told_whether_it_is_known() {
        for (name, expected, has_features) in [
            ("seine", "Accepted True Accepted", true),
            ("seine-waypoint", "Accepted True Accepted", true),
            ("of-somebody", "Accepted False Unsupported", false),
        ] {
            let is = class_status(name, Some(3));
            assert_eq!(said(&is["conditions"]), [expected]);
            assert_eq!(is["supportedFeatures"].is_array(), has_features, "{name}");
        }
    }

    #[test]
    fn a_waypoint_whose_pod_is_ready_is_programmed_and_has_its_services_address() {
        let listeners =
            json!({"listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]});
        let is = status(listeners, Some(&Outcome::Made));
        assert_eq!(
            said(&is["conditions"]),
            ["Accepted True Accepted", "Programmed True Programmed"]
        );
        assert_eq!(
            is["addresses"],
            json!([{"type": "IPAddress", "value": "10.0.0.9"}])
        );
        assert!(
            is["conditions"][1]["message"]
                .as_str()
                .unwrap()
                .starts_with("1 of")
        );
        let expected = [
            "Accepted True Accepted",
            "Conflicted False NoConflicts",
            "ResolvedRefs True ResolvedRefs",
            "Programmed True Programmed",
        ];
        assert_eq!(said(&is["listeners"][0]["conditions"]), expected);
    }

    #[test]
    fn what_is_in_the_way_is_said() {
        let listener = |port: u16, protocol: &str| json!({"listeners": [{"name": "mesh", "port": port, "protocol": protocol}]});
        let good = listener(15008, "HBONE");
        let foreign = Outcome::Failed("there is a Service".into());
        let bad = Outcome::BadParameters("min-replicas".into());
        let mut addressed = good.clone();
        addressed["addresses"] = json!([{"value": "192.0.2.1"}]);
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
                good,
                Some(&bad),
                [
                    "Accepted False InvalidParameters",
                    "Programmed False Invalid",
                ],
            ),
            (
                addressed,
                Some(&Outcome::Made),
                [
                    "Accepted False UnsupportedAddress",
                    "Programmed False Invalid",
                ],
            ),
            (
                listener(80, "HTTP"),
                Some(&Outcome::Made),
                [
                    "Accepted False ListenersNotValid",
                    "Programmed False Invalid",
                ],
            ),
            (
                listener(15009, "HBONE"),
                Some(&Outcome::Made),
                [
                    "Accepted False ListenersNotValid",
                    "Programmed False Invalid",
                ],
            ),
        ] {
            assert_eq!(said(&status(spec, outcome)["conditions"]), expected);
        }
        let unknown = labelled(listener(15008, "HBONE"), "workload");
        assert_eq!(
            said(&unknown["conditions"])[0],
            "Accepted False InvalidParameters"
        );
        let http = status(listener(80, "HTTP"), Some(&Outcome::Made));
        let expected = "Accepted False UnsupportedProtocol";
        assert_eq!(said(&http["listeners"][0]["conditions"])[0], expected);
    }
}
