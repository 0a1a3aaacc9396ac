//! The `authorization` header of a call to the control plane; and claims that its key did sign, since whoever may sign
//! claims is another program.

#![no_main]

use std::sync::LazyLock;

use futures::FutureExt;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use libfuzzer_sys::fuzz_target;
use seine_control::authn::{AuthnError, Caller, JwtAuthenticator, caller};
use serde_json::Value;
use tonic::metadata::{MetadataMap, MetadataValue};

struct Issuer {
    key: EncodingKey,
    judge: JwtAuthenticator,
}

static ISSUER: LazyLock<Issuer> = LazyLock::new(|| {
    let key = rcgen::KeyPair::generate().expect("a P-256 key");
    Issuer {
        key: EncodingKey::from_ec_der(&key.serialize_der()),
        judge: JwtAuthenticator::new(key.public_key_pem().as_bytes(), "lab", "control")
            .expect("a P-256 key"),
    }
});

fn judged(header: &[u8]) -> Option<Result<Caller, AuthnError>> {
    let mut headers = MetadataMap::new();
    headers.insert("authorization", MetadataValue::try_from(header).ok()?);
    Some(
        caller(&ISSUER.judge, &headers)
            .now_or_never()
            .expect("a known key is asked of nobody"),
    )
}

fuzz_target!(|bytes: &[u8]| {
    if let Some(Ok(caller)) = judged(bytes) {
        panic!("nobody signed it: {caller}");
    }
    let Ok(Value::Object(mut claims)) = serde_json::from_slice(bytes) else {
        return;
    };
    for (name, value) in [
        ("iss", "lab".into()),
        ("aud", "control".into()),
        ("exp", 4_000_000_000_u64.into()),
    ] {
        claims.entry(name).or_insert(value);
    }
    let token = jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &ISSUER.key)
        .expect("JSON is signed");
    let _ = judged(format!("Bearer {token}").as_bytes());
});
