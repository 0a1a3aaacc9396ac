//! `HTTPRoute`.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::unread::unread;
use crate::policy::FieldError;

/// Longest duration of GEP-2257, four groups of five digits.
const MAX_GROUPS: usize = 4;

/// How requests to services are matched, changed and passed on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpRoute {
    /// Name and namespace.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// What the user wants.
    pub spec: HttpRouteSpec,
    /// The object itself.
    #[serde(skip)]
    pub(crate) given: Value,
}

/// What the user wants.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRouteSpec {
    /// What it is attached to.
    pub parent_refs: Vec<ParentRef>,
    /// For Gateways; a service has the names that it has.
    pub hostnames: Vec<String>,
    /// The first whose best match is the best decides.
    pub rules: Vec<HttpRouteRule>,
}

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

/// What becomes of the requests that match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRouteRule {
    /// For people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Any; none is every request.
    pub matches: Vec<HttpRouteMatch>,
    /// Applied in order.
    pub filters: Vec<Filter>,
    /// Where they go, by weight.
    pub backend_refs: Vec<BackendRef>,
    /// How long they may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
}

/// Everything that is set must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpRouteMatch {
    /// By default the prefix `/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// All of them.
    pub headers: Vec<NamedMatch>,
    /// All of them.
    pub query_params: Vec<NamedMatch>,
    /// The method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}

/// How the path is compared.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PathMatch {
    /// `Exact` or `PathPrefix`, the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    /// By default `/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// A header or query parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamedMatch {
    /// `Exact`, the default.
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

/// How long a request may take; `0s` is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Timeouts {
    /// From its head to the head of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// The same for one attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend_request: Option<String>,
}

impl HttpRoute {
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
        for (index, rule) in self.spec.rules.iter().enumerate() {
            rule.validate(&format!("spec.rules[{index}]"), &mut errors);
        }
        errors
    }
}

impl HttpRouteRule {
    fn validate(&self, path: &str, errors: &mut Vec<FieldError>) {
        for (index, wanted) in self.matches.iter().enumerate() {
            let path = format!("{path}.matches[{index}]");
            let value = wanted.path.as_ref().and_then(|path| path.value.as_deref());
            if value.is_some_and(|value| !value.starts_with('/')) {
                add(errors, format!("{path}.path.value"), "begins with no /");
            }
            for (number, header) in wanted.headers.iter().enumerate() {
                if !is_token(&header.name) {
                    add(
                        errors,
                        format!("{path}.headers[{number}].name"),
                        "is no name of a header",
                    );
                }
            }
        }
        validate_filters(&self.filters, path, errors);
        for (index, backend) in self.backend_refs.iter().enumerate() {
            let path = format!("{path}.backendRefs[{index}]");
            if backend.port == Some(0) {
                add(
                    errors,
                    format!("{path}.port"),
                    "0 is no port: use 1 to 65535",
                );
            }
            validate_filters(&backend.filters, &path, errors);
        }
        let timeouts = self.timeouts.clone().unwrap_or_default();
        for (field, value) in [
            ("request", timeouts.request),
            ("backendRequest", timeouts.backend_request),
        ] {
            if value.is_some_and(|value| parse_duration(&value).is_none()) {
                let message = "is no duration such as 10s, 1m30s or 500ms";
                add(errors, format!("{path}.timeouts.{field}"), message);
            }
        }
    }
}

fn validate_filters(filters: &[Filter], path: &str, errors: &mut Vec<FieldError>) {
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

fn add(errors: &mut Vec<FieldError>, field: String, message: impl Into<String>) {
    errors.push(FieldError {
        field,
        message: message.into(),
    });
}

/// A token of RFC 9110.
fn is_token(text: &str) -> bool {
    let special = |byte: &u8| b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || special(&byte))
}

/// A duration of the Gateway API (GEP-2257): `1h2m3s4ms`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (mut rest, mut total, mut groups) = (text, Duration::ZERO, 0);
    while !rest.is_empty() {
        groups += 1;
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest.get(..digits).filter(|_| digits <= 5)?.parse().ok()?;
        rest = &rest[digits..];
        let (unit, millis) = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)]
            .into_iter()
            .find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        total += Duration::from_millis(number * millis);
    }
    (1..=MAX_GROUPS).contains(&groups).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ObjectSet;

    fn route(rule: &str) -> (Option<HttpRoute>, Vec<String>) {
        let yaml = format!(
            "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: web, namespace: shop}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: web}}]\n  rules:\n  - {rule}\n"
        );
        let (set, problems) = ObjectSet::from_yaml(&yaml);
        let fields = problems.into_iter().map(|p| p.field.unwrap_or_default());
        let route = set.http_routes.into_values().next();
        (
            route.map(|route| HttpRoute::clone(&route)),
            fields.collect(),
        )
    }

    #[test]
    fn durations_are_those_of_the_gateway_api() {
        for (text, millis) in [
            ("0s", Some(0)),
            ("500ms", Some(500)),
            ("1m30s", Some(90_000)),
            ("1h2m3s4ms", Some(3_723_004)),
            ("", None),
            ("10", None),
            ("s", None),
            ("1.5s", None),
            ("100000s", None),
            ("1s1s1s1s1s", None),
            ("-1s", None),
        ] {
            assert_eq!(
                parse_duration(text),
                millis.map(Duration::from_millis),
                "{text:?}"
            );
        }
    }

    #[test]
    fn what_is_not_obeyed_is_named_with_its_path() {
        let (found, problems) = route(
            "{matches: [{path: {type: Exact, value: /a}}], retry: {attempts: 2}, filters: [{type: RequestMirror, requestMirror: {backendRef: {name: b}}}], sessionPersistence: {}}",
        );
        assert_eq!(problems, [""; 0]);
        assert_eq!(
            found.unwrap().unread(),
            [
                "spec.rules[0].filters[0].requestMirror",
                "spec.rules[0].retry"
            ]
        );
    }

    #[test]
    fn every_error_names_its_field() {
        let (found, problems) = route(
            "{matches: [{path: {value: a}, headers: [{name: 'a b', value: c}]}], filters: [{type: RequestRedirect, requestRedirect: {statusCode: 300, scheme: ftp}}, {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: \"b\\n\"}], remove: ['']}}], backendRefs: [{name: b, port: 0}], timeouts: {request: soon}}",
        );
        assert!(found.is_none());
        assert_eq!(
            problems,
            [
                "spec.rules[0].matches[0].path.value",
                "spec.rules[0].matches[0].headers[0].name",
                "spec.rules[0].filters[0].requestRedirect.statusCode",
                "spec.rules[0].filters[0].requestRedirect.scheme",
                "spec.rules[0].filters[1].requestHeaderModifier",
                "spec.rules[0].filters[1].requestHeaderModifier",
                "spec.rules[0].backendRefs[0].port",
                "spec.rules[0].timeouts.request",
            ]
        );
    }
}
