//! The parts of a Gateway.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where a Gateway takes connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// Its port.
    pub port: u16,
    /// What is spoken there: of a waypoint `HBONE`.
    pub protocol: String,
}

/// Of the objects that are made for a Gateway (GEP-1867).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Infrastructure {
    /// On each of them.
    pub labels: BTreeMap<String, String>,
    /// On each of them.
    pub annotations: BTreeMap<String, String>,
    /// An object with further settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameters_ref: Option<ParametersRef>,
}

/// An object with further settings of a Gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParametersRef {
    /// Its API group.
    #[serde(default)]
    pub group: String,
    /// Its kind.
    pub kind: String,
    /// Its name, in the Gateway's namespace.
    pub name: String,
}
