//! Whose hosts are at a listener that takes HTTPRoutes and GRPCRoutes: a host is of routes of one kind.
//!
//! The Gateway API wants exactly one accepted of two routes of the two kinds that are about a common host at one listener: the older,
//! then the first by name (GRPCRoute, `hostnames`).

use std::collections::{BTreeMap, BTreeSet};

use seine_objects::gateway::AnyRoute;
use seine_objects::{Kind, ObjectKey, ObjectSet};

use super::ingress;

/// A listener: its Gateway, and its index there.
type At = (ObjectKey, usize);
type Route = (Kind, ObjectKey);

/// The routes that are not accepted at a listener, each with the one that has a host of theirs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Claims(BTreeMap<At, BTreeMap<Route, Route>>);

impl Claims {
    /// Of all listeners.
    pub(crate) fn of(objects: &ObjectSet) -> Self {
        let mut attached: BTreeMap<At, Vec<AnyRoute<'_>>> = BTreeMap::new();
        let none = Self::default();
        for route in objects.routes() {
            if !matches!(route.kind, Kind::HttpRoute | Kind::GrpcRoute) {
                continue;
            }
            let candidate = ingress::Candidate::new(&route, &none);
            let parents = route.parents.iter();
            let found = parents.filter_map(|parent| ingress::attach(objects, &candidate, parent));
            let found = found.flat_map(|(gateway, listeners)| {
                let listeners = listeners.unwrap_or_default().into_iter();
                listeners.map(move |listener| (gateway.clone(), listener))
            });
            // Several parents may be one listener.
            for at in found.collect::<BTreeSet<_>>() {
                attached.entry(at).or_default().push(route);
            }
        }
        let refused = attached
            .into_iter()
            .map(|(at, routes)| (at, refused(routes)));
        Self(refused.filter(|(_, refused)| !refused.is_empty()).collect())
    }

    /// The route that has a host of this one at a listener.
    pub(super) fn before(&self, at: &At, route: &Route) -> Option<&Route> {
        self.0.get(at)?.get(route)
    }
}

fn refused(mut routes: Vec<AnyRoute<'_>>) -> BTreeMap<Route, Route> {
    let mut refused = BTreeMap::new();
    if routes.iter().all(|route| route.kind == routes[0].kind) {
        return refused;
    }
    routes.sort_by_key(|route| {
        let created = route.metadata.creation_timestamp.as_ref();
        // One whose age isn't known counts as the youngest, as among matches.
        let created = (created.is_none(), created.map(|time| time.0));
        (created, route.key, route.kind)
    });
    let mut accepted: Vec<AnyRoute<'_>> = Vec::new();
    for route in routes {
        let in_the_way = |other: &&AnyRoute<'_>| other.kind != route.kind && overlap(other, &route);
        match accepted.iter().find(in_the_way) {
            Some(other) => {
                let other = (other.kind, other.key.clone());
                refused.insert((route.kind, route.key.clone()), other);
            }
            None => accepted.push(route),
        }
    }
    refused
}

/// Whether two routes are about a common host.
fn overlap(one: &AnyRoute<'_>, other: &AnyRoute<'_>) -> bool {
    let (some, others) = (one.hostnames, other.hostnames);
    some.is_empty()
        || others.is_empty()
        || some
            .iter()
            .any(|host| others.iter().any(|other| meet(host, other)))
}

/// Whether a host is common to two, of which each may be `*.` and the end of a name.
fn meet(one: &str, other: &str) -> bool {
    let (one, other) = (one.to_ascii_lowercase(), other.to_ascii_lowercase());
    let below = |host: &str, of: &str| of.strip_prefix('*').is_some_and(|end| host.ends_with(end));
    one == other || below(&one, &other) || below(&other, &one)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn route(kind: &str, name: &str, year: u32, hosts: &[&str]) -> Value {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": kind,
            "metadata": {"name": name, "namespace": "shop", "creationTimestamp": format!("{year}-01-01T00:00:00Z")},
            "spec": {"parentRefs": [{"name": "gw", "sectionName": "a"}, {"name": "gw", "port": 80}], "hostnames": hosts, "rules": []},
        })
    }

    /// The routes that are refused, as `NAME by NAME`.
    fn refused(routes: &[Value]) -> Vec<String> {
        let gateway = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {"name": "gw", "namespace": "shop"},
            "spec": {"gatewayClassName": "seine", "listeners": [{"name": "a", "port": 80, "protocol": "HTTP"}]},
        });
        let objects = [&[gateway], routes].concat();
        let texts: Vec<_> = objects.iter().map(Value::to_string).collect();
        let (objects, problems) = ObjectSet::from_yaml(&texts.join("\n---\n"));
        assert_eq!(problems, []);
        let claims = Claims::of(&objects).0.into_values().flatten();
        let named = claims.map(|((_, route), (_, by))| format!("{} by {}", route.name, by.name));
        named.collect()
    }

    #[test]
    fn of_two_kinds_about_one_host_the_older_is_accepted_and_the_other_refused() {
        let (http, grpc) = ("HTTPRoute", "GRPCRoute");
        let pair = |hosts: &[&str], others: &[&str]| {
            refused(&[
                route(http, "new", 2002, hosts),
                route(grpc, "old", 2001, others),
            ])
        };
        assert_eq!(
            pair(&["a.example"], &["b.example", "A.example"]),
            ["new by old"]
        );
        assert_eq!(pair(&["*.example"], &["a.example"]), ["new by old"]);
        assert_eq!(pair(&["*.a.example"], &["*.example"]), ["new by old"]);
        assert_eq!(pair(&[], &["a.example"]), ["new by old"]);
        assert_eq!(pair(&["a.example"], &["b.example"]), [""; 0]);
        // Those of one kind share a host, and of one age the first by name wins.
        let same = [route(http, "a", 2001, &[]), route(http, "b", 2001, &[])];
        assert_eq!(refused(&same), [""; 0]);
        let names = [route(http, "b", 2001, &[]), route(grpc, "a", 2001, &[])];
        assert_eq!(refused(&names), ["b by a"]);
        // One that is refused is in nobody's way.
        let chain = [
            route(http, "one", 2001, &["a.example"]),
            route(grpc, "two", 2002, &["a.example", "b.example"]),
            route(http, "three", 2003, &["b.example"]),
        ];
        assert_eq!(refused(&chain), ["two by one"]);
    }
}
