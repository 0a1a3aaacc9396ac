//! What a waypoint of ours can judge of Istio's policies beside connections: by the same translation as our own policies.

use seine_objects::istio::{Condition, Operation, Source};
use seine_objects::policy::{self, ClaimMatch, HeaderMatch};
use seine_proto::security::{Clause, Match};

use super::{Action, clause};
use crate::translate::request::{self, Targets};

/// Whether a field of an operation says what ours can say.
pub(super) fn can_judge(operation: &Operation, field: &str) -> bool {
    // Templates, and a host with its port, have no match here.
    let plain = |values: &[String], not: char| !values.iter().any(|value| value.contains(not));
    match field {
        "hosts" => plain(&operation.hosts, ':'),
        "notHosts" => plain(&operation.not_hosts, ':'),
        "methods" => plain(&operation.methods, '*'),
        "notMethods" => plain(&operation.not_methods, '*'),
        "paths" => plain(&operation.paths, '{'),
        "notPaths" => plain(&operation.not_paths, '{'),
        _ => false,
    }
}

/// `None`: it is about none of the service's ports. What can't be judged is left out.
pub(super) fn operation(
    operation: &Operation,
    not_judged: &[&str],
    action: Action,
    targets: &Targets,
) -> Option<Match> {
    let judged = |field: &str, values: &[String]| match not_judged.contains(&field) {
        true => Vec::new(),
        false => values.to_vec(),
    };
    let own = policy::Operation {
        ports: ports(&operation.ports),
        not_ports: ports(&operation.not_ports),
        hosts: judged("hosts", &operation.hosts),
        not_hosts: judged("notHosts", &operation.not_hosts),
        methods: judged("methods", &operation.methods),
        not_methods: judged("notMethods", &operation.not_methods),
        paths: judged("paths", &operation.paths),
        not_paths: judged("notPaths", &operation.not_paths),
        ..Default::default()
    };
    request::operation_match(&own, own_action(action), targets)
}

fn ports(texts: &[String]) -> Vec<u16> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

fn own_action(action: Action) -> policy::Action {
    match action {
        Action::Allow => policy::Action::Allow,
        Action::Deny | Action::Audit | Action::Custom => policy::Action::Deny,
    }
}

/// What a source says of the token.
pub(super) fn token(source: &Source) -> Option<Clause> {
    request::token(&policy::Source {
        request_principals: source.request_principals.clone(),
        not_request_principals: source.not_request_principals.clone(),
        ..Default::default()
    })
}

/// How a condition is judged.
pub(super) enum Judged {
    /// By these; `None`: not at all.
    Here(Option<Vec<Clause>>),
    /// As where there is no request.
    AsOnAConnection,
}

/// A condition at a waypoint.
pub(super) fn condition(condition: &Condition, action: Action, targets: &Targets) -> Judged {
    let (values, not_values) = (condition.values.clone(), condition.not_values.clone());
    let claim = |path: Vec<String>| {
        let claims = vec![ClaimMatch {
            path,
            values: values.clone(),
            not_values: not_values.clone(),
        }];
        let source = policy::Source {
            claims,
            ..Default::default()
        };
        request::token(&source).map(|clause| vec![clause])
    };
    let key = condition.key.as_str();
    Judged::Here(match key {
        // The waypoint knows the service's address, and not yet the pod's.
        "destination.ip" => None,
        "destination.port" => {
            let own = policy::Operation {
                ports: ports(&values),
                not_ports: ports(&not_values),
                ..Default::default()
            };
            match request::operation_match(&own, own_action(action), targets) {
                Some(found) => Some(vec![clause(found)]),
                // It is about no port: nothing matches, which is to be said.
                None => Some(vec![clause(Match::default())]),
            }
        }
        "request.auth.principal" => request::token(&policy::Source {
            request_principals: values,
            not_request_principals: not_values,
            ..Default::default()
        })
        .map(|clause| vec![clause]),
        "request.auth.audiences" => claim(vec!["aud".into()]),
        "request.auth.presenter" => claim(vec!["azp".into()]),
        _ => match (
            names(key, "request.auth.claims"),
            names(key, "request.headers"),
        ) {
            (Some(path), _) => claim(path),
            // Of a header it can't be said what it must not be.
            (None, Some(name)) if name.len() == 1 && not_values.is_empty() => {
                let own = policy::Operation {
                    headers: vec![HeaderMatch {
                        name: name.concat(),
                        values,
                    }],
                    ..Default::default()
                };
                let found = request::operation_match(&own, own_action(action), targets);
                found.map(|found| vec![clause(found)])
            }
            (None, Some(_)) => None,
            (None, None) => return Judged::AsOnAConnection,
        },
    })
}

/// The names in brackets after an attribute: `request.auth.claims[a][b]`.
fn names(key: &str, attribute: &str) -> Option<Vec<String>> {
    let inner = key
        .strip_prefix(attribute)?
        .strip_prefix('[')?
        .strip_suffix(']')?;
    let names: Vec<String> = inner.split("][").map(str::to_owned).collect();
    let good = |name: &String| !name.is_empty() && !name.contains(['[', ']']);
    names.iter().all(good).then_some(names)
}
