//! `TrafficPolicy` to what waypoints obey.
//!
//! Of several about one service the oldest decides, as a whole: what two of them say is never mixed. A limit on requests
//! to a service is its own waypoint's to obey; what is about its pods is obeyed by every waypoint that sends requests to them.

use std::collections::{BTreeMap, BTreeSet};

use seine_objects::{
    ObjectKey, ObjectSet,
    gateway::parse_duration,
    policy::{
        AdaptiveConcurrency, Algorithm, HashOn, HashSource, LoadBalancer, Per, PerType, RateLimit,
        SlowStart, TrafficPolicy, TrafficPolicySpec,
    },
};
use seine_proto::waypoint::{self as wire, filter, load_balancer, request_key};

use super::{Resources, Settings, TrafficFinding, policy::no_service, service};

/// Adds every policy that decides about a service, and what users should know.
pub(super) fn translate(
    objects: &ObjectSet,
    services: &BTreeMap<ObjectKey, service::Translated>,
    settings: &Settings,
    resources: &mut Resources,
) {
    let mut by_age: Vec<(&ObjectKey, &TrafficPolicy)> = objects
        .traffic_policies
        .iter()
        .map(|(key, policy)| (key, &**policy))
        .collect();
    by_age.sort_by_key(|(key, policy)| {
        let created = policy.metadata.creation_timestamp.as_ref();
        let created = created.map(|time| time.0);
        (created.is_none(), created, (*key).clone())
    });
    let backends = backends(resources);
    let mut decided: BTreeMap<ObjectKey, &ObjectKey> = BTreeMap::new();
    for (key, policy) in by_age {
        let mut finding = TrafficFinding::default();
        let mut about = BTreeSet::new();
        for target in &policy.spec.target_refs {
            let target_key = ObjectKey::new(&key.namespace, &target.name);
            let service = match (&*target.group, &*target.kind, services.get(&target_key)) {
                ("" | "core", "Service", Some(service)) => service,
                ("" | "core", "Service", None) => {
                    finding.unresolved.push(no_service(&target.name));
                    continue;
                }
                (group, kind, _) => {
                    finding.unresolved.push(format!(
                        "kind {kind:?} of group {group:?} can't be a target: use Service"
                    ));
                    continue;
                }
            };
            let older = *decided.entry(target_key.clone()).or_insert(key);
            if older != key {
                finding.conflicts.push(format!(
                    "TrafficPolicy {older} is older and decides about Service {target_key}"
                ));
                continue;
            }
            about.insert(target_key);
            let is_backend = backends.contains(&service.key);
            let unenforced = unenforced(&policy.spec, &target.name, service, is_backend);
            finding.unenforced.extend(unenforced);
        }
        if !about.is_empty() {
            let message = message(&policy.spec, about, settings);
            resources.traffic.insert(key.to_string(), message);
        }
        let findings = &mut resources.findings.traffic_policies;
        findings.insert(key.clone(), finding);
    }
}

/// Services to which rules of routes lead, or copy.
fn backends(resources: &Resources) -> BTreeSet<String> {
    let mirrors = |filters: &[wire::Filter]| {
        let mirrors = filters.iter().filter_map(|filter| match &filter.filter {
            Some(filter::Filter::Mirror(mirror)) => mirror.backend.clone(),
            _ => None,
        });
        mirrors.collect::<Vec<_>>()
    };
    let of_rule = |rule: &wire::RouteRule| {
        let own = rule.backends.iter();
        let own = own.flat_map(|backend| mirrors(&backend.filters));
        let all = rule.backends.iter().cloned().chain(own);
        all.chain(mirrors(&rule.filters)).collect::<Vec<_>>()
    };
    let all = resources.routes.values().flat_map(of_rule);
    all.filter(|backend| backend.refused.is_empty())
        .map(|backend| format!("{}/{}", backend.namespace, backend.hostname))
        .collect()
}

/// What of a policy no waypoint obeys for a service.
fn unenforced(
    spec: &TrafficPolicySpec,
    name: &str,
    service: &service::Translated,
    is_backend: bool,
) -> Option<String> {
    if service.waypoint.is_some() {
        return None;
    }
    match (is_backend, &spec.rate_limit) {
        (true, None) => None,
        (true, Some(_)) => Some(format!(
            "rateLimit is about requests to Service {name:?} itself, which uses no waypoint"
        )),
        (false, _) => Some(format!(
            "Service {name:?} uses no waypoint, and no route of one leads to it"
        )),
    }
}

fn message(
    spec: &TrafficPolicySpec,
    about: BTreeSet<ObjectKey>,
    settings: &Settings,
) -> wire::TrafficPolicy {
    let services = about.into_iter().map(|key| wire::TrafficTarget {
        hostname: service::hostname(&key, settings),
        namespace: key.namespace,
    });
    let balancer = spec.load_balancer.as_ref();
    let detection = spec.outlier_detection.as_ref();
    let breaker = spec.circuit_breaker.as_ref();
    let budget = spec.retry_budget.as_ref();
    wire::TrafficPolicy {
        services: services.collect(),
        load_balancer: balancer.map(load_balancer),
        outlier_detection: detection.map(|detection| wire::OutlierDetection {
            consecutive_failures: detection.consecutive_failures,
            ejection_ms: detection.ejection_time.as_deref().and_then(millis),
            max_ejection_ms: detection.max_ejection_time.as_deref().and_then(millis),
            max_ejected_percent: detection.max_ejected_percent,
        }),
        circuit_breaker: breaker.map(|breaker| wire::CircuitBreaker {
            max_requests: breaker.max_requests.unwrap_or_default(),
            max_pending: breaker.max_pending.unwrap_or_default(),
            max_connections: breaker.max_connections.unwrap_or_default(),
        }),
        retry_budget: budget.map(|budget| wire::RetryBudget {
            percent: budget.percent,
            min_per_second: budget.min_per_second,
            interval_s: budget.interval.as_deref().and_then(millis).map(|millis| {
                // Validation has bounded it.
                u32::try_from(millis / 1000).unwrap_or(u32::MAX)
            }),
        }),
        rate_limit: spec.rate_limit.as_ref().map(rate_limit),
        adaptive_concurrency: spec.adaptive_concurrency.as_ref().map(adaptive),
    }
}

fn load_balancer(balancer: &LoadBalancer) -> wire::LoadBalancer {
    let zones = balancer.zone_aware.as_ref();
    wire::LoadBalancer {
        algorithm: match balancer.algorithm {
            Algorithm::PeakEwma => load_balancer::Algorithm::PeakEwma,
            Algorithm::LeastRequest => load_balancer::Algorithm::LeastRequest,
            Algorithm::RoundRobin => load_balancer::Algorithm::RoundRobin,
            Algorithm::RingHash => load_balancer::Algorithm::RingHash,
        }
        .into(),
        hash_on: balancer.hash_on.as_ref().map(hash_on),
        // As Envoy's overprovisioning of 140.
        zone_min_healthy_percent: zones.map_or(0, |zones| zones.min_healthy_percent.unwrap_or(70)),
        slow_start: balancer.slow_start.as_ref().map(slow_start),
    }
}

fn slow_start(slow: &SlowStart) -> wire::SlowStart {
    wire::SlowStart {
        window_ms: millis(&slow.window).unwrap_or_default(),
        aggression_percent: slow.aggression_percent.unwrap_or(100),
        min_percent: slow.min_percent.unwrap_or(10),
    }
}

fn adaptive(adaptive: &AdaptiveConcurrency) -> wire::AdaptiveConcurrency {
    let (min, max) = adaptive.bounds();
    wire::AdaptiveConcurrency {
        min,
        max,
        tolerance_percent: adaptive.tolerance_percent.unwrap_or(150),
    }
}

fn rate_limit(limit: &RateLimit) -> wire::RateLimit {
    wire::RateLimit {
        requests: limit.requests,
        unit_ms: u64::try_from(limit.unit.duration().as_millis()).unwrap_or(u64::MAX),
        burst: limit.burst.unwrap_or(limit.requests),
        per: limit.per.as_ref().map(per),
    }
}

fn hash_on(on: &HashOn) -> wire::RequestKey {
    let name = on.name.clone().unwrap_or_default();
    request_key(match on.r#type {
        HashSource::Header => request_key::Of::Header(name.to_ascii_lowercase()),
        HashSource::Cookie => request_key::Of::Cookie(name),
        HashSource::SourceAddress => request_key::Of::SourceAddress(true),
    })
}

fn per(per: &Per) -> wire::RequestKey {
    let name = per.name.as_deref().unwrap_or_default();
    request_key(match per.r#type {
        PerType::Identity => request_key::Of::Identity(true),
        PerType::Header => request_key::Of::Header(name.to_ascii_lowercase()),
    })
}

fn request_key(of: request_key::Of) -> wire::RequestKey {
    wire::RequestKey { of: Some(of) }
}

fn millis(text: &str) -> Option<u64> {
    let duration = parse_duration(text)?;
    Some(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}
