//! What is watched, and under which names the API server has it.

use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
    node::v1::RuntimeClass,
};
use kube::api::ApiResource;
use seine_objects::Kind;
use seine_objects::policy::{AuthorizationPolicy, MeshTls};

/// Which objects a source watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every kind in all namespaces: for the control plane.
    Cluster,
    /// The pods of the node of this name, the node, all namespaces and runtime classes: for its agent.
    Node(String),
}

impl Scope {
    pub(crate) fn kinds(&self) -> &'static [Kind] {
        match self {
            Self::Cluster => &[
                Kind::Namespace,
                Kind::Node,
                Kind::Pod,
                Kind::Service,
                Kind::EndpointSlice,
                Kind::ServiceAccount,
                Kind::NetworkPolicy,
                Kind::RuntimeClass,
                Kind::AuthorizationPolicy,
                Kind::MeshTls,
            ],
            Self::Node(_) => &[Kind::Namespace, Kind::Node, Kind::Pod, Kind::RuntimeClass],
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

pub(crate) fn resource(kind: Kind) -> ApiResource {
    match kind {
        Kind::Namespace => ApiResource::erase::<Namespace>(&()),
        Kind::Node => ApiResource::erase::<Node>(&()),
        Kind::Pod => ApiResource::erase::<Pod>(&()),
        Kind::Service => ApiResource::erase::<Service>(&()),
        Kind::EndpointSlice => ApiResource::erase::<EndpointSlice>(&()),
        Kind::ServiceAccount => ApiResource::erase::<ServiceAccount>(&()),
        Kind::NetworkPolicy => ApiResource::erase::<NetworkPolicy>(&()),
        Kind::RuntimeClass => ApiResource::erase::<RuntimeClass>(&()),
        Kind::AuthorizationPolicy => ApiResource::erase::<AuthorizationPolicy>(&()),
        Kind::MeshTls => ApiResource::erase::<MeshTls>(&()),
    }
}
