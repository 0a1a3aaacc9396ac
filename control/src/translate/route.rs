//! Routes of all kinds to the rules that waypoints obey.
//!
//! Nothing of a route is dropped: a rule with a part that waypoints don't know is answered with 500, and a backend
//! that doesn't exist with its share of that, as the Gateway API wants it.

mod backend;
mod filter;
mod matches;

use seine_objects::{
    Kind, ObjectKey, ObjectSet, Objects,
    gateway::{
        self, BackendRef, Filter, GrpcRouteRule, HttpRouteRule, ParentRef, Retry, RouteRule,
        SessionPersistence, TcpRouteRule, Timeouts, TlsRouteRule, parse_duration,
    },
    k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use seine_proto::waypoint as wire;

use super::ingress::{self, Candidate};
use super::{Resources, RouteFinding, Settings, service};

pub(crate) use backend::{Unresolved, unresolved};

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
    hostnames: &'a [String],
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
    session: Option<&'a SessionPersistence>,
    notes: Notes,
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

/// Adds every rule of a route with a parent that is bound to a waypoint or takes connections from outside, and what users
/// should know.
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
    translate_kind(&objects.http_routes, &world, resources);
    translate_kind(&objects.grpc_routes, &world, resources);
    translate_kind(&objects.tls_routes, &world, resources);
    translate_kind(&objects.tcp_routes, &world, resources);
}

/// What a kind of routes has of its own.
trait Translate: RouteRule {
    /// The rule in the terms of all kinds.
    fn rule(&self) -> Rule<'_>;

    /// The rule of a route without rules.
    fn implied() -> Option<Rule<'static>> {
        None
    }
}

fn translate_kind<R: Translate>(
    routes: &Objects<gateway::Route<R>>,
    world: &World<'_>,
    resources: &mut Resources,
) {
    for (key, route) in routes {
        let common = Route {
            kind: R::KIND,
            key,
            metadata: &route.metadata,
            parent_refs: &route.spec.parent_refs,
            hostnames: &route.spec.hostnames,
            unread: route.unread(),
        };
        translate_route(&common, world, resources, || {
            let rules = route.spec.rules.iter().map(R::rule);
            let implied = R::implied().filter(|_| route.spec.rules.is_empty());
            rules.chain(implied).collect()
        });
    }
}

impl Translate for HttpRouteRule {
    fn rule(&self) -> Rule<'_> {
        let mut notes = Notes::default();
        let matches = self.matches.iter();
        Rule {
            name: self.name.as_deref(),
            matches: matches.map(|one| matches::http(one, &mut notes)).collect(),
            filters: &self.filters,
            backends: &self.backend_refs,
            timeouts: self.timeouts.clone().unwrap_or_default(),
            retry: self.retry.as_ref(),
            session: self.session_persistence.as_ref(),
            notes,
        }
    }

    /// One that matches everything.
    fn implied() -> Option<Rule<'static>> {
        Some(Rule::default())
    }
}

impl Translate for GrpcRouteRule {
    fn rule(&self) -> Rule<'_> {
        let mut notes = Notes::default();
        let matches = self.matches.iter();
        Rule {
            name: self.name.as_deref(),
            matches: matches.map(|one| matches::grpc(one, &mut notes)).collect(),
            filters: &self.filters,
            backends: &self.backend_refs,
            session: self.session_persistence.as_ref(),
            notes,
            ..Rule::default()
        }
    }
}

impl Translate for TlsRouteRule {
    fn rule(&self) -> Rule<'_> {
        of_connections(self.name.as_deref(), &self.backend_refs)
    }
}

impl Translate for TcpRouteRule {
    fn rule(&self) -> Rule<'_> {
        of_connections(self.name.as_deref(), &self.backend_refs)
    }
}

/// A connection is led on, and nothing of it is changed.
fn of_connections<'a>(name: Option<&'a str>, backends: &'a [BackendRef]) -> Rule<'a> {
    let mut notes = Notes::default();
    if backends.iter().any(|backend| !backend.filters.is_empty()) {
        notes.refuse("filters: what is said in a connection can't be changed".into());
    }
    Rule {
        name,
        backends,
        notes,
        ..Rule::default()
    }
}

fn translate_route<'a>(
    route: &Route<'a>,
    world: &World<'_>,
    resources: &mut Resources,
    rules: impl FnOnce() -> Vec<Rule<'a>>,
) {
    let mut found = RouteFinding::default();
    let parents = parents(route, world, &mut found.said);
    let candidate = Candidate {
        kind: route.kind,
        key: route.key,
        hostnames: route.hostnames,
        claims: &resources.findings.claims,
    };
    let listeners = ingress::attachments(
        world.objects,
        &candidate,
        route.parent_refs,
        &mut found.said,
    );
    if !parents.is_empty() || !listeners.is_empty() {
        for (index, rule) in rules().into_iter().enumerate() {
            let attached = (&parents[..], &listeners[..]);
            let (translated, notes) = translate_rule(route, index, rule, attached, world);
            let path = format!("spec.rules[{index}]");
            if !translated.refused.is_empty() {
                let why = &translated.refused;
                found.refused.push(format!("{path}: {why}"));
                let what = format!("{path} is answered with 500: {why}");
                found.said.push(what);
            }
            let said = notes.said.iter().map(|note| format!("{path}: {note}"));
            found.said.extend(said);
            let refused = translated.backends.iter().map(|backend| &backend.refused);
            for why in refused.filter(|why| !why.is_empty()) {
                found.said.push(format!("{path}: {why}"));
            }
            let name = format!("{}/{}/{index}", route.kind, route.key);
            resources.routes.insert(name, translated);
        }
    }
    if !found.said.is_empty() {
        let key = (route.kind, route.key.clone());
        resources.findings.routes.insert(key, found);
    }
}

fn parents(route: &Route<'_>, world: &World<'_>, notes: &mut Vec<String>) -> Vec<wire::Parent> {
    let mut found = Vec::new();
    for parent in route.parent_refs {
        if is_service(parent) && is_of_connections(route.kind) {
            let kind = route.kind;
            notes.push(format!(
                "a {kind} is for Gateways: a Service can't be its parent"
            ));
            continue;
        }
        if !is_service(parent) {
            // A Gateway's: it is attached to listeners, or whoever makes the Gateway reads it.
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

/// Nobody reads what is said in them.
pub(crate) fn is_of_connections(kind: Kind) -> bool {
    matches!(kind, Kind::TlsRoute | Kind::TcpRoute)
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
    rule: Rule<'_>,
    (parents, listeners): (&[wire::Parent], &[wire::Attachment]),
    world: &World<'_>,
) -> (wire::RouteRule, Notes) {
    let mut notes = rule.notes;
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
    if rule.session.is_some() && !listeners.is_empty() {
        for key in backend::bound(rule.backends, route, world) {
            notes.refuse(format!(
                "sessionPersistence at a Gateway: the pods of Service {key} are chosen by its waypoint, so say it for that"
            ));
        }
    }
    let created = route.metadata.creation_timestamp.as_ref();
    let timeouts = &rule.timeouts;
    let translated = wire::RouteRule {
        kind: route.kind.to_string(),
        namespace: route.key.namespace.clone(),
        name: route.key.name.clone(),
        rule: u32::try_from(index).unwrap_or(u32::MAX),
        created: created.map_or(0, |time| time.0.as_second()),
        parents: parents.to_vec(),
        matches: rule.matches,
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
        listeners: listeners.to_vec(),
        session: rule.session.map(|wanted| session(wanted, route, index)),
    };
    (translated, notes)
}

/// Without a name it is one that no other rule has.
fn session(
    wanted: &SessionPersistence,
    route: &Route<'_>,
    index: usize,
) -> wire::SessionPersistence {
    let ObjectKey { namespace, name } = route.key;
    let own = || format!("seine-{}-{namespace}-{name}-{index}", route.kind).to_ascii_lowercase();
    wire::SessionPersistence {
        name: wanted.session_name.clone().unwrap_or_else(own),
        header: wanted.is_header(),
        absolute_s: millis(wanted.absolute_timeout.as_deref()).unwrap_or_default() / 1000,
        permanent: wanted.is_permanent(),
    }
}

fn millis(text: Option<&str>) -> Option<u64> {
    let duration = text.and_then(parse_duration)?;
    Some(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}
