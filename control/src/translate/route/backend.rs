//! Where a rule's requests go.

use seine_objects::{ObjectKey, gateway::BackendRef};
use seine_proto::waypoint as wire;

use super::{Notes, Route, World, filter};
use crate::translate::service;

/// A backend; one that can't be used is refused, and gets its share all the same.
pub(super) fn translate(
    backend: &BackendRef,
    route: &Route<'_>,
    world: &World<'_>,
    notes: &mut Notes,
) -> wire::Backend {
    let own = &route.key.namespace;
    let namespace = backend.namespace.as_deref().unwrap_or(own);
    let key = ObjectKey::new(namespace, &backend.name);
    wire::Backend {
        namespace: namespace.into(),
        hostname: service::hostname(&key, world.settings),
        port: backend.port.map_or(0, u32::from),
        weight: backend.weight.unwrap_or(1),
        filters: filter::translate(&backend.filters, route, world, notes),
        refused: problem(backend, &key, route, world).unwrap_or_default(),
    }
}

fn problem(
    backend: &BackendRef,
    key: &ObjectKey,
    route: &Route<'_>,
    world: &World<'_>,
) -> Option<String> {
    let group = backend.group.as_deref().unwrap_or_default();
    let kind = backend.kind.as_deref().unwrap_or("Service");
    let service = world.services.get(key);
    let has_port = |port: u16| {
        let ports = service.map(|service| &service.message.ports);
        ports.is_some_and(|ports| ports.iter().any(|p| p.service_port == u32::from(port)))
    };
    // Whether a service is there is for those to know who may refer to it.
    let (of, from) = (route.kind.to_string(), &route.key.namespace);
    Some(if !matches!(group, "" | "core") || kind != "Service" {
        format!("a backend can't be a {kind}: use a Service")
    } else if !(world.objects).may_refer(&of, from, route.parent_refs, key) {
        format!(
            "backend Service {key} is of another namespace, and no ReferenceGrant there admits a {of} of {from}"
        )
    } else if service.is_none() {
        format!("there is no backend Service {key}")
    } else if !backend.port.is_some_and(has_port) {
        match backend.port {
            Some(port) => format!("backend Service {key} has no port {port}"),
            None => format!("backend Service {key} is named without a port"),
        }
    } else {
        return None;
    })
}
