//! What the Gateway API wants said of a route, for each of its parents. Pure.
//!
//! A parent that nobody of ours looks after (another controller's Gateway, a Service of a namespace that isn't in the
//! mesh) is not mentioned.

use seine_objects::gateway::{self, AnyRoute, CONTROLLER, ParentRef, WAYPOINT_LABEL, binding};
use seine_objects::{EnrolmentSettings, ObjectKey, ObjectSet, enrolment};
use serde_json::{Value, json};

use super::condition;
use crate::translate::ingress::{self, Because, Candidate};
use crate::translate::{Claims, Unresolved, is_of_connections, unresolved};

type Verdict = (bool, &'static str, String);

/// The items of `status.parents` that are ours. `refused`: rules that are answered with an error, each as a sentence.
pub fn parent_statuses(
    objects: &ObjectSet,
    settings: &EnrolmentSettings,
    route: &AnyRoute<'_>,
    claims: &Claims,
    refused: &[String],
) -> Vec<Value> {
    let generation = route.metadata.generation;
    let candidate = Candidate::new(route, claims);
    let mut found = Vec::new();
    for parent in route.parents {
        let Some(accepted) = accepted(objects, settings, &candidate, parent) else {
            continue;
        };
        let (accepts, reason, message) = match accepted {
            (true, ..) if !refused.is_empty() => (false, "UnsupportedValue", refused.join("; ")),
            accepted => accepted,
        };
        let (resolved, why, what) = resolved(objects, route);
        found.push(json!({
            "parentRef": parent,
            "controllerName": CONTROLLER,
            "conditions": [
                condition("Accepted", accepts, reason, message, generation),
                condition("ResolvedRefs", resolved, why, what, generation),
            ],
        }));
    }
    found
}

/// Whether the route is attached to the parent; `None`: it is not ours.
fn accepted(
    objects: &ObjectSet,
    settings: &EnrolmentSettings,
    route: &Candidate<'_>,
    parent: &ParentRef,
) -> Option<Verdict> {
    let key = route.key;
    if let Some((gateway, attached)) = ingress::attach(objects, route, parent) {
        return Some(match attached {
            Ok(_) => {
                let message = format!("it is attached to Gateway {gateway}");
                (true, "Accepted", message)
            }
            Err(Because { reason, message }) => (false, reason, message),
        });
    }
    let namespace = parent.namespace.as_deref().unwrap_or(&key.namespace);
    let parent_key = ObjectKey::new(namespace, &parent.name);
    let group = parent.group.as_deref().unwrap_or(gateway::GROUP);
    let no = |reason, message| Some((false, reason, message));
    match (group, parent.kind.as_deref().unwrap_or("Gateway")) {
        (gateway::GROUP, "Gateway") => {
            let gateway = objects.gateways.get(&parent_key)?;
            if !gateway.is_waypoint() {
                return None;
            }
            let why = format!(
                "Gateway {parent_key} is a waypoint: the parents of its routes are the Services that use it"
            );
            no("NotAllowedByListeners", why)
        }
        ("" | "core", "Service") if is_of_connections(route.kind) => {
            let kind = route.kind;
            let why = format!("a {kind} is for Gateways: a Service can't be its parent");
            no("NoMatchingParent", why)
        }
        ("" | "core", "Service") => {
            let own = objects.namespace(namespace);
            let opted_in = own.is_some_and(|own| enrolment::namespace_opted_in(own, settings));
            let Some(service) = objects.services.get(&parent_key) else {
                let why = format!("there is no Service {parent_key}");
                return no("NoMatchingParent", why).filter(|_| opted_in);
            };
            if binding(own, service, settings).is_none() {
                let why =
                    format!("Service {parent_key} uses no waypoint: label it {WAYPOINT_LABEL}");
                return no("NoWaypoint", why).filter(|_| opted_in);
            }
            let spec = service.spec.as_ref();
            let ports = spec.and_then(|spec| spec.ports.as_deref());
            let mut ports = ports.unwrap_or_default().iter();
            let is_there = ports.any(|port| {
                let number = parent
                    .port
                    .is_none_or(|wanted| i32::from(wanted) == port.port);
                let section = parent.section_name.as_ref();
                number && section.is_none_or(|wanted| port.name.as_ref() == Some(wanted))
            });
            match is_there {
                true => Some((
                    true,
                    "Accepted",
                    format!("requests to Service {parent_key} take it"),
                )),
                false => no(
                    "NoMatchingParent",
                    format!("Service {parent_key} has no such port"),
                ),
            }
        }
        _ => None,
    }
}

/// Whether all backends can be used; the first that can't says why.
fn resolved(objects: &ObjectSet, route: &AnyRoute<'_>) -> Verdict {
    let own = &route.key.namespace;
    let backends = objects.route_backends(route.kind, route.key);
    let mut backends = backends.into_iter();
    let unresolved =
        backends.find_map(|backend| unresolved(objects, route.kind, own, route.parents, backend));
    match unresolved {
        Some(Unresolved { reason, message }) => (false, reason, message),
        None => (true, "ResolvedRefs", "every backend is there".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use seine_objects::Kind;

    const OBJECTS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {seine.dev/mesh: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: outside}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {seine.dev/use-waypoint: wp}}
spec: {clusterIP: 10.0.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: plain, namespace: shop}
spec: {clusterIP: 10.0.0.2, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: outside}
spec: {clusterIP: 10.0.0.3, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: lent, namespace: outside}
spec: {clusterIP: 10.0.0.4, ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {name: g, namespace: outside}
spec:
  from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}]
  to: [{group: '', kind: Service, name: lent}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: wp, namespace: shop}
spec: {gatewayClassName: seine-waypoint, listeners: []}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: others, namespace: shop}
spec: {gatewayClassName: other, listeners: []}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: in, namespace: shop}
spec: {gatewayClassName: seine, listeners: [{name: web, port: 80, protocol: HTTP}]}
";

    fn said(parent: Value, backend: Value, refused: &[String]) -> Option<[String; 2]> {
        let route = json!({
            "apiVersion": gateway::API_VERSION, "kind": "HTTPRoute",
            "metadata": {"name": "r", "namespace": "shop", "generation": 2},
            "spec": {"parentRefs": [parent], "rules": [{"backendRefs": [backend]}]},
        });
        let (objects, problems) = ObjectSet::from_yaml(&format!("{OBJECTS}---\n{route}\n"));
        assert_eq!(problems, []);
        let key = ObjectKey::new("shop", "r");
        let route = objects.route(Kind::HttpRoute, &key).unwrap();
        let settings = EnrolmentSettings::default();
        let statuses = parent_statuses(&objects, &settings, &route, &Claims::of(&objects), refused);
        let status = statuses.first()?;
        assert_eq!(
            (&status["parentRef"], &status["controllerName"]),
            (&parent, &json!(CONTROLLER))
        );
        let said = |index: usize| {
            let condition = &status["conditions"][index];
            assert_eq!(condition["observedGeneration"], 2);
            let text = |field: &str| condition[field].as_str().unwrap().to_owned();
            format!("{} {}", text("status"), text("reason"))
        };
        Some([said(0), said(1)])
    }

    fn service(name: &str) -> Value {
        json!({"group": "", "kind": "Service", "name": name})
    }

    fn backend() -> Value {
        json!({"name": "plain", "port": 80})
    }

    fn mirroring(to: &str) -> Value {
        let mut backend = backend();
        let mirror = json!({"backendRef": {"name": to, "port": 80}});
        backend["filters"] = json!([{"type": "RequestMirror", "requestMirror": mirror}]);
        backend
    }

    #[test]
    fn each_parent_is_told_whether_the_route_is_attached() {
        let accepted = |parent: Value| said(parent, backend(), &[]).map(|[accepted, _]| accepted);
        let with = |field: &str, value: Value| {
            let mut parent = service("web");
            parent[field] = value;
            parent
        };
        for (parent, expected) in [
            (service("web"), Some("True Accepted")),
            (with("port", json!(80)), Some("True Accepted")),
            (with("sectionName", json!("http")), Some("True Accepted")),
            (with("port", json!(81)), Some("False NoMatchingParent")),
            (
                with("sectionName", json!("grpc")),
                Some("False NoMatchingParent"),
            ),
            (service("gone"), Some("False NoMatchingParent")),
            (service("plain"), Some("False NoWaypoint")),
            (with("namespace", json!("outside")), None),
            (json!({"name": "wp"}), Some("False NotAllowedByListeners")),
            (json!({"name": "others"}), None),
            (json!({"name": "in", "port": 80}), Some("True Accepted")),
            (
                json!({"name": "in", "port": 81}),
                Some("False NoMatchingParent"),
            ),
            (json!({"name": "gone"}), None),
        ] {
            assert_eq!(accepted(parent.clone()).as_deref(), expected, "{parent}");
        }
        let refused = ["spec.rules[0] is answered with 500".to_owned()];
        let refused = said(service("web"), backend(), &refused).unwrap();
        assert_eq!(refused[0], "False UnsupportedValue");
    }

    #[test]
    fn a_backend_that_cannot_be_used_is_told_with_its_reason() {
        for (backend, expected) in [
            (backend(), "True ResolvedRefs"),
            (json!({"name": "gone", "port": 80}), "False BackendNotFound"),
            (
                json!({"name": "plain", "port": 81}),
                "False BackendNotFound",
            ),
            (json!({"name": "plain"}), "False BackendNotFound"),
            (
                json!({"name": "plain", "kind": "Bucket", "port": 80}),
                "False InvalidKind",
            ),
            (
                json!({"name": "web", "namespace": "outside", "port": 80}),
                "False RefNotPermitted",
            ),
            (
                json!({"name": "lent", "namespace": "outside", "port": 80}),
                "True ResolvedRefs",
            ),
            (mirroring("plain"), "True ResolvedRefs"),
            (mirroring("gone"), "False BackendNotFound"),
        ] {
            let [accepted, resolved] = said(service("web"), backend.clone(), &[]).unwrap();
            assert_eq!(
                (accepted.as_str(), resolved.as_str()),
                ("True Accepted", expected),
                "{backend}"
            );
        }
    }
}
