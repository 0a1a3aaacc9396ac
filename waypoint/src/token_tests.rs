//! Each attack beside a twin that differs in the attacked property alone and succeeds.

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{EncodingKey, Header, encode, get_current_timestamp};
use rcgen::KeyPair;
use serde_json::json;

use super::*;

const ISSUER: &str = "https://issuer.example";

/// Keys of an issuer, as few as the algorithms.
struct Signer {
    algorithm: Algorithm,
    key: EncodingKey,
    jwk: Value,
}

impl Signer {
    fn new(algorithm: Algorithm, id: &str) -> Self {
        let generated = match algorithm {
            Algorithm::ES256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            Algorithm::ES384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            Algorithm::EdDSA => KeyPair::generate_for(&rcgen::PKCS_ED25519),
            _ => KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048),
        };
        let generated = generated.unwrap();
        let (der, pem) = (generated.serialized_der(), generated.serialize_pem());
        let key = match algorithm {
            Algorithm::ES256 | Algorithm::ES384 => EncodingKey::from_ec_der(der),
            Algorithm::EdDSA => {
                // The seed in the older of two forms, which is the one that is read here.
                let before = [4, 0x22, 4, 0x20];
                let found = der.windows(4).position(|bytes| bytes == before).unwrap() + 4;
                let head = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70];
                let der = [&head[..], &before, &der[found..found + 32]].concat();
                EncodingKey::from_ed_der(&der)
            }
            _ => EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap(),
        };
        let jwk = Jwk::from_encoding_key(&key, algorithm).unwrap();
        let mut jwk = serde_json::to_value(jwk).unwrap();
        jwk["kid"] = json!(id);
        Self {
            algorithm,
            key,
            jwk,
        }
    }

    fn header(&self) -> Header {
        let mut header = Header::new(self.algorithm);
        header.kid = self.jwk["kid"].as_str().map(str::to_owned);
        header
    }

    fn sign(&self, claims: &Value) -> String {
        encode(&self.header(), claims, &self.key).unwrap()
    }

    fn keys(&self) -> Keys {
        keys(&[&self.jwk])
    }
}

fn keys(jwks: &[&Value]) -> Keys {
    Keys::parse(json!({"keys": jwks}).to_string().as_bytes()).unwrap()
}

fn issuer(audiences: &[&str]) -> Issuer {
    Issuer {
        name: ISSUER.into(),
        audiences: audiences.iter().map(ToString::to_string).collect(),
    }
}

fn claims() -> Value {
    json!({"iss": ISSUER, "sub": "alice", "aud": ["web", "other"], "exp": get_current_timestamp() + 600})
}

/// With one claim changed, or taken away.
fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

/// As a request's token is judged.
fn judge(token: &str, issuer: &Issuer, keys: &Keys) -> Result<Verified, TokenError> {
    match unverified(token)?.issuer == issuer.name {
        true => verify(token, issuer, keys),
        false => Err(TokenError::Issuer),
    }
}

#[test]
fn a_token_of_each_algorithm_is_valid_by_its_own_key_alone() {
    for algorithm in [
        Algorithm::RS256,
        Algorithm::PS512,
        Algorithm::ES256,
        Algorithm::ES384,
        Algorithm::EdDSA,
    ] {
        let (signer, other) = (Signer::new(algorithm, "a"), Signer::new(algorithm, "a"));
        let token = signer.sign(&claims());
        let found = judge(&token, &issuer(&["web"]), &signer.keys()).unwrap();
        assert_eq!(
            found.principal.as_deref(),
            Some("https://issuer.example/alice"),
            "{algorithm:?}"
        );
        let forged = judge(&token, &issuer(&["web"]), &other.keys());
        assert_eq!(forged, Err(TokenError::Signature), "{algorithm:?}");
    }
}

#[test]
fn the_algorithm_is_the_keys_and_never_the_tokens() {
    use TokenError::Algorithm as Refused;
    let signer = Signer::new(Algorithm::RS256, "a");
    let good = signer.sign(&claims());
    let (_, rest) = good.split_once('.').unwrap();
    let (body, signature) = rest.split_once('.').unwrap();
    let judged = |token: &str| judge(token, &issuer(&["web"]), &signer.keys());
    assert!(judged(&good).is_ok());

    // `none`, in any writing, with and without a signature.
    for header in [
        "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0",
        "eyJhbGciOiJOb25lIn0",
        "eyJ0eXAiOiJKV1QifQ",
    ] {
        for signature in ["", signature] {
            let token = format!("{header}.{body}.{signature}");
            assert_eq!(judged(&token), Err(Refused), "{header}");
        }
    }
    // The public key, which everybody knows, as a secret: in the forms in which it is published.
    let mut header = signer.header();
    header.alg = Algorithm::HS256;
    let n = signer.jwk["n"].as_str().unwrap();
    for secret in [n.to_owned(), signer.jwk.to_string()] {
        let key = EncodingKey::from_secret(secret.as_bytes());
        let token = encode(&header, &claims(), &key).unwrap();
        assert_eq!(judged(&token), Err(Refused));
    }
    // Another algorithm of the same key, which says that it is for one.
    let mut header = signer.header();
    header.alg = Algorithm::PS256;
    let token = encode(&header, &claims(), &signer.key).unwrap();
    assert_eq!(judged(&token), Err(Refused));
    let mut open = signer.jwk.clone();
    open.as_object_mut().unwrap().remove("alg");
    assert!(judge(&token, &issuer(&["web"]), &keys(&[&open])).is_ok());
    // A secret among the keys verifies nothing.
    let secret = json!({"kty": "oct", "kid": "a", "k": "c2VjcmV0", "alg": "HS256"});
    assert!(Keys::parse(json!({"keys": [secret]}).to_string().as_bytes()).is_err());
    let mut header = signer.header();
    header.alg = Algorithm::HS256;
    let token = encode(&header, &claims(), &EncodingKey::from_secret(b"secret")).unwrap();
    let both = keys(&[&secret, &signer.jwk]);
    assert_eq!(judge(&token, &issuer(&["web"]), &both), Err(Refused));
    assert!(judge(&good, &issuer(&["web"]), &both).is_ok());
}

#[test]
fn a_token_has_its_time_its_issuer_and_its_audience() {
    let signer = Signer::new(Algorithm::ES256, "a");
    let now = get_current_timestamp();
    for (name, bad, error, twin) in [
        (
            "exp",
            json!(now - 120),
            TokenError::Expired,
            json!(now - 20),
        ),
        ("exp", Value::Null, TokenError::Expired, json!(now + 20)),
        ("exp", json!("x"), TokenError::Expired, json!(now + 20)),
        (
            "nbf",
            json!(now + 120),
            TokenError::NotYetValid,
            json!(now + 20),
        ),
        ("nbf", json!("x"), TokenError::NotYetValid, json!(now - 20)),
        (
            "iss",
            json!("https://other"),
            TokenError::Issuer,
            json!(ISSUER),
        ),
        ("iss", json!([ISSUER]), TokenError::Issuer, json!(ISSUER)),
        ("iss", Value::Null, TokenError::Issuer, json!(ISSUER)),
        ("aud", json!("other"), TokenError::Audience, json!("web")),
        ("aud", json!([]), TokenError::Audience, json!(["web"])),
        (
            "aud",
            Value::Null,
            TokenError::Audience,
            json!(["a", "web"]),
        ),
    ] {
        let judged = |value: &Value| {
            let token = signer.sign(&with(name, value.clone()));
            judge(&token, &issuer(&["web"]), &signer.keys())
        };
        assert_eq!(judged(&bad), Err(error), "{name} {bad}");
        assert!(judged(&twin).is_ok(), "{name} {twin}");
    }
    // Where no audience is asked for, none is needed.
    let token = signer.sign(&with("aud", Value::Null));
    assert!(judge(&token, &issuer(&[]), &signer.keys()).is_ok());
}

#[test]
fn a_token_is_verified_by_the_key_that_it_names_or_by_any_if_it_names_none() {
    let (a, b) = (
        Signer::new(Algorithm::ES256, "a"),
        Signer::new(Algorithm::ES256, "b"),
    );
    let both = keys(&[&a.jwk, &b.jwk]);
    let named = |id: Option<&str>| {
        let mut header = b.header();
        header.kid = id.map(str::to_owned);
        let token = encode(&header, &claims(), &b.key).unwrap();
        judge(&token, &issuer(&["web"]), &both)
    };
    assert!(named(Some("b")).is_ok() && named(None).is_ok());
    assert_eq!(named(Some("a")), Err(TokenError::Signature));
    assert_eq!(named(Some("c")), Err(TokenError::UnknownKey));
    assert!(both.may_have(Some("a")) && both.may_have(None) && !both.may_have(Some("c")));
    // What is for something else verifies nothing.
    for (field, value) in [("use", json!("enc")), ("key_ops", json!(["encrypt"]))] {
        let mut other = b.jwk.clone();
        other[field] = value;
        assert!(Keys::parse(json!({"keys": [other]}).to_string().as_bytes()).is_err());
    }
}

#[test]
fn a_token_that_is_too_long_bent_or_not_understood_is_refused() {
    let signer = Signer::new(Algorithm::ES256, "a");
    let judged = |token: &str| judge(token, &issuer(&["web"]), &signer.keys());
    let padded = |length: usize| signer.sign(&with("pad", json!("a".repeat(length))));
    assert!(judged(&padded(11 << 10)).is_ok());
    assert_eq!(judged(&padded(16 << 10)), Err(TokenError::TooLong));
    let good = padded(1);
    for bent in [
        "",
        "a",
        "a.b",
        "a.b.c",
        &good.replace('.', ""),
        &format!("{good}.x"),
    ] {
        assert_eq!(judged(bent), Err(TokenError::Malformed), "{bent}");
    }
    let mut header = signer.header();
    header.crit = Some(vec!["exp".into()]);
    let critical = encode(&header, &claims(), &signer.key).unwrap();
    assert_eq!(judged(&critical), Err(TokenError::Malformed));
    // One that was changed after it was signed.
    let other = signer.sign(&with("sub", json!("bob")));
    let (head, _) = good.rsplit_once('.').unwrap();
    let (_, signature) = other.rsplit_once('.').unwrap();
    assert_eq!(
        judged(&format!("{head}.{signature}")),
        Err(TokenError::Signature)
    );
    let deep = (0..20).fold(json!(1), |inner, _| json!({"a": inner}));
    let token = signer.sign(&with("deep", deep));
    assert_eq!(judged(&token), Err(TokenError::Malformed));
}

#[test]
fn every_value_of_a_token_is_a_claim() {
    let signer = Signer::new(Algorithm::ES256, "a");
    let mut claims = claims();
    claims["groups"] = json!(["a", {"b": "c"}, 7]);
    claims["realm"] = json!({"roles": ["x"], "ok": true, "none": null});
    claims["scope"] = json!("read write");
    let token = signer.sign(&claims);
    let found = judge(&token, &issuer(&[]), &signer.keys()).unwrap();
    let has = |path: &[&str], value: &str| {
        let path: Box<[Box<str>]> = path.iter().map(|name| Box::from(*name)).collect();
        let mut claims = found.claims.iter();
        claims.any(|claim| claim.path == path && *claim.value == *value)
    };
    for (path, value) in [
        (&["groups"][..], "a"),
        (&["groups"], "7"),
        (&["groups", "b"], "c"),
        (&["realm", "roles"], "x"),
        (&["realm", "ok"], "true"),
        (&["scope"], "read"),
        (&["scope"], "write"),
        (&["aud"], "other"),
    ] {
        assert!(has(path, value), "{path:?} {value}");
    }
    assert!(!has(&["scope"], "read write") && !has(&["realm"], "x"));
    let subjectless = signer.sign(&with("sub", Value::Null));
    let found = judge(&subjectless, &issuer(&[]), &signer.keys()).unwrap();
    assert_eq!(found.principal, None);
}
