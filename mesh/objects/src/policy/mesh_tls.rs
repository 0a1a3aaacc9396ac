//! `MeshTLS`: whether enrolled pods take plaintext.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Errors, FieldError, PolicyStatus, Selector};

/// Whether the enrolled pods that it selects accept connections outside of mutual TLS.
///
/// Without a selector it holds for its namespace, and in `seine-system` for the mesh. The most
/// specific one that says something about a port decides: selector, then namespace, then mesh;
/// of several on one level the oldest. Where none says anything plaintext is accepted.
#[derive(
    CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema,
)]
#[kube(
    group = "policy.seine.dev",
    version = "v1alpha1",
    kind = "MeshTLS",
    root = "MeshTls",
    plural = "meshtls",
    namespaced,
    status = "PolicyStatus",
    derive = "PartialEq",
    category = "seine",
    shortname = "mtls",
    printcolumn = r#"{"name":"Mode","type":"string","jsonPath":".spec.mode"}"#,
    printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.conditions[?(@.type=='Accepted')].status"}"#,
    printcolumn = r#"{"name":"Enforced","type":"string","jsonPath":".status.conditions[?(@.type=='Enforced')].status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.mode) || (has(self.ports) && size(self.ports) > 0)",
    "message": "says nothing: set mode or ports",
}]))]
pub struct MeshTlsSpec {
    /// Mode of every port that `ports` doesn't name; without it the next wider `MeshTLS` decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Pods of this namespace; without it all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// Modes of single ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["port"]))]
    pub ports: Vec<PortMode>,
}

/// Whether plaintext is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// Mutual TLS alone.
    Strict,
    /// Plaintext too.
    Permissive,
}

/// The mode of one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PortMode {
    /// The port on which the pod listens (not the service's).
    #[schemars(range(min = 1))]
    pub port: u16,
    /// Its mode.
    pub mode: Mode,
}

impl MeshTls {
    /// Everything that is wrong with it.
    pub fn validate(&self) -> Vec<FieldError> {
        let mut errors = Errors::default();
        if let Some(selector) = &self.spec.selector {
            selector.validate("spec.selector", &mut errors);
        }
        if self.spec.mode.is_none() && self.spec.ports.is_empty() {
            errors.add("spec", "says nothing: set mode or ports");
        }
        for (index, port) in self.spec.ports.iter().enumerate() {
            let field = format!("spec.ports[{index}].port");
            errors.port(field.clone(), port.port);
            if self.spec.ports[..index]
                .iter()
                .any(|earlier| earlier.port == port.port)
            {
                errors.add(field, format!("port {} is there twice", port.port));
            }
        }
        errors.0
    }
}
