//! Which workload of a service gets a connection.
//!
//! Filter by port, health and reachability; rank by the ordered scopes up to the first mismatch;
//! a strict service needs all of them, failover takes the best rank; then by capacity at random.

use std::sync::Arc;

use rand::{Rng, RngExt};

use crate::index::ServiceEntry;
use crate::model::{HealthPolicy, LoadBalancing, Mode, RoutingScope, ServiceKey, Workload};
use crate::resolve::UnavailableReason;

/// What is asked of a service's workloads.
pub(crate) struct Wanted<'a> {
    pub(crate) key: &'a ServiceKey,
    pub(crate) service_port: u16,
    pub(crate) balancing: &'a LoadBalancing,
    /// The client, where it is known.
    pub(crate) source: Option<&'a Workload>,
    /// The network of this node.
    pub(crate) network: &'a str,
    /// Uids of workloads that were tried in vain.
    pub(crate) exclude: &'a [Arc<str>],
}

/// Tries at random before looking at every workload.
const PROBES: usize = 8;

/// Chooses a workload and its port.
pub(crate) fn pick<'a>(
    entry: &'a ServiceEntry,
    wanted: &Wanted<'_>,
    random: &mut impl Rng,
) -> Result<(&'a Arc<Workload>, u16), UnavailableReason> {
    let endpoints = &entry.endpoints;
    // Where all weigh the same, drawing until one is eligible draws each with the same chance.
    if !wanted.ranks() && entry.weighted == 0 && endpoints.len() > 1 {
        for _ in 0..PROBES {
            let endpoint = &endpoints[random.random_range(0..endpoints.len())];
            if let Ok(port) = wanted.eligible(endpoint) {
                return Ok((endpoint, port));
            }
        }
    }
    let mut best: Option<(&Arc<Workload>, u16)> = None;
    let mut best_rank = 0;
    let mut total: u64 = 0;
    let mut why = UnavailableReason::NoEndpoints;
    for endpoint in endpoints {
        let (port, rank) = match wanted.ranked(endpoint) {
            Ok(found) => found,
            Err(reason) => {
                why = why.max(reason);
                continue;
            }
        };
        if best.is_none() || rank > best_rank {
            (best, best_rank, total) = (None, rank, 0);
        } else if rank < best_rank {
            continue;
        }
        // Keeps the new one with the chance of its share of what was seen so far.
        let weight = u64::from(endpoint.capacity);
        total += weight;
        if best.is_none() || random.random_range(0..total) < weight {
            best = Some((endpoint, port));
        }
    }
    best.ok_or(why)
}

/// Every workload that [`pick`] may choose, and its port.
pub(crate) fn all<'a>(
    entry: &'a ServiceEntry,
    wanted: &Wanted<'_>,
) -> Result<Vec<(&'a Arc<Workload>, u16)>, UnavailableReason> {
    let mut found = Vec::new();
    let mut best_rank = 0;
    let mut why = UnavailableReason::NoEndpoints;
    for endpoint in &entry.endpoints {
        match wanted.ranked(endpoint) {
            Err(reason) => why = why.max(reason),
            Ok((_, rank)) if rank < best_rank => {}
            Ok((port, rank)) => {
                if rank > best_rank {
                    (found, best_rank) = (Vec::new(), rank);
                }
                found.push((endpoint, port));
            }
        }
    }
    match found.is_empty() {
        true => Err(why),
        false => Ok(found),
    }
}

impl Wanted<'_> {
    /// Whether some workloads are better than others.
    fn ranks(&self) -> bool {
        match self.balancing.mode {
            Mode::Strict | Mode::Failover => !self.balancing.scopes.is_empty(),
            Mode::Standard | Mode::Passthrough => false,
        }
    }

    /// The port of an endpoint that may be chosen, and how good it is.
    fn ranked(&self, endpoint: &Workload) -> Result<(u16, usize), UnavailableReason> {
        let port = self.eligible(endpoint)?;
        let rank = match self.ranks() {
            true => self.rank(endpoint),
            false => 0,
        };
        if self.balancing.mode == Mode::Strict && rank < self.balancing.scopes.len() {
            return Err(UnavailableReason::NoneInScope);
        }
        Ok((port, rank))
    }

    /// The port of an endpoint that may be chosen.
    fn eligible(&self, endpoint: &Workload) -> Result<u16, UnavailableReason> {
        let port = endpoint.target_port(self.key, self.service_port);
        let port = port.ok_or(UnavailableReason::NoEndpointWithPort)?;
        let healthy = endpoint.healthy || self.balancing.health_policy == HealthPolicy::AllowAll;
        if !healthy || endpoint.capacity == 0 {
            return Err(UnavailableReason::NoneHealthy);
        }
        if !self.reachable(endpoint) {
            return Err(UnavailableReason::NoneReachable);
        }
        if self.exclude.contains(&endpoint.uid) {
            return Err(UnavailableReason::AllTried);
        }
        Ok(port)
    }

    fn reachable(&self, endpoint: &Workload) -> bool {
        if *endpoint.network != *self.network {
            return endpoint.network_gateway.is_some();
        }
        !endpoint.addresses.is_empty() || !endpoint.hostname.is_empty()
    }

    /// How many of the scopes match, up to the first that doesn't.
    fn rank(&self, endpoint: &Workload) -> usize {
        let Some(source) = self.source else { return 0 };
        let matches = |scope: &&RoutingScope| match scope {
            RoutingScope::Region => source.locality.region == endpoint.locality.region,
            RoutingScope::Zone => source.locality.zone == endpoint.locality.zone,
            RoutingScope::Subzone => source.locality.subzone == endpoint.locality.subzone,
            RoutingScope::Node => source.node == endpoint.node,
            RoutingScope::Cluster => source.cluster_id == endpoint.cluster_id,
            RoutingScope::Network => source.network == endpoint.network,
        };
        self.balancing.scopes.iter().take_while(matches).count()
    }
}
