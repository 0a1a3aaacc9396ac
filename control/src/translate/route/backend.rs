//! Where a rule's requests go.

use seine_objects::{
    Kind, ObjectKey, ObjectSet,
    gateway::{BackendRef, ParentRef},
};
use seine_proto::waypoint as wire;

use super::{Notes, Route, World, filter};
use crate::translate::{backend_tls, service};

/// Why a backend can't be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unresolved {
    /// By the Gateway API's names of reasons of `ResolvedRefs`.
    pub(crate) reason: &'static str,
    /// For people.
    pub(crate) message: String,
}

/// A backend; one that can't be used is refused, and gets its share all the same.
pub(super) fn translate(
    backend: &BackendRef,
    route: &Route<'_>,
    world: &World<'_>,
    notes: &mut Notes,
) -> wire::Backend {
    let own = &route.key.namespace;
    let key = key_of(backend, own);
    let unresolved = unresolved(world.objects, route.kind, own, route.parent_refs, backend);
    let port = backend.port.unwrap_or_default();
    let tls = unresolved
        .is_none()
        .then(|| backend_tls::of(world.objects, &key, port));
    let mut tls = tls.flatten();
    let bound = world
        .services
        .get(&key)
        .is_some_and(|service| service.waypoint.is_some());
    if let Some(tls) = tls.as_mut().filter(|_| bound) {
        tls.refused = format!(
            "Service {key} uses a waypoint and has a BackendTLSPolicy: the waypoint could read nothing of what it is sent"
        );
    }
    if let Some(why) = tls
        .as_ref()
        .map(|tls| &tls.refused)
        .filter(|why| !why.is_empty())
    {
        notes.say(why.clone());
    }
    wire::Backend {
        tls,
        hostname: service::hostname(&key, world.settings),
        namespace: key.namespace,
        port: backend.port.map_or(0, u32::from),
        weight: backend.weight.unwrap_or(1),
        filters: filter::translate(&backend.filters, route, world, notes),
        refused: unresolved.map(|why| why.message).unwrap_or_default(),
    }
}

/// Those that use a waypoint.
pub(super) fn bound(
    backends: &[BackendRef],
    route: &Route<'_>,
    world: &World<'_>,
) -> Vec<ObjectKey> {
    let keys = backends.iter();
    let keys = keys.map(|backend| key_of(backend, &route.key.namespace));
    let is_bound = |key: &ObjectKey| {
        let service = world.services.get(key);
        service.is_some_and(|service| service.waypoint.is_some())
    };
    keys.filter(is_bound).collect()
}

/// Why a route of this kind and these parents in this namespace can't use a backend; `None`: it can.
pub(crate) fn unresolved(
    objects: &ObjectSet,
    of: Kind,
    namespace: &str,
    parents: &[ParentRef],
    backend: &BackendRef,
) -> Option<Unresolved> {
    let because = |reason, message| Some(Unresolved { reason, message });
    let group = backend.group.as_deref().unwrap_or_default();
    let kind = backend.kind.as_deref().unwrap_or("Service");
    if !matches!(group, "" | "core") || kind != "Service" {
        let message = format!("a backend can't be a {kind}: use a Service");
        return because("InvalidKind", message);
    }
    let key = key_of(backend, namespace);
    // Whether a service is there is for those to know who may refer to it.
    if !objects.may_refer(&of.to_string(), namespace, parents, &key) {
        let message = format!(
            "backend Service {key} is of another namespace, and no ReferenceGrant there admits a {of} of {namespace}"
        );
        return because("RefNotPermitted", message);
    }
    let not_found = |message| because("BackendNotFound", message);
    let service = objects.services.get(&key);
    let Some(spec) = service.and_then(|service| service.spec.as_ref()) else {
        return not_found(format!("there is no backend Service {key}"));
    };
    if service::is_external_name(spec) {
        let message = format!("backend Service {key} is of type ExternalName, which has no pods");
        return not_found(message);
    }
    let Some(port) = backend.port else {
        return not_found(format!("backend Service {key} is named without a port"));
    };
    let mut ports = service::tcp_ports(spec);
    match ports.any(|found| found.port == i32::from(port)) {
        true => None,
        false => not_found(format!("backend Service {key} has no port {port}")),
    }
}

fn key_of(backend: &BackendRef, namespace: &str) -> ObjectKey {
    let namespace = backend.namespace.as_deref().unwrap_or(namespace);
    ObjectKey::new(namespace, &backend.name)
}
