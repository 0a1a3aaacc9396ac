//! Policies and connections at random, of values that are near to each other, so that matches are as frequent as not.

use std::fmt;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use seine_objects::policy::{
    Action, AuthorizationPolicySpec, MeshTlsSpec, Mode, Operation, Operator, PortMode, Requirement,
    Rule, Selector, Source, TargetRef,
};
use serde::Serialize;

use crate::world::{CLIENTS, PORTS, SERVERS, block};

/// Objects, and the connections that are tried.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// Namespace and specification; the earlier ones are the older.
    pub(crate) policies: Vec<(&'static str, AuthorizationPolicySpec)>,
    pub(crate) modes: Vec<(&'static str, MeshTlsSpec)>,
    pub(crate) probes: Vec<Probe>,
}

/// A connection: indices into the world's lists.
#[derive(Clone, Debug)]
pub(crate) struct Probe {
    pub(crate) client: usize,
    pub(crate) server: usize,
    pub(crate) port: usize,
    pub(crate) family: usize,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (namespace, spec)) in self.policies.iter().enumerate() {
            document(f, "AuthorizationPolicy", namespace, index, spec)?;
        }
        for (index, (namespace, spec)) in self.modes.iter().enumerate() {
            document(f, "MeshTLS", namespace, index, spec)?;
        }
        Ok(())
    }
}

/// JSON is YAML.
fn document(
    f: &mut fmt::Formatter<'_>,
    kind: &str,
    namespace: &str,
    index: usize,
    spec: &impl Serialize,
) -> fmt::Result {
    let object = serde_json::json!({
        "apiVersion": "policy.seine.dev/v1alpha1", "kind": kind,
        "metadata": {
            "name": format!("p{index}"), "namespace": namespace,
            "creationTimestamp": format!("2026-01-01T00:00:{index:02}Z"),
        },
        "spec": spec,
    });
    writeln!(f, "---\n{object}")
}

pub(crate) fn case(families: usize) -> impl Strategy<Value = Case> {
    let namespace = || select(vec!["shop", "shop", "other", "seine-system"]);
    (
        vec((namespace(), policy(families)), 0..4),
        vec((namespace(), mode()), 0..4),
        vec(probe(families), 12),
    )
        .prop_map(|(policies, modes, probes)| Case {
            policies,
            modes,
            probes,
        })
}

fn probe(families: usize) -> impl Strategy<Value = Probe> {
    let of = |many: usize| 0..many;
    (
        of(CLIENTS.len()),
        of(SERVERS.len()),
        of(PORTS.len()),
        of(families),
    )
        .prop_map(|(client, server, port, family)| Probe {
            client,
            server,
            port,
            family,
        })
}

fn policy(families: usize) -> impl Strategy<Value = AuthorizationPolicySpec> {
    let action = prop_oneof![
        4 => Just(Action::Allow),
        4 => Just(Action::Deny),
        1 => Just(Action::Audit)
    ];
    let rules = vec(rule(families), 0..3);
    (action, prop::bool::weighted(0.15), target(), rules).prop_map(
        |(action, dry_run, (selector, target_refs), rules)| AuthorizationPolicySpec {
            action,
            dry_run,
            selector,
            target_refs,
            rules,
            provider: None,
        },
    )
}

fn target() -> impl Strategy<Value = (Option<Selector>, Vec<TargetRef>)> {
    let service = |name: &str| TargetRef {
        group: String::new(),
        kind: "Service".into(),
        name: name.into(),
    };
    let services = vec(select(vec!["one", "two", "missing"]), 1..3);
    prop_oneof![
        2 => Just((None, Vec::new())),
        3 => selector().prop_map(|selector| (Some(selector), Vec::new())),
        2 => services.prop_map(move |names| (None, names.into_iter().map(service).collect())),
    ]
}

fn selector() -> impl Strategy<Value = Selector> {
    let app = || select(vec!["a", "b"]);
    let labels = app().prop_map(|app| Selector {
        match_labels: [("app".to_owned(), app.to_owned())].into(),
        match_expressions: Vec::new(),
    });
    let operator = select(vec![
        Operator::In,
        Operator::NotIn,
        Operator::Exists,
        Operator::DoesNotExist,
    ]);
    let key = select(vec!["app", "tier"]);
    let expressions = (key, operator, app()).prop_map(|(key, operator, app)| {
        let takes_values = matches!(operator, Operator::In | Operator::NotIn);
        Selector {
            match_labels: Default::default(),
            match_expressions: vec![Requirement {
                key: key.into(),
                operator,
                values: takes_values.then(|| app.to_owned()).into_iter().collect(),
            }],
        }
    });
    prop_oneof![labels, expressions]
}

fn rule(families: usize) -> impl Strategy<Value = Rule> {
    (vec(source(families), 0..3), vec(operation(), 0..3)).prop_map(|(from, to)| Rule { from, to })
}

fn source(families: usize) -> impl Strategy<Value = Source> {
    let principal = || {
        few(select(vec![
            "*",
            "spiffe://cluster.local/ns/shop/sa/a",
            "cluster.local/ns/shop/sa/ab",
            "cluster.local/ns/shop/*",
            "cluster.local/ns/*",
            "*/sa/a",
            "other.example/ns/shop/sa/a",
        ]))
    };
    let account = || few(select(vec!["a", "ab", "shop/a", "other/a", "other/ab"]));
    let namespace = || few(select(vec!["*", "shop", "other", "sh*", "o*"]));
    let blocks: Vec<String> = (0..families)
        .flat_map(|family| (0..5).map(move |index| block(family, index)))
        .collect();
    let blocks = move || few(select(blocks.clone()));
    let own = |values: Vec<&str>| values.into_iter().map(str::to_owned).collect::<Vec<_>>();
    (
        (principal(), principal()),
        (account(), account()),
        (namespace(), namespace()),
        (blocks(), blocks()),
        // Of a request, which nobody sees here.
        (prop::bool::weighted(0.1), prop::bool::weighted(0.1)),
    )
        .prop_map(
            move |(principals, accounts, namespaces, blocks, tokens)| Source {
                principals: own(principals.0),
                not_principals: own(principals.1),
                service_accounts: own(accounts.0),
                not_service_accounts: own(accounts.1),
                namespaces: own(namespaces.0),
                not_namespaces: own(namespaces.1),
                ip_blocks: blocks.0,
                not_ip_blocks: blocks.1,
                request_principals: tokens.0.then(|| "*".to_owned()).into_iter().collect(),
                not_request_principals: tokens.1.then(|| "*".to_owned()).into_iter().collect(),
                claims: Vec::new(),
            },
        )
        .prop_filter("an empty one is invalid", |source| {
            *source != Source::default()
        })
}

fn operation() -> impl Strategy<Value = Operation> {
    let ports = || few(select(PORTS.to_vec()));
    let methods = prop::bool::weighted(0.1);
    (ports(), ports(), methods)
        .prop_map(|(ports, not_ports, methods)| Operation {
            ports,
            not_ports,
            methods: methods.then(|| "GET".to_owned()).into_iter().collect(),
            ..Operation::default()
        })
        .prop_filter("an empty one is invalid", |operation| {
            *operation != Operation::default()
        })
}

fn mode() -> impl Strategy<Value = MeshTlsSpec> {
    let mode = || select(vec![Mode::Strict, Mode::Permissive]);
    let port = (select(PORTS.to_vec()), mode()).prop_map(|(port, mode)| PortMode { port, mode });
    let spec = (
        prop::option::weighted(0.7, mode()),
        prop::option::of(selector()),
        vec(port, 0..2),
    );
    spec.prop_map(|(mode, selector, ports)| MeshTlsSpec {
        mode,
        selector,
        ports,
    })
    .prop_filter("one that says nothing is invalid", |spec| {
        spec.mode.is_some() || !spec.ports.is_empty()
    })
}

/// Mostly absent, so that a source has few fields.
fn few<T: fmt::Debug + Clone>(one: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    prop_oneof![4 => Just(Vec::new()), 1 => vec(one, 1..3)]
}
