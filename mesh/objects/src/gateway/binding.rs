//! Which waypoints a service is bound to.

use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Gateway, Listener};
use crate::{EnrolmentSettings, ObjectKey, ObjectSet};

/// The label of a service, or of a namespace for all of its services, that names a waypoint; `none` for none.
pub const WAYPOINT_LABEL: &str = "seine.dev/use-waypoint";
/// Beside it: the namespace that the waypoint is in. Without it, it is in the service's own.
pub const WAYPOINT_NAMESPACE_LABEL: &str = "seine.dev/use-waypoint-namespace";
/// The same two by another mesh's name, where [`EnrolmentSettings::istio_alias`] says so.
pub const ISTIO_WAYPOINT_LABEL: &str = "istio.io/use-waypoint";
/// See [`ISTIO_WAYPOINT_LABEL`].
pub const ISTIO_WAYPOINT_NAMESPACE_LABEL: &str = "istio.io/use-waypoint-namespace";
/// Beside [`WAYPOINT_LABEL`]: a second waypoint in the same namespace as the first, for a share of the connections.
pub const CANARY_LABEL: &str = "seine.dev/canary-waypoint";
/// That share in percent.
pub const CANARY_PERCENT_LABEL: &str = "seine.dev/canary-percent";
/// The label of what belongs to a Gateway.
pub const GATEWAY_NAME_LABEL: &str = "gateway.networking.k8s.io/gateway-name";

/// The label of a Gateway that says what its waypoint takes: requests to `service`s, as where the label isn't there, or
/// `all`, also those to the pods behind them.
pub const WAYPOINT_FOR_LABEL: &str = "seine.dev/waypoint-for";

const NONE: &str = "none";
const SERVICE: &str = "service";
const ALL: &str = "all";

/// The waypoints of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// Its waypoint.
    pub waypoint: ObjectKey,
    /// Another one, for a share of the connections.
    pub canary: Option<Canary>,
}

/// A waypoint that is tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Canary {
    /// The waypoint.
    pub waypoint: ObjectKey,
    /// Of a hundred connections so many are its own; `None`: what the label says is no such number, or there is none.
    pub percent: Option<u8>,
}

impl Binding {
    /// Both.
    pub fn waypoints(&self) -> impl Iterator<Item = &ObjectKey> {
        let canary = self.canary.iter().map(|canary| &canary.waypoint);
        std::iter::once(&self.waypoint).chain(canary)
    }
}

/// Why a waypoint takes nothing for a service that is bound to it. Nobody then reaches the service by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoWaypoint {
    /// There is no Gateway of the class of waypoints.
    Missing,
    /// Its listener's `allowedRoutes` don't admit the service's namespace.
    NotAllowed,
}

/// The waypoints that a service is bound to, by the labels of the service, or else of its namespace. It is bound also where there is
/// no such waypoint: then nobody reaches it.
///
/// A Gateway's own service never is, and neither is one without an address of its own: its clients address the pods.
pub fn binding(
    namespace: Option<&Namespace>,
    service: &Service,
    settings: &EnrolmentSettings,
) -> Option<Binding> {
    let is_gateways = label(&service.metadata, GATEWAY_NAME_LABEL).is_some();
    if is_gateways || !has_address(service) {
        return None;
    }
    let of = |metadata| Some((metadata, named(metadata, settings)?));
    let (metadata, name) = of(&service.metadata).or_else(|| of(&namespace?.metadata))?;
    if name == NONE {
        return None;
    }
    let own = service.metadata.namespace.as_deref().unwrap_or_default();
    let namespace = namespace_named(metadata, settings).unwrap_or(own);
    let canary = label(metadata, CANARY_LABEL).map(|canary| Canary {
        waypoint: ObjectKey::new(namespace, canary),
        percent: label(metadata, CANARY_PERCENT_LABEL)
            .and_then(|text| text.parse().ok())
            .filter(|percent| *percent <= 100),
    });
    let waypoint = ObjectKey::new(namespace, name);
    Some(Binding {
        canary: canary.filter(|canary| canary.waypoint != waypoint),
        waypoint,
    })
}

impl ObjectSet {
    /// The waypoint of a name, if it takes something for the services of a namespace.
    pub fn waypoint_for(
        &self,
        waypoint: &ObjectKey,
        namespace: &str,
    ) -> Result<&Gateway, NoWaypoint> {
        let gateway = self.gateways.get(waypoint);
        let gateway = gateway.filter(|gateway| gateway.is_waypoint());
        let gateway = gateway.ok_or(NoWaypoint::Missing)?;
        match gateway.spec.listeners.is_empty() {
            true => waypoint.namespace == namespace,
            false => {
                let mut listeners = gateway.spec.listeners.iter();
                listeners.any(|listener| self.admits(listener, &waypoint.namespace, namespace))
            }
        }
        .then_some(&**gateway)
        .ok_or(NoWaypoint::NotAllowed)
    }

    /// Whether the routes, or of a waypoint the services, of a namespace may be attached to a listener of a Gateway.
    pub fn admits(&self, listener: &Listener, of_gateway: &str, namespace: &str) -> bool {
        let namespaces = listener.allowed_routes.as_ref();
        let namespaces = namespaces.and_then(|routes| routes.namespaces.as_ref());
        let from = namespaces.and_then(|namespaces| namespaces.from.as_deref());
        match from.unwrap_or("Same") {
            "All" => true,
            "Same" => namespace == of_gateway,
            "Selector" => {
                let selector = namespaces.and_then(|namespaces| namespaces.selector.as_ref());
                let found = self.namespace(namespace);
                selector.zip(found).is_some_and(|(selector, found)| {
                    selector.matches(found.metadata.labels.as_ref())
                })
            }
            _ => false,
        }
    }
}

impl Gateway {
    /// It is a waypoint that also takes requests to the pods behind its services.
    pub fn takes_pods(&self) -> bool {
        self.is_waypoint() && label(&self.metadata, WAYPOINT_FOR_LABEL) == Some(ALL)
    }

    /// What its label says that it is for, if that is nothing that waypoints are for.
    pub fn unknown_use(&self) -> Option<&str> {
        label(&self.metadata, WAYPOINT_FOR_LABEL).filter(|what| ![SERVICE, ALL].contains(what))
    }
}

/// What an object's labels say. Of our own label any value is an answer, which the alias doesn't overrule.
fn named<'a>(metadata: &'a ObjectMeta, settings: &EnrolmentSettings) -> Option<&'a str> {
    let alias = || label(metadata, ISTIO_WAYPOINT_LABEL).filter(|_| settings.istio_alias);
    label(metadata, WAYPOINT_LABEL).or_else(alias)
}

/// Ours goes with our label, the alias with its own.
fn namespace_named<'a>(metadata: &'a ObjectMeta, settings: &EnrolmentSettings) -> Option<&'a str> {
    match label(metadata, WAYPOINT_LABEL) {
        Some(_) => label(metadata, WAYPOINT_NAMESPACE_LABEL),
        None => label(metadata, ISTIO_WAYPOINT_NAMESPACE_LABEL).filter(|_| settings.istio_alias),
    }
}

fn label<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    Some(metadata.labels.as_ref()?.get(name)?.as_str())
}

fn has_address(service: &Service) -> bool {
    let spec = service.spec.as_ref();
    let address = spec.and_then(|spec| spec.cluster_ip.as_deref());
    address.is_some_and(|address| !address.is_empty() && address != "None")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn namespace(labels: Value) -> Namespace {
        serde_json::from_value(json!({"metadata": {"name": "shop", "labels": labels}})).unwrap()
    }

    fn service(labels: Value, address: &str) -> Service {
        serde_json::from_value(
            json!({"metadata": {"name": "web", "namespace": "shop", "labels": labels}, "spec": {"clusterIP": address}}),
        )
        .unwrap()
    }

    #[test]
    fn the_service_s_own_label_comes_first_and_none_means_none() {
        let alias = EnrolmentSettings {
            istio_alias: true,
            ..EnrolmentSettings::default()
        };
        let own = EnrolmentSettings::default();
        let seine = |name: &str| json!({WAYPOINT_LABEL: name});
        let istio = |name: &str| json!({ISTIO_WAYPOINT_LABEL: name});
        let gateway = json!({GATEWAY_NAME_LABEL: "wp"});
        for (of_namespace, of_service, settings, found) in [
            (json!({}), json!({}), &alias, None),
            (seine("a"), json!({}), &own, Some("a")),
            (seine("a"), seine("b"), &own, Some("b")),
            (seine("a"), seine("none"), &own, None),
            (seine("a"), istio("b"), &own, Some("a")),
            (seine("a"), istio("b"), &alias, Some("b")),
            (istio("a"), json!({}), &own, None),
            (istio("a"), json!({}), &alias, Some("a")),
            (seine("a"), gateway, &own, None),
        ] {
            let (namespace, service) = (namespace(of_namespace), service(of_service, "10.0.0.1"));
            let bound = binding(Some(&namespace), &service, settings);
            let name = bound.as_ref().map(|bound| bound.waypoint.to_string());
            let found = found.map(|name: &str| format!("shop/{name}"));
            assert_eq!(name, found, "{:?}", service.metadata);
        }
    }

    #[test]
    fn a_headless_service_is_bound_to_nothing() {
        let labels = json!({WAYPOINT_LABEL: "a"});
        let settings = EnrolmentSettings::default();
        let bound = |address| binding(None, &service(labels.clone(), address), &settings).is_some();
        assert!(bound("10.0.0.1"));
        assert!(!bound("None") && !bound(""));
    }

    #[test]
    fn a_waypoint_may_be_elsewhere_and_have_a_canary_beside_it_by_labels_of_the_same_object() {
        let alias = EnrolmentSettings {
            istio_alias: true,
            ..EnrolmentSettings::default()
        };
        let own = EnrolmentSettings::default();
        let elsewhere = json!({WAYPOINT_LABEL: "a", WAYPOINT_NAMESPACE_LABEL: "infra"});
        let istio = json!({ISTIO_WAYPOINT_LABEL: "b", ISTIO_WAYPOINT_NAMESPACE_LABEL: "infra"});
        let canary = |percent: &str| json!({WAYPOINT_LABEL: "a", CANARY_LABEL: "b", CANARY_PERCENT_LABEL: percent});
        for (of_namespace, of_service, settings, waypoint, expected) in [
            (elsewhere.clone(), json!({}), &own, "infra/a", None),
            (
                elsewhere,
                json!({WAYPOINT_LABEL: "b"}),
                &own,
                "shop/b",
                None,
            ),
            (istio, json!({}), &alias, "infra/b", None),
            (canary("20"), json!({}), &own, "shop/a", Some(Some(20))),
            (canary("0"), json!({}), &own, "shop/a", Some(Some(0))),
            (canary("101"), json!({}), &own, "shop/a", Some(None)),
            (canary("a-few"), json!({}), &own, "shop/a", Some(None)),
            // What a service says itself is all that counts of it.
            (
                canary("20"),
                json!({WAYPOINT_LABEL: "a"}),
                &own,
                "shop/a",
                None,
            ),
            (
                json!({WAYPOINT_LABEL: "a", CANARY_LABEL: "a"}),
                json!({}),
                &own,
                "shop/a",
                None,
            ),
        ] {
            let (namespace, service) = (namespace(of_namespace), service(of_service, "10.0.0.1"));
            let bound = binding(Some(&namespace), &service, settings).unwrap();
            assert_eq!(bound.waypoint.to_string(), waypoint);
            let found = bound.canary.as_ref().map(|canary| canary.percent);
            assert_eq!(found, expected, "{namespace:?}");
        }
    }

    #[test]
    fn a_waypoint_takes_the_services_of_the_namespaces_that_its_listener_admits() {
        let admitted = |allowed: &str| {
            let listener = match allowed {
                "" => String::new(),
                allowed => format!(
                    "{{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {{namespaces: {allowed}}}}}"
                ),
            };
            let (objects, problems) = ObjectSet::from_yaml(&format!(
                "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{team: a}}}}\n---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: wp, namespace: infra}}\nspec: {{gatewayClassName: seine-waypoint, listeners: [{listener}]}}\n"
            ));
            assert_eq!(problems, []);
            let of = |namespace| {
                let found = objects.waypoint_for(&ObjectKey::new("infra", "wp"), namespace);
                found.map(|_| ()).err()
            };
            (of("infra"), of("shop"))
        };
        let no = Some(NoWaypoint::NotAllowed);
        for (allowed, expected) in [
            ("", (None, no)),
            ("{from: Same}", (None, no)),
            ("{from: All}", (None, None)),
            ("{from: None}", (no, no)),
            (
                "{from: Selector, selector: {matchLabels: {team: a}}}",
                (no, None),
            ),
            (
                "{from: Selector, selector: {matchLabels: {team: b}}}",
                (no, no),
            ),
            ("{from: Selector}", (no, no)),
        ] {
            assert_eq!(admitted(allowed), expected, "{allowed}");
        }
    }
}
