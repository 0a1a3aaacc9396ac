//! The parts of a Gateway.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::CoreRef;
use crate::policy::Selector;

/// Where a Gateway takes connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// Its port.
    pub port: u16,
    /// What is spoken there: of a waypoint `HBONE`.
    pub protocol: String,
    /// The hosts whose requests it takes: one, or `*.` and the end of a name; without one all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// What becomes of TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ListenerTls>,
    /// Which routes may be attached to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_routes: Option<AllowedRoutes>,
}

/// What becomes of TLS at a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ListenerTls {
    /// `Terminate`, the default, or `Passthrough`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// Secrets of type `kubernetes.io/tls`.
    pub certificate_refs: Vec<CoreRef>,
}

/// Which routes may be attached to a listener.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AllowedRoutes {
    /// Of which namespaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespaces: Option<RouteNamespaces>,
    /// Of which kinds; by default all that its protocol knows.
    pub kinds: Vec<RouteKind>,
}

/// The namespaces whose routes may be attached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteNamespaces {
    /// `Same`, the default, `All`, `Selector` or `None`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// By their labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
}

/// A kind of routes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteKind {
    /// By default that of Gateways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Such as `HTTPRoute`.
    pub kind: String,
}

impl Listener {
    /// Whether requests to some of these hosts, of a route, may come here; without hosts all are meant.
    pub fn takes_any_of(&self, hostnames: &[String]) -> bool {
        hostnames.is_empty() || hostnames.iter().any(|host| self.takes(host))
    }

    /// Whether requests to a host, or to one of those that a wildcard stands for, may come here.
    pub fn takes(&self, host: &str) -> bool {
        let own = self.hostname.as_deref().filter(|own| !own.is_empty());
        let below = |host: &str, of: &str| {
            of.strip_prefix('*')
                .is_some_and(|end| host.len() > end.len() && host.ends_with(end))
        };
        own.is_none_or(|own| own == host || below(host, own) || below(own, host))
    }
}

/// Of the objects that are made for a Gateway (GEP-1867).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Infrastructure {
    /// On each of them.
    pub labels: BTreeMap<String, String>,
    /// On each of them.
    pub annotations: BTreeMap<String, String>,
    /// An object with further settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters_ref: Option<ParametersRef>,
}

/// An object with further settings of a Gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParametersRef {
    /// Its API group.
    #[serde(default)]
    pub group: String,
    /// Its kind.
    pub kind: String,
    /// Its name, in the Gateway's namespace.
    pub name: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_s_host_meets_a_listener_s_where_one_is_within_the_other() {
        let takes = |own: &str, host: &str| {
            let listener =
                serde_json::json!({"name": "l", "port": 80, "protocol": "HTTP", "hostname": own});
            let listener: Listener = serde_json::from_value(listener).unwrap();
            listener.takes(host)
        };
        for (own, host, expected) in [
            ("", "a.example", true),
            ("a.example", "a.example", true),
            ("a.example", "b.example", false),
            ("a.example", "*.example", true),
            ("a.example", "*.a.example", false),
            ("*.example", "a.example", true),
            ("*.example", "a.b.example", true),
            ("*.example", "example", false),
            ("*.example", "*.example", true),
            ("*.example", "*.b.example", true),
            ("*.b.example", "*.example", true),
            ("*.b.example", "*.c.example", false),
        ] {
            assert_eq!(takes(own, host), expected, "{own} {host}");
        }
    }
}
