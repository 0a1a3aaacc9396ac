//! The way of one request: is its head unambiguous, does policy allow it, which rule decides, which backend answers.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderValue, Request, Response, Version, request};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use seine_policy::{Applicable, Connection, Decision, verdict};
use seine_workload::{AppProtocol, Service};
use tokio::time::{Instant, timeout, timeout_at};

use crate::failure::Failure;
use crate::head::{self, Head};
use crate::router::{self, Asked, Choice};
use crate::rule::{Backend, Filter, HeaderChange, PathMatch, Rule};
use crate::serve::Bound;
use crate::shared::Shared;
use crate::telemetry::{Entry, LoggedBody};
use crate::upstream::Wanted;

/// A body that a backend sends, or one of ours.
pub(crate) type Body = Either<Incoming, Full<Bytes>>;

/// Answers a request. Whatever goes wrong is an answer, too.
pub(crate) async fn answer(
    shared: Arc<Shared>,
    bound: Arc<Bound>,
    request: Request<Incoming>,
) -> Response<LoggedBody> {
    let mut entry = Entry::of_request(&bound, &request);
    let response = match route(&shared, &bound, request, &mut entry).await {
        Ok(response) => response,
        Err(failure) => {
            let response = refusal(&failure);
            entry.failure = Some(failure);
            response
        }
    };
    entry.status = Some(response.status());
    shared.telemetry.log(response, entry)
}

/// A few words for people; the reason is for the log.
fn refusal(failure: &Failure) -> Response<Body> {
    let status = failure.status();
    let word = status.canonical_reason().unwrap_or("refused");
    let text = format!("{word} (waypoint: {})\n", failure.flag());
    let mut response = Response::new(Either::Right(Full::new(Bytes::from(text))));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}

async fn route(
    shared: &Shared,
    bound: &Bound,
    request: Request<Incoming>,
    entry: &mut Entry,
) -> Result<Response<Body>, Failure> {
    let (mut parts, body) = request.into_parts();
    let head = Head::read(&parts)?;
    entry.path.clone_from(&head.path);
    entry.host.clone_from(&head.host);
    head::strip_own(&mut parts.headers);
    let decision = judge(shared, bound, Some((&head, &parts))).await;
    entry.decision = Some(decision.clone());
    if !decision.allowed {
        return Err(Failure::Denied(decision.because));
    }
    head::strip_hop_by_hop(&mut parts.headers);
    let allowed = Allowed { parts, head, body };

    let rules = shared.routes.of(&bound.service.key);
    let from = bound.first.identity.namespace();
    let asked = allowed.asked();
    let choice = match bound.pod {
        // Routes are about the service.
        Some(_) => Choice::NoRules,
        None => router::choose(&rules, &bound.service.key, bound.port, from, &asked),
    };
    let Some((rule, matched)) = chosen(choice)? else {
        let call = Call {
            service: bound.service.clone(),
            port: bound.port,
        };
        return call.send(shared, bound, allowed, entry).await;
    };
    entry.rule = Some(rule.name.clone());
    obey(shared, bound, &rule, matched, allowed, entry).await
}

/// A request that policy allows.
struct Allowed {
    parts: request::Parts,
    head: Head,
    body: Incoming,
}

impl Allowed {
    /// What routes look at.
    fn asked(&self) -> Asked<'_> {
        Asked {
            method: &self.parts.method,
            path: &self.head.path,
            query: self.head.query.as_deref(),
            headers: &self.parts.headers,
        }
    }

    fn is_grpc(&self) -> bool {
        let kind = self.parts.headers.get(CONTENT_TYPE);
        kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
    }
}

fn chosen(choice: Choice) -> Result<Option<(Arc<Rule>, usize)>, Failure> {
    match choice {
        Choice::NoRules => Ok(None),
        Choice::NoMatch => Err(Failure::NoRoute),
        Choice::Rule(rule, matched) => Ok(Some((rule, matched))),
    }
}

async fn obey(
    shared: &Shared,
    bound: &Bound,
    rule: &Rule,
    matched: usize,
    mut request: Allowed,
    entry: &mut Entry,
) -> Result<Response<Body>, Failure> {
    let because = |reason: &str| Failure::Route {
        rule: rule.name.clone(),
        reason: reason.into(),
    };
    if let Some(reason) = &rule.refused {
        return Err(because(reason));
    }
    let path = &rule.matches[matched].path;
    let mut changes: Vec<&HeaderChange> = Vec::new();
    if let Some(redirect) = change(&rule.filters, path, &mut request, &mut changes) {
        return Ok(with(redirect, &changes));
    }
    let backend = router::pick(&rule.backends, &mut rand::rng());
    let backend = backend.ok_or_else(|| because("no backend takes requests"))?;
    if let Some(reason) = &backend.refused {
        return Err(because(reason));
    }
    if let Some(redirect) = change(&backend.filters, path, &mut request, &mut changes) {
        return Ok(with(redirect, &changes));
    }
    let call = Call::to(shared, backend)?;
    let limits = [rule.request_timeout, rule.backend_timeout];
    let limit = limits.into_iter().flatten().min();
    let sent = call.send(shared, bound, request, entry);
    let response = match limit {
        None => sent.await?,
        Some(limit) => timeout(limit, sent)
            .await
            .map_err(|_| Failure::Timeout(limit))??,
    };
    Ok(with(response, &changes))
}

/// Applies filters to the request and gathers what they change of the answer; a redirect is the answer.
fn change<'a>(
    filters: &'a [Filter],
    matched: &PathMatch,
    request: &mut Allowed,
    changes: &mut Vec<&'a HeaderChange>,
) -> Option<Response<Body>> {
    let mut answer = None;
    for filter in filters {
        match filter {
            Filter::RequestHeaders(change) => change.apply(&mut request.parts.headers),
            Filter::ResponseHeaders(change) => changes.push(change),
            Filter::Rewrite(rewrite) => rewrite.apply(&mut request.head, matched),
            Filter::Redirect(redirect) => {
                let location = redirect.location(&request.head, matched);
                let mut response = Response::new(Either::Right(Full::default()));
                *response.status_mut() = redirect.status;
                if let Ok(location) = HeaderValue::try_from(location) {
                    response.headers_mut().insert(LOCATION, location);
                }
                answer.get_or_insert(response);
            }
        }
    }
    answer
}

fn with(mut response: Response<Body>, changes: &[&HeaderChange]) -> Response<Body> {
    for change in changes {
        change.apply(response.headers_mut());
    }
    response
}

/// A request on its way to a service.
struct Call {
    service: Arc<Service>,
    port: u16,
}

impl Call {
    fn to(shared: &Shared, backend: &Backend) -> Result<Self, Failure> {
        let service = shared.store.service(&backend.service);
        let unknown = || Failure::Unavailable(format!("{} is not known", backend.service));
        Ok(Self {
            service: service.ok_or_else(unknown)?,
            port: backend.port,
        })
    }

    async fn send(
        self,
        shared: &Shared,
        bound: &Bound,
        request: Allowed,
        entry: &mut Entry,
    ) -> Result<Response<Body>, Failure> {
        entry.backend = Some(format!("{}:{}", self.service.key.hostname, self.port));
        let protocol = self.service.port(self.port).map(|port| port.app_protocol);
        let two =
            request.is_grpc() || matches!(protocol, Some(AppProtocol::Http2 | AppProtocol::Grpc));
        let version = match two {
            true => Version::HTTP_2,
            false => Version::HTTP_11,
        };
        let Allowed {
            mut parts,
            head,
            body,
        } = request;
        head::write(&mut parts, &head, version).ok_or_else(|| Failure::Route {
            rule: entry.rule.clone().unwrap_or_default(),
            reason: "it rewrites the URL to one that can't be in a request".into(),
        })?;
        let request = Request::from_parts(parts, body);
        let to = Wanted {
            pod: bound.pod.as_ref(),
            service: &self.service,
            port: self.port,
            first: &bound.first,
            two,
        };
        let sent = shared
            .upstreams
            .send(shared, &to, request, &mut entry.endpoint);
        let (mut parts, body) = sent.await?.into_parts();
        head::strip_hop_by_hop(&mut parts.headers);
        Ok(Response::from_parts(parts, Either::Left(body)))
    }
}

/// Judges a request, or without one a connection that nobody parses, by the policies of the service; where a pod is
/// addressed, of every service that leads there.
pub(crate) async fn judge(
    shared: &Shared,
    bound: &Bound,
    request: Option<(&Head, &request::Parts)>,
) -> Decision {
    let mut decision = judge_as(shared, bound, &bound.service, bound.destination, request).await;
    for (service, port) in bound.pod.iter().flat_map(|pod| pod.also.iter()) {
        if !decision.allowed {
            break;
        }
        let address = service
            .addresses
            .iter()
            .find_map(|address| address.single());
        let address = address.unwrap_or(bound.destination.ip());
        let destination = SocketAddr::new(address, *port);
        decision = judge_as(shared, bound, service, destination, request).await;
    }
    decision
}

/// By the policies of one service. Waits for those that are known by name alone, for at most the configured time.
async fn judge_as(
    shared: &Shared,
    bound: &Bound,
    service: &Arc<Service>,
    destination: SocketAddr,
    request: Option<(&Head, &request::Parts)>,
) -> Decision {
    let mut changes = shared.store.changed();
    let deadline = Instant::now() + shared.config.policy_wait;
    loop {
        changes.mark_unchanged();
        let current = shared.store.service(&service.key);
        let current = current.as_ref().unwrap_or(service);
        let missing = match shared.store.policies_at_waypoint(current) {
            Applicable::Ready(policies) if policies.is_empty() => {
                return verdict_on(bound, destination, &[], None);
            }
            Applicable::Ready(policies) => {
                let texts = request.map(|(_, parts)| texts(&parts.headers));
                let asked = request.zip(texts.as_ref()).map(|((head, parts), texts)| {
                    let pairs = texts.iter().map(|(name, value)| (*name, value.as_str()));
                    (head, parts, pairs.collect::<Vec<_>>())
                });
                let asked = asked
                    .as_ref()
                    .map(|(head, parts, headers)| seine_policy::Request {
                        method: parts.method.as_str(),
                        path: &head.path,
                        host: &head.host,
                        headers,
                    });
                return verdict_on(bound, destination, &policies, asked);
            }
            Applicable::Missing(missing) => missing,
        };
        match timeout_at(deadline, changes.changed()).await {
            Ok(Ok(())) => {}
            // The store lives as long as the process.
            Ok(Err(_)) | Err(_) => return Decision::missing(missing),
        }
    }
}

fn verdict_on(
    bound: &Bound,
    destination: SocketAddr,
    policies: &[Arc<seine_policy::Policy>],
    request: Option<seine_policy::Request<'_>>,
) -> Decision {
    let connection = Connection {
        source: bound.first.address,
        destination,
        identity: Some(&bound.first.identity),
        request,
    };
    verdict(policies, &connection)
}

/// Bytes that are no UTF-8 become what no policy can name.
fn texts(headers: &HeaderMap) -> Vec<(&str, String)> {
    let pairs = headers.iter();
    pairs
        .map(|(name, value)| {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            (name.as_str(), value)
        })
        .collect()
}
