//! What is said of a client from outside the mesh, and by whom. Pure.
//!
//! Anybody can write the headers that proxies say it in. What comes from outside is taken away, but for what the proxies
//! said that the Gateway is told to trust: of the addresses they and this one wrote, the last ones.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderName, HeaderValue};

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Other headers that applications take for a proxy's word.
const PREFIX: &str = "x-forwarded-";
const OTHERS: [HeaderName; 2] = [
    HeaderName::from_static("forwarded"),
    HeaderName::from_static("x-real-ip"),
];

/// Writes who asks into the headers of a request, and gives the client's address. `peer` is the other end of the
/// connection, with `trusted` proxies, itself the last of them, between it and the client.
pub fn mark(
    headers: &mut HeaderMap,
    peer: SocketAddr,
    scheme: &'static str,
    trusted: usize,
) -> SocketAddr {
    let said = addresses(headers);
    if trusted == 0 {
        let names = headers.keys();
        let foreign =
            names.filter(|name| name.as_str().starts_with(PREFIX) || OTHERS.contains(name));
        for name in foreign.cloned().collect::<Vec<_>>() {
            headers.remove(name);
        }
    }
    // The nearest proxy wrote the last one.
    let first = said.len().saturating_sub(trusted);
    let known = said[first..].iter();
    let known: Option<Vec<IpAddr>> = known.map(|text| address(text)).collect();
    // Where there are less than trusted proxies would have written, or something else, nobody has to be believed.
    let known = known.filter(|known| known.len() == trusted);
    let client = match known.as_deref() {
        Some([client, ..]) => SocketAddr::new(client.to_canonical(), 0),
        _ => peer,
    };
    let chain = known.into_iter().flatten().chain([peer.ip()]);
    let chain: Vec<_> = chain.map(|address| address.to_string()).collect();
    if let Ok(chain) = HeaderValue::try_from(chain.join(", ")) {
        headers.insert(FOR, chain);
    }
    let mut schemes = headers.get_all(PROTO).iter();
    let is_one = |value: &HeaderValue| matches!(value.as_bytes(), b"http" | b"https");
    let said = schemes.next().filter(|_| schemes.next().is_none());
    if !said.is_some_and(is_one) {
        headers.insert(PROTO, HeaderValue::from_static(scheme));
    }
    client
}

/// What all X-Forwarded-For headers list, the client first.
fn addresses(headers: &HeaderMap) -> Vec<String> {
    let values = headers.get_all(FOR).iter();
    let text = values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let text = text.collect::<Vec<_>>().join(",");
    let items = text.split(',').map(str::trim);
    items
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Some write a port behind it.
fn address(text: &str) -> Option<IpAddr> {
    let with_port = || text.parse().map(|address: SocketAddr| address.ip());
    text.parse().or_else(|_| with_port()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marked(pairs: &[(&'static str, &'static str)], trusted: usize) -> (String, Vec<String>) {
        let pairs = pairs.iter().map(|(name, value)| {
            let value = HeaderValue::from_static(value);
            (HeaderName::from_static(name), value)
        });
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name, value);
        }
        let peer = "192.0.2.9:1234".parse().unwrap();
        let client = mark(&mut headers, peer, "http", trusted);
        let list = headers.iter();
        let list = list.map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()));
        let mut list: Vec<_> = list.collect();
        list.sort();
        (client.to_string(), list)
    }

    #[test]
    fn what_a_client_says_of_itself_is_taken_away() {
        let (client, headers) = marked(
            &[
                ("x-forwarded-for", "198.51.100.1"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "admin"),
                ("forwarded", "for=198.51.100.1"),
                ("x-real-ip", "198.51.100.1"),
                ("x-own", "stays"),
            ],
            0,
        );
        assert_eq!(client, "192.0.2.9:1234");
        assert_eq!(
            headers,
            [
                "x-forwarded-for: 192.0.2.9",
                "x-forwarded-proto: http",
                "x-own: stays"
            ]
        );
    }

    #[test]
    fn of_what_trusted_proxies_wrote_no_more_than_that_is_believed() {
        let list = ("x-forwarded-for", "203.0.113.7, 198.51.100.1");
        let more = ("x-forwarded-for", "198.51.100.2:99");
        for (pairs, trusted, client, chain) in [
            (&[list][..], 1, "198.51.100.1:0", "198.51.100.1, 192.0.2.9"),
            (
                &[list, more],
                2,
                "198.51.100.1:0",
                "198.51.100.1, 198.51.100.2, 192.0.2.9",
            ),
            // Somebody came past the proxies.
            (&[list], 3, "192.0.2.9:1234", "192.0.2.9"),
            (&[], 1, "192.0.2.9:1234", "192.0.2.9"),
            (
                &[("x-forwarded-for", "unknown")],
                1,
                "192.0.2.9:1234",
                "192.0.2.9",
            ),
        ] {
            let (found, headers) = marked(pairs, trusted);
            assert_eq!(found, client, "{pairs:?} {trusted}");
            assert_eq!(headers[0], format!("x-forwarded-for: {chain}"));
        }
        let (_, headers) = marked(&[("x-forwarded-proto", "https")], 1);
        assert_eq!(headers[1], "x-forwarded-proto: https");
        let (_, headers) = marked(&[("x-forwarded-proto", "odd")], 1);
        assert_eq!(headers[1], "x-forwarded-proto: http");
    }
}
