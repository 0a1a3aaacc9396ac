//! Cross-origin requests: what a browser is told before it asks, and what of an answer a page may read.

use std::time::Duration;

use http::header::{
    ACCESS_CONTROL_ALLOW_CREDENTIALS, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
    ACCESS_CONTROL_REQUEST_HEADERS, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
};
use http::{HeaderMap, HeaderValue, Method};

use crate::rule::Cors;

/// Whether a browser asks what it may ask.
pub(crate) fn is_preflight(method: &Method, headers: &HeaderMap) -> bool {
    *method == Method::OPTIONS
        && headers.contains_key(ORIGIN)
        && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

impl Cors {
    /// What the answer to a preflight has; nothing if the origin may not ask.
    pub(crate) fn preflight(&self, asked: &HeaderMap) -> HeaderMap {
        let mut headers = self.of_origin(asked.get(ORIGIN));
        if !headers.contains_key(ACCESS_CONTROL_ALLOW_ORIGIN) {
            return headers;
        }
        for (name, allowed, requested) in [
            (
                ACCESS_CONTROL_ALLOW_METHODS,
                &self.methods,
                ACCESS_CONTROL_REQUEST_METHOD,
            ),
            (
                ACCESS_CONTROL_ALLOW_HEADERS,
                &self.headers,
                ACCESS_CONTROL_REQUEST_HEADERS,
            ),
        ] {
            // To a request with credentials a `*` is a name like any other.
            let value = match is_any(allowed) {
                true => asked.get(&requested).cloned(),
                false => list(allowed),
            };
            if let Some(value) = value {
                headers.insert(name, value);
            }
        }
        headers.insert(ACCESS_CONTROL_MAX_AGE, seconds(self.max_age));
        headers
    }

    /// What an answer has beside what the backend says; in the place of what it says of this.
    pub(crate) fn apply(&self, origin: Option<&HeaderValue>, answer: &mut HeaderMap) {
        for name in [
            ACCESS_CONTROL_ALLOW_ORIGIN,
            ACCESS_CONTROL_ALLOW_CREDENTIALS,
            ACCESS_CONTROL_EXPOSE_HEADERS,
        ] {
            answer.remove(name);
        }
        for (name, value) in self.of_origin(origin) {
            match name {
                Some(VARY) => drop(answer.append(VARY, value)),
                Some(name) => drop(answer.insert(name, value)),
                None => {}
            }
        }
    }

    fn of_origin(&self, origin: Option<&HeaderValue>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(VARY, HeaderValue::from_static("origin"));
        let Some(origin) = origin.filter(|origin| self.allows(origin)) else {
            return headers;
        };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        if self.credentials {
            let yes = HeaderValue::from_static("true");
            headers.insert(ACCESS_CONTROL_ALLOW_CREDENTIALS, yes);
        }
        // To a request with credentials a `*` is a name like any other.
        let star = is_any(&self.expose) && self.credentials;
        if let Some(value) = list(&self.expose).filter(|_| !star) {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, value);
        }
        headers
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        let Ok(origin) = origin.to_str() else {
            return false;
        };
        let mut origins = self.origins.iter();
        origins.any(|allowed| allowed == "*" || same_origin(allowed, &origin.to_ascii_lowercase()))
    }
}

/// An origin without a port has that of its scheme; a `*` in the host stands for at least one character, dots too.
fn same_origin(allowed: &str, origin: &str) -> bool {
    let (Some(allowed), Some(origin)) = (split(allowed), split(origin)) else {
        return false;
    };
    let host = match allowed.1.strip_prefix('*') {
        Some("") => true,
        Some(end) => origin.1.len() > end.len() && origin.1.ends_with(end),
        None => allowed.1 == origin.1,
    };
    host && (allowed.0, allowed.2) == (origin.0, origin.2)
}

/// Scheme, host and port.
fn split(origin: &str) -> Option<(&str, &str, u16)> {
    let (scheme, rest) = origin.split_once("://")?;
    let of_scheme = match scheme {
        "http" => 80,
        "https" => 443,
        _ => return None,
    };
    // Not a colon within an address of IPv6.
    let port = rest
        .rsplit_once(':')
        .filter(|(_, port)| !port.contains(']'));
    match port {
        Some((host, port)) => Some((scheme, host, port.parse().ok()?)),
        None => Some((scheme, rest, of_scheme)),
    }
}

fn is_any(names: &[String]) -> bool {
    names.iter().any(|name| name == "*")
}

fn list(names: &[String]) -> Option<HeaderValue> {
    let text = names.join(", ");
    HeaderValue::from_str(&text)
        .ok()
        .filter(|_| !text.is_empty())
}

fn seconds(duration: Duration) -> HeaderValue {
    duration.as_secs().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;

    fn cors(origins: &[&str], credentials: bool) -> Cors {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Cors {
            origins: texts(origins),
            credentials,
            methods: texts(&["GET", "PUT"]),
            headers: texts(&["*"]),
            expose: texts(&["x-a"]),
            max_age: Duration::from_secs(7),
        }
    }

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            let name: HeaderName = name.parse().unwrap();
            (name, HeaderValue::from_str(value).unwrap())
        });
        pairs.collect()
    }

    fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
        headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    #[test]
    fn an_origin_is_compared_by_scheme_host_and_port() {
        for (allowed, origin, same) in [
            ("https://a.example", "https://a.example", true),
            ("https://a.example", "https://a.example:443", true),
            ("https://a.example:443", "https://A.example", true),
            ("http://a.example", "https://a.example", false),
            ("https://a.example", "https://a.example:8443", false),
            ("https://a.example", "https://xa.example", false),
            ("https://*.example", "https://a.b.example", true),
            ("https://*.example", "https://.example", false),
            ("https://*.example", "https://a.example.evil", false),
            ("https://*", "https://b", true),
            ("https://*", "http://b", false),
            ("*", "null", true),
            ("https://a.example", "null", false),
            ("http://[::1]", "http://[::1]:80", true),
        ] {
            let origin_value = HeaderValue::from_str(origin).unwrap();
            let found = cors(&[allowed], false).allows(&origin_value);
            assert_eq!(found, same, "{allowed} {origin}");
        }
    }

    #[test]
    fn a_preflight_is_told_what_it_may_ask_and_others_nothing() {
        let cors = cors(&["https://a.example"], true);
        let asked = |origin: &str| {
            headers(&[
                ("origin", origin),
                ("access-control-request-method", "PUT"),
                ("access-control-request-headers", "x-b, x-c"),
            ])
        };
        assert!(is_preflight(&Method::OPTIONS, &asked("https://a.example")));
        assert!(!is_preflight(&Method::PUT, &asked("https://a.example")));
        assert!(!is_preflight(
            &Method::OPTIONS,
            &headers(&[("origin", "https://a.example")])
        ));
        let told = cors.preflight(&asked("https://a.example"));
        for (name, value) in [
            ("access-control-allow-origin", "https://a.example"),
            ("access-control-allow-credentials", "true"),
            ("access-control-allow-methods", "GET, PUT"),
            // Never `*` where credentials may come along.
            ("access-control-allow-headers", "x-b, x-c"),
            ("access-control-expose-headers", "x-a"),
            ("access-control-max-age", "7"),
            ("vary", "origin"),
        ] {
            assert_eq!(text(&told, name), value, "{name}");
        }
        let told = cors.preflight(&asked("https://b.example"));
        assert_eq!(told.len(), 1, "{told:?}");
    }

    #[test]
    fn an_answer_says_what_the_route_says_and_not_what_the_backend_does() {
        let cors = cors(&["https://a.example"], false);
        let answer = |origin: &str| {
            let mut answer = headers(&[("access-control-allow-origin", "*"), ("vary", "accept")]);
            cors.apply(Some(&HeaderValue::from_str(origin).unwrap()), &mut answer);
            answer
        };
        let told = answer("https://a.example");
        assert_eq!(
            text(&told, "access-control-allow-origin"),
            "https://a.example"
        );
        assert_eq!(text(&told, "access-control-expose-headers"), "x-a");
        assert_eq!(text(&told, "access-control-allow-credentials"), "");
        assert_eq!(told.get_all("vary").iter().count(), 2);
        let told = answer("https://b.example");
        assert_eq!(text(&told, "access-control-allow-origin"), "");
        assert_eq!(text(&told, "access-control-expose-headers"), "");
    }
}
