//! What a Gateway asks of its clients in TLS (GEP-91).

use serde::{Deserialize, Serialize};

use super::{CoreRef, Gateway};

/// TLS of a whole Gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GatewayTls {
    /// Of its clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frontend: Option<Frontend>,
}

/// Of clients.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Frontend {
    /// At the ports that have none of their own.
    pub default: FrontendTls,
    /// At single ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub per_port: Vec<PortTls>,
}

/// Of the clients at a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PortTls {
    /// The port.
    pub port: u16,
    /// In the place of the default.
    pub tls: FrontendTls,
}

/// Of the clients at a port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct FrontendTls {
    /// The certificates that they show; without it none is asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validation: Option<ClientValidation>,
}

/// Which certificates of clients are good.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientValidation {
    /// ConfigMaps with certificate authorities.
    pub ca_certificate_refs: Vec<CoreRef>,
    /// `AllowValidOnly`, the default, or `AllowInsecureFallback`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
}

impl Gateway {
    /// What is asked of the clients at a port.
    pub fn client_validation(&self, port: u16) -> Option<&ClientValidation> {
        let frontend = self.spec.tls.as_ref()?.frontend.as_ref()?;
        let own = frontend.per_port.iter().find(|own| own.port == port);
        let tls = own.map_or(&frontend.default, |own| &own.tls);
        tls.validation.as_ref()
    }

    /// All that is asked of clients, whatever the port.
    pub fn client_validations(&self) -> impl Iterator<Item = &ClientValidation> {
        let frontend = self.spec.tls.as_ref().and_then(|tls| tls.frontend.as_ref());
        frontend.into_iter().flat_map(|frontend| {
            let own = frontend.per_port.iter().map(|own| &own.tls);
            let all = std::iter::once(&frontend.default).chain(own);
            all.filter_map(|tls| tls.validation.as_ref())
        })
    }
}
