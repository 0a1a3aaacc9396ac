//! What a Gateway or policy names of the core group: a Secret or a ConfigMap.

use serde::{Deserialize, Serialize};

use crate::ObjectKey;

/// An object of the core group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CoreRef {
    /// By default the core group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Of certificates with their keys by default `Secret`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// By default that of whoever names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

impl CoreRef {
    /// The Secret; `namespace` is that of whoever names it.
    pub fn secret(&self, namespace: &str) -> Option<ObjectKey> {
        self.of_kind(
            "Secret",
            self.kind.as_deref().unwrap_or("Secret"),
            namespace,
        )
    }

    /// The ConfigMap; `namespace` is that of whoever names it.
    pub fn config_map(&self, namespace: &str) -> Option<ObjectKey> {
        self.of_kind(
            "ConfigMap",
            self.kind.as_deref().unwrap_or_default(),
            namespace,
        )
    }

    fn of_kind(&self, wanted: &str, kind: &str, namespace: &str) -> Option<ObjectKey> {
        let group = self.group.as_deref().unwrap_or_default();
        let namespace = self.namespace.as_deref().unwrap_or(namespace);
        (matches!(group, "" | "core") && kind == wanted)
            .then(|| ObjectKey::new(namespace, &self.name))
    }
}
