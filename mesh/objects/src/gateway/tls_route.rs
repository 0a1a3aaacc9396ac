//! `TLSRoute`.

use serde::{Deserialize, Serialize};

use super::{BackendRef, Route, RouteRule};
use crate::Kind;
use crate::policy::FieldError;

/// Where TLS goes, by the host that the client asks for: as it is, or what was in it.
pub type TlsRoute = Route<TlsRouteRule>;

/// Where connections go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsRouteRule {
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// By weight.
    pub backend_refs: Vec<BackendRef>,
}

impl RouteRule for TlsRouteRule {
    const KIND: Kind = Kind::TlsRoute;

    fn backends(&self) -> &[BackendRef] {
        &self.backend_refs
    }

    fn validate(&self, _: &str, _: &mut Vec<FieldError>) {}
}
