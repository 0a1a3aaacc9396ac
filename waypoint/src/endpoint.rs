//! Which endpoint of a backend is asked.

use std::net::SocketAddr;
use std::sync::Arc;

use seine_identity::AcceptedIdentities;
use seine_workload::{Destination, Service, Target, Transport};

use crate::bind::{First, Pod};
use crate::failure::Failure;
use crate::shared::Shared;

/// How many endpoints that fail are passed over, and how often a second one is drawn.
const PASSED_OVER: usize = 16;
const DRAWS: usize = 2;

/// An endpoint of a backend.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The name of its workload.
    pub uid: Arc<str>,
    /// Where its application listens.
    pub address: SocketAddr,
    /// The service that it was chosen for.
    pub(crate) service: Arc<Service>,
    /// Who its proxy may be; `None` without a proxy.
    pub(crate) peers: Option<AcceptedIdentities>,
}

/// What is asked, and for whom.
pub(crate) struct Wanted<'a> {
    /// In the place of the service's endpoints.
    pub(crate) pod: Option<&'a Pod>,
    pub(crate) service: &'a Arc<Service>,
    pub(crate) port: u16,
    pub(crate) first: &'a First,
}

/// Chooses an endpoint that was not tried yet: of two drawn at random the less loaded one, and none that fails as long
/// as there is another. A pod that was addressed itself is the only one.
pub(crate) fn choose(
    shared: &Shared,
    wanted: &Wanted<'_>,
    tried: &[Arc<str>],
) -> Result<Endpoint, Failure> {
    if let Some(pod) = wanted.pod {
        return of_pod(pod, wanted.service, tried);
    }
    let loads = shared.upstreams.loads();
    let mut excluded = tried.to_vec();
    let mut failing = None;
    for _ in 0..PASSED_OVER {
        let draw = || draw(shared, wanted, &excluded);
        let first = match draw() {
            Ok(first) => first,
            Err(error) => return failing.ok_or(error),
        };
        if loads.is_ejected(first.address) {
            excluded.push(first.uid.clone());
            failing.get_or_insert(first);
            continue;
        }
        let mut others = (0..DRAWS).filter_map(|_| draw().ok());
        let second =
            others.find(|other| other.uid != first.uid && !loads.is_ejected(other.address));
        let better = second.filter(|other| loads.cost(other.address) < loads.cost(first.address));
        return Ok(better.unwrap_or(first));
    }
    draw(shared, wanted, tried)
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
        peers: peers.then(|| workload.identity.clone().into()),
    })
}

fn draw(shared: &Shared, wanted: &Wanted<'_>, tried: &[Arc<str>]) -> Result<Endpoint, Failure> {
    let (service, port) = (wanted.service, wanted.port);
    let client = wanted.first.address.ip();
    let own = shared.own_workload();
    let found = shared
        .store
        .resolve_backend(service, port, client, own.as_deref(), tried)
        .map_err(|error| Failure::Unavailable(error.to_string()))?;
    let unusable = |why: &str| {
        let key = &service.key;
        Err(Failure::Unavailable(format!("{key} port {port}: {why}")))
    };
    let Destination::Workload(upstream) = found else {
        return unusable("its load balancing leaves no choice to a waypoint");
    };
    let peers = match &upstream.transport {
        Transport::Hbone => Some(upstream.identities()),
        Transport::Tcp => None,
        Transport::Gateway { .. } => return unusable("it is on another network"),
    };
    let Target::Address(address) = upstream.target else {
        return unusable("its workload has no address");
    };
    Ok(Endpoint {
        uid: upstream.workload.uid.clone(),
        address,
        service: service.clone(),
        peers,
    })
}
