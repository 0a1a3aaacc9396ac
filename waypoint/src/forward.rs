//! A request on its way to a backend: its copies, its attempts, its time, and another protocol if both sides want it.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, Version, request};
use http_body_util::Either;
use hyper::body::Incoming;
use seine_workload::{AppProtocol, Service};
use tokio::time::{sleep, timeout};

use crate::backend_tls::BackendTls;
use crate::balance::InFlight;
use crate::bind::Bound;
use crate::body::{Outgoing, Source};
use crate::endpoint::Wanted;
use crate::failure::Failure;
use crate::head::{self, Head};
use crate::mirror;
use crate::request::{Allowed, Body};
use crate::rule::{Backend, Mirror, Rule};
use crate::shared::Shared;
use crate::telemetry::Entry;
use crate::upgrade;
use crate::upload::{ClientBody, Clock};

/// A service and its port.
pub(crate) struct Call {
    pub(crate) service: Arc<Service>,
    pub(crate) port: u16,
    /// The name of the workload of its session, which is asked if it can be.
    pub(crate) of_session: Option<Arc<str>>,
    /// That it speaks TLS itself.
    pub(crate) tls: Option<Arc<BackendTls>>,
}

impl Call {
    /// To a route's backend.
    pub(crate) fn to(shared: &Shared, backend: &Backend) -> Result<Self, Failure> {
        let service = shared.store.service(&backend.service);
        // That of a Gateway's backends alone: docs/INGRESS.md.
        let tls = backend.tls.as_ref().filter(|_| shared.config.ingress);
        let tls = tls.cloned().transpose().map_err(Failure::Unavailable)?;
        let unknown = || Failure::Unavailable(format!("{} is not known", backend.service));
        Ok(Self {
            service: service.ok_or_else(unknown)?,
            port: backend.port,
            of_session: None,
            tls,
        })
    }

    /// Whether it is asked in HTTP/2.
    pub(crate) fn speaks_two(&self, grpc: bool) -> bool {
        let protocol = self.service.port(self.port).map(|port| port.app_protocol);
        grpc || matches!(protocol, Some(AppProtocol::Http2 | AppProtocol::Grpc))
    }

    /// The head that it gets; `None`: what it was rewritten to can't be in a request.
    pub(crate) fn parts(
        &self,
        mut parts: request::Parts,
        head: &Head,
        two: bool,
    ) -> Option<request::Parts> {
        let version = match two {
            true => Version::HTTP_2,
            false => Version::HTTP_11,
        };
        head::write(&mut parts, head, version)?;
        Some(parts)
    }
}

/// Sends a request and returns the answer, when its head is there.
pub(crate) async fn forward(
    shared: &Arc<Shared>,
    bound: &Arc<Bound>,
    rule: Option<&Rule>,
    call: Call,
    request: Allowed,
    mirrors: &[&Mirror],
    entry: &mut Entry,
) -> Result<Response<Body>, Failure> {
    entry.backend = Some(format!("{}:{}", call.service.key.hostname, call.port));
    let Allowed {
        mut parts,
        head,
        body,
        grpc,
        upgrade,
    } = request;
    // What the server's side of this proxy keeps there is not for its client's side.
    parts.extensions.clear();
    let two = call.speaks_two(grpc);
    // Only HTTP/1.1 knows it.
    let upgrade = upgrade.filter(|_| !two);
    let mirrors: Vec<_> = mirrors
        .iter()
        .filter(|mirror| upgrade.is_none() && mirror::drawn(mirror))
        .collect();
    let retry = rule.and_then(|rule| rule.retry.as_ref());
    let body = ClientBody::new(body, grpc);
    let clock = Clock::start(&body.upload());
    let mut body = match retry.is_some() || !mirrors.is_empty() {
        false => Attempts::One(Outgoing::Plain(body)),
        true => Attempts::Many(Source::new(body, retry.is_some())),
    };
    for mirror in mirrors {
        if let Attempts::Many(source) = &body {
            let request = (&parts, &head, grpc);
            mirror::start(shared, bound, mirror, request, source.copy());
        }
    }
    let mut parts = call
        .parts(parts, &head, two)
        .ok_or_else(|| Failure::Route {
            rule: entry.rule.clone().unwrap_or_default(),
            reason: "it rewrites the URL to one that can't be in a request".into(),
        })?;
    if let Some((protocol, _)) = &upgrade {
        upgrade::announce(&mut parts.headers, protocol);
    }
    let service = (&call.service, call.port);
    let to = Wanted {
        pod: bound.pod.as_ref(),
        span: entry.span.clone(),
        of_session: call.of_session.as_ref(),
        tls: call.tls.as_ref(),
        ..Wanted::new(shared, service, &bound.first, &parts.headers)
    };
    let sent = attempts(shared, &to, rule, parts, &mut body, entry);
    let limit = rule.and_then(|rule| rule.request_timeout);
    let (mut response, load) = within(limit, &clock, sent).await?;
    let load = Arc::new(load);
    let switched = upgrade::join(shared, upgrade, &mut response, Some(load.clone()))?;
    entry.load = Some(load);
    let (mut parts, body) = response.into_parts();
    head::strip_hop_by_hop(&mut parts.headers);
    if let Some(protocol) = switched {
        upgrade::announce(&mut parts.headers, &protocol);
    }
    Ok(Response::from_parts(parts, Either::Left(body)))
}

/// The body for each attempt.
enum Attempts {
    One(Outgoing),
    Many(Source),
    Spent,
}

impl Attempts {
    fn next(&mut self) -> Option<Outgoing> {
        match std::mem::replace(self, Self::Spent) {
            Self::One(body) => Some(body),
            Self::Spent => None,
            Self::Many(source) => {
                let body = source.again();
                *self = Self::Many(source);
                body
            }
        }
    }
}

async fn attempts(
    shared: &Shared,
    to: &Wanted<'_>,
    rule: Option<&Rule>,
    parts: request::Parts,
    body: &mut Attempts,
    entry: &mut Entry,
) -> Result<(Response<Incoming>, InFlight), Failure> {
    let backend = &to.backend;
    let retry = rule.and_then(|rule| rule.retry.as_ref());
    let limit = rule.and_then(|rule| rule.backend_timeout);
    if retry.is_some() {
        backend.budget.request();
    }
    let mut reading = body.next().expect("the first one is there");
    // Kept only for those that may be sent again.
    let again = retry.is_some().then(|| parts.clone());
    let mut request = Some(parts);
    let mut avoid = Vec::new();
    loop {
        let clock = Clock::start(&reading.upload());
        let parts = request.take().or_else(|| again.clone());
        let parts = parts.expect("without a retry there is one attempt");
        let request = Request::from_parts(parts, reading);
        let seen = &mut entry.endpoint;
        let sent = shared.upstreams.send(shared, to, request, &avoid, seen);
        let result = within(limit, &clock, sent).await;
        let is_clients = clock.was_client_slow();
        if let (Err(Failure::Timeout(_)), Some(endpoint), false) =
            (&result, &entry.endpoint, is_clients)
        {
            let outlier = backend.rules().policy.outlier;
            let loads = &backend.loads;
            loads.failed(endpoint.address, &outlier, || to.count(shared));
        }
        let ended = result.as_ref().map(|(response, _)| response.status());
        let retry = retry.filter(|retry| entry.retries < retry.attempts && retry.wants(ended));
        // Another backend would have to wait for it, too, and others would have to do without the retry.
        let retry = retry.filter(|_| result.is_ok() || !is_clients);
        let budget = || backend.budget.retry(&backend.rules().policy.budget);
        let Some(retry) = retry.filter(|_| budget()) else {
            return result;
        };
        match body.next() {
            Some(again) => reading = again,
            None => return result,
        }
        // Its connection is of no use to others unless the answer is at its end.
        drop(result);
        avoid.extend(entry.endpoint.as_ref().map(|endpoint| endpoint.uid.clone()));
        sleep(retry.wait(entry.retries)).await;
        entry.retries += 1;
    }
}

async fn within<T>(
    limit: Option<Duration>,
    clock: &Clock,
    future: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    match limit {
        None => future.await,
        Some(limit) => timeout(limit, future)
            .await
            .unwrap_or_else(|_| Err(clock.late(limit))),
    }
}
