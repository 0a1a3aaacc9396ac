//! Sessions: that the requests of one are answered by one endpoint (GEP-1619).
//!
//! What a client shows is a hash of the name of the endpoint that answered first. It counts only where one of the rule's backends
//! has such an endpoint now; else it is as if there were none. So it leads nowhere but where a request without it might
//! have gone, and tells nobody an address. All pods of a waypoint read it alike, and remember nothing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::SET_COOKIE;
use http::{HeaderMap, HeaderName, HeaderValue};
use seine_proto::waypoint as wire;
use seine_workload::ServiceKey;

use crate::cookie::cookie;
use crate::endpoint::Endpoint;
use crate::rule::PathMatch;

/// How a client shows which session a request is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    carrier: Carrier,
    /// How long it lasts.
    absolute: Option<Duration>,
    /// The client forgets it by itself when that time is over.
    permanent: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Carrier {
    Cookie(String),
    Header(HeaderName),
}

/// A session that a request is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Token {
    /// Of the endpoint: see [`id`].
    pub(crate) endpoint: u64,
    /// In seconds since 1970, where that matters.
    began: Option<u64>,
}

impl Session {
    /// Reads what a rule says.
    pub(crate) fn parse(message: &wire::SessionPersistence) -> Result<Self, String> {
        let name = &message.name;
        let bad = || format!("session: {name:?} can't be the name of a cookie or header");
        // A cookie's name is a token, as a header's.
        let header: HeaderName = name.parse().map_err(|_| bad())?;
        Ok(Self {
            carrier: match message.header {
                true => Carrier::Header(header),
                false => Carrier::Cookie(name.clone()),
            },
            absolute: (message.absolute_s > 0).then(|| Duration::from_secs(message.absolute_s)),
            permanent: message.permanent,
        })
    }

    /// The session that a request shows, if it isn't over.
    pub(crate) fn of(&self, headers: &HeaderMap) -> Option<Token> {
        self.of_at(headers, now())
    }

    fn of_at(&self, headers: &HeaderMap, now: u64) -> Option<Token> {
        let text = match &self.carrier {
            Carrier::Cookie(name) => cookie(headers, name)?,
            Carrier::Header(name) => headers.get(name)?.to_str().ok()?,
        };
        let token = Token::parse(text)?;
        match self.absolute.filter(|_| !self.permanent) {
            None => Some(token),
            Some(limit) => {
                let age = now.checked_sub(token.began?)?;
                (age < limit.as_secs()).then_some(token)
            }
        }
    }

    /// Tells the client of its session with the endpoint that has answered. Over TLS a cookie is for TLS alone.
    pub(crate) fn tell(
        &self,
        shown: Option<Token>,
        endpoint: &Endpoint,
        (matched, secure): (&PathMatch, bool),
        headers: &mut HeaderMap,
    ) {
        let id = id(&endpoint.service.key, &endpoint.uid);
        let goes_on = shown.filter(|token| token.endpoint == id);
        let timed = self.absolute.is_some() && !self.permanent;
        let token = goes_on.unwrap_or_else(|| Token {
            endpoint: id,
            began: timed.then(now),
        });
        let (name, text) = match &self.carrier {
            Carrier::Header(name) => (name.clone(), token.to_string()),
            // The client has it already.
            Carrier::Cookie(_) if goes_on.is_some() => return,
            Carrier::Cookie(name) => (SET_COOKIE, self.cookie(name, token, matched, secure)),
        };
        let Ok(value) = HeaderValue::try_from(text) else {
            return;
        };
        match name == SET_COOKIE {
            true => drop(headers.append(name, value)),
            false => drop(headers.insert(name, value)),
        }
    }

    fn cookie(&self, name: &str, token: Token, matched: &PathMatch, secure: bool) -> String {
        let path = cookie_path(matched);
        let secure = match secure {
            true => "; Secure",
            false => "",
        };
        let text = format!("{name}={token}; Path={path}; HttpOnly; SameSite=Strict{secure}");
        match self.absolute.filter(|_| self.permanent) {
            Some(lifetime) => format!("{text}; Max-Age={}", lifetime.as_secs()),
            None => text,
        }
    }
}

impl Token {
    fn parse(text: &str) -> Option<Self> {
        let (endpoint, began) = match text.split_once('.') {
            Some((endpoint, began)) => (endpoint, Some(began)),
            None => (text, None),
        };
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        Some(Self {
            endpoint: number(endpoint).filter(|_| endpoint.len() == 16)?,
            began: began
                .map(|began| number(began).ok_or(()))
                .transpose()
                .ok()?,
        })
    }
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.endpoint)?;
        match self.began {
            Some(began) => write!(f, ".{began:x}"),
            None => Ok(()),
        }
    }
}

/// Names an endpoint of a service: FNV-1a, for what must be the same in every build, as clients keep it.
pub(crate) fn id(service: &ServiceKey, uid: &str) -> u64 {
    let names = [&*service.namespace, &*service.hostname, uid];
    let bytes = names
        .iter()
        .flat_map(|name| name.bytes().chain(std::iter::once(0)));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// The paths of the match are those of the cookie; of a regular expression what stands before it.
fn cookie_path(matched: &PathMatch) -> &str {
    let path = match matched {
        PathMatch::Exact(path) | PathMatch::Prefix(path) => path.as_str(),
        PathMatch::Pattern(pattern) => {
            let text = pattern.as_str();
            let special = |c: char| !(c.is_ascii_alphanumeric() || matches!(c, '/' | '-' | '_'));
            let literal = &text[..text.find(special).unwrap_or(text.len())];
            &literal[..literal.rfind('/').unwrap_or(0)]
        }
        PathMatch::Grpc(..) => "",
    };
    let sayable = path
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b';' && byte != b',');
    match path.is_empty() || !sayable {
        true => "/",
        false => path,
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::COOKIE;
    use seine_policy::Pattern;

    fn session(header: bool, absolute_s: u64, permanent: bool) -> Session {
        let name = "sid".into();
        let message = wire::SessionPersistence {
            name,
            header,
            absolute_s,
            permanent,
        };
        Session::parse(&message).unwrap()
    }

    #[test]
    fn a_session_is_read_from_its_carrier_until_its_time_is_over_and_junk_is_none() {
        let read = |session: &Session, value: &str, now: u64| {
            let mut headers = HeaderMap::new();
            let line = match session.carrier {
                Carrier::Cookie(_) => (COOKIE, format!("other=1; sid={value}")),
                Carrier::Header(_) => ("sid".parse().unwrap(), value.to_owned()),
            };
            headers.insert(line.0, line.1.parse().unwrap());
            let token = session.of_at(&headers, now);
            token.map(|token| token.endpoint)
        };
        for header in [false, true] {
            let plain = session(header, 0, false);
            assert_eq!(read(&plain, "00000000000000ff", 0), Some(255));
            assert_eq!(read(&plain, "00000000000000ff.a", 0), Some(255));
            for junk in [
                "",
                "ff",
                "10.0.0.1:80",
                "00000000000000fg",
                "00000000000000ff.x",
            ] {
                assert_eq!(read(&plain, junk, 0), None, "{junk}");
            }
            let timed = session(header, 60, false);
            assert_eq!(read(&timed, "00000000000000ff.a", 69), Some(255));
            assert_eq!(read(&timed, "00000000000000ff.a", 70), None);
            assert_eq!(read(&timed, "00000000000000ff.a", 9), None);
            assert_eq!(read(&timed, "00000000000000ff", 10), None);
        }
        // The client keeps its time.
        let permanent = session(false, 60, true);
        assert_eq!(read(&permanent, "00000000000000ff", 1000), Some(255));
    }

    #[test]
    fn a_cookie_says_where_and_how_long_it_holds() {
        let token = Token {
            endpoint: 255,
            began: None,
        };
        let path = |matched| session(false, 0, false).cookie("sid", token, &matched, false);
        let pattern = |text| PathMatch::Pattern(Pattern::parse(text).unwrap());
        for (matched, path_said) in [
            (PathMatch::Prefix(String::new()), "/"),
            (PathMatch::Prefix("/a".into()), "/a"),
            (PathMatch::Exact("/a/b".into()), "/a/b"),
            (PathMatch::Exact("/a;b".into()), "/"),
            (pattern("/p1/p2/.*/p3"), "/p1/p2"),
            (pattern("/p[0-9]"), "/"),
            (PathMatch::Grpc(None, None), "/"),
        ] {
            let expected =
                format!("sid=00000000000000ff; Path={path_said}; HttpOnly; SameSite=Strict");
            assert_eq!(path(matched), expected);
        }
        let permanent = session(false, 60, true);
        let said = permanent.cookie("sid", token, &PathMatch::Prefix(String::new()), true);
        assert!(said.ends_with("; Secure; Max-Age=60"), "{said}");
    }
}
