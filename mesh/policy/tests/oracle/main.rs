//! The verdict beside an oracle that was written from the specification's words, not from the code:
//! "Any DENY that matches denies; with no ALLOW, allow; any ALLOW that matches allows; else deny.
//! Rules OR, clauses AND, matches OR, kinds within a match AND, values OR, `not_` means none may
//! match. No rules never matches; a rule without clauses matches all; a clause without matches is
//! true; an empty match never matches. Principals are matched without `spiffe://`. A connection
//! without identity matches no positive principal. A service-account match ignores the trust
//! domain. Dry-run policies only log. What is asked of a request or its token never holds in an ALLOW
//! where no request is seen, and always in a DENY; a request without a token has no principal and no
//! claims, which no positive kind matches and every negative one does."

#![expect(
    clippy::unwrap_used,
    reason = "generators of tests, outside of the test functions"
)]

mod generate;
mod judge;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use generate::{Requests, Values};
use judge::{AskedFor, Facts, TokenFacts, allowed};
use proptest::prelude::*;
use seine_identity::Identity;
use seine_policy::{Action, Claim, Connection, Policy, Request, Token, explain, verdict};

const DOMAINS: [&str; 2] = ["cluster.local", "other.example"];
const NAMES: [&str; 3] = ["a", "b", "ab"];
const METHODS: [&str; 2] = ["GET", "POST"];
const PATHS: [&str; 3] = ["/", "/a", "/a/b"];
const ISSUERS: [&str; 2] = ["https://a", "https://a/b"];
const SUBJECTS: [&str; 3] = ["a", "b", "b/a"];
const CLAIMS: [&[&str]; 3] = [&["g"], &["g", "h"], &["g.h"]];
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
        requests: Some(Requests {
            methods: METHODS.to_vec(),
            paths: PATHS.to_vec(),
            principals: vec!["https://a/b", "https://a/b/a", "https://a/a"],
            claims: CLAIMS.to_vec(),
            values: NAMES.to_vec(),
        }),
    }
}

fn asked() -> impl Strategy<Value = Option<AskedFor>> {
    let claim = (prop::sample::select(&CLAIMS[..]), pick(&NAMES));
    let token = (
        pick(&ISSUERS),
        prop::option::weighted(0.9, pick(&SUBJECTS)),
        prop::collection::vec(claim, 0..4),
    )
        .prop_map(|(issuer, subject, claims)| TokenFacts {
            issuer,
            subject,
            claims,
        });
    let asked = (
        pick(&METHODS),
        pick(&PATHS),
        prop::option::weighted(0.7, token),
    )
        .prop_map(|(method, path, token)| AskedFor {
            method,
            path,
            token,
        });
    prop::option::weighted(0.8, asked)
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
        asked(),
    )
        .prop_map(|(source, destination, port, peer, asked)| Facts {
            source,
            destination,
            port,
            peer,
            asked,
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
        let token = facts.asked.as_ref().and_then(|asked| asked.token.as_ref());
        let principal = token.and_then(|token| {
            let subject = token.subject?;
            Some(format!("{}/{subject}", token.issuer))
        });
        let claims: Vec<Claim> = token.map_or(&[][..], |token| &token.claims).iter()
            .map(|(path, value)| Claim {
                path: path.iter().map(|name| Box::from(*name)).collect(),
                value: (*value).into(),
            })
            .collect();
        let connection = Connection {
            source: SocketAddr::new(facts.source, 40000),
            destination: SocketAddr::new(facts.destination, facts.port),
            identity: identity.as_ref(),
            request: facts.asked.as_ref().map(|asked| Request {
                method: asked.method,
                path: asked.path,
                host: "web",
                headers: &[],
                token: token.map(|_| Token { principal: principal.as_deref(), claims: &claims }),
            }),
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
            let mut matches = alone.rules.iter().flat_map(|r| r.clauses.iter().flat_map(|c| &c.matches));
            let unseen = facts.asked.is_none();
            if matches.any(|m| m.unknown_condition || (unseen && (m.request.is_some() || m.token.is_some()))) {
                continue;
            }
            alone.action = Action::Allow;
            prop_assert_eq!(step.matched.is_some(), allowed(&[&alone], &facts));
        }
    }
}
