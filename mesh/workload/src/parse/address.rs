//! Workloads and services.

use std::sync::Arc;

use prost::Message;
use seine_identity::{Identity, TrustDomain};
use seine_proto::{extensions, workload as proto};

use super::{
    ParseError, SERVICE_EXTENSION, WORKLOAD_EXTENSION, block, ip, namespaced, port, required,
    unknown_value,
};
use crate::intern::Interner;
use crate::model::{
    AppProtocol, BoundPort, GatewayAddress, GatewayDestination, HealthPolicy, IpFamilies,
    LoadBalancing, Locality, Mode, NetworkAddress, Port, PortNames, RoutingScope, Service,
    ServiceAddress, ServiceKey, TunnelProtocol, WeightedWaypoint, Workload, WorkloadExtension,
    WorkloadType,
};

/// Trust domain of a workload that names none.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
/// Service account of a workload that names none.
const DEFAULT_SERVICE_ACCOUNT: &str = "default";

/// Parses a workload, sharing strings through the interner.
pub(crate) fn parse_workload(
    message: &proto::Workload,
    interner: &mut Interner,
) -> Result<Workload, ParseError> {
    let uid = required(&message.uid, "uid")?;
    let identity = interner.identity(parse_identity(message)?);
    let tunnel_protocol = match proto::TunnelProtocol::try_from(message.tunnel_protocol) {
        Ok(proto::TunnelProtocol::None) => TunnelProtocol::None,
        Ok(proto::TunnelProtocol::Hbone) => TunnelProtocol::Hbone,
        Ok(proto::TunnelProtocol::LegacyIstioMtls) => TunnelProtocol::LegacyMtls,
        Err(_) => return Err(unknown_value("tunnel_protocol", message.tunnel_protocol)),
    };
    let healthy = match proto::WorkloadStatus::try_from(message.status) {
        Ok(proto::WorkloadStatus::Healthy) => true,
        Ok(proto::WorkloadStatus::Unhealthy) => false,
        Err(_) => return Err(unknown_value("status", message.status)),
    };
    let host_network = match proto::NetworkMode::try_from(message.network_mode) {
        Ok(proto::NetworkMode::Standard) => false,
        Ok(proto::NetworkMode::HostNetwork) => true,
        Err(_) => return Err(unknown_value("network_mode", message.network_mode)),
    };
    // A kind that is not known changes labels of metrics alone.
    let workload_type = match proto::WorkloadType::try_from(message.workload_type) {
        Ok(proto::WorkloadType::Deployment) => WorkloadType::Deployment,
        Ok(proto::WorkloadType::Cronjob) => WorkloadType::CronJob,
        Ok(proto::WorkloadType::Job) => WorkloadType::Job,
        Ok(proto::WorkloadType::Pod) | Err(_) => WorkloadType::Pod,
    };
    let mut addresses = Vec::with_capacity(message.addresses.len());
    for (index, bytes) in message.addresses.iter().enumerate() {
        addresses.push(ip(bytes).map_err(|e| e.within(|| format!("addresses[{index}]")))?);
    }
    let mut policies = Vec::with_capacity(message.authorization_policies.len());
    for (index, name) in message.authorization_policies.iter().enumerate() {
        if namespaced(name).is_none() {
            let field = format!("authorization_policies[{index}]");
            return Err(ParseError::new(
                field,
                format!("`{name}` is not namespace/name"),
            ));
        }
        policies.push(interner.get(name));
    }
    let mut services = Vec::with_capacity(message.services.len());
    for (name, ports) in &message.services {
        let within = |e: ParseError| e.within(|| format!("services[{name}]"));
        let key = service_key(name, interner).map_err(within)?;
        services.push((key, parse_ports(&ports.ports).map_err(within)?));
    }
    services.sort_by(|(a, _), (b, _)| a.cmp(b));
    let locality = message.locality.clone().unwrap_or_default();
    Ok(Workload {
        uid: uid.into(),
        name: interner.get(&message.name),
        namespace: interner.get(required(&message.namespace, "namespace")?),
        addresses: addresses.into(),
        hostname: interner.get(&message.hostname),
        network: interner.get(&message.network),
        network_gateway: gateway(
            message.network_gateway.as_ref(),
            "network_gateway",
            interner,
        )?,
        tunnel_protocol,
        native_tunnel: message.native_tunnel,
        identity,
        waypoint: gateway(message.waypoint.as_ref(), "waypoint", interner)?,
        node: interner.get(&message.node),
        canonical_name: interner.get(&message.canonical_name),
        canonical_revision: interner.get(&message.canonical_revision),
        workload_type,
        workload_name: interner.get(&message.workload_name),
        policies: policies.into(),
        healthy,
        cluster_id: interner.get(&message.cluster_id),
        services: services.into(),
        proxy_protocol_port: application_tunnel(message.application_tunnel.as_ref())?,
        locality: Locality {
            region: interner.get(&locality.region),
            zone: interner.get(&locality.zone),
            subzone: interner.get(&locality.subzone),
        },
        host_network,
        capacity: message.capacity.unwrap_or(1),
        extension: workload_extension(&message.extensions, interner)?,
    })
}

/// Parses a service, sharing strings through the interner.
pub(crate) fn parse_service(
    message: &proto::Service,
    interner: &mut Interner,
) -> Result<Service, ParseError> {
    let mut addresses = Vec::with_capacity(message.addresses.len());
    for (index, address) in message.addresses.iter().enumerate() {
        let block = block(&address.address, address.length)
            .map_err(|e| e.within(|| format!("addresses[{index}]")))?;
        addresses.push(ServiceAddress {
            network: interner.get(&address.network),
            block,
        });
    }
    let mut weighted_waypoints = Vec::with_capacity(message.weighted_waypoints.len());
    for (index, waypoint) in message.weighted_waypoints.iter().enumerate() {
        let within = |e: ParseError| e.within(|| format!("weighted_waypoints[{index}]"));
        let destination = waypoint
            .destination
            .as_ref()
            .ok_or_else(|| within(ParseError::new("destination", "is missing")))?;
        let destination = parse_gateway(destination, interner).map_err(within)?;
        weighted_waypoints.push(WeightedWaypoint {
            destination,
            weight: waypoint.weight,
        });
    }
    let ip_families = match proto::IpFamilies::try_from(message.ip_families) {
        Ok(proto::IpFamilies::Automatic) => IpFamilies::Automatic,
        Ok(proto::IpFamilies::Ipv4Only) => IpFamilies::Ipv4Only,
        Ok(proto::IpFamilies::Ipv6Only) => IpFamilies::Ipv6Only,
        Ok(proto::IpFamilies::Dual) => IpFamilies::Dual,
        Err(_) => return Err(unknown_value("ip_families", message.ip_families)),
    };
    let namespace_private = match proto::Visibility::try_from(message.visibility) {
        Ok(proto::Visibility::Public) => false,
        Ok(proto::Visibility::Namespace) => true,
        Err(_) => return Err(unknown_value("visibility", message.visibility)),
    };
    let hostname = required(&message.hostname, "hostname")?.to_ascii_lowercase();
    let ours = service_extension(&message.extensions, interner)?;
    Ok(Service {
        key: ServiceKey {
            namespace: interner.get(required(&message.namespace, "namespace")?),
            hostname: interner.get(&hostname),
        },
        name: interner.get(&message.name),
        addresses: addresses.into(),
        ports: parse_ports(&message.ports)?,
        // A name of another form is not what any peer of the mesh proves to be.
        accepted_identities: (message.subject_alt_names.iter())
            .filter_map(|uri| uri.parse::<Identity>().ok())
            .map(|identity| interner.identity(identity))
            .collect(),
        waypoint: gateway(message.waypoint.as_ref(), "waypoint", interner)?,
        weighted_waypoints: weighted_waypoints.into(),
        load_balancing: load_balancing(message.load_balancing.as_ref())
            .map_err(|e| e.within(|| "load_balancing".to_owned()))?,
        ip_families,
        canonical: message.canonical,
        ingress_use_waypoint: message.ingress_use_waypoint,
        namespace_private,
        port_names: ours.port_names,
        policies: ours.policies,
        authentications: ours.authentications,
    })
}

/// `namespace/hostname`; hostnames are compared in lower case.
pub(crate) fn service_key(name: &str, interner: &mut Interner) -> Result<ServiceKey, ParseError> {
    let (namespace, hostname) = namespaced(name)
        .ok_or_else(|| ParseError::new("", format!("`{name}` is not namespace/hostname")))?;
    Ok(ServiceKey {
        namespace: interner.get(namespace),
        hostname: interner.get(&hostname.to_ascii_lowercase()),
    })
}

fn parse_identity(message: &proto::Workload) -> Result<Identity, ParseError> {
    let or = |text: &'static str, value: &str| match value {
        "" => text.to_owned(),
        value => value.to_owned(),
    };
    let trust_domain = or(DEFAULT_TRUST_DOMAIN, &message.trust_domain);
    let trust_domain = TrustDomain::new(&trust_domain)
        .map_err(|error| ParseError::new("trust_domain", error.to_string()))?;
    let account = or(DEFAULT_SERVICE_ACCOUNT, &message.service_account);
    Identity::new(trust_domain, &message.namespace, &account)
        .map_err(|error| ParseError::new("namespace or service_account", error.to_string()))
}

fn parse_ports(ports: &[proto::Port]) -> Result<Box<[Port]>, ParseError> {
    let parse = |(index, message): (usize, &proto::Port)| {
        let field = |name| format!("ports[{index}].{name}");
        // 0 is a named port, which is not the same at every workload.
        let target_port = u16::try_from(message.target_port).map_err(|_| {
            ParseError::new(
                field("target_port"),
                format!("{} is not a port", message.target_port),
            )
        })?;
        Ok(Port {
            service_port: port(message.service_port, &field("service_port"))?,
            target_port,
            app_protocol: match proto::AppProtocol::try_from(message.app_protocol) {
                Ok(proto::AppProtocol::Http11) => AppProtocol::Http11,
                Ok(proto::AppProtocol::Http2) => AppProtocol::Http2,
                Ok(proto::AppProtocol::Grpc) => AppProtocol::Grpc,
                Ok(proto::AppProtocol::Tcp) => AppProtocol::Tcp,
                Ok(proto::AppProtocol::Tls) => AppProtocol::Tls,
                Ok(proto::AppProtocol::Unknown) | Err(_) => AppProtocol::Unknown,
            },
        })
    };
    ports.iter().enumerate().map(parse).collect()
}

fn gateway(
    message: Option<&proto::GatewayAddress>,
    field: &str,
    interner: &mut Interner,
) -> Result<Option<Box<GatewayAddress>>, ParseError> {
    let Some(message) = message else {
        return Ok(None);
    };
    let parsed = parse_gateway(message, interner).map_err(|e| e.within(|| field.to_owned()))?;
    Ok(Some(Box::new(parsed)))
}

fn parse_gateway(
    message: &proto::GatewayAddress,
    interner: &mut Interner,
) -> Result<GatewayAddress, ParseError> {
    use proto::gateway_address::Destination;
    let destination = match &message.destination {
        Some(Destination::Hostname(name)) => GatewayDestination::Service(ServiceKey {
            namespace: interner.get(required(&name.namespace, "hostname.namespace")?),
            hostname: interner
                .get(&required(&name.hostname, "hostname.hostname")?.to_ascii_lowercase()),
        }),
        Some(Destination::Address(address)) => GatewayDestination::Address(NetworkAddress {
            network: interner.get(&address.network),
            address: ip(&address.address)?,
        }),
        None => return Err(ParseError::new("destination", "is missing")),
    };
    let hbone_port = match message.hbone_mtls_port {
        0 => crate::resolve::HBONE_PORT,
        number => port(number, "hbone_mtls_port")?,
    };
    Ok(GatewayAddress {
        destination,
        hbone_port,
    })
}

fn application_tunnel(
    message: Option<&proto::ApplicationTunnel>,
) -> Result<Option<u16>, ParseError> {
    use proto::application_tunnel::Protocol;
    let Some(message) = message else {
        return Ok(None);
    };
    match Protocol::try_from(message.protocol) {
        Ok(Protocol::None) => Ok(None),
        // Without a port the application takes the protocol on the port addressed.
        Ok(Protocol::Proxy) => u16::try_from(message.port).map(Some).map_err(|_| {
            let problem = format!("{} is not a port", message.port);
            ParseError::new("application_tunnel.port", problem)
        }),
        Err(_) => Err(unknown_value(
            "application_tunnel.protocol",
            message.protocol,
        )),
    }
}

fn load_balancing(message: Option<&proto::LoadBalancing>) -> Result<LoadBalancing, ParseError> {
    use proto::load_balancing as wire;
    let message = message.cloned().unwrap_or_default();
    let scope = |value: &i32| match wire::Scope::try_from(*value) {
        Ok(wire::Scope::Region) => Ok(RoutingScope::Region),
        Ok(wire::Scope::Zone) => Ok(RoutingScope::Zone),
        Ok(wire::Scope::Subzone) => Ok(RoutingScope::Subzone),
        Ok(wire::Scope::Node) => Ok(RoutingScope::Node),
        Ok(wire::Scope::Cluster) => Ok(RoutingScope::Cluster),
        Ok(wire::Scope::Network) => Ok(RoutingScope::Network),
        Ok(wire::Scope::UnspecifiedScope) | Err(_) => {
            Err(unknown_value("routing_preference", *value))
        }
    };
    Ok(LoadBalancing {
        scopes: message
            .routing_preference
            .iter()
            .map(scope)
            .collect::<Result<_, _>>()?,
        mode: match wire::Mode::try_from(message.mode) {
            Ok(wire::Mode::UnspecifiedMode) => Mode::Standard,
            Ok(wire::Mode::Strict) => Mode::Strict,
            Ok(wire::Mode::Failover) => Mode::Failover,
            Ok(wire::Mode::Passthrough) => Mode::Passthrough,
            Err(_) => return Err(unknown_value("mode", message.mode)),
        },
        health_policy: match wire::HealthPolicy::try_from(message.health_policy) {
            Ok(wire::HealthPolicy::OnlyHealthy) => HealthPolicy::OnlyHealthy,
            Ok(wire::HealthPolicy::AllowAll) => HealthPolicy::AllowAll,
            Err(_) => return Err(unknown_value("health_policy", message.health_policy)),
        },
    })
}

fn workload_extension(
    all: &[proto::Extension],
    interner: &mut Interner,
) -> Result<Option<Box<WorkloadExtension>>, ParseError> {
    let Some(value) = extension(all, WORKLOAD_EXTENSION) else {
        return Ok(None);
    };
    let bad =
        |problem: String| ParseError::new(format!("extensions[{WORKLOAD_EXTENSION}]"), problem);
    let message =
        extensions::WorkloadExtension::decode(value).map_err(|error| bad(error.to_string()))?;
    let mut bound_ports = Vec::with_capacity(message.bound_ports.len());
    for bound in &message.bound_ports {
        let target_port = port(bound.target_port, "target_port").map_err(|e| bad(e.to_string()))?;
        let waypoints = bound
            .waypoint_identities
            .iter()
            .map(|uri| uri.parse::<Identity>());
        let waypoints = waypoints
            .collect::<Result<_, _>>()
            .map_err(|e| bad(e.to_string()))?;
        bound_ports.push(BoundPort {
            target_port,
            waypoints,
        });
    }
    Ok(Some(Box::new(WorkloadExtension {
        bound_ports: bound_ports.into(),
        pod_hostname: interner.get(&message.pod_hostname.to_ascii_lowercase()),
        pod_subdomain: interner.get(&message.pod_subdomain.to_ascii_lowercase()),
        dns_opt_out: message.dns_opt_out,
    })))
}

/// What only our own control plane says of a service.
#[derive(Default)]
struct ServiceExtension {
    port_names: PortNames,
    policies: Box<[Arc<str>]>,
    authentications: Box<[Arc<str>]>,
}

fn service_extension(
    all: &[proto::Extension],
    interner: &mut Interner,
) -> Result<ServiceExtension, ParseError> {
    let Some(value) = extension(all, SERVICE_EXTENSION) else {
        return Ok(Default::default());
    };
    let bad =
        |problem: String| ParseError::new(format!("extensions[{SERVICE_EXTENSION}]"), problem);
    let message =
        extensions::ServiceExtension::decode(value).map_err(|error| bad(error.to_string()))?;
    let mut names = Vec::with_capacity(message.port_names.len());
    for (number, name) in &message.port_names {
        let number = port(*number, "port_names").map_err(|e| bad(e.to_string()))?;
        names.push((number, interner.get(name)));
    }
    names.sort();
    let mut shared = |names: &[String]| names.iter().map(|name| interner.get(name)).collect();
    Ok(ServiceExtension {
        port_names: names.into(),
        policies: shared(&message.policies),
        authentications: shared(&message.authentications),
    })
}

fn extension<'a>(all: &'a [proto::Extension], name: &str) -> Option<&'a [u8]> {
    let extension = all.iter().find(|extension| extension.name == name)?;
    Some(
        extension
            .config
            .as_ref()
            .map_or(&[][..], |config| &config.value),
    )
}
