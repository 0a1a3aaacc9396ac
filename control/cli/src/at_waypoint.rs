//! What becomes of a connection or request at the waypoint that its destination is bound to: the verdict, the rule that
//! decides, and where it goes. By the waypoint's own functions.

use std::{fmt, net::SocketAddr, sync::Arc};

use seine_control::status::binding::waypoint_bound;
use seine_identity::Identity;
use seine_objects::ObjectKey;
use seine_policy::{Applicable, Connection, Decision, Request, Token, explain};
use seine_waypoint::{
    router::{self, Choice},
    rule::Rule,
    why::{self, Considered, Seen},
};
use seine_workload::{GatewayDestination, Service, Workload};
use serde::Serialize;

use crate::{
    asked::Asked,
    explain::{CLIENT_PORT, Policy, WithDryRun},
    world::World,
};

/// How many rules are told that come near.
const NEAREST: usize = 3;
const ABOUT_REQUESTS: &str = "the port speaks HTTP, and what is asked for is not known: say --method, --path, --host or --header, so that policies and routes on requests are judged";
const NO_TOKEN: &str = "--claim doesn't count: no RequestAuthentication is attached to the service, so that its waypoint believes no token";

/// A waypoint, and the verdict there.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AtWaypoint {
    /// `namespace/name` of each that the destination is bound to.
    pub waypoints: Vec<String>,
    /// The request, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    /// Whether policy lets it go on.
    pub allowed: bool,
    /// Why, or why not.
    pub because: String,
    /// Every policy that was judged.
    pub policies: Vec<Policy>,
    /// What would hold with the dry-run policies in force, where there are some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub with_dry_run: Option<WithDryRun>,
    /// Who is asked, too, each a sentence.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub asks: Vec<String>,
    /// What routes say of an allowed request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<Route>,
}

/// What routes say of a request.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Route {
    /// `KIND/NAMESPACE/NAME/INDEX` of the rule that decides; none: no route is about the port, or no rule matches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Index of its match that decides.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matched: Option<usize>,
    /// What its filters do, each in a few words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub effects: Vec<String>,
    /// The waypoint's own answer, in the place of a backend's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// That answer is an error.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub failed: bool,
    /// Other rules that came near, the nearest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub near: Vec<Near>,
    /// Where it goes, by weight; none: to the service itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub backends: Vec<Backend>,
}

/// A rule that doesn't match, and why.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Near {
    /// The rule.
    pub rule: String,
    /// Index of its match that comes nearest.
    pub matched: usize,
    /// What it lacks.
    pub lacks: Vec<String>,
}

/// A backend of the rule.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Backend {
    /// `namespace/hostname`.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// As the route says it.
    pub weight: u32,
    /// Of the rule's requests, in percent.
    pub share: f64,
    /// Why its share is answered with 500.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// What the filters of the backend do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub effects: Vec<String>,
}

/// Who may stand for a client at its destination.
pub(crate) struct Waypoint {
    /// `namespace/name`.
    pub(crate) name: String,
    pub(crate) identity: Identity,
    /// Where it runs, if that is known.
    pub(crate) workload: Option<Arc<Workload>>,
}

impl World {
    /// The waypoints that a service is bound to.
    pub(crate) fn waypoints_of(&self, service: &Service) -> Vec<Waypoint> {
        let weighted = service.weighted_waypoints.iter();
        let weighted = weighted.map(|waypoint| &waypoint.destination);
        let one = service.waypoint.as_deref().into_iter();
        let mut found: Vec<Waypoint> = Vec::new();
        for gateway in one.chain(weighted) {
            let GatewayDestination::Service(key) = &gateway.destination else {
                continue;
            };
            let name = key.hostname.split('.').next().unwrap_or_default();
            let named = format!("{}/{name}", key.namespace);
            let domain = self.settings.trust_domain.parse().ok();
            let identity =
                domain.and_then(|domain| Identity::new(domain, &key.namespace, name).ok());
            if let Some(identity) = identity
                && found.iter().all(|known| known.name != named)
            {
                found.push(Waypoint {
                    name: named,
                    identity,
                    workload: self.store.endpoints(key).into_iter().next(),
                });
            }
        }
        found
    }

    /// What the waypoint of the first of these services and ports does; where a pod was addressed, of every one that leads there.
    pub(crate) fn at_waypoint(
        &self,
        client: &Workload,
        source: std::net::IpAddr,
        (services, is_pod): (&[(Arc<Service>, u16)], bool),
        asked: &Asked,
        notes: &mut Vec<String>,
    ) -> anyhow::Result<AtWaypoint> {
        let (service, port) = &services[0];
        let waypoints = self.waypoints_of(service);
        let mut at = AtWaypoint {
            waypoints: waypoints
                .into_iter()
                .map(|waypoint| waypoint.name)
                .collect(),
            request: None,
            allowed: false,
            because: String::new(),
            policies: Vec::new(),
            with_dry_run: None,
            asks: Vec::new(),
            route: None,
        };
        if let Some(why) = self.unreached(service) {
            at.because = why;
            return Ok(at);
        }
        let request = asked.request(&service.key.hostname)?;
        let is_http = why::is_http(service, *port, &self.routes);
        let mut seen = match request.filter(|_| is_http).map(Seen::read).transpose() {
            Ok(seen) => seen,
            Err(bad) => {
                at.because = format!("answered with 400: {bad}");
                return Ok(at);
            }
        };
        if let Some(seen) = &seen {
            let (method, head) = (seen.method(), seen.head());
            at.request = Some(format!("{method} {} at host {}", head.path, head.host));
        } else if is_http {
            notes.push(ABOUT_REQUESTS.to_owned());
        }
        let token = asked.token();
        if token.is_some() && service.authentications.is_empty() {
            notes.push(NO_TOKEN.to_owned());
        }
        let token = token.filter(|_| !service.authentications.is_empty());
        let mut decision: Option<Decision> = None;
        for (service, port) in services {
            let address = service.addresses.iter().find_map(|found| found.single());
            let destination = SocketAddr::new(address.unwrap_or(source), *port);
            let judged = self.judged(
                service,
                destination,
                client,
                source,
                seen.as_ref(),
                &token,
                &mut at,
            );
            decision = Some(match decision {
                Some(held) if !held.allowed => held,
                _ => judged,
            });
        }
        if let Some(decision) = decision {
            at.allowed = decision.allowed;
            at.because = decision.because.to_string();
            at.with_dry_run = decision.audit.map(|audit| WithDryRun {
                allowed: audit.allowed,
                because: audit.because.to_string(),
            });
        }
        if let Some(seen) = seen.as_mut().filter(|_| at.allowed && !is_pod) {
            at.route = Some(self.route(client, service, *port, seen));
        }
        Ok(at)
    }

    /// Why no waypoint of a service takes anything for it.
    fn unreached(&self, service: &Service) -> Option<String> {
        let key = ObjectKey::new(&*service.key.namespace, &*service.name);
        let finding = self.findings.bindings.get(&key)?;
        let bound = waypoint_bound(&key, finding);
        (bound.status == "False").then_some(bound.message)
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "each is another part of the question"
    )]
    fn judged(
        &self,
        service: &Service,
        destination: SocketAddr,
        client: &Workload,
        source: std::net::IpAddr,
        seen: Option<&Seen>,
        token: &Option<(Option<String>, Vec<seine_policy::Claim>)>,
        at: &mut AtWaypoint,
    ) -> Decision {
        let policies = match self.store.policies_at_waypoint(service) {
            Applicable::Missing(names) => return Decision::missing(names),
            Applicable::Ready(policies) => policies,
        };
        let headers = seen.map(Seen::headers).unwrap_or_default();
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (*name, &**value))
            .collect();
        let connection = Connection {
            source: SocketAddr::new(source, CLIENT_PORT),
            destination,
            identity: Some(&client.identity),
            request: seen.map(|seen| Request {
                method: seen.method(),
                path: &seen.head().path,
                host: &seen.head().host,
                headers: &headers,
                token: token.as_ref().map(|(principal, claims)| Token {
                    principal: principal.as_deref(),
                    claims,
                }),
            }),
        };
        let explained = explain(&policies, &connection);
        let steps = explained.steps.iter();
        at.policies
            .extend(steps.map(|step| self.policy(step, client)));
        let asks = explained.decision.asks.iter();
        at.asks.extend(asks.map(|ask| {
            let (provider, policy) = (&ask.provider, &ask.policy);
            format!("{provider} must say so, too, whom policy {policy} asks")
        }));
        explained.decision
    }

    fn route(&self, client: &Workload, service: &Service, port: u16, seen: &mut Seen) -> Route {
        let head = seen.head().clone();
        let asked = seen.routed();
        let rules = self.routes.of(&service.key);
        let from = client.identity.namespace();
        let choice = router::choose(&rules, &service.key, port, from, &asked);
        let mut route = Route::default();
        let (rule, matched) = match choice {
            Choice::NoRules => return route,
            Choice::NoMatch => {
                route.fail("404: no rule matches");
                let near = why::considered(&self.routes, service, port, from, &asked);
                route.near = near.into_iter().take(NEAREST).map(Near::of).collect();
                return route;
            }
            Choice::Rule(rule, matched) => (rule, matched),
        };
        route.rule = Some(rule.name.clone());
        route.matched = Some(matched);
        if let Some(reason) = &rule.refused {
            route.fail(&format!("500: {reason}"));
            return route;
        }
        let path = &rule.matches[matched].path;
        (route.effects, route.answer) = why::effects(&rule.filters, path, &head, port);
        if route.answer.is_none() {
            route.backends = backends(&rule, |filters| {
                let (mut effects, answer) = why::effects(filters, path, &head, port);
                effects.extend(answer.map(|answer| format!("answered by the waypoint: {answer}")));
                effects
            });
            if route.backends.iter().all(|backend| backend.weight == 0) {
                route.fail("500: no backend takes requests");
            }
        }
        route
    }
}

fn backends(
    rule: &Rule,
    effects: impl Fn(&[seine_waypoint::rule::Filter]) -> Vec<String>,
) -> Vec<Backend> {
    let all = rule.backends.iter();
    let sum: f64 = all.clone().map(|backend| f64::from(backend.weight)).sum();
    let all = all.map(|backend| Backend {
        service: backend.service.to_string(),
        port: backend.port,
        weight: backend.weight,
        share: match sum > 0.0 {
            true => (f64::from(backend.weight) / sum * 1000.0).round() / 10.0,
            false => 0.0,
        },
        refused: backend.refused.clone(),
        effects: effects(&backend.filters),
    });
    all.collect()
}

impl Near {
    fn of(considered: Considered) -> Self {
        Self {
            rule: considered.rule.name.clone(),
            matched: considered.matched,
            lacks: considered.lacks,
        }
    }
}

impl Route {
    fn fail(&mut self, answer: &str) {
        self.answer = Some(answer.to_owned());
        self.failed = true;
    }
}

impl fmt::Display for AtWaypoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\nat waypoint {}, mutual TLS",
            self.waypoints.join(" or ")
        )?;
        if let Some(request) = &self.request {
            writeln!(f, "  request {request}")?;
        }
        for policy in &self.policies {
            writeln!(f, "  {}", policy.text)?;
        }
        let allowed = |allowed| if allowed { "ALLOWED" } else { "DENIED" };
        writeln!(f, "  {}: {}", allowed(self.allowed), self.because)?;
        for ask in &self.asks {
            writeln!(f, "  {ask}")?;
        }
        if let Some(audit) = &self.with_dry_run {
            let verdict = allowed(audit.allowed);
            writeln!(
                f,
                "  with dry-run policies in force {verdict}: {}",
                audit.because
            )?;
        }
        match &self.route {
            Some(route) => route.fmt(f),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.rule, self.matched) {
            (Some(rule), Some(matched)) => writeln!(f, "  ROUTE {rule}: match {matched} decides")?,
            _ if !self.failed => {
                writeln!(f, "  no route is about the port: to the service itself")?
            }
            _ => {}
        }
        for effect in &self.effects {
            writeln!(f, "    {effect}")?;
        }
        if let Some(answer) = &self.answer {
            writeln!(f, "  ANSWERED by the waypoint: {answer}")?;
        }
        for near in &self.near {
            writeln!(
                f,
                "    {} match {}: {}",
                near.rule,
                near.matched,
                near.lacks.join("; ")
            )?;
        }
        for backend in &self.backends {
            let Backend {
                service,
                port,
                share,
                ..
            } = backend;
            write!(f, "    {share}% to service {service}, port {port}")?;
            match &backend.refused {
                Some(why) => writeln!(f, ": 500, {why}")?,
                None => writeln!(f)?,
            }
            for effect in &backend.effects {
                writeln!(f, "      {effect}")?;
            }
        }
        Ok(())
    }
}
