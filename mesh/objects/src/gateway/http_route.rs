//! `HTTPRoute`.

use serde::{Deserialize, Serialize};

use super::filter::validate_filters;
use super::reference::{add, validate_headers};
use super::{BackendRef, Filter, NamedMatch, Route, RouteRule, SessionPersistence, parse_duration};
use crate::Kind;
use crate::policy::FieldError;

/// How requests to services are matched, changed and passed on.
pub type HttpRoute = Route<HttpRouteRule>;

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
    /// When they are sent again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// That the requests of a session are answered by one pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_persistence: Option<SessionPersistence>,
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
    /// `Exact`, `RegularExpression` or `PathPrefix`, the default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<String>,
    /// By default `/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
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

/// When a request is sent again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Retry {
    /// The answers upon which it is, beside connections that fail.
    pub codes: Vec<u16>,
    /// How many times at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// Not sooner than this.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff: Option<String>,
}

impl RouteRule for HttpRouteRule {
    const KIND: Kind = Kind::HttpRoute;

    fn filters(&self) -> &[Filter] {
        &self.filters
    }

    fn backends(&self) -> &[BackendRef] {
        &self.backend_refs
    }

    fn validate(&self, path: &str, errors: &mut Vec<FieldError>) {
        for (index, wanted) in self.matches.iter().enumerate() {
            let path = format!("{path}.matches[{index}]");
            let literal = |path: &&PathMatch| path.r#type.as_deref() != Some("RegularExpression");
            let literal = wanted.path.as_ref().filter(literal);
            let value = literal.and_then(|path| path.value.as_deref());
            if value.is_some_and(|value| !value.starts_with('/')) {
                add(errors, format!("{path}.path.value"), "begins with no /");
            }
            validate_headers(&wanted.headers, &path, errors);
        }
        validate_filters(&self.filters, path, errors);
        if let Some(session) = &self.session_persistence {
            session.validate(path, errors);
        }
        let timeouts = self.timeouts.clone().unwrap_or_default();
        let retry = self.retry.clone().unwrap_or_default();
        for (field, value) in [
            ("timeouts.request", timeouts.request),
            ("timeouts.backendRequest", timeouts.backend_request),
            ("retry.backoff", retry.backoff),
        ] {
            if value.is_some_and(|value| parse_duration(&value).is_none()) {
                let message = "is no duration such as 10s, 1m30s or 500ms";
                add(errors, format!("{path}.{field}"), message);
            }
        }
        for code in retry.codes {
            if !(400..600).contains(&code) {
                let message = format!("{code} is no status between 400 and 599");
                add(errors, format!("{path}.retry.codes"), message);
            }
        }
    }
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
    fn what_is_not_obeyed_is_named_with_its_path() {
        let (found, problems) = route(
            "{matches: [{path: {type: Exact, value: /a}}], retry: {attempts: 2}, filters: [{type: ExternalAuth, externalAuth: {protocol: HTTP}}], sessionPersistence: {sessionName: a, idleTimeout: 1m}}",
        );
        assert_eq!(problems, [""; 0]);
        assert_eq!(
            found.unwrap().unread(),
            [
                "spec.rules[0].filters[0].externalAuth",
                "spec.rules[0].sessionPersistence.idleTimeout"
            ]
        );
    }

    #[test]
    fn every_error_names_its_field() {
        let (found, problems) = route(
            "{matches: [{path: {value: a}, headers: [{name: 'a b', value: c}]}], filters: [{type: RequestRedirect, requestRedirect: {statusCode: 300, scheme: ftp}}, {type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: \"b\\n\"}], remove: ['']}}, {type: RequestMirror, requestMirror: {backendRef: {name: b}, percent: 1, fraction: {numerator: 3, denominator: 2}}}, {type: CORS, cors: {allowOrigins: [b.example], allowMethods: ['a b']}}], backendRefs: [{name: b, port: 0}], timeouts: {request: soon}, retry: {codes: [200], backoff: soon}, sessionPersistence: {sessionName: 'a b', type: Query, cookieConfig: {lifetimeType: Permanent}}}",
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
                "spec.rules[0].filters[2].requestMirror",
                "spec.rules[0].filters[2].requestMirror.fraction",
                "spec.rules[0].filters[3].cors.allowOrigins[0]",
                "spec.rules[0].filters[3].cors.allowMethods",
                "spec.rules[0].sessionPersistence.sessionName",
                "spec.rules[0].sessionPersistence.type",
                "spec.rules[0].sessionPersistence.absoluteTimeout",
                "spec.rules[0].timeouts.request",
                "spec.rules[0].retry.backoff",
                "spec.rules[0].retry.codes",
                "spec.rules[0].backendRefs[0].port",
            ]
        );
    }
}
