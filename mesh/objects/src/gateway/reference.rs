//! What kinds of routes have in common: whom they are about, what they look at, and where they lead.

use serde::{Deserialize, Serialize};

use super::filter::validate_filters;
use super::{Filter, GROUP};
use crate::ObjectKey;
use crate::policy::FieldError;

/// A Gateway, or a Service of the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// By default that of Gateways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// By default `Gateway`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// By default the route's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The object's name.
    pub name: String,
    /// One of a Gateway's listeners or a Service's ports, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// One of its ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

impl ParentRef {
    /// The Service that it names; `namespace` is the route's.
    pub fn service(&self, namespace: &str) -> Option<ObjectKey> {
        let group = self.group.as_deref().unwrap_or(GROUP);
        let kind = self.kind.as_deref().unwrap_or("Gateway");
        let namespace = self.namespace.as_deref().unwrap_or(namespace);
        (matches!(group, "" | "core") && kind == "Service")
            .then(|| ObjectKey::new(namespace, &self.name))
    }

    /// The Gateway that it names; `namespace` is the route's.
    pub fn gateway(&self, namespace: &str) -> Option<ObjectKey> {
        let group = self.group.as_deref().unwrap_or(GROUP);
        let kind = self.kind.as_deref().unwrap_or("Gateway");
        let namespace = self.namespace.as_deref().unwrap_or(namespace);
        (group == GROUP && kind == "Gateway").then(|| ObjectKey::new(namespace, &self.name))
    }
}

/// A header or query parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamedMatch {
    /// `Exact`, the default, or `RegularExpression`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A service and one of its ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BackendRef {
    /// By default the core group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// By default `Service`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// By default the route's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The service's name.
    pub name: String,
    /// The service's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Its share, relative to the sum; by default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// For the requests that go to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<Filter>,
}

impl BackendRef {
    /// Everything that is wrong with one of a list.
    pub(super) fn validate(&self, path: &str, errors: &mut Vec<FieldError>) {
        if self.port == Some(0) {
            let message = "0 is no port: use 1 to 65535";
            add(errors, format!("{path}.port"), message);
        }
        validate_filters(&self.filters, path, errors);
    }
}

/// Names of headers that can be in no request.
pub(super) fn validate_headers(headers: &[NamedMatch], path: &str, errors: &mut Vec<FieldError>) {
    for (number, header) in headers.iter().enumerate() {
        if !is_token(&header.name) {
            let field = format!("{path}.headers[{number}].name");
            add(errors, field, "is no name of a header");
        }
    }
}

pub(super) fn add(errors: &mut Vec<FieldError>, field: String, message: impl Into<String>) {
    errors.push(FieldError {
        field,
        message: message.into(),
    });
}

/// A token of RFC 9110.
pub(crate) fn is_token(text: &str) -> bool {
    let special = |byte: &u8| b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || special(&byte))
}
