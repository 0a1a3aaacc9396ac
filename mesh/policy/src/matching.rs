//! Whether a part of a policy matches a connection. Allocates nothing.

use std::net::IpAddr;

use ipnet::IpNet;
use seine_identity::Identity;

use crate::model::{
    Action, ClaimMatch, Clause, Connection, HeaderMatch, Match, Policy, Request, RequestMatch,
    Rule, ServiceAccountMatch, StringMatch, Token, TokenMatch,
};

impl Policy {
    /// Index of the first rule that matches.
    pub(crate) fn matching_rule(&self, connection: &Subject<'_>) -> Option<usize> {
        self.rules
            .iter()
            .position(|rule| rule.matches(connection, self.action))
    }
}

/// A connection prepared for matching: addresses in canonical form, so that an IPv4 block matches
/// an IPv4 client of a dual-stack socket.
pub(crate) struct Subject<'a> {
    source: IpAddr,
    destination: IpAddr,
    port: u16,
    identity: Option<&'a Identity>,
    request: Option<Request<'a>>,
}

impl<'a> Subject<'a> {
    pub(crate) fn new(connection: &Connection<'a>) -> Self {
        Self {
            source: connection.source.ip().to_canonical(),
            destination: connection.destination.ip().to_canonical(),
            port: connection.destination.port(),
            identity: connection.identity,
            request: connection.request,
        }
    }
}

impl Rule {
    pub(crate) fn matches(&self, subject: &Subject<'_>, action: Action) -> bool {
        self.clauses
            .iter()
            .all(|clause| clause.matches(subject, action))
    }
}

impl Clause {
    fn matches(&self, subject: &Subject<'_>, action: Action) -> bool {
        self.matches.is_empty() || self.matches.iter().any(|m| m.matches(subject, action))
    }
}

impl Match {
    fn matches(&self, subject: &Subject<'_>, action: Action) -> bool {
        if self.unknown_condition {
            if action == Action::Allow {
                return false;
            }
        } else if self.is_empty() {
            return false;
        }
        let request = match (&self.request, &subject.request) {
            (Some(wanted), Some(request)) => wanted.matches(request),
            (Some(_), None) => action == Action::Deny,
            (None, _) => true,
        };
        let token = match (&self.token, &subject.request) {
            (Some(wanted), Some(request)) => wanted.matches(request.token.as_ref()),
            (Some(_), None) => action == Action::Deny,
            (None, _) => true,
        };
        request
            && token
            && self.destination_ports_match(subject.port)
            && kind(&self.source_ips, &self.not_source_ips, |n| {
                in_block(n, subject.source)
            })
            && kind(&self.destination_ips, &self.not_destination_ips, |n| {
                in_block(n, subject.destination)
            })
            && kind(&self.namespaces, &self.not_namespaces, |m| {
                subject.identity.is_some_and(|id| m.matches(id.namespace()))
            })
            && kind(&self.principals, &self.not_principals, |m| {
                subject.identity.is_some_and(|id| m.matches(id.principal()))
            })
            && kind(&self.service_accounts, &self.not_service_accounts, |m| {
                subject.identity.is_some_and(|id| m.matches(id))
            })
    }

    fn destination_ports_match(&self, port: u16) -> bool {
        kind(&self.destination_ports, &self.not_destination_ports, |p| {
            *p == port
        })
    }

    /// Whether no kind has values.
    fn is_empty(&self) -> bool {
        self.namespaces.is_empty()
            && self.not_namespaces.is_empty()
            && self.principals.is_empty()
            && self.not_principals.is_empty()
            && self.source_ips.is_empty()
            && self.not_source_ips.is_empty()
            && self.destination_ips.is_empty()
            && self.not_destination_ips.is_empty()
            && self.destination_ports.is_empty()
            && self.not_destination_ports.is_empty()
            && self.service_accounts.is_empty()
            && self.not_service_accounts.is_empty()
            && self.request.is_none()
            && self.token.is_none()
    }
}

impl RequestMatch {
    fn matches(&self, request: &Request<'_>) -> bool {
        kind(&self.methods, &self.not_methods, |method| {
            **method == *request.method
        }) && kind(&self.paths, &self.not_paths, |m| m.matches(request.path))
            && kind(&self.hosts, &self.not_hosts, |m| m.matches(request.host))
            && self
                .headers
                .iter()
                .all(|header| header.matches(request.headers))
    }
}

impl TokenMatch {
    fn matches(&self, token: Option<&Token<'_>>) -> bool {
        let principal = token.and_then(|token| token.principal);
        kind(&self.principals, &self.not_principals, |m| {
            principal.is_some_and(|principal| m.matches(principal))
        }) && self.claims.iter().all(|claim| claim.matches(token))
    }
}

impl ClaimMatch {
    fn matches(&self, token: Option<&Token<'_>>) -> bool {
        let claims = token.map_or(&[][..], |token| token.claims);
        kind(&self.values, &self.not_values, |m| {
            let mut found = claims.iter().filter(|claim| claim.path == self.path);
            found.any(|claim| m.matches(&claim.value))
        })
    }
}

impl HeaderMatch {
    fn matches(&self, headers: &[(&str, &str)]) -> bool {
        headers
            .iter()
            .filter(|(name, _)| *name == &*self.name)
            .any(|(_, value)| self.values.iter().any(|m| m.matches(value)))
    }
}

impl ServiceAccountMatch {
    fn matches(&self, identity: &Identity) -> bool {
        *self.namespace == *identity.namespace() && *self.name == *identity.service_account()
    }
}

impl StringMatch {
    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(value) => text == &**value,
            Self::Prefix(value) => text.starts_with(&**value),
            Self::Suffix(value) => text.ends_with(&**value),
            Self::Presence => !text.is_empty(),
        }
    }
}

/// A kind with its negation: any of `positive` (if there are), and none of `negative`.
fn kind<T>(positive: &[T], negative: &[T], mut hit: impl FnMut(&T) -> bool) -> bool {
    (positive.is_empty() || positive.iter().any(&mut hit)) && !negative.iter().any(&mut hit)
}

fn in_block(block: &IpNet, address: IpAddr) -> bool {
    block.contains(&address)
}
