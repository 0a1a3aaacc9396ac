//! Who asks, by the token of a request: where it is found, whose it may be, and what of it the backend is told.
//!
//! [`Authentications`] holds what the control plane sent, with one writer, the configuration's task. A service lists the
//! names of those that are about it; one that is known by name alone is waited for, and then the answer is no.

use std::collections::HashMap;
use std::sync::Arc;

use http::header::{AUTHORIZATION, HeaderMap, HeaderName};
use http::{HeaderValue, request};
use parking_lot::RwLock;
use prost::Message;
use seine_policy::{Claim, Decision};
use seine_proto::discovery::Resource;
use seine_proto::waypoint::{self as wire, RequestAuthentication};
use seine_xds::Refused;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use crate::bind::Bound;
use crate::failure::Failure;
use crate::head::Head;
use crate::key_set::{KeySet, KeySets};
use crate::path;
use crate::shared::Shared;
use crate::token::{self, Issuer, Keys, TokenError, Verified};

const BEARER: &str = "bearer ";

/// What the control plane has sent.
#[derive(Debug)]
pub struct Authentications {
    /// Version and content by name.
    held: RwLock<HashMap<String, (String, Arc<Authentication>)>>,
    changes: watch::Sender<()>,
    key_sets: KeySets,
}

impl Default for Authentications {
    fn default() -> Self {
        Self {
            held: RwLock::default(),
            changes: watch::Sender::new(()),
            key_sets: KeySets::default(),
        }
    }
}

/// One `RequestAuthentication`.
#[derive(Debug)]
pub struct Authentication {
    rules: Vec<Rule>,
    /// Why it can't be obeyed.
    refused: Option<String>,
}

#[derive(Debug)]
struct Rule {
    issuer: Issuer,
    keys: KeySource,
    places: Vec<Place>,
    /// The token stays in the request.
    forward: bool,
    claim_headers: Vec<(HeaderName, Box<[Box<str>]>)>,
}

/// Where an issuer's keys are.
#[derive(Clone, Debug)]
enum KeySource {
    Here(Arc<Keys>),
    Published(Arc<KeySet>),
}

/// Where a token is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// A header, and what stands before the token, in lower case.
    Header(HeaderName, String),
    /// A query parameter.
    Parameter(String),
}

impl Authentications {
    /// Names and versions.
    pub fn versions(&self) -> HashMap<String, String> {
        let held = self.held.read();
        let held = held.iter();
        held.map(|(name, (version, _))| (name.clone(), version.clone()))
            .collect()
    }

    /// Applies what the control plane sent. Of one that can't be read the earlier version stays in force.
    pub fn apply(&self, resources: &[Resource], removed: &[String]) -> Vec<Refused> {
        let mut refused = Vec::new();
        let mut held = self.held.write();
        for name in removed {
            held.remove(name);
        }
        for resource in resources {
            match parse(resource, &self.key_sets) {
                Ok(found) => {
                    let found = (resource.version.clone(), Arc::new(found));
                    held.insert(resource.name.clone(), found);
                }
                Err(problem) => refused.push(Refused {
                    name: resource.name.clone(),
                    problem,
                }),
            }
        }
        drop(held);
        self.changes.send_replace(());
        refused
    }

    /// Those of these names, or the names of those that aren't there.
    fn all<'a>(
        &self,
        names: impl Iterator<Item = &'a Arc<str>>,
    ) -> Result<Vec<Arc<Authentication>>, Arc<[Arc<str>]>> {
        let held = self.held.read();
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for name in names {
            match held.get(&**name) {
                Some((_, one)) => found.push(one.clone()),
                None => missing.push(name.clone()),
            }
        }
        match missing.is_empty() {
            true => Ok(found),
            false => Err(missing.into()),
        }
    }
}

fn parse(resource: &Resource, key_sets: &KeySets) -> Result<Authentication, String> {
    let body = resource.resource.as_ref().ok_or("it has no content")?;
    let message = RequestAuthentication::decode(&*body.value).map_err(|error| error.to_string())?;
    let rules = message.rules.iter().enumerate().map(|(index, rule)| {
        Rule::parse(rule, key_sets).map_err(|problem| format!("rules[{index}]: {problem}"))
    });
    Ok(Authentication {
        rules: rules.collect::<Result<_, _>>()?,
        refused: Some(message.refused).filter(|why| !why.is_empty()),
    })
}

impl Rule {
    fn parse(message: &wire::JwtRule, key_sets: &KeySets) -> Result<Self, String> {
        let header = |text: &str| {
            let name = text.parse::<HeaderName>();
            name.map_err(|_| format!("{text:?} is no header's name"))
        };
        let mut places = Vec::new();
        for found in &message.from_headers {
            places.push(Place::Header(
                header(&found.name)?,
                found.prefix.to_ascii_lowercase(),
            ));
        }
        let parameters = message.from_params.iter().cloned();
        places.extend(parameters.map(Place::Parameter));
        if places.is_empty() {
            places.push(Place::Header(AUTHORIZATION, BEARER.into()));
        }
        let claim_headers = message.claim_headers.iter().map(|found| {
            let path = found.path.iter().map(|name| name.as_str().into());
            Ok((header(&found.header)?, path.collect()))
        });
        if message.issuer.is_empty() {
            return Err("issuer is missing".into());
        }
        Ok(Self {
            issuer: Issuer {
                name: message.issuer.clone(),
                audiences: message.audiences.clone(),
            },
            keys: match message.jwks_uri.as_str() {
                "" => {
                    let keys = Keys::parse(message.jwks.as_bytes());
                    KeySource::Here(Arc::new(keys.map_err(|why| format!("jwks: {why}"))?))
                }
                uri => KeySource::Published(key_sets.at(uri)?),
            },
            places,
            forward: message.forward,
            claim_headers: claim_headers.collect::<Result<_, String>>()?,
        })
    }
}

/// Verifies the request's token, if it has one, and takes from the request what is not for its backend.
pub(crate) async fn authenticate(
    shared: &Arc<Shared>,
    bound: &Bound,
    head: &mut Head,
    parts: &mut request::Parts,
) -> Result<Option<Verified>, Failure> {
    let found = about(shared, bound).await?;
    if found.is_empty() {
        return Ok(None);
    }
    for one in &found {
        if let Some(why) = &one.refused {
            let names: [Arc<str>; 1] = [why.as_str().into()];
            return Err(Failure::Denied(Decision::missing(names.into()).because));
        }
    }
    let rules: Vec<&Rule> = found.iter().flat_map(|one| &one.rules).collect();
    let presented = presented(&rules, head, &parts.headers)?;
    strip_claims(&rules, &mut parts.headers);
    let Some((place, token)) = presented else {
        return Ok(None);
    };
    let claimed = token::unverified(&token)?;
    let mut with_keys = Vec::new();
    for rule in candidates(&rules, &place, &claimed) {
        let keys = match &rule.keys {
            KeySource::Here(keys) => keys.clone(),
            KeySource::Published(set) => {
                let keys = set.keys(shared, claimed.key_id.as_deref()).await;
                keys.ok_or_else(|| Failure::Keys(rule.issuer.name.clone()))?
            }
        };
        with_keys.push((rule, keys));
    }
    let (rule, verified) = verify(&rules, &with_keys, &token)?;
    accept(rule, &verified, &place, &token, head, &mut parts.headers);
    Ok(Some(verified))
}

/// What is about the service that was asked, and about all that lead to a pod which was. Waits for what is known by name
/// alone, for at most the configured time.
async fn about(shared: &Shared, bound: &Bound) -> Result<Vec<Arc<Authentication>>, Failure> {
    let mut services = shared.store.changed();
    let mut changes = shared.authentications.changes.subscribe();
    let deadline = Instant::now() + shared.config.policy_wait;
    loop {
        services.mark_unchanged();
        changes.mark_unchanged();
        let also = bound.pod.iter().flat_map(|pod| pod.also.iter());
        let asked = also.map(|(service, _)| service).chain([&bound.service]);
        let current: Vec<_> = asked
            .map(|service| {
                shared
                    .store
                    .service(&service.key)
                    .unwrap_or(service.clone())
            })
            .collect();
        let names = current.iter().flat_map(|service| &*service.authentications);
        let missing = match shared.authentications.all(names) {
            Ok(found) => return Ok(found),
            Err(missing) => missing,
        };
        let changed = async {
            tokio::select! {
                _ = services.changed() => {}
                _ = changes.changed() => {}
            }
        };
        if timeout_at(deadline, changed).await.is_err() {
            return Err(Failure::Denied(Decision::missing(missing).because));
        }
    }
}

/// The one token of a request, at any of the places where the rules look for one.
fn presented(
    rules: &[&Rule],
    head: &Head,
    headers: &HeaderMap,
) -> Result<Option<(Place, String)>, TokenError> {
    let mut places: Vec<&Place> = Vec::new();
    for place in rules.iter().flat_map(|rule| &rule.places) {
        if !places.contains(&place) {
            places.push(place);
        }
    }
    let mut found: Option<(Place, String)> = None;
    for place in places {
        for token in tokens_at(place, head, headers)? {
            if found.replace((place.clone(), token)).is_some() {
                // RFC 6750, section 2. Another reader could take the other one.
                return Err(TokenError::Several);
            }
        }
    }
    Ok(found)
}

fn tokens_at(place: &Place, head: &Head, headers: &HeaderMap) -> Result<Vec<String>, TokenError> {
    let utf8 = |bytes: &[u8]| {
        let text = std::str::from_utf8(bytes).map_err(|_| TokenError::Malformed)?;
        Ok(text.trim().to_owned())
    };
    match place {
        Place::Header(name, prefix) => {
            let values = headers.get_all(name).iter();
            let tokens = values.filter_map(|value| after(prefix, value.as_bytes()));
            tokens.map(utf8).collect()
        }
        Place::Parameter(name) => {
            let pairs = head.query.as_deref().unwrap_or_default().split('&');
            let tokens = pairs.filter(|pair| is_parameter(pair, name));
            let values = tokens.map(|pair| pair.split_once('=').map_or("", |(_, value)| value));
            values.map(|value| utf8(&path::decode(value))).collect()
        }
    }
}

/// What follows a prefix in whatever case; the prefix alone, without the blank at its end, is an empty token.
fn after<'a>(prefix: &str, value: &'a [u8]) -> Option<&'a [u8]> {
    let (prefix, value) = (prefix.as_bytes(), value.trim_ascii());
    if value.eq_ignore_ascii_case(prefix.trim_ascii_end()) && !prefix.is_empty() {
        return Some(b"");
    }
    let (start, rest) = value.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

fn is_parameter(pair: &str, name: &str) -> bool {
    let found = pair.split_once('=').map_or(pair, |(found, _)| found);
    path::decode(found) == name.as_bytes()
}

/// The rules of the issuer that the token claims to be of, which look for one where it was found.
fn candidates<'a>(rules: &[&'a Rule], place: &Place, claimed: &token::Unverified) -> Vec<&'a Rule> {
    let of_issuer = rules
        .iter()
        .filter(|rule| rule.places.contains(place) && rule.issuer.name == claimed.issuer);
    of_issuer.copied().collect()
}

/// By the first candidate that accepts the token.
fn verify<'a>(
    rules: &[&'a Rule],
    candidates: &[(&'a Rule, Arc<Keys>)],
    text: &str,
) -> Result<(&'a Rule, Verified), TokenError> {
    let mut last = TokenError::Issuer;
    for (rule, keys) in candidates {
        match token::verify(text, &rule.issuer, keys) {
            Ok(verified) if is_of_another(rules, rule, &verified) => {
                return Err(TokenError::Subject);
            }
            Ok(verified) => return Ok((rule, verified)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// What becomes of a request with a valid token.
fn accept(
    rule: &Rule,
    verified: &Verified,
    place: &Place,
    token: &str,
    head: &mut Head,
    headers: &mut HeaderMap,
) {
    if !rule.forward {
        take(place, token, head, headers);
    }
    tell(rule, &verified.claims, headers);
}

/// `https://a` may say of a subject `b/c` what `https://a/b` says of `c`: by the principal nobody could tell them apart.
fn is_of_another(rules: &[&Rule], own: &Rule, verified: &Verified) -> bool {
    let principal = verified.principal.as_deref().unwrap_or_default();
    rules.iter().any(|rule| {
        let rest = principal.strip_prefix(&*rule.issuer.name);
        let longer = rule.issuer.name.len() > own.issuer.name.len();
        longer && rest.is_some_and(|rest| rest.starts_with('/'))
    })
}

/// Takes the token from the request.
fn take(place: &Place, token: &str, head: &mut Head, headers: &mut HeaderMap) {
    match place {
        Place::Header(name, prefix) => {
            let is_token = |value: &HeaderValue| {
                let found = after(prefix, value.as_bytes());
                found.is_some_and(|found| found.trim_ascii() == token.as_bytes())
            };
            let values = headers.get_all(name).iter();
            let others: Vec<_> = values.filter(|value| !is_token(value)).cloned().collect();
            headers.remove(name);
            for other in others {
                headers.append(name, other);
            }
        }
        Place::Parameter(name) => {
            let query = head.query.take().unwrap_or_default();
            let others: Vec<&str> = query
                .split('&')
                .filter(|pair| !is_parameter(pair, name))
                .collect();
            head.query = Some(others.join("&")).filter(|query| !query.is_empty());
        }
    }
}

/// What the rules tell of claims nobody else may: also not in a writing that some servers take for the same.
fn strip_claims(rules: &[&Rule], headers: &mut HeaderMap) {
    let plain = |name: &HeaderName| name.as_str().replace('_', "-");
    let told: Vec<String> = rules
        .iter()
        .flat_map(|rule| rule.claim_headers.iter().map(|(name, _)| plain(name)))
        .collect();
    let stripped: Vec<HeaderName> = headers
        .keys()
        .filter(|name| told.contains(&plain(name)))
        .cloned()
        .collect();
    for name in stripped {
        headers.remove(name);
    }
}

fn tell(rule: &Rule, claims: &[Claim], headers: &mut HeaderMap) {
    for (name, path) in &rule.claim_headers {
        for claim in claims.iter().filter(|claim| claim.path == *path) {
            // What can't be in a header is not told.
            if let Ok(value) = HeaderValue::from_str(&claim.value) {
                headers.append(name, value);
            }
        }
    }
}

#[cfg(test)]
#[path = "authentication_tests.rs"]
mod tests;
