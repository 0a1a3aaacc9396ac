//! Tokens that the API server judges (TokenReview, `authentication.k8s.io/v1`).
//!
//! Kubernetes 1.32 and newer name the node of a bound token; where it isn't named, the pod that the
//! token is bound to is looked up among the objects.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout};

use super::{Authenticator, AuthnError, Caller, MAX_TOKEN, PodRef};
use crate::model::Model;

/// A good answer is believed for this long: as long as a deleted pod's token may still serve.
const BELIEVED: Duration = Duration::from_secs(60);
/// Good answers that are kept; a cluster has as many callers as nodes.
const KEPT: usize = 16 * 1024;
/// Reviews that are asked for at once, so that a flood of bad tokens is no flood at the API server.
const AT_ONCE: usize = 16;
/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(5);

const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Asks the API server whose a token is.
pub struct TokenReviewer {
    reviews: Api<TokenReview>,
    audience: String,
    models: watch::Receiver<Arc<Model>>,
    /// By the token's SHA-256.
    good: Mutex<HashMap<[u8; 32], Good>>,
    slots: Semaphore,
}

struct Good {
    caller: Caller,
    until: Instant,
}

impl TokenReviewer {
    /// Accepts tokens for `audience`; `models` have the pods.
    pub fn new(client: Client, audience: &str, models: watch::Receiver<Arc<Model>>) -> Self {
        Self {
            reviews: Api::all(client),
            audience: audience.to_owned(),
            models,
            good: Mutex::default(),
            slots: Semaphore::new(AT_ONCE),
        }
    }

    async fn judge(&self, token: &str) -> Result<Caller, AuthnError> {
        if token.len() > MAX_TOKEN {
            return Err(AuthnError::Malformed(format!(
                "longer than {MAX_TOKEN} bytes"
            )));
        }
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
        if let Some(good) = self.good.lock().get(&hash)
            && Instant::now() < good.until
        {
            return Ok(good.caller.clone());
        }
        let mut caller = self.review(token).await?;
        if caller.node.is_none() {
            caller.node = self.node_of(&caller);
        }
        // A node that is not known yet may be in a moment.
        let settled = caller.node.is_some() || caller.pod.is_none();
        if let Some(left) = left_of(token).filter(|_| settled) {
            let now = Instant::now();
            let mut good = self.good.lock();
            if good.len() >= KEPT {
                good.retain(|_, good| now < good.until);
            }
            if good.len() < KEPT {
                let (caller, until) = (caller.clone(), now + left.min(BELIEVED));
                good.insert(hash, Good { caller, until });
            }
        }
        Ok(caller)
    }

    async fn review(&self, token: &str) -> Result<Caller, AuthnError> {
        let unavailable = |reason: String| AuthnError::Unavailable(reason);
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: token.to_owned(),
                audiences: Some(vec![self.audience.clone()]),
            },
            ..TokenReview::default()
        };
        let asked = async {
            let _slot = self.slots.acquire().await;
            self.reviews.create(&PostParams::default(), &review).await
        };
        let answer = timeout(PATIENCE, asked)
            .await
            .map_err(|_| unavailable(format!("no TokenReview within {PATIENCE:?}")))?
            .map_err(|error| unavailable(format!("TokenReview: {error}")))?;
        let status = answer
            .status
            .ok_or_else(|| unavailable("the TokenReview has no status".into()))?;
        if status.authenticated != Some(true) {
            // The server's words, which name the key or the claim; never the token.
            return Err(refusal(status.error.as_deref().unwrap_or_default()));
        }
        // A server that ignores audiences says for which ones it judged.
        let audiences = status.audiences.unwrap_or_default();
        if !audiences.contains(&self.audience) {
            return Err(AuthnError::WrongAudience);
        }
        let user = status.user.unwrap_or_default();
        caller(&user)
    }

    fn node_of(&self, caller: &Caller) -> Option<String> {
        let bound = caller.pod.as_ref()?;
        let model = self.models.borrow().clone();
        let pod = model.objects.pod(&caller.namespace, &bound.name)?;
        (pod.metadata.uid.as_deref() == Some(&bound.uid))
            .then(|| pod.spec.as_ref()?.node_name.clone())?
    }
}

impl Authenticator for TokenReviewer {
    fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Caller, AuthnError>> {
        Box::pin(self.judge(token))
    }
}

/// Why the API server does not know a token: it says so in words alone.
fn refusal(error: &str) -> AuthnError {
    let says = |word: &str| error.contains(word);
    if says("expired") {
        AuthnError::Expired
    } else if says("not valid yet") {
        AuthnError::NotYetValid
    } else if says("audience") {
        AuthnError::WrongAudience
    } else if says("signature") {
        AuthnError::Forged
    } else if error.is_empty() {
        AuthnError::Malformed("the API server does not know it".into())
    } else {
        AuthnError::Malformed(format!("the API server does not know it: {error}"))
    }
}

fn caller(user: &UserInfo) -> Result<Caller, AuthnError> {
    let name = user.username.as_deref().unwrap_or_default();
    let account = name
        .strip_prefix("system:serviceaccount:")
        .and_then(|account| account.split_once(':'));
    let Some((namespace, service_account)) = account else {
        return Err(AuthnError::Malformed(format!(
            "it is of {name:?}, which is no service account"
        )));
    };
    let extra = |key: &str| -> Option<String> {
        let values = user.extra.as_ref()?.get(key)?;
        match values.as_slice() {
            [one] => Some(one.clone()),
            _ => None,
        }
    };
    let pod = extra(POD_NAME).zip(extra(POD_UID));
    Ok(Caller {
        namespace: namespace.to_owned(),
        service_account: service_account.to_owned(),
        pod: pod.map(|(name, uid)| PodRef { name, uid }),
        node: extra(NODE_NAME),
    })
}

/// How long a token is valid that the API server has just accepted; `None` if it doesn't say.
fn left_of(token: &str) -> Option<Duration> {
    #[derive(Deserialize)]
    struct End {
        exp: u64,
    }
    let end = jsonwebtoken::dangerous::insecure_decode::<End>(token).ok()?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    Duration::from_secs(end.claims.exp).checked_sub(now)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn user(json: serde_json::Value) -> UserInfo {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_bound_token_names_account_pod_and_node() {
        let caller = caller(&user(json!({
            "username": "system:serviceaccount:seine-system:seine-ztunnel",
            "extra": {
                POD_NAME: ["seine-ztunnel-x7"], POD_UID: ["1-2"], NODE_NAME: ["node1"],
                "authentication.kubernetes.io/credential-id": ["JTI=a"],
            },
        })))
        .unwrap();
        assert_eq!(
            caller.to_string(),
            "seine-system/seine-ztunnel (pod seine-ztunnel-x7) on node1"
        );
        assert_eq!(caller.pod.unwrap().uid, "1-2");
    }

    #[test]
    fn who_is_no_service_account_is_refused() {
        for name in ["admin", "system:node:node1", "system:serviceaccount:a", ""] {
            let error = caller(&user(json!({"username": name}))).unwrap_err();
            assert!(matches!(error, AuthnError::Malformed(_)), "{name}: {error}");
        }
    }

    #[test]
    fn a_claim_that_is_there_twice_counts_for_nothing() {
        let caller = caller(&user(json!({
            "username": "system:serviceaccount:a:b",
            "extra": {NODE_NAME: ["node1", "node2"]},
        })))
        .unwrap();
        assert_eq!(caller.node, None);
    }

    #[test]
    fn the_servers_words_become_reasons() {
        for (words, reason) in [
            (
                "[invalid bearer token, token has expired]",
                AuthnError::Expired,
            ),
            ("token is not valid yet", AuthnError::NotYetValid),
            (
                "token audiences [\"x\"] is invalid for the target audiences [\"y\"]",
                AuthnError::WrongAudience,
            ),
            ("invalid signature", AuthnError::Forged),
        ] {
            assert_eq!(refusal(words), reason);
        }
        assert!(matches!(refusal(""), AuthnError::Malformed(_)));
    }
}
