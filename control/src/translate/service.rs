//! Services.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use prost::Message as _;
use seine_objects::{
    ObjectKey, ObjectSet,
    gateway::{self, Binding},
    k8s_openapi::{
        api::core::v1::{Container, Pod, Service, ServicePort, ServiceSpec},
        apimachinery::pkg::util::intstr::IntOrString,
    },
};
use seine_proto::{
    extensions::ServiceExtension,
    workload::{
        AppProtocol, Extension, IpFamilies, LoadBalancing, NetworkAddress, Port, PortList,
        load_balancing::{HealthPolicy, Mode, Scope},
    },
};

use super::{Settings, waypoint};
use crate::ip_bytes;

/// Name of the extension that carries [`ServiceExtension`].
pub const SERVICE_EXTENSION: &str = "seine.dev/service";

/// A service and its wire form.
pub(super) struct Translated {
    /// `namespace/hostname`.
    pub(super) key: String,
    pub(super) object: Arc<Service>,
    /// The waypoints that it is bound to.
    pub(super) waypoint: Option<Binding>,
    /// Names of the policies that its waypoint enforces.
    pub(super) policies: Vec<String>,
    /// Likewise of RequestAuthentications.
    pub(super) authentications: Vec<String>,
    pub(super) message: seine_proto::workload::Service,
}

/// Every service but those of type ExternalName, which have neither addresses nor endpoints.
pub(super) fn translate(
    objects: &ObjectSet,
    settings: &Settings,
) -> BTreeMap<ObjectKey, Translated> {
    let mut translated = BTreeMap::new();
    for (key, object) in &objects.services {
        let Some(spec) = &object.spec else { continue };
        if is_external_name(spec) {
            continue;
        }
        let hostname = hostname(key, settings);
        let namespace = objects.namespace(&key.namespace);
        let binding = gateway::binding(namespace, object, &settings.enrolment);
        let mut message = seine_proto::workload::Service {
            name: key.name.clone(),
            namespace: key.namespace.clone(),
            addresses: addresses(spec, settings),
            ports: tcp_ports(spec).filter_map(service_port).collect(),
            load_balancing: load_balancing(spec),
            ip_families: ip_families(spec).into(),
            canonical: true,
            hostname: hostname.clone(),
            ..Default::default()
        };
        if let Some(binding) = &binding {
            waypoint::name(objects, key, binding, settings, &mut message);
        }
        let wire_key = format!("{}/{hostname}", key.namespace);
        translated.insert(
            key.clone(),
            Translated {
                key: wire_key,
                object: object.clone(),
                waypoint: binding,
                policies: Vec::new(),
                authentications: Vec::new(),
                message,
            },
        );
    }
    translated
}

/// The full DNS name of a service.
pub(super) fn hostname(key: &ObjectKey, settings: &Settings) -> String {
    format!("{}.{}.svc.{}", key.name, key.namespace, settings.dns_domain)
}

/// Whether the service's selector selects the pod. A service without one selects nothing.
pub(super) fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = service
        .spec
        .as_ref()
        .and_then(|spec| spec.selector.as_ref());
    let Some(selector) = selector.filter(|selector| !selector.is_empty()) else {
        return false;
    };
    let Some(labels) = &pod.metadata.labels else {
        return false;
    };
    selector
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value))
}

/// The service's ports with the ports of this pod that they lead to; a port whose name the pod
/// doesn't have is left out.
pub(super) fn ports_at(service: &Service, pod: &Pod) -> PortList {
    let Some(spec) = &service.spec else {
        return PortList::default();
    };
    let ports = tcp_ports(spec)
        .filter_map(|port| {
            let target_port = match &port.target_port {
                None | Some(IntOrString::Int(0)) => u32::try_from(port.port).ok()?,
                Some(IntOrString::Int(target)) => u32::try_from(*target).ok()?,
                Some(IntOrString::String(name)) => named_port(pod, name)?,
            };
            Some(Port {
                target_port,
                ..service_port(port)?
            })
        })
        .collect();
    PortList { ports }
}

/// The service's ports as an endpoint slice (`name` to port) leads them on.
pub(super) fn ports_of_slice(service: &Service, targets: &BTreeMap<String, u32>) -> PortList {
    let Some(spec) = &service.spec else {
        return PortList::default();
    };
    let ports = tcp_ports(spec)
        .filter_map(|port| {
            let target_port = *targets.get(port.name.as_deref().unwrap_or_default())?;
            Some(Port {
                target_port,
                ..service_port(port)?
            })
        })
        .collect();
    PortList { ports }
}

fn named_port(pod: &Pod, name: &str) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    // Of the init containers only those that go on running serve anything.
    let sidecar = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    spec.containers
        .iter()
        .chain(spec.init_containers.iter().flatten().filter(sidecar))
        .flat_map(|container| container.ports.iter().flatten())
        .find(|port| port.name.as_deref() == Some(name) && is_tcp(port.protocol.as_deref()))
        .and_then(|port| u32::try_from(port.container_port).ok())
}

fn is_tcp(protocol: Option<&str>) -> bool {
    matches!(protocol, None | Some("TCP" | ""))
}

/// The mesh carries TCP: a port of another protocol would only shadow a TCP port of that number.
/// It has neither addresses nor endpoints.
pub(super) fn is_external_name(spec: &ServiceSpec) -> bool {
    spec.type_.as_deref() == Some("ExternalName")
}

/// Those that the mesh carries.
pub(super) fn tcp_ports(spec: &ServiceSpec) -> impl Iterator<Item = &ServicePort> {
    spec.ports
        .iter()
        .flatten()
        .filter(|port| is_tcp(port.protocol.as_deref()))
}

/// Target 0 stands for a name, which each pod resolves for itself.
fn service_port(port: &ServicePort) -> Option<Port> {
    let service_port = u32::try_from(port.port)
        .ok()
        .filter(|port| (1..=65535).contains(port))?;
    let target_port = match &port.target_port {
        None | Some(IntOrString::Int(0)) => service_port,
        Some(IntOrString::Int(target)) => u32::try_from(*target).ok()?,
        Some(IntOrString::String(_)) => 0,
    };
    Some(Port {
        service_port,
        target_port,
        app_protocol: app_protocol(port).into(),
    })
}

fn app_protocol(port: &ServicePort) -> AppProtocol {
    let name = port.name.as_deref().unwrap_or_default();
    let from_name = name.split('-').next().unwrap_or_default();
    match port.app_protocol.as_deref().unwrap_or(from_name) {
        "http" | "kubernetes.io/ws" => AppProtocol::Http11,
        "http2" | "h2c" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "tcp" => AppProtocol::Tcp,
        "tls" | "https" | "kubernetes.io/wss" => AppProtocol::Tls,
        _ => AppProtocol::Unknown,
    }
}

fn addresses(spec: &ServiceSpec, settings: &Settings) -> Vec<NetworkAddress> {
    let mut found: Vec<IpAddr> = Vec::new();
    let listed = spec.cluster_ips.iter().flatten().map(String::as_str);
    for ip in listed
        .chain(spec.cluster_ip.as_deref())
        .filter_map(|ip| ip.parse().ok())
    {
        if !found.contains(&ip) {
            found.push(ip);
        }
    }
    let network = &settings.network;
    found
        .into_iter()
        .map(|ip| NetworkAddress {
            network: network.clone(),
            address: ip_bytes(ip),
            length: None,
        })
        .collect()
}

fn ip_families(spec: &ServiceSpec) -> IpFamilies {
    let families: Vec<&str> = spec
        .ip_families
        .iter()
        .flatten()
        .map(String::as_str)
        .collect();
    match families[..] {
        ["IPv4"] => IpFamilies::Ipv4Only,
        ["IPv6"] => IpFamilies::Ipv6Only,
        [_, _] => IpFamilies::Dual,
        _ => IpFamilies::Automatic,
    }
}

fn load_balancing(spec: &ServiceSpec) -> Option<LoadBalancing> {
    let closest = [Scope::Network, Scope::Region, Scope::Zone];
    let same_node = [
        Scope::Network,
        Scope::Region,
        Scope::Zone,
        Scope::Subzone,
        Scope::Node,
    ];
    let local = spec.internal_traffic_policy.as_deref() == Some("Local");
    let (scopes, mode): (&[Scope], Mode) = match spec.traffic_distribution.as_deref() {
        _ if local => (&[Scope::Node], Mode::Strict),
        Some("PreferClose" | "PreferSameZone") => (&closest, Mode::Failover),
        Some("PreferSameNode") => (&same_node, Mode::Failover),
        _ => (&[], Mode::UnspecifiedMode),
    };
    let allow_all = spec.publish_not_ready_addresses == Some(true);
    if scopes.is_empty() && !allow_all {
        return None;
    }
    let health_policy = if allow_all {
        HealthPolicy::AllowAll
    } else {
        HealthPolicy::OnlyHealthy
    };
    Some(LoadBalancing {
        routing_preference: scopes.iter().map(|scope| *scope as i32).collect(),
        mode: mode.into(),
        health_policy: health_policy.into(),
    })
}

/// What only we say of a service: with the policies of its waypoint, which are known last.
pub(super) fn extension(service: &Translated) -> Option<Extension> {
    let spec = service.object.spec.as_ref()?;
    let names: BTreeMap<u32, String> = tcp_ports(spec)
        .filter_map(|port| Some((service_port(port)?.service_port, port.name.clone()?)))
        .collect();
    let listed = ServiceExtension {
        policies: service.policies.clone(),
        authentications: service.authentications.clone(),
        ..Default::default()
    };
    if names.is_empty() && listed == ServiceExtension::default() {
        return None;
    }
    // One message for each entry, one after the other: that is the encoding of their merger, and
    // unlike that of a map it has an order.
    let names = names.into_iter().flat_map(|entry| {
        ServiceExtension {
            port_names: [entry].into_iter().collect(),
            ..Default::default()
        }
        .encode_to_vec()
    });
    let value = names.chain(listed.encode_to_vec()).collect();
    let type_url = "type.googleapis.com/seine.workload.v1.ServiceExtension".to_owned();
    Some(Extension {
        name: SERVICE_EXTENSION.into(),
        config: Some(prost_types::Any { type_url, value }),
    })
}
