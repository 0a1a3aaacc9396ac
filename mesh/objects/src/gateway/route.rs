//! What routes of all kinds have.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::reference::add;
use super::unread::unread;
use super::{BackendRef, Filter, ParentRef};
use crate::policy::FieldError;
use crate::{Kind, ObjectKey, ObjectSet};

/// A route: what it is attached to, the hosts that it is about, and rules of its kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[serde(bound(serialize = "R: Serialize", deserialize = "R: RouteRule"))]
pub struct Route<R> {
    /// Name and namespace.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What the user wants.
    pub spec: RouteSpec<R>,
    /// The object itself.
    #[serde(skip)]
    pub(crate) given: Value,
}

/// What the user wants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[serde(bound(serialize = "R: Serialize", deserialize = "R: RouteRule"))]
pub struct RouteSpec<R> {
    /// What it is attached to.
    pub parent_refs: Vec<ParentRef>,
    /// For Gateways; a service has the names that it has.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hostnames: Vec<String>,
    /// The first whose best match is the best decides.
    pub rules: Vec<R>,
}

/// What becomes of what matches, in the way of one kind of routes.
pub trait RouteRule: Default + Serialize + DeserializeOwned {
    /// The kind of the routes.
    const KIND: Kind;

    /// Changes to requests.
    fn filters(&self) -> &[Filter] {
        &[]
    }

    /// Where they go, by weight.
    fn backends(&self) -> &[BackendRef];

    /// Everything that is wrong with it but for its backends; `path` is its own.
    fn validate(&self, path: &str, errors: &mut Vec<FieldError>);
}

impl<R: RouteRule> Route<R> {
    /// Paths of the fields that Seine doesn't know, and so doesn't obey.
    pub fn unread(&self) -> Vec<String> {
        let kept = serde_json::to_value(&self.spec).expect("routes have text for keys");
        let mut found = Vec::new();
        unread(&self.given["spec"], &kept, "spec", &mut found);
        found
    }

    /// Everything that is wrong with it.
    pub fn validate(&self) -> Vec<FieldError> {
        let mut errors = Vec::new();
        if R::KIND == Kind::TcpRoute && !self.spec.hostnames.is_empty() {
            let message = "nobody says in TCP which host is meant";
            add(&mut errors, "spec.hostnames".into(), message);
        }
        for (index, rule) in self.spec.rules.iter().enumerate() {
            let path = format!("spec.rules[{index}]");
            rule.validate(&path, &mut errors);
            for (index, backend) in rule.backends().iter().enumerate() {
                backend.validate(&format!("{path}.backendRefs[{index}]"), &mut errors);
            }
        }
        errors
    }

    /// Without what is its kind's own.
    pub fn any<'a>(&'a self, key: &'a ObjectKey) -> AnyRoute<'a> {
        AnyRoute {
            kind: R::KIND,
            key,
            metadata: &self.metadata,
            parents: &self.spec.parent_refs,
            hostnames: &self.spec.hostnames,
        }
    }

    /// Where requests go by the filters and backends of its rules, and copies of them.
    fn all_backends(&self) -> Vec<&BackendRef> {
        fn mirrors(filters: &[Filter]) -> impl Iterator<Item = &BackendRef> {
            let mirrors = filters
                .iter()
                .filter_map(|filter| filter.request_mirror.as_ref());
            mirrors.map(|mirror| &mirror.backend_ref)
        }
        fn of_rule<R: RouteRule>(rule: &R) -> impl Iterator<Item = &BackendRef> {
            let own = rule.backends().iter();
            let copies = own.clone().flat_map(|backend| mirrors(&backend.filters));
            own.chain(copies).chain(mirrors(rule.filters()))
        }
        self.spec.rules.iter().flat_map(of_rule).collect()
    }
}

/// A route of any kind.
#[derive(Clone, Copy, Debug)]
pub struct AnyRoute<'a> {
    /// Its kind.
    pub kind: Kind,
    /// Its key.
    pub key: &'a ObjectKey,
    /// When it was made, and which version it is.
    pub metadata: &'a ObjectMeta,
    /// What it is attached to.
    pub parents: &'a [ParentRef],
    /// The hosts that it is about.
    pub hostnames: &'a [String],
}

impl ObjectSet {
    /// Every route.
    pub fn routes(&self) -> impl Iterator<Item = AnyRoute<'_>> {
        let http = self.http_routes.iter().map(|(key, route)| route.any(key));
        let grpc = self.grpc_routes.iter().map(|(key, route)| route.any(key));
        let tls = self.tls_routes.iter().map(|(key, route)| route.any(key));
        let tcp = self.tcp_routes.iter().map(|(key, route)| route.any(key));
        http.chain(grpc).chain(tls).chain(tcp)
    }

    /// The route of this kind and key, if there is one.
    pub fn route<'a>(&'a self, kind: Kind, key: &'a ObjectKey) -> Option<AnyRoute<'a>> {
        Some(match kind {
            Kind::HttpRoute => self.http_routes.get(key)?.any(key),
            Kind::GrpcRoute => self.grpc_routes.get(key)?.any(key),
            Kind::TlsRoute => self.tls_routes.get(key)?.any(key),
            Kind::TcpRoute => self.tcp_routes.get(key)?.any(key),
            _ => return None,
        })
    }

    /// Where a route's requests go, and copies of them.
    pub fn route_backends(&self, kind: Kind, key: &ObjectKey) -> Vec<&BackendRef> {
        let found = match kind {
            Kind::HttpRoute => self.http_routes.get(key).map(|route| route.all_backends()),
            Kind::GrpcRoute => self.grpc_routes.get(key).map(|route| route.all_backends()),
            Kind::TlsRoute => self.tls_routes.get(key).map(|route| route.all_backends()),
            Kind::TcpRoute => self.tcp_routes.get(key).map(|route| route.all_backends()),
            _ => None,
        };
        found.unwrap_or_default()
    }
}
