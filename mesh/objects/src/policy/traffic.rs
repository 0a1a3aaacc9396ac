//! `TrafficPolicy`: how a waypoint treats the requests to a service and the pods behind it.

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
    "rule": "has(self.loadBalancer) || has(self.outlierDetection) || has(self.circuitBreaker) || has(self.retryBudget) || has(self.rateLimit)",
    "message": "says nothing: set at least one of loadBalancer, outlierDetection, circuitBreaker, retryBudget, rateLimit",
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
}

/// Which pod gets a request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.hashOn) == (has(self.algorithm) && self.algorithm == 'RingHash')",
    "message": "hashOn: with RingHash, and with nothing else",
}]))]
pub struct LoadBalancer {
    /// How it is chosen.
    #[serde(default)]
    pub algorithm: Algorithm,
    /// By what `RingHash` tells clients apart. A request without it goes where it would without a policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_on: Option<HashOn>,
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

/// How many requests to the Service's pods may be under way. Others are answered with 503.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CircuitBreaker {
    /// At a time, from the request's head to the end of its answer.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_requests: u32,
    /// How many others wait for their turn; by default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1_000_000))]
    pub max_pending: Option<u32>,
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
            let message = "says nothing: set at least one of loadBalancer, outlierDetection, circuitBreaker, retryBudget, rateLimit";
            errors.add("spec", message);
        }
        if let Some(balancer) = &spec.load_balancer {
            balancer.validate("spec.loadBalancer", &mut errors);
        }
        if let Some(detection) = &spec.outlier_detection {
            detection.validate("spec.outlierDetection", &mut errors);
        }
        if let Some(breaker) = &spec.circuit_breaker {
            let path = "spec.circuitBreaker";
            number(
                breaker.max_requests,
                1,
                &format!("{path}.maxRequests"),
                &mut errors,
            );
            number(
                breaker.max_pending,
                0,
                &format!("{path}.maxPending"),
                &mut errors,
            );
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
    let bounds = least..=1_000_000;
    if let Some(value) = value.into().filter(|value| !bounds.contains(value)) {
        errors.add(path, format!("{value} is not between {least} and 1000000"));
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
        let spec = "{targetRefs: [{kind: Service, name: web}], loadBalancer: {algorithm: RingHash, hashOn: {type: Cookie, name: a}}, outlierDetection: {consecutiveFailures: 3, ejectionTime: 1s, maxEjectionTime: 1m30s, maxEjectedPercent: 50}, circuitBreaker: {maxRequests: 10, maxPending: 5}, retryBudget: {percent: 10, minPerSecond: 0, interval: 30s}, rateLimit: {requests: 10, unit: Minute, burst: 20, per: {type: Header, name: x-tenant}}}";
        assert_eq!(problems(spec), [""; 0]);
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
            ("loadBalancer: {slowStart: 1s}", "loadBalancer.slowStart"),
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
