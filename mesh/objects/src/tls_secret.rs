//! Secrets, as far as they have the certificates of Gateways. Of others nothing but their type is kept.

use std::fmt;

use k8s_openapi::ByteString;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::policy::FieldError;

/// The type of Secrets with a certificate and its key.
const TLS: &str = "kubernetes.io/tls";

/// A Secret.
#[derive(Clone, PartialEq)]
pub struct TlsSecret {
    metadata: ObjectMeta,
    r#type: String,
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
}

#[derive(Deserialize)]
struct Given {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    data: Data,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Data {
    #[serde(rename = "tls.crt")]
    certificate: ByteString,
    #[serde(rename = "tls.key")]
    key: ByteString,
}

impl TlsSecret {
    /// Reads one as the API has it.
    pub(crate) fn read(value: &Value) -> Result<Self, Vec<FieldError>> {
        let given = Given::deserialize(value).map_err(|_| {
            // The decoder's own words could have a part of the key in them.
            let message = "is not as a Secret has it: base64 by name".to_owned();
            let field = "data".to_owned();
            vec![FieldError { field, message }]
        })?;
        let data = match &*given.r#type {
            TLS => given.data,
            _ => Data::default(),
        };
        Ok(Self {
            metadata: given.metadata,
            r#type: given.r#type,
            certificate: data.certificate.0,
            key: Zeroizing::new(data.key.0),
        })
    }

    /// Certificate chain and key in PEM; `None`: it is of another type.
    pub fn pair(&self) -> Option<(&[u8], &[u8])> {
        (self.r#type == TLS).then_some((&*self.certificate, &**self.key))
    }

    /// As the API has it.
    pub(crate) fn to_value(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": self.metadata, "type": self.r#type,
            "data": {
                "tls.crt": ByteString(self.certificate.clone()),
                "tls.key": ByteString(self.key.to_vec()),
            },
        })
    }
}

impl fmt::Debug for TlsSecret {
    /// Without what is secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsSecret")
            .field("name", &self.metadata.name)
            .field("type", &self.r#type)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ObjectSet;

    #[test]
    fn a_key_is_kept_of_certificates_alone_and_never_shown() {
        let secret = |of_type: &str| {
            let yaml = format!(
                "apiVersion: v1\nkind: Secret\nmetadata: {{name: s, namespace: n}}\ntype: {of_type}\ndata: {{tls.crt: Yw==, tls.key: a2V5, other: eA==}}\n"
            );
            let (set, problems) = ObjectSet::from_yaml(&yaml);
            assert_eq!(problems, []);
            TlsSecret::clone(set.secrets.values().next().unwrap())
        };
        let tls = secret(TLS);
        assert_eq!(tls.pair(), Some((&b"c"[..], &b"key"[..])));
        assert_eq!(TlsSecret::read(&tls.to_value()).unwrap(), tls);
        let shown = format!("{tls:?}");
        assert!(!shown.contains("107") && !shown.contains("key"), "{shown}");
        let opaque = secret("Opaque");
        assert_eq!(opaque.pair(), None);
        assert!(!opaque.to_value().to_string().contains("a2V5"));
    }

    #[test]
    fn what_is_wrong_is_said_without_a_word_of_it() {
        let yaml = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ntype: kubernetes.io/tls\ndata: {tls.key: 'hidden!'}\n";
        let (set, problems) = ObjectSet::from_yaml(yaml);
        assert!(set.secrets.is_empty());
        assert!(!format!("{problems:?}").contains("hidden"));
    }
}
