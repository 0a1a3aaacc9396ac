//! JSON Web Tokens (RFC 7519): whether one is valid, and what it claims.
//!
//! The algorithm is that of a key of the issuer; what the token says of it must agree. There are none but of public keys, so
//! that no key which everybody knows is ever taken for a secret. No text of a token is in an error.

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, dangerous, decode, decode_header};
use seine_policy::Claim;
use serde_json::{Map, Value};

/// Longer ones are refused before anything of them is read.
const MAX_TOKEN: usize = 16 << 10;
/// Clocks may differ by this many seconds.
const LEEWAY: u64 = 60;
/// Keys of an issuer that are used.
const MAX_KEYS: usize = 64;
/// Names that lead to a value, and values of a token.
const MAX_DEPTH: usize = 16;
const MAX_CLAIMS: usize = 1024;
/// Characters of base64url in a modulus of 2048 bits.
const MIN_MODULUS: usize = 342;

/// Why a token is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each says itself")]
pub enum TokenError {
    #[error("the request has more than one token")]
    Several,
    #[error("the token is longer than {MAX_TOKEN} bytes")]
    TooLong,
    #[error("it is no JSON Web Token that can be read")]
    Malformed,
    #[error("the token's algorithm is none that the issuer's keys have")]
    Algorithm,
    #[error("the token is of no issuer that is accepted here")]
    Issuer,
    #[error("the issuer has no such key")]
    UnknownKey,
    #[error("the token's signature is not the issuer's")]
    Signature,
    #[error("the token has expired, or says no end")]
    Expired,
    #[error("the token is not valid yet")]
    NotYetValid,
    #[error("the token is for another audience")]
    Audience,
    #[error("the token's subject is written as one of another issuer")]
    Subject,
}

/// A valid token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// `issuer/subject`, if it names a subject.
    pub principal: Option<String>,
    /// Every value in it.
    pub claims: Vec<Claim>,
}

/// An issuer's public keys.
#[derive(Clone, Debug, Default)]
pub struct Keys(Vec<Key>);

#[derive(Clone, Debug)]
struct Key {
    id: Option<String>,
    algorithms: &'static [Algorithm],
    key: DecodingKey,
}

/// Who may have issued a token, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issuer {
    /// What `iss` must be.
    pub name: String,
    /// `aud` must have one of these; of none any.
    pub audiences: Vec<String>,
}

const RSA: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];

/// That of a key which names one.
fn only(name: &str) -> Option<&'static [Algorithm]> {
    Some(match name {
        "RS256" => &[Algorithm::RS256],
        "RS384" => &[Algorithm::RS384],
        "RS512" => &[Algorithm::RS512],
        "PS256" => &[Algorithm::PS256],
        "PS384" => &[Algorithm::PS384],
        "PS512" => &[Algorithm::PS512],
        "ES256" => &[Algorithm::ES256],
        "ES384" => &[Algorithm::ES384],
        "EdDSA" => &[Algorithm::EdDSA],
        _ => return None,
    })
}

impl Keys {
    /// Reads a JSON Web Key Set (RFC 7517). Keys that can't be used are left out.
    ///
    /// # Errors
    ///
    /// If it is no key set, or has no key that can be used.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        let set: Value = serde_json::from_slice(text).map_err(|_| "it is no JSON")?;
        let keys = set["keys"].as_array().ok_or("it is no key set")?;
        let keys: Vec<Key> = keys.iter().filter_map(Key::read).take(MAX_KEYS).collect();
        match keys.is_empty() {
            true => Err("it has no key that can be used".into()),
            false => Ok(Self(keys)),
        }
    }

    /// Whether there is a key of that name; of a token that names none, any.
    pub fn may_have(&self, id: Option<&str>) -> bool {
        id.is_none_or(|id| self.0.iter().any(|key| key.id.as_deref() == Some(id)))
    }

    fn verify(&self, token: &str, issuer: &Issuer) -> Result<Map<String, Value>, TokenError> {
        let header = decode_header(token).map_err(|_| TokenError::Malformed)?;
        let named = |key: &&Key| header.kid.is_none() || key.id == header.kid;
        let mut keys = self.0.iter().filter(named).peekable();
        if keys.peek().is_none() {
            return Err(TokenError::UnknownKey);
        }
        let mut keys = keys
            .filter(|key| key.algorithms.contains(&header.alg))
            .peekable();
        if keys.peek().is_none() {
            return Err(TokenError::Algorithm);
        }
        let mut rules = Validation::new(header.alg);
        rules.leeway = LEEWAY;
        rules.validate_nbf = true;
        rules.set_issuer(&[&issuer.name]);
        rules.set_required_spec_claims(&["exp", "iss"]);
        rules.validate_aud = !issuer.audiences.is_empty();
        if rules.validate_aud {
            rules.set_audience(&issuer.audiences);
            rules.required_spec_claims.insert("aud".into());
        }
        let mut last = TokenError::Signature;
        for key in keys {
            match decode::<Map<String, Value>>(token, &key.key, &rules) {
                Ok(found) => return Ok(found.claims),
                Err(error) => last = reason(error.kind()),
            }
            // Of several keys without a name another one may have signed it.
            if last != TokenError::Signature {
                break;
            }
        }
        Err(last)
    }
}

impl Key {
    /// `None`: it can't verify anything.
    fn read(key: &Value) -> Option<Self> {
        let text = |name: &str| key[name].as_str();
        let is_for_signatures = matches!(text("use"), None | Some("sig"));
        let operations = key["key_ops"].as_array();
        let verifies = operations.is_none_or(|all| all.iter().any(|one| one == "verify"));
        if !is_for_signatures || !verifies {
            return None;
        }
        let (algorithms, decoded): (&'static [Algorithm], _) = match (text("kty")?, text("crv")) {
            ("RSA", _) => {
                let n = text("n").filter(|n| n.len() >= MIN_MODULUS)?;
                (RSA, DecodingKey::from_rsa_components(n, text("e")?))
            }
            ("EC", Some(curve)) => {
                let (algorithm, length): (&[_], _) = match curve {
                    "P-256" => (&[Algorithm::ES256], 43),
                    "P-384" => (&[Algorithm::ES384], 64),
                    _ => return None,
                };
                // Joined, they would not be told apart by their lengths.
                let coordinate = |name: &str| text(name).filter(|value| value.len() == length);
                let key = DecodingKey::from_ec_components(coordinate("x")?, coordinate("y")?);
                (algorithm, key)
            }
            ("OKP", Some("Ed25519")) => (
                &[Algorithm::EdDSA],
                DecodingKey::from_ed_components(text("x")?),
            ),
            _ => return None,
        };
        let algorithms = match text("alg") {
            None => algorithms,
            Some(name) => only(name).filter(|only| algorithms.contains(&only[0]))?,
        };
        Some(Self {
            id: text("kid").map(str::to_owned),
            algorithms,
            key: decoded.ok()?,
        })
    }
}

/// What a token says of itself, before anything of it is believed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unverified {
    /// Whose keys are to be asked.
    pub issuer: String,
    /// Which of them.
    pub key_id: Option<String>,
}

/// Whom a token claims to be of: it decides whose keys are asked, and nothing else.
pub fn unverified(token: &str) -> Result<Unverified, TokenError> {
    if token.len() > MAX_TOKEN {
        return Err(TokenError::TooLong);
    }
    let header = decode_header(token).map_err(|error| match error.kind() {
        // `none`, and what nobody knows, is no algorithm to the decoder.
        ErrorKind::Json(_) => TokenError::Algorithm,
        _ => TokenError::Malformed,
    })?;
    // RFC 7515, section 4.1.11: what must be understood isn't; and there are no encrypted ones here.
    if header.crit.is_some() || header.enc.is_some() || header.zip.is_some() {
        return Err(TokenError::Malformed);
    }
    let claims = dangerous::insecure_decode_claims::<Map<String, Value>>(token);
    let claims = claims.map_err(|_| TokenError::Malformed)?;
    let issuer = claims.get("iss").and_then(Value::as_str);
    Ok(Unverified {
        issuer: issuer.ok_or(TokenError::Issuer)?.to_owned(),
        key_id: header.kid,
    })
}

/// Verifies a token.
pub fn verify(token: &str, issuer: &Issuer, keys: &Keys) -> Result<Verified, TokenError> {
    let claims = keys.verify(token, issuer)?;
    // One name and not a list of them: it is a part of the principal.
    if claims.get("iss").and_then(Value::as_str) != Some(&issuer.name) {
        return Err(TokenError::Issuer);
    }
    let subject = claims.get("sub").and_then(Value::as_str);
    let principal = subject.map(|subject| format!("{}/{subject}", issuer.name));
    let mut values = Vec::new();
    for (name, value) in &claims {
        flatten(&mut vec![name], value, &mut values)?;
    }
    Ok(Verified {
        principal,
        claims: values,
    })
}

/// Every value, with the names that lead to it. Of `scope` each word is one (RFC 8693, section 4.2).
fn flatten<'a>(
    path: &mut Vec<&'a str>,
    value: &'a Value,
    values: &mut Vec<Claim>,
) -> Result<(), TokenError> {
    if path.len() > MAX_DEPTH || values.len() >= MAX_CLAIMS {
        return Err(TokenError::Malformed);
    }
    let mut add = |text: &str| {
        values.push(Claim {
            path: path.iter().map(|name| Box::from(*name)).collect(),
            value: text.into(),
        });
    };
    match value {
        Value::Null => {}
        Value::Bool(value) => add(&value.to_string()),
        Value::Number(number) => add(&number.to_string()),
        Value::String(text) if path[..] == ["scope"] => text.split_whitespace().for_each(add),
        Value::String(text) => add(text),
        Value::Array(items) => {
            for item in items {
                // Lists of lists have no names for their elements.
                if !item.is_array() {
                    flatten(path, item, values)?;
                }
            }
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                path.push(name);
                flatten(path, value, values)?;
                path.pop();
            }
        }
    }
    Ok(())
}

fn reason(kind: &ErrorKind) -> TokenError {
    match kind {
        ErrorKind::ExpiredSignature => TokenError::Expired,
        ErrorKind::ImmatureSignature => TokenError::NotYetValid,
        ErrorKind::InvalidAudience => TokenError::Audience,
        ErrorKind::InvalidIssuer => TokenError::Issuer,
        ErrorKind::MissingRequiredClaim(claim) | ErrorKind::InvalidClaimFormat(claim) => {
            match claim.as_str() {
                "exp" => TokenError::Expired,
                "nbf" => TokenError::NotYetValid,
                "aud" => TokenError::Audience,
                _ => TokenError::Issuer,
            }
        }
        ErrorKind::InvalidAlgorithm => TokenError::Algorithm,
        ErrorKind::Base64(_) | ErrorKind::Json(_) | ErrorKind::Utf8(_) => TokenError::Malformed,
        _ => TokenError::Signature,
    }
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
