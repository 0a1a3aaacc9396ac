//! `TrafficPolicy`: how a waypoint treats the requests to a service and the pods behind it.

use std::ops::RangeInclusive;
use std::time::Duration;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Errors, FieldError, PolicyStatus, TargetRef};
use crate::gateway::{is_token, parse_duration};

// For the API server: durations as the Gateway API writes them (GEP-2257).
const DURATION: &str = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$";
/// The longest window of a retry budget, for each second of which something is remembered.
const MAX_INTERVAL: Duration = Duration::from_secs(60);

/// How a waypoint treats the requests to Services and the pods behind them.
///
/// `rateLimit` is about requests that clients make to the Service itself; everything else is about requests that are sent to
/// its pods, also where a route of another Service leads to them. Of several policies about one Service the oldest
/// decides, as a whole. What isn't set is as it is without a policy. Each pod of a waypoint counts for itself.
#[derive(
    CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema,
)]
#[kube(
    group = "policy.seine.dev",
    version = "v1alpha1",
    kind = "TrafficPolicy",
    plural = "trafficpolicies",
    namespaced,
    status = "PolicyStatus",
    derive = "PartialEq",
    category = "seine",
    shortname = "tp",
    printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.conditions[?(@.type=='Accepted')].status"}"#,
    printcolumn = r#"{"name":"Enforced","type":"string","jsonPath":".status.conditions[?(@.type=='Enforced')].status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.loadBalancer) || has(self.outlierDetection) || has(self.circuitBreaker) || has(self.retryBudget) || has(self.rateLimit) || has(self.adaptiveConcurrency)",
    "message": "says nothing: set at least one of loadBalancer, outlierDetection, circuitBreaker, retryBudget, rateLimit, adaptiveConcurrency",
}]))]
pub struct TrafficPolicySpec {
    /// Services of this namespace.
    #[schemars(length(min = 1, max = 16))]
    pub target_refs: Vec<TargetRef>,
    /// Which pod gets a request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    /// When a pod that fails gets nothing for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    /// How many requests may be under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreaker>,
    /// How many requests may be sent again, where a route asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_budget: Option<RetryBudget>,
    /// How many requests clients may make. Others are answered with 429.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// A limit of requests under way that is found out by how long the pods take to answer. Others are answered with 503.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive_concurrency: Option<AdaptiveConcurrency>,
}

/// Which pod gets a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.hashOn) == (has(self.algorithm) && self.algorithm == 'RingHash')",
    "message": "hashOn: with RingHash, and with nothing else",
}, {
    "rule": "!(has(self.zoneAware) || has(self.slowStart)) || !has(self.algorithm) || self.algorithm != 'RingHash'",
    "message": "zoneAware and slowStart: not with RingHash, by which a value has one pod",
}]))]
pub struct LoadBalancer {
    /// How it is chosen.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// By what `RingHash` tells clients apart. A request without it goes where it would without a policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_on: Option<HashOn>,
    /// Requests stay in the zone of the waypoint's pod, as its node's label `topology.kubernetes.io/zone` says, as long as it can take them.
    /// By default zones don't count, but for what the Service's `trafficDistribution` says, in the place of which this is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone_aware: Option<ZoneAware>,
    /// A pod that just came gets fewer requests at first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<SlowStart>,
}

/// How requests stay in a zone.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ZoneAware {
    /// As long as this percentage of the Service's pods in the zone is ready and does not fail, all requests stay there; by default 70. Of a
    /// zone with fewer a share goes to the other zones: half of the requests where half of this percentage is left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub min_healthy_percent: Option<u32>,
}

/// How a pod that just came is spared: it gets `(age / window) ^ (100 / aggressionPercent)` of its requests, as Envoy's slow start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SlowStart {
    /// For how long. Pods that all came at once are not slow.
    #[schemars(regex(pattern = DURATION))]
    pub window: String,
    /// How soon the share grows: 100, the default, is evenly, and more is faster at first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 1000))]
    pub aggression_percent: Option<u32>,
    /// The share is never less than this; by default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub min_percent: Option<u32>,
}

/// How a pod is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Algorithm {
    /// Of two at random the one with the lesser moving average of its time to answer, times its requests under way.
    #[default]
    PeakEwma,
    /// Of two at random the one with fewer requests under way.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// The same one for the same value of `hashOn`, as long as it is there.
    RingHash,
}

/// What of a request is hashed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.name) == (self.type != 'SourceAddress')",
    "message": "name: of a Header or Cookie, and of nothing else",
}]))]
pub struct HashOn {
    /// Where it is.
    pub r#type: HashSource,
    /// Of the header or cookie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub name: Option<String>,
}

/// Where a value to hash is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HashSource {
    /// A header.
    Header,
    /// A cookie.
    Cookie,
    /// The address of the first client.
    SourceAddress,
}

/// When a pod that fails gets nothing for a while. A failure is 502, 503, 504 or no answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub struct OutlierDetection {
    /// Failures in a row after which it gets nothing; by default 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub consecutive_failures: Option<u32>,
    /// How long, times how often it happened; by default `10s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = DURATION))]
    pub ejection_time: Option<String>,
    /// How long at most; by default `5m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = DURATION))]
    pub max_ejection_time: Option<String>,
    /// Of the Service's pods at most this share gets nothing at a time, rounded down; by default 100. 0: none ever does.
    /// If none is left, all get requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub max_ejected_percent: Option<u32>,
}

/// How many requests to the Service's pods may be under way, and on how many connections. Others are answered with 503.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.maxRequests) || has(self.maxConnections)",
    "message": "says nothing: set maxRequests or maxConnections",
}, {
    "rule": "has(self.maxRequests) || !has(self.maxPending)",
    "message": "maxPending: with maxRequests",
}]))]
pub struct CircuitBreaker {
    /// Requests at a time, from the request's head to the end of its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_requests: Option<u32>,
    /// Connections at a time. One of HTTP/1.1 that is idle makes room for another; each client has connections of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_connections: Option<u32>,
    /// Beyond `maxRequests` how many others wait for their turn; by default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1_000_000))]
    pub max_pending: Option<u32>,
}

/// A limit of requests under way that grows while answers take no longer than usual, and shrinks when they do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.minRequests) || !has(self.maxRequests) || self.minRequests <= self.maxRequests",
    "message": "minRequests: is more than maxRequests",
}]))]
pub struct AdaptiveConcurrency {
    /// The limit is never less, and begins so; by default 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_requests: Option<u32>,
    /// The limit is never more; by default 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_requests: Option<u32>,
    /// How long answers may take of their usual time before the limit shrinks; by default 150.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 100, max = 1000))]
    pub tolerance_percent: Option<u32>,
}

impl AdaptiveConcurrency {
    /// The least and the most.
    pub fn bounds(&self) -> (u32, u32) {
        let max = self.max_requests.unwrap_or(1000);
        (self.min_requests.unwrap_or(20.min(max)), max)
    }
}

/// How many requests may be sent again: a share of those of the last seconds, and always some.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub struct RetryBudget {
    /// The share; by default 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 100))]
    pub percent: Option<u32>,
    /// How many there may be in a second even if the share is less; by default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1_000_000))]
    pub min_per_second: Option<u32>,
    /// Of which time; by default `10s`, at most `1m`, in whole seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = DURATION))]
    pub interval: Option<String>,
}

/// How many requests clients may make to the Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimit {
    /// So many in each unit of time.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests: u32,
    /// The unit.
    pub unit: Unit,
    /// How many may come at once after a pause; by default `requests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: Option<u32>,
    /// Who shares a limit; by default all clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per: Option<Per>,
}

/// A unit of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Unit {
    #[default]
    Second,
    Minute,
    Hour,
}

impl Unit {
    /// How long it is.
    pub fn duration(self) -> Duration {
        Duration::from_secs(match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3600,
        })
    }
}

/// Who has a limit of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.name) == (self.type == 'Header')",
    "message": "name: of a Header, and of nothing else",
}]))]
pub struct Per {
    /// What tells them apart.
    pub r#type: PerType,
    /// Of the header. Requests without it share a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub name: Option<String>,
}

/// What tells those apart that have limits of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PerType {
    /// The identity of the client.
    Identity,
    /// The value of a header.
    Header,
}

impl TrafficPolicy {
    /// Everything that is wrong with it.
    pub fn validate(&self) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = &self.spec;
        if spec.target_refs.is_empty() {
            errors.add("spec.targetRefs", "is empty: name a Service");
        }
        for (index, target) in spec.target_refs.iter().enumerate() {
            target.validate(&format!("spec.targetRefs[{index}]"), &mut errors);
        }
        let nothing = TrafficPolicySpec {
            target_refs: spec.target_refs.clone(),
            ..TrafficPolicySpec::default()
        };
        if *spec == nothing {
            let message = "says nothing: set at least one of loadBalancer, outlierDetection, circuitBreaker, retryBudget, rateLimit, adaptiveConcurrency";
            errors.add("spec", message);
        }
        if let Some(balancer) = &spec.load_balancer {
            balancer.validate("spec.loadBalancer", &mut errors);
        }
        if let Some(detection) = &spec.outlier_detection {
            detection.validate("spec.outlierDetection", &mut errors);
        }
        if let Some(breaker) = &spec.circuit_breaker {
            breaker.validate("spec.circuitBreaker", &mut errors);
        }
        if let Some(adaptive) = &spec.adaptive_concurrency {
            adaptive.validate("spec.adaptiveConcurrency", &mut errors);
        }
        if let Some(budget) = &spec.retry_budget {
            budget.validate("spec.retryBudget", &mut errors);
        }
        if let Some(limit) = &spec.rate_limit {
            let path = "spec.rateLimit";
            number(limit.requests, 1, &format!("{path}.requests"), &mut errors);
            number(limit.burst, 1, &format!("{path}.burst"), &mut errors);
            if let Some(per) = &limit.per {
                let wants = per.r#type == PerType::Header;
                name(
                    per.name.as_deref(),
                    wants,
                    &format!("{path}.per.name"),
                    &mut errors,
                );
            }
        }
        errors.0
    }
}

impl LoadBalancer {
    fn validate(&self, path: &str, errors: &mut Errors) {
        if self.hash_on.is_some() != (self.algorithm == Algorithm::RingHash) {
            errors.add(
                format!("{path}.hashOn"),
                "with RingHash, and with nothing else",
            );
        }
        if let Some(on) = &self.hash_on {
            let wants = on.r#type != HashSource::SourceAddress;
            name(
                on.name.as_deref(),
                wants,
                &format!("{path}.hashOn.name"),
                errors,
            );
        }
        let by_hash = self.algorithm == Algorithm::RingHash;
        if let Some(zones) = &self.zone_aware {
            let path = format!("{path}.zoneAware");
            zones.validate(&path, errors);
            if by_hash {
                errors.add(path, "not with RingHash, by which a value has one pod");
            }
        }
        if let Some(slow) = &self.slow_start {
            let path = format!("{path}.slowStart");
            slow.validate(&path, errors);
            if by_hash {
                errors.add(path, "not with RingHash, by which a value has one pod");
            }
        }
    }
}

impl ZoneAware {
    fn validate(&self, path: &str, errors: &mut Errors) {
        let path = format!("{path}.minHealthyPercent");
        within(self.min_healthy_percent, 1..=100, &path, errors);
    }
}

impl SlowStart {
    fn validate(&self, path: &str, errors: &mut Errors) {
        duration(&self.window, &format!("{path}.window"), errors);
        let aggression = format!("{path}.aggressionPercent");
        within(self.aggression_percent, 10..=1000, &aggression, errors);
        let least = format!("{path}.minPercent");
        within(self.min_percent, 1..=100, &least, errors);
    }
}

impl CircuitBreaker {
    fn validate(&self, path: &str, errors: &mut Errors) {
        if self.max_requests.is_none() && self.max_connections.is_none() {
            errors.add(path, "says nothing: set maxRequests or maxConnections");
        }
        if self.max_requests.is_none() && self.max_pending.is_some() {
            errors.add(format!("{path}.maxPending"), "with maxRequests");
        }
        for (field, value, least) in [
            ("maxRequests", self.max_requests, 1),
            ("maxConnections", self.max_connections, 1),
            ("maxPending", self.max_pending, 0),
        ] {
            number(value, least, &format!("{path}.{field}"), errors);
        }
    }
}

impl AdaptiveConcurrency {
    fn validate(&self, path: &str, errors: &mut Errors) {
        for (field, value) in [
            ("minRequests", self.min_requests),
            ("maxRequests", self.max_requests),
        ] {
            number(value, 1, &format!("{path}.{field}"), errors);
        }
        let tolerance = format!("{path}.tolerancePercent");
        within(self.tolerance_percent, 100..=1000, &tolerance, errors);
        let (least, most) = self.bounds();
        if least > most {
            errors.add(format!("{path}.minRequests"), "is more than maxRequests");
        }
    }
}

impl OutlierDetection {
    fn validate(&self, path: &str, errors: &mut Errors) {
        if *self == Self::default() {
            errors.add(path, "says nothing");
        }
        number(
            self.consecutive_failures,
            1,
            &format!("{path}.consecutiveFailures"),
            errors,
        );
        for (field, value) in [
            ("ejectionTime", &self.ejection_time),
            ("maxEjectionTime", &self.max_ejection_time),
        ] {
            if let Some(text) = value {
                duration(text, &format!("{path}.{field}"), errors);
            }
        }
        percent(
            self.max_ejected_percent,
            &format!("{path}.maxEjectedPercent"),
            errors,
        );
    }
}

impl RetryBudget {
    fn validate(&self, path: &str, errors: &mut Errors) {
        if *self == Self::default() {
            errors.add(path, "says nothing");
        }
        percent(self.percent, &format!("{path}.percent"), errors);
        number(
            self.min_per_second,
            0,
            &format!("{path}.minPerSecond"),
            errors,
        );
        let path = format!("{path}.interval");
        let interval = self.interval.as_deref();
        let interval = interval.and_then(|text| duration(text, &path, errors));
        if interval.is_some_and(|found| found > MAX_INTERVAL || found.subsec_nanos() > 0) {
            errors.add(path, "is more than a minute, or no whole seconds");
        }
    }
}

fn number(value: impl Into<Option<u32>>, least: u32, path: &str, errors: &mut Errors) {
    within(value, least..=1_000_000, path, errors);
}

fn within(
    value: impl Into<Option<u32>>,
    bounds: RangeInclusive<u32>,
    path: &str,
    errors: &mut Errors,
) {
    if let Some(value) = value.into().filter(|value| !bounds.contains(value)) {
        let (least, most) = (bounds.start(), bounds.end());
        errors.add(path, format!("{value} is not between {least} and {most}"));
    }
}

fn percent(value: Option<u32>, path: &str, errors: &mut Errors) {
    if let Some(value) = value.filter(|value| *value > 100) {
        errors.add(path, format!("{value} is more than 100"));
    }
}

fn duration(text: &str, path: &str, errors: &mut Errors) -> Option<Duration> {
    let found = parse_duration(text).filter(|found| !found.is_zero());
    if found.is_none() {
        errors.add(path, "is no duration such as 10s, 1m30s or 500ms");
    }
    found
}

fn name(name: Option<&str>, wants: bool, path: &str, errors: &mut Errors) {
    match name {
        Some(_) if !wants => errors.add(path, "this type has no name"),
        None if wants => errors.add(path, "is missing"),
        Some(name) if !is_token(name) => {
            errors.add(
                path,
                format!("{name:?} can't be the name of a header or cookie"),
            );
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use crate::ObjectSet;

    fn problems(spec: &str) -> Vec<String> {
        let yaml = format!(
            "apiVersion: policy.seine.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: web, namespace: shop}}\nspec: {spec}\n"
        );
        let (set, problems) = ObjectSet::from_yaml(&yaml);
        assert_eq!(set.traffic_policies.is_empty(), !problems.is_empty());
        let fields = problems.into_iter().map(|p| p.field.unwrap_or_default());
        fields.collect()
    }

    #[test]
    fn a_policy_that_says_everything_is_valid() {
        let spec = "{targetRefs: [{kind: Service, name: web}], loadBalancer: {algorithm: RingHash, hashOn: {type: Cookie, name: a}}, outlierDetection: {consecutiveFailures: 3, ejectionTime: 1s, maxEjectionTime: 1m30s, maxEjectedPercent: 50}, circuitBreaker: {maxRequests: 10, maxPending: 5, maxConnections: 7}, adaptiveConcurrency: {minRequests: 5, maxRequests: 50, tolerancePercent: 200}, retryBudget: {percent: 10, minPerSecond: 0, interval: 30s}, rateLimit: {requests: 10, unit: Minute, burst: 20, per: {type: Header, name: x-tenant}}}";
        assert_eq!(problems(spec), [""; 0]);
        let places = "{targetRefs: [{kind: Service, name: web}], loadBalancer: {algorithm: RoundRobin, zoneAware: {minHealthyPercent: 50}, slowStart: {window: 1m, aggressionPercent: 50, minPercent: 5}}, circuitBreaker: {maxConnections: 1}, adaptiveConcurrency: {}}";
        assert_eq!(problems(places), [""; 0]);
    }

    #[test]
    fn every_error_names_its_field_and_what_is_unknown_is_one() {
        let target = "targetRefs: [{kind: Service, name: web}]";
        let with = |rest: &str| problems(&format!("{{{target}, {rest}}}"));
        assert_eq!(problems("{targetRefs: []}"), ["spec.targetRefs", "spec"]);
        assert_eq!(
            problems("{targetRefs: [{kind: '', name: ''}], retryBudget: {percent: 1}}"),
            ["spec.targetRefs[0].kind", "spec.targetRefs[0].name"]
        );
        for (rest, field) in [
            ("loadBalancer: {algorithm: RingHash}", "loadBalancer.hashOn"),
            (
                "loadBalancer: {hashOn: {type: SourceAddress}}",
                "loadBalancer.hashOn",
            ),
            (
                "loadBalancer: {algorithm: RingHash, hashOn: {type: Header}}",
                "loadBalancer.hashOn.name",
            ),
            (
                "loadBalancer: {algorithm: RingHash, hashOn: {type: SourceAddress, name: a}}",
                "loadBalancer.hashOn.name",
            ),
            (
                "loadBalancer: {algorithm: RingHash, hashOn: {type: Cookie, name: 'a b'}}",
                "loadBalancer.hashOn.name",
            ),
            ("loadBalancer: {slow: 1s}", "loadBalancer.slow"),
            (
                "loadBalancer: {slowStart: {window: 0s}}",
                "loadBalancer.slowStart.window",
            ),
            (
                "loadBalancer: {slowStart: {window: 1s, aggressionPercent: 9}}",
                "loadBalancer.slowStart.aggressionPercent",
            ),
            (
                "loadBalancer: {slowStart: {window: 1s, minPercent: 0}}",
                "loadBalancer.slowStart.minPercent",
            ),
            (
                "loadBalancer: {zoneAware: {minHealthyPercent: 101}}",
                "loadBalancer.zoneAware.minHealthyPercent",
            ),
            (
                "loadBalancer: {algorithm: RingHash, hashOn: {type: SourceAddress}, zoneAware: {}}",
                "loadBalancer.zoneAware",
            ),
            (
                "loadBalancer: {algorithm: RingHash, hashOn: {type: SourceAddress}, slowStart: {window: 1s}}",
                "loadBalancer.slowStart",
            ),
            ("circuitBreaker: {}", "circuitBreaker"),
            (
                "circuitBreaker: {maxConnections: 1, maxPending: 1}",
                "circuitBreaker.maxPending",
            ),
            (
                "circuitBreaker: {maxConnections: 0}",
                "circuitBreaker.maxConnections",
            ),
            (
                "adaptiveConcurrency: {minRequests: 2, maxRequests: 1}",
                "adaptiveConcurrency.minRequests",
            ),
            (
                "adaptiveConcurrency: {tolerancePercent: 99}",
                "adaptiveConcurrency.tolerancePercent",
            ),
            ("outlierDetection: {}", "outlierDetection"),
            (
                "outlierDetection: {consecutiveFailures: 0}",
                "outlierDetection.consecutiveFailures",
            ),
            (
                "outlierDetection: {ejectionTime: soon}",
                "outlierDetection.ejectionTime",
            ),
            (
                "outlierDetection: {maxEjectedPercent: 101}",
                "outlierDetection.maxEjectedPercent",
            ),
            (
                "circuitBreaker: {maxRequests: 0}",
                "circuitBreaker.maxRequests",
            ),
            ("retryBudget: {}", "retryBudget"),
            ("retryBudget: {percent: 101}", "retryBudget.percent"),
            ("retryBudget: {interval: 61s}", "retryBudget.interval"),
            ("retryBudget: {interval: 1500ms}", "retryBudget.interval"),
            (
                "rateLimit: {requests: 0, unit: Second}",
                "rateLimit.requests",
            ),
            (
                "rateLimit: {requests: 1, unit: Second, burst: 0}",
                "rateLimit.burst",
            ),
            (
                "rateLimit: {requests: 1, unit: Second, per: {type: Header}}",
                "rateLimit.per.name",
            ),
            (
                "rateLimit: {requests: 1, unit: Second, per: {type: Identity, name: a}}",
                "rateLimit.per.name",
            ),
            ("rateLimit: {requests: 1, unit: Day}", "rateLimit.unit"),
        ] {
            assert_eq!(with(rest), [format!("spec.{field}")], "{rest}");
        }
    }
}
