//! What is watched, and under which names the API server has it.

use k8s_openapi::api::{
    core::v1::{ConfigMap, Namespace, Node, Pod, Secret, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
    node::v1::RuntimeClass,
};
use kube::api::{ApiResource, GroupVersionKind};
use seine_objects::policy::{AuthorizationPolicy, MeshTls, RequestAuthentication, TrafficPolicy};
use seine_objects::{Kind, gateway, istio};

/// Which objects a source watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every kind in all namespaces: for the control plane.
    Cluster {
        /// Istio's policies too.
        istio: bool,
    },
    /// The pods of the node of this name, the node, all namespaces and runtime classes: for its agent.
    Node(String),
}

impl Scope {
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        let node = [Kind::Namespace, Kind::Node, Kind::Pod, Kind::RuntimeClass];
        let cluster = [
            Kind::Service,
            Kind::EndpointSlice,
            Kind::ServiceAccount,
            Kind::NetworkPolicy,
            Kind::Gateway,
            Kind::HttpRoute,
            Kind::GrpcRoute,
            Kind::TlsRoute,
            Kind::TcpRoute,
            Kind::BackendTlsPolicy,
            Kind::ReferenceGrant,
            Kind::AuthorizationPolicy,
            Kind::MeshTls,
            Kind::TrafficPolicy,
            Kind::RequestAuthentication,
        ];
        let istio = [
            Kind::IstioAuthorizationPolicy,
            Kind::PeerAuthentication,
            Kind::IstioRequestAuthentication,
        ];
        match self {
            Self::Node(_) => node.to_vec(),
            Self::Cluster { istio: false } => [&node[..], &cluster].concat(),
            Self::Cluster { istio: true } => [&node[..], &cluster, &istio].concat(),
        }
    }

    /// The field selector of a kind's watch.
    pub(crate) fn selector(&self, kind: Kind) -> Option<String> {
        match (self, kind) {
            (Self::Node(name), Kind::Pod) => Some(format!("spec.nodeName={name}")),
            (Self::Node(name), Kind::Node) => Some(format!("metadata.name={name}")),
            _ => None,
        }
    }
}

/// Under which names the API server has a kind.
pub fn resource(kind: Kind) -> ApiResource {
    match kind {
        Kind::Namespace => ApiResource::erase::<Namespace>(&()),
        Kind::Node => ApiResource::erase::<Node>(&()),
        Kind::Pod => ApiResource::erase::<Pod>(&()),
        Kind::Service => ApiResource::erase::<Service>(&()),
        Kind::EndpointSlice => ApiResource::erase::<EndpointSlice>(&()),
        Kind::ServiceAccount => ApiResource::erase::<ServiceAccount>(&()),
        Kind::NetworkPolicy => ApiResource::erase::<NetworkPolicy>(&()),
        Kind::RuntimeClass => ApiResource::erase::<RuntimeClass>(&()),
        Kind::Secret => ApiResource::erase::<Secret>(&()),
        Kind::ConfigMap => ApiResource::erase::<ConfigMap>(&()),
        Kind::Gateway => of_gateway_api("Gateway", "gateways"),
        Kind::HttpRoute => of_gateway_api("HTTPRoute", "httproutes"),
        Kind::GrpcRoute => of_gateway_api("GRPCRoute", "grpcroutes"),
        Kind::TlsRoute => of_gateway_api("TLSRoute", "tlsroutes"),
        Kind::TcpRoute => of_gateway_api("TCPRoute", "tcproutes"),
        Kind::BackendTlsPolicy => of_gateway_api("BackendTLSPolicy", "backendtlspolicies"),
        Kind::ReferenceGrant => of_gateway_api("ReferenceGrant", "referencegrants"),
        Kind::AuthorizationPolicy => ApiResource::erase::<AuthorizationPolicy>(&()),
        Kind::MeshTls => ApiResource::erase::<MeshTls>(&()),
        Kind::TrafficPolicy => ApiResource::erase::<TrafficPolicy>(&()),
        Kind::RequestAuthentication => ApiResource::erase::<RequestAuthentication>(&()),
        Kind::IstioAuthorizationPolicy => of_istio("AuthorizationPolicy", "authorizationpolicies"),
        Kind::PeerAuthentication => of_istio("PeerAuthentication", "peerauthentications"),
        Kind::IstioRequestAuthentication => {
            of_istio("RequestAuthentication", "requestauthentications")
        }
    }
}

fn of_gateway_api(kind: &str, plural: &str) -> ApiResource {
    let kind = GroupVersionKind::gvk(gateway::GROUP, gateway::VERSION, kind);
    ApiResource::from_gvk_with_plural(&kind, plural)
}

/// Istio has the types of these; here they are known by name.
fn of_istio(kind: &str, plural: &str) -> ApiResource {
    let kind = GroupVersionKind::gvk(istio::GROUP, istio::VERSION, kind);
    ApiResource::from_gvk_with_plural(&kind, plural)
}
