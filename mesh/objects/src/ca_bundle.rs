//! ConfigMaps, as far as they have certificate authorities. Of others nothing is kept.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// A ConfigMap.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CaBundle {
    #[serde(default)]
    metadata: ObjectMeta,
    #[serde(default)]
    data: Data,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Data {
    #[serde(rename = "ca.crt", default, skip_serializing_if = "Option::is_none")]
    authorities: Option<String>,
}

impl CaBundle {
    /// Certificates in PEM; `None`: it has none.
    pub fn authorities(&self) -> Option<&str> {
        self.data.authorities.as_deref()
    }

    /// As the API has it.
    pub(crate) fn to_value(&self) -> Value {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": self.metadata, "data": self.data})
    }
}
