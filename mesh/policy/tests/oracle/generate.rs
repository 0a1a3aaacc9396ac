//! Policies at random, of values that are near to each other, so that matches are as frequent as not.

use ipnet::IpNet;
use proptest::prelude::*;
use seine_policy::{
    Action, ClaimMatch, Clause, Match, Policy, PolicyKey, RequestMatch, Rule, Scope,
    ServiceAccountMatch, StringMatch, TokenMatch,
};

/// What the matches of a policy are about.
#[derive(Clone, Debug)]
pub(crate) struct Values {
    /// Of namespaces and service accounts.
    pub(crate) names: Vec<&'static str>,
    /// Without `spiffe://`, as they are matched, and with.
    pub(crate) principals: Vec<&'static str>,
    pub(crate) blocks: Vec<IpNet>,
    pub(crate) ports: Vec<u16>,
    /// Of requests; without any, policies are about connections alone.
    pub(crate) requests: Option<Requests>,
}

/// What matches of requests are about.
#[derive(Clone, Debug)]
#[allow(dead_code, reason = "node proxies, whose test has this too, see none")]
pub(crate) struct Requests {
    pub(crate) methods: Vec<&'static str>,
    pub(crate) paths: Vec<&'static str>,
    pub(crate) principals: Vec<&'static str>,
    pub(crate) claims: Vec<&'static [&'static str]>,
    pub(crate) values: Vec<&'static str>,
}

impl Values {
    /// Policies of a namespace.
    pub(crate) fn policy(&self, namespace: &'static str) -> impl Strategy<Value = Policy> + use<> {
        let clause =
            prop::collection::vec(self.a_match(), 0..3).prop_map(|matches| Clause { matches });
        let rule = prop::collection::vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
        let rules = prop::collection::vec(rule, 0..3);
        let dry_run = || prop::bool::weighted(0.2);
        (rules, any::<bool>(), dry_run(), dry_run()).prop_map(
            move |(rules, deny, dry_run, enforced_only)| Policy {
                key: PolicyKey {
                    namespace: namespace.into(),
                    name: "p".into(),
                },
                scope: Scope::Namespace,
                action: if deny { Action::Deny } else { Action::Allow },
                dry_run,
                enforced_only: enforced_only && !dry_run,
                rules,
                provider: None,
                unenforced_fields: Vec::new(),
            },
        )
    }

    fn a_match(&self) -> impl Strategy<Value = Match> + use<> {
        let name = || few(string_match(self.names.clone()));
        let principal = || few(string_match(self.principals.clone()));
        let block = || few(prop::sample::select(self.blocks.clone()));
        let port = || few(prop::sample::select(self.ports.clone()));
        let account = || few(account(self.names.clone()));
        (
            (name(), name()),
            (principal(), principal()),
            (block(), block(), block(), block()),
            (port(), port()),
            (account(), account()),
            prop::bool::weighted(0.05),
            self.requests.as_ref().map_or_else(
                || Just((None, None)).boxed(),
                |requests| (requests.request(), requests.token()).boxed(),
            ),
        )
            .prop_map(
                |(namespaces, principals, ips, ports, accounts, unknown_condition, asked)| Match {
                    request: asked.0.map(Box::new),
                    token: asked.1.map(Box::new),
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
}

impl Requests {
    fn request(&self) -> impl Strategy<Value = Option<RequestMatch>> + use<> {
        let methods = self.methods.clone();
        let method = move || few(prop::sample::select(methods.clone()).prop_map(Box::from));
        let paths = self.paths.clone();
        let path = move || few(string_match(paths.clone()));
        let found = (method(), method(), path(), path()).prop_map(
            |(methods, not_methods, paths, not_paths)| RequestMatch {
                methods,
                not_methods,
                paths,
                not_paths,
                ..RequestMatch::default()
            },
        );
        prop::option::weighted(0.2, found)
    }

    fn token(&self) -> impl Strategy<Value = Option<TokenMatch>> + use<> {
        let principals = self.principals.clone();
        let principal = move || few(string_match(principals.clone()));
        let values = self.values.clone();
        let value = move || few(string_match(values.clone()));
        let path = prop::sample::select(self.claims.clone());
        let claim = (path, value(), value()).prop_map(|(path, values, not_values)| ClaimMatch {
            path: path.iter().map(|name| Box::from(*name)).collect(),
            values,
            not_values,
        });
        let found = (principal(), principal(), few(claim)).prop_map(
            |(principals, not_principals, claims)| TokenMatch {
                principals,
                not_principals,
                claims,
            },
        );
        prop::option::weighted(0.3, found)
    }
}

fn string_match(values: Vec<&'static str>) -> impl Strategy<Value = StringMatch> {
    let value = || prop::sample::select(values.clone());
    let cut = |v: &str, n: usize| v.len().min(n);
    prop_oneof![
        value().prop_map(|v| StringMatch::Exact(v.into())),
        (value(), 0..40usize).prop_map(move |(v, n)| StringMatch::Prefix(v[..cut(v, n)].into())),
        (value(), 0..40usize)
            .prop_map(move |(v, n)| StringMatch::Suffix(v[v.len() - cut(v, n)..].into())),
        Just(StringMatch::Presence),
    ]
}

/// Mostly absent, so that a match has few kinds.
fn few<T: std::fmt::Debug + Clone>(one: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    (0..6u8, prop::collection::vec(one, 1..3))
        .prop_map(|(n, values)| if n == 0 { values } else { Vec::new() })
}

fn account(names: Vec<&'static str>) -> impl Strategy<Value = ServiceAccountMatch> {
    let name = || prop::sample::select(names.clone());
    (name(), name()).prop_map(|(namespace, name)| ServiceAccountMatch {
        namespace: namespace.into(),
        name: name.into(),
    })
}
