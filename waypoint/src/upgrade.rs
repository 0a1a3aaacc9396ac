//! Upgrades of HTTP/1.1 to another protocol, such as WebSocket: when both sides agree, bytes pass both ways.

use std::sync::Arc;

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version, request};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tracing::debug;

use crate::balance::InFlight;
use crate::failure::Failure;
use crate::shared::Shared;

/// The protocol that a client wants to speak instead, and its end of the connection when it does. Never another HTTP:
/// its requests would pass unseen by policy and routes.
pub(crate) fn wanted(parts: &mut request::Parts) -> Option<(HeaderValue, OnUpgrade)> {
    let upgrade = parts.extensions.remove::<OnUpgrade>();
    let protocol = protocol(parts.version, &parts.headers)?;
    Some((protocol, upgrade?))
}

fn protocol(version: Version, headers: &HeaderMap) -> Option<HeaderValue> {
    if version != Version::HTTP_11 {
        return None;
    }
    let connection = headers.get_all(CONNECTION).iter();
    let asked = connection
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|token| token.trim().eq_ignore_ascii_case("upgrade"));
    let mut protocols = headers.get_all(UPGRADE).iter();
    let protocol = protocols.next().filter(|_| asked)?;
    let text = protocol.to_str().ok()?.trim().to_ascii_lowercase();
    let http = ["h2", "http", "tls"]
        .iter()
        .any(|name| text.starts_with(name));
    let one = protocols.next().is_none() && !text.is_empty() && !text.contains([',', ' ']);
    (one && !http).then(|| protocol.clone())
}

/// What a request for another protocol says to its next neighbour, and the answer to that.
pub(crate) fn announce(headers: &mut HeaderMap, protocol: &HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol.clone());
}

/// Joins both ends once both have switched. An answer that switches without having been asked is refused.
pub(crate) fn join(
    shared: &Shared,
    wanted: Option<(HeaderValue, OnUpgrade)>,
    response: &mut Response<Incoming>,
    load: Option<Arc<InFlight>>,
) -> Result<Option<HeaderValue>, Failure> {
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(None);
    }
    let unasked = Failure::Answer("a switch of protocols that nobody asked for");
    let (protocol, client) = wanted.ok_or(unasked)?;
    let backend = hyper::upgrade::on(response);
    shared.tasks.spawn(async move {
        let _load = load;
        match tokio::try_join!(client, backend) {
            Ok((client, backend)) => {
                let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
                if let Err(error) = copy_bidirectional(&mut client, &mut backend).await {
                    debug!(%error, "an upgraded connection broke");
                }
            }
            Err(error) => debug!(%error, "an upgrade failed"),
        }
    });
    Ok(Some(protocol))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_protocol_is_asked_for_and_never_another_http() {
        let asked = |version: Version, pairs: &[(&'static str, &'static str)]| {
            let pairs = pairs.iter().map(|(name, value)| {
                let name: http::HeaderName = name.parse().unwrap();
                (name, HeaderValue::from_static(value))
            });
            protocol(version, &pairs.collect()).is_some()
        };
        let one = Version::HTTP_11;
        let upgrade = ("connection", "keep-alive, Upgrade");
        assert!(asked(one, &[upgrade, ("upgrade", "websocket")]));
        assert!(asked(one, &[upgrade, ("upgrade", "Other/1.0")]));
        for pairs in [
            &[upgrade][..],
            &[("upgrade", "websocket")],
            &[upgrade, ("upgrade", "h2c")],
            &[upgrade, ("upgrade", "H2C")],
            &[upgrade, ("upgrade", "HTTP/2.0")],
            &[upgrade, ("upgrade", "TLS/1.0")],
            &[upgrade, ("upgrade", "websocket, h2c")],
        ] {
            assert!(!asked(one, pairs), "{pairs:?}");
        }
        let two = &[upgrade, ("upgrade", "websocket")];
        assert!(!asked(Version::HTTP_2, two) && !asked(Version::HTTP_10, two));
    }
}
