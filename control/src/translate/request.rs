//! `AuthorizationPolicy` for waypoints: what is attached to a service that is bound to one is judged there, request
//! by request.
//!
//! It is one resource for each such service, named by the policy and the service, and the service lists it. A waypoint
//! knows the service's ports and not the pods', so that `ports` become those of the service that lead to them.

use std::collections::{BTreeMap, BTreeSet};

use seine_objects::{
    ObjectKey, ObjectSet, gateway,
    policy::{Action, AuthorizationPolicy, Operation, Provider, ProviderProtocol, Source},
};
use seine_proto::{
    extensions::{
        AuthorizationExtension, ClaimMatch, ExternalProvider, HeaderMatch, RequestMatch,
        TokenMatch, external_provider::Protocol,
    },
    security::{Authorization, Clause, Extension, Match, Scope},
};

use super::{
    Resources, Settings, any,
    policy::{clause, enforced_as, extensions, from, from_each, no_service, string_match},
    service,
};

/// Name of the extension that carries [`RequestMatch`].
pub const REQUEST_EXTENSION: &str = "seine.dev/request";
/// Name of the extension that carries [`TokenMatch`].
pub const TOKEN_EXTENSION: &str = "seine.dev/token";

/// Adds the policy for each bound service that it is attached to, and gives the names of what was made.
pub(super) fn translate(
    key: &ObjectKey,
    policy: &AuthorizationPolicy,
    objects: &ObjectSet,
    services: &mut BTreeMap<ObjectKey, service::Translated>,
    settings: &Settings,
    resources: &mut Resources,
) -> BTreeSet<String> {
    let mut made = BTreeSet::new();
    for target in &policy.spec.target_refs {
        let of = ObjectKey::new(&key.namespace, &target.name);
        let Some(service) = services.get_mut(&of) else {
            continue;
        };
        let is_judged = match (target.group.as_str(), target.kind.as_str()) {
            ("" | "core", "Service") => service.waypoint.is_some(),
            (gateway::GROUP, "Gateway") => is_ingress(objects, &of),
            _ => false,
        };
        if !is_judged {
            continue;
        }
        let targets = targets(&service.key, resources);
        let authorization = compile(key, policy, &target.name, &targets, settings);
        let name = format!("{}/{}", key.namespace, authorization.name);
        if !service.policies.contains(&name) {
            service.policies.push(name.clone());
        }
        made.insert(name.clone());
        resources.authorizations.insert(name, authorization);
    }
    made
}

/// Whether a Gateway takes connections from outside. What is attached to it its own Service lists, which has its name.
pub(super) fn is_ingress(objects: &ObjectSet, key: &ObjectKey) -> bool {
    let gateway = objects.gateways.get(key);
    gateway.is_some_and(|gateway| gateway.is_ingress())
}

/// The target ports of each of a service's ports, on all of its pods.
pub(super) type Targets = BTreeMap<u32, BTreeSet<u32>>;

pub(super) fn targets(service: &str, resources: &Resources) -> Targets {
    let mut found = Targets::new();
    let workloads = resources.workloads.values();
    let lists = workloads.filter_map(|workload| workload.services.get(service));
    for port in lists.flat_map(|list| &list.ports) {
        found
            .entry(port.service_port)
            .or_default()
            .insert(port.target_port);
    }
    found
}

fn compile(
    key: &ObjectKey,
    policy: &AuthorizationPolicy,
    service: &str,
    targets: &Targets,
    settings: &Settings,
) -> Authorization {
    let spec = &policy.spec;
    let mut rules = Vec::new();
    for rule in &spec.rules {
        let mut to: Vec<Clause> = Vec::new();
        if !rule.to.is_empty() {
            let matches = rule.to.iter();
            let matches: Vec<Match> = matches
                .filter_map(|operation| operation_match(operation, spec.action, targets))
                .collect();
            if matches.is_empty() {
                continue;
            }
            to.push(Clause { matches });
        }
        let sources: Vec<&Source> = rule.from.iter().collect();
        rules.extend(from_each(&sources, to, |source| {
            let mut clauses = from(source, &key.namespace, &settings.trust_domain);
            clauses.extend(token(source));
            clauses
        }));
    }
    Authorization {
        // A service's name has no underscore, so that this is none that an object can have.
        name: format!("{}_at_{service}", key.name),
        namespace: key.namespace.clone(),
        scope: Scope::WorkloadSelector.into(),
        action: enforced_as(spec.action).into(),
        rules,
        dry_run: spec.dry_run || spec.action == Action::Audit,
        extensions: extensions(AuthorizationExtension {
            external: spec
                .provider
                .as_ref()
                .map(|provider| external(provider, key, settings)),
            ..Default::default()
        }),
    }
}

fn external(provider: &Provider, key: &ObjectKey, settings: &Settings) -> ExternalProvider {
    let lower = |names: &[String]| names.iter().map(|name| name.to_ascii_lowercase()).collect();
    let service = ObjectKey::new(&key.namespace, &provider.service);
    ExternalProvider {
        hostname: service::hostname(&service, settings),
        namespace: service.namespace,
        port: provider.port.into(),
        protocol: match provider.protocol {
            ProviderProtocol::Grpc => Protocol::Grpc,
            ProviderProtocol::Http => Protocol::Http,
        }
        .into(),
        timeout_ms: u64::try_from(provider.timeout().as_millis()).unwrap_or(u64::MAX),
        fail_open: provider.fail_open,
        path_prefix: provider.path_prefix.clone(),
        request_headers: lower(&provider.request_headers),
        to_backend: lower(&provider.headers_to_backend),
        to_client: lower(&provider.headers_to_client),
    }
}

/// Why the provider can't be asked; `None`: it can.
pub(super) fn unresolved_provider(
    provider: &Provider,
    key: &ObjectKey,
    services: &BTreeMap<ObjectKey, service::Translated>,
) -> Option<String> {
    let name = &provider.service;
    let Some(service) = services.get(&ObjectKey::new(&key.namespace, name)) else {
        return Some(no_service(name));
    };
    let port = u32::from(provider.port);
    let mut ports = service.message.ports.iter();
    let has = ports.any(|found| found.service_port == port);
    (!has).then(|| format!("provider Service {name:?} has no port {port}"))
}

/// What the request's token has to be, for a source that says something of it.
pub(super) fn token(source: &Source) -> Option<Clause> {
    let texts = |values: &[String]| values.iter().map(|value| string_match(value)).collect();
    let token = TokenMatch {
        principals: texts(&source.request_principals),
        not_principals: texts(&source.not_request_principals),
        claims: (source.claims.iter())
            .map(|claim| ClaimMatch {
                path: claim.path.clone(),
                values: texts(&claim.values),
                not_values: texts(&claim.not_values),
            })
            .collect(),
    };
    (token != TokenMatch::default()).then(|| {
        clause(Match {
            extensions: vec![Extension {
                name: TOKEN_EXTENSION.into(),
                config: Some(any("seine.workload.v1.TokenMatch", &token)),
            }],
            ..Default::default()
        })
    })
}

/// `None`: the operation is about none of the service's ports.
pub(super) fn operation_match(
    operation: &Operation,
    action: Action,
    targets: &Targets,
) -> Option<Match> {
    let ports = service_ports(operation, action, targets);
    if ports.as_ref().is_some_and(Vec::is_empty) {
        return None;
    }
    let texts = |values: &[String]| values.iter().map(|value| string_match(value)).collect();
    let request = RequestMatch {
        methods: operation.methods.clone(),
        not_methods: operation.not_methods.clone(),
        paths: texts(&operation.paths),
        not_paths: texts(&operation.not_paths),
        hosts: texts(&lower(&operation.hosts)),
        not_hosts: texts(&lower(&operation.not_hosts)),
        headers: (operation.headers.iter())
            .map(|header| HeaderMatch {
                name: header.name.to_ascii_lowercase(),
                values: texts(&header.values),
            })
            .collect(),
    };
    let extension = (request != RequestMatch::default()).then(|| Extension {
        name: REQUEST_EXTENSION.into(),
        config: Some(any("seine.workload.v1.RequestMatch", &request)),
    });
    Some(Match {
        destination_ports: ports.unwrap_or_default(),
        extensions: extension.into_iter().collect(),
        ..Default::default()
    })
}

/// The service's ports that an operation is about; `None`: all of them. Where a port leads to others on one pod than
/// on another, an `Allow` is about it only if it is about all of them, and anything else if about any.
fn service_ports(operation: &Operation, action: Action, targets: &Targets) -> Option<Vec<u32>> {
    if operation.ports.is_empty() && operation.not_ports.is_empty() {
        return None;
    }
    let about = |target: &u32| {
        let is = |port: &u16| u32::from(*port) == *target;
        (operation.ports.is_empty() || operation.ports.iter().any(is))
            && !operation.not_ports.iter().any(is)
    };
    let ports = targets.iter().filter(|(_, targets)| match action {
        Action::Allow => targets.iter().all(about),
        Action::Deny | Action::Audit | Action::External => targets.iter().any(about),
    });
    Some(ports.map(|(port, _)| *port).collect())
}

fn lower(texts: &[String]) -> Vec<String> {
    texts.iter().map(|text| text.to_ascii_lowercase()).collect()
}
