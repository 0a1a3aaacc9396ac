//! `HTTPRoute` to the rules that waypoints obey.
//!
//! Nothing of a route is dropped: a rule with a part that waypoints don't know yet is answered with 500, and a backend
//! that doesn't exist with its share of that, as the Gateway API wants it.

use seine_objects::{
    ObjectKey, ObjectSet,
    gateway::{
        self, BackendRef, Filter, HeaderModifier, HttpRoute, HttpRouteMatch, HttpRouteRule,
        NamedMatch, ParentRef, PathModifier, parse_duration,
    },
};
use seine_proto::waypoint::{self as wire, filter, r#match, path_change};

use super::{Resources, Settings, service};

type Services = std::collections::BTreeMap<ObjectKey, service::Translated>;

/// Adds every rule of a route with a parent that is bound to a waypoint, and what users should know.
pub(super) fn translate(
    objects: &ObjectSet,
    services: &Services,
    settings: &Settings,
    resources: &mut Resources,
) {
    for (key, route) in &objects.http_routes {
        let mut notes = Vec::new();
        let parents = parents(key, route, services, settings, &mut notes);
        if !parents.is_empty() {
            let unread = route.unread();
            let implied = [HttpRouteRule::default()];
            let rules = match route.spec.rules.is_empty() {
                true => &implied[..],
                false => &route.spec.rules,
            };
            for (index, rule) in rules.iter().enumerate() {
                let translated = translate_rule(
                    key, route, index, rule, &parents, &unread, services, settings,
                );
                if !translated.refused.is_empty() {
                    notes.push(format!(
                        "spec.rules[{index}] is answered with 500: {}",
                        translated.refused
                    ));
                }
                for backend in translated.backends.iter().filter(|b| !b.refused.is_empty()) {
                    notes.push(format!("spec.rules[{index}]: {}", backend.refused));
                }
                let name = format!("HTTPRoute/{key}/{index}");
                resources.routes.insert(name, translated);
            }
        }
        if !notes.is_empty() {
            resources.findings.routes.insert(key.clone(), notes);
        }
    }
}

fn parents(
    key: &ObjectKey,
    route: &HttpRoute,
    services: &Services,
    settings: &Settings,
    notes: &mut Vec<String>,
) -> Vec<wire::Parent> {
    let mut found = Vec::new();
    for parent in &route.spec.parent_refs {
        if !is_service(parent) {
            // A Gateway's, and whoever makes that reads it.
            continue;
        }
        let namespace = parent.namespace.as_deref().unwrap_or(&key.namespace);
        let parent_key = ObjectKey::new(namespace, &parent.name);
        let Some(service) = services.get(&parent_key) else {
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
            hostname: service::hostname(&parent_key, settings),
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

#[allow(clippy::too_many_arguments, reason = "one loop's body, named")]
fn translate_rule(
    key: &ObjectKey,
    route: &HttpRoute,
    index: usize,
    rule: &HttpRouteRule,
    parents: &[wire::Parent],
    unread: &[String],
    services: &Services,
    settings: &Settings,
) -> wire::RouteRule {
    let path = format!("spec.rules[{index}].");
    let mut refused: Vec<String> = unread
        .iter()
        .filter(|field| field.starts_with(&path))
        .map(|field| format!("{field} is not supported yet"))
        .collect();
    let matches = rule.matches.iter();
    let matches = matches
        .map(|wanted| translate_match(wanted, &mut refused))
        .collect();
    let filters = translate_filters(&rule.filters, &mut refused);
    let backends = rule.backend_refs.iter();
    let backends = backends
        .map(|backend| translate_backend(key, backend, services, settings, &mut refused))
        .collect();
    let timeouts = rule.timeouts.clone().unwrap_or_default();
    let millis = |text: Option<String>| {
        let limit = text.as_deref().and_then(parse_duration).unwrap_or_default();
        u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)
    };
    let created = route.metadata.creation_timestamp.as_ref();
    wire::RouteRule {
        kind: "HTTPRoute".into(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        rule: u32::try_from(index).unwrap_or(u32::MAX),
        created: created.map_or(0, |time| time.0.as_second()),
        parents: parents.to_vec(),
        matches,
        filters,
        backends,
        request_timeout_ms: millis(timeouts.request),
        backend_timeout_ms: millis(timeouts.backend_request),
        refused: refused.join("; "),
    }
}

fn translate_match(wanted: &HttpRouteMatch, refused: &mut Vec<String>) -> wire::Match {
    let path = wanted.path.clone().unwrap_or_default();
    let value = path.value.unwrap_or_else(|| "/".into());
    let path = match path.r#type.as_deref() {
        Some("Exact") => r#match::Path::Exact(value),
        None | Some("PathPrefix") => r#match::Path::Prefix(value),
        Some(other) => {
            refused.push(format!("path matches of type {other} are not supported"));
            r#match::Path::Prefix("/".into())
        }
    };
    wire::Match {
        path: Some(path),
        method: wanted.method.clone().unwrap_or_default(),
        headers: pairs(&wanted.headers, str::to_ascii_lowercase, refused),
        query: pairs(&wanted.query_params, str::to_owned, refused),
    }
}

/// Of several of one name only the first counts.
fn pairs(
    wanted: &[NamedMatch],
    name: impl Fn(&str) -> String,
    refused: &mut Vec<String>,
) -> Vec<wire::Pair> {
    let mut found: Vec<wire::Pair> = Vec::new();
    for one in wanted {
        if let Some(other) = one.r#type.as_deref().filter(|kind| *kind != "Exact") {
            refused.push(format!("matches of type {other} are not supported"));
        }
        let name = name(&one.name);
        if found.iter().all(|earlier| earlier.name != name) {
            let value = one.value.clone();
            found.push(wire::Pair { name, value });
        }
    }
    found
}

fn translate_filters(filters: &[Filter], refused: &mut Vec<String>) -> Vec<wire::Filter> {
    let mut found = Vec::new();
    for one in filters {
        let translated = match one.r#type.as_str() {
            "RequestHeaderModifier" => one
                .request_header_modifier
                .as_ref()
                .map(|change| filter::Filter::RequestHeaders(header_change(change))),
            "ResponseHeaderModifier" => one
                .response_header_modifier
                .as_ref()
                .map(|change| filter::Filter::ResponseHeaders(header_change(change))),
            "RequestRedirect" => one.request_redirect.as_ref().map(|redirect| {
                filter::Filter::Redirect(wire::Redirect {
                    scheme: redirect.scheme.clone().unwrap_or_default(),
                    hostname: redirect.hostname.clone().unwrap_or_default(),
                    path: redirect.path.as_ref().and_then(path_change),
                    port: redirect.port.map_or(0, u32::from),
                    status: redirect.status_code.map_or(302, u32::from),
                })
            }),
            "URLRewrite" => one.url_rewrite.as_ref().map(|rewrite| {
                filter::Filter::Rewrite(wire::Rewrite {
                    hostname: rewrite.hostname.clone().unwrap_or_default(),
                    path: rewrite.path.as_ref().and_then(path_change),
                })
            }),
            _ => None,
        };
        match translated {
            Some(translated) => found.push(wire::Filter {
                filter: Some(translated),
            }),
            None => refused.push(format!("filter {} is not supported or empty", one.r#type)),
        }
    }
    found
}

fn header_change(change: &HeaderModifier) -> wire::HeaderChange {
    let pairs = |headers: &[gateway::Header]| {
        let pair = |header: &gateway::Header| wire::Pair {
            name: header.name.to_ascii_lowercase(),
            value: header.value.clone(),
        };
        headers.iter().map(pair).collect()
    };
    let remove = change.remove.iter();
    wire::HeaderChange {
        set: pairs(&change.set),
        add: pairs(&change.add),
        remove: remove.map(|name| name.to_ascii_lowercase()).collect(),
    }
}

fn path_change(path: &PathModifier) -> Option<wire::PathChange> {
    let change = match path.r#type.as_str() {
        "ReplaceFullPath" => path_change::Change::Full(path.replace_full_path.clone()?),
        "ReplacePrefixMatch" => path_change::Change::Prefix(path.replace_prefix_match.clone()?),
        _ => return None,
    };
    Some(wire::PathChange {
        change: Some(change),
    })
}

fn translate_backend(
    key: &ObjectKey,
    backend: &BackendRef,
    services: &Services,
    settings: &Settings,
    refused: &mut Vec<String>,
) -> wire::Backend {
    let namespace = backend.namespace.as_deref().unwrap_or(&key.namespace);
    let backend_key = ObjectKey::new(namespace, &backend.name);
    let group = backend.group.as_deref().unwrap_or_default();
    let kind = backend.kind.as_deref().unwrap_or("Service");
    let service = services.get(&backend_key);
    let has_port = |port: u16| {
        let ports = service.map(|service| &service.message.ports);
        ports.is_some_and(|ports| ports.iter().any(|p| p.service_port == u32::from(port)))
    };
    let problem = if !matches!(group, "" | "core") || kind != "Service" {
        format!("a backend can't be a {kind}: use a Service")
    } else if namespace != key.namespace {
        format!("backend Service {backend_key} is of another namespace, which is not supported yet")
    } else if service.is_none() {
        format!("there is no backend Service {backend_key}")
    } else if !backend.port.is_some_and(has_port) {
        match backend.port {
            Some(port) => format!("backend Service {backend_key} has no port {port}"),
            None => format!("backend Service {backend_key} is named without a port"),
        }
    } else {
        String::new()
    };
    wire::Backend {
        namespace: namespace.into(),
        hostname: service::hostname(&backend_key, settings),
        port: backend.port.map_or(0, u32::from),
        weight: backend.weight.unwrap_or(1),
        filters: translate_filters(&backend.filters, refused),
        refused: problem,
    }
}
