//! The heads of requests and answers: what is refused, what goes no further, what is changed on the way.

use http::header::{
    CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderValue, Method, Uri, Version, request};

use crate::path::{self, BadPath};
use crate::rule::{HeaderChange, PathMatch, Redirect, Rewrite};

/// What a proxy of ours alone may say: taken from every caller.
const OWN_PREFIX: &str = "x-seine-";
/// Who the client is by its certificate; only a Gateway says it.
pub(crate) const CLIENT_CERTIFICATE: HeaderName =
    HeaderName::from_static("x-forwarded-client-cert");
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// Why a request is answered with 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHead {
    /// The path.
    #[error("{0}")]
    Path(#[from] BadPath),
    /// None, several, or not one and the same.
    #[error("the request names no host, or several")]
    Host,
    /// Two ways to find the end of the body.
    #[error(
        "the request has both Content-Length and Transfer-Encoding, or a coding that is not chunked"
    )]
    Length,
    /// A tunnel, within this one.
    #[error("CONNECT is not for a waypoint")]
    Connect,
}

/// What of a request's head decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The host as it was given, with the port if there was one.
    pub authority: Authority,
    /// In lower case, without a port and a dot at its end.
    pub host: String,
    /// Normalised.
    pub path: String,
    /// What follows `?`.
    pub query: Option<String>,
}

impl Head {
    /// Reads a request's head.
    pub fn read(parts: &request::Parts) -> Result<Self, BadHead> {
        if parts.method == Method::CONNECT {
            return Err(BadHead::Connect);
        }
        let codings = &mut parts.headers.get_all(TRANSFER_ENCODING).iter();
        if let Some(coding) = codings.next() {
            let chunked = coding.as_bytes().eq_ignore_ascii_case(b"chunked");
            let one = codings.next().is_none() && chunked;
            if !one || parts.headers.contains_key(CONTENT_LENGTH) {
                return Err(BadHead::Length);
            }
        }
        let authority = authority(parts)?;
        let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
        Ok(Self {
            host,
            path: path::normalise(parts.uri.path())?,
            query: parts.uri.query().map(str::to_owned),
            authority,
        })
    }
}

/// The host of the request line or pseudo-header and that of the Host header: at least one, and not two that differ.
fn authority(parts: &request::Parts) -> Result<Authority, BadHead> {
    let mut headers = parts.headers.get_all(HOST).iter();
    let header = headers.next();
    if headers.next().is_some() {
        return Err(BadHead::Host);
    }
    let header = header.map(|value| Authority::try_from(value.as_bytes()));
    let header = header.transpose().map_err(|_| BadHead::Host)?;
    let found = match (parts.uri.authority(), header) {
        (Some(line), Some(header)) if *line != header => return Err(BadHead::Host),
        (Some(line), _) => line.clone(),
        (None, Some(header)) => header,
        (None, None) => return Err(BadHead::Host),
    };
    // User information in it is for nobody to see, and some take it for the host.
    let named = !found.host().trim_end_matches('.').is_empty();
    match found.as_str().contains('@') || !named {
        true => Err(BadHead::Host),
        false => Ok(found),
    }
}

/// Takes away what is between two neighbours only (RFC 9110, section 7.6.1).
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    // The one thing that an HTTP/2 request may say in it, and gRPC does.
    let trailers = headers
        .get(TE)
        .is_some_and(|te| te.as_bytes() == b"trailers");
    for name in [
        CONNECTION,
        KEEP_ALIVE,
        PROXY_CONNECTION,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
    ] {
        headers.remove(name);
    }
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Takes away what only a proxy of ours may say.
pub fn strip_own(headers: &mut HeaderMap) {
    headers.remove(CLIENT_CERTIFICATE);
    let own = headers.keys().filter(|name| is_own(name));
    let own: Vec<HeaderName> = own.cloned().collect();
    for name in own {
        headers.remove(name);
    }
}

/// Whether only a proxy of ours may say it.
pub(crate) fn is_own(name: &HeaderName) -> bool {
    *name == CLIENT_CERTIFICATE || name.as_str().starts_with(OWN_PREFIX)
}

impl HeaderChange {
    /// Changes headers: set, then add, then remove.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

impl Rewrite {
    /// Changes host and path.
    pub fn apply(&self, head: &mut Head, matched: &PathMatch) {
        if let Some(change) = &self.path {
            head.path = change.apply(&head.path, matched);
        }
        if let Some(Ok(authority)) = self.hostname.as_deref().map(str::parse) {
            head.authority = authority;
        }
    }
}

impl Redirect {
    /// Where the client is to go; `asked` is the scheme and the port that it asked.
    pub fn location(&self, head: &Head, matched: &PathMatch, asked: (&str, u16)) -> String {
        let (scheme, listener) = asked;
        let scheme = self.scheme.as_deref().unwrap_or(scheme);
        let host = self.hostname.as_deref().unwrap_or(head.authority.host());
        let port = match (self.port, &self.scheme) {
            (Some(port), _) => Some(port),
            // The scheme's own.
            (None, Some(_)) => None,
            (None, None) => Some(listener),
        };
        let well_known = matches!((scheme, port), ("http", Some(80)) | ("https", Some(443)));
        let port = port.filter(|_| !well_known);
        let path = match &self.path {
            Some(change) => change.apply(&head.path, matched),
            None => head.path.clone(),
        };
        let port = port.map(|port| format!(":{port}")).unwrap_or_default();
        let query = head.query.as_ref().map(|query| format!("?{query}"));
        format!("{scheme}://{host}{port}{path}{}", query.unwrap_or_default())
    }
}

/// Writes a head for the backend; `None`: what it was rewritten to can't be in a request.
pub fn write(parts: &mut request::Parts, head: &Head, version: Version) -> Option<()> {
    let text = match &head.query {
        Some(query) => format!("{}?{query}", head.path),
        None => head.path.clone(),
    };
    let path: PathAndQuery = text.parse().ok()?;
    let mut uri = Uri::builder().path_and_query(path);
    parts.headers.remove(HOST);
    if version == Version::HTTP_2 {
        uri = uri.scheme("http").authority(head.authority.clone());
    } else {
        let host = HeaderValue::from_str(head.authority.as_str()).ok()?;
        parts.headers.insert(HOST, host);
    }
    parts.uri = uri.build().ok()?;
    parts.version = version;
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::PathChange;
    use http::{Request, StatusCode};

    fn parts(uri: &str, headers: &[(&str, &str)]) -> request::Parts {
        let mut builder = Request::builder().uri(uri);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    #[test]
    fn a_request_has_one_host_one_length_and_a_good_path() {
        let read = |uri, headers: &[(&str, &str)]| Head::read(&parts(uri, headers));
        let good = read("/%61?b", &[("host", "Web.Shop.:80")]).unwrap();
        assert_eq!((good.host.as_str(), good.path.as_str()), ("web.shop", "/a"));
        assert_eq!(
            (good.authority.as_str(), good.query.as_deref()),
            ("Web.Shop.:80", Some("b"))
        );
        assert!(read("http://web/a", &[]).is_ok());
        assert!(read("http://web/a", &[("host", "web")]).is_ok());
        for (uri, headers) in [
            ("/a", &[][..]),
            ("/a", &[("host", "a"), ("host", "a")]),
            ("/a", &[("host", "u@a")]),
            ("/a", &[("host", "")]),
            ("/a", &[("host", ".")]),
            ("http://./a", &[]),
            ("http://a/a", &[("host", "b")]),
        ] {
            assert_eq!(read(uri, headers), Err(BadHead::Host), "{uri} {headers:?}");
        }
        for headers in [
            &[
                ("host", "a"),
                ("transfer-encoding", "chunked"),
                ("content-length", "1"),
            ][..],
            &[("host", "a"), ("transfer-encoding", "gzip, chunked")],
            &[
                ("host", "a"),
                ("transfer-encoding", "chunked"),
                ("transfer-encoding", "chunked"),
            ],
        ] {
            assert_eq!(read("/a", headers), Err(BadHead::Length), "{headers:?}");
        }
        assert!(read("/a", &[("host", "a"), ("transfer-encoding", "chunked")]).is_ok());
        assert!(matches!(
            read("/a%2f", &[("host", "a")]),
            Err(BadHead::Path(_))
        ));
    }

    #[test]
    fn what_is_for_the_neighbour_or_ours_to_say_goes_no_further() {
        let mut headers = parts(
            "/",
            &[
                ("connection", "close, X-Secret"),
                ("x-secret", "1"),
                ("te", "trailers"),
                ("upgrade", "h2c"),
                ("keep-alive", "1"),
                ("transfer-encoding", "chunked"),
                ("x-forwarded-client-cert", "spoofed"),
                ("x-seine-first-client", "spoofed"),
                ("x-own", "stays"),
            ],
        )
        .headers;
        strip_hop_by_hop(&mut headers);
        strip_own(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["te", "x-own"]);
    }

    #[test]
    fn a_redirect_keeps_what_it_does_not_change() {
        let head = Head::read(&parts("/a/b?q=1", &[("host", "web.shop:8080")])).unwrap();
        let location = |redirect: Redirect| {
            redirect.location(&head, &PathMatch::Prefix("/a".into()), ("http", 8080))
        };
        let plain = || Redirect {
            scheme: None,
            hostname: None,
            path: None,
            port: None,
            status: StatusCode::FOUND,
        };
        for (redirect, found) in [
            (plain(), "http://web.shop:8080/a/b?q=1"),
            (
                Redirect {
                    scheme: Some("https".into()),
                    ..plain()
                },
                "https://web.shop/a/b?q=1",
            ),
            (
                Redirect {
                    hostname: Some("x".into()),
                    port: Some(80),
                    ..plain()
                },
                "http://x/a/b?q=1",
            ),
            (
                Redirect {
                    path: Some(PathChange::Prefix("/c".into())),
                    port: Some(443),
                    scheme: Some("https".into()),
                    ..plain()
                },
                "https://web.shop/c/b?q=1",
            ),
        ] {
            assert_eq!(location(redirect), found);
        }
    }

    #[test]
    fn a_head_is_written_for_either_version() {
        let mut head = Head::read(&parts("/a?q", &[("host", "web.shop:80")])).unwrap();
        let rewrite = Rewrite {
            hostname: Some("other".into()),
            path: Some(PathChange::Full("/new".into())),
        };
        rewrite.apply(&mut head, &PathMatch::Prefix(String::new()));
        let mut one = parts("/a?q", &[("host", "web.shop:80")]);
        let mut two = one.clone();
        write(&mut one, &head, Version::HTTP_11).unwrap();
        assert_eq!(
            (one.uri.to_string(), &one.headers[HOST]),
            ("/new?q".into(), &HeaderValue::from_static("other"))
        );
        write(&mut two, &head, Version::HTTP_2).unwrap();
        assert_eq!(two.uri.to_string(), "http://other/new?q");
        assert!(!two.headers.contains_key(HOST));
    }
}
