//! Istio's policies, for who comes from there: `AuthorizationPolicy`, `PeerAuthentication` and `RequestAuthentication` of
//! `security.istio.io`.
//!
//! Types and validation; what of them is enforced, and how, is said in `docs/ISTIO.md` and done by the control plane's
//! translation. Istio owns the CRDs, so there are no schemas here. As in our own policies an unknown field is an
//! error: a restriction that came with a newer Istio must not be a missing one.

mod authorization;
mod peer_authentication;
mod request_authentication;
mod stand_in;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

pub use authorization::{
    Action, AuthorizationPolicy, AuthorizationPolicySpec, Condition, From, Operation, Provider,
    Rule, Source, TargetRef, To, blocks, ports,
};
pub use peer_authentication::{MutualTls, PeerAuthentication, PeerAuthenticationSpec, TlsMode};
pub use request_authentication::{
    OutputClaim, RequestAuthentication, RequestAuthenticationSpec, Rule as JwtRule,
};
pub(crate) use stand_in::{
    authorization_stand_in, peer_authentication_stand_in, request_authentication_stand_in,
};

use crate::policy::{Errors, Selector};

/// API group of all.
pub const GROUP: &str = "security.istio.io";
/// The version that is watched; files may have `v1beta1`, which is the same.
pub const VERSION: &str = "v1";
/// The namespace whose policies without a selector hold for the whole mesh, unless Istio was told another.
pub const ROOT_NAMESPACE: &str = "istio-system";

/// An object of Istio's with this specification.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IstioObject<Spec> {
    /// Group and version.
    #[serde(default)]
    pub api_version: String,
    /// The kind.
    #[serde(default)]
    pub kind: String,
    /// Name, labels, annotations.
    pub metadata: ObjectMeta,
    /// What it says; an object without one says what an empty one does.
    #[serde(default)]
    pub spec: Spec,
}

/// Labels that a pod must have; none: every pod of the namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadSelector {
    /// The labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
}

impl WorkloadSelector {
    fn validate(&self, path: &str, errors: &mut Errors) {
        for (key, value) in &self.match_labels {
            if key.is_empty() || key.contains('*') || value.contains('*') {
                errors.add(
                    format!("{path}.matchLabels"),
                    format!("{key:?}: {value:?} is no label: wildcards are not allowed"),
                );
            }
        }
    }

    fn to_selector(&self) -> Selector {
        Selector {
            match_labels: self.match_labels.clone(),
            match_expressions: Vec::new(),
        }
    }
}
