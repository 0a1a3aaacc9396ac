//! A `TrafficPolicy` as it is obeyed, parsed from the wire. The defaults are what holds without one.

use std::borrow::Cow;
use std::time::Duration;

use http::{HeaderMap, HeaderName};
use seine_proto::waypoint::{self as wire, load_balancer, request_key};

use crate::bind::First;
use crate::cookie::cookie;

/// How the requests to a service and its pods are treated.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) algorithm: Algorithm,
    pub(crate) outlier: Outlier,
    /// Requests stay in a zone as long as this percentage of its endpoints is healthy.
    pub(crate) zone_aware: Option<u32>,
    pub(crate) slow_start: Option<SlowStart>,
    pub(crate) breaker: Option<Breaker>,
    /// How many connections there may be to its endpoints.
    pub(crate) connections: Option<usize>,
    pub(crate) adaptive: Option<Adaptive>,
    pub(crate) budget: BudgetSize,
    pub(crate) rate: Option<Rate>,
}

/// Which endpoint gets a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Algorithm {
    /// Of two at random the one that would answer sooner.
    #[default]
    PeakEwma,
    /// Of two at random the one with fewer requests under way.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// The same one for the same value; without the value as by default.
    RingHash(RequestKey),
}

/// What of a request tells clients apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RequestKey {
    Header(HeaderName),
    Cookie(String),
    /// Of the first client.
    SourceAddress,
    Identity,
}

/// When an endpoint that fails gets nothing for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outlier {
    /// Failures in a row after which it is ejected.
    pub(crate) failures: u32,
    /// How long that is, times how often it happened.
    pub(crate) ejection: Duration,
    pub(crate) max_ejection: Duration,
    /// Of the service's endpoints at most this share is.
    pub(crate) max_percent: usize,
}

impl Default for Outlier {
    fn default() -> Self {
        Self {
            failures: 5,
            ejection: Duration::from_secs(10),
            max_ejection: Duration::from_secs(300),
            max_percent: 100,
        }
    }
}

/// How an endpoint that just came is spared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlowStart {
    pub(crate) window: Duration,
    /// 100 is Envoy's 1.0.
    pub(crate) aggression_percent: u32,
    pub(crate) min_percent: u32,
}

/// Between what the limit of requests under way is found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Adaptive {
    pub(crate) min: u32,
    pub(crate) max: u32,
    /// How long answers may take of their usual time.
    pub(crate) tolerance_percent: u32,
}

/// How many requests may be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// At a time.
    pub max_requests: usize,
    /// How many more wait.
    pub max_pending: usize,
}

/// How many requests may be sent again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BudgetSize {
    /// Of those of the last seconds.
    pub(crate) percent: u64,
    /// In a second, if the share is less.
    pub(crate) min_per_second: u64,
    /// How many seconds; at most [`BudgetSize::MAX_SECONDS`].
    pub(crate) seconds: u64,
}

impl BudgetSize {
    /// For each of them something is remembered.
    pub(crate) const MAX_SECONDS: u64 = 60;
}

/// The Gateway API's defaults of a budget (GEP-3388): a fifth of the requests of the last ten seconds, and so that
/// few requests have retries too, ten for each second.
impl Default for BudgetSize {
    fn default() -> Self {
        Self {
            percent: 20,
            min_per_second: 10,
            seconds: 10,
        }
    }
}

/// How many requests clients may make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// After this time one more.
    pub(crate) every: Duration,
    /// How many at once.
    pub(crate) burst: u32,
    /// Each value has a limit of its own.
    pub(crate) per: Option<RequestKey>,
}

impl Policy {
    /// It looks at where endpoints are, or for how long.
    pub(crate) fn places(&self) -> bool {
        self.zone_aware.is_some() || self.slow_start.is_some()
    }

    /// Reads a policy; the error says what is wrong where.
    pub(crate) fn parse(message: &wire::TrafficPolicy) -> Result<Self, String> {
        let mut policy = Self::default();
        if let Some(balancer) = &message.load_balancer {
            policy.algorithm = algorithm(balancer)?;
            let percent = balancer.zone_min_healthy_percent;
            policy.zone_aware = (percent > 0).then_some(percent);
            policy.slow_start = balancer.slow_start.as_ref().map(slow_start).transpose()?;
            if policy.places() && matches!(policy.algorithm, Algorithm::RingHash(_)) {
                return Err("load_balancer: by hashes neither zones nor ages count".into());
            }
        }
        if let Some(detection) = &message.outlier_detection {
            policy.outlier = outlier(detection);
        }
        if let Some(breaker) = &message.circuit_breaker {
            let wire::CircuitBreaker {
                max_requests,
                max_pending,
                max_connections,
            } = *breaker;
            if max_requests == 0 && (max_connections == 0 || max_pending > 0) {
                return Err("circuit_breaker: 0 requests let nothing through".into());
            }
            policy.breaker = (max_requests > 0).then(|| Breaker {
                max_requests: usize_of(max_requests),
                max_pending: usize_of(max_pending),
            });
            policy.connections = (max_connections > 0).then(|| usize_of(max_connections));
        }
        if let Some(adaptive) = &message.adaptive_concurrency {
            let (min, max) = (adaptive.min, adaptive.max);
            positive(min, "adaptive_concurrency.min")?;
            if min > max {
                return Err(format!("adaptive_concurrency: {min} is more than {max}"));
            }
            policy.adaptive = Some(Adaptive {
                min,
                max,
                tolerance_percent: adaptive.tolerance_percent.max(100),
            });
        }
        if let Some(budget) = &message.retry_budget {
            let default = BudgetSize::default();
            let or = |value: Option<u32>, default| value.map_or(default, u64::from);
            policy.budget = BudgetSize {
                percent: or(budget.percent, default.percent),
                min_per_second: or(budget.min_per_second, default.min_per_second),
                seconds: or(budget.interval_s, default.seconds).clamp(1, BudgetSize::MAX_SECONDS),
            };
        }
        if let Some(limit) = &message.rate_limit {
            positive(limit.requests, "rate_limit.requests")?;
            positive(limit.burst, "rate_limit.burst")?;
            let unit = Duration::from_millis(limit.unit_ms);
            let every = unit / limit.requests;
            if every.is_zero() {
                return Err(format!("rate_limit: {limit:?} is no rate"));
            }
            policy.rate = Some(Rate {
                every,
                burst: limit.burst,
                per: limit.per.as_ref().map(request_key).transpose()?,
            });
        }
        Ok(policy)
    }
}

fn algorithm(message: &wire::LoadBalancer) -> Result<Algorithm, String> {
    let known = load_balancer::Algorithm::try_from(message.algorithm);
    Ok(match known.map_err(|error| error.to_string())? {
        load_balancer::Algorithm::PeakEwma => Algorithm::PeakEwma,
        load_balancer::Algorithm::LeastRequest => Algorithm::LeastRequest,
        load_balancer::Algorithm::RoundRobin => Algorithm::RoundRobin,
        load_balancer::Algorithm::RingHash => {
            let on = message.hash_on.as_ref();
            let on = on.ok_or("load_balancer: hash_on is missing")?;
            Algorithm::RingHash(request_key(on)?)
        }
    })
}

fn slow_start(message: &wire::SlowStart) -> Result<SlowStart, String> {
    positive(message.aggression_percent, "slow_start.aggression_percent")?;
    Ok(SlowStart {
        window: Duration::from_millis(message.window_ms),
        aggression_percent: message.aggression_percent,
        min_percent: message.min_percent.clamp(1, 100),
    })
}

fn outlier(message: &wire::OutlierDetection) -> Outlier {
    let default = Outlier::default();
    let millis = |value: Option<u64>, default| value.map_or(default, Duration::from_millis);
    let failures = message.consecutive_failures.unwrap_or(default.failures);
    let percent = message.max_ejected_percent.map(usize_of);
    Outlier {
        failures: failures.max(1),
        ejection: millis(message.ejection_ms, default.ejection),
        max_ejection: millis(message.max_ejection_ms, default.max_ejection),
        max_percent: percent.unwrap_or(default.max_percent),
    }
}

fn request_key(message: &wire::RequestKey) -> Result<RequestKey, String> {
    Ok(match &message.of {
        Some(request_key::Of::Header(name)) => {
            let parsed = name.parse();
            RequestKey::Header(parsed.map_err(|_| format!("{name:?} is no header"))?)
        }
        Some(request_key::Of::Cookie(name)) => RequestKey::Cookie(name.clone()),
        Some(request_key::Of::SourceAddress(_)) => RequestKey::SourceAddress,
        Some(request_key::Of::Identity(_)) => RequestKey::Identity,
        None => return Err("an unknown part of a request".into()),
    })
}

impl RequestKey {
    /// Its value in a request.
    pub(crate) fn value<'a>(&self, first: &First, headers: &'a HeaderMap) -> Option<Cow<'a, [u8]>> {
        match self {
            Self::Header(name) => headers.get(name).map(|value| value.as_bytes().into()),
            Self::Cookie(name) => cookie(headers, name).map(|value| value.as_bytes().into()),
            Self::SourceAddress => Some(first.address.ip().to_string().into_bytes().into()),
            Self::Identity => {
                let identity = first.identity.as_ref()?;
                Some(identity.to_string().into_bytes().into())
            }
        }
    }
}

fn positive(value: u32, field: &str) -> Result<usize, String> {
    match value {
        0 => Err(format!("{field}: 0 lets nothing through")),
        value => Ok(usize_of(value)),
    }
}

fn usize_of(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_policy_does_not_say_is_as_without_one_and_nonsense_is_refused() {
        let parse = |message: wire::TrafficPolicy| Policy::parse(&message);
        let none = wire::TrafficPolicy::default;
        assert_eq!(parse(none()).unwrap(), Policy::default());
        let detection = wire::OutlierDetection {
            max_ejected_percent: Some(50),
            ..wire::OutlierDetection::default()
        };
        let found = parse(wire::TrafficPolicy {
            outlier_detection: Some(detection),
            ..none()
        });
        let expected = Outlier {
            max_percent: 50,
            ..Outlier::default()
        };
        assert_eq!(found.unwrap().outlier, expected);
        let rate = |requests, unit_ms, burst| {
            parse(wire::TrafficPolicy {
                rate_limit: Some(wire::RateLimit {
                    requests,
                    unit_ms,
                    burst,
                    per: None,
                }),
                ..none()
            })
        };
        let every = rate(120, 60_000, 1).unwrap().rate.unwrap().every;
        assert_eq!(every, Duration::from_millis(500));
        assert!(rate(0, 1000, 1).is_err() && rate(1, 0, 1).is_err() && rate(1, 1000, 0).is_err());
        let balancer = |algorithm| {
            parse(wire::TrafficPolicy {
                load_balancer: Some(wire::LoadBalancer {
                    algorithm,
                    hash_on: None,
                    ..wire::LoadBalancer::default()
                }),
                ..none()
            })
        };
        assert!(balancer(99).is_err() && balancer(3).is_err());
        assert_eq!(balancer(2).unwrap().algorithm, Algorithm::RoundRobin);
    }

    #[test]
    fn what_lets_nothing_through_or_contradicts_itself_is_refused() {
        let breaker = |max_requests, max_pending, max_connections| {
            Policy::parse(&wire::TrafficPolicy {
                circuit_breaker: Some(wire::CircuitBreaker {
                    max_requests,
                    max_pending,
                    max_connections,
                }),
                ..wire::TrafficPolicy::default()
            })
        };
        let found = breaker(0, 0, 7).unwrap();
        assert_eq!((found.breaker, found.connections), (None, Some(7)));
        assert_eq!(breaker(1, 0, 0).unwrap().connections, None);
        assert!(breaker(0, 0, 0).is_err() && breaker(0, 1, 1).is_err());
        let adaptive = |min, max| {
            Policy::parse(&wire::TrafficPolicy {
                adaptive_concurrency: Some(wire::AdaptiveConcurrency {
                    min,
                    max,
                    tolerance_percent: 150,
                }),
                ..wire::TrafficPolicy::default()
            })
        };
        assert!(adaptive(1, 1).is_ok() && adaptive(0, 1).is_err() && adaptive(2, 1).is_err());
        let hashed = wire::LoadBalancer {
            algorithm: 3,
            hash_on: Some(wire::RequestKey {
                of: Some(request_key::Of::SourceAddress(true)),
            }),
            zone_min_healthy_percent: 70,
            ..wire::LoadBalancer::default()
        };
        let hashed = wire::TrafficPolicy {
            load_balancer: Some(hashed),
            ..wire::TrafficPolicy::default()
        };
        assert!(Policy::parse(&hashed).is_err());
    }
}
