//! How the requests to a service and its pods are treated: what the policies say that the control plane has sent, and what is
//! remembered of each service meanwhile: loads, retries, limits.
//!
//! One writer of policies, the configuration's task. What is remembered of a service stays when its policy changes,
//! but for the limits that the change is about.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};
use prost::Message;
use seine_proto::discovery::Resource;
use seine_proto::waypoint as wire;
use seine_workload::ServiceKey;
use seine_xds::Refused;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::balance::Loads;
use crate::concurrency::{Concurrency, Place};
use crate::connections::{Connection, Connections};
use crate::failure::{Failure, Overload};
use crate::limit::Limiter;
use crate::place::Ages;
use crate::retry::Budget;
use crate::traffic_policy::{Breaker, Policy};

/// All services.
#[derive(Debug, Default)]
pub struct Traffic {
    policies: RwLock<Policies>,
    backends: Mutex<HashMap<ServiceKey, Arc<Backend>>>,
}

#[derive(Debug, Default)]
struct Policies {
    /// Version, services and content by name.
    held: HashMap<String, (String, Vec<ServiceKey>, Arc<Policy>)>,
    by_service: HashMap<ServiceKey, Arc<Policy>>,
}

/// What is known of one service.
#[derive(Debug, Default)]
pub(crate) struct Backend {
    /// How loaded its endpoints are.
    pub(crate) loads: Loads,
    /// Since when they are there.
    pub(crate) ages: Ages,
    /// What was sent to it, and sent again.
    pub(crate) budget: Budget,
    /// Whose turn it is.
    turn: AtomicUsize,
    rules: RwLock<Arc<Rules>>,
}

/// What holds for a service, and what is counted for that.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    /// What the policy says.
    pub(crate) policy: Arc<Policy>,
    slots: Option<Arc<Slots>>,
    concurrency: Option<Arc<Concurrency>>,
    /// Those to its endpoints.
    pub(crate) connections: Option<Arc<Connections>>,
    /// How many requests clients may make.
    pub(crate) limiter: Option<Arc<Limiter>>,
}

/// The place of a request among those that are under way, where their number has a limit.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    _permit: Option<OwnedSemaphorePermit>,
    /// Where the limit is found out.
    pub(crate) place: Option<Place>,
    /// A connection of its own, of what is no request.
    pub(crate) connection: Option<Connection>,
}

/// How many requests may be under way, and wait.
#[derive(Debug)]
struct Slots {
    breaker: Breaker,
    free: Arc<Semaphore>,
    waiting: Semaphore,
}

impl Traffic {
    /// What is known of a service.
    pub(crate) fn of(&self, service: &ServiceKey) -> Arc<Backend> {
        let mut backends = self.backends.lock();
        if let Some(backend) = backends.get(service) {
            return backend.clone();
        }
        let policy = self.policies.read().by_service.get(service).cloned();
        let backend = Arc::new(Backend::default());
        backend.obey(policy.unwrap_or_default());
        backends.insert(service.clone(), backend.clone());
        backend
    }

    /// Names and versions of the policies held.
    pub(crate) fn versions(&self) -> HashMap<String, String> {
        let policies = self.policies.read();
        let held = policies.held.iter();
        held.map(|(name, (version, ..))| (name.clone(), version.clone()))
            .collect()
    }

    /// Applies what the control plane sent. Of a policy that can't be read the earlier version stays in force.
    pub fn apply(&self, resources: &[Resource], removed: &[String]) -> Vec<Refused> {
        let mut refused = Vec::new();
        // The order of locks is that of `of`.
        let backends = self.backends.lock();
        let mut policies = self.policies.write();
        for name in removed {
            policies.held.remove(name);
        }
        for resource in resources {
            match parse(resource) {
                Ok((services, policy)) => {
                    let held = (resource.version.clone(), services, Arc::new(policy));
                    policies.held.insert(resource.name.clone(), held);
                }
                Err(problem) => refused.push(Refused {
                    name: resource.name.clone(),
                    problem,
                }),
            }
        }
        let held = policies.held.values();
        policies.by_service = held
            .flat_map(|(_, services, policy)| services.iter().map(move |key| (key, policy)))
            .map(|(service, policy)| (service.clone(), policy.clone()))
            .collect();
        for (service, backend) in &*backends {
            backend.obey(
                policies
                    .by_service
                    .get(service)
                    .cloned()
                    .unwrap_or_default(),
            );
        }
        refused
    }

    /// Forgets what nobody used for long. What a policy counts stays as long as the policy.
    pub(crate) fn sweep(&self) {
        let mut backends = self.backends.lock();
        let policies = self.policies.read();
        backends.retain(|service, backend| {
            backend.loads.sweep();
            let used = Arc::strong_count(backend) > 1 || !backend.loads.is_empty();
            used || !backend.budget.is_idle() || policies.by_service.contains_key(service)
        });
    }
}

fn parse(resource: &Resource) -> Result<(Vec<ServiceKey>, Policy), String> {
    let body = resource.resource.as_ref().ok_or("it has no content")?;
    let message = wire::TrafficPolicy::decode(&*body.value).map_err(|error| error.to_string())?;
    let services = message.services.iter().map(|service| ServiceKey {
        namespace: service.namespace.as_str().into(),
        hostname: service.hostname.to_ascii_lowercase().into(),
    });
    Ok((services.collect(), Policy::parse(&message)?))
}

impl Backend {
    /// What holds now.
    pub(crate) fn rules(&self) -> Arc<Rules> {
        self.rules.read().clone()
    }

    /// Counts up, for those who are asked one after the other.
    pub(crate) fn turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    fn obey(&self, policy: Arc<Policy>) {
        let mut rules = self.rules.write();
        if rules.policy == policy {
            return;
        }
        let same_slots = rules.slots.clone();
        let same_slots = same_slots.filter(|slots| Some(slots.breaker) == policy.breaker);
        let same_limiter = rules.limiter.clone();
        let same_limiter =
            same_limiter.filter(|limiter| Some(limiter.rate()) == policy.rate.as_ref());
        let same_concurrency = rules.concurrency.clone();
        let same_concurrency = same_concurrency.filter(|held| Some(held.rule()) == policy.adaptive);
        let new_concurrency = || Some(Arc::new(Concurrency::new(policy.adaptive?)));
        let same_connections = rules.connections.clone();
        let same_connections =
            same_connections.filter(|held| Some(held.max()) == policy.connections);
        let new_connections = || Some(Arc::new(Connections::new(policy.connections?)));
        let new_limiter = || Some(Arc::new(Limiter::new(policy.rate.clone()?)));
        *rules = Arc::new(Rules {
            slots: same_slots.or_else(|| Some(Arc::new(Slots::new(policy.breaker?)))),
            concurrency: same_concurrency.or_else(new_concurrency),
            connections: same_connections.or_else(new_connections),
            limiter: same_limiter.or_else(new_limiter),
            policy,
        });
    }

    /// A place among the requests that are under way, where their number has a limit: at once, or after others if
    /// few enough are waiting.
    pub(crate) async fn slot(&self) -> Result<Slot, Failure> {
        let rules = self.rules();
        let permit = match &rules.slots {
            None => None,
            Some(slots) => Some(slots.take().await?),
        };
        let place = rules.concurrency.as_ref().map(Concurrency::take);
        Ok(Slot {
            _permit: permit,
            place: place.transpose()?,
            connection: None,
        })
    }
}

impl Slots {
    fn new(breaker: Breaker) -> Self {
        Self {
            breaker,
            free: Arc::new(Semaphore::new(breaker.max_requests)),
            waiting: Semaphore::new(breaker.max_pending),
        }
    }

    async fn take(&self) -> Result<OwnedSemaphorePermit, Failure> {
        if let Ok(slot) = self.free.clone().try_acquire_owned() {
            return Ok(slot);
        }
        let overloaded = |_| Failure::Overloaded(Overload::Requests(self.breaker));
        let _waiting = self.waiting.try_acquire().map_err(overloaded)?;
        let slot = self.free.clone().acquire_owned().await;
        Ok(slot.expect("it is never closed"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use seine_proto::TRAFFIC_POLICY_TYPE;
    use std::time::Duration;

    fn web() -> ServiceKey {
        ServiceKey {
            namespace: "shop".into(),
            hostname: "web".into(),
        }
    }

    fn resource(name: &str, version: &str, policy: wire::TrafficPolicy) -> Resource {
        let message = wire::TrafficPolicy {
            services: vec![wire::TrafficTarget {
                namespace: "shop".into(),
                hostname: "web".into(),
            }],
            ..policy
        };
        Resource {
            name: name.into(),
            version: version.into(),
            resource: Some(prost_types::Any {
                type_url: TRAFFIC_POLICY_TYPE.into(),
                value: message.encode_to_vec(),
            }),
            ..Resource::default()
        }
    }

    fn breaker(max_requests: u32, max_pending: u32) -> wire::TrafficPolicy {
        wire::TrafficPolicy {
            circuit_breaker: Some(wire::CircuitBreaker {
                max_requests,
                max_pending,
                max_connections: 0,
            }),
            ..wire::TrafficPolicy::default()
        }
    }

    #[tokio::test]
    async fn so_many_requests_are_under_way_and_so_many_wait_and_others_are_refused() {
        let traffic = Traffic::default();
        assert!(traffic.of(&web()).slot().await.is_ok());
        traffic.apply(&[resource("a", "1", breaker(1, 1))], &[]);
        let backend = traffic.of(&web());
        let first = backend.slot().await.unwrap();
        let waiting = tokio::spawn({
            let backend = backend.clone();
            async move { backend.slot().await.unwrap() }
        });
        tokio::task::yield_now().await;
        assert!(matches!(backend.slot().await, Err(Failure::Overloaded(_))));
        drop(first);
        let _second = waiting.await.unwrap();
        // The same limit goes on to count; without it nothing is counted.
        let policy = wire::TrafficPolicy {
            retry_budget: Some(wire::RetryBudget::default()),
            ..breaker(1, 0)
        };
        traffic.apply(&[resource("a", "2", breaker(1, 1))], &[]);
        traffic.apply(&[resource("a", "3", policy.clone())], &[]);
        traffic.apply(&[resource("a", "4", policy)], &[]);
        let _third = backend.slot().await.unwrap();
        assert!(matches!(backend.slot().await, Err(Failure::Overloaded(_))));
        traffic.apply(&[], &["a".to_owned()]);
        assert!(backend.slot().await.is_ok());
        assert!(traffic.versions().is_empty());
    }

    #[test]
    fn a_policy_that_cannot_be_read_leaves_the_earlier_one_in_force() {
        let traffic = Traffic::default();
        assert_eq!(traffic.apply(&[resource("a", "1", breaker(1, 1))], &[]), []);
        let refused = traffic.apply(&[resource("a", "2", breaker(0, 1))], &[]);
        assert_eq!(refused.len(), 1);
        assert_eq!(traffic.versions()["a"], "1");
        let policy = traffic.of(&web()).rules().policy.clone();
        assert_eq!(policy.breaker.unwrap().max_requests, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_used_for_long_is_forgotten_unless_a_policy_counts_it() {
        let traffic = Traffic::default();
        let other = ServiceKey {
            hostname: "other".into(),
            ..web()
        };
        traffic.apply(&[resource("a", "1", breaker(1, 1))], &[]);
        for service in [&web(), &other] {
            traffic.of(service).budget.request();
        }
        traffic.sweep();
        assert_eq!(traffic.backends.lock().len(), 2);
        tokio::time::advance(Duration::from_secs(3600)).await;
        traffic.sweep();
        let left: Vec<_> = traffic.backends.lock().keys().cloned().collect();
        assert_eq!(left, [web()]);
    }
}
