//! The judgement, written from the specification's words.

use std::net::IpAddr;

use ipnet::IpNet;
use seine_policy::{Action, Match, Policy, ServiceAccountMatch, StringMatch};

/// A connection in the specification's terms.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) port: u16,
    /// Trust domain, namespace, service account.
    pub(crate) peer: Option<(String, String, String)>,
    /// What is asked for, where that is seen.
    pub(crate) asked: Option<AskedFor>,
}

/// A request in the specification's terms.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "node proxies, whose test has this too, see none")]
pub(crate) struct AskedFor {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    /// Issuer, subject, and claims.
    pub(crate) token: Option<TokenFacts>,
}

/// A token that was verified.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "likewise")]
pub(crate) struct TokenFacts {
    pub(crate) issuer: &'static str,
    pub(crate) subject: Option<&'static str>,
    /// Of a list each element.
    pub(crate) claims: Vec<(&'static [&'static str], &'static str)>,
}

pub(crate) fn allowed(policies: &[&Policy], facts: &Facts) -> bool {
    let of = |action| policies.iter().filter(move |p| p.action == action);
    if of(Action::Deny).any(|p| policy_matches(p, facts)) {
        return false;
    }
    if of(Action::Allow).count() == 0 {
        return true;
    }
    of(Action::Allow).any(|p| policy_matches(p, facts))
}

fn policy_matches(policy: &Policy, facts: &Facts) -> bool {
    let mut matched = false;
    for rule in &policy.rules {
        let mut rule_matched = true;
        for clause in &rule.clauses {
            let mut clause_matched = clause.matches.is_empty();
            for m in &clause.matches {
                if match_matches(m, facts, policy.action) {
                    clause_matched = true;
                }
            }
            if !clause_matched {
                rule_matched = false;
            }
        }
        if rule_matched {
            matched = true;
        }
    }
    matched
}

fn match_matches(m: &Match, facts: &Facts, action: Action) -> bool {
    let principal = facts
        .peer
        .as_ref()
        .map(|(td, ns, sa)| format!("{td}/ns/{ns}/sa/{sa}"));
    let namespace = facts.peer.as_ref().map(|(_, ns, _)| ns.clone());
    let text = |value: &Option<String>, how: &StringMatch| match (value, how) {
        (None, _) => false,
        (Some(value), StringMatch::Exact(x)) => value == &**x,
        (Some(value), StringMatch::Prefix(x)) => value.len() >= x.len() && value[..x.len()] == **x,
        (Some(value), StringMatch::Suffix(x)) => {
            value.len() >= x.len() && value[value.len() - x.len()..] == **x
        }
        (Some(value), StringMatch::Presence) => !value.is_empty(),
    };
    let account = |a: &ServiceAccountMatch| match &facts.peer {
        Some((_, ns, sa)) => *ns == *a.namespace && *sa == *a.name,
        None => false,
    };
    // One entry for each kind that is present: whether it holds.
    let mut kinds: Vec<bool> = Vec::new();
    let mut positive = |present: bool, hit: bool| {
        if present {
            kinds.push(hit);
        }
    };
    positive(
        !m.namespaces.is_empty(),
        m.namespaces.iter().any(|s| text(&namespace, s)),
    );
    positive(
        !m.not_namespaces.is_empty(),
        !m.not_namespaces.iter().any(|s| text(&namespace, s)),
    );
    positive(
        !m.principals.is_empty(),
        m.principals.iter().any(|s| text(&principal, s)),
    );
    positive(
        !m.not_principals.is_empty(),
        !m.not_principals.iter().any(|s| text(&principal, s)),
    );
    positive(
        !m.source_ips.is_empty(),
        m.source_ips.iter().any(|n| within(n, facts.source)),
    );
    positive(
        !m.not_source_ips.is_empty(),
        !m.not_source_ips.iter().any(|n| within(n, facts.source)),
    );
    positive(
        !m.destination_ips.is_empty(),
        m.destination_ips
            .iter()
            .any(|n| within(n, facts.destination)),
    );
    positive(
        !m.not_destination_ips.is_empty(),
        !m.not_destination_ips
            .iter()
            .any(|n| within(n, facts.destination)),
    );
    positive(
        !m.destination_ports.is_empty(),
        m.destination_ports.contains(&facts.port),
    );
    positive(
        !m.not_destination_ports.is_empty(),
        !m.not_destination_ports.contains(&facts.port),
    );
    positive(
        !m.service_accounts.is_empty(),
        m.service_accounts.iter().any(account),
    );
    positive(
        !m.not_service_accounts.is_empty(),
        !m.not_service_accounts.iter().any(account),
    );
    if m.unknown_condition {
        kinds.push(action == Action::Deny);
    }
    match (&facts.asked, m.request.is_some() || m.token.is_some()) {
        (_, false) => {}
        (None, true) => kinds.push(action == Action::Deny),
        (Some(asked), true) => kinds.push(asked_for_matches(m, asked, &text)),
    }
    !kinds.is_empty() && kinds.into_iter().all(|holds| holds)
}

/// "A kind of a request that isn't there holds if it is negative."
fn asked_for_matches(
    m: &Match,
    asked: &AskedFor,
    text: &impl Fn(&Option<String>, &StringMatch) -> bool,
) -> bool {
    let mut holds = Vec::new();
    let mut both = |positive: &[StringMatch], negative: &[StringMatch], found: &[String]| {
        let any = |list: &[StringMatch]| {
            let mut pairs = list
                .iter()
                .flat_map(|how| found.iter().map(move |one| (how, one)));
            pairs.any(|(how, one)| text(&Some(one.clone()), how))
        };
        holds.push(positive.is_empty() || any(positive));
        holds.push(!any(negative));
    };
    if let Some(request) = &m.request {
        let methods = |list: &[Box<str>]| -> Vec<StringMatch> {
            list.iter().cloned().map(StringMatch::Exact).collect()
        };
        let method = [asked.method.to_owned()];
        both(
            &methods(&request.methods),
            &methods(&request.not_methods),
            &method,
        );
        both(&request.paths, &request.not_paths, &[asked.path.to_owned()]);
    }
    if let Some(wanted) = &m.token {
        let token = asked.token.as_ref();
        let principal = token.and_then(|token| {
            let subject = token.subject?;
            Some(format!("{}/{subject}", token.issuer))
        });
        let principal: Vec<String> = principal.into_iter().collect();
        both(&wanted.principals, &wanted.not_principals, &principal);
        for claim in &wanted.claims {
            let mut values = Vec::new();
            for (path, value) in token.iter().flat_map(|token| &token.claims) {
                if path.len() == claim.path.len()
                    && path.iter().zip(&claim.path).all(|(a, b)| **a == **b)
                {
                    values.push((*value).to_owned());
                }
            }
            both(&claim.values, &claim.not_values, &values);
        }
    }
    holds.into_iter().all(|holds| holds)
}

/// Bit by bit.
fn within(block: &IpNet, address: IpAddr) -> bool {
    let bits = |address: IpAddr| -> Vec<bool> {
        let bytes = match address {
            IpAddr::V4(v4) => v4.octets().to_vec(),
            IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        bytes
            .iter()
            .flat_map(|b| (0..8).rev().map(move |i| b >> i & 1 == 1))
            .collect()
    };
    let (a, b) = (bits(block.addr()), bits(address));
    a.len() == b.len() && (0..usize::from(block.prefix_len())).all(|i| a[i] == b[i])
}
