//! What a CONNECT asks for: the authority and the headers of HBONE, as types.
//!
//! Everything here is pure. Bytes come from a peer that is authenticated but not trusted, so
//! parsing never panics, every field is bounded in size, and a header that can't be understood is
//! as good as absent. Only the method and the authority can make a request bad.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;

use http::header::{FORWARDED, HeaderName};
use http::{HeaderMap, HeaderValue, Method, Request, Uri};
use seine_identity::Identity;

use crate::baggage::Baggage;

/// Longest header value that is looked at, in bytes. A longer one is ignored.
pub const MAX_HEADER_VALUE: usize = 4096;

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const PROXY_KIND: HeaderName = HeaderName::from_static("x-istio-source");
const FORWARDED_NETWORK: HeaderName = HeaderName::from_static("x-forwarded-network");
const FIRST_CLIENT: HeaderName = HeaderName::from_static("x-seine-first-client");

/// Where the tunnel should end: the `:authority` of a CONNECT.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    /// A pod's or service's address with the target or service port. IPv4-mapped IPv6 addresses
    /// are turned into IPv4 ones, so that one address has one form when policy is judged.
    Address(SocketAddr),
    /// A service's name with its service port; the receiver turns it into a target port.
    Host {
        /// Lower case, without the final dot.
        host: Host,
        /// The service port.
        port: NonZeroU16,
    },
}

impl Authority {
    /// An authority of a name and a port. Fails for what isn't a DNS name, and for port 0.
    pub fn host(host: &str, port: u16) -> Result<Self, BadRequest> {
        let port = NonZeroU16::new(port).ok_or(BadRequest::Authority)?;
        Ok(Self::Host {
            host: host.parse()?,
            port,
        })
    }

    /// The port asked for; never 0 when parsed.
    pub fn port(&self) -> u16 {
        match self {
            Self::Address(address) => address.port(),
            Self::Host { port, .. } => port.get(),
        }
    }

    /// The address, if the authority is one.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Self::Address(address) => Some(*address),
            Self::Host { .. } => None,
        }
    }
}

impl From<SocketAddr> for Authority {
    fn from(address: SocketAddr) -> Self {
        Self::Address(SocketAddr::new(address.ip().to_canonical(), address.port()))
    }
}

impl FromStr for Authority {
    type Err = BadRequest;

    fn from_str(text: &str) -> Result<Self, BadRequest> {
        let (host, port) = text.rsplit_once(':').ok_or(BadRequest::Authority)?;
        // `u16::from_str` takes a leading plus sign, an authority doesn't.
        if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
            return Err(BadRequest::Authority);
        }
        let port: NonZeroU16 = port.parse().map_err(|_| BadRequest::Authority)?;
        let address = match host.strip_prefix('[') {
            Some(rest) => {
                let inner = rest.strip_suffix(']').ok_or(BadRequest::Authority)?;
                let address = inner.parse().map_err(|_| BadRequest::Authority)?;
                Some(IpAddr::V6(address))
            }
            None => host.parse().ok().map(IpAddr::V4),
        };
        match address {
            Some(address) => Ok(SocketAddr::new(address, port.get()).into()),
            None => Ok(Self::Host {
                host: host.parse()?,
                port,
            }),
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Host { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// A DNS name, lower case and without the final dot, 1 to 253 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(Box<str>);

impl Host {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Host {
    type Err = BadRequest;

    fn from_str(text: &str) -> Result<Self, BadRequest> {
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.len() > 253 {
            return Err(BadRequest::Authority);
        }
        let label_ok = |label: &str| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        // A last label of digits is a mistyped IPv4 address.
        let last = name.rsplit('.').next().unwrap_or_default();
        if !name.split('.').all(label_ok) || last.bytes().all(|b| b.is_ascii_digit()) {
            return Err(BadRequest::Authority);
        }
        Ok(Self(name.to_ascii_lowercase().into()))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The kind of proxy that says it sent the CONNECT (`x-istio-source`). Believe it only from an
/// identity known as such.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyKind {
    /// A waypoint.
    Waypoint,
    /// An ingress or network gateway.
    Gateway,
    /// A sidecar.
    Sidecar,
}

impl ProxyKind {
    fn name(self) -> &'static str {
        match self {
            Self::Waypoint => "waypoint",
            Self::Gateway => "gateway",
            Self::Sidecar => "sidecar",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Waypoint, Self::Gateway, Self::Sidecar]
            .into_iter()
            .find(|kind| kind.name() == text)
    }
}

/// The `forwarded` header: whom the CONNECT is made for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// The application's own address (`for="ip:port"`).
    pub client: Option<SocketAddr>,
    /// The service that it asked for (`host=`).
    pub host: Option<Box<str>>,
}

impl Forwarded {
    fn parse(text: &str) -> Option<Self> {
        let mut found = Self::default();
        // Only the first element counts: it names the client nearest to the application.
        let element = text.split(',').next()?;
        for pair in element.split(';') {
            let Some((name, value)) = pair.split_once('=') else {
                continue;
            };
            let Some(value) = unquoted(value.trim()) else {
                continue;
            };
            if name.trim().eq_ignore_ascii_case("for") {
                found.client = value.parse().ok();
            } else if name.trim().eq_ignore_ascii_case("host") && plain(value) {
                found.host = Some(value.into());
            }
        }
        (found != Self::default()).then_some(found)
    }
}

impl fmt::Display for Forwarded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        if let Some(client) = self.client {
            write!(f, "for=\"{client}\"")?;
            separator = ";";
        }
        if let Some(host) = &self.host {
            write!(f, "{separator}host={host}")?;
        }
        Ok(())
    }
}

/// A value without its quotes; `None` if they aren't a pair, as in a list cut within quotes.
fn unquoted(value: &str) -> Option<&str> {
    match value.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"'),
        None => Some(value),
    }
}

/// Whether a value can stand unquoted in `forwarded` and `baggage`.
fn plain(value: &str) -> bool {
    (1..=512).contains(&value.len())
        && value
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b',' | b';' | b'\\' | b'='))
}

/// A W3C trace context header of version 00, kept as text once its form was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceParent(Box<str>);

impl TraceParent {
    /// Checks the form `00-<32 hex>-<16 hex>-<2 hex>`.
    pub fn parse(text: &str) -> Option<Self> {
        let lengths = [2, 32, 16, 2];
        let mut parts = 0;
        for part in text.split('-') {
            let hex = part
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            if lengths.get(parts) != Some(&part.len()) || !hex {
                return None;
            }
            parts += 1;
        }
        (parts == 4 && text.starts_with("00-")).then(|| Self(text.into()))
    }

    /// The header's value.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A CONNECT, as far as HBONE gives it a meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectRequest {
    /// Where the tunnel should end.
    pub authority: Authority,
    /// Who the source says it is, for telemetry only: never for a decision.
    pub baggage: Option<Baggage>,
    /// The application's own address and the service that it asked for.
    pub forwarded: Option<Forwarded>,
    /// The trace that the connection belongs to.
    pub traceparent: Option<TraceParent>,
    /// What kind of proxy the sender claims to be.
    pub proxy_kind: Option<ProxyKind>,
    /// The network that the connection came from, when a network gateway passed it on.
    pub forwarded_network: Option<Box<str>>,
    /// The first client's identity, as its waypoint gives it (`x-seine-first-client`). Honour it
    /// only from the waypoint that is bound to the destination.
    pub first_client: Option<Identity>,
}

impl ConnectRequest {
    /// A request with no header.
    pub fn new(authority: impl Into<Authority>) -> Self {
        Self {
            authority: authority.into(),
            baggage: None,
            forwarded: None,
            traceparent: None,
            proxy_kind: None,
            forwarded_network: None,
            first_client: None,
        }
    }

    /// Reads a request's head. Fails only for another method than CONNECT and for an authority
    /// that is absent, has no port, port 0, user information, or neither an address nor a name.
    pub fn parse(parts: &http::request::Parts) -> Result<Self, BadRequest> {
        if parts.method != Method::CONNECT {
            return Err(BadRequest::Method);
        }
        let uri = &parts.uri;
        if uri.scheme().is_some() || !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(BadRequest::Authority);
        }
        let authority = uri
            .authority()
            .ok_or(BadRequest::Authority)?
            .as_str()
            .parse()?;
        let headers = &parts.headers;
        Ok(Self {
            authority,
            baggage: text(headers, &BAGGAGE).and_then(Baggage::parse),
            forwarded: text(headers, &FORWARDED).and_then(Forwarded::parse),
            traceparent: text(headers, &TRACEPARENT).and_then(TraceParent::parse),
            proxy_kind: text(headers, &PROXY_KIND).and_then(ProxyKind::parse),
            forwarded_network: text(headers, &FORWARDED_NETWORK)
                .filter(|value| plain(value))
                .map(Into::into),
            first_client: text(headers, &FIRST_CLIENT).and_then(|value| value.parse().ok()),
        })
    }

    /// The request's head as it goes on the wire.
    pub fn encode(&self) -> Result<Request<()>, BadRequest> {
        let uri = Uri::builder()
            .authority(self.authority.to_string())
            .build()
            .map_err(|_| BadRequest::Authority)?;
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        insert(
            headers,
            BAGGAGE,
            self.baggage.as_ref().map(ToString::to_string),
        );
        insert(
            headers,
            FORWARDED,
            self.forwarded.as_ref().map(ToString::to_string),
        );
        insert(
            headers,
            TRACEPARENT,
            self.traceparent.as_ref().map(|t| t.as_str().to_owned()),
        );
        insert(
            headers,
            PROXY_KIND,
            self.proxy_kind.map(|kind| kind.name().to_owned()),
        );
        insert(
            headers,
            FORWARDED_NETWORK,
            self.forwarded_network.as_deref().map(str::to_owned),
        );
        insert(
            headers,
            FIRST_CLIENT,
            self.first_client.as_ref().map(ToString::to_string),
        );
        Ok(request)
    }
}

/// The baggage of a response, tolerant as everywhere.
pub(crate) fn response_baggage(headers: &HeaderMap) -> Option<Baggage> {
    text(headers, &BAGGAGE).and_then(Baggage::parse)
}

pub(crate) fn insert_baggage(headers: &mut HeaderMap, baggage: Option<&Baggage>) {
    insert(headers, BAGGAGE, baggage.map(ToString::to_string));
}

/// A header that occurs once and has visible ASCII text of a bounded length. One that occurs twice
/// is ignored: two readers could disagree which of the values counts.
fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?;
    if values.next().is_some() || value.len() > MAX_HEADER_VALUE {
        return None;
    }
    value.to_str().ok()
}

/// Sets a header; a value that no header can carry is left out, as a peer would ignore it.
fn insert(headers: &mut HeaderMap, name: HeaderName, value: Option<String>) {
    let Some(value) = value.filter(|value| !value.is_empty() && value.len() <= MAX_HEADER_VALUE)
    else {
        return;
    };
    if let Ok(value) = HeaderValue::from_str(&value) {
        headers.insert(name, value);
    }
}

/// Why a request can't be served: answered with 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRequest {
    /// HBONE knows CONNECT only.
    #[error("the method is not CONNECT")]
    Method,
    /// Neither `address:port` nor `name:port`.
    #[error("the authority is not an address or a DNS name with a port other than 0")]
    Authority,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(
        method: Method,
        uri: &str,
        headers: &[(&str, &[u8])],
    ) -> Result<ConnectRequest, BadRequest> {
        let mut builder = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            builder = builder.header(*name, HeaderValue::from_bytes(value).unwrap());
        }
        ConnectRequest::parse(&builder.body(()).unwrap().into_parts().0)
    }

    #[test]
    fn authorities_are_addresses_or_names_with_a_port() {
        for (text, want) in [
            ("10.0.0.1:80", Some("10.0.0.1:80")),
            ("[fd00::1]:80", Some("[fd00::1]:80")),
            ("[::ffff:10.0.0.1]:80", Some("10.0.0.1:80")),
            (
                "Api.Shop.svc.cluster.local.:8080",
                Some("api.shop.svc.cluster.local:8080"),
            ),
            ("db-0.db:5432", Some("db-0.db:5432")),
            ("10.0.0.1", None),
            ("10.0.0.1:0", None),
            ("10.0.0.1:65536", None),
            ("10.0.0.1:+80", None),
            ("10.0.0.1:", None),
            ("10.0.0.300:80", None),
            ("fd00::1:80", None),
            ("[fd00::1%eth0]:80", None),
            ("[10.0.0.1]:80", None),
            ("[fd00::1:80", None),
            (":80", None),
            (".:80", None),
            ("a..b:80", None),
            ("-a:80", None),
            ("user@host:80", None),
            ("a b:80", None),
            ("", None),
        ] {
            let got = text.parse::<Authority>().ok().map(|a| a.to_string());
            assert_eq!(got.as_deref(), want, "{text:?}");
        }
        assert!(
            format!("{}:80", "a".repeat(64))
                .parse::<Authority>()
                .is_err()
        );
        assert!(
            format!("{}b:80", "a.".repeat(130))
                .parse::<Authority>()
                .is_err()
        );
    }

    #[test]
    fn only_connect_with_a_bare_authority_is_accepted() {
        assert_eq!(
            parse(Method::GET, "10.0.0.1:80", &[]),
            Err(BadRequest::Method)
        );
        assert_eq!(
            parse(Method::CONNECT, "/x", &[]),
            Err(BadRequest::Authority)
        );
        assert_eq!(
            parse(Method::CONNECT, "http://10.0.0.1:80/x", &[]),
            Err(BadRequest::Authority)
        );
        assert!(parse(Method::CONNECT, "10.0.0.1:80", &[]).is_ok());
    }

    #[test]
    fn what_is_encoded_is_parsed_back() {
        let request = ConnectRequest {
            baggage: Baggage::parse("k8s.namespace.name=shop,k8s.deployment.name=web"),
            forwarded: Some(Forwarded {
                client: Some("[fd00::7]:4711".parse().unwrap()),
                host: Some("api.shop.svc".into()),
            }),
            traceparent: TraceParent::parse(
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            ),
            proxy_kind: Some(ProxyKind::Waypoint),
            forwarded_network: Some("net-1".into()),
            first_client: Some("spiffe://cluster.local/ns/shop/sa/web".parse().unwrap()),
            ..ConnectRequest::new("api.shop.svc:80".parse::<Authority>().unwrap())
        };
        assert!(request.baggage.is_some() && request.traceparent.is_some());
        let parts = request.encode().unwrap().into_parts().0;
        assert_eq!(ConnectRequest::parse(&parts).unwrap(), request);
    }

    #[test]
    fn junk_in_headers_is_ignored() {
        let long = vec![b'a'; MAX_HEADER_VALUE + 1];
        let bad = parse(
            Method::CONNECT,
            "10.0.0.1:80",
            &[
                ("baggage", &long),
                ("forwarded", b"for=junk;host=\"a,b\";;;=;for"),
                ("traceparent", b"00-\xff"),
                ("x-istio-source", b"emperor"),
                ("x-forwarded-network", b"a b"),
                ("x-seine-first-client", b"https://evil"),
            ],
        );
        assert_eq!(
            bad,
            Ok(ConnectRequest::new(
                "10.0.0.1:80".parse::<Authority>().unwrap()
            ))
        );
    }

    #[test]
    fn a_header_given_twice_is_ignored() {
        let twice: &[(&str, &[u8])] = &[
            ("x-istio-source", b"waypoint"),
            ("x-istio-source", b"gateway"),
        ];
        assert_eq!(
            parse(Method::CONNECT, "10.0.0.1:80", twice)
                .unwrap()
                .proxy_kind,
            None
        );
    }

    #[test]
    fn trace_parents_of_another_form_are_refused() {
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(TraceParent::parse(good).unwrap().as_str(), good);
        for bad in [
            "",
            "00",
            &good.to_uppercase(),
            &good[1..],
            &format!("{good}-00"),
            "ff-a-b-c",
        ] {
            assert_eq!(TraceParent::parse(bad), None, "{bad}");
        }
    }
}
