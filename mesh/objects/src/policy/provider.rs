//! Whom an `AuthorizationPolicy` has asked about requests.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Errors;
use super::authorization::is_name;
use super::request_authentication::is_header_name;
use crate::gateway::parse_duration;

/// A Service that says whether a request may go on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "self.protocol == 'Http' || (!has(self.pathPrefix) && !has(self.requestHeaders) && !has(self.headersToBackend) && !has(self.headersToClient))",
    "message": "pathPrefix, requestHeaders, headersToBackend and headersToClient are of protocol Http",
}]))]
pub struct Provider {
    /// A Service of the policy's own namespace.
    #[schemars(length(min = 1))]
    pub service: String,
    /// Its port.
    #[schemars(range(min = 1))]
    pub port: u16,
    /// What it speaks.
    pub protocol: ProviderProtocol,
    /// How long it may take, such as `200ms`; 1 s without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Let a request go on when there is no answer, or none that makes sense. By default it is refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fail_open: bool,
    /// Of `Http`: what stands before the request's path.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub path_prefix: String,
    /// Of `Http`: the request's headers that it is sent, beside `Host` and `Authorization`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub request_headers: Vec<String>,
    /// Of `Http`: headers of its yes that the service is sent. They are taken from every request before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers_to_backend: Vec<String>,
    /// Of `Http`: headers of its yes that the client is sent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers_to_client: Vec<String>,
}

/// What a provider speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ProviderProtocol {
    /// Envoy's `ext_authz`: `envoy.service.auth.v3.Authorization/Check`.
    #[default]
    Grpc,
    /// The request without its body. 200 is a yes; what isn't, below 500, is the client's answer.
    Http,
}

impl Provider {
    pub(super) fn validate(&self, errors: &mut Errors) {
        if !is_name(&self.service) {
            let why = format!("{:?} is no Service's name", self.service);
            errors.add("spec.provider.service", why);
        }
        errors.port("spec.provider.port", self.port);
        let timeout = self.timeout.as_deref().map(parse_duration);
        if timeout.is_some_and(|timeout| timeout.is_none_or(|timeout| timeout.is_zero())) {
            errors.add("spec.provider.timeout", "is no time such as 200ms");
        }
        let of_http = [
            ("requestHeaders", &self.request_headers),
            ("headersToBackend", &self.headers_to_backend),
            ("headersToClient", &self.headers_to_client),
        ];
        for (field, names) in of_http {
            let path = format!("spec.provider.{field}");
            if self.protocol != ProviderProtocol::Http && !names.is_empty() {
                errors.add(&path, "is of protocol Http");
            }
            for (index, name) in names.iter().enumerate() {
                if !is_header_name(name) {
                    errors.add(
                        format!("{path}[{index}]"),
                        format!("{name:?} is no header's name"),
                    );
                }
            }
        }
        let prefix = &self.path_prefix;
        if !prefix.is_empty() && self.protocol != ProviderProtocol::Http {
            errors.add("spec.provider.pathPrefix", "is of protocol Http");
        }
        let good = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'\\');
        let is_path = prefix.starts_with('/') && prefix.bytes().all(good);
        if !prefix.is_empty() && !is_path {
            errors.add("spec.provider.pathPrefix", "is no path that begins with /");
        }
    }

    /// How long it may take.
    pub fn timeout(&self) -> Duration {
        let timeout = self.timeout.as_deref().and_then(parse_duration);
        timeout.unwrap_or(Duration::from_secs(1))
    }
}
