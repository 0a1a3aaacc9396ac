//! The objects of the Gateway API that are read, and which waypoint a service uses.
//!
//! The types are our own and name what Seine obeys, no more: the published bindings are built on another version
//! of the Kubernetes types than everything else here, which would all be there twice. Fields that these types
//! don't have are not lost in silence: [`HttpRoute::unread()`] names them, and a rule that has one is not obeyed.

mod binding;
mod duration;
mod filter;
mod grpc_route;
mod http_route;
mod listener;
mod reference;
mod reference_grant;
mod unread;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

pub use binding::{
    GATEWAY_NAME_LABEL, ISTIO_WAYPOINT_LABEL, WAYPOINT_FOR_LABEL, WAYPOINT_LABEL, waypoint_of,
};
pub use duration::parse_duration;
pub use filter::{
    Cors, Filter, Fraction, Header, HeaderModifier, PathModifier, RequestMirror, RequestRedirect,
    UrlRewrite,
};
pub use grpc_route::{GrpcMethodMatch, GrpcRoute, GrpcRouteMatch, GrpcRouteRule, GrpcRouteSpec};
pub use http_route::{
    HttpRoute, HttpRouteMatch, HttpRouteRule, HttpRouteSpec, PathMatch, Retry, Timeouts,
};
pub use listener::{Infrastructure, Listener, ParametersRef};
pub(crate) use reference::is_token;
pub use reference::{BackendRef, NamedMatch, ParentRef};
pub use reference_grant::{Grantee, ReferenceGrant, ReferenceGrantSpec, Target};

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
/// Where a waypoint takes HBONE.
pub const WAYPOINT_PORT: u16 = 15008;

/// A Gateway, as far as it may be a waypoint. Its pods, Service and ServiceAccount have its own name.
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
    pub addresses: Vec<serde_json::Value>,
    /// Of the objects that are made for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub infrastructure: Option<Infrastructure>,
}

impl Gateway {
    /// It is a waypoint of ours.
    pub fn is_waypoint(&self) -> bool {
        self.spec.gateway_class_name == WAYPOINT_CLASS
    }
}
