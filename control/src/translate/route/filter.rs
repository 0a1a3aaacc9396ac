//! Filters.

use seine_objects::{
    Kind,
    gateway::{Cors, Filter, Header, HeaderModifier, PathModifier, RequestMirror},
};
use seine_proto::waypoint::{self as wire, filter, path_change};

use super::{Notes, Route, World, backend};

/// Those that the Gateway API has for a `GRPCRoute`.
const GRPC: [&str; 3] = [
    "RequestHeaderModifier",
    "ResponseHeaderModifier",
    "RequestMirror",
];
/// What the Gateway API says of a `CORS` filter without `maxAge`, in seconds.
const DEFAULT_MAX_AGE: u32 = 5;

/// Filters of a rule or a backend.
pub(super) fn translate(
    filters: &[Filter],
    route: &Route<'_>,
    world: &World<'_>,
    notes: &mut Notes,
) -> Vec<wire::Filter> {
    let mut found = Vec::new();
    for one in filters {
        let known = route.kind == Kind::HttpRoute || GRPC.contains(&one.r#type.as_str());
        let is_mirror = one.r#type == "RequestMirror";
        let translated = match one.r#type.as_str() {
            _ if !known => None,
            "RequestHeaderModifier" => one
                .request_header_modifier
                .as_ref()
                .map(|change| filter::Filter::RequestHeaders(header_change(change))),
            "ResponseHeaderModifier" => one
                .response_header_modifier
                .as_ref()
                .map(|change| filter::Filter::ResponseHeaders(header_change(change))),
            "RequestRedirect" => one.request_redirect.as_ref().map(|redirect| {
                filter::Filter::Redirect(wire::Redirect {
                    scheme: redirect.scheme.clone().unwrap_or_default(),
                    hostname: redirect.hostname.clone().unwrap_or_default(),
                    path: redirect.path.as_ref().and_then(path_change),
                    port: redirect.port.map_or(0, u32::from),
                    status: redirect.status_code.map_or(302, u32::from),
                })
            }),
            "URLRewrite" => one.url_rewrite.as_ref().map(|rewrite| {
                filter::Filter::Rewrite(wire::Rewrite {
                    hostname: rewrite.hostname.clone().unwrap_or_default(),
                    path: rewrite.path.as_ref().and_then(path_change),
                })
            }),
            "RequestMirror" => one
                .request_mirror
                .as_ref()
                .and_then(|wanted| mirror(wanted, route, world, notes))
                .map(filter::Filter::Mirror),
            "CORS" => one
                .cors
                .as_ref()
                .map(|wanted| filter::Filter::Cors(cors(wanted))),
            _ => None,
        };
        match translated {
            Some(translated) => found.push(wire::Filter {
                filter: Some(translated),
            }),
            // It is said already. The other backends are asked all the same, as the Gateway API wants it.
            None if is_mirror && one.request_mirror.is_some() => {}
            None => notes.refuse(format!("filter {} is not supported or empty", one.r#type)),
        }
    }
    found
}

fn header_change(change: &HeaderModifier) -> wire::HeaderChange {
    let pairs = |headers: &[Header]| {
        let pair = |header: &Header| wire::Pair {
            name: header.name.to_ascii_lowercase(),
            value: header.value.clone(),
        };
        headers.iter().map(pair).collect()
    };
    let remove = change.remove.iter();
    wire::HeaderChange {
        set: pairs(&change.set),
        add: pairs(&change.add),
        remove: remove.map(|name| name.to_ascii_lowercase()).collect(),
    }
}

fn path_change(path: &PathModifier) -> Option<wire::PathChange> {
    let change = match path.r#type.as_str() {
        "ReplaceFullPath" => path_change::Change::Full(path.replace_full_path.clone()?),
        "ReplacePrefixMatch" => path_change::Change::Prefix(path.replace_prefix_match.clone()?),
        _ => return None,
    };
    Some(wire::PathChange {
        change: Some(change),
    })
}

/// `None`: its backend can't be used, and it is left out and reported.
fn mirror(
    wanted: &RequestMirror,
    route: &Route<'_>,
    world: &World<'_>,
    notes: &mut Notes,
) -> Option<wire::Mirror> {
    let backend = backend::translate(&wanted.backend_ref, route, world, notes);
    if !backend.refused.is_empty() {
        notes.say(format!("a mirror is left out: {}", backend.refused));
        return None;
    }
    let (numerator, denominator) = match (&wanted.fraction, wanted.percent) {
        (Some(fraction), _) => (fraction.numerator, fraction.denominator.unwrap_or(100)),
        (None, percent) => (percent.unwrap_or(100), 100),
    };
    Some(wire::Mirror {
        backend: Some(backend),
        numerator,
        denominator,
    })
}

fn cors(wanted: &Cors) -> wire::Cors {
    let lower = |names: &[String]| names.iter().map(|name| name.to_ascii_lowercase()).collect();
    wire::Cors {
        origins: lower(&wanted.allow_origins),
        credentials: wanted.allow_credentials.unwrap_or_default(),
        methods: wanted.allow_methods.clone(),
        headers: wanted.allow_headers.clone(),
        expose: wanted.expose_headers.clone(),
        max_age_s: wanted.max_age.unwrap_or(DEFAULT_MAX_AGE),
    }
}
