//! Heads of requests that clients of a waypoint send: what is taken of them has one meaning.

#![no_main]

use http::{HeaderName, HeaderValue, Method, Request, Uri, Version};
use libfuzzer_sys::fuzz_target;
use seine_telemetry::propagation;
use seine_waypoint::head::{self, Head};
use seine_waypoint::path;
use seine_waypoint::rule::{PathChange, PathMatch};
use tracing::Span;

fuzz_target!(|bytes: &[u8]| {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let line = lines.next().unwrap_or_default();
    let mut words = line.splitn(2, |byte| *byte == b' ');
    let method = Method::from_bytes(words.next().unwrap_or_default());
    let (Ok(method), Ok(uri)) = (method, Uri::try_from(words.next().unwrap_or_default())) else {
        return;
    };
    let (mut parts, ()) = Request::new(()).into_parts();
    (parts.method, parts.uri) = (method, uri);
    for line in lines.take(64) {
        let mut pair = line.splitn(2, |byte| *byte == b':');
        let name = HeaderName::from_bytes(pair.next().unwrap_or_default());
        let value = HeaderValue::from_bytes(pair.next().unwrap_or_default());
        if let (Ok(name), Ok(value)) = (name, value) {
            parts.headers.append(name, value);
        }
    }
    propagation::continue_from(&Span::none(), &parts.headers);
    let Ok(head) = Head::read(&parts) else {
        return;
    };
    assert_eq!(path::normalise(&head.path).as_deref(), Ok(&*head.path));
    assert!(!head.host.is_empty() && !head.path.contains("/../") && !head.path.contains("//"));
    head::strip_own(&mut parts.headers);
    head::strip_hop_by_hop(&mut parts.headers);
    let names = || parts.headers.keys().map(HeaderName::as_str);
    assert!(names().all(|name| !name.starts_with("x-seine-")));
    assert!(names().all(|name| !matches!(name, "connection" | "transfer-encoding" | "upgrade")));
    let prefix = PathMatch::Prefix("/a".into());
    assert!(
        PathChange::Prefix("/b".into())
            .apply(&head.path, &prefix)
            .starts_with('/')
    );
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let mut written = parts.clone();
        head::write(&mut written, &head, version).expect("what was read can be written");
        // The next reader sees the same.
        let again = Head::read(&written).expect("what was written can be read");
        assert_eq!(
            (&again.host, &again.path, &again.query),
            (&head.host, &head.path, &head.query)
        );
    }
});
