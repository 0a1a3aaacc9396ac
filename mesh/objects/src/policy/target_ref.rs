//! What a policy is attached to.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Errors;

/// An object of the policy's own namespace that it is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// API group; empty for the core group, `gateway.networking.k8s.io` for a Gateway.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// `Service` or `Gateway`; others are accepted and reported as not resolved.
    #[schemars(length(min = 1))]
    pub kind: String,
    /// The object's name.
    #[schemars(length(min = 1))]
    pub name: String,
}

impl TargetRef {
    pub(super) fn validate(&self, path: &str, errors: &mut Errors) {
        if self.kind.is_empty() {
            errors.add(format!("{path}.kind"), "is empty");
        }
        if self.name.is_empty() {
            errors.add(format!("{path}.name"), "is empty");
        }
    }
}
