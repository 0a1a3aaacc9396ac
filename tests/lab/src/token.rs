//! The lab's token issuer: what the API server's is in a cluster.
//!
//! Bound service-account tokens, signed ES256. The private key stays in this process, unless a
//! test gives one, to sign tokens that no issuer would.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::json;

use crate::clock::unix_seconds;

/// `iss` of every token.
pub const ISSUER: &str = "seine-lab";
/// `aud` of every token.
pub const AUDIENCE: &str = "seine-control";
/// How long a token is good for; a kubelet renews at four fifths of it.
pub const LIFETIME: Duration = Duration::from_secs(3600);
/// The same of one in a pod's volume, which the lab doesn't renew.
pub const POD_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Environment variable with the path of a private key (PEM, P-256) to sign with.
pub const KEY_VARIABLE: &str = "SEINE_LAB_TOKEN_KEY";

/// Whom a token is for.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Namespace of account and pod.
    pub namespace: String,
    /// The service account.
    pub service_account: String,
    /// Name of the pod.
    pub pod: String,
    /// Uid of the pod.
    pub pod_uid: String,
    /// Name of the node.
    pub node: String,
}

/// Signs tokens.
pub struct Issuer {
    key: EncodingKey,
    public_key: PathBuf,
}

impl Issuer {
    /// Makes a key, or reads the one that [`KEY_VARIABLE`] names, and writes its public half to
    /// `directory`.
    pub fn create(directory: &Path) -> Result<Self> {
        let pair = match std::env::var_os(KEY_VARIABLE) {
            Some(path) => {
                let text = fs::read_to_string(&path)
                    .with_context(|| format!("reading {}", path.display()))?;
                KeyPair::from_pem(&text)?
            }
            None => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?,
        };
        let key = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes())?;
        let public_key = directory.join("issuer.pem");
        fs::write(&public_key, pair.public_key_pem())
            .with_context(|| format!("writing {}", public_key.display()))?;
        Ok(Self { key, public_key })
    }

    /// The PEM file of the public key.
    pub fn public_key(&self) -> &Path {
        &self.public_key
    }

    /// A token for `subject`, good for `lifetime`.
    pub fn issue(&self, subject: &Subject, lifetime: Duration) -> Result<String> {
        let now = unix_seconds(SystemTime::now());
        let Subject {
            namespace,
            service_account,
            pod,
            pod_uid,
            node,
        } = subject;
        let claims = json!({
            "iss": ISSUER,
            "aud": [AUDIENCE],
            "sub": format!("system:serviceaccount:{namespace}:{service_account}"),
            "iat": now,
            "nbf": now,
            "exp": now + lifetime.as_secs(),
            "kubernetes.io": {
                "namespace": namespace,
                "serviceaccount": {
                    "name": service_account,
                    "uid": format!("{namespace}-{service_account}"),
                },
                "pod": {"name": pod, "uid": pod_uid},
                "node": {"name": node, "uid": node},
            },
        });
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.key)
            .context("signing a token")
    }

    /// Writes a token to `path`, replacing what is there in one step.
    pub fn write(&self, subject: &Subject, path: &Path) -> Result<()> {
        let next = path.with_extension("next");
        fs::write(&next, self.issue(subject, LIFETIME)?)
            .and_then(|()| fs::rename(&next, path))
            .with_context(|| format!("writing {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{DecodingKey, Validation};
    use serde_json::Value;

    #[test]
    fn a_token_checks_against_the_public_key_and_names_pod_and_node() {
        let directory = tempfile::tempdir().unwrap();
        let issuer = Issuer::create(directory.path()).unwrap();
        let subject = Subject {
            namespace: "seine-system".into(),
            service_account: "seine-ztunnel".into(),
            pod: "z".into(),
            pod_uid: "u".into(),
            node: "node1".into(),
        };
        let token = issuer.issue(&subject, LIFETIME).unwrap();
        let key = DecodingKey::from_ec_pem(&fs::read(issuer.public_key()).unwrap()).unwrap();
        let mut rules = Validation::new(Algorithm::ES256);
        rules.set_audience(&[AUDIENCE]);
        rules.set_issuer(&[ISSUER]);
        let claims = jsonwebtoken::decode::<Value>(&token, &key, &rules)
            .unwrap()
            .claims;
        assert_eq!(
            claims["sub"],
            "system:serviceaccount:seine-system:seine-ztunnel"
        );
        assert_eq!(claims["kubernetes.io"]["node"]["name"], "node1");
    }
}
