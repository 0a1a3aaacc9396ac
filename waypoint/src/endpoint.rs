//! Which endpoint of a backend is asked.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderMap;
use seine_identity::AcceptedIdentities;
use seine_workload::{
    Destination, HBONE_PORT, Service, Spread, Target, Transport, Unavailable, Upstream, Workload,
};
use tracing::Span;

use crate::backend_tls::BackendTls;
use crate::bind::{First, Pod};
use crate::failure::Failure;
use crate::place;
use crate::session::{self, Token};
use crate::shared::Shared;
use crate::traffic::Backend;
use crate::traffic_policy::Algorithm;

/// How many endpoints that fail are passed over, and how often a second one is drawn.
const PASSED_OVER: usize = 16;
const DRAWS: usize = 2;

/// An endpoint of a backend.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The name of its workload.
    pub uid: Arc<str>,
    /// Where its application listens; of a waypoint in between, where that takes tunnels.
    pub address: SocketAddr,
    /// The service that it was chosen for.
    pub(crate) service: Arc<Service>,
    /// How its proxy is asked; `None` without a proxy.
    pub(crate) tunnel: Option<Tunnel>,
}

/// A CONNECT.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Tunnel {
    /// Who the proxy may be.
    pub(crate) peers: AcceptedIdentities,
    /// Where it takes tunnels.
    pub(crate) at: SocketAddr,
    /// What is asked for.
    pub(crate) asks: SocketAddr,
}

impl Tunnel {
    /// To the proxy of an application, at its own address.
    fn beside(address: SocketAddr, peers: AcceptedIdentities) -> Self {
        Self {
            peers,
            at: SocketAddr::new(address.ip(), HBONE_PORT),
            asks: address,
        }
    }
}

/// What is asked, and for whom.
pub(crate) struct Wanted<'a> {
    /// In the place of the service's endpoints.
    pub(crate) pod: Option<&'a Pod>,
    pub(crate) service: &'a Arc<Service>,
    pub(crate) port: u16,
    pub(crate) first: &'a First,
    /// The name of a workload that is asked if it is there and does not fail.
    pub(crate) of_session: Option<&'a Arc<str>>,
    /// That it speaks TLS itself.
    pub(crate) tls: Option<&'a Arc<BackendTls>>,
    /// The request's, within which its attempts are.
    pub(crate) span: Span,
    /// What is known of the service.
    pub(crate) backend: Arc<Backend>,
    /// Requests with the same one go to the same endpoint, where its policy wants that.
    pub(crate) hash: Option<u64>,
}

impl<'a> Wanted<'a> {
    /// For a request with these headers.
    pub(crate) fn new(
        shared: &Shared,
        (service, port): (&'a Arc<Service>, u16),
        first: &'a First,
        headers: &HeaderMap,
    ) -> Self {
        let backend = shared.traffic.of(&service.key);
        let hash = match &backend.rules().policy.algorithm {
            Algorithm::RingHash(on) => on.value(first, headers).map(|value| hash_of(&value)),
            _ => None,
        };
        Self {
            pod: None,
            service,
            port,
            first,
            of_session: None,
            tls: None,
            span: Span::none(),
            backend,
            hash,
        }
    }

    /// A waypoint is asked, which then chooses among the endpoints.
    fn is_through_waypoint(&self, shared: &Shared) -> bool {
        let service = self.service;
        let bound = service.waypoint.is_some() || !service.weighted_waypoints.is_empty();
        shared.config.ingress && bound
    }

    /// Endpoints of which one may be chosen.
    pub(crate) fn count(&self, shared: &Shared) -> usize {
        match self.backend.rules().policy.places() {
            true => self
                .everywhere(shared, "")
                .map_or(0, |all| all.usable.len()),
            false => self.all(shared, &[]).map_or(0, |all| all.len()),
        }
    }

    /// Those of all zones, and how many there are in this one.
    pub(crate) fn everywhere(&self, shared: &Shared, zone: &str) -> Result<Spread, Failure> {
        let client = self.first.address.ip();
        let own = shared.own_workload();
        let (service, port) = (self.service, self.port);
        let found = shared
            .store
            .spread(service, port, client, own.as_deref(), zone);
        found.map_err(unavailable)
    }

    fn all(&self, shared: &Shared, tried: &[Arc<str>]) -> Result<Vec<Upstream>, Unavailable> {
        let client = self.first.address.ip();
        let own = shared.own_workload();
        shared
            .store
            .backends(self.service, self.port, client, own.as_deref(), tried)
    }
}

/// Chooses an endpoint that was not tried yet, as the service's policy wants it, and none that fails as long as there is
/// another. A pod that was addressed itself is the only one.
pub(crate) fn choose(
    shared: &Shared,
    wanted: &Wanted<'_>,
    tried: &[Arc<str>],
) -> Result<Endpoint, Failure> {
    if let Some(pod) = wanted.pod {
        return of_pod(pod, wanted.service, tried);
    }
    let (backend, rules) = (&wanted.backend, wanted.backend.rules());
    let loads = &backend.loads;
    if wanted.is_through_waypoint(shared) {
        return drawn(shared, wanted, tried, |endpoint| loads.cost(endpoint));
    }
    if let Some(uid) = wanted.of_session.filter(|uid| !tried.contains(*uid)) {
        let all = wanted.all(shared, tried).map_err(unavailable)?;
        let own = all.iter().find(|upstream| upstream.workload.uid == *uid);
        let own = own.and_then(|upstream| usable(wanted, upstream).ok());
        if let Some(own) = own.filter(|own| !loads.is_ejected(own.address)) {
            return Ok(own);
        }
    }
    if rules.policy.places() {
        return place::choose(shared, wanted, &rules.policy, tried);
    }
    match (&rules.policy.algorithm, wanted.hash) {
        (Algorithm::LeastRequest, _) => drawn(shared, wanted, tried, |endpoint| {
            f64::from(loads.under_way(endpoint))
        }),
        (Algorithm::RoundRobin, _) => {
            let turn = backend.turn();
            listed(shared, wanted, tried, |all| turn % all.len())
        }
        (Algorithm::RingHash(_), Some(hash)) => {
            listed(shared, wanted, tried, |all| nearest(hash, all))
        }
        (Algorithm::PeakEwma | Algorithm::RingHash(_), _) => {
            drawn(shared, wanted, tried, |endpoint| loads.cost(endpoint))
        }
    }
}

/// The workload of a service that a session is of, if it may be asked.
pub(crate) fn of_session(
    shared: &Shared,
    (service, port): (&Arc<Service>, u16),
    first: &First,
    token: Token,
) -> Option<Arc<str>> {
    let own = shared.own_workload();
    let client = first.address.ip();
    let all = shared
        .store
        .backends(service, port, client, own.as_deref(), &[]);
    let uids = all
        .ok()?
        .into_iter()
        .map(|found| found.workload.uid.clone());
    let mut uids = uids.filter(|uid| session::id(&service.key, uid) == token.endpoint);
    uids.next()
}

/// Of two drawn at random the one of the lesser cost.
fn drawn(
    shared: &Shared,
    wanted: &Wanted<'_>,
    tried: &[Arc<str>],
    cost: impl Fn(SocketAddr) -> f64,
) -> Result<Endpoint, Failure> {
    let loads = &wanted.backend.loads;
    let mut excluded = tried.to_vec();
    let mut failing = None;
    let own = shared.own_workload();
    let endpoints = shared.store.endpoint_count(&wanted.service.key);
    let draws = match endpoints > 1 || wanted.is_through_waypoint(shared) {
        true => DRAWS,
        false => 0,
    };
    for _ in 0..PASSED_OVER {
        let draw = || draw(shared, wanted, own.as_deref(), &excluded);
        let first = match draw() {
            Ok(first) => first,
            Err(error) => return failing.ok_or(error),
        };
        if loads.is_ejected(first.address) {
            excluded.push(first.uid.clone());
            failing.get_or_insert(first);
            continue;
        }
        let mut others = (0..draws).filter_map(|_| draw().ok());
        let second =
            others.find(|other| other.uid != first.uid && !loads.is_ejected(other.address));
        let better = second.filter(|other| cost(other.address) < cost(first.address));
        return Ok(better.unwrap_or(first));
    }
    draw(shared, wanted, own.as_deref(), tried)
}

/// Of all that don't fail, or of all, the one at this place.
fn listed(
    shared: &Shared,
    wanted: &Wanted<'_>,
    tried: &[Arc<str>],
    place: impl FnOnce(&[Endpoint]) -> usize,
) -> Result<Endpoint, Failure> {
    let all = wanted.all(shared, tried).map_err(unavailable)?;
    let usable = all.iter().map(|upstream| usable(wanted, upstream));
    let (mut good, mut failing, mut why) = (Vec::new(), Vec::new(), None);
    for endpoint in usable {
        match endpoint {
            Ok(endpoint) if wanted.backend.loads.is_ejected(endpoint.address) => {
                failing.push(endpoint);
            }
            Ok(endpoint) => good.push(endpoint),
            Err(failure) => why = Some(failure),
        }
    }
    let mut found = match good.is_empty() {
        true => failing,
        false => good,
    };
    match (found.is_empty(), why) {
        (true, Some(failure)) => Err(failure),
        (true, None) => Err(Failure::Unavailable("no endpoint is left".into())),
        (false, _) => {
            let place = place(&found);
            Ok(found.swap_remove(place))
        }
    }
}

/// The place of the one whose name goes best with the hash: when one comes or goes, only its own share moves (rendezvous
/// hashing: a ring on which each has as many points as there are values).
fn nearest(hash: u64, all: &[Endpoint]) -> usize {
    let together = |endpoint: &Endpoint| hash_of(&(hash, &endpoint.uid));
    let places = all.iter().enumerate();
    let nearest = places.max_by_key(|(_, endpoint)| together(endpoint));
    nearest.map_or(0, |(place, _)| place)
}

/// The same in every pod of a waypoint.
fn hash_of(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn of_pod(pod: &Pod, service: &Arc<Service>, tried: &[Arc<str>]) -> Result<Endpoint, Failure> {
    let Pod {
        workload, address, ..
    } = pod;
    if tried.contains(&workload.uid) {
        let why = format!("{address} was tried, and no other pod was asked for");
        return Err(Failure::Unavailable(why));
    }
    let peers = workload.is_meshed();
    Ok(Endpoint {
        uid: workload.uid.clone(),
        address: *address,
        service: service.clone(),
        tunnel: peers.then(|| Tunnel::beside(*address, workload.identity.clone().into())),
    })
}

fn draw(
    shared: &Shared,
    wanted: &Wanted<'_>,
    own: Option<&Workload>,
    tried: &[Arc<str>],
) -> Result<Endpoint, Failure> {
    let (service, port) = (wanted.service, wanted.port);
    let client = wanted.first.address.ip();
    let store = &shared.store;
    // A Gateway is a client of the mesh itself, and passes no waypoint by.
    let found = match shared.config.ingress {
        false => store.resolve_backend(service, port, client, own, tried),
        true => store.resolve_service(service, port, client, own, tried),
    };
    match found.map_err(unavailable)? {
        Destination::Workload(upstream) => usable(wanted, &upstream),
        Destination::Waypoint(waypoint) => Ok(Endpoint {
            uid: waypoint.workload.uid.clone(),
            address: waypoint.address,
            service: service.clone(),
            tunnel: Some(Tunnel {
                peers: waypoint.identities(),
                at: waypoint.address,
                asks: waypoint.authority,
            }),
        }),
        Destination::Passthrough => Err(unusable(
            wanted,
            "its load balancing leaves no choice to a proxy",
        )),
    }
}

pub(crate) fn usable(wanted: &Wanted<'_>, upstream: &Upstream) -> Result<Endpoint, Failure> {
    let peers = match &upstream.transport {
        Transport::Hbone => Some(upstream.identities()),
        Transport::Tcp => None,
        Transport::Gateway { .. } => return Err(unusable(wanted, "it is on another network")),
    };
    let Target::Address(address) = upstream.target else {
        return Err(unusable(wanted, "its workload has no address"));
    };
    Ok(Endpoint {
        uid: upstream.workload.uid.clone(),
        address,
        service: wanted.service.clone(),
        tunnel: peers.map(|peers| Tunnel::beside(address, peers)),
    })
}

fn unusable(wanted: &Wanted<'_>, why: &str) -> Failure {
    let (key, port) = (&wanted.service.key, wanted.port);
    Failure::Unavailable(format!("{key} port {port}: {why}"))
}

#[expect(clippy::needless_pass_by_value, reason = "it is an error's conversion")]
fn unavailable(error: Unavailable) -> Failure {
    Failure::Unavailable(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_stays_where_it_is_when_another_endpoint_goes() {
        let names: Vec<String> = (0..10).map(|number| format!("pod-{number}")).collect();
        let of = |hash: u64, names: &[&String]| {
            let names = names.iter().map(|name| Arc::<str>::from(name.as_str()));
            let best = names.max_by_key(|uid| hash_of(&(hash, uid)));
            best.unwrap()
        };
        let all: Vec<&String> = names.iter().collect();
        let fewer: Vec<&String> = names.iter().skip(1).collect();
        let mut of_first = 0;
        for hash in 0..1000 {
            let before = of(hash, &all);
            match *before == *names[0] {
                true => of_first += 1,
                false => assert_eq!(of(hash, &fewer), before),
            }
        }
        assert!((50..200).contains(&of_first), "{of_first}");
    }
}
