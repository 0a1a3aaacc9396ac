//! From objects to what proxies are told: one pure function.
//!
//! [`translate`] sees an [`ObjectSet`] and settings and nothing else: no clock, no order of events,
//! no earlier output. The same objects give the same resources, so that whoever compares two
//! outputs knows exactly what must be sent.

mod authentication;
pub(crate) mod backend_tls;
mod claims;
pub(crate) mod clients;
mod endpoints;
pub(crate) mod ingress;
mod istio;
mod mesh_tls;
mod policy;
mod request;
mod route;
mod service;
mod traffic;
mod waypoint;
mod workload;

use std::collections::{BTreeMap, BTreeSet};

use seine_objects::{
    EnrolmentSettings, Kind, ObjectKey, ObjectSet, Refusal, enrolment,
    gateway::{Binding, NoWaypoint},
    network_policy::{self, Blocked, MeshPod},
    pods,
    policy::ROOT_NAMESPACE,
};
use seine_proto::{
    security::Authorization,
    waypoint::{Listener, RequestAuthentication, RouteRule, TrafficPolicy},
};

pub use self::workload::{DNS_ANNOTATION, WORKLOAD_EXTENSION};
pub use claims::Claims;
pub use policy::AUTHORIZATION_EXTENSION;
pub use request::{REQUEST_EXTENSION, TOKEN_EXTENSION};
pub(crate) use route::{Unresolved, is_of_connections, unresolved};
pub use service::SERVICE_EXTENSION;

/// What the translation needs to know beside the objects.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of every identity in this mesh.
    pub trust_domain: String,
    /// Names this cluster in uids and metrics.
    pub cluster_id: String,
    /// Names the network that every address is in; empty where there is only one.
    pub network: String,
    /// Domain of the cluster's DNS names.
    pub dns_domain: String,
    /// Namespace whose policies without a selector hold for the whole mesh.
    pub root_namespace: String,
    /// The same for policies of Istio's; without it they are not read.
    pub istio_root_namespace: Option<String>,
    /// Who is in the mesh.
    pub enrolment: EnrolmentSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".into(),
            cluster_id: "Kubernetes".into(),
            network: String::new(),
            dns_domain: "cluster.local".into(),
            root_namespace: ROOT_NAMESPACE.into(),
            istio_root_namespace: None,
            enrolment: EnrolmentSettings::default(),
        }
    }
}

impl Settings {
    /// The name by which an address is found: `network/ip`.
    pub(crate) fn address_name(&self, address: &[u8]) -> Option<String> {
        crate::ip_from_bytes(address).map(|ip| format!("{}/{ip}", self.network))
    }
}

/// Everything that the proxies of a mesh are told, keyed by the names of the resources.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resources {
    /// By uid.
    pub workloads: BTreeMap<String, seine_proto::workload::Workload>,
    /// By `namespace/hostname`.
    pub services: BTreeMap<String, seine_proto::workload::Service>,
    /// By `namespace/name`.
    pub authorizations: BTreeMap<String, Authorization>,
    /// Rules on tokens, by `namespace/name`.
    pub authentications: BTreeMap<String, RequestAuthentication>,
    /// Rules of routes, by `kind/namespace/name/index`.
    pub routes: BTreeMap<String, RouteRule>,
    /// How requests to services are treated, by `namespace/name`.
    pub traffic: BTreeMap<String, TrafficPolicy>,
    /// Of each Gateway by its service account (`namespace/name`), by `namespace/gateway/listener`. They have keys in them.
    pub listeners: BTreeMap<String, BTreeMap<String, Listener>>,
    /// What users should know about their objects.
    pub findings: Findings,
}

/// What the translation found out about the objects that users wrote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// By the policy.
    pub authorization_policies: BTreeMap<ObjectKey, PolicyFinding>,
    /// By the route's kind and name.
    pub routes: BTreeMap<(Kind, ObjectKey), RouteFinding>,
    /// Whose hosts are at the listeners of Gateways.
    pub claims: Claims,
    /// By the `TrafficPolicy`.
    pub traffic_policies: BTreeMap<ObjectKey, TrafficFinding>,
    /// By the service that is bound to waypoints.
    pub bindings: BTreeMap<ObjectKey, BindingFinding>,
    /// By the `MeshTLS`.
    pub mesh_tls: BTreeMap<ObjectKey, PolicyFinding>,
    /// By the `RequestAuthentication`.
    pub request_authentications: BTreeMap<ObjectKey, PolicyFinding>,
    /// By Istio's policy.
    pub istio_authorization_policies: BTreeMap<ObjectKey, PolicyFinding>,
    /// By the `PeerAuthentication`.
    pub peer_authentications: BTreeMap<ObjectKey, PolicyFinding>,
    /// By Istio's `RequestAuthentication`.
    pub istio_request_authentications: BTreeMap<ObjectKey, PolicyFinding>,
    /// Pods that opted in and can't be enrolled.
    pub refused_pods: BTreeMap<ObjectKey, Refusal>,
    /// NetworkPolicies that cut pods in the mesh off from one another.
    pub network_policies: BTreeMap<ObjectKey, Blocked>,
}

impl Findings {
    /// What became of every policy, of whatever kind.
    pub fn policies(&self) -> impl Iterator<Item = &PolicyFinding> {
        self.authorization_policies
            .values()
            .chain(self.mesh_tls.values())
            .chain(self.request_authentications.values())
            .chain(self.istio_authorization_policies.values())
            .chain(self.peer_authentications.values())
            .chain(self.istio_request_authentications.values())
    }
}

/// What became of a service's binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindingFinding {
    /// The waypoints.
    pub binding: Binding,
    /// Those of them that take nothing for the service.
    pub missing: BTreeMap<ObjectKey, NoWaypoint>,
}

/// What to know about one route, each as a sentence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteFinding {
    /// Everything.
    pub said: Vec<String>,
    /// Of that, rules that are answered with an error.
    pub refused: Vec<String>,
}

/// What became of one `TrafficPolicy`, each as a sentence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrafficFinding {
    /// References that lead nowhere.
    pub unresolved: Vec<String>,
    /// Services about which an older policy decides.
    pub conflicts: Vec<String>,
    /// What no waypoint obeys.
    pub unenforced: Vec<String>,
}

/// What became of one policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyFinding {
    /// Names of the authorization resources that carry it.
    pub resources: BTreeSet<String>,
    /// Names of the resources for waypoints that carry it.
    pub authentications: BTreeSet<String>,
    /// Pods in the mesh that it holds for.
    pub enrolled: usize,
    /// Pods that it selects and that are not in the mesh: nothing enforces it there.
    pub not_enrolled: usize,
    /// References that lead nowhere, each as a sentence.
    pub unresolved: Vec<String>,
    /// Fields that nothing enforces yet.
    pub unenforced: Vec<String>,
    /// Fields that can't be obeyed, so that what the policy is about is refused.
    pub refused: Vec<String>,
    /// What another proxy may enforce and nothing here does, each as a sentence.
    pub elsewhere: Vec<String>,
    /// Other things to know, each as a sentence.
    pub notes: Vec<String>,
}

/// Translates everything.
pub fn translate(objects: &ObjectSet, settings: &Settings) -> Resources {
    let mut resources = Resources::default();
    resources.findings.claims = Claims::of(objects);
    let mut services = service::translate(objects, settings);
    let pods = workload::translate(objects, &services, settings, &mut resources);
    endpoints::translate(objects, &services, &pods, settings, &mut resources);
    policy::translate(objects, &mut services, &pods, settings, &mut resources);
    authentication::translate(objects, &mut services, settings, &mut resources);
    route::translate(objects, &services, settings, &mut resources);
    traffic::translate(objects, &services, settings, &mut resources);
    ingress::translate(objects, settings, &mut resources);
    waypoint::bind(objects, &mut services, &pods, settings, &mut resources);
    resources.findings.bindings = waypoint::findings(objects, &services);
    mesh_tls::translate(objects, &pods, settings, &mut resources);
    resources.findings.network_policies = network_policies(objects, settings);
    for workload in resources.workloads.values_mut() {
        workload.authorization_policies.sort();
    }
    resources.services = services
        .into_values()
        .map(|service| (service.key, service.message))
        .collect();
    resources
}

fn network_policies(objects: &ObjectSet, settings: &Settings) -> BTreeMap<ObjectKey, Blocked> {
    if objects.network_policies.is_empty() {
        return BTreeMap::new();
    }
    let mesh: Vec<_> = objects
        .pods
        .iter()
        .map(|(key, pod)| MeshPod {
            key,
            pod,
            namespace: objects.namespace(&key.namespace),
        })
        .filter(|pod| {
            !pods::is_finished(pod.pod)
                && enrolment(objects, &pod.key.namespace, pod.pod, &settings.enrolment)
                    .is_enrolled()
        })
        .collect();
    network_policy::blocked(&objects.network_policies, &mesh)
}

/// `type.googleapis.com/` and the message's full name.
fn any<M: prost::Message>(type_name: &str, message: &M) -> prost_types::Any {
    prost_types::Any {
        type_url: format!("type.googleapis.com/{type_name}"),
        value: message.encode_to_vec(),
    }
}

#[cfg(test)]
mod ingress_tests;
#[cfg(test)]
mod istio_request_tests;
#[cfg(test)]
mod istio_tests;
#[cfg(test)]
mod policy_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod traffic_tests;
#[cfg(test)]
mod waypoint_tests;
