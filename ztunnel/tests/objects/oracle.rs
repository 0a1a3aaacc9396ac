//! The judgement, written from the words of `docs/POLICY.md`.

use std::net::IpAddr;

use ipnet::IpNet;
use seine_objects::policy::{
    Action, AuthorizationPolicySpec, Mode, Operator, Rule, Selector, Source,
};

use crate::cases::Case;
use crate::world::Server;

/// A connection in the guide's terms.
#[derive(Clone, Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) server: &'a Server,
    pub(crate) port: u16,
    /// Namespace and service account; none in plaintext.
    pub(crate) client: Option<(&'a str, &'a str)>,
    pub(crate) address: IpAddr,
}

pub(crate) fn allowed(case: &Case, facts: &Facts<'_>) -> bool {
    judged(case, facts, false)
}

/// "What would have been denied": with `dryRun` taken away, and `Audit` for a `Deny`.
pub(crate) fn would_be_allowed(case: &Case, facts: &Facts<'_>) -> bool {
    judged(case, facts, true)
}

fn judged(case: &Case, facts: &Facts<'_>, in_force: bool) -> bool {
    if facts.client.is_none() && is_strict(case, facts) {
        return false;
    }
    let enforced = || {
        let policies = case.policies.iter();
        policies.filter(move |(_, spec)| in_force || !spec.dry_run && spec.action != Action::Audit)
    };
    let about = || enforced().filter(|(namespace, spec)| is_about(namespace, spec, facts));
    let matching = |action| {
        about().any(|(namespace, spec)| {
            let of = match spec.action {
                Action::Audit => Action::Deny,
                other => other,
            };
            of == action && matches(namespace, spec, facts)
        })
    };
    let allows = about().any(|(_, spec)| spec.action == Action::Allow);
    !matching(Action::Deny) && (!allows || matching(Action::Allow))
}

/// "Those of the policy's namespace; with selector those with the labels; with targetRefs those behind the Services,
/// and their ports; in seine-system those of the whole mesh."
fn is_about(namespace: &str, spec: &AuthorizationPolicySpec, facts: &Facts<'_>) -> bool {
    let server = facts.server;
    if !spec.target_refs.is_empty() {
        return spec.target_refs.iter().any(|target| {
            let ports = server
                .behind
                .iter()
                .filter(|(name, _)| *name == target.name);
            namespace == server.namespace && ports.into_iter().any(|(_, port)| *port == facts.port)
        });
    }
    let near = namespace == server.namespace || namespace == "seine-system";
    near && spec
        .selector
        .as_ref()
        .is_none_or(|selector| selects(selector, server))
}

fn selects(selector: &Selector, server: &Server) -> bool {
    let value = |key: &str| server.labels.iter().find(|(name, _)| *name == key);
    let labels = selector.match_labels.iter();
    let mut labels = labels.map(|(key, wanted)| value(key).is_some_and(|(_, has)| has == wanted));
    let mut expressions = selector.match_expressions.iter().map(|one| {
        let listed = value(&one.key).map(|(_, has)| one.values.iter().any(|value| value == has));
        match one.operator {
            Operator::In => listed == Some(true),
            Operator::NotIn => listed != Some(true),
            Operator::Exists => listed.is_some(),
            Operator::DoesNotExist => listed.is_none(),
        }
    });
    labels.all(|holds| holds) && expressions.all(|holds| holds)
}

/// "The most specific one that says something about a port decides": pod, namespace, mesh; of each the oldest.
fn is_strict(case: &Case, facts: &Facts<'_>) -> bool {
    let server = facts.server;
    let levels = [
        (server.namespace, true),
        (server.namespace, false),
        ("seine-system", false),
    ];
    for (namespace, selected) in levels {
        let oldest = case.modes.iter().find(|(of, spec)| {
            let selector = spec.selector.as_ref();
            *of == namespace
                && selector.is_some() == selected
                && selector.is_none_or(|selector| selects(selector, server))
        });
        let Some((_, spec)) = oldest else { continue };
        let port = spec.ports.iter().find(|port| port.port == facts.port);
        if let Some(mode) = port.map(|port| port.mode).or(spec.mode) {
            return mode == Mode::Strict;
        }
    }
    false
}

fn matches(namespace: &str, spec: &AuthorizationPolicySpec, facts: &Facts<'_>) -> bool {
    let allow = spec.action == Action::Allow;
    let rule = |rule: &Rule| {
        let from = || {
            rule.from.iter().any(|source| {
                let of_token = [&source.request_principals, &source.not_request_principals];
                let seen = of_token.iter().all(|values| values.is_empty());
                (!allow || seen) && source_holds(source, namespace, facts)
            })
        };
        let to = || {
            rule.to.iter().any(|operation| {
                let ports = operation.ports.is_empty() || operation.ports.contains(&facts.port);
                let not_ports = !operation.not_ports.contains(&facts.port);
                // "An Allow rule with such a field allows nothing, a Deny denies as if the field were not there."
                ports && not_ports && (!allow || operation.methods.is_empty())
            })
        };
        (rule.from.is_empty() || from()) && (rule.to.is_empty() || to())
    };
    spec.rules.iter().any(rule)
}

fn source_holds(source: &Source, own: &str, facts: &Facts<'_>) -> bool {
    let id = facts
        .client
        .map(|(ns, sa)| format!("cluster.local/ns/{ns}/sa/{sa}"));
    let principal = |pattern: &String| {
        let pattern = pattern.strip_prefix("spiffe://").unwrap_or(pattern);
        id.as_ref().is_some_and(|id| like(pattern, id))
    };
    let account = |named: &String| {
        let named = match named.contains('/') {
            true => named.clone(),
            false => format!("{own}/{named}"),
        };
        facts
            .client
            .is_some_and(|(ns, sa)| named == format!("{ns}/{sa}"))
    };
    let namespace = |pattern: &String| facts.client.is_some_and(|(ns, _)| like(pattern, ns));
    let within = |block: &String| block.parse::<IpNet>().unwrap().contains(&facts.address);
    holds(&source.principals, &source.not_principals, principal)
        && holds(
            &source.service_accounts,
            &source.not_service_accounts,
            account,
        )
        && holds(&source.namespaces, &source.not_namespaces, namespace)
        && holds(&source.ip_blocks, &source.not_ip_blocks, within)
}

/// "Every field that is set must hold, by any of its values; of a not… field none may hold."
fn holds(values: &[String], not_values: &[String], one: impl Fn(&String) -> bool) -> bool {
    (values.is_empty() || values.iter().any(&one)) && !not_values.iter().any(&one)
}

/// "`*` any, `x*` a beginning, `*x` an end."
fn like(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, "")) => text.starts_with(start),
        Some((_, end)) => text.ends_with(end),
    }
}
