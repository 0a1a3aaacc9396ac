//! `GRPCRoute`.

use serde::{Deserialize, Serialize};

use super::filter::validate_filters;
use super::reference::validate_headers;
use super::{BackendRef, Filter, NamedMatch, Route, RouteRule, SessionPersistence};
use crate::Kind;
use crate::policy::FieldError;

/// How gRPC requests to services are matched, changed and passed on.
pub type GrpcRoute = Route<GrpcRouteRule>;

/// What becomes of the requests that match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcRouteRule {
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Any; none is every request.
    pub matches: Vec<GrpcRouteMatch>,
    /// Applied in order.
    pub filters: Vec<Filter>,
    /// Where they go, by weight.
    pub backend_refs: Vec<BackendRef>,
    /// That the requests of a session are answered by one pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_persistence: Option<SessionPersistence>,
}

/// Everything that is set must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcRouteMatch {
    /// By default every method of every service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<GrpcMethodMatch>,
    /// All of them.
    pub headers: Vec<NamedMatch>,
}

/// A service, a method, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcMethodMatch {
    /// `Exact`, the default, or `RegularExpression`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    /// Its full name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}

impl RouteRule for GrpcRouteRule {
    const KIND: Kind = Kind::GrpcRoute;

    fn filters(&self) -> &[Filter] {
        &self.filters
    }

    fn backends(&self) -> &[BackendRef] {
        &self.backend_refs
    }

    fn validate(&self, path: &str, errors: &mut Vec<FieldError>) {
        for (index, wanted) in self.matches.iter().enumerate() {
            let path = format!("{path}.matches[{index}]");
            validate_headers(&wanted.headers, &path, errors);
        }
        validate_filters(&self.filters, path, errors);
        if let Some(session) = &self.session_persistence {
            session.validate(path, errors);
        }
    }
}
