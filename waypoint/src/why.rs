//! Why a waypoint does with a request what it does: for those who explain it. Made of what decides, and pure.

use std::sync::Arc;

use http::{HeaderName, Request, Version, request};
use seine_workload::Service;

use crate::bind::speaks_http;
use crate::head::{self, BadHead, Head};
use crate::judge::texts;
use crate::refusal::is_grpc;
use crate::router::{Asked, Obeyed, has_header, has_parameter};
use crate::routes::Routes;
use crate::rule::{Filter, HeaderChange, Match, Mirror, PathChange, PathMatch, Rule, Text};

/// A request as a waypoint reads it.
#[derive(Debug)]
pub struct Seen {
    parts: request::Parts,
    head: Head,
}

impl Seen {
    /// Reads a request without a body, as a client sends it.
    pub fn read(request: Request<()>) -> Result<Self, BadHead> {
        let (mut parts, ()) = request.into_parts();
        let head = Head::read(&parts)?;
        head::strip_own(&mut parts.headers);
        Ok(Self { parts, head })
    }

    /// The host and the normalised path.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The method.
    pub fn method(&self) -> &str {
        self.parts.method.as_str()
    }

    /// The headers that policies look at.
    pub fn headers(&self) -> Vec<(&str, String)> {
        texts(&self.parts.headers)
    }

    /// What routes look at, once policy has allowed it.
    pub fn routed(&mut self) -> Asked<'_> {
        let grpc = is_grpc(self.parts.version, &self.parts.headers);
        head::strip_hop_by_hop(&mut self.parts.headers);
        Asked {
            method: &self.parts.method,
            path: &self.head.path,
            query: self.head.query.as_deref(),
            headers: &self.parts.headers,
            grpc,
        }
    }
}

/// The version of HTTP in which a request with these headers would be one of gRPC.
pub fn version(content_type: Option<&str>) -> Version {
    match content_type.is_some_and(|kind| kind.starts_with("application/grpc")) {
        true => Version::HTTP_2,
        false => Version::HTTP_11,
    }
}

/// Whether the requests of a service's port are judged one by one.
pub fn is_http(service: &Service, port: u16, routes: &Routes) -> bool {
    speaks_http(service, port, || routes.of(&service.key))
}

/// A rule that might have decided, and what a request lacks for the one of its matches that it comes nearest to.
#[derive(Clone, Debug)]
pub struct Considered {
    /// The rule.
    pub rule: Arc<Rule>,
    /// Index of the match.
    pub matched: usize,
    /// Each in a few words; none: it matches.
    pub lacks: Vec<String>,
}

/// The rules that decide about a client's requests to a port, the nearest first.
pub fn considered(
    routes: &Routes,
    service: &Service,
    port: u16,
    client_namespace: &str,
    asked: &Asked<'_>,
) -> Vec<Considered> {
    let rules = routes.of(&service.key);
    let Some(obeyed) = Obeyed::of(&rules, &service.key, port, client_namespace) else {
        return Vec::new();
    };
    let about = rules.all().into_iter().filter(|rule| obeyed.has(rule));
    let nearest = about.filter_map(|rule| {
        let matches = rule.matches.iter().enumerate();
        let lacks = matches.map(|(matched, wanted)| (matched, wanted.lacks(asked, rule.grpc)));
        let (matched, lacks) = lacks.min_by_key(|(_, lacks)| lacks.len())?;
        Some(Considered {
            rule: rule.clone(),
            matched,
            lacks,
        })
    });
    let mut all: Vec<_> = nearest.collect();
    all.sort_by_key(|one| one.lacks.len());
    all
}

impl Match {
    fn lacks(&self, asked: &Asked<'_>, grpc: bool) -> Vec<String> {
        let mut lacks = Vec::new();
        if grpc && !asked.grpc {
            lacks.push("it is no request of gRPC".to_owned());
        }
        if !self.path.matches(asked.path) {
            lacks.push(format!(
                "path {} is not {}",
                asked.path,
                wanted_path(&self.path)
            ));
        }
        if let Some(method) = self.method.as_ref().filter(|m| *m != asked.method) {
            lacks.push(format!("method {} is not {method}", asked.method));
        }
        let headers = self.headers.iter().filter(|pair| !has_header(asked, pair));
        lacks.extend(headers.map(|(name, text)| {
            let found = asked.headers.get(name);
            let found = found.map(|value| String::from_utf8_lossy(value.as_bytes()));
            match found {
                Some(found) => format!("header {name} is {found:?}, not {}", wanted(text)),
                None => format!("header {name} is missing, which is to be {}", wanted(text)),
            }
        }));
        let query = self.query.iter().filter(|pair| !has_parameter(asked, pair));
        lacks.extend(query.map(|(name, text)| format!("parameter {name} is not {}", wanted(text))));
        lacks
    }
}

fn wanted_path(path: &PathMatch) -> String {
    match path {
        PathMatch::Exact(path) => path.clone(),
        PathMatch::Prefix(prefix) if prefix.is_empty() => "/ or below it".to_owned(),
        PathMatch::Prefix(prefix) => format!("{prefix} or below it"),
        PathMatch::Pattern(pattern) => format!("of the form {}", pattern.as_str()),
        PathMatch::Grpc(service, method) => {
            let part = |text: &Option<Text>| text.as_ref().map_or("*".to_owned(), wanted);
            format!("/{}/{}", part(service), part(method))
        }
    }
}

fn wanted(text: &Text) -> String {
    match text {
        Text::Exact(text) => format!("{text:?}"),
        Text::Pattern(pattern) => format!("of the form {}", pattern.as_str()),
    }
}

/// What filters do with a request, each in a few words; and the answer, where one of them is it.
pub fn effects(
    filters: &[Filter],
    matched: &PathMatch,
    head: &Head,
    port: u16,
) -> (Vec<String>, Option<String>) {
    let mut said = Vec::new();
    for filter in filters {
        said.push(match filter {
            Filter::RequestHeaders(change) => format!("request headers: {}", changes(change)),
            Filter::ResponseHeaders(change) => format!("answer's headers: {}", changes(change)),
            Filter::Redirect(redirect) => {
                let location = redirect.location(head, matched, ("http", port));
                let status = redirect.status.as_u16();
                return (said, Some(format!("{status}, to {location}")));
            }
            Filter::Rewrite(rewrite) => {
                let host = rewrite.hostname.as_ref();
                let host = host.map(|host| format!("host {host}"));
                let path = rewrite.path.as_ref().map(|change: &PathChange| {
                    format!("path {}", change.apply(&head.path, matched))
                });
                let new: Vec<_> = host.into_iter().chain(path).collect();
                format!("rewritten: {}", new.join(", "))
            }
            Filter::Mirror(Mirror {
                backend,
                numerator,
                denominator,
            }) => format!(
                "a copy of {numerator} in {denominator} goes to service {}, port {}",
                backend.service, backend.port
            ),
            Filter::Cors(_) => "pages of other origins may ask, as its CORS says".to_owned(),
        });
    }
    (said, None)
}

fn changes(change: &HeaderChange) -> String {
    let names = |pairs: &[(HeaderName, http::HeaderValue)]| {
        let names = pairs.iter().map(|(name, _)| name.as_str());
        names.collect::<Vec<_>>().join(" ")
    };
    let removed = change.remove.iter().map(HeaderName::as_str);
    let parts = [
        ("sets", names(&change.set)),
        ("adds", names(&change.add)),
        ("removes", removed.collect::<Vec<_>>().join(" ")),
    ];
    let parts = parts.iter().filter(|(_, names)| !names.is_empty());
    let parts = parts.map(|(what, names)| format!("{what} {names}"));
    parts.collect::<Vec<_>>().join(", ")
}
