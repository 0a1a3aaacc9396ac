//! A CONNECT's head, as any client of port 15008 with a certificate may send it.
//!
//! What parses is encoded and parsed again to the same.

#![no_main]

use libfuzzer_sys::fuzz_target;
use seine_hbone::ConnectRequest;
use tracing::Span;

fuzz_target!(|input: (&str, Vec<(&str, &[u8])>)| {
    let (authority, headers) = input;
    let mut builder = http::Request::builder().method("CONNECT").uri(authority);
    for (name, value) in headers {
        // Whatever it is, it is the traceparent as well.
        if let Ok(text) = std::str::from_utf8(value) {
            seine_telemetry::trace::continue_from(&Span::none(), text);
        }
        builder = builder.header(name, value);
    }
    let Ok(request) = builder.body(()) else {
        return;
    };
    let Ok(parsed) = ConnectRequest::parse(&request.into_parts().0) else {
        return;
    };
    let encoded = parsed.encode().expect("what was parsed can be sent on");
    let again = ConnectRequest::parse(&encoded.into_parts().0).expect("what was encoded parses");
    assert_eq!(parsed, again);
});
