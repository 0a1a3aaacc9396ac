//! A CSR to the certificate authority: text as it comes, and DER within good PEM.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pem::Pem;
use seine_control::ca::CsrFacts;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = CsrFacts::from_pem(text);
    }
    let _ = CsrFacts::from_pem(&pem::encode(&Pem::new("CERTIFICATE REQUEST", bytes)));
});
