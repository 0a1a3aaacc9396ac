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

mod generate;
mod judge;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use generate::Values;
use judge::{Facts, allowed};
use proptest::prelude::*;
use seine_identity::Identity;
use seine_policy::{Action, Connection, Policy, explain, verdict};

const DOMAINS: [&str; 2] = ["cluster.local", "other.example"];
const NAMES: [&str; 3] = ["a", "b", "ab"];
const ADDRESSES: [&str; 5] = ["10.0.0.1", "10.0.0.2", "10.1.0.1", "fd00::1", "fd01::1"];

fn values() -> Values {
    let blocks = [
        "10.0.0.0/24",
        "10.0.0.1/32",
        "10.0.0.0/8",
        "0.0.0.0/0",
        "fd00::/64",
        "::/0",
        "fd01::1/128",
    ];
    Values {
        names: NAMES.to_vec(),
        principals: vec![
            "cluster.local/ns/a/sa/a",
            "cluster.local/ns/ab/sa/b",
            "other.example/ns/a/sa/a",
            "cluster.local/ns/b/sa/ab",
            "spiffe://cluster.local/ns/a/sa/a",
        ],
        blocks: blocks.map(|block| block.parse().unwrap()).to_vec(),
        ports: vec![80, 443],
    }
}

fn pick(from: &'static [&'static str]) -> impl Strategy<Value = &'static str> {
    prop::sample::select(from)
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
        policies in prop::collection::vec(values().policy("a"), 0..4),
        facts in facts(),
    ) {
        let identity: Option<Identity> = facts.peer.as_ref().map(|(td, ns, sa)| {
            format!("spiffe://{td}/ns/{ns}/sa/{sa}").parse().unwrap()
        });
        let connection = Connection {
            source: SocketAddr::new(facts.source, 40000),
            destination: SocketAddr::new(facts.destination, facts.port),
            identity: identity.as_ref(),
            request: None,
        };
        let shared: Vec<_> = policies.iter().cloned().map(Arc::new).collect();
        let decision = verdict(&shared, &connection);

        let enforced: Vec<&Policy> = policies.iter().filter(|p| !p.dry_run).collect();
        prop_assert_eq!(decision.allowed, allowed(&enforced, &facts));

        let all: Vec<&Policy> = policies.iter().filter(|p| !p.enforced_only).collect();
        match &decision.audit {
            Some(audit) => prop_assert_eq!(audit.allowed, allowed(&all, &facts)),
            None => prop_assert_eq!(enforced.len(), policies.len()),
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
            prop_assert_eq!(step.matched.is_some(), allowed(&[&alone], &facts));
        }
    }
}
