//! Which waypoint a service is bound to.

use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Gateway;
use crate::EnrolmentSettings;

/// The label of a service, or of a namespace for all of its services, that names a waypoint of the same namespace;
/// `none` for none.
pub const WAYPOINT_LABEL: &str = "seine.dev/use-waypoint";
/// The same by another mesh's name, where [`EnrolmentSettings::istio_alias`] says so.
pub const ISTIO_WAYPOINT_LABEL: &str = "istio.io/use-waypoint";
/// The label of what belongs to a Gateway.
pub const GATEWAY_NAME_LABEL: &str = "gateway.networking.k8s.io/gateway-name";

/// The label of a Gateway that says what its waypoint takes: requests to `service`s, as where the label isn't there, or
/// `all`, also those to the pods behind them.
pub const WAYPOINT_FOR_LABEL: &str = "seine.dev/waypoint-for";

const NONE: &str = "none";
const ALL: &str = "all";

/// The name of the waypoint that a service is bound to, in the service's namespace. It is bound also where there is
/// no such waypoint: then nobody reaches it.
///
/// A Gateway's own service never is, and neither is one without an address of its own: its clients address the pods.
pub fn waypoint_of<'a>(
    namespace: Option<&'a Namespace>,
    service: &'a Service,
    settings: &EnrolmentSettings,
) -> Option<&'a str> {
    let is_gateways = label(&service.metadata, GATEWAY_NAME_LABEL).is_some();
    if is_gateways || !has_address(service) {
        return None;
    }
    let of = |metadata: &'a ObjectMeta| named(metadata, settings);
    of(&service.metadata)
        .or_else(|| of(&namespace?.metadata))
        .filter(|name| *name != NONE)
}

impl Gateway {
    /// It is a waypoint that also takes requests to the pods behind its services.
    pub fn takes_pods(&self) -> bool {
        self.is_waypoint() && label(&self.metadata, WAYPOINT_FOR_LABEL) == Some(ALL)
    }
}

/// What an object's labels say. Of our own label any value is an answer, which the alias doesn't overrule.
fn named<'a>(metadata: &'a ObjectMeta, settings: &EnrolmentSettings) -> Option<&'a str> {
    let alias = || label(metadata, ISTIO_WAYPOINT_LABEL).filter(|_| settings.istio_alias);
    label(metadata, WAYPOINT_LABEL).or_else(alias)
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
            json!({"metadata": {"name": "web", "labels": labels}, "spec": {"clusterIP": address}}),
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
            let bound = waypoint_of(Some(&namespace), &service, settings);
            assert_eq!(bound, found, "{:?}", service.metadata);
        }
    }

    #[test]
    fn a_headless_service_is_bound_to_nothing() {
        let labels = json!({WAYPOINT_LABEL: "a"});
        let settings = EnrolmentSettings::default();
        let bound =
            |address| waypoint_of(None, &service(labels.clone(), address), &settings).is_some();
        assert!(bound("10.0.0.1"));
        assert!(!bound("None") && !bound(""));
    }
}
