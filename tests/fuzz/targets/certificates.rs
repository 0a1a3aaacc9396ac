//! What a client of port 15008 presents, before anything is verified; and the roots of a federated trust domain.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;
use seine_ztunnel::federation::FederatedBundle;

static PARTNER: LazyLock<FederatedBundle> = LazyLock::new(|| {
    "partner.example=/dev/null"
        .parse()
        .expect("a domain and a file")
});

fuzz_target!(|bytes: &[u8]| {
    if let Ok(identity) = seine_identity::unverified_identity(&CertificateDer::from(bytes)) {
        assert_eq!(identity.to_string().parse(), Ok(identity));
    }
    let _ = PARTNER.parse(bytes);
});
