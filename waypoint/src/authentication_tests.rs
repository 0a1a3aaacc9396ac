use std::slice;

use http::Request;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
use serde_json::{Value, json};

use super::*;

/// An issuer with a key.
struct Signer {
    name: &'static str,
    key: EncodingKey,
}

impl Signer {
    fn new(name: &'static str) -> Self {
        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let key = EncodingKey::from_ec_pem(pem.as_bytes()).unwrap();
        Self { name, key }
    }

    fn sign(&self, more: Value) -> String {
        let mut claims =
            json!({"iss": self.name, "sub": "alice", "exp": get_current_timestamp() + 600});
        let more = more.as_object().unwrap().clone();
        claims.as_object_mut().unwrap().extend(more);
        encode(&Header::new(Algorithm::ES256), &claims, &self.key).unwrap()
    }

    /// A rule for its tokens, as the control plane sends it.
    fn rule(&self) -> wire::JwtRule {
        let key = Jwk::from_encoding_key(&self.key, Algorithm::ES256).unwrap();
        wire::JwtRule {
            issuer: self.name.into(),
            jwks: json!({"keys": [key]}).to_string(),
            ..wire::JwtRule::default()
        }
    }
}

/// What becomes of a request with these rules: the principal, and what is left of it.
struct Outcome {
    principal: Option<String>,
    headers: HeaderMap,
    query: Option<String>,
}

fn judge(
    rules: &[wire::JwtRule],
    uri: &str,
    headers: &[(&str, &str)],
) -> Result<Outcome, TokenError> {
    let sets = KeySets::default();
    let rules: Vec<Rule> = rules
        .iter()
        .map(|rule| Rule::parse(rule, &sets).unwrap())
        .collect();
    let rules: Vec<&Rule> = rules.iter().collect();
    let mut builder = Request::builder().uri(uri).header("host", "web");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    let mut parts = builder.body(()).unwrap().into_parts().0;
    let mut head = Head::read(&parts).unwrap();
    let presented = presented(&rules, &head, &parts.headers)?;
    strip_claims(&rules, &mut parts.headers);
    let mut verified = None;
    if let Some((place, token)) = presented {
        let claimed = token::unverified(&token)?;
        let candidates = candidates(&rules, &place, &claimed).into_iter();
        let with_keys = candidates.map(|rule| match &rule.keys {
            KeySource::Here(keys) => (rule, keys.clone()),
            KeySource::Published(_) => panic!("nobody publishes here"),
        });
        let (rule, found) = verify(&rules, &with_keys.collect::<Vec<_>>(), &token)?;
        accept(rule, &found, &place, &token, &mut head, &mut parts.headers);
        verified = Some(found);
    }
    Ok(Outcome {
        principal: verified.and_then(|verified| verified.principal),
        headers: parts.headers,
        query: head.query,
    })
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

#[test]
fn a_token_is_looked_for_where_the_rule_says_and_taken_away_unless_it_says_otherwise() {
    let signer = Signer::new("https://a");
    let token = signer.sign(json!({}));
    let text = bearer(&token);
    let alice = Some("https://a/alice");

    let found = judge(&[signer.rule()], "/?a=b", &[("authorization", &text)]).unwrap();
    assert_eq!(found.principal.as_deref(), alice);
    assert!(!found.headers.contains_key(AUTHORIZATION));
    // In another scheme there is no token, and it is none of ours to take away.
    for other in ["Basic YTpi", &token, &format!("Bearers {token}")] {
        let found = judge(&[signer.rule()], "/", &[("authorization", other)]).unwrap();
        assert_eq!(found.principal, None, "{other}");
        assert!(found.headers.contains_key(AUTHORIZATION), "{other}");
    }
    let both = [("authorization", "Basic YTpi"), ("authorization", &text)];
    let found = judge(&[signer.rule()], "/", &both).unwrap();
    assert_eq!(found.headers[AUTHORIZATION], "Basic YTpi");
    for empty in ["Bearer", "bearer ", "Bearer  "] {
        let found = judge(&[signer.rule()], "/", &[("authorization", empty)]);
        assert_eq!(found.err(), Some(TokenError::Malformed), "{empty:?}");
    }

    let elsewhere = wire::JwtRule {
        from_headers: vec![wire::TokenHeader {
            name: "x-token".into(),
            prefix: "JWT ".into(),
        }],
        from_params: vec!["t k".into()],
        ..signer.rule()
    };
    let found = judge(
        slice::from_ref(&elsewhere),
        "/",
        &[("x-token", &format!("jwt {token}"))],
    );
    assert_eq!(found.unwrap().principal.as_deref(), alice);
    let found = judge(
        slice::from_ref(&elsewhere),
        &format!("/?a=b&t%20k={token}&c"),
        &[],
    )
    .unwrap();
    assert_eq!(found.principal.as_deref(), alice);
    assert_eq!(found.query.as_deref(), Some("a=b&c"));
    let found = judge(&[elsewhere], "/", &[("authorization", &text)]).unwrap();
    assert_eq!(found.principal, None);

    let forward = wire::JwtRule {
        forward: true,
        ..signer.rule()
    };
    let found = judge(&[forward], "/", &[("authorization", &text)]).unwrap();
    assert_eq!(found.headers[AUTHORIZATION], text.as_str());
}

#[test]
fn a_request_has_one_token() {
    let signer = Signer::new("https://a");
    let (one, other) = (signer.sign(json!({})), signer.sign(json!({"sub": "bob"})));
    let (one, text) = (bearer(&one), bearer(&other));
    let everywhere = wire::JwtRule {
        from_headers: vec![wire::TokenHeader {
            name: "authorization".into(),
            prefix: "Bearer ".into(),
        }],
        from_params: vec!["t".into()],
        ..signer.rule()
    };
    let judged = |uri: &str, headers: &[(&str, &str)]| {
        let rules = [everywhere.clone(), signer.rule()];
        judge(&rules, uri, headers).map(|found| found.principal)
    };
    let in_query = format!("/?t={other}");
    for (uri, headers) in [
        (&*in_query, &[("authorization", &*one)][..]),
        ("/", &[("authorization", &one), ("authorization", &text)]),
        (&format!("/?t={other}&t={other}"), &[]),
    ] {
        assert_eq!(
            judged(uri, headers),
            Err(TokenError::Several),
            "{headers:?}"
        );
    }
    assert_eq!(judged(&in_query, &[]), Ok(Some("https://a/bob".into())));
    let alice = judged("/", &[("authorization", &one)]);
    assert_eq!(alice, Ok(Some("https://a/alice".into())));
}

#[test]
fn of_several_issuers_each_has_its_own_keys_and_none_speaks_for_another() {
    let (a, b) = (Signer::new("https://a"), Signer::new("https://a/b"));
    let rules = [a.rule(), b.rule()];
    let judged = |token: &str| {
        let found = judge(&rules, "/", &[("authorization", &bearer(token))]);
        found.map(|found| found.principal.unwrap())
    };
    assert_eq!(judged(&a.sign(json!({}))), Ok("https://a/alice".into()));
    assert_eq!(judged(&b.sign(json!({}))), Ok("https://a/b/alice".into()));
    let forged = a.sign(json!({"iss": "https://a/b"}));
    assert_eq!(judged(&forged), Err(TokenError::Signature));
    let foreign = Signer::new("https://c").sign(json!({}));
    assert_eq!(judged(&foreign), Err(TokenError::Issuer));
    // By its principal this would be a subject of the other one.
    let ambiguous = a.sign(json!({"sub": "b/alice"}));
    assert_eq!(judged(&ambiguous), Err(TokenError::Subject));
    assert_eq!(
        judged(&a.sign(json!({"sub": "bb/c"}))),
        Ok("https://a/bb/c".into())
    );
    // Of two rules on one issuer any may accept.
    let strict = wire::JwtRule {
        audiences: vec!["web".into()],
        ..a.rule()
    };
    let token = a.sign(json!({"aud": "other"}));
    let text = bearer(&token);
    let found = judge(slice::from_ref(&strict), "/", &[("authorization", &text)]);
    assert_eq!(found.err(), Some(TokenError::Audience));
    assert!(judge(&[strict, a.rule()], "/", &[("authorization", &text)]).is_ok());
}

#[test]
fn headers_of_claims_are_the_tokens_and_nobody_elses() {
    let signer = Signer::new("https://a");
    let path = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    let told = |header: &str, names: &[&str]| wire::ClaimHeader {
        header: header.into(),
        path: path(names),
    };
    let rule = wire::JwtRule {
        claim_headers: vec![
            told("x-user", &["sub"]),
            told("x-groups", &["groups"]),
            told("x-bent", &["bent"]),
        ],
        ..signer.rule()
    };
    let token = signer.sign(json!({"groups": ["a", "b"], "bent": "a\r\nx-user: root"}));
    let spoofed = [
        ("x-user", "root"),
        ("X_User", "root"),
        ("x-groups", "wheel"),
        ("x-other", "stays"),
    ];
    let text = bearer(&token);
    let with_token = [&spoofed[..], &[("authorization", &text)]].concat();
    let found = judge(slice::from_ref(&rule), "/", &with_token)
        .unwrap()
        .headers;
    assert_eq!(found["x-user"], "alice");
    let groups: Vec<_> = found.get_all("x-groups").iter().collect();
    assert_eq!(groups, ["a", "b"]);
    assert!(!found.contains_key("x_user") && !found.contains_key("x-bent"));
    assert_eq!(found["x-other"], "stays");
    // Without a token, too.
    let found = judge(&[rule], "/", &spoofed).unwrap().headers;
    assert!(!found.contains_key("x-user") && !found.contains_key("x-groups"));
}

#[test]
fn a_bad_rule_is_refused_and_leaves_the_earlier_in_force_and_an_unknown_name_is_missing() {
    let held = Authentications::default();
    let resource = |version: &str, rule: wire::JwtRule| Resource {
        name: "shop/a".into(),
        version: version.into(),
        resource: Some(prost_types::Any {
            type_url: String::new(),
            value: RequestAuthentication {
                rules: vec![rule],
                refused: String::new(),
            }
            .encode_to_vec(),
        }),
        ..Resource::default()
    };
    let names: [Arc<str>; 1] = ["shop/a".into()];
    assert_eq!(held.all(names.iter()).unwrap_err()[..], names);
    let rule = Signer::new("https://a").rule();
    assert_eq!(held.apply(&[resource("1", rule.clone())], &[]), []);
    assert_eq!(held.all(names.iter()).unwrap().len(), 1);
    let bad = wire::JwtRule {
        jwks: "{}".into(),
        ..rule
    };
    let refused = held.apply(&[resource("2", bad)], &[]);
    assert!(
        refused[0].problem.starts_with("rules[0]: jwks: "),
        "{refused:?}"
    );
    assert_eq!(held.versions()["shop/a"], "1");
    assert_eq!(held.apply(&[], &["shop/a".to_owned()]), []);
    assert!(held.all(names.iter()).is_err());
}
