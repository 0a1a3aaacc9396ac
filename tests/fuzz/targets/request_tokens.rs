//! The token of a request at a waypoint, and what an issuer publishes as its keys; and claims that its key did sign, since
//! whoever writes claims is another program.

#![no_main]

use std::sync::LazyLock;

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use libfuzzer_sys::fuzz_target;
use seine_waypoint::token::{Issuer, Keys, TokenError, Verified, unverified, verify};
use serde_json::{Value, json};

struct Signer {
    key: EncodingKey,
    keys: Keys,
    issuer: Issuer,
}

static SIGNER: LazyLock<Signer> = LazyLock::new(|| {
    let key = rcgen::KeyPair::generate().expect("a P-256 key");
    let key = EncodingKey::from_ec_der(&key.serialize_der());
    let jwk = Jwk::from_encoding_key(&key, Algorithm::ES256).expect("a P-256 key");
    let keys = json!({"keys": [jwk]}).to_string();
    Signer {
        key,
        keys: Keys::parse(keys.as_bytes()).expect("a key set"),
        issuer: Issuer {
            name: "https://issuer.example".into(),
            audiences: vec!["web".into()],
        },
    }
});

fn judged(token: &str, keys: &Keys) -> Result<Verified, TokenError> {
    unverified(token)?;
    verify(token, &SIGNER.issuer, keys)
}

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(verified) = judged(text, &SIGNER.keys)
    {
        panic!("nobody signed it: {verified:?}");
    }
    let Ok(Value::Object(mut claims)) = serde_json::from_slice(bytes) else {
        return;
    };
    for (name, value) in [
        ("iss", "https://issuer.example".into()),
        ("aud", "web".into()),
        ("exp", 4_000_000_000_u64.into()),
    ] {
        claims.entry(name).or_insert(value);
    }
    let token = jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &SIGNER.key)
        .expect("JSON is signed");
    let _ = judged(&token, &SIGNER.keys);
    if let Ok(others) = Keys::parse(bytes) {
        assert!(judged(&token, &others).is_err(), "another's key");
    }
});
