//! `GRPCRoute`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::filter::validate_filters;
use super::reference::validate_headers;
use super::unread::unread;
use super::{BackendRef, Filter, NamedMatch, ParentRef, SessionPersistence};
use crate::policy::FieldError;

/// How gRPC requests to services are matched, changed and passed on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GrpcRoute {
    /// Name and namespace.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What the user wants.
    pub spec: GrpcRouteSpec,
    /// The object itself.
    #[serde(skip)]
    pub(crate) given: Value,
}

/// What the user wants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcRouteSpec {
    /// What it is attached to.
    pub parent_refs: Vec<ParentRef>,
    /// For Gateways; a service has the names that it has.
    pub hostnames: Vec<String>,
    /// The first whose best match is the best decides.
    pub rules: Vec<GrpcRouteRule>,
}

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

impl GrpcRoute {
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
        for (index, rule) in self.spec.rules.iter().enumerate() {
            let path = format!("spec.rules[{index}]");
            for (index, wanted) in rule.matches.iter().enumerate() {
                let path = format!("{path}.matches[{index}]");
                validate_headers(&wanted.headers, &path, &mut errors);
            }
            validate_filters(&rule.filters, &path, &mut errors);
            if let Some(session) = &rule.session_persistence {
                session.validate(&path, &mut errors);
            }
            for (index, backend) in rule.backend_refs.iter().enumerate() {
                backend.validate(&format!("{path}.backendRefs[{index}]"), &mut errors);
            }
        }
        errors
    }
}
