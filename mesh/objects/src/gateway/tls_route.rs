//! `TLSRoute`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::unread::unread;
use super::{BackendRef, ParentRef};
use crate::policy::FieldError;

/// Where TLS goes that is passed on as it is, by the host that the client asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TlsRoute {
    /// Name and namespace.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What the user wants.
    pub spec: TlsRouteSpec,
    /// The object itself.
    #[serde(skip)]
    pub(crate) given: Value,
}

/// What the user wants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TlsRouteSpec {
    /// The Gateways that it is attached to.
    pub parent_refs: Vec<ParentRef>,
    /// The hosts that it is about.
    pub hostnames: Vec<String>,
    /// One.
    pub rules: Vec<TlsRouteRule>,
}

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

impl TlsRoute {
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
        for (rule, backends) in self
            .spec
            .rules
            .iter()
            .map(|rule| &rule.backend_refs)
            .enumerate()
        {
            for (index, backend) in backends.iter().enumerate() {
                let path = format!("spec.rules[{rule}].backendRefs[{index}]");
                backend.validate(&path, &mut errors);
            }
        }
        errors
    }
}
