//! `HTTPRoute` and `GRPCRoute` to the rules that waypoints obey.
//!
//! Nothing of a route is dropped: a rule with a part that waypoints don't know is answered with 500, and a backend
//! that doesn't exist with its share of that, as the Gateway API wants it.

mod backend;
mod filter;
mod matches;

use seine_objects::{
    Kind, ObjectKey, ObjectSet,
    gateway::{
        self, BackendRef, Filter, GrpcRoute, GrpcRouteRule, HttpRoute, HttpRouteRule, ParentRef,
        Retry, Timeouts, parse_duration,
    },
    k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use seine_proto::waypoint as wire;

use super::{Resources, Settings, service};

type Services = std::collections::BTreeMap<ObjectKey, service::Translated>;

/// How often a request is sent again where a route doesn't say it.
const DEFAULT_ATTEMPTS: u32 = 2;
/// After which time, where a route doesn't say it.
const DEFAULT_BACKOFF_MS: u64 = 25;

/// What routes are looked at in.
struct World<'a> {
    objects: &'a ObjectSet,
    services: &'a Services,
    settings: &'a Settings,
}

/// What routes of all kinds have.
struct Route<'a> {
    kind: Kind,
    key: &'a ObjectKey,
    metadata: &'a ObjectMeta,
    parent_refs: &'a [ParentRef],
    /// Fields that are not obeyed.
    unread: Vec<String>,
}

/// What rules of all kinds have.
#[derive(Default)]
struct Rule<'a> {
    name: Option<&'a str>,
    matches: Vec<wire::Match>,
    filters: &'a [Filter],
    backends: &'a [BackendRef],
    timeouts: Timeouts,
    retry: Option<&'a Retry>,
}

/// What is wrong with a rule.
#[derive(Default)]
struct Notes {
    refused: Vec<String>,
    said: Vec<String>,
}

impl Notes {
    /// The rule can't be obeyed.
    fn refuse(&mut self, reason: String) {
        self.refused.push(reason);
    }

    /// It is obeyed in part, in the way that the Gateway API wants.
    fn say(&mut self, what: String) {
        self.said.push(what);
    }
}

/// Adds every rule of a route with a parent that is bound to a waypoint, and what users should know.
pub(super) fn translate(
    objects: &ObjectSet,
    services: &Services,
    settings: &Settings,
    resources: &mut Resources,
) {
    let world = World {
        objects,
        services,
        settings,
    };
    for (key, route) in &objects.http_routes {
        let common = Route {
            kind: Kind::HttpRoute,
            key,
            metadata: &route.metadata,
            parent_refs: &route.spec.parent_refs,
            unread: route.unread(),
        };
        translate_route(&common, &world, resources, |notes| http_rules(route, notes));
    }
    for (key, route) in &objects.grpc_routes {
        let common = Route {
            kind: Kind::GrpcRoute,
            key,
            metadata: &route.metadata,
            parent_refs: &route.spec.parent_refs,
            unread: route.unread(),
        };
        translate_route(&common, &world, resources, |notes| grpc_rules(route, notes));
    }
}

fn translate_route<'a>(
    route: &Route<'a>,
    world: &World<'_>,
    resources: &mut Resources,
    rules: impl FnOnce(&mut Vec<Notes>) -> Vec<Rule<'a>>,
) {
    let mut said = Vec::new();
    let parents = parents(route, world, &mut said);
    if !parents.is_empty() {
        let mut notes = Vec::new();
        let rules = rules(&mut notes);
        for (index, (rule, notes)) in rules.iter().zip(notes).enumerate() {
            let (translated, notes) = translate_rule(route, index, rule, &parents, world, notes);
            let path = format!("spec.rules[{index}]");
            if !translated.refused.is_empty() {
                let why = &translated.refused;
                said.push(format!("{path} is answered with 500: {why}"));
            }
            said.extend(notes.said.iter().map(|note| format!("{path}: {note}")));
            let refused = translated.backends.iter().map(|backend| &backend.refused);
            for why in refused.filter(|why| !why.is_empty()) {
                said.push(format!("{path}: {why}"));
            }
            let name = format!("{}/{}/{index}", route.kind, route.key);
            resources.routes.insert(name, translated);
        }
    }
    if !said.is_empty() {
        let key = (route.kind, route.key.clone());
        resources.findings.routes.insert(key, said);
    }
}

fn http_rules<'a>(route: &'a HttpRoute, notes: &mut Vec<Notes>) -> Vec<Rule<'a>> {
    let translated = |rule: &'a HttpRouteRule| {
        let mut own = Notes::default();
        let matches = rule.matches.iter();
        let matches = matches.map(|wanted| matches::http(wanted, &mut own));
        let matches = matches.collect();
        notes.push(own);
        Rule {
            name: rule.name.as_deref(),
            matches,
            filters: &rule.filters,
            backends: &rule.backend_refs,
            timeouts: rule.timeouts.clone().unwrap_or_default(),
            retry: rule.retry.as_ref(),
        }
    };
    let mut rules: Vec<_> = route.spec.rules.iter().map(translated).collect();
    if rules.is_empty() {
        // One that matches everything is implied.
        notes.push(Notes::default());
        rules.push(Rule::default());
    }
    rules
}

fn grpc_rules<'a>(route: &'a GrpcRoute, notes: &mut Vec<Notes>) -> Vec<Rule<'a>> {
    let translated = |rule: &'a GrpcRouteRule| {
        let mut own = Notes::default();
        let matches = rule.matches.iter();
        let matches = matches.map(|wanted| matches::grpc(wanted, &mut own));
        let matches = matches.collect();
        notes.push(own);
        Rule {
            name: rule.name.as_deref(),
            matches,
            filters: &rule.filters,
            backends: &rule.backend_refs,
            ..Rule::default()
        }
    };
    route.spec.rules.iter().map(translated).collect()
}

fn parents(route: &Route<'_>, world: &World<'_>, notes: &mut Vec<String>) -> Vec<wire::Parent> {
    let mut found = Vec::new();
    for parent in route.parent_refs {
        if !is_service(parent) {
            // A Gateway's, and whoever makes that reads it.
            continue;
        }
        let namespace = parent.namespace.as_deref().unwrap_or(&route.key.namespace);
        let parent_key = ObjectKey::new(namespace, &parent.name);
        let Some(service) = world.services.get(&parent_key) else {
            notes.push(format!("there is no Service {parent_key}"));
            continue;
        };
        if service.waypoint.is_none() {
            notes.push(format!(
                "Service {parent_key} uses no waypoint: label it {}",
                gateway::WAYPOINT_LABEL
            ));
            continue;
        }
        let port = match &parent.section_name {
            None => parent.port.map(u32::from),
            Some(name) => match port_named(service, name) {
                Some(port) if parent.port.is_none_or(|wanted| u32::from(wanted) == port) => {
                    Some(port)
                }
                _ => {
                    notes.push(format!("Service {parent_key} has no such port {name:?}"));
                    continue;
                }
            },
        };
        found.push(wire::Parent {
            namespace: namespace.into(),
            hostname: service::hostname(&parent_key, world.settings),
            port: port.unwrap_or_default(),
        });
    }
    found
}

fn is_service(parent: &ParentRef) -> bool {
    let group = parent.group.as_deref().unwrap_or(gateway::GROUP);
    let kind = parent.kind.as_deref().unwrap_or("Gateway");
    matches!(group, "" | "core") && kind == "Service"
}

fn port_named(service: &service::Translated, name: &str) -> Option<u32> {
    let ports = service.object.spec.as_ref()?.ports.as_ref()?;
    let port = ports
        .iter()
        .find(|port| port.name.as_deref() == Some(name))?;
    u32::try_from(port.port).ok()
}

fn translate_rule(
    route: &Route<'_>,
    index: usize,
    rule: &Rule<'_>,
    parents: &[wire::Parent],
    world: &World<'_>,
    mut notes: Notes,
) -> (wire::RouteRule, Notes) {
    let path = format!("spec.rules[{index}].");
    let unread = route.unread.iter();
    for field in unread.filter(|field| field.starts_with(&path)) {
        notes.refuse(format!("{field} is not supported yet"));
    }
    let filters = filter::translate(rule.filters, route, world, &mut notes);
    let backends = rule.backends.iter();
    let backends = backends
        .map(|backend| backend::translate(backend, route, world, &mut notes))
        .collect();
    let created = route.metadata.creation_timestamp.as_ref();
    let timeouts = &rule.timeouts;
    let translated = wire::RouteRule {
        kind: route.kind.to_string(),
        namespace: route.key.namespace.clone(),
        name: route.key.name.clone(),
        rule: u32::try_from(index).unwrap_or(u32::MAX),
        created: created.map_or(0, |time| time.0.as_second()),
        parents: parents.to_vec(),
        matches: rule.matches.clone(),
        filters,
        backends,
        request_timeout_ms: millis(timeouts.request.as_deref()).unwrap_or_default(),
        backend_timeout_ms: millis(timeouts.backend_request.as_deref()).unwrap_or_default(),
        refused: notes.refused.join("; "),
        retry: rule.retry.map(|retry| wire::Retry {
            codes: retry.codes.iter().map(|code| u32::from(*code)).collect(),
            attempts: retry.attempts.unwrap_or(DEFAULT_ATTEMPTS),
            backoff_ms: millis(retry.backoff.as_deref()).unwrap_or(DEFAULT_BACKOFF_MS),
        }),
        rule_name: rule.name.unwrap_or_default().into(),
    };
    (translated, notes)
}

fn millis(text: Option<&str>) -> Option<u64> {
    let duration = text.and_then(parse_duration)?;
    Some(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}
