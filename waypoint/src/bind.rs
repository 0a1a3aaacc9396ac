//! What a CONNECT is for: a service that is bound to this waypoint, or a pod behind such services.
//!
//! Who the client is, TLS alone says; what a CONNECT claims of a first client is never read here.

use std::net::SocketAddr;
use std::sync::Arc;

use seine_hbone::{Authority, Incoming};
use seine_identity::Identity;
use seine_workload::{AppProtocol, Service, Workload};

use crate::ingress::Door;
use crate::service_rules::ServiceRules;
use crate::shared::Shared;

/// What a connection is bound to: the service that its client asked for, and who that is.
#[derive(Clone, Debug)]
pub struct Bound {
    /// The service.
    pub service: Arc<Service>,
    /// Its port.
    pub port: u16,
    /// What the client asked for; of a pod its service's address.
    pub destination: SocketAddr,
    /// The pod, where the client asked for that and not for the service.
    pub pod: Option<Pod>,
    /// The client.
    pub first: First,
    /// Where it came in, from outside the mesh; then the service is the Gateway's own.
    pub door: Option<Door>,
}

/// A pod that is addressed itself. Policies of its services hold, and their routes don't.
#[derive(Clone, Debug)]
pub struct Pod {
    /// The pod.
    pub workload: Arc<Workload>,
    /// Where its application listens.
    pub address: SocketAddr,
    /// Further services and ports that lead there.
    pub also: Arc<[(Arc<Service>, u16)]>,
}

/// For whom a request is made.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct First {
    /// Whom TLS verified; nobody of a connection from outside the mesh.
    pub identity: Option<Identity>,
    /// Where its connection comes from.
    pub address: SocketAddr,
}

/// What a CONNECT is for, if it is bound to this waypoint and the client may see it.
pub(crate) fn bind(shared: &Shared, incoming: &Incoming) -> Option<Bound> {
    let from = incoming.peer_identity.namespace();
    let authority = &incoming.request.authority;
    let service = match authority {
        Authority::Address(address) => shared.store.service_at(address.ip(), Some(from)),
        Authority::Host { host, .. } => shared.store.service_named(host.as_str(), Some(from)),
    };
    let (service, port, pod) = match service {
        Some(service) => (service, authority.port(), None),
        None => addressed_pod(shared, authority.address()?)?,
    };
    service.port(port)?;
    let address = service
        .addresses
        .iter()
        .find_map(|address| address.single());
    let asked = authority.address().filter(|_| pod.is_none());
    let destination = asked.or(address.map(|address| SocketAddr::new(address, port)))?;
    let peer = unmapped(incoming.peer);
    // The port is the application's own where the header agrees with the tunnel's address.
    let forwarded = incoming.request.forwarded.as_ref();
    let client = forwarded
        .and_then(|forwarded| forwarded.client)
        .map(unmapped);
    shared.serves(&service).then(|| Bound {
        first: First {
            identity: Some(incoming.peer_identity.clone()),
            address: client
                .filter(|client| client.ip() == peer.ip())
                .unwrap_or(peer),
        },
        service,
        port,
        destination,
        pod,
        door: None,
    })
}

/// The pod at an address, with the services bound here that lead to its port: there is at least one.
fn addressed_pod(shared: &Shared, address: SocketAddr) -> Option<(Arc<Service>, u16, Option<Pod>)> {
    let workload = shared.store.workload_at(address.ip())?;
    if !shared.serves_pod(&workload) {
        return None;
    }
    let mut leading = Vec::new();
    for (key, ports) in &workload.services {
        let service = shared.store.service(key);
        let Some(service) = service.filter(|service| shared.serves(service)) else {
            continue;
        };
        let ports = ports
            .iter()
            .filter(|port| port.target_port == address.port());
        leading.extend(ports.map(|port| (service.clone(), port.service_port)));
    }
    // One that says what it speaks knows better than one that doesn't.
    leading.sort_by_key(|(service, port)| {
        let protocol = service.port(*port).map(|port| port.app_protocol);
        protocol == Some(AppProtocol::Unknown)
    });
    let mut leading = leading.into_iter();
    let (service, port) = leading.next()?;
    let also = leading.collect();
    let pod = Pod {
        workload,
        address,
        also,
    };
    Some((service, port, Some(pod)))
}

/// Whether a port speaks HTTP: because it says so, or because a route is about it. It is never guessed from the bytes.
pub(crate) fn is_http(shared: &Shared, bound: &Bound) -> bool {
    let rules = || shared.routes.of(&bound.service.key);
    speaks_http(&bound.service, bound.port, rules)
}

/// The same of a service's port, with the rules about the service.
pub(crate) fn speaks_http(
    service: &Service,
    port: u16,
    rules: impl FnOnce() -> Arc<ServiceRules>,
) -> bool {
    match service.port(port).map(|port| port.app_protocol) {
        Some(AppProtocol::Http11 | AppProtocol::Http2 | AppProtocol::Grpc) => true,
        Some(AppProtocol::Tcp | AppProtocol::Tls) | None => false,
        Some(AppProtocol::Unknown) => rules().attached(port).next().is_some(),
    }
}

/// An IPv4 address that was written as IPv6 becomes IPv4 again.
pub(crate) fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
