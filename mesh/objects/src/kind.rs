//! The kinds of objects that are read, and an object of any of them.

use std::{fmt, sync::Arc};

use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
    node::v1::RuntimeClass,
};
use serde_json::Value;

use crate::{
    ca_bundle::CaBundle,
    gateway::{
        self, BackendTlsPolicy, Gateway, GrpcRoute, HttpRoute, ReferenceGrant, TcpRoute, TlsRoute,
    },
    istio::{self, PeerAuthentication},
    policy::{self, AuthorizationPolicy, MeshTls, RequestAuthentication, TrafficPolicy},
    tls_secret::TlsSecret,
};

/// The kinds that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(
    missing_docs,
    reason = "each is the Kubernetes kind of that name, Istio's where a name is taken"
)]
pub enum Kind {
    Namespace,
    Node,
    Pod,
    Service,
    EndpointSlice,
    ServiceAccount,
    NetworkPolicy,
    RuntimeClass,
    Secret,
    ConfigMap,
    Gateway,
    HttpRoute,
    GrpcRoute,
    TlsRoute,
    TcpRoute,
    BackendTlsPolicy,
    ReferenceGrant,
    AuthorizationPolicy,
    MeshTls,
    TrafficPolicy,
    RequestAuthentication,
    IstioAuthorizationPolicy,
    PeerAuthentication,
    IstioRequestAuthentication,
}

impl Kind {
    /// The kind that an object says it is, if it is one that is read.
    pub(crate) fn known(api_version: &str, kind: &str) -> Option<Self> {
        Some(match (api_version, kind) {
            ("v1", "Namespace") => Self::Namespace,
            ("v1", "Node") => Self::Node,
            ("v1", "Pod") => Self::Pod,
            ("v1", "Service") => Self::Service,
            ("v1", "ServiceAccount") => Self::ServiceAccount,
            ("discovery.k8s.io/v1", "EndpointSlice") => Self::EndpointSlice,
            ("networking.k8s.io/v1", "NetworkPolicy") => Self::NetworkPolicy,
            ("node.k8s.io/v1", "RuntimeClass") => Self::RuntimeClass,
            ("v1", "Secret") => Self::Secret,
            ("v1", "ConfigMap") => Self::ConfigMap,
            (gateway::API_VERSION, "Gateway") => Self::Gateway,
            (gateway::API_VERSION, "HTTPRoute") => Self::HttpRoute,
            (gateway::API_VERSION, "GRPCRoute") => Self::GrpcRoute,
            (gateway::API_VERSION, "TLSRoute") => Self::TlsRoute,
            (gateway::API_VERSION, "TCPRoute") => Self::TcpRoute,
            (gateway::API_VERSION, "BackendTLSPolicy") => Self::BackendTlsPolicy,
            (gateway::API_VERSION | gateway::BETA_API_VERSION, "ReferenceGrant") => {
                Self::ReferenceGrant
            }
            (policy::API_VERSION, "AuthorizationPolicy") => Self::AuthorizationPolicy,
            (policy::API_VERSION, "MeshTLS") => Self::MeshTls,
            (policy::API_VERSION, "TrafficPolicy") => Self::TrafficPolicy,
            (policy::API_VERSION, "RequestAuthentication") => Self::RequestAuthentication,
            ("security.istio.io/v1" | "security.istio.io/v1beta1", "AuthorizationPolicy") => {
                Self::IstioAuthorizationPolicy
            }
            ("security.istio.io/v1" | "security.istio.io/v1beta1", "PeerAuthentication") => {
                Self::PeerAuthentication
            }
            ("security.istio.io/v1" | "security.istio.io/v1beta1", "RequestAuthentication") => {
                Self::IstioRequestAuthentication
            }
            _ => return None,
        })
    }

    /// Objects of this kind are in a namespace.
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node | Self::RuntimeClass)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MeshTls => f.write_str("MeshTLS"),
            // As kubectl tells kinds of one name apart.
            Self::IstioAuthorizationPolicy => f.write_str("AuthorizationPolicy.security.istio.io"),
            Self::PeerAuthentication => f.write_str("PeerAuthentication.security.istio.io"),
            Self::IstioRequestAuthentication => {
                f.write_str("RequestAuthentication.security.istio.io")
            }
            Self::HttpRoute => f.write_str("HTTPRoute"),
            Self::GrpcRoute => f.write_str("GRPCRoute"),
            Self::TlsRoute => f.write_str("TLSRoute"),
            Self::TcpRoute => f.write_str("TCPRoute"),
            Self::BackendTlsPolicy => f.write_str("BackendTLSPolicy"),
            other => fmt::Debug::fmt(other, f),
        }
    }
}

/// One object of a kind that is read.
#[derive(Clone, Debug, PartialEq)]
#[allow(
    missing_docs,
    reason = "each is the Kubernetes kind of that name, Istio's where a name is taken"
)]
pub enum Object {
    Namespace(Arc<Namespace>),
    Node(Arc<Node>),
    Pod(Arc<Pod>),
    Service(Arc<Service>),
    EndpointSlice(Arc<EndpointSlice>),
    ServiceAccount(Arc<ServiceAccount>),
    NetworkPolicy(Arc<NetworkPolicy>),
    RuntimeClass(Arc<RuntimeClass>),
    Secret(Arc<TlsSecret>),
    ConfigMap(Arc<CaBundle>),
    Gateway(Arc<Gateway>),
    HttpRoute(Arc<HttpRoute>),
    GrpcRoute(Arc<GrpcRoute>),
    TlsRoute(Arc<TlsRoute>),
    TcpRoute(Arc<TcpRoute>),
    BackendTlsPolicy(Arc<BackendTlsPolicy>),
    ReferenceGrant(Arc<ReferenceGrant>),
    AuthorizationPolicy(Arc<AuthorizationPolicy>),
    MeshTls(Arc<MeshTls>),
    TrafficPolicy(Arc<TrafficPolicy>),
    RequestAuthentication(Arc<RequestAuthentication>),
    IstioAuthorizationPolicy(Arc<istio::AuthorizationPolicy>),
    PeerAuthentication(Arc<PeerAuthentication>),
    IstioRequestAuthentication(Arc<istio::RequestAuthentication>),
}

impl Object {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::Node(_) => Kind::Node,
            Self::Pod(_) => Kind::Pod,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::ServiceAccount(_) => Kind::ServiceAccount,
            Self::NetworkPolicy(_) => Kind::NetworkPolicy,
            Self::RuntimeClass(_) => Kind::RuntimeClass,
            Self::Secret(_) => Kind::Secret,
            Self::ConfigMap(_) => Kind::ConfigMap,
            Self::Gateway(_) => Kind::Gateway,
            Self::HttpRoute(_) => Kind::HttpRoute,
            Self::GrpcRoute(_) => Kind::GrpcRoute,
            Self::TlsRoute(_) => Kind::TlsRoute,
            Self::TcpRoute(_) => Kind::TcpRoute,
            Self::BackendTlsPolicy(_) => Kind::BackendTlsPolicy,
            Self::ReferenceGrant(_) => Kind::ReferenceGrant,
            Self::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Self::MeshTls(_) => Kind::MeshTls,
            Self::TrafficPolicy(_) => Kind::TrafficPolicy,
            Self::RequestAuthentication(_) => Kind::RequestAuthentication,
            Self::IstioAuthorizationPolicy(_) => Kind::IstioAuthorizationPolicy,
            Self::PeerAuthentication(_) => Kind::PeerAuthentication,
            Self::IstioRequestAuthentication(_) => Kind::IstioRequestAuthentication,
        }
    }

    /// As the API has it, with `apiVersion` and `kind`.
    pub(crate) fn to_value(&self) -> Value {
        let value = match self {
            Self::Namespace(object) => serde_json::to_value(&**object),
            Self::Node(object) => serde_json::to_value(&**object),
            Self::Pod(object) => serde_json::to_value(&**object),
            Self::Service(object) => serde_json::to_value(&**object),
            Self::EndpointSlice(object) => serde_json::to_value(&**object),
            Self::ServiceAccount(object) => serde_json::to_value(&**object),
            Self::NetworkPolicy(object) => serde_json::to_value(&**object),
            Self::RuntimeClass(object) => serde_json::to_value(&**object),
            Self::Secret(object) => Ok(object.to_value()),
            Self::ConfigMap(object) => Ok(object.to_value()),
            Self::Gateway(object) => Ok(object.given.clone()),
            Self::HttpRoute(object) => Ok(object.given.clone()),
            Self::GrpcRoute(object) => Ok(object.given.clone()),
            Self::TlsRoute(object) => Ok(object.given.clone()),
            Self::TcpRoute(object) => Ok(object.given.clone()),
            Self::BackendTlsPolicy(object) => Ok(object.given.clone()),
            Self::ReferenceGrant(object) => serde_json::to_value(&**object),
            Self::AuthorizationPolicy(object) => serde_json::to_value(&**object),
            Self::MeshTls(object) => serde_json::to_value(&**object),
            Self::TrafficPolicy(object) => serde_json::to_value(&**object),
            Self::RequestAuthentication(object) => serde_json::to_value(&**object),
            Self::IstioAuthorizationPolicy(object) => serde_json::to_value(&**object),
            Self::PeerAuthentication(object) => serde_json::to_value(&**object),
            Self::IstioRequestAuthentication(object) => serde_json::to_value(&**object),
        };
        value.expect("objects have text for keys, and serialize")
    }
}
