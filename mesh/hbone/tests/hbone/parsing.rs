//! Whatever a peer writes into a CONNECT.

use http::{HeaderMap, HeaderName, HeaderValue, Request};
use proptest::prelude::*;
use seine_hbone::{Authority, Baggage, ConnectRequest, Host};

const NAMES: [&str; 6] = [
    "baggage",
    "forwarded",
    "traceparent",
    "x-istio-source",
    "x-forwarded-network",
    "x-seine-first-client",
];

/// Bytes near to what the headers mean, so that more than the first check is reached.
fn value() -> impl Strategy<Value = Vec<u8>> {
    let words = prop::sample::select(vec![
        "for=",
        "host=",
        "\"",
        ";",
        ",",
        "=",
        "10.0.0.1:80",
        "[fd00::1]:80",
        "00-",
        "waypoint",
        "spiffe://cluster.local/ns/",
        "/sa/",
        "k8s.pod.name",
        "service.name",
        "a",
        " ",
        "\u{ff}",
    ]);
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        prop::collection::vec(words, 0..12).prop_map(|words| words.concat().into_bytes()),
    ]
}

proptest! {
    #[test]
    fn any_header_is_read_without_panic_and_what_is_understood_survives_encoding(
        values in prop::collection::vec((prop::sample::select(&NAMES[..]), value()), 0..8),
    ) {
        let mut headers = HeaderMap::new();
        for (name, value) in values {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                headers.append(HeaderName::from_static(name), value);
            }
        }
        let mut request = Request::connect("10.0.0.1:80").body(()).unwrap();
        *request.headers_mut() = headers;
        let parsed = ConnectRequest::parse(&request.into_parts().0).unwrap();
        let encoded = parsed.encode().unwrap().into_parts().0;
        prop_assert_eq!(ConnectRequest::parse(&encoded).unwrap(), parsed);
    }

    #[test]
    fn any_authority_is_refused_or_has_one_form(text in "[ -~]{0,40}|[a-z0-9.:\\[\\]-]{1,30}(:[0-9]{1,5})?") {
        if let Ok(authority) = text.parse::<Authority>() {
            let shown = authority.to_string();
            prop_assert_eq!(shown.parse::<Authority>(), Ok(authority.clone()));
            prop_assert_ne!(authority.port(), 0);
            prop_assert!(ConnectRequest::new(authority).encode().is_ok());
        }
        let _ = text.parse::<Host>();
        let _ = Baggage::parse(&text);
    }
}
