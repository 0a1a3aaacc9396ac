//! The verdict, rule by rule.

use std::net::SocketAddr;
use std::sync::Arc;

use seine_identity::Identity;

use crate::{
    Action, Claim, ClaimMatch, Clause, Connection, HeaderMatch, Match, Policy, PolicyKey, Provider,
    ProviderProtocol, Reason, Request, RequestMatch, Rule, Scope, ServiceAccountMatch, StringMatch,
    Token, TokenMatch, explain, verdict,
};

fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Policy {
    Policy {
        key: PolicyKey {
            namespace: "shop".into(),
            name: name.into(),
        },
        scope: Scope::Namespace,
        action,
        dry_run: false,
        rules,
        enforced_only: false,
        provider: None,
        unenforced_fields: Vec::new(),
    }
}

fn rule(matches: Vec<Match>) -> Rule {
    Rule {
        clauses: vec![Clause { matches }],
    }
}

fn exact(text: &str) -> Vec<StringMatch> {
    vec![StringMatch::Exact(text.into())]
}

fn from_api() -> Match {
    Match {
        principals: exact("cluster.local/ns/shop/sa/api"),
        ..Match::default()
    }
}

/// What a connection from `identity` (or in plaintext) to 10.0.0.2:5432 gets.
fn judge(policies: &[Policy], identity: Option<&str>) -> crate::Decision {
    let identity: Option<Identity> = identity.map(|uri| uri.parse().unwrap());
    let policies: Vec<_> = policies.iter().cloned().map(Arc::new).collect();
    verdict(
        &policies,
        &Connection {
            source: "10.0.0.1:40000".parse::<SocketAddr>().unwrap(),
            destination: "10.0.0.2:5432".parse().unwrap(),
            identity: identity.as_ref(),
            request: None,
        },
    )
}

const API: Option<&str> = Some("spiffe://cluster.local/ns/shop/sa/api");
const WEB: Option<&str> = Some("spiffe://cluster.local/ns/shop/sa/web");
const OTHER: Option<&str> = Some("spiffe://other.example/ns/shop/sa/api");

#[test]
fn without_policies_everything_is_allowed() {
    for identity in [API, None] {
        let decision = judge(&[], identity);
        assert!(decision.allowed);
        assert_eq!(
            (decision.because, decision.audit),
            (Reason::NoAllowPolicy, None)
        );
    }
}

#[test]
fn an_allow_policy_denies_what_it_does_not_match() {
    let policies = [policy("db", Action::Allow, vec![rule(vec![from_api()])])];
    let key = policies[0].key.clone();
    assert_eq!(
        judge(&policies, API).because,
        Reason::Allowed {
            policy: key.clone(),
            rule: 0
        }
    );
    for denied in [WEB, OTHER, None] {
        let decision = judge(&policies, denied);
        assert!(!decision.allowed);
        assert_eq!(
            decision.because,
            Reason::NoAllowMatched {
                policy: key.clone(),
                policies: 1
            }
        );
    }
}

#[test]
fn a_deny_that_matches_wins_over_any_allow() {
    let allow = policy("allow", Action::Allow, vec![Rule::default()]);
    let deny = policy("deny", Action::Deny, vec![rule(vec![from_api()])]);
    for policies in [[allow.clone(), deny.clone()], [deny.clone(), allow]] {
        let decision = judge(&policies, API);
        assert_eq!(
            decision.because,
            Reason::Denied {
                policy: deny.key.clone(),
                rule: 0
            }
        );
        assert!(judge(&policies, WEB).allowed);
    }
}

#[test]
fn what_is_empty_matches_all_or_nothing_as_specified() {
    let table = [
        ("no rules never match", vec![], false),
        (
            "a rule without clauses matches all",
            vec![Rule::default()],
            true,
        ),
        ("a clause without matches is true", vec![rule(vec![])], true),
        (
            "an empty match never matches",
            vec![rule(vec![Match::default()])],
            false,
        ),
    ];
    for (what, rules, matches) in table {
        assert_eq!(
            judge(&[policy("p", Action::Allow, rules.clone())], API).allowed,
            matches,
            "{what}"
        );
        assert_eq!(
            judge(&[policy("p", Action::Deny, rules)], API).allowed,
            !matches,
            "{what}"
        );
    }
}

#[test]
fn strict_tls_is_a_deny_of_whoever_has_no_principal() {
    let plaintext = Match {
        not_principals: vec![StringMatch::Presence],
        ..Match::default()
    };
    let policies = [policy("strict", Action::Deny, vec![rule(vec![plaintext])])];
    assert!(judge(&policies, API).allowed);
    assert!(judge(&policies, OTHER).allowed);
    assert!(!judge(&policies, None).allowed);
}

#[test]
fn each_kind_matches_its_own_part_of_the_connection() {
    let block = |text: &str| vec![text.parse().unwrap()];
    let account = |namespace: &str, name: &str| {
        vec![ServiceAccountMatch {
            namespace: namespace.into(),
            name: name.into(),
        }]
    };
    let prefix = |text: &str| vec![StringMatch::Prefix(text.into())];
    let suffix = |text: &str| vec![StringMatch::Suffix(text.into())];
    let m = Match::default;
    #[rustfmt::skip]
    let table: Vec<(Match, Option<&str>, bool)> = vec![
        (Match { namespaces: exact("shop"), ..m() }, API, true),
        (Match { namespaces: exact("sho"), ..m() }, API, false),
        (Match { namespaces: exact("shop"), ..m() }, None, false),
        (Match { not_namespaces: exact("shop"), ..m() }, API, false),
        (Match { not_namespaces: exact("shop"), ..m() }, None, true),
        (Match { principals: prefix("cluster.local/ns/shop/"), ..m() }, WEB, true),
        (Match { principals: prefix("cluster.local/ns/shop/"), ..m() }, OTHER, false),
        (Match { principals: suffix("/sa/api"), ..m() }, OTHER, true),
        (Match { principals: exact("spiffe://cluster.local/ns/shop/sa/api"), ..m() }, API, false),
        (Match { principals: vec![StringMatch::Presence], ..m() }, API, true),
        (Match { principals: vec![StringMatch::Presence], ..m() }, None, false),
        (Match { source_ips: block("10.0.0.0/31"), ..m() }, None, true),
        (Match { source_ips: block("10.0.0.2/32"), ..m() }, None, false),
        (Match { not_source_ips: block("10.0.0.1/32"), ..m() }, None, false),
        (Match { destination_ips: block("10.0.0.2/32"), ..m() }, None, true),
        (Match { destination_ips: block("::/0"), ..m() }, None, false),
        (Match { not_destination_ips: block("10.0.0.2/32"), ..m() }, None, false),
        (Match { destination_ports: vec![80, 5432], ..m() }, None, true),
        (Match { destination_ports: vec![40000], ..m() }, None, false),
        (Match { not_destination_ports: vec![5432], ..m() }, None, false),
        (Match { service_accounts: account("shop", "api"), ..m() }, API, true),
        (Match { service_accounts: account("shop", "api"), ..m() }, OTHER, true),
        (Match { service_accounts: account("shop", "web"), ..m() }, API, false),
        (Match { service_accounts: account("shop", "api"), ..m() }, None, false),
        (Match { not_service_accounts: account("shop", "api"), ..m() }, API, false),
        // Kinds are AND.
        (Match { destination_ports: vec![5432], ..from_api() }, API, true),
        (Match { destination_ports: vec![80], ..from_api() }, API, false),
    ];
    for (wanted, identity, matches) in table {
        let policies = [policy("p", Action::Allow, vec![rule(vec![wanted.clone()])])];
        assert_eq!(
            judge(&policies, identity).allowed,
            matches,
            "{wanted:?} {identity:?}"
        );
    }
}

#[test]
fn clauses_are_and_while_matches_and_rules_are_or() {
    let web = Match {
        principals: exact("cluster.local/ns/shop/sa/web"),
        ..Match::default()
    };
    let port = |port| Match {
        destination_ports: vec![port],
        ..Match::default()
    };
    let either = rule(vec![from_api(), web]);
    assert!(judge(&[policy("p", Action::Allow, vec![either.clone()])], WEB).allowed);

    let mut both = either;
    both.clauses.push(Clause {
        matches: vec![port(80)],
    });
    assert!(!judge(&[policy("p", Action::Allow, vec![both.clone()])], WEB).allowed);

    let decision = judge(
        &[policy(
            "p",
            Action::Allow,
            vec![both, rule(vec![port(5432)])],
        )],
        WEB,
    );
    let policy = PolicyKey {
        namespace: "shop".into(),
        name: "p".into(),
    };
    assert_eq!(decision.because, Reason::Allowed { policy, rule: 1 });
}

#[test]
fn an_ipv4_client_of_a_dual_stack_socket_matches_ipv4_blocks() {
    let local = Match {
        source_ips: vec!["10.0.0.0/8".parse().unwrap()],
        ..Match::default()
    };
    let policies = [Arc::new(policy("p", Action::Deny, vec![rule(vec![local])]))];
    let connection = Connection {
        source: "[::ffff:10.0.0.1]:1".parse().unwrap(),
        destination: "[::ffff:10.0.0.2]:2".parse().unwrap(),
        identity: None,
        request: None,
    };
    assert!(!verdict(&policies, &connection).allowed);
}

#[test]
fn a_condition_that_is_not_known_never_allows_and_never_keeps_from_denying() {
    let m = Match {
        unknown_condition: true,
        ..from_api()
    };
    assert!(
        !judge(
            &[policy("p", Action::Allow, vec![rule(vec![m.clone()])])],
            API
        )
        .allowed
    );
    assert!(
        !judge(
            &[policy("p", Action::Deny, vec![rule(vec![m.clone()])])],
            API
        )
        .allowed
    );
    assert!(judge(&[policy("p", Action::Deny, vec![rule(vec![m])])], WEB).allowed);
}

#[test]
fn a_dry_run_policy_changes_nothing_but_what_would_be() {
    let mut deny = policy("audit", Action::Deny, vec![rule(vec![from_api()])]);
    deny.dry_run = true;
    let policies = [deny.clone()];
    let decision = judge(&policies, API);
    assert!(decision.allowed && decision.would_deny());
    let audit = decision.audit.unwrap();
    assert_eq!(
        audit.because,
        Reason::Denied {
            policy: deny.key,
            rule: 0
        }
    );
    assert!(!judge(&policies, WEB).would_deny());

    let mut allow = policy("audit", Action::Allow, vec![rule(vec![from_api()])]);
    allow.dry_run = true;
    assert!(!judge(std::slice::from_ref(&allow), API).would_deny());
    let decision = judge(&[allow], WEB);
    assert!(decision.allowed && decision.would_deny());
}

#[test]
fn an_explanation_names_every_policy_and_what_it_did() {
    let policies = [
        policy("db", Action::Allow, vec![rule(vec![from_api()])]),
        policy("never", Action::Deny, vec![]),
    ];
    let policies: Vec<_> = policies.into_iter().map(Arc::new).collect();
    let identity: Identity = WEB.unwrap().parse().unwrap();
    let explanation = explain(
        &policies,
        &Connection {
            source: "10.0.0.1:1".parse().unwrap(),
            destination: "10.0.0.2:2".parse().unwrap(),
            identity: Some(&identity),
            request: None,
        },
    );
    assert_eq!(
        explanation.to_string(),
        "ALLOW shop/db (namespace): none of 1 rules matches\n\
         DENY shop/never (namespace): has no rules and never matches\n\
         DENIED: not allowed by policy shop/db"
    );
}

/// Whether a match matches `GET web.shop/admin/x` with a header and perhaps a token, in either kind of policy.
fn matches_request(found: Match, action: Action, request: bool, token: Option<Token<'_>>) -> bool {
    let policy = policy("p", action, vec![rule(vec![found])]);
    let connection = Connection {
        source: "10.0.0.1:40000".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
        identity: None,
        request: request.then_some(Request {
            method: "GET",
            path: "/admin/x",
            host: "web.shop",
            headers: &[("x-a", "1"), ("x-a", "2")],
            token,
        }),
    };
    let allowed = verdict(&[Arc::new(policy)], &connection).allowed;
    allowed == (action == Action::Allow)
}

fn request_matches(wanted: RequestMatch, action: Action, request: bool) -> bool {
    let found = Match {
        request: Some(Box::new(wanted)),
        ..Match::default()
    };
    matches_request(found, action, request, None)
}

#[test]
fn a_token_is_matched_by_its_principal_and_claims_and_none_matches_negations_alone() {
    let claim = |path: &[&str], value: &str| Claim {
        path: path.iter().map(|name| Box::from(*name)).collect(),
        value: value.into(),
    };
    let claims = [
        claim(&["groups"], "a"),
        claim(&["groups"], "b"),
        claim(&["realm", "role"], "admin"),
        claim(&["realm.role"], "other"),
    ];
    let token = Token {
        principal: Some("https://issuer/alice"),
        claims: &claims,
    };
    let wanted = |path: &[&str], values: Vec<StringMatch>, not_values: Vec<StringMatch>| {
        let path = path.iter().map(|name| Box::from(*name)).collect();
        let claims = vec![ClaimMatch {
            path,
            values,
            not_values,
        }];
        TokenMatch {
            claims,
            ..TokenMatch::default()
        }
    };
    let of = |principals, not_principals| TokenMatch {
        principals,
        not_principals,
        ..TokenMatch::default()
    };
    let any = || vec![StringMatch::Presence];
    let prefix = |text: &str| vec![StringMatch::Prefix(text.into())];
    // What matches with the token, with one that names no subject and claims nothing, and without any.
    let table = [
        (
            of(exact("https://issuer/alice"), vec![]),
            [true, false, false],
        ),
        (of(prefix("https://issuer/"), vec![]), [true, false, false]),
        (
            of(exact("https://issuer/bob"), vec![]),
            [false, false, false],
        ),
        (of(any(), vec![]), [true, false, false]),
        (of(vec![], any()), [false, true, true]),
        (
            of(any(), exact("https://issuer/alice")),
            [false, false, false],
        ),
        (
            wanted(&["groups"], exact("b"), vec![]),
            [true, false, false],
        ),
        (
            wanted(&["groups"], exact("c"), vec![]),
            [false, false, false],
        ),
        (
            wanted(&["groups"], exact("a"), exact("b")),
            [false, false, false],
        ),
        (wanted(&["groups"], vec![], exact("b")), [false, true, true]),
        (
            wanted(&["realm", "role"], exact("admin"), vec![]),
            [true, false, false],
        ),
        (
            wanted(&["realm.role"], exact("admin"), vec![]),
            [false, false, false],
        ),
        (wanted(&["realm"], any(), vec![]), [false, false, false]),
    ];
    let bare = Token {
        principal: None,
        claims: &[],
    };
    for (wanted, expected) in table {
        let found = || Match {
            token: Some(Box::new(wanted.clone())),
            ..Match::default()
        };
        for action in [Action::Allow, Action::Deny] {
            for (token, expected) in [Some(token), Some(bare), None].into_iter().zip(expected) {
                let matched = matches_request(found(), action, true, token);
                assert_eq!(matched, expected, "{wanted:?} {token:?} {action:?}");
            }
            // Where nobody sees requests, an ALLOW never matches and a DENY as if the condition held.
            let unseen = matches_request(found(), action, false, None);
            assert_eq!(unseen, action == Action::Deny);
        }
    }
}

#[test]
fn each_part_of_a_request_must_match_and_none_of_its_negations_may() {
    let m = RequestMatch::default;
    let texts = |text: &str| vec![Box::from(text)];
    let prefix = |text: &str| vec![StringMatch::Prefix(text.into())];
    let header = |name: &str, value: &str| {
        vec![HeaderMatch {
            name: name.into(),
            values: exact(value),
        }]
    };
    #[rustfmt::skip]
    let table = [
        (m(), true),
        (RequestMatch { methods: texts("GET"), ..m() }, true),
        (RequestMatch { methods: texts("get"), ..m() }, false),
        (RequestMatch { not_methods: texts("GET"), ..m() }, false),
        (RequestMatch { not_methods: texts("POST"), ..m() }, true),
        (RequestMatch { paths: prefix("/admin/"), ..m() }, true),
        (RequestMatch { paths: exact("/admin"), ..m() }, false),
        (RequestMatch { not_paths: prefix("/admin"), ..m() }, false),
        (RequestMatch { hosts: exact("web.shop"), ..m() }, true),
        (RequestMatch { not_hosts: exact("web.shop"), ..m() }, false),
        (RequestMatch { headers: header("x-a", "2"), ..m() }, true),
        (RequestMatch { headers: header("x-a", "3"), ..m() }, false),
        (RequestMatch { headers: header("x-b", "1"), ..m() }, false),
        (RequestMatch { methods: texts("GET"), paths: exact("/"), ..m() }, false),
    ];
    for (wanted, matches) in table {
        for action in [Action::Allow, Action::Deny] {
            let found = request_matches(wanted.clone(), action, true);
            assert_eq!(found, matches, "{wanted:?} {action:?}");
        }
    }
}

#[test]
fn who_is_named_is_asked_about_what_is_allowed_otherwise_and_without_a_request_it_is_denied() {
    let provider = Arc::new(Provider {
        namespace: "shop".into(),
        hostname: "authz".into(),
        port: 9000,
        protocol: ProviderProtocol::Grpc,
        timeout: std::time::Duration::from_secs(1),
        fail_open: false,
        path_prefix: "".into(),
        request_headers: Vec::new(),
        to_backend: Vec::new(),
        to_client: Vec::new(),
    });
    let admin = Match {
        request: Some(Box::new(RequestMatch {
            paths: vec![StringMatch::Prefix("/admin".into())],
            ..RequestMatch::default()
        })),
        ..Match::default()
    };
    let mut external = policy("ext", Action::Deny, vec![rule(vec![admin])]);
    external.provider = Some(provider);
    let deny = policy("deny", Action::Deny, vec![Rule::default()]);
    let allow = policy("allow", Action::Allow, vec![]);
    let judged = |policies: &[&Policy], path: Option<&str>| {
        let policies: Vec<_> = policies
            .iter()
            .map(|one| Arc::new((*one).clone()))
            .collect();
        let connection = Connection {
            source: "10.0.0.1:40000".parse().unwrap(),
            destination: "10.0.0.2:80".parse().unwrap(),
            identity: None,
            request: path.map(|path| Request {
                method: "GET",
                path,
                host: "web",
                headers: &[],
                token: None,
            }),
        };
        let decision = verdict(&policies, &connection);
        assert_eq!(explain(&policies, &connection).decision, decision);
        (decision.allowed, decision.asks.len())
    };
    assert_eq!(judged(&[&external], Some("/admin/x")), (true, 1));
    assert_eq!(judged(&[&external], Some("/")), (true, 0));
    // What is denied anyway nobody is asked about, in whatever order.
    assert_eq!(judged(&[&external, &deny], Some("/admin")), (false, 0));
    assert_eq!(judged(&[&allow, &external], Some("/admin")), (false, 0));
    // Nobody sees what is asked for: it may be that.
    assert_eq!(judged(&[&external], None), (false, 0));
}

#[test]
fn without_a_request_an_allow_of_some_allows_none_and_a_deny_of_some_denies_all() {
    let some = RequestMatch {
        methods: vec!["POST".into()],
        ..RequestMatch::default()
    };
    assert!(!request_matches(some.clone(), Action::Allow, false));
    assert!(request_matches(some, Action::Deny, false));
}
