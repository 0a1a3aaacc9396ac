//! What a rule is about.

use seine_objects::gateway::{GrpcRouteMatch, HttpRouteMatch, NamedMatch};
use seine_policy::Pattern;
use seine_proto::waypoint::{self as wire, r#match};

use super::Notes;

const REGEX: &str = "RegularExpression";

/// A match of an `HTTPRoute`.
pub(super) fn http(wanted: &HttpRouteMatch, notes: &mut Notes) -> wire::Match {
    let path = wanted.path.clone().unwrap_or_default();
    let value = path.value.unwrap_or_else(|| "/".into());
    let path = match path.r#type.as_deref() {
        Some("Exact") => r#match::Path::Exact(value),
        None | Some("PathPrefix") => r#match::Path::Prefix(value),
        Some(REGEX) => {
            check(&value, notes);
            r#match::Path::Regex(value)
        }
        Some(other) => {
            notes.refuse(format!("path matches of type {other} are not supported"));
            r#match::Path::Prefix("/".into())
        }
    };
    let (headers, header_patterns) = pairs(&wanted.headers, str::to_ascii_lowercase, notes);
    let (query, query_patterns) = pairs(&wanted.query_params, str::to_owned, notes);
    wire::Match {
        path: Some(path),
        method: wanted.method.clone().unwrap_or_default(),
        headers,
        query,
        header_patterns,
        query_patterns,
    }
}

/// A match of a `GRPCRoute`.
pub(super) fn grpc(wanted: &GrpcRouteMatch, notes: &mut Notes) -> wire::Match {
    let method = wanted.method.clone().unwrap_or_default();
    let regex = match method.r#type.as_deref() {
        None | Some("Exact") => false,
        Some(REGEX) => true,
        Some(other) => {
            notes.refuse(format!("method matches of type {other} are not supported"));
            false
        }
    };
    let (service, method) = (
        method.service.unwrap_or_default(),
        method.method.unwrap_or_default(),
    );
    for text in [&service, &method].into_iter().filter(|_| regex) {
        check(text, notes);
    }
    let (headers, header_patterns) = pairs(&wanted.headers, str::to_ascii_lowercase, notes);
    wire::Match {
        path: Some(r#match::Path::Grpc(wire::GrpcMethod {
            service,
            method,
            regex,
        })),
        headers,
        header_patterns,
        ..wire::Match::default()
    }
}

/// Values and patterns. Of several of one name only the first counts.
fn pairs(
    wanted: &[NamedMatch],
    name: impl Fn(&str) -> String,
    notes: &mut Notes,
) -> (Vec<wire::Pair>, Vec<wire::Pair>) {
    let (mut values, mut patterns): (Vec<wire::Pair>, Vec<wire::Pair>) = Default::default();
    for one in wanted {
        let name = name(&one.name);
        let mut earlier = values.iter().chain(&patterns);
        if earlier.any(|earlier| earlier.name == name) {
            continue;
        }
        let value = one.value.clone();
        let pair = wire::Pair { name, value };
        match one.r#type.as_deref() {
            None | Some("Exact") => values.push(pair),
            Some(REGEX) => {
                check(&pair.value, notes);
                patterns.push(pair);
            }
            Some(other) => notes.refuse(format!("matches of type {other} are not supported")),
        }
    }
    (values, patterns)
}

fn check(pattern: &str, notes: &mut Notes) {
    if let Err(error) = Pattern::parse(pattern) {
        notes.refuse(error.to_string());
    }
}
