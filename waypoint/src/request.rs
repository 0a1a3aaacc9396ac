//! The way of one request: is its head unambiguous, is its token valid, does policy allow it, which rule decides, which backend answers.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{LOCATION, ORIGIN};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, request};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use seine_identity::Identity;

use crate::authentication::authenticate;
use crate::bind::Bound;
use crate::cors::is_preflight;
use crate::external::{Told, ask};
use crate::failure::Failure;
use crate::forward::{Call, forward};
use crate::head::{self, Head};
use crate::ingress::Door;
use crate::judge::judge;
use crate::limit;
use crate::refusal::{is_grpc, refusal};
use crate::router::{self, Asked, Choice};
use crate::rule::{Backend, Cors, Filter, HeaderChange, Mirror, PathMatch, Rule};
use crate::session::Token;
use crate::shared::Shared;
use crate::telemetry::{Entry, LoggedBody};
use crate::{endpoint, trace, upgrade};

/// A body that a backend sends, or one of ours.
pub(crate) type Body = Either<Incoming, Full<Bytes>>;

/// Answers a request. Whatever goes wrong is an answer, too.
pub(crate) async fn answer(
    shared: Arc<Shared>,
    bound: Arc<Bound>,
    request: Request<Incoming>,
) -> Response<LoggedBody> {
    let mut entry = Box::new(Entry::of_request(&bound, &request));
    let grpc = is_grpc(request.version(), request.headers());
    entry.grpc = grpc;
    if shared.config.otlp_endpoint.is_some() {
        entry.span = trace::request(&bound, &request);
    }
    let response = match route(&shared, &bound, request, &mut entry).await {
        Ok(response) => response,
        Err(failure) => {
            let response = refusal(&failure, grpc);
            entry.failure = Some(failure);
            response
        }
    };
    entry.status = Some(response.status());
    shared.telemetry.log(response, entry)
}

async fn route(
    shared: &Arc<Shared>,
    bound: &Arc<Bound>,
    request: Request<Incoming>,
    entry: &mut Entry,
) -> Result<Response<Body>, Failure> {
    let (mut parts, body) = request.into_parts();
    let mut head = Head::read(&parts)?;
    entry.path.clone_from(&head.path);
    entry.host.clone_from(&head.host);
    head::strip_own(&mut parts.headers);
    let tell = |headers: &mut HeaderMap| {
        if let Some(door) = &bound.door {
            door.tell(headers);
        }
    };
    tell(&mut parts.headers);
    let token = authenticate(shared, bound, &mut head, &mut parts).await?;
    entry.principal = token.as_ref().and_then(|token| token.principal.clone());
    let decision = judge(shared, bound, Some((&head, &parts, token.as_ref()))).await;
    entry.decision = Some(decision.clone());
    if !decision.allowed {
        return Err(Failure::Denied(decision.because));
    }
    limit::admit(shared, bound, &parts.headers)?;
    let told = match ask(
        shared,
        bound,
        &decision.asks,
        &head,
        &mut parts,
        &entry.span,
    )
    .await?
    {
        Told::Allowed(changes) => changes.on_request(&mut parts.headers),
        // In its own terms.
        Told::Denied(_, failure) if entry.grpc => return Err(failure),
        Told::Denied(response, failure) => {
            entry.failure = Some(failure);
            return Ok(*response);
        }
    };
    let upgrade = upgrade::wanted(&mut parts);
    let grpc = is_grpc(parts.version, &parts.headers);
    head::strip_hop_by_hop(&mut parts.headers);
    // A client may have named it as one that goes no further.
    tell(&mut parts.headers);
    let allowed = Allowed {
        parts,
        head,
        body,
        grpc,
        upgrade,
    };

    let mut response = routed(shared, bound, allowed, entry).await?;
    told.on_response(response.headers_mut());
    Ok(response)
}

/// By the rule that decides, or without one to the service itself.
async fn routed(
    shared: &Arc<Shared>,
    bound: &Arc<Bound>,
    allowed: Allowed,
    entry: &mut Entry,
) -> Result<Response<Body>, Failure> {
    let rules = shared.routes.of(&bound.service.key);
    let identity = bound.first.identity.as_ref();
    let from = identity.map_or("", Identity::namespace);
    let asked = allowed.asked();
    let choice = match (&bound.door, &bound.pod) {
        (Some(door), _) => door.choose(shared, &allowed.head.host, &asked)?,
        // Routes are about the service.
        (None, Some(_)) => Choice::NoRules,
        (None, None) => router::choose(&rules, &bound.service.key, bound.port, from, &asked),
    };
    let Some((rule, matched)) = chosen(choice)? else {
        let call = Call {
            service: bound.service.clone(),
            port: bound.port,
            of_session: None,
            tls: None,
        };
        return forward(shared, bound, None, call, allowed, &[], entry).await;
    };
    entry.rule = Some(rule.name.clone());
    obey(shared, bound, &rule, matched, allowed, entry).await
}

/// A request that policy allows.
pub(crate) struct Allowed {
    pub(crate) parts: request::Parts,
    pub(crate) head: Head,
    pub(crate) body: Incoming,
    pub(crate) grpc: bool,
    /// Another protocol that the client wants, and its end of the connection for it.
    pub(crate) upgrade: Option<(HeaderValue, OnUpgrade)>,
}

impl Allowed {
    /// What routes look at.
    fn asked(&self) -> Asked<'_> {
        Asked {
            method: &self.parts.method,
            path: &self.head.path,
            query: self.head.query.as_deref(),
            headers: &self.parts.headers,
            grpc: self.grpc,
        }
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
    shared: &Arc<Shared>,
    bound: &Arc<Bound>,
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
    let mut effects = Effects {
        origin: request.parts.headers.get(ORIGIN).cloned(),
        ..Effects::default()
    };
    let scheme = bound.door.as_ref().map_or("http", Door::scheme);
    let at = (scheme, bound.port);
    if let Some(answer) = effects.apply(&rule.filters, path, at, &mut request) {
        return Ok(effects.on(answer));
    }
    let session = rule.session.as_ref();
    let shown = session.and_then(|session| session.of(&request.parts.headers));
    let kept = shown.and_then(|token| kept(shared, bound, rule, token));
    let (backend, of_session) = match kept {
        Some((backend, uid)) => (Some(backend), Some(uid)),
        None => (router::pick(&rule.backends, &mut rand::rng()), None),
    };
    let backend = backend.ok_or_else(|| because("no backend takes requests"))?;
    if let Some(reason) = &backend.refused {
        return Err(because(reason));
    }
    if let Some(answer) = effects.apply(&backend.filters, path, at, &mut request) {
        return Ok(effects.on(answer));
    }
    let call = Call {
        of_session,
        ..Call::to(shared, backend)?
    };
    let mirrors = &effects.mirrors;
    let mut answer = forward(shared, bound, Some(rule), call, request, mirrors, entry).await?;
    if let (Some(session), Some(endpoint)) = (session, &entry.endpoint) {
        let secure = bound
            .door
            .as_ref()
            .is_some_and(|door| door.scheme() == "https");
        session.tell(shown, endpoint, (path, secure), answer.headers_mut());
    }
    Ok(effects.on(answer))
}

/// The backend of a session, whatever its weight, and the workload. None if it is gone: then another session begins.
fn kept<'a>(
    shared: &Shared,
    bound: &Bound,
    rule: &'a Rule,
    token: Token,
) -> Option<(&'a Backend, Arc<str>)> {
    let usable = rule.backends.iter();
    let mut usable = usable.filter(|backend| backend.refused.is_none());
    usable.find_map(|backend| {
        let service = shared.store.service(&backend.service)?;
        let of = (&service, backend.port);
        let uid = endpoint::of_session(shared, of, &bound.first, token)?;
        Some((backend, uid))
    })
}

/// What filters do beside changing the request.
#[derive(Default)]
struct Effects<'a> {
    changes: Vec<&'a HeaderChange>,
    mirrors: Vec<&'a Mirror>,
    cors: Option<&'a Cors>,
    origin: Option<HeaderValue>,
}

impl<'a> Effects<'a> {
    /// Applies filters to the request; some of them are the answer.
    fn apply(
        &mut self,
        filters: &'a [Filter],
        matched: &PathMatch,
        asked: (&str, u16),
        request: &mut Allowed,
    ) -> Option<Response<Body>> {
        let mut answer = None;
        for filter in filters {
            match filter {
                Filter::RequestHeaders(change) => change.apply(&mut request.parts.headers),
                Filter::ResponseHeaders(change) => self.changes.push(change),
                Filter::Rewrite(rewrite) => rewrite.apply(&mut request.head, matched),
                Filter::Mirror(mirror) => self.mirrors.push(mirror),
                Filter::Cors(cors) => {
                    let parts = &request.parts;
                    if is_preflight(&parts.method, &parts.headers) {
                        let mut response = empty(StatusCode::NO_CONTENT);
                        *response.headers_mut() = cors.preflight(&parts.headers);
                        answer.get_or_insert(response);
                    } else {
                        self.cors = Some(cors);
                    }
                }
                Filter::Redirect(redirect) => {
                    let location = redirect.location(&request.head, matched, asked);
                    let mut response = empty(redirect.status);
                    if let Ok(location) = HeaderValue::try_from(location) {
                        response.headers_mut().insert(LOCATION, location);
                    }
                    answer.get_or_insert(response);
                }
            }
        }
        answer
    }

    /// Changes the answer.
    fn on(&self, mut response: Response<Body>) -> Response<Body> {
        if let Some(cors) = self.cors {
            cors.apply(self.origin.as_ref(), response.headers_mut());
        }
        for change in &self.changes {
            change.apply(response.headers_mut());
        }
        response
    }
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Either::Right(Full::default()));
    *response.status_mut() = status;
    response
}
