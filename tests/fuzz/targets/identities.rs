//! SPIFFE IDs as certificates and policies carry them, and the keys of a hand-over.

#![no_main]

use libfuzzer_sys::fuzz_target;
use seine_identity::{Identity, KeyExport};

fuzz_target!(|bytes: &[u8]| {
    let _ = KeyExport::from_bytes(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Ok(identity) = text.parse::<Identity>() else {
        return;
    };
    assert_eq!(
        identity
            .to_string()
            .parse::<Identity>()
            .expect("it prints what it parses"),
        identity
    );
});
