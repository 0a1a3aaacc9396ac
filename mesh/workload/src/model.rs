//! Workloads and services, typed. Immutable once in the store.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use seine_identity::Identity;

/// An address within a network; addresses of different networks may coincide.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NetworkAddress {
    /// The network; empty for a mesh of one network.
    pub network: Arc<str>,
    /// The address, never an IPv4-mapped one.
    pub address: IpAddr,
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.address)
    }
}

/// Names a service: `namespace/hostname` on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its full DNS name, which may begin with `*.`.
    pub hostname: Arc<str>,
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// What runs somewhere: a pod, mostly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Unique name, the resource's key.
    pub uid: Arc<str>,
    /// Name of the pod.
    pub name: Arc<str>,
    /// Namespace of the pod.
    pub namespace: Arc<str>,
    /// Addresses in `network`, in the order sent.
    pub addresses: Box<[IpAddr]>,
    /// Name to look up when there is no address; empty if there is none.
    pub hostname: Arc<str>,
    /// The network of its addresses.
    pub network: Arc<str>,
    /// The gateway through which other networks reach it.
    pub network_gateway: Option<Box<GatewayAddress>>,
    /// How its node's proxy is reached.
    pub tunnel_protocol: TunnelProtocol,
    /// It terminates tunnels itself, with no node proxy in front of it.
    pub native_tunnel: bool,
    /// What it proves to be.
    pub identity: Identity,
    /// The waypoint of connections addressed to it.
    pub waypoint: Option<Box<GatewayAddress>>,
    /// The node that it runs on.
    pub node: Arc<str>,
    /// `app` in metrics.
    pub canonical_name: Arc<str>,
    /// `version` in metrics.
    pub canonical_revision: Arc<str>,
    /// What made the pod.
    pub workload_type: WorkloadType,
    /// Name of what made the pod.
    pub workload_name: Arc<str>,
    /// `namespace/name` of the policies that select it by label.
    pub policies: Box<[Arc<str>]>,
    /// Whether it may get connections by load balancing.
    pub healthy: bool,
    /// The cluster that it runs in.
    pub cluster_id: Arc<str>,
    /// The services that it backs, with the ports.
    pub services: Box<[(ServiceKey, Box<[Port]>)]>,
    /// The port where the application takes the PROXY protocol instead of a direct connection; 0
    /// for the port addressed.
    pub proxy_protocol_port: Option<u16>,
    /// Where it runs.
    pub locality: Locality,
    /// It has the node's own addresses.
    pub host_network: bool,
    /// Weight in load balancing.
    pub capacity: u32,
    /// What Seine's own control plane adds.
    pub extension: Option<Box<WorkloadExtension>>,
}

/// What Seine's own control plane says of a workload beyond the common wire.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkloadExtension {
    /// Ports that only their waypoints may reach.
    pub bound_ports: Box<[BoundPort]>,
    /// `spec.hostname` of the pod; empty if it has none.
    pub pod_hostname: Arc<str>,
    /// `spec.subdomain` of the pod; empty if it has none.
    pub pod_subdomain: Arc<str>,
    /// Forward all of its DNS queries.
    pub dns_opt_out: bool,
}

/// A target port that only these waypoints may reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoundPort {
    /// The port of the pod.
    pub target_port: u16,
    /// Who may.
    pub waypoints: Box<[Identity]>,
}

/// How a workload's proxy is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TunnelProtocol {
    /// Not meshed: plain TCP.
    None,
    /// HBONE.
    Hbone,
    /// An older kind of mutual TLS, which node proxies don't speak: plain TCP.
    LegacyMtls,
}

/// What made a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names of Kubernetes' kinds")]
pub enum WorkloadType {
    Deployment,
    CronJob,
    Pod,
    Job,
}

impl WorkloadType {
    /// In lower case, as in `k8s.<type>.name`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::CronJob => "cronjob",
            Self::Pod => "pod",
            Self::Job => "job",
        }
    }
}

/// Where a workload runs. Empty parts are unknown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Locality {
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub subzone: Arc<str>,
}

/// A port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Port {
    /// The port at the service's address.
    pub service_port: u16,
    /// The port at the workload; 0 if it differs between workloads.
    pub target_port: u16,
    /// What is spoken there.
    pub app_protocol: AppProtocol,
}

/// What is spoken on a port, as declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names of protocols")]
pub enum AppProtocol {
    Unknown,
    Http11,
    Http2,
    Grpc,
    Tcp,
    Tls,
}

/// Names of ports, by service port.
pub type PortNames = Box<[(u16, Arc<str>)]>;

/// A name with addresses, backed by workloads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and full DNS name.
    pub key: ServiceKey,
    /// Short name.
    pub name: Arc<str>,
    /// Virtual addresses; none for a headless service.
    pub addresses: Box<[ServiceAddress]>,
    /// Ports.
    pub ports: Box<[Port]>,
    /// Identities accepted besides that of the workload.
    pub accepted_identities: Box<[Identity]>,
    /// The waypoint of connections addressed to it.
    pub waypoint: Option<Box<GatewayAddress>>,
    /// Instead of one waypoint, several by weight.
    pub weighted_waypoints: Box<[WeightedWaypoint]>,
    /// How a workload is chosen.
    pub load_balancing: LoadBalancing,
    /// Families of its addresses.
    pub ip_families: IpFamilies,
    /// Of several services of one hostname, the one that others see.
    pub canonical: bool,
    /// Gateways send to its waypoint, too.
    pub ingress_use_waypoint: bool,
    /// Seen from its own namespace alone.
    pub namespace_private: bool,
    /// Names of ports by service port, where Seine's own control plane sent them.
    pub port_names: PortNames,
    /// Names of the policies that its waypoint enforces, where Seine's own control plane sent them.
    pub policies: Box<[Arc<str>]>,
    /// Names of the RequestAuthentications that its waypoint enforces, likewise.
    pub authentications: Box<[Arc<str>]>,
}

/// An address of a service, or a block of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceAddress {
    /// The network.
    pub network: Arc<str>,
    /// The block; of full length for one address.
    pub block: IpNet,
}

impl ServiceAddress {
    /// The address, unless it is a block of several.
    pub fn single(&self) -> Option<IpAddr> {
        (self.block.prefix_len() == self.block.max_prefix_len()).then(|| self.block.addr())
    }
}

/// How a workload of a service is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadBalancing {
    /// What to compare with the client, most important first.
    pub scopes: Box<[RoutingScope]>,
    /// What the comparison decides.
    pub mode: Mode,
    /// Which workloads are eligible.
    pub health_policy: HealthPolicy,
}

/// What load balancing compares between client and workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum RoutingScope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

/// What the comparison of scopes decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Nothing.
    Standard,
    /// Only workloads that match in all scopes.
    Strict,
    /// The workloads that match in most scopes, in their order.
    Failover,
    /// No choice: connect to the address that the client asked for.
    Passthrough,
}

/// Which workloads are eligible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HealthPolicy {
    /// Healthy ones.
    OnlyHealthy,
    /// All.
    AllowAll,
}

/// Families of a service's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names say it")]
pub enum IpFamilies {
    Automatic,
    Ipv4Only,
    Ipv6Only,
    Dual,
}

/// One of several waypoints of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedWaypoint {
    /// The waypoint.
    pub destination: GatewayAddress,
    /// Its share of the connections, relative to the sum.
    pub weight: u32,
}

/// A waypoint or network gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayAddress {
    /// What to look up.
    pub destination: GatewayDestination,
    /// Where it takes HBONE.
    pub hbone_port: u16,
}

/// What a gateway is known by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GatewayDestination {
    /// A service.
    Service(ServiceKey),
    /// An address of a service or workload.
    Address(NetworkAddress),
}

impl fmt::Display for GatewayDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key) => key.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

impl Workload {
    /// Whether its proxy takes HBONE.
    pub fn is_meshed(&self) -> bool {
        self.tunnel_protocol == TunnelProtocol::Hbone
    }

    /// Where it listens for a service's port.
    pub fn target_port(&self, service: &ServiceKey, service_port: u16) -> Option<u16> {
        let (_, ports) = self.services.iter().find(|(key, _)| key == service)?;
        target_port(ports, service_port)
    }

    /// The identities of the waypoints that alone may reach a port; none if anyone may.
    pub fn bound_to(&self, target_port: u16) -> Option<&[Identity]> {
        let bound = &self.extension.as_ref()?.bound_ports;
        bound
            .iter()
            .find(|b| b.target_port == target_port)
            .map(|b| &*b.waypoints)
    }

    /// The waypoint of connections addressed to the workload itself. Where ports of it are bound, of those to these alone.
    pub fn own_waypoint(&self, target_port: u16) -> Option<&GatewayAddress> {
        let extension = self.extension.as_ref();
        let all = extension.is_none_or(|extension| extension.bound_ports.is_empty());
        let concerned = all || self.bound_to(target_port).is_some();
        self.waypoint.as_deref().filter(|_| concerned)
    }

    /// Whether all of its DNS queries are forwarded unchanged.
    pub fn dns_opt_out(&self) -> bool {
        self.extension
            .as_ref()
            .is_some_and(|extension| extension.dns_opt_out)
    }

    /// `spec.hostname` and `spec.subdomain` of the pod, if it has both.
    pub fn stateful_name(&self) -> Option<(&str, &str)> {
        let extension = self.extension.as_ref()?;
        let (hostname, subdomain) = (&*extension.pod_hostname, &*extension.pod_subdomain);
        (!hostname.is_empty() && !subdomain.is_empty()).then_some((hostname, subdomain))
    }

    /// Its address of the same family as `like`, or else its first.
    pub fn address_like(&self, like: IpAddr) -> Option<IpAddr> {
        let same = self
            .addresses
            .iter()
            .find(|a| a.is_ipv4() == like.is_ipv4());
        same.or_else(|| self.addresses.first()).copied()
    }
}

/// The target port for a service port; none if the port isn't there or has no fixed target.
pub(crate) fn target_port(ports: &[Port], service_port: u16) -> Option<u16> {
    let port = ports.iter().find(|p| p.service_port == service_port)?;
    (port.target_port != 0).then_some(port.target_port)
}

impl Service {
    /// Whether it has no address of its own.
    pub fn is_headless(&self) -> bool {
        self.addresses.is_empty()
    }

    /// Its port of this number.
    pub fn port(&self, service_port: u16) -> Option<&Port> {
        self.ports.iter().find(|p| p.service_port == service_port)
    }

    /// The number of its port of this name.
    pub fn port_named(&self, name: &str) -> Option<u16> {
        let (port, _) = self
            .port_names
            .iter()
            .find(|(_, n)| n.eq_ignore_ascii_case(name))?;
        Some(*port)
    }

    /// Whether a client of this namespace may see it.
    pub fn visible_from(&self, namespace: &str) -> bool {
        !self.namespace_private || *self.key.namespace == *namespace
    }
}

/// `address` as the store looks it up: an IPv4-mapped address is an IPv4 one.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
