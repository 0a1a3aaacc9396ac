//! Which endpoint gets a request where the policy looks at where endpoints are, or for how long they have been there.
//!
//! Zones: requests stay in the waypoint's own zone (`topology.kubernetes.io/zone` of its node) as long as enough of the service's
//! endpoints there are healthy; of a zone with fewer a share spills over to the others. Slow start: an endpoint that just came gets a
//! share that grows (Envoy's formula).

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::{Rng, RngExt};
use seine_workload::Upstream;
use tokio::time::Instant;

use crate::endpoint::{Endpoint, Wanted, usable};
use crate::failure::Failure;
use crate::shared::Shared;
use crate::traffic_policy::{Algorithm, Policy, SlowStart};

/// Since when the endpoints of a service are there: of those that were there when it was first looked, for ever.
#[derive(Debug, Default)]
pub(crate) struct Ages(Mutex<Option<HashMap<Arc<str>, Option<Instant>>>>);

/// An endpoint that may be chosen.
struct Candidate<E = Endpoint> {
    endpoint: E,
    /// It is in the waypoint's zone.
    near: bool,
    /// Its share of what it would get when it has been there for long; at most 1.
    pace: f64,
}

/// Chooses an endpoint that was not tried yet, and none that fails as long as there is another.
pub(crate) fn choose(
    shared: &Shared,
    wanted: &Wanted<'_>,
    policy: &Policy,
    tried: &[Arc<str>],
) -> Result<Endpoint, Failure> {
    let own = shared.own_workload();
    let zone = own.map_or_else(Arc::default, |own| own.locality.zone.clone());
    let spread = wanted.everywhere(shared, &zone)?;
    let (loads, ages) = (&wanted.backend.loads, &wanted.backend.ages);
    let paces = ages.paces(&spread.usable, policy.slow_start.as_ref());
    let (mut good, mut failing, mut why) = (Vec::new(), Vec::new(), None);
    for (upstream, pace) in spread.usable.iter().zip(paces) {
        if tried.contains(&upstream.workload.uid) {
            continue;
        }
        match usable(wanted, upstream) {
            Err(failure) => why = Some(failure),
            Ok(endpoint) => {
                let fails = loads.is_ejected(endpoint.address);
                let candidate = Candidate {
                    endpoint,
                    near: upstream.workload.locality.zone == zone,
                    pace,
                };
                match fails {
                    true => failing.push(candidate),
                    false => good.push(candidate),
                }
            }
        }
    }
    let random = &mut rand::rng();
    let mut found = match good.is_empty() {
        true => failing,
        false => good,
    };
    if let Some(enough) = policy.zone_aware.filter(|_| !zone.is_empty()) {
        found = of_zone(found, spread.in_zone, enough, random);
    }
    let left = || Failure::Unavailable("no endpoint is left".into());
    let place = match &policy.algorithm {
        Algorithm::RoundRobin => in_turn(&found, wanted.backend.turn(), random),
        Algorithm::LeastRequest => lesser(&found, random, |endpoint| {
            f64::from(loads.under_way(endpoint.address))
        }),
        // With hashes neither zones nor ages count: the control plane refuses that.
        Algorithm::PeakEwma | Algorithm::RingHash(_) => {
            lesser(&found, random, |endpoint| loads.cost(endpoint.address))
        }
    };
    match place {
        Some(place) => Ok(found.swap_remove(place).endpoint),
        None => Err(why.unwrap_or_else(left)),
    }
}

/// Those of the own zone, or of the others: by chance, so that the zone keeps the share that it can take. `all` says how many endpoints
/// the zone has, `enough` which percentage of them must be healthy for it to keep everything.
fn of_zone<E>(
    found: Vec<Candidate<E>>,
    all: usize,
    enough: u32,
    random: &mut impl Rng,
) -> Vec<Candidate<E>> {
    let (near, far): (Vec<_>, Vec<_>) = found.into_iter().partition(|candidate| candidate.near);
    match (near.is_empty(), far.is_empty()) {
        (true, _) => far,
        (false, true) => near,
        (false, false) => match random.random_range(0.0..1.0) < kept(near.len(), all, enough) {
            true => near,
            false => far,
        },
    }
}

/// The share of requests that a zone keeps, of whose endpoints so many are healthy.
fn kept(healthy: usize, all: usize, enough: u32) -> f64 {
    let count = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    let share = count(healthy) / count(all.max(healthy).max(1));
    share * 100.0 / f64::from(enough.max(1))
}

/// The next one whose turn it is; one that is slow passes its turn on by chance.
fn in_turn<E>(found: &[Candidate<E>], turn: usize, random: &mut impl Rng) -> Option<usize> {
    let best = best_pace(found);
    let mut places = (0..found.len()).map(|step| turn.wrapping_add(step) % found.len());
    let first = places.clone().next();
    let takes = |place: &usize| random.random_range(0.0..best) < found[*place].pace;
    places.find(takes).or(first)
}

/// Of two at random the one of the lesser cost.
fn lesser<E>(
    found: &[Candidate<E>],
    random: &mut impl Rng,
    cost: impl Fn(&E) -> f64,
) -> Option<usize> {
    let first = drawn(found, None, random)?;
    let second = drawn(found, Some(first), random);
    let cost = |place: usize| cost(&found[place].endpoint);
    let better = second.filter(|second| cost(*second) < cost(first));
    Some(better.unwrap_or(first))
}

/// One at random, by pace; not this one.
fn drawn<E>(found: &[Candidate<E>], but: Option<usize>, random: &mut impl Rng) -> Option<usize> {
    let others = || (0..found.len()).filter(|place| Some(*place) != but);
    let total: f64 = others().map(|place| found[place].pace).sum();
    let mut left = random.random_range(0.0..total.max(f64::MIN_POSITIVE));
    let hit = others().find(|place| {
        left -= found[*place].pace;
        left < 0.0
    });
    hit.or_else(|| others().next_back())
}

/// Where all just came, none of them is slow.
fn best_pace<E>(found: &[Candidate<E>]) -> f64 {
    let paces = found.iter().map(|candidate| candidate.pace);
    paces.fold(f64::MIN_POSITIVE, f64::max)
}

impl Ages {
    /// The pace of each endpoint, in this order. Those that are not among them are forgotten, so that they come anew.
    fn paces(&self, now_there: &[Upstream], slow_start: Option<&SlowStart>) -> Vec<f64> {
        let Some(slow_start) = slow_start else {
            return vec![1.0; now_there.len()];
        };
        let uids = now_there.iter().map(|upstream| &upstream.workload.uid);
        let since = self.since(uids);
        let ages = since
            .into_iter()
            .map(|since| since.map(|since| since.elapsed()));
        ages.map(|age| age.map_or(1.0, |age| slow_start.pace(age)))
            .collect()
    }

    fn since<'a>(&self, uids: impl Iterator<Item = &'a Arc<str>>) -> Vec<Option<Instant>> {
        let mut known = self.0.lock();
        let came = known.is_some().then(Instant::now);
        let before = known.take().unwrap_or_default();
        let mut since = Vec::with_capacity(before.len());
        let mut there = HashMap::with_capacity(before.len());
        for uid in uids {
            let of_this = before.get(uid).copied().unwrap_or(came);
            there.insert(uid.clone(), of_this);
            since.push(of_this);
        }
        *known = Some(there);
        since
    }
}

impl SlowStart {
    /// The share of an endpoint that has been there for so long: `(age / window) ^ (1 / aggression)`, and never less than the least.
    fn pace(&self, age: Duration) -> f64 {
        if age >= self.window {
            return 1.0;
        }
        let part = age.as_secs_f64() / self.window.as_secs_f64();
        let aggression = f64::from(self.aggression_percent) / 100.0;
        part.powf(1.0 / aggression)
            .max(f64::from(self.min_percent) / 100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uids(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|name| Arc::from(*name)).collect()
    }

    #[test]
    fn a_zone_keeps_what_its_healthy_endpoints_can_take() {
        for (healthy, all, kept_of_ten) in [(10, 10, 10), (7, 10, 10), (0, 10, 0), (1, 1, 10)] {
            let share = kept(healthy, all, 70).min(1.0);
            assert!(
                (share * 10.0 - f64::from(kept_of_ten)).abs() < 0.01,
                "{healthy} of {all}: {share}"
            );
        }
        let half = kept(35, 100, 70);
        assert!((half - 0.5).abs() < 0.01, "{half}");
    }

    #[test]
    fn the_pace_of_a_newcomer_grows_as_envoys_does() {
        let slow = |aggression_percent| SlowStart {
            window: Duration::from_secs(100),
            aggression_percent,
            min_percent: 10,
        };
        let pace = |aggression, age| slow(aggression).pace(Duration::from_secs(age));
        for (aggression, age, expected) in [
            (100, 0, 0.1),
            (100, 5, 0.1),
            (100, 50, 0.5),
            (100, 100, 1.0),
            (100, 1000, 1.0),
            // Faster at first, and slower.
            (200, 25, 0.5),
            (50, 50, 0.25),
        ] {
            let found = pace(aggression, age);
            assert!(
                (found - expected).abs() < 1e-9,
                "{aggression} {age}: {found}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_there_at_first_is_no_newcomer_and_who_was_away_is_one() {
        let ages = Ages::default();
        let look = |names: &[&str]| ages.since(uids(names).iter());
        assert_eq!(look(&["a", "b"]), [None, None]);
        tokio::time::advance(Duration::from_secs(10)).await;
        let came = Some(Instant::now());
        assert_eq!(look(&["a", "b", "c"]), [None, None, came]);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(look(&["a", "c"]), [None, came]);
        assert_eq!(look(&["b", "c"]), [Some(Instant::now()), came]);
    }

    /// Numbered ones, of which the first is near.
    fn candidates(paces: &[f64]) -> Vec<Candidate<u16>> {
        let one = |(endpoint, pace): (u16, &f64)| Candidate {
            endpoint,
            near: endpoint == 0,
            pace: *pace,
        };
        (0..).zip(paces).map(one).collect()
    }

    #[test]
    fn a_newcomer_gets_its_share_in_turn_and_by_chance_and_all_of_it_where_all_are_new() {
        let random = &mut rand::rng();
        let mut count = |paces: &[f64], turns: bool| {
            let found = candidates(paces);
            let of_first = (0..10_000).filter(|turn| {
                let place = match turns {
                    true => in_turn(&found, *turn, random),
                    false => drawn(&found, None, random),
                };
                place == Some(0)
            });
            of_first.count()
        };
        for turns in [true, false] {
            let slow = count(&[0.1, 1.0], turns);
            assert!((300..1500).contains(&slow), "{turns} {slow}");
            let equal = count(&[0.1, 0.1], turns);
            assert!((4500..5500).contains(&equal), "{turns} {equal}");
        }
        assert_eq!(drawn(&candidates(&[1.0]), None, random), Some(0));
        assert_eq!(drawn(&candidates(&[1.0]), Some(0), random), None);
        assert_eq!(
            lesser(&candidates(&[1.0, 1.0]), random, |endpoint| f64::from(
                *endpoint
            )),
            Some(0)
        );
        assert_eq!(lesser(&candidates(&[]), random, |_| 0.0), None);
    }

    #[test]
    fn what_a_zone_does_not_keep_goes_to_the_others() {
        let random = &mut rand::rng();
        let mut far = |all| {
            let left = (0..10_000).filter(|_| {
                let found = of_zone(candidates(&[1.0, 1.0, 1.0]), all, 70, random);
                !found[0].near && found.len() == 2
            });
            left.count()
        };
        assert_eq!(far(1), 0);
        // One of three: 48 of a hundred stay.
        let spilled = far(3);
        assert!((4700..5800).contains(&spilled), "{spilled}");
        let mut of_others = candidates(&[1.0, 1.0]);
        of_others.remove(0);
        assert_eq!(of_zone(of_others, 5, 70, random).len(), 1);
    }
}
