//! Who calls: bearer tokens of service accounts.
//!
//! [`Authenticator`] is the one door: a signing key whose public half is known
//! ([`JwtAuthenticator`]) in a lab, the API server's TokenReview ([`TokenReviewer`]) in a cluster. Called by the xDS
//! server for each stream and by the certificate authority for each request.
//!
//! # Claims
//!
//! A token has the layout of Kubernetes' bound service account tokens, signed with ES256:
//!
//! ```json
//! {
//!   "iss": "seine-lab",
//!   "aud": ["seine-control"],
//!   "sub": "system:serviceaccount:seine-system:seine-ztunnel",
//!   "iat": 1800000000, "nbf": 1800000000, "exp": 1800003600,
//!   "kubernetes.io": {
//!     "namespace": "seine-system",
//!     "serviceaccount": { "name": "seine-ztunnel", "uid": "…" },
//!     "pod": { "name": "seine-ztunnel-x7", "uid": "…" },
//!     "node": { "name": "node1", "uid": "…" }
//!   }
//! }
//! ```
//!
//! `exp`, `iss`, `aud` and `kubernetes.io` must be there; `sub`, where it is, must name the same
//! account; `pod` and `node` are optional, but a node proxy without `node` gets no certificates.

mod token_review;

use std::fmt;

use futures::future::BoxFuture;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, errors::ErrorKind};
use serde::Deserialize;
use tonic::Status;
use tonic::metadata::MetadataMap;

pub use token_review::TokenReviewer;

/// Clocks may differ by this many seconds.
const LEEWAY: u64 = 10;

/// No token is longer; Kubernetes' have about 1200 characters.
const MAX_TOKEN: usize = 16 * 1024;

/// Turns a token into whom it was given to.
pub trait Authenticator: Send + Sync + 'static {
    /// Who holds this token, if it is valid now.
    fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Caller, AuthnError>>;
}

/// A service account, and the pod and node that its token is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The account's namespace.
    pub namespace: String,
    /// The account's name.
    pub service_account: String,
    /// The pod that the token is bound to.
    pub pod: Option<PodRef>,
    /// The node that this pod runs on.
    pub node: Option<String>,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRef {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
}

impl Caller {
    /// `namespace/name` of the account.
    pub fn account(&self) -> String {
        format!("{}/{}", self.namespace, self.service_account)
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.service_account)?;
        if let Some(pod) = &self.pod {
            write!(f, " (pod {})", pod.name)?;
        }
        if let Some(node) = &self.node {
            write!(f, " on {node}")?;
        }
        Ok(())
    }
}

/// Why a token says nothing. The caller is at fault, except for [`Self::Unavailable`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthnError {
    /// No `authorization: Bearer …`.
    #[error("no bearer token")]
    Missing,
    /// Not a token at all, or one without the claims that are needed.
    #[error("the token can't be used: {0}")]
    Malformed(String),
    /// Signed by another key or in another way.
    #[error("the token's signature is not that of the issuer's key")]
    Forged,
    /// Past its end.
    #[error("the token has expired")]
    Expired,
    /// Before its start.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// Meant for another server.
    #[error("the token is for another audience")]
    WrongAudience,
    /// Given by another issuer.
    #[error("the token is of another issuer")]
    WrongIssuer,
    /// Whoever judges tokens can't be asked; the same token may be accepted later.
    #[error("tokens can't be checked now: {0}")]
    Unavailable(String),
}

impl AuthnError {
    /// What a gRPC client is told.
    pub fn status(&self) -> Status {
        match self {
            Self::Unavailable(_) => Status::unavailable(self.to_string()),
            _ => Status::unauthenticated(self.to_string()),
        }
    }
}

/// The caller of a request with these headers.
///
/// # Errors
///
/// When there is no token or it is refused.
pub async fn caller(
    authenticator: &dyn Authenticator,
    headers: &MetadataMap,
) -> Result<Caller, AuthnError> {
    let token = bearer(headers)?.to_owned();
    authenticator.authenticate(&token).await
}

/// The token in `authorization: Bearer …`.
fn bearer(headers: &MetadataMap) -> Result<&str, AuthnError> {
    let mut values = headers.get_all("authorization").iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return Err(AuthnError::Missing);
    };
    let value = value.to_str().map_err(|_| AuthnError::Missing)?;
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() => {
            Ok(token.trim())
        }
        _ => Err(AuthnError::Missing),
    }
}

/// Tokens that were signed by one known key.
pub struct JwtAuthenticator {
    key: DecodingKey,
    rules: Validation,
}

impl JwtAuthenticator {
    /// Accepts tokens of `issuer` for `audience`, signed (ES256) by the key whose public half is
    /// in `public_key` (PEM).
    ///
    /// # Errors
    ///
    /// [`AuthnError::Malformed`] if that is no P-256 public key.
    pub fn new(public_key: &[u8], issuer: &str, audience: &str) -> Result<Self, AuthnError> {
        let key = DecodingKey::from_ec_pem(public_key)
            .map_err(|error| AuthnError::Malformed(format!("public key: {error}")))?;
        let mut rules = Validation::new(Algorithm::ES256);
        rules.set_issuer(&[issuer]);
        rules.set_audience(&[audience]);
        rules.set_required_spec_claims(&["exp", "iss", "aud"]);
        rules.validate_nbf = true;
        rules.leeway = LEEWAY;
        Ok(Self { key, rules })
    }

    fn judge(&self, token: &str) -> Result<Caller, AuthnError> {
        if token.len() > MAX_TOKEN {
            return Err(AuthnError::Malformed(format!(
                "longer than {MAX_TOKEN} bytes"
            )));
        }
        let claims = jsonwebtoken::decode::<Claims>(token, &self.key, &self.rules)
            .map_err(|error| match error.kind() {
                ErrorKind::InvalidSignature
                | ErrorKind::InvalidAlgorithm
                | ErrorKind::InvalidAlgorithmName => AuthnError::Forged,
                ErrorKind::ExpiredSignature => AuthnError::Expired,
                ErrorKind::ImmatureSignature => AuthnError::NotYetValid,
                ErrorKind::InvalidAudience => AuthnError::WrongAudience,
                ErrorKind::InvalidIssuer => AuthnError::WrongIssuer,
                ErrorKind::MissingRequiredClaim(claim) => {
                    AuthnError::Malformed(format!("claim `{claim}` is missing"))
                }
                _ => AuthnError::Malformed("it is no token of a service account".into()),
            })?
            .claims;
        let bound = claims.kubernetes;
        let account = format!(
            "system:serviceaccount:{}:{}",
            bound.namespace, bound.serviceaccount.name
        );
        if claims.sub.is_some_and(|sub| sub != account) {
            return Err(AuthnError::Malformed(
                "`sub` and `kubernetes.io` differ".into(),
            ));
        }
        Ok(Caller {
            namespace: bound.namespace,
            service_account: bound.serviceaccount.name,
            pod: bound.pod.map(|pod| PodRef {
                name: pod.name,
                uid: pod.uid,
            }),
            node: bound.node.map(|node| node.name),
        })
    }
}

impl Authenticator for JwtAuthenticator {
    fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Caller, AuthnError>> {
        Box::pin(std::future::ready(self.judge(token)))
    }
}

impl fmt::Debug for JwtAuthenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtAuthenticator")
            .field("issuer", &self.rules.iss)
            .field("audience", &self.rules.aud)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Claims {
    sub: Option<String>,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Bound,
}

#[derive(Deserialize)]
struct Bound {
    namespace: String,
    serviceaccount: Object,
    pod: Option<Object>,
    node: Option<Object>,
}

#[derive(Deserialize)]
struct Object {
    name: String,
    #[serde(default)]
    uid: String,
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use jsonwebtoken::{EncodingKey, Header};
    use serde_json::{Value, json};

    use super::*;

    /// An issuer of tokens with a key of its own.
    pub(crate) struct TestIssuer(rcgen::KeyPair);

    impl TestIssuer {
        pub(crate) fn new() -> Self {
            Self(rcgen::KeyPair::generate().unwrap())
        }

        pub(crate) fn authenticator(&self) -> JwtAuthenticator {
            let pem = self.0.public_key_pem();
            JwtAuthenticator::new(pem.as_bytes(), "seine-lab", "seine-control").unwrap()
        }

        pub(crate) fn sign(&self, claims: &Value) -> String {
            let key = EncodingKey::from_ec_pem(self.0.serialize_pem().as_bytes()).unwrap();
            jsonwebtoken::encode(&Header::new(Algorithm::ES256), claims, &key).unwrap()
        }

        pub(crate) fn token(&self, account: &str, node: Option<&str>) -> String {
            self.sign(&claims(account, node))
        }
    }

    fn claims(account: &str, node: Option<&str>) -> Value {
        let (namespace, name) = account.split_once('/').unwrap();
        let mut claims = json!({
            "iss": "seine-lab",
            "aud": ["seine-control"],
            "sub": format!("system:serviceaccount:{namespace}:{name}"),
            "nbf": now() - 5,
            "exp": now() + 600,
            "kubernetes.io": {
                "namespace": namespace,
                "serviceaccount": { "name": name, "uid": "1" },
                "pod": { "name": "p", "uid": "2" },
            }
        });
        if let Some(node) = node {
            claims["kubernetes.io"]["node"] = json!({ "name": node });
        }
        claims
    }

    fn now() -> u64 {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs()
    }

    #[test]
    fn a_good_token_names_account_pod_and_node() {
        let issuer = TestIssuer::new();
        let token = issuer.token("seine-system/seine-ztunnel", Some("node1"));
        let caller = issuer.authenticator().judge(&token).unwrap();
        assert_eq!(caller.account(), "seine-system/seine-ztunnel");
        assert_eq!(caller.node.as_deref(), Some("node1"));
        assert_eq!(caller.pod.unwrap().uid, "2");
    }

    #[test]
    fn each_bad_claim_is_refused_for_its_reason() {
        let issuer = TestIssuer::new();
        let judge = |change: &dyn Fn(&mut Value)| {
            let mut claims = claims("a/b", None);
            change(&mut claims);
            issuer
                .authenticator()
                .judge(&issuer.sign(&claims))
                .map(drop)
        };
        assert_eq!(judge(&|_| ()), Ok(()));
        assert_eq!(
            judge(&|c| c["exp"] = json!(now() - 20)),
            Err(AuthnError::Expired)
        );
        assert_eq!(
            judge(&|c| c["nbf"] = json!(now() + 60)),
            Err(AuthnError::NotYetValid)
        );
        assert_eq!(
            judge(&|c| c["aud"] = json!(["other"])),
            Err(AuthnError::WrongAudience)
        );
        assert_eq!(
            judge(&|c| c["iss"] = json!("other")),
            Err(AuthnError::WrongIssuer)
        );
        for claim in ["exp", "iss", "aud", "kubernetes.io"] {
            let refused = judge(&|c| {
                c.as_object_mut().unwrap().remove(claim);
            });
            assert!(
                matches!(refused, Err(AuthnError::Malformed(_))),
                "{claim}: {refused:?}"
            );
        }
        let other = judge(&|c| c["sub"] = json!("system:serviceaccount:a:other"));
        assert!(matches!(other, Err(AuthnError::Malformed(_))), "{other:?}");
    }

    #[test]
    fn a_token_that_the_key_did_not_sign_is_forged() {
        let (issuer, other) = (TestIssuer::new(), TestIssuer::new());
        let judge = |token: &str| issuer.authenticator().judge(token).map(drop);
        assert_eq!(judge(&other.token("a/b", None)), Err(AuthnError::Forged));

        let good = issuer.token("a/b", None);
        let (_, rest) = good.split_once('.').unwrap();
        let (payload, _) = rest.split_once('.').unwrap();
        // The public key as if it were a shared secret: the classic confusion of algorithms.
        let secret = EncodingKey::from_secret(issuer.0.public_key_pem().as_bytes());
        let confused = jsonwebtoken::encode(
            &Header::new(Algorithm::HS256),
            &claims("a/b", None),
            &secret,
        );
        assert_eq!(judge(&confused.unwrap()), Err(AuthnError::Forged));
        // `{"alg":"none"}`
        assert!(judge(&format!("eyJhbGciOiJub25lIn0.{payload}.")).is_err());
        for garbage in ["", ".", "..", "a.b.c", "\u{fffd}"] {
            assert!(
                matches!(judge(garbage), Err(AuthnError::Malformed(_))),
                "{garbage}"
            );
        }
        assert!(matches!(
            judge(&"x".repeat(20_000)),
            Err(AuthnError::Malformed(_))
        ));
    }

    #[test]
    fn exactly_one_bearer_header_is_wanted() {
        let headers = |values: &[&str]| {
            let mut map = MetadataMap::new();
            for value in values {
                map.append("authorization", value.parse().unwrap());
            }
            map
        };
        assert_eq!(bearer(&headers(&["Bearer abc"])), Ok("abc"));
        assert_eq!(bearer(&headers(&["bearer abc"])), Ok("abc"));
        for bad in [
            &[][..],
            &["Bearer a", "Bearer b"],
            &["Basic abc"],
            &["Bearer "],
            &["abc"],
        ] {
            assert_eq!(bearer(&headers(bad)), Err(AuthnError::Missing), "{bad:?}");
        }
    }
}
