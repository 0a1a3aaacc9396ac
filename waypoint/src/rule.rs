//! Rules of routes as they are obeyed, parsed from the wire.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use seine_policy::Pattern;
use seine_proto::waypoint::{self as wire, filter, r#match, path_change};
use seine_workload::ServiceKey;

use crate::backend_tls::BackendTls;
use crate::ingress::hosts::Hosts;
use crate::session::Session;

/// One rule of a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// `HTTPRoute/namespace/name/index`, and the rule's own name if it has one.
    pub name: String,
    /// It is a `GRPCRoute`'s.
    pub grpc: bool,
    /// The route's namespace.
    pub namespace: String,
    /// Of equal matches the lesser wins: the older route, then by name, then the earlier rule.
    pub age: (i64, String, String, u32),
    /// The services, each with one of its ports or all of them.
    pub parents: Vec<(ServiceKey, Option<u16>)>,
    /// Listeners of Gateways, by name, each with one of the hosts that it is about there.
    pub listeners: Vec<(String, Hosts)>,
    /// Any of them; at least one.
    pub matches: Vec<Match>,
    /// In order.
    pub filters: Vec<Filter>,
    /// By weight.
    pub backends: Vec<Backend>,
    /// From the request's head to the head of the answer.
    pub request_timeout: Option<Duration>,
    /// The same for one attempt.
    pub backend_timeout: Option<Duration>,
    /// When a request is sent again.
    pub retry: Option<Retry>,
    /// That the requests of a session are answered by one endpoint.
    pub session: Option<Session>,
    /// Why it can't be obeyed.
    pub refused: Option<String>,
}

/// When a request is sent again: if no answer came, or one of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Statuses of answers.
    pub codes: Vec<StatusCode>,
    /// How many times at most.
    pub attempts: u32,
    /// Not sooner than this.
    pub backoff: Duration,
}

/// Everything must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Match {
    /// The path.
    pub path: PathMatch,
    /// The method.
    pub method: Option<Method>,
    /// Headers.
    pub headers: Vec<(HeaderName, Text)>,
    /// Query parameters, decoded.
    pub query: Vec<(String, Text)>,
}

/// How a value is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Text {
    /// The same.
    Exact(String),
    /// Its whole.
    Pattern(Pattern),
}

/// How the path is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// The same.
    Exact(String),
    /// These segments first. Without a slash at its end.
    Prefix(String),
    /// The whole path.
    Pattern(Pattern),
    /// Of a request of gRPC: `/service/method`. What is `None` is any.
    Grpc(Option<Text>, Option<Text>),
}

/// A change to a request or its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Of the request's headers.
    RequestHeaders(HeaderChange),
    /// Of the answer's headers.
    ResponseHeaders(HeaderChange),
    /// No backend is asked.
    Redirect(Redirect),
    /// Another URL for the backend.
    Rewrite(Rewrite),
    /// A copy goes elsewhere.
    Mirror(Mirror),
    /// Pages of other origins may ask.
    Cors(Cors),
}

/// A copy of a share of the requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// Where it goes.
    pub backend: Backend,
    /// Of `denominator` requests.
    pub numerator: u32,
    /// At least 1.
    pub denominator: u32,
}

/// What browsers are told of requests from pages of other origins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cors {
    /// `scheme://host[:port]`, or with `*` for what the host begins with; `*` is every one.
    pub origins: Vec<String>,
    /// Cookies and the like may be sent.
    pub credentials: bool,
    /// `*` is every one.
    pub methods: Vec<String>,
    /// `*` is every one.
    pub headers: Vec<String>,
    /// `*` is every one.
    pub expose: Vec<String>,
    /// How long that holds.
    pub max_age: Duration,
}

/// Changes to headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderChange {
    /// In the place of what was there.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Beside what was there.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Taken away.
    pub remove: Vec<HeaderName>,
}

/// An answer that sends the client elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<String>,
    /// The host.
    pub hostname: Option<String>,
    /// The path.
    pub path: Option<PathChange>,
    /// The port.
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308.
    pub status: StatusCode,
}

/// Another URL for the backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// The host.
    pub hostname: Option<String>,
    /// The path.
    pub path: Option<PathChange>,
}

/// Another path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathChange {
    /// The whole.
    Full(String),
    /// The prefix that matched.
    Prefix(String),
}

/// Where requests go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The service.
    pub service: ServiceKey,
    /// Its port.
    pub port: u16,
    /// Its share, relative to the sum.
    pub weight: u32,
    /// For the requests that go to it.
    pub filters: Vec<Filter>,
    /// Why there is none.
    pub refused: Option<String>,
    /// That it speaks TLS itself, or why it isn't known how.
    pub tls: Option<Result<Arc<BackendTls>, String>>,
}

impl Rule {
    /// Reads a rule; the error says what is wrong where.
    pub fn parse(name: &str, message: &wire::RouteRule) -> Result<Self, String> {
        // One whose age isn't known counts as the youngest.
        let created = match message.created {
            0 => i64::MAX,
            created => created,
        };
        let parents = message.parents.iter().map(|parent| {
            let port = port(parent.port).map_err(|error| format!("parents: {error}"))?;
            Ok((service(&parent.namespace, &parent.hostname), port))
        });
        let matches = message.matches.iter().map(Match::parse);
        let mut matches = matches.collect::<Result<Vec<_>, _>>()?;
        if matches.is_empty() {
            matches.push(Match {
                path: PathMatch::Prefix(String::new()),
                method: None,
                headers: Vec::new(),
                query: Vec::new(),
            });
        }
        let name = match message.rule_name.as_str() {
            "" => name.to_owned(),
            own => format!("{name} ({own})"),
        };
        let backends = message.backends.iter().map(Backend::parse);
        let limit = |millis: u64| (millis > 0).then(|| Duration::from_millis(millis));
        Ok(Self {
            name,
            grpc: message.kind == "GRPCRoute",
            namespace: message.namespace.clone(),
            age: (
                created,
                message.namespace.clone(),
                message.name.clone(),
                message.rule,
            ),
            parents: parents.collect::<Result<_, String>>()?,
            listeners: listeners(&message.listeners)?,
            matches,
            filters: filters(&message.filters)?,
            backends: backends.collect::<Result<_, _>>()?,
            request_timeout: limit(message.request_timeout_ms),
            backend_timeout: limit(message.backend_timeout_ms),
            retry: message.retry.as_ref().map(Retry::parse).transpose()?,
            session: message.session.as_ref().map(Session::parse).transpose()?,
            refused: some(&message.refused),
        })
    }
}

fn listeners(messages: &[wire::Attachment]) -> Result<Vec<(String, Hosts)>, String> {
    let mut found = Vec::new();
    for message in messages {
        let any = [String::new()];
        let hosts = match message.hostnames.is_empty() {
            true => &any[..],
            false => &message.hostnames,
        };
        for host in hosts {
            let hosts = Hosts::parse(host).map_err(|error| format!("listeners: {error}"))?;
            found.push((message.listener.clone(), hosts));
        }
    }
    Ok(found)
}

impl Retry {
    fn parse(message: &wire::Retry) -> Result<Self, String> {
        let codes = message.codes.iter().map(|code| {
            let status = u16::try_from(*code).ok().map(StatusCode::from_u16);
            let status = status.and_then(Result::ok);
            status.ok_or_else(|| format!("retry: {code} is no status"))
        });
        Ok(Self {
            codes: codes.collect::<Result<_, _>>()?,
            attempts: message.attempts,
            backoff: Duration::from_millis(message.backoff_ms),
        })
    }
}

impl Match {
    fn parse(message: &wire::Match) -> Result<Self, String> {
        let path = match &message.path {
            Some(r#match::Path::Exact(path)) => PathMatch::Exact(path.clone()),
            Some(r#match::Path::Prefix(path)) => {
                PathMatch::Prefix(path.trim_end_matches('/').into())
            }
            Some(r#match::Path::Regex(text)) => PathMatch::Pattern(pattern(text)?),
            Some(r#match::Path::Grpc(wanted)) => {
                let text = |text: &str| -> Result<Option<Text>, String> {
                    Ok(match (text, wanted.regex) {
                        ("", _) => None,
                        (text, false) => Some(Text::Exact(text.into())),
                        (text, true) => Some(Text::Pattern(pattern(text)?)),
                    })
                };
                PathMatch::Grpc(text(&wanted.service)?, text(&wanted.method)?)
            }
            None => return Err("matches: path is missing".into()),
        };
        let method = some(&message.method).map(|text| text.parse().map_err(|_| bad(&text)));
        let headers = message.headers.iter().map(|pair| {
            let name = pair.name.parse().map_err(|_| bad(&pair.name))?;
            Ok((name, Text::Exact(pair.value.clone())))
        });
        let header_patterns = message.header_patterns.iter().map(|pair| {
            let name = pair.name.parse().map_err(|_| bad(&pair.name))?;
            Ok((name, Text::Pattern(pattern(&pair.value)?)))
        });
        let query = message.query.iter();
        let query = query.map(|pair| Ok((pair.name.clone(), Text::Exact(pair.value.clone()))));
        let query_patterns = message.query_patterns.iter();
        let query_patterns = query_patterns
            .map(|pair| Ok((pair.name.clone(), Text::Pattern(pattern(&pair.value)?))));
        Ok(Self {
            path,
            method: method.transpose()?,
            headers: headers
                .chain(header_patterns)
                .collect::<Result<_, String>>()?,
            query: query.chain(query_patterns).collect::<Result<_, String>>()?,
        })
    }
}

impl Backend {
    fn parse(message: &wire::Backend) -> Result<Self, String> {
        let refused = some(&message.refused);
        let port = port(message.port).map_err(|error| format!("backends: {error}"))?;
        if port.is_none() && refused.is_none() {
            return Err("backends: port is missing".into());
        }
        Ok(Self {
            service: service(&message.namespace, &message.hostname),
            port: port.unwrap_or_default(),
            weight: message.weight,
            filters: filters(&message.filters)?,
            refused,
            tls: message.tls.as_ref().map(tls).transpose()?,
        })
    }
}

fn tls(message: &wire::BackendTls) -> Result<Result<Arc<BackendTls>, String>, String> {
    if let Some(why) = some(&message.refused) {
        return Ok(Err(why));
    }
    let read = BackendTls::parse(message);
    read.map(|tls| Ok(Arc::new(tls)))
        .map_err(|why| format!("backends: {why}"))
}

fn filters(messages: &[wire::Filter]) -> Result<Vec<Filter>, String> {
    let one = |message: &wire::Filter| {
        Ok(match message.filter.as_ref() {
            Some(filter::Filter::RequestHeaders(change)) => {
                Filter::RequestHeaders(header_change(change)?)
            }
            Some(filter::Filter::ResponseHeaders(change)) => {
                Filter::ResponseHeaders(header_change(change)?)
            }
            Some(filter::Filter::Redirect(redirect)) => Filter::Redirect(Redirect {
                scheme: some(&redirect.scheme),
                hostname: some(&redirect.hostname),
                path: redirect.path.as_ref().map(path_change).transpose()?,
                port: port(redirect.port)?,
                status: u16::try_from(redirect.status)
                    .ok()
                    .filter(|status| matches!(status, 301 | 302 | 303 | 307 | 308))
                    .and_then(|status| StatusCode::from_u16(status).ok())
                    .ok_or_else(|| format!("redirect: {} is no status", redirect.status))?,
            }),
            Some(filter::Filter::Rewrite(rewrite)) => Filter::Rewrite(Rewrite {
                hostname: some(&rewrite.hostname),
                path: rewrite.path.as_ref().map(path_change).transpose()?,
            }),
            Some(filter::Filter::Mirror(mirror)) => Filter::Mirror(Mirror {
                backend: match &mirror.backend {
                    Some(backend) => Backend::parse(backend)?,
                    None => return Err("mirror: backend is missing".into()),
                },
                numerator: mirror.numerator,
                denominator: mirror.denominator.max(1),
            }),
            Some(filter::Filter::Cors(cors)) => Filter::Cors(Cors {
                origins: cors.origins.clone(),
                credentials: cors.credentials,
                methods: cors.methods.clone(),
                headers: cors.headers.clone(),
                expose: cors.expose.clone(),
                max_age: Duration::from_secs(cors.max_age_s.into()),
            }),
            None => return Err("filters: an unknown one".into()),
        })
    };
    messages.iter().map(one).collect()
}

fn header_change(message: &wire::HeaderChange) -> Result<HeaderChange, String> {
    let pairs = |pairs: &[wire::Pair]| {
        let one = |pair: &wire::Pair| {
            let name: HeaderName = pair.name.parse().map_err(|_| bad(&pair.name))?;
            let value: HeaderValue = pair.value.parse().map_err(|_| bad(&pair.value))?;
            Ok((name, value))
        };
        pairs.iter().map(one).collect::<Result<_, String>>()
    };
    let remove = message.remove.iter();
    Ok(HeaderChange {
        set: pairs(&message.set)?,
        add: pairs(&message.add)?,
        remove: remove
            .map(|name| name.parse().map_err(|_| bad(name)))
            .collect::<Result<_, _>>()?,
    })
}

fn path_change(message: &wire::PathChange) -> Result<PathChange, String> {
    match &message.change {
        Some(path_change::Change::Full(path)) => Ok(PathChange::Full(path.clone())),
        Some(path_change::Change::Prefix(path)) => Ok(PathChange::Prefix(path.clone())),
        None => Err("path: an unknown change".into()),
    }
}

fn pattern(text: &str) -> Result<Pattern, String> {
    Pattern::parse(text).map_err(|error| error.to_string())
}

fn service(namespace: &str, hostname: &str) -> ServiceKey {
    ServiceKey {
        namespace: namespace.into(),
        hostname: hostname.to_ascii_lowercase().into(),
    }
}

/// 0 is none.
fn port(number: u32) -> Result<Option<u16>, String> {
    match u16::try_from(number) {
        Ok(0) => Ok(None),
        Ok(port) => Ok(Some(port)),
        Err(_) => Err(format!("{number} is no port")),
    }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn bad(text: &str) -> String {
    format!("{text:?} can't be in a request")
}
