//! Whether policy allows a request, or a connection that nobody parses.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, request};
use seine_policy::{Applicable, Connection, Decision, verdict};
use seine_workload::Service;
use tokio::time::{Instant, timeout_at};

use crate::bind::Bound;
use crate::head::Head;
use crate::shared::Shared;
use crate::token::Verified;

/// A request, and its token if it has a valid one.
pub(crate) type Asked<'a> = (&'a Head, &'a request::Parts, Option<&'a Verified>);

/// Judges a request, or without one a connection that nobody parses, by the policies of the service; where a pod is
/// addressed, of every service that leads there.
pub(crate) async fn judge(shared: &Shared, bound: &Bound, request: Option<Asked<'_>>) -> Decision {
    let mut decision = judge_as(shared, bound, &bound.service, bound.destination, request).await;
    for (service, port) in bound.pod.iter().flat_map(|pod| pod.also.iter()) {
        if !decision.allowed {
            break;
        }
        let address = service
            .addresses
            .iter()
            .find_map(|address| address.single());
        let address = address.unwrap_or(bound.destination.ip());
        let destination = SocketAddr::new(address, *port);
        let other = judge_as(shared, bound, service, destination, request).await;
        let asks = [&decision.asks[..], &other.asks].concat();
        decision = stricter(decision, other);
        if decision.allowed {
            decision.asks = asks;
        }
    }
    decision
}

/// Of two that both hold: a denial before what would be one, and that before what is allowed.
fn stricter(one: Decision, other: Decision) -> Decision {
    let rank = |decision: &Decision| (!decision.allowed, decision.would_deny());
    match rank(&other) > rank(&one) {
        true => other,
        false => one,
    }
}

/// By the policies of one service. Waits for those that are known by name alone, for at most the configured time.
async fn judge_as(
    shared: &Shared,
    bound: &Bound,
    service: &Arc<Service>,
    destination: SocketAddr,
    request: Option<Asked<'_>>,
) -> Decision {
    let mut changes = shared.store.changed();
    let deadline = Instant::now() + shared.config.policy_wait;
    loop {
        changes.mark_unchanged();
        let current = shared.store.service(&service.key);
        let current = current.as_ref().unwrap_or(service);
        let missing = match shared.store.policies_at_waypoint(current) {
            Applicable::Ready(policies) if policies.is_empty() => {
                return verdict_on(bound, destination, &[], None);
            }
            Applicable::Ready(policies) => {
                let texts = request.map(|(_, parts, _)| texts(&parts.headers));
                let asked = request.zip(texts.as_ref()).map(|(asked, texts)| {
                    let pairs = texts.iter().map(|(name, value)| (*name, value.as_str()));
                    (asked, pairs.collect::<Vec<_>>())
                });
                let asked =
                    asked
                        .as_ref()
                        .map(|((head, parts, token), headers)| seine_policy::Request {
                            method: parts.method.as_str(),
                            path: &head.path,
                            host: &head.host,
                            headers,
                            token: token.map(|token| seine_policy::Token {
                                principal: token.principal.as_deref(),
                                claims: &token.claims,
                            }),
                        });
                return verdict_on(bound, destination, &policies, asked);
            }
            Applicable::Missing(missing) => missing,
        };
        match timeout_at(deadline, changes.changed()).await {
            Ok(Ok(())) => {}
            // The store lives as long as the process.
            Ok(Err(_)) | Err(_) => return Decision::missing(missing),
        }
    }
}

fn verdict_on(
    bound: &Bound,
    destination: SocketAddr,
    policies: &[Arc<seine_policy::Policy>],
    request: Option<seine_policy::Request<'_>>,
) -> Decision {
    let connection = Connection {
        source: bound.first.address,
        destination,
        identity: bound.first.identity.as_ref(),
        request,
    };
    verdict(policies, &connection)
}

/// Bytes that are no UTF-8 become what no policy can name.
pub(crate) fn texts(headers: &HeaderMap) -> Vec<(&str, String)> {
    let pairs = headers.iter();
    pairs
        .map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.as_str(), value)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use seine_policy::{Audit, Reason};

    #[test]
    fn what_one_service_s_policies_deny_or_would_is_not_hidden_by_another_s() {
        let decision = |allowed, audit: Option<bool>| Decision {
            allowed,
            because: Reason::NoAllowPolicy,
            audit: audit.map(|allowed| {
                let because = Reason::NoAllowPolicy;
                Box::new(Audit { allowed, because })
            }),
            asks: Vec::new(),
        };
        let (allowed, would_deny, denied) = (
            decision(true, None),
            decision(true, Some(false)),
            decision(false, None),
        );
        let ladder = [&allowed, &would_deny, &denied];
        for (index, stronger) in ladder.iter().enumerate() {
            for weaker in &ladder[..index] {
                let both = |a: &Decision, b: &Decision| stricter(a.clone(), b.clone());
                assert_eq!(both(weaker, stronger), **stronger);
                assert_eq!(both(stronger, weaker), **stronger);
            }
        }
    }
}
