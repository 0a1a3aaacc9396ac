//! The policy CRDs of group `policy.seine.dev`, version `v1alpha1`.
//!
//! Types, schemas and validation. What a policy means to a connection is said once, in the
//! control plane's translation and the verdict function; here stands only what makes it valid.
//! Unknown fields are errors: a misspelt restriction must not be a missing one.

mod authorization;
mod jwks;
mod mesh_tls;
mod provider;
mod request_authentication;
mod selector;
mod stand_in;
mod target_ref;
mod traffic;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::core::CustomResourceExt as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use authorization::{
    Action, AuthorizationPolicy, AuthorizationPolicySpec, ClaimMatch, HeaderMatch, Operation, Rule,
    Source,
};
pub(crate) use authorization::{is_name, parse_ip_block};
pub use mesh_tls::{MeshTls, MeshTlsSpec, Mode, PortMode};
pub use provider::{Provider, ProviderProtocol};
pub use request_authentication::{
    ClaimToHeader, JwtRule, RequestAuthentication, RequestAuthenticationSpec, TokenHeader,
};
pub use selector::{Operator, Requirement, Selector};
pub(crate) use stand_in::stand_in;
pub use target_ref::TargetRef;
pub use traffic::{
    AdaptiveConcurrency, Algorithm, CircuitBreaker, HashOn, HashSource, LoadBalancer,
    OutlierDetection, Per, PerType, RateLimit, RetryBudget, SlowStart, TrafficPolicy,
    TrafficPolicySpec, Unit, ZoneAware,
};

/// API group of every policy.
pub const GROUP: &str = "policy.seine.dev";
/// `apiVersion` of every policy.
pub const API_VERSION: &str = "policy.seine.dev/v1alpha1";
/// The namespace whose policies without a selector hold for the whole mesh.
pub const ROOT_NAMESPACE: &str = "seine-system";

/// What became of a policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// `Accepted`, `ResolvedRefs`, `Programmed` (not of a `TrafficPolicy`) and `Enforced`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Something that is wrong in one field of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldError {
    /// Path from the object's root, such as `spec.rules[0].to[0].ports[1]`.
    pub field: String,
    /// What is wrong and what would be right.
    pub message: String,
}

/// Collects what is wrong in an object.
#[derive(Default)]
pub(crate) struct Errors(pub(crate) Vec<FieldError>);

impl Errors {
    pub(crate) fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(FieldError {
            field: field.into(),
            message: message.into(),
        });
    }

    fn port(&mut self, field: impl Into<String>, port: u16) {
        if port == 0 {
            self.add(field, "0 is no port: use 1 to 65535");
        }
    }
}

/// The CRDs as YAML files: name and content.
pub fn crds() -> Result<Vec<(&'static str, String)>, serde_saphyr::ser_error::Error> {
    Ok(vec![
        (
            "authorizationpolicies.policy.seine.dev.yaml",
            yaml(&AuthorizationPolicy::crd())?,
        ),
        ("meshtls.policy.seine.dev.yaml", yaml(&MeshTls::crd())?),
        (
            "trafficpolicies.policy.seine.dev.yaml",
            yaml(&TrafficPolicy::crd())?,
        ),
        (
            "requestauthentications.policy.seine.dev.yaml",
            yaml(&RequestAuthentication::crd())?,
        ),
    ])
}

fn yaml<T: Serialize>(object: &T) -> Result<String, serde_saphyr::ser_error::Error> {
    serde_saphyr::to_string(object)
}
