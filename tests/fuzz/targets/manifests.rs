//! YAML as a user writes it.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = seine_objects::parse_text("fuzz.yaml", text);
});
