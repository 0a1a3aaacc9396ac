//! The filters of routes.

use serde::{Deserialize, Serialize};

use super::reference::{BackendRef, add, is_token};
use crate::policy::FieldError;

/// A change to requests or responses; the field of its type is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Filter {
    /// Which it is.
    pub r#type: String,
    /// `RequestHeaderModifier`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_header_modifier: Option<HeaderModifier>,
    /// `ResponseHeaderModifier`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_header_modifier: Option<HeaderModifier>,
    /// `RequestRedirect`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_redirect: Option<RequestRedirect>,
    /// `URLRewrite`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_rewrite: Option<UrlRewrite>,
    /// `RequestMirror`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_mirror: Option<RequestMirror>,
    /// `CORS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
}

/// A copy of requests to another backend, whose answers nobody sees. Without a share it is of all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestMirror {
    /// Where the copies go.
    pub backend_ref: BackendRef,
    /// The share of requests in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u32>,
    /// The same as a fraction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<Fraction>,
}

/// A share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fraction {
    /// Of so many.
    pub numerator: u32,
    /// By default of a hundred.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denominator: Option<u32>,
}

/// What browsers are told of requests from pages of other origins.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cors {
    /// `scheme://host[:port]`, where the host may begin with `*`; or `*` for every one.
    pub allow_origins: Vec<String>,
    /// Whether such requests may carry cookies and the like.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_credentials: Option<bool>,
    /// `*` for every one.
    pub allow_methods: Vec<String>,
    /// `*` for every one.
    pub allow_headers: Vec<String>,
    /// Which headers of an answer the page may read.
    pub expose_headers: Vec<String>,
    /// How many seconds a browser may keep these answers; by default 5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_age: Option<u32>,
}

/// Changes to headers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HeaderModifier {
    /// In the place of what was there.
    pub set: Vec<Header>,
    /// Beside what was there.
    pub add: Vec<Header>,
    /// Taken away.
    pub remove: Vec<String>,
}

/// One header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// An answer that sends the client elsewhere. What is not set stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RequestRedirect {
    /// `http` or `https`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// The host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathModifier>,
    /// The port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// By default 302.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_code: Option<u16>,
}

/// Another URL for the backend. What is not set stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct UrlRewrite {
    /// The host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathModifier>,
}

/// Another path; the field of its type is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathModifier {
    /// `ReplaceFullPath` or `ReplacePrefixMatch`.
    pub r#type: String,
    /// The whole path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_full_path: Option<String>,
    /// In the place of the prefix that matched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replace_prefix_match: Option<String>,
}

pub(super) fn validate_filters(filters: &[Filter], path: &str, errors: &mut Vec<FieldError>) {
    for (index, filter) in filters.iter().enumerate() {
        let path = format!("{path}.filters[{index}]");
        for (field, change) in [
            ("requestHeaderModifier", &filter.request_header_modifier),
            ("responseHeaderModifier", &filter.response_header_modifier),
        ] {
            let Some(change) = change else { continue };
            let headers = change.set.iter().chain(&change.add);
            let names = headers
                .clone()
                .map(|header| &header.name)
                .chain(&change.remove);
            for name in names.filter(|name| !is_token(name)) {
                add(
                    errors,
                    format!("{path}.{field}"),
                    format!("{name:?} is no name of a header"),
                );
            }
            let bad = |value: &str| value.bytes().any(|byte| byte < b' ' || byte == 0x7f);
            for header in headers.filter(|header| bad(&header.value)) {
                let message = format!("the value of {} has control characters", header.name);
                add(errors, format!("{path}.{field}"), message);
            }
        }
        if let Some(mirror) = &filter.request_mirror {
            mirror.validate(&format!("{path}.requestMirror"), errors);
        }
        if let Some(cors) = &filter.cors {
            cors.validate(&format!("{path}.cors"), errors);
        }
        let Some(redirect) = &filter.request_redirect else {
            continue;
        };
        let path = format!("{path}.requestRedirect");
        if redirect
            .status_code
            .is_some_and(|code| !matches!(code, 301 | 302 | 303 | 307 | 308))
        {
            add(
                errors,
                format!("{path}.statusCode"),
                "is none of 301, 302, 303, 307 and 308",
            );
        }
        if redirect
            .scheme
            .as_deref()
            .is_some_and(|scheme| !matches!(scheme, "http" | "https"))
        {
            add(
                errors,
                format!("{path}.scheme"),
                "is neither http nor https",
            );
        }
    }
}

impl RequestMirror {
    fn validate(&self, path: &str, errors: &mut Vec<FieldError>) {
        self.backend_ref
            .validate(&format!("{path}.backendRef"), errors);
        if self.percent.is_some() && self.fraction.is_some() {
            add(errors, path.into(), "has both percent and fraction");
        }
        if self.percent.is_some_and(|percent| percent > 100) {
            add(errors, format!("{path}.percent"), "is more than 100");
        }
        if let Some(fraction) = &self.fraction {
            let denominator = fraction.denominator.unwrap_or(100);
            if denominator == 0 || fraction.numerator > denominator {
                let message = "is not between nothing and the whole";
                add(errors, format!("{path}.fraction"), message);
            }
        }
    }
}

impl Cors {
    fn validate(&self, path: &str, errors: &mut Vec<FieldError>) {
        for (index, origin) in self.allow_origins.iter().enumerate() {
            let after_scheme = origin
                .strip_prefix("http://")
                .or_else(|| origin.strip_prefix("https://"));
            let host = |host: &str| !host.is_empty() && !host.contains('/');
            if origin != "*" && !after_scheme.is_some_and(host) {
                let message =
                    "is neither * nor http://HOST or https://HOST, with or without a port";
                add(errors, format!("{path}.allowOrigins[{index}]"), message);
            }
        }
        for (field, names) in [
            ("allowMethods", &self.allow_methods),
            ("allowHeaders", &self.allow_headers),
            ("exposeHeaders", &self.expose_headers),
        ] {
            for name in names.iter().filter(|name| !is_token(name)) {
                let message = format!("{name:?} is no name");
                add(errors, format!("{path}.{field}"), message);
            }
        }
    }
}
