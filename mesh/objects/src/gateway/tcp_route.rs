//! `TCPRoute`.

use serde::{Deserialize, Serialize};

use super::{BackendRef, Route, RouteRule};
use crate::Kind;
use crate::policy::FieldError;

/// Where connections go that come in at a port.
pub type TcpRoute = Route<TcpRouteRule>;

/// Where connections go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TcpRouteRule {
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// By weight.
    pub backend_refs: Vec<BackendRef>,
}

impl RouteRule for TcpRouteRule {
    const KIND: Kind = Kind::TcpRoute;

    fn backends(&self) -> &[BackendRef] {
        &self.backend_refs
    }

    fn validate(&self, _: &str, _: &mut Vec<FieldError>) {}
}
