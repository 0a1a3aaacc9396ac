//! The verdict beside an oracle that was written from the specification's words, not from the code:
//! "Any DENY that matches denies; with no ALLOW, allow; any ALLOW that matches allows; else deny.
//! Rules OR, clauses AND, matches OR, kinds within a match AND, values OR, `not_` means none may
//! match. No rules never matches; a rule without clauses matches all; a clause without matches is
//! true; an empty match never matches. Principals are matched without `spiffe://`. A connection
//! without identity matches no positive principal. A service-account match ignores the trust
//! domain. Dry-run policies only log."

#![expect(
    clippy::unwrap_used,
    reason = "generators of tests, outside of the test functions"
)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use proptest::prelude::*;
use seine_identity::Identity;
use seine_policy::{
    Action, Clause, Connection, Match, Policy, PolicyKey, Rule, Scope, ServiceAccountMatch,
    StringMatch, explain, verdict,
};

/// A connection in the specification's terms.
#[derive(Clone, Debug)]
struct Facts {
    source: IpAddr,
    destination: IpAddr,
    port: u16,
    /// Trust domain, namespace, service account.
    peer: Option<(String, String, String)>,
}

mod oracle {
    use super::*;

    pub(super) fn allowed(policies: &[&Policy], facts: &Facts) -> bool {
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
            (Some(value), StringMatch::Prefix(x)) => {
                value.len() >= x.len() && value[..x.len()] == **x
            }
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
        !kinds.is_empty() && kinds.into_iter().all(|holds| holds)
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
}

const DOMAINS: [&str; 2] = ["cluster.local", "other.example"];
const NAMES: [&str; 3] = ["a", "b", "ab"];
const ADDRESSES: [&str; 5] = ["10.0.0.1", "10.0.0.2", "10.1.0.1", "fd00::1", "fd01::1"];
const BLOCKS: [&str; 7] = [
    "10.0.0.0/24",
    "10.0.0.1/32",
    "10.0.0.0/8",
    "0.0.0.0/0",
    "fd00::/64",
    "::/0",
    "fd01::1/128",
];

fn pick(from: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
    prop::sample::select(from)
}

fn string_match(values: &'static [&'static str]) -> impl Strategy<Value = StringMatch> {
    let exact = pick(values).prop_map(|v| StringMatch::Exact(v.into()));
    let cut = |v: &str, n: usize| v.len().min(n);
    prop_oneof![
        exact,
        (pick(values), 0..40usize)
            .prop_map(move |(v, n)| StringMatch::Prefix(v[..cut(v, n)].into())),
        (pick(values), 0..40usize)
            .prop_map(move |(v, n)| StringMatch::Suffix(v[v.len() - cut(v, n)..].into())),
        Just(StringMatch::Presence),
    ]
}

const PRINCIPALS: [&str; 5] = [
    "cluster.local/ns/a/sa/a",
    "cluster.local/ns/ab/sa/b",
    "other.example/ns/a/sa/a",
    "cluster.local/ns/b/sa/ab",
    "spiffe://cluster.local/ns/a/sa/a",
];

/// Mostly absent, so that a match has few kinds.
fn few<T: std::fmt::Debug + Clone>(one: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    (0..6u8, prop::collection::vec(one, 1..3))
        .prop_map(|(n, values)| if n == 0 { values } else { Vec::new() })
}

fn account() -> impl Strategy<Value = ServiceAccountMatch> {
    (pick(&NAMES), pick(&NAMES)).prop_map(|(namespace, name)| ServiceAccountMatch {
        namespace: namespace.into(),
        name: name.into(),
    })
}

fn a_match() -> impl Strategy<Value = Match> {
    let block = || pick(&BLOCKS).prop_map(|b| b.parse::<IpNet>().unwrap());
    let port = || prop::sample::select(vec![80u16, 443]);
    (
        (few(string_match(&NAMES)), few(string_match(&NAMES))),
        (
            few(string_match(&PRINCIPALS)),
            few(string_match(&PRINCIPALS)),
        ),
        (few(block()), few(block()), few(block()), few(block())),
        (few(port()), few(port())),
        (few(account()), few(account())),
        prop::bool::weighted(0.05),
    )
        .prop_map(
            |(namespaces, principals, ips, ports, accounts, unknown_condition)| Match {
                namespaces: namespaces.0,
                not_namespaces: namespaces.1,
                principals: principals.0,
                not_principals: principals.1,
                source_ips: ips.0,
                not_source_ips: ips.1,
                destination_ips: ips.2,
                not_destination_ips: ips.3,
                destination_ports: ports.0,
                not_destination_ports: ports.1,
                service_accounts: accounts.0,
                not_service_accounts: accounts.1,
                unknown_condition,
            },
        )
}

fn policy() -> impl Strategy<Value = Policy> {
    let clause = prop::collection::vec(a_match(), 0..3).prop_map(|matches| Clause { matches });
    let rule = prop::collection::vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    let rules = prop::collection::vec(rule, 0..3);
    (rules, any::<bool>(), prop::bool::weighted(0.2)).prop_map(|(rules, deny, dry_run)| Policy {
        key: PolicyKey {
            namespace: "a".into(),
            name: "p".into(),
        },
        scope: Scope::Namespace,
        action: if deny { Action::Deny } else { Action::Allow },
        dry_run,
        rules,
        unenforced_fields: Vec::new(),
    })
}

fn facts() -> impl Strategy<Value = Facts> {
    let address = || pick(&ADDRESSES).prop_map(|a| a.parse::<IpAddr>().unwrap());
    let peer = (pick(&DOMAINS), pick(&NAMES), pick(&NAMES))
        .prop_map(|(td, ns, sa)| (td.to_owned(), ns.to_owned(), sa.to_owned()));
    (
        address(),
        address(),
        prop::sample::select(vec![80u16, 443, 8080]),
        prop::option::weighted(0.8, peer),
    )
        .prop_map(|(source, destination, port, peer)| Facts {
            source,
            destination,
            port,
            peer,
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..Default::default() })]

    #[test]
    fn the_verdict_is_the_oracles_and_its_explanation_the_same(
        policies in prop::collection::vec(policy(), 0..4),
        facts in facts(),
    ) {
        let identity: Option<Identity> = facts.peer.as_ref().map(|(td, ns, sa)| {
            format!("spiffe://{td}/ns/{ns}/sa/{sa}").parse().unwrap()
        });
        let connection = Connection {
            source: SocketAddr::new(facts.source, 40000),
            destination: SocketAddr::new(facts.destination, facts.port),
            identity: identity.as_ref(),
        };
        let shared: Vec<_> = policies.iter().cloned().map(Arc::new).collect();
        let decision = verdict(&shared, &connection);

        let enforced: Vec<&Policy> = policies.iter().filter(|p| !p.dry_run).collect();
        prop_assert_eq!(decision.allowed, oracle::allowed(&enforced, &facts));

        let all: Vec<&Policy> = policies.iter().collect();
        match &decision.audit {
            Some(audit) => prop_assert_eq!(audit.allowed, oracle::allowed(&all, &facts)),
            None => prop_assert_eq!(enforced.len(), all.len()),
        }

        let explanation = explain(&shared, &connection);
        prop_assert_eq!(&explanation.decision, &decision);
        prop_assert_eq!(explanation.steps.len(), policies.len());
        for step in &explanation.steps {
            // Each policy by itself, as an ALLOW: it allows just if the step says that it matches.
            let mut alone = (*step.policy).clone();
            if alone.rules.iter().any(|r| r.clauses.iter().any(|c| c.matches.iter().any(|m| m.unknown_condition))) {
                continue;
            }
            alone.action = Action::Allow;
            prop_assert_eq!(step.matched.is_some(), oracle::allowed(&[&alone], &facts));
        }
    }
}
