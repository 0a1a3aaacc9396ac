use seine_objects::ObjectKey;
use seine_proto::waypoint::{load_balancer::Algorithm, request_key::Of};

use super::tests::translated;
use super::{Resources, TrafficFinding};

const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop, labels: {seine.dev/use-waypoint: wp}}
spec: {clusterIP: 10.1.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: v1, namespace: shop}
spec: {clusterIP: 10.1.0.2, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: plain, namespace: shop}
spec: {clusterIP: 10.1.0.3, ports: [{name: http, port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: web}]
  rules: [{backendRefs: [{name: v1, port: 80}]}]
";

fn policy(name: &str, created: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: policy.seine.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}, namespace: shop, creationTimestamp: '{created}'}}\nspec: {spec}\n"
    )
}

fn finding(resources: &Resources, name: &str) -> TrafficFinding {
    let key = ObjectKey::new("shop", name);
    resources.findings.traffic_policies[&key].clone()
}

#[test]
fn the_oldest_policy_decides_about_a_service_and_the_others_are_told() {
    let of = |names: &str| format!("{{targetRefs: [{names}], retryBudget: {{percent: 1}}}}");
    let (web, both) = (
        of("{kind: Service, name: web}"),
        of("{kind: Service, name: web}, {kind: Service, name: v1}"),
    );
    let yaml = [
        SERVICES.to_owned(),
        policy("a-younger", "2026-02-02T00:00:00Z", &both),
        policy("b-older", "2026-01-01T00:00:00Z", &web),
        policy("c-youngest", "2026-03-03T00:00:00Z", &web),
    ]
    .concat();
    let resources = translated(&yaml);
    let about = |name: &str| {
        let policy = resources.traffic.get(name);
        let services = policy.map(|policy| &policy.services);
        services.map(|services| {
            let names = services.iter().map(|service| &*service.hostname);
            names.collect::<Vec<_>>()
        })
    };
    assert_eq!(
        about("shop/b-older"),
        Some(vec!["web.shop.svc.cluster.local"])
    );
    assert_eq!(
        about("shop/a-younger"),
        Some(vec!["v1.shop.svc.cluster.local"])
    );
    assert_eq!(about("shop/c-youngest"), None);
    assert_eq!(finding(&resources, "b-older"), TrafficFinding::default());
    let conflict = "TrafficPolicy shop/b-older is older and decides about Service shop/web";
    for name in ["a-younger", "c-youngest"] {
        assert_eq!(finding(&resources, name).conflicts, [conflict], "{name}");
    }
}

#[test]
fn what_no_waypoint_obeys_is_told() {
    let limited = |name: &str| {
        format!(
            "{{targetRefs: [{{kind: Service, name: {name}}}], rateLimit: {{requests: 1, unit: Second}}}}"
        )
    };
    let budget = |name: &str, kind: &str| {
        format!("{{targetRefs: [{{kind: {kind}, name: {name}}}], retryBudget: {{percent: 1}}}}")
    };
    let at = "2026-01-01T00:00:00Z";
    for (spec, unenforced, unresolved) in [
        (limited("web"), None, None),
        (budget("v1", "Service"), None, None),
        (
            limited("v1"),
            Some("rateLimit is about requests to Service \"v1\" itself, which uses no waypoint"),
            None,
        ),
        (
            budget("plain", "Service"),
            Some("Service \"plain\" uses no waypoint, and no route of one leads to it"),
            None,
        ),
        (
            budget("gone", "Service"),
            None,
            Some("there is no Service \"gone\" with pods behind it"),
        ),
        (
            budget("web", "Gateway"),
            None,
            Some("kind \"Gateway\" of group \"\" can't be a target: use Service"),
        ),
    ] {
        let found = finding(
            &translated(&(SERVICES.to_owned() + &policy("p", at, &spec))),
            "p",
        );
        assert_eq!(found.unenforced, Vec::from_iter(unenforced), "{spec}");
        assert_eq!(found.unresolved, Vec::from_iter(unresolved), "{spec}");
    }
}

#[test]
fn everything_that_a_policy_says_goes_over_the_wire() {
    let spec = "{targetRefs: [{kind: Service, name: web}], loadBalancer: {algorithm: RingHash, hashOn: {type: Header, name: X-User}}, outlierDetection: {consecutiveFailures: 3, ejectionTime: 1500ms, maxEjectionTime: 1m, maxEjectedPercent: 50}, circuitBreaker: {maxRequests: 10, maxPending: 5}, retryBudget: {percent: 10, minPerSecond: 0, interval: 30s}, rateLimit: {requests: 10, unit: Minute, per: {type: Identity}}}";
    let at = "2026-01-01T00:00:00Z";
    let resources = translated(&(SERVICES.to_owned() + &policy("p", at, spec)));
    let found = resources.traffic["shop/p"].clone();
    let balancer = found.load_balancer.unwrap();
    assert_eq!(balancer.algorithm(), Algorithm::RingHash);
    let on = balancer.hash_on.unwrap().of;
    assert_eq!(on, Some(Of::Header("x-user".into())));
    let detection = found.outlier_detection.unwrap();
    assert_eq!(
        (detection.consecutive_failures, detection.ejection_ms),
        (Some(3), Some(1500))
    );
    assert_eq!(
        (detection.max_ejection_ms, detection.max_ejected_percent),
        (Some(60_000), Some(50))
    );
    let breaker = found.circuit_breaker.unwrap();
    assert_eq!((breaker.max_requests, breaker.max_pending), (10, 5));
    assert_eq!(breaker.max_connections, 0);
    let budget = found.retry_budget.unwrap();
    assert_eq!(
        (budget.percent, budget.min_per_second, budget.interval_s),
        (Some(10), Some(0), Some(30))
    );
    let limit = found.rate_limit.unwrap();
    assert_eq!(
        (limit.requests, limit.unit_ms, limit.burst),
        (10, 60_000, 10)
    );
    assert_eq!(limit.per.unwrap().of, Some(Of::Identity(true)));
}

#[test]
fn places_and_limits_that_are_found_out_go_over_the_wire_with_their_defaults() {
    let spec = "{targetRefs: [{kind: Service, name: web}], loadBalancer: {zoneAware: {}, slowStart: {window: 30s}}, circuitBreaker: {maxConnections: 7}, adaptiveConcurrency: {maxRequests: 10}}";
    let at = "2026-01-01T00:00:00Z";
    let resources = translated(&(SERVICES.to_owned() + &policy("p", at, spec)));
    let found = resources.traffic["shop/p"].clone();
    let balancer = found.load_balancer.unwrap();
    assert_eq!(balancer.zone_min_healthy_percent, 70);
    let slow = balancer.slow_start.unwrap();
    assert_eq!(
        (slow.window_ms, slow.aggression_percent, slow.min_percent),
        (30_000, 100, 10)
    );
    let breaker = found.circuit_breaker.unwrap();
    assert_eq!((breaker.max_requests, breaker.max_connections), (0, 7));
    let adaptive = found.adaptive_concurrency.unwrap();
    assert_eq!(
        (adaptive.min, adaptive.max, adaptive.tolerance_percent),
        (10, 10, 150)
    );
}
