//! What an upstream name server sends, to a query of which its first bytes are a length.

#![no_main]

use libfuzzer_sys::fuzz_target;
use seine_ztunnel::dns::{message, nameservers};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = nameservers(text);
    }
    let Some((&length, rest)) = bytes.split_first() else {
        return;
    };
    let (query, response) = rest.split_at(usize::from(length).min(rest.len()));
    if message::answers(response, query) {
        assert_eq!(message::id(response), message::id(query));
        assert_eq!(message::is_response(response), Some(true));
    }
    if let Some(failure) = message::server_failure(query) {
        assert!(message::answers(&failure, query), "{failure:?}");
    }
});
