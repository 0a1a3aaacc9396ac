//! A snapshot of all objects.

use std::{collections::BTreeMap, fmt, sync::Arc};

use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
    node::v1::RuntimeClass,
};

use crate::{
    Kind, Object,
    ca_bundle::CaBundle,
    gateway::{
        BackendTlsPolicy, Gateway, GrpcRoute, HttpRoute, ReferenceGrant, TcpRoute, TlsRoute,
    },
    istio,
    policy::{AuthorizationPolicy, MeshTls, RequestAuthentication, TrafficPolicy},
    tls_secret::TlsSecret,
};

/// Objects of one kind. An object that didn't change keeps its `Arc` from one set to the next.
pub type Objects<T> = BTreeMap<ObjectKey, Arc<T>>;

/// Everything that is known of the cluster at one time.
///
/// Equal sets are equal in content. Every object is valid (see the crate's documentation).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObjectSet {
    /// Keyed with an empty namespace.
    pub namespaces: Objects<Namespace>,
    /// Keyed with an empty namespace.
    pub nodes: Objects<Node>,
    /// Also finished ones, see [`crate::pods::is_finished`].
    pub pods: Objects<Pod>,
    /// Of every type.
    pub services: Objects<Service>,
    /// Of every service, those made from pods too.
    pub endpoint_slices: Objects<EndpointSlice>,
    /// Service accounts.
    pub service_accounts: Objects<ServiceAccount>,
    /// The CNI's, which may stand in the mesh's way: see [`crate::network_policy`].
    pub network_policies: Objects<NetworkPolicy>,
    /// Keyed with an empty namespace. Which runtime a pod's class stands for: see [`crate::enrolment()`].
    pub runtime_classes: Objects<RuntimeClass>,
    /// Those that Gateways of ours name.
    pub secrets: Objects<TlsSecret>,
    /// Of the authorities that Gateways of ours name, and in a directory all.
    pub config_maps: Objects<CaBundle>,
    /// Of every class.
    pub gateways: Objects<Gateway>,
    /// Of every parent.
    pub http_routes: Objects<HttpRoute>,
    /// Of every parent.
    pub grpc_routes: Objects<GrpcRoute>,
    /// Of every parent.
    pub tls_routes: Objects<TlsRoute>,
    /// Of every parent.
    pub tcp_routes: Objects<TcpRoute>,
    /// Of every Service.
    pub backend_tls_policies: Objects<BackendTlsPolicy>,
    /// Of every namespace.
    pub reference_grants: Objects<ReferenceGrant>,
    /// `policy.seine.dev` authorization policies.
    pub authorization_policies: Objects<AuthorizationPolicy>,
    /// `policy.seine.dev` TLS modes.
    pub mesh_tls: Objects<MeshTls>,
    /// `policy.seine.dev` traffic policies.
    pub traffic_policies: Objects<TrafficPolicy>,
    /// `policy.seine.dev` rules on tokens.
    pub request_authentications: Objects<RequestAuthentication>,
    /// Istio's authorization policies.
    pub istio_authorization_policies: Objects<istio::AuthorizationPolicy>,
    /// Istio's TLS modes.
    pub peer_authentications: Objects<istio::PeerAuthentication>,
    /// Istio's rules on tokens.
    pub istio_request_authentications: Objects<istio::RequestAuthentication>,
}

impl ObjectSet {
    /// The namespace object of that name.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces
            .get(&ObjectKey::cluster(name))
            .map(AsRef::as_ref)
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(&ObjectKey::cluster(name)).map(AsRef::as_ref)
    }

    /// The pod of that namespace and name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Pod> {
        self.pods
            .get(&ObjectKey::new(namespace, name))
            .map(AsRef::as_ref)
    }

    /// Puts an object in, in the place of an earlier one of that kind and key.
    pub fn insert(&mut self, key: ObjectKey, object: Object) {
        match object {
            Object::Namespace(object) => drop(self.namespaces.insert(key, object)),
            Object::Node(object) => drop(self.nodes.insert(key, object)),
            Object::Pod(object) => drop(self.pods.insert(key, object)),
            Object::Service(object) => drop(self.services.insert(key, object)),
            Object::EndpointSlice(object) => drop(self.endpoint_slices.insert(key, object)),
            Object::ServiceAccount(object) => drop(self.service_accounts.insert(key, object)),
            Object::NetworkPolicy(object) => drop(self.network_policies.insert(key, object)),
            Object::RuntimeClass(object) => drop(self.runtime_classes.insert(key, object)),
            Object::Secret(object) => drop(self.secrets.insert(key, object)),
            Object::ConfigMap(object) => drop(self.config_maps.insert(key, object)),
            Object::Gateway(object) => drop(self.gateways.insert(key, object)),
            Object::HttpRoute(object) => drop(self.http_routes.insert(key, object)),
            Object::GrpcRoute(object) => drop(self.grpc_routes.insert(key, object)),
            Object::TlsRoute(object) => drop(self.tls_routes.insert(key, object)),
            Object::TcpRoute(object) => drop(self.tcp_routes.insert(key, object)),
            Object::BackendTlsPolicy(object) => drop(self.backend_tls_policies.insert(key, object)),
            Object::ReferenceGrant(object) => drop(self.reference_grants.insert(key, object)),
            Object::AuthorizationPolicy(object) => {
                drop(self.authorization_policies.insert(key, object));
            }
            Object::MeshTls(object) => drop(self.mesh_tls.insert(key, object)),
            Object::TrafficPolicy(object) => drop(self.traffic_policies.insert(key, object)),
            Object::RequestAuthentication(object) => {
                drop(self.request_authentications.insert(key, object));
            }
            Object::IstioAuthorizationPolicy(object) => {
                drop(self.istio_authorization_policies.insert(key, object));
            }
            Object::PeerAuthentication(object) => {
                drop(self.peer_authentications.insert(key, object));
            }
            Object::IstioRequestAuthentication(object) => {
                drop(self.istio_request_authentications.insert(key, object));
            }
        }
    }

    /// Takes an object out; `true` if it was there.
    pub fn remove(&mut self, kind: Kind, key: &ObjectKey) -> bool {
        match kind {
            Kind::Namespace => self.namespaces.remove(key).is_some(),
            Kind::Node => self.nodes.remove(key).is_some(),
            Kind::Pod => self.pods.remove(key).is_some(),
            Kind::Service => self.services.remove(key).is_some(),
            Kind::EndpointSlice => self.endpoint_slices.remove(key).is_some(),
            Kind::ServiceAccount => self.service_accounts.remove(key).is_some(),
            Kind::NetworkPolicy => self.network_policies.remove(key).is_some(),
            Kind::RuntimeClass => self.runtime_classes.remove(key).is_some(),
            Kind::Secret => self.secrets.remove(key).is_some(),
            Kind::ConfigMap => self.config_maps.remove(key).is_some(),
            Kind::Gateway => self.gateways.remove(key).is_some(),
            Kind::HttpRoute => self.http_routes.remove(key).is_some(),
            Kind::GrpcRoute => self.grpc_routes.remove(key).is_some(),
            Kind::TlsRoute => self.tls_routes.remove(key).is_some(),
            Kind::TcpRoute => self.tcp_routes.remove(key).is_some(),
            Kind::BackendTlsPolicy => self.backend_tls_policies.remove(key).is_some(),
            Kind::ReferenceGrant => self.reference_grants.remove(key).is_some(),
            Kind::AuthorizationPolicy => self.authorization_policies.remove(key).is_some(),
            Kind::MeshTls => self.mesh_tls.remove(key).is_some(),
            Kind::TrafficPolicy => self.traffic_policies.remove(key).is_some(),
            Kind::RequestAuthentication => self.request_authentications.remove(key).is_some(),
            Kind::IstioAuthorizationPolicy => {
                self.istio_authorization_policies.remove(key).is_some()
            }
            Kind::PeerAuthentication => self.peer_authentications.remove(key).is_some(),
            Kind::IstioRequestAuthentication => {
                self.istio_request_authentications.remove(key).is_some()
            }
        }
    }

    /// Whether there is an object of that kind and key.
    pub fn contains(&self, kind: Kind, key: &ObjectKey) -> bool {
        match kind {
            Kind::Namespace => self.namespaces.contains_key(key),
            Kind::Node => self.nodes.contains_key(key),
            Kind::Pod => self.pods.contains_key(key),
            Kind::Service => self.services.contains_key(key),
            Kind::EndpointSlice => self.endpoint_slices.contains_key(key),
            Kind::ServiceAccount => self.service_accounts.contains_key(key),
            Kind::NetworkPolicy => self.network_policies.contains_key(key),
            Kind::RuntimeClass => self.runtime_classes.contains_key(key),
            Kind::Secret => self.secrets.contains_key(key),
            Kind::ConfigMap => self.config_maps.contains_key(key),
            Kind::Gateway => self.gateways.contains_key(key),
            Kind::HttpRoute => self.http_routes.contains_key(key),
            Kind::GrpcRoute => self.grpc_routes.contains_key(key),
            Kind::TlsRoute => self.tls_routes.contains_key(key),
            Kind::TcpRoute => self.tcp_routes.contains_key(key),
            Kind::BackendTlsPolicy => self.backend_tls_policies.contains_key(key),
            Kind::ReferenceGrant => self.reference_grants.contains_key(key),
            Kind::AuthorizationPolicy => self.authorization_policies.contains_key(key),
            Kind::MeshTls => self.mesh_tls.contains_key(key),
            Kind::TrafficPolicy => self.traffic_policies.contains_key(key),
            Kind::RequestAuthentication => self.request_authentications.contains_key(key),
            Kind::IstioAuthorizationPolicy => self.istio_authorization_policies.contains_key(key),
            Kind::PeerAuthentication => self.peer_authentications.contains_key(key),
            Kind::IstioRequestAuthentication => {
                self.istio_request_authentications.contains_key(key)
            }
        }
    }

    /// Whether an equal object is there under this key.
    pub fn holds(&self, key: &ObjectKey, object: &Object) -> bool {
        fn same<T: PartialEq>(held: &Objects<T>, key: &ObjectKey, object: &Arc<T>) -> bool {
            held.get(key).is_some_and(|held| held == object)
        }
        match object {
            Object::Namespace(object) => same(&self.namespaces, key, object),
            Object::Node(object) => same(&self.nodes, key, object),
            Object::Pod(object) => same(&self.pods, key, object),
            Object::Service(object) => same(&self.services, key, object),
            Object::EndpointSlice(object) => same(&self.endpoint_slices, key, object),
            Object::ServiceAccount(object) => same(&self.service_accounts, key, object),
            Object::NetworkPolicy(object) => same(&self.network_policies, key, object),
            Object::RuntimeClass(object) => same(&self.runtime_classes, key, object),
            Object::Secret(object) => same(&self.secrets, key, object),
            Object::ConfigMap(object) => same(&self.config_maps, key, object),
            Object::Gateway(object) => same(&self.gateways, key, object),
            Object::HttpRoute(object) => same(&self.http_routes, key, object),
            Object::GrpcRoute(object) => same(&self.grpc_routes, key, object),
            Object::TlsRoute(object) => same(&self.tls_routes, key, object),
            Object::TcpRoute(object) => same(&self.tcp_routes, key, object),
            Object::BackendTlsPolicy(object) => same(&self.backend_tls_policies, key, object),
            Object::ReferenceGrant(object) => same(&self.reference_grants, key, object),
            Object::AuthorizationPolicy(object) => same(&self.authorization_policies, key, object),
            Object::MeshTls(object) => same(&self.mesh_tls, key, object),
            Object::TrafficPolicy(object) => same(&self.traffic_policies, key, object),
            Object::RequestAuthentication(object) => {
                same(&self.request_authentications, key, object)
            }
            Object::IstioAuthorizationPolicy(object) => {
                same(&self.istio_authorization_policies, key, object)
            }
            Object::PeerAuthentication(object) => same(&self.peer_authentications, key, object),
            Object::IstioRequestAuthentication(object) => {
                same(&self.istio_request_authentications, key, object)
            }
        }
    }

    /// The keys of the objects of a kind.
    pub fn keys(&self, kind: Kind) -> Box<dyn Iterator<Item = &ObjectKey> + '_> {
        match kind {
            Kind::Namespace => Box::new(self.namespaces.keys()),
            Kind::Node => Box::new(self.nodes.keys()),
            Kind::Pod => Box::new(self.pods.keys()),
            Kind::Service => Box::new(self.services.keys()),
            Kind::EndpointSlice => Box::new(self.endpoint_slices.keys()),
            Kind::ServiceAccount => Box::new(self.service_accounts.keys()),
            Kind::NetworkPolicy => Box::new(self.network_policies.keys()),
            Kind::RuntimeClass => Box::new(self.runtime_classes.keys()),
            Kind::Secret => Box::new(self.secrets.keys()),
            Kind::ConfigMap => Box::new(self.config_maps.keys()),
            Kind::Gateway => Box::new(self.gateways.keys()),
            Kind::HttpRoute => Box::new(self.http_routes.keys()),
            Kind::GrpcRoute => Box::new(self.grpc_routes.keys()),
            Kind::TlsRoute => Box::new(self.tls_routes.keys()),
            Kind::TcpRoute => Box::new(self.tcp_routes.keys()),
            Kind::BackendTlsPolicy => Box::new(self.backend_tls_policies.keys()),
            Kind::ReferenceGrant => Box::new(self.reference_grants.keys()),
            Kind::AuthorizationPolicy => Box::new(self.authorization_policies.keys()),
            Kind::MeshTls => Box::new(self.mesh_tls.keys()),
            Kind::TrafficPolicy => Box::new(self.traffic_policies.keys()),
            Kind::RequestAuthentication => Box::new(self.request_authentications.keys()),
            Kind::IstioAuthorizationPolicy => Box::new(self.istio_authorization_policies.keys()),
            Kind::PeerAuthentication => Box::new(self.peer_authentications.keys()),
            Kind::IstioRequestAuthentication => Box::new(self.istio_request_authentications.keys()),
        }
    }

    /// The valid objects of a YAML text: for tests and for tools that read a single file.
    pub fn from_yaml(text: &str) -> (Self, Vec<crate::Problem>) {
        let parsed = crate::parse_text("", text);
        let mut set = Self::default();
        for (key, object, _) in parsed.objects {
            set.insert(key, object);
        }
        (set, parsed.problems)
    }

    /// Takes the `Arc` of `older` for every object that is equal there.
    pub(crate) fn share_unchanged(&mut self, older: &Self) {
        share(&mut self.namespaces, &older.namespaces);
        share(&mut self.nodes, &older.nodes);
        share(&mut self.pods, &older.pods);
        share(&mut self.services, &older.services);
        share(&mut self.endpoint_slices, &older.endpoint_slices);
        share(&mut self.service_accounts, &older.service_accounts);
        share(&mut self.network_policies, &older.network_policies);
        share(&mut self.runtime_classes, &older.runtime_classes);
        share(&mut self.secrets, &older.secrets);
        share(&mut self.config_maps, &older.config_maps);
        share(&mut self.gateways, &older.gateways);
        share(&mut self.http_routes, &older.http_routes);
        share(&mut self.grpc_routes, &older.grpc_routes);
        share(&mut self.tls_routes, &older.tls_routes);
        share(&mut self.tcp_routes, &older.tcp_routes);
        share(&mut self.backend_tls_policies, &older.backend_tls_policies);
        share(&mut self.reference_grants, &older.reference_grants);
        share(
            &mut self.authorization_policies,
            &older.authorization_policies,
        );
        share(&mut self.mesh_tls, &older.mesh_tls);
        share(&mut self.traffic_policies, &older.traffic_policies);
        share(
            &mut self.request_authentications,
            &older.request_authentications,
        );
        share(
            &mut self.istio_authorization_policies,
            &older.istio_authorization_policies,
        );
        share(&mut self.peer_authentications, &older.peer_authentications);
        share(
            &mut self.istio_request_authentications,
            &older.istio_request_authentications,
        );
    }
}

fn share<T: PartialEq>(new: &mut Objects<T>, older: &Objects<T>) {
    for (key, object) in new {
        if let Some(known) = older.get(key)
            && (Arc::ptr_eq(object, known) || **object == **known)
        {
            *object = known.clone();
        }
    }
}

/// Namespace and name; the namespace of a cluster-wide object is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Empty for a cluster-wide object.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl ObjectKey {
    /// The key of a namespaced object.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The key of a cluster-wide object.
    pub fn cluster(name: impl Into<String>) -> Self {
        Self::new("", name)
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}
