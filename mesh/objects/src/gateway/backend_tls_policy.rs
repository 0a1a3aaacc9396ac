//! `BackendTLSPolicy`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::CoreRef;
use super::unread::unread;

/// That a Service's pods speak TLS themselves, and who they then are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendTlsPolicy {
    /// Name and namespace.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What the user wants.
    pub spec: BackendTlsPolicySpec,
    /// The object itself.
    #[serde(skip)]
    pub(crate) given: Value,
}

/// What the user wants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendTlsPolicySpec {
    /// Services of its namespace.
    pub target_refs: Vec<TlsTarget>,
    /// Who they are.
    pub validation: BackendValidation,
}

/// A Service, or one of its ports.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TlsTarget {
    /// Empty: the core group.
    #[serde(default)]
    pub group: String,
    /// `Service`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Of one of its ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
}

/// Whose certificates are good.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BackendValidation {
    /// ConfigMaps with certificate authorities, of the policy's namespace.
    pub ca_certificate_refs: Vec<CoreRef>,
    /// What is asked for in TLS, and of whom the certificate is if `subjectAltNames` doesn't say it.
    pub hostname: String,
    /// Of one of these the certificate is.
    pub subject_alt_names: Vec<SubjectAltName>,
}

/// A name in a certificate; the field of its type is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SubjectAltName {
    /// `Hostname` or `URI`.
    pub r#type: String,
    /// A host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Such as a SPIFFE ID.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uri: Option<String>,
}

impl BackendTlsPolicy {
    /// Paths of the fields that Seine doesn't know, and so doesn't obey.
    pub fn unread(&self) -> Vec<String> {
        let kept = serde_json::to_value(&self.spec).expect("policies have text for keys");
        let mut found = Vec::new();
        unread(&self.given["spec"], &kept, "spec", &mut found);
        found
    }
}

impl TlsTarget {
    /// The Service's name, if it is one.
    pub fn service(&self) -> Option<&str> {
        let is_one = matches!(&*self.group, "" | "core") && self.kind == "Service";
        is_one.then_some(&*self.name)
    }
}
