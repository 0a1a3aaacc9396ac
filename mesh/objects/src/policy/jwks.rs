//! Sets of public keys as users write them (RFC 7517). What makes one usable is said here by its form alone; who uses it
//! computes with it.

use serde_json::Value;

/// Whether a text is a key set with a key that can be used.
///
/// # Errors
///
/// What is wrong, without a word of the keys themselves.
pub(super) fn check(text: &str) -> Result<(), String> {
    let set: Value = serde_json::from_str(text).map_err(|error| {
        format!(
            "is no JSON: line {}, column {}",
            error.line(),
            error.column()
        )
    })?;
    let keys = set["keys"].as_array();
    let keys = keys.ok_or("is no JSON Web Key Set: `keys` is missing")?;
    for (index, key) in keys.iter().enumerate() {
        let secret = key["kty"] == "oct" || !key["d"].is_null() || !key["k"].is_null();
        if secret {
            return Err(format!(
                "keys[{index}] is a secret or private key, which belongs to the issuer alone"
            ));
        }
    }
    let usable = keys.iter().filter_map(unusable).collect::<Vec<_>>();
    match usable.len() < keys.len() {
        true => Ok(()),
        false => Err(match usable.first() {
            Some(why) => format!("has no key that can be used: keys[0] {why}"),
            None => "has no keys".into(),
        }),
    }
}

/// Why a key can't be used to verify; `None`: it can.
fn unusable(key: &Value) -> Option<&'static str> {
    let text = |name: &str| key[name].as_str().unwrap_or_default();
    if !matches!(text("use"), "" | "sig") {
        return Some("is not for signatures");
    }
    let (wrong, members): (&str, &[(&str, usize)]) = match (text("kty"), text("crv")) {
        // Characters of base64url: 256 bytes at least.
        ("RSA", _) => (
            "is shorter than 2048 bits, or has no n and e",
            &[("n", 342), ("e", 2)],
        ),
        ("EC", "P-256") => ("has no x and y of 32 bytes", &[("x", 43), ("y", 43)]),
        ("EC", "P-384") => ("has no x and y of 48 bytes", &[("x", 64), ("y", 64)]),
        ("OKP", "Ed25519") => ("has no x of 32 bytes", &[("x", 43)]),
        _ => return Some("is neither RSA, ECDSA with P-256 or P-384, nor Ed25519"),
    };
    let is_url_safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let good = |(name, length): &(&str, usize)| {
        let value = text(name);
        let fits = match text("kty") {
            "RSA" => value.len() >= *length,
            _ => value.len() == *length,
        };
        fits && value.bytes().all(is_url_safe)
    };
    (!members.iter().all(good)).then_some(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_a_usable_key_and_no_secret_one() {
        let x = "A".repeat(43);
        let good = format!(r#"{{"kty":"OKP","crv":"Ed25519","x":"{x}"}}"#);
        let rsa = |n: usize| format!(r#"{{"kty":"RSA","e":"AQAB","n":"{}"}}"#, "A".repeat(n));
        let set = |keys: &[&str]| check(&format!(r#"{{"keys":[{}]}}"#, keys.join(",")));
        assert_eq!(set(&[&good]), Ok(()));
        assert_eq!(set(&[&rsa(342)]), Ok(()));
        // One that can't be used stands in nobody's way.
        assert_eq!(set(&[r#"{"kty":"EC","crv":"secp256k1"}"#, &good]), Ok(()));
        let private = good.replace("\"x\"", "\"d\":\"AA\",\"x\"");
        let bent = good.replace("Ed25519", "P-256");
        for (keys, why) in [
            (&[][..], "has no keys"),
            (
                &[r#"{"kty":"oct","k":"c2VjcmV0"}"#, &*good][..],
                "keys[0] is a secret",
            ),
            (&[&*good, &*private][..], "keys[1] is a secret"),
            (&[&*rsa(341)][..], "2048"),
            (&[&*bent][..], "neither"),
            (
                &[&*good.replace("\"x\"", "\"use\":\"enc\",\"x\"")][..],
                "not for signatures",
            ),
            (&[&*good.replace("AAA", "A=A")][..], "no x"),
        ] {
            let found = set(keys).unwrap_err();
            assert!(found.contains(why), "{keys:?}: {found}");
            assert!(!found.contains("c2VjcmV0"));
        }
        assert!(check("[").is_err() && check("{}").is_err());
    }
}
