//! Where a connection goes: from its original destination to what is dialled.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use rand::Rng;
use seine_identity::AcceptedIdentities;

use crate::balance::{Wanted, all, pick};
use crate::index::{AddressIndex, GatewayMatch, ServiceEntry};
use crate::model::{
    GatewayAddress, HealthPolicy, LoadBalancing, Mode, Service, ServiceKey, Workload, canonical,
};

/// The port of HBONE.
pub const HBONE_PORT: u16 = 15008;

/// Where a connection goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// To an address that the mesh doesn't know, or that asks for no choice: as it is.
    Passthrough,
    /// To a workload: the one addressed, or one chosen among those of a service.
    Workload(Upstream),
    /// To a waypoint, which sends it on.
    Waypoint(Waypoint),
}

/// A workload to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// The workload.
    pub workload: Arc<Workload>,
    /// The service that was addressed, if one was.
    pub service: Option<Arc<Service>>,
    /// Where the application listens.
    pub target: Target,
    /// How to get there.
    pub transport: Transport,
}

/// A waypoint to connect to, over HBONE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waypoint {
    /// The waypoint's workload.
    pub workload: Arc<Workload>,
    /// The waypoint's service, if it is known by one.
    pub waypoint_service: Option<Arc<Service>>,
    /// Where it takes HBONE.
    pub address: SocketAddr,
    /// What the CONNECT asks for: the original destination.
    pub authority: SocketAddr,
    /// The service that was addressed, if one was.
    pub service: Option<Arc<Service>>,
    /// The workload that was addressed, if one was.
    pub destination: Option<Arc<Workload>>,
}

/// Where an application listens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// An address.
    Address(SocketAddr),
    /// A name that is to be looked up, for a workload without addresses.
    Hostname {
        /// The name.
        name: Arc<str>,
        /// The port.
        port: u16,
    },
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Hostname { name, port } => write!(f, "{name}:{port}"),
        }
    }
}

/// How to reach a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Plain TCP to the target.
    Tcp,
    /// A CONNECT for the target to the proxy at its address, port [`HBONE_PORT`].
    Hbone,
    /// A CONNECT to the gateway of another network, and within it a second one to the workload.
    Gateway {
        /// The gateway's workload, for its identity.
        gateway: Arc<Workload>,
        /// The gateway's service, if it is known by one.
        gateway_service: Option<Arc<Service>>,
        /// Where it takes HBONE.
        address: SocketAddr,
        /// What both CONNECTs ask for: `host:service port`.
        authority: String,
    },
}

impl Upstream {
    /// The identities of which the peer must prove one: the workload's, and those that the
    /// service accepts besides.
    pub fn identities(&self) -> AcceptedIdentities {
        identities(&self.workload, self.service.as_deref())
    }
}

impl Waypoint {
    /// The identities of which the waypoint must prove one.
    pub fn identities(&self) -> AcceptedIdentities {
        identities(&self.workload, self.waypoint_service.as_deref())
    }
}

fn identities(workload: &Workload, service: Option<&Service>) -> AcceptedIdentities {
    match service {
        Some(service) if !service.accepted_identities.is_empty() => {
            let others = service.accepted_identities.iter();
            std::iter::once(&workload.identity)
                .chain(others)
                .cloned()
                .collect()
        }
        _ => workload.identity.clone().into(),
    }
}

/// The mesh knows the destination, and no connection to it can be made now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{destination}: {reason}")]
pub struct Unavailable {
    /// The service, waypoint or gateway that was looked for.
    pub destination: String,
    /// The service that was addressed, if one was.
    pub service: Option<Arc<Service>>,
    /// What is wrong.
    pub reason: UnavailableReason,
}

/// Why there is no workload to connect to. Of several reasons the greatest came closest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum UnavailableReason {
    /// The waypoint or gateway is not known.
    #[error("is not known")]
    Unknown,
    /// The service has no such port.
    #[error("the service has no such port")]
    NoSuchPort,
    /// No workload backs the service.
    #[error("no workload backs it")]
    NoEndpoints,
    /// None of its workloads has the port.
    #[error("none of its workloads has the port")]
    NoEndpointWithPort,
    /// None is healthy.
    #[error("none of its workloads is healthy")]
    NoneHealthy,
    /// None is in this network or behind a gateway.
    #[error("none of its workloads can be reached from this network")]
    NoneReachable,
    /// None is near enough.
    #[error("none of its workloads is within the service's scope")]
    NoneInScope,
    /// All were tried.
    #[error("all of its workloads were tried")]
    AllTried,
}

/// What is asked.
pub(crate) struct Question<'a> {
    pub(crate) destination: SocketAddr,
    pub(crate) source: Option<&'a Workload>,
    /// The network of this node.
    pub(crate) network: &'a str,
    pub(crate) exclude: &'a [Arc<str>],
}

/// Answers [`crate::Store::resolve`].
pub(crate) fn resolve(
    index: &AddressIndex,
    question: &Question<'_>,
    random: &mut impl Rng,
) -> Result<Destination, Unavailable> {
    let destination = canonical(question.destination);
    let question = Question {
        destination,
        ..*question
    };
    let from = question.source.map(|source| &*source.namespace);
    if let Some(service) = index.service_at(question.network, destination.ip(), from) {
        return to_service(index, service, &question, random);
    }
    if let Some(workload) = index.workload_at(question.network, destination.ip()) {
        return to_workload(index, workload, &question, random);
    }
    Ok(Destination::Passthrough)
}

/// To a service, through its waypoint if it is bound to one.
pub(crate) fn to_service(
    index: &AddressIndex,
    service: &Arc<Service>,
    question: &Question<'_>,
    random: &mut impl Rng,
) -> Result<Destination, Unavailable> {
    if let Some(gateway) = waypoint_of(service, random)
        && !is_at(index, question.source, gateway)
    {
        let waypoint =
            to_waypoint(index, gateway, question, random).map_err(|unavailable| Unavailable {
                service: Some(service.clone()),
                ..unavailable
            })?;
        return Ok(Destination::Waypoint(Waypoint {
            service: Some(service.clone()),
            ..waypoint
        }));
    }
    to_backend(index, service, question, random)
}

/// To one of the service's workloads, past its waypoint.
pub(crate) fn to_backend(
    index: &AddressIndex,
    service: &Arc<Service>,
    question: &Question<'_>,
    random: &mut impl Rng,
) -> Result<Destination, Unavailable> {
    let port = question.destination.port();
    let unavailable = |reason| Unavailable {
        destination: format!("{} port {port}", service.key),
        service: Some(service.clone()),
        reason,
    };
    if service.port(port).is_none() {
        return Err(unavailable(UnavailableReason::NoSuchPort));
    }
    if service.load_balancing.mode == Mode::Passthrough {
        return Ok(Destination::Passthrough);
    }
    let entry = index
        .entry(&service.key)
        .ok_or_else(|| unavailable(UnavailableReason::NoEndpoints))?;
    let wanted = of_service(service, question);
    let (workload, target_port) = pick(entry, &wanted, random).map_err(unavailable)?;
    let upstream = upstream(index, service, workload, target_port, question, random)?;
    Ok(Destination::Workload(upstream))
}

/// Where the workloads of a service are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    /// Those that may be chosen; at least one, in no order.
    pub usable: Vec<Upstream>,
    /// How many there are in the zone that was asked about.
    pub in_zone: usize,
}

/// Answers [`crate::Store::spread`].
pub(crate) fn spread(
    index: &AddressIndex,
    service: &Arc<Service>,
    question: &Question<'_>,
    zone: &str,
    random: &mut impl Rng,
) -> Result<Spread, Unavailable> {
    let anywhere = LoadBalancing {
        scopes: Box::default(),
        mode: Mode::Standard,
        health_policy: service.load_balancing.health_policy,
    };
    let balancing = match service.load_balancing.mode {
        Mode::Strict => &service.load_balancing,
        _ => &anywhere,
    };
    let usable = listed(index, service, balancing, question, random)?;
    let port = question.destination.port();
    let all = index.entry(&service.key).into_iter();
    let all = all.flat_map(|entry| &entry.endpoints);
    let in_zone = all.filter(|workload| {
        *workload.locality.zone == *zone && workload.target_port(&service.key, port).is_some()
    });
    Ok(Spread {
        in_zone: in_zone.count(),
        usable,
    })
}

/// Every workload of the service that [`to_backend`] may choose.
pub(crate) fn backends(
    index: &AddressIndex,
    service: &Arc<Service>,
    question: &Question<'_>,
    random: &mut impl Rng,
) -> Result<Vec<Upstream>, Unavailable> {
    listed(index, service, &service.load_balancing, question, random)
}

fn listed(
    index: &AddressIndex,
    service: &Arc<Service>,
    balancing: &LoadBalancing,
    question: &Question<'_>,
    random: &mut impl Rng,
) -> Result<Vec<Upstream>, Unavailable> {
    let unavailable = |reason| Unavailable {
        destination: format!("{} port {}", service.key, question.destination.port()),
        service: Some(service.clone()),
        reason,
    };
    let entry = index
        .entry(&service.key)
        .ok_or_else(|| unavailable(UnavailableReason::NoEndpoints))?;
    let wanted = Wanted {
        balancing,
        ..of_service(service, question)
    };
    let found = all(entry, &wanted).map_err(unavailable)?;
    found
        .into_iter()
        .map(|(workload, port)| upstream(index, service, workload, port, question, random))
        .collect()
}

fn of_service<'a>(service: &'a Service, question: &Question<'a>) -> Wanted<'a> {
    Wanted {
        key: &service.key,
        service_port: question.destination.port(),
        balancing: &service.load_balancing,
        source: question.source,
        network: question.network,
        exclude: question.exclude,
    }
}

/// A workload of a service as what is dialled.
fn upstream(
    index: &AddressIndex,
    service: &Arc<Service>,
    workload: &Arc<Workload>,
    target_port: u16,
    question: &Question<'_>,
    random: &mut impl Rng,
) -> Result<Upstream, Unavailable> {
    let like = question.destination.ip();
    let target = match workload.address_like(like) {
        Some(address) => Target::Address(SocketAddr::new(address, target_port)),
        None => Target::Hostname {
            name: workload.hostname.clone(),
            port: target_port,
        },
    };
    let transport = if *workload.network == *question.network {
        direct(workload)
    } else {
        through_gateway(index, workload, service, question, random)?
    };
    let (workload, service) = (workload.clone(), Some(service.clone()));
    Ok(Upstream {
        workload,
        service,
        target,
        transport,
    })
}

fn to_workload(
    index: &AddressIndex,
    workload: &Arc<Workload>,
    question: &Question<'_>,
    random: &mut impl Rng,
) -> Result<Destination, Unavailable> {
    if let Some(gateway) = workload.own_waypoint(question.destination.port())
        && !is_at(index, question.source, gateway)
    {
        let waypoint = to_waypoint(index, gateway, question, random)?;
        let destination = Some(workload.clone());
        return Ok(Destination::Waypoint(Waypoint {
            destination,
            ..waypoint
        }));
    }
    Ok(Destination::Workload(Upstream {
        workload: workload.clone(),
        service: None,
        target: Target::Address(question.destination),
        transport: direct(workload),
    }))
}

fn direct(workload: &Workload) -> Transport {
    if workload.is_meshed() {
        Transport::Hbone
    } else {
        Transport::Tcp
    }
}

/// The waypoint of a service; of several one by weight.
fn waypoint_of<'a>(service: &'a Service, random: &mut impl Rng) -> Option<&'a GatewayAddress> {
    use rand::RngExt;
    let total: u64 = service
        .weighted_waypoints
        .iter()
        .map(|w| u64::from(w.weight))
        .sum();
    if total == 0 {
        return service.waypoint.as_deref();
    }
    let mut drawn = random.random_range(0..total);
    let chosen = service.weighted_waypoints.iter().find(|waypoint| {
        let weight = u64::from(waypoint.weight);
        let hit = drawn < weight;
        drawn = drawn.saturating_sub(weight);
        hit
    });
    chosen.map(|waypoint| &waypoint.destination)
}

/// Whether the client is one of the workloads behind a gateway's address.
fn is_at(index: &AddressIndex, source: Option<&Workload>, gateway: &GatewayAddress) -> bool {
    let Some(source) = source else { return false };
    match index.gateway(&gateway.destination) {
        Some(GatewayMatch::Service(entry)) => entry.endpoints.iter().any(|e| e.uid == source.uid),
        Some(GatewayMatch::Workload(workload)) => workload.uid == source.uid,
        None => false,
    }
}

/// A waypoint for the question's destination; the caller fills in what was addressed.
fn to_waypoint(
    index: &AddressIndex,
    gateway: &GatewayAddress,
    question: &Question<'_>,
    random: &mut impl Rng,
) -> Result<Waypoint, Unavailable> {
    let found = gateway_workload(index, "waypoint", gateway, question, random)?;
    Ok(Waypoint {
        workload: found.workload,
        waypoint_service: found.service,
        address: found.address,
        authority: question.destination,
        service: None,
        destination: None,
    })
}

fn through_gateway(
    index: &AddressIndex,
    workload: &Workload,
    service: &Arc<Service>,
    question: &Question<'_>,
    random: &mut impl Rng,
) -> Result<Transport, Unavailable> {
    let unavailable = |reason| Unavailable {
        destination: format!("network gateway of {}", workload.network),
        service: Some(service.clone()),
        reason,
    };
    let gateway = workload.network_gateway.as_deref();
    let gateway = gateway.ok_or_else(|| unavailable(UnavailableReason::NoneReachable))?;
    let found = gateway_workload(index, "network gateway", gateway, question, random)
        .map_err(|error| unavailable(error.reason))?;
    let authority = format!("{}:{}", service.key.hostname, question.destination.port());
    Ok(Transport::Gateway {
        gateway: found.workload,
        gateway_service: found.service,
        address: found.address,
        authority,
    })
}

/// A waypoint or network gateway that was found.
struct Gateway {
    workload: Arc<Workload>,
    service: Option<Arc<Service>>,
    /// Where it takes HBONE.
    address: SocketAddr,
}

/// A workload behind a gateway's address.
fn gateway_workload(
    index: &AddressIndex,
    what: &str,
    gateway: &GatewayAddress,
    question: &Question<'_>,
    random: &mut impl Rng,
) -> Result<Gateway, Unavailable> {
    let unavailable = |reason| Unavailable {
        destination: format!("{what} {}", gateway.destination),
        service: None,
        reason,
    };
    let like = question.destination.ip();
    match index.gateway(&gateway.destination) {
        Some(GatewayMatch::Workload(workload)) => {
            let address = workload.address_like(like);
            let address = address.ok_or_else(|| unavailable(UnavailableReason::NoneReachable))?;
            Ok(Gateway {
                workload: workload.clone(),
                service: None,
                address: SocketAddr::new(address, gateway.hbone_port),
            })
        }
        Some(GatewayMatch::Service(entry)) => {
            let service = entry.service.as_ref();
            let (workload, port) =
                pick_gateway(entry, gateway, question, random).map_err(unavailable)?;
            let address = workload.address_like(like);
            let address = address.ok_or_else(|| unavailable(UnavailableReason::NoneReachable))?;
            let service = service.map(|held| held.value.clone());
            Ok(Gateway {
                workload: workload.clone(),
                service,
                address: SocketAddr::new(address, port),
            })
        }
        None => Err(unavailable(UnavailableReason::Unknown)),
    }
}

fn pick_gateway<'a>(
    entry: &'a ServiceEntry,
    gateway: &GatewayAddress,
    question: &Question<'_>,
    random: &mut impl Rng,
) -> Result<(&'a Arc<Workload>, u16), UnavailableReason> {
    let any = LoadBalancing {
        scopes: Box::default(),
        mode: Mode::Standard,
        health_policy: HealthPolicy::OnlyHealthy,
    };
    let service = entry.service.as_ref().ok_or(UnavailableReason::Unknown)?;
    let key: &ServiceKey = &service.value.key;
    let balancing = match service.value.load_balancing.mode {
        Mode::Passthrough => &any,
        _ => &service.value.load_balancing,
    };
    let wanted = Wanted {
        key,
        service_port: gateway.hbone_port,
        balancing,
        source: question.source,
        network: question.network,
        exclude: question.exclude,
    };
    pick(entry, &wanted, random)
}
