//! What anybody says at a Gateway: which host they ask for in TLS, and who they say they are in headers.

#![no_main]

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;
use seine_waypoint::ingress::forwarded::mark;
use seine_waypoint::ingress::hello::Greeting;

fuzz_target!(|bytes: &[u8]| {
    greeting(bytes);
    headers(bytes);
});

/// The host doesn't depend on the pieces that it comes in.
fn greeting(bytes: &[u8]) {
    let heard = |size: usize| {
        let mut greeting = Greeting::default();
        let mut pieces = bytes.chunks(size.max(1));
        let found = pieces.find_map(|piece| greeting.hear(piece).transpose());
        found.transpose()
    };
    let (whole, pieces) = (heard(bytes.len()), heard(7));
    if let (Ok(whole), Ok(pieces)) = (&whole, &pieces) {
        assert_eq!(whole, pieces);
    }
    if let Ok(Some(host)) = whole {
        assert!(!host.ends_with('.') && !host.bytes().any(|byte| byte.is_ascii_uppercase()));
    }
}

/// Of what clients write no more is believed than the proxies that are trusted can have written.
fn headers(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let trusted = usize::from(
        lines
            .next()
            .and_then(<[u8]>::first)
            .copied()
            .unwrap_or_default()
            % 4,
    );
    let mut headers = HeaderMap::new();
    for line in lines.take(64) {
        let mut pair = line.splitn(2, |byte| *byte == b':');
        let name = HeaderName::from_bytes(pair.next().unwrap_or_default());
        let value = HeaderValue::from_bytes(pair.next().unwrap_or_default());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let peer: SocketAddr = "192.0.2.9:1234".parse().expect("an address");
    let client = mark(&mut headers, peer, "https", trusted);
    let one = |name: &str| {
        let mut all = headers.get_all(name).iter();
        let value = all.next().expect("it is written");
        assert!(all.next().is_none());
        value.to_str().expect("it is ours").to_owned()
    };
    let chain = one("x-forwarded-for");
    let chain: Vec<IpAddr> = chain
        .split(", ")
        .map(|text| text.parse().expect("an address"))
        .collect();
    assert!(matches!(chain.len(), 1) || chain.len() == trusted + 1);
    assert_eq!(chain.last(), Some(&peer.ip()));
    assert!(client == peer || chain[0].to_canonical() == client.ip());
    let scheme = one("x-forwarded-proto");
    assert!(matches!(&*scheme, "http" | "https"));
    if trusted == 0 {
        assert_eq!((client, &*scheme), (peer, "https"));
        let foreign = headers
            .keys()
            .filter(|name| name.as_str().starts_with("x-forwarded-"));
        assert_eq!(foreign.count(), 2);
    }
}
