//! The objects of the Gateway API that are read, and which waypoints a service uses.
//!
//! The types are our own and name what Seine obeys, no more: the published bindings are built on another version
//! of the Kubernetes types than everything else here, which would all be there twice. Fields that these types
//! don't have are not lost in silence: [`Route::unread()`] names them, and a rule that has one is not obeyed.

mod backend_tls_policy;
mod binding;
mod core_ref;
mod duration;
mod filter;
mod frontend;
mod grpc_route;
mod http_route;
mod listener;
mod reference;
mod reference_grant;
mod route;
mod session;
mod tcp_route;
mod tls_route;
mod unread;

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Kind, ObjectKey, ObjectSet};

pub use backend_tls_policy::{
    BackendTlsPolicy, BackendTlsPolicySpec, BackendValidation, SubjectAltName, TlsTarget,
};
pub use binding::{
    Binding, CANARY_LABEL, CANARY_PERCENT_LABEL, Canary, GATEWAY_NAME_LABEL, ISTIO_WAYPOINT_LABEL,
    ISTIO_WAYPOINT_NAMESPACE_LABEL, NoWaypoint, WAYPOINT_FOR_LABEL, WAYPOINT_LABEL,
    WAYPOINT_NAMESPACE_LABEL, binding,
};
pub use core_ref::CoreRef;
pub use duration::parse_duration;
pub use filter::{
    Cors, Filter, Fraction, Header, HeaderModifier, PathModifier, RequestMirror, RequestRedirect,
    UrlRewrite,
};
pub use frontend::{ClientValidation, Frontend, FrontendTls, GatewayTls, PortTls};
pub use grpc_route::{GrpcMethodMatch, GrpcRoute, GrpcRouteMatch, GrpcRouteRule};
pub use http_route::{HttpRoute, HttpRouteMatch, HttpRouteRule, PathMatch, Retry, Timeouts};
pub use listener::{
    AllowedRoutes, Infrastructure, Listener, ListenerTls, ParametersRef, RouteKind, RouteNamespaces,
};
pub(crate) use reference::is_token;
pub use reference::{BackendRef, NamedMatch, ParentRef};
pub use reference_grant::{Grantee, ReferenceGrant, ReferenceGrantSpec, Target};
pub use route::{AnyRoute, Route, RouteRule, RouteSpec};
pub use session::{CookieConfig, SessionPersistence};
pub use tcp_route::{TcpRoute, TcpRouteRule};
pub use tls_route::{TlsRoute, TlsRouteRule};

/// API group of Gateways and routes.
pub const GROUP: &str = "gateway.networking.k8s.io";
/// Version of Gateways and routes.
pub const VERSION: &str = "v1";
/// `apiVersion` of Gateways and routes.
pub const API_VERSION: &str = "gateway.networking.k8s.io/v1";
/// `apiVersion` of grants in clusters whose Gateway API is older.
pub const BETA_API_VERSION: &str = "gateway.networking.k8s.io/v1beta1";
/// Who looks after Gateways of our classes, as their GatewayClass names it, and after routes.
pub const CONTROLLER: &str = "seine.dev/control";
/// The class of Gateways that are waypoints.
pub const WAYPOINT_CLASS: &str = "seine-waypoint";
/// The class of Gateways that take connections from outside the mesh.
pub const INGRESS_CLASS: &str = "seine";
/// Where a waypoint takes HBONE.
pub const WAYPOINT_PORT: u16 = 15008;

/// A Gateway: a waypoint of the mesh, or a way into it. Its pods, Service and ServiceAccount have its own name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Gateway {
    /// [`API_VERSION`].
    pub api_version: String,
    /// `Gateway`.
    pub kind: String,
    /// Name and namespace.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What is asked for.
    pub spec: GatewaySpec,
    /// The object itself.
    #[serde(skip)]
    pub(crate) given: Value,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GatewaySpec {
    /// Who makes it.
    pub gateway_class_name: String,
    /// Where it takes connections.
    #[serde(default)]
    pub listeners: Vec<Listener>,
    /// The addresses that it should have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Value>,
    /// Of the objects that are made for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub infrastructure: Option<Infrastructure>,
    /// What is asked of its clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<GatewayTls>,
}

impl Gateway {
    /// It is a waypoint of ours.
    pub fn is_waypoint(&self) -> bool {
        self.spec.gateway_class_name == WAYPOINT_CLASS
    }

    /// It takes connections from outside the mesh, and is one of ours.
    pub fn is_ingress(&self) -> bool {
        self.spec.gateway_class_name == INGRESS_CLASS
    }

    /// Paths of the fields that Seine doesn't know, and so doesn't obey.
    pub fn unread(&self) -> Vec<String> {
        let kept = serde_json::to_value(&self.spec).expect("Gateways have text for keys");
        let mut found = Vec::new();
        unread::unread(&self.given["spec"], &kept, "spec", &mut found);
        found
    }
}

impl ObjectSet {
    /// What Gateways of ours name and may have that is read by its name alone: Secrets with their certificates, and ConfigMaps
    /// with the authorities of their clients; and those of backends.
    pub fn named(&self) -> BTreeSet<(Kind, ObjectKey)> {
        let gateways = self.gateways.iter();
        let ours = gateways.filter(|(_, gateway)| gateway.is_ingress());
        let named = ours.flat_map(|(key, gateway)| {
            let own = &key.namespace;
            let tls = gateway.spec.listeners.iter();
            let tls = tls.filter_map(|listener| listener.tls.as_ref());
            let secrets = tls.flat_map(|tls| &tls.certificate_refs);
            let secrets = secrets.filter_map(|reference| reference.secret(own));
            let clients = gateway.client_validations();
            let authorities = clients.flat_map(|clients| &clients.ca_certificate_refs);
            let authorities = authorities.filter_map(|reference| reference.config_map(own));
            let secrets = secrets.map(|key| (Kind::Secret, key));
            let named = secrets.chain(authorities.map(|key| (Kind::ConfigMap, key)));
            named.filter(|(kind, named)| self.is_granted("Gateway", own, &kind.to_string(), named))
        });
        let mut named: BTreeSet<_> = named.collect();
        let mut gateways = self.gateways.values();
        if gateways.any(|gateway| gateway.is_ingress()) {
            let policies = self.backend_tls_policies.iter();
            named.extend(policies.flat_map(|(key, policy)| {
                let own = &key.namespace;
                let authorities = policy.spec.validation.ca_certificate_refs.iter();
                let authorities = authorities.filter(|one| one.namespace.is_none());
                let authorities = authorities.filter_map(move |one| one.config_map(own));
                authorities.map(|key| (Kind::ConfigMap, key))
            }));
        }
        named
    }
}
