//! Istio's `PeerAuthentication`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{IstioObject, WorkloadSelector};
use crate::policy::{Errors, FieldError, MeshTls, MeshTlsSpec, Mode, PortMode};

/// Whether pods take connections outside of mutual TLS.
pub type PeerAuthentication = IstioObject<PeerAuthenticationSpec>;

/// What a [`PeerAuthentication`] says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PeerAuthenticationSpec {
    /// Pods of this namespace; without labels all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// Mode of every port that is not named below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MutualTls>,
    /// Modes by the port on which the pod listens; only with labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub port_level_mtls: BTreeMap<String, MutualTls>,
}

/// A mode, as Istio wraps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MutualTls {
    /// The mode.
    #[serde(default)]
    pub mode: TlsMode,
}

/// Whether plaintext is accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum TlsMode {
    /// As the next wider policy says.
    #[default]
    Unset,
    /// Plaintext alone. In ambient there is no such thing: as `PERMISSIVE`.
    Disable,
    /// Plaintext too.
    Permissive,
    /// Mutual TLS alone.
    Strict,
}

impl TlsMode {
    fn to_mode(self) -> Option<Mode> {
        match self {
            Self::Unset => None,
            Self::Disable | Self::Permissive => Some(Mode::Permissive),
            Self::Strict => Some(Mode::Strict),
        }
    }
}

impl PeerAuthentication {
    /// It selects some pods of its namespace.
    pub fn has_labels(&self) -> bool {
        let selector = self.spec.selector.as_ref();
        selector.is_some_and(|selector| !selector.match_labels.is_empty())
    }

    /// It asks for plaintext alone somewhere.
    pub fn disables(&self) -> bool {
        let ports = self.spec.port_level_mtls.values();
        let mut all = self.spec.mtls.iter().chain(ports);
        all.any(|tls| tls.mode == TlsMode::Disable)
    }

    /// What it says in our own terms, which have the same precedence. It may say nothing: neither mode nor ports.
    pub fn to_mesh_tls(&self) -> MeshTls {
        let ports = self.spec.port_level_mtls.iter().filter_map(|(port, tls)| {
            let (port, mode) = (port.parse().ok()?, tls.mode.to_mode()?);
            Some(PortMode { port, mode })
        });
        let selector = self.spec.selector.as_ref().filter(|_| self.has_labels());
        MeshTls {
            metadata: self.metadata.clone(),
            spec: MeshTlsSpec {
                mode: self.spec.mtls.and_then(|tls| tls.mode.to_mode()),
                selector: selector.map(WorkloadSelector::to_selector),
                ports: ports.collect(),
            },
            status: None,
        }
    }

    /// Everything that is wrong with it.
    pub fn validate(&self) -> Vec<FieldError> {
        let mut errors = Errors::default();
        if let Some(selector) = &self.spec.selector {
            selector.validate("spec.selector", &mut errors);
        }
        if !self.spec.port_level_mtls.is_empty() && !self.has_labels() {
            errors.add("spec.portLevelMtls", "only with labels in the selector");
        }
        for port in self.spec.port_level_mtls.keys() {
            if !port.parse::<u16>().is_ok_and(|port| port != 0) {
                let message = format!("{port:?} is no port: use 1 to 65535");
                errors.add("spec.portLevelMtls", message);
            }
        }
        errors.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(spec: &str) -> PeerAuthentication {
        let text = format!("metadata: {{name: p}}\nspec: {spec}");
        serde_saphyr::from_str(&text).unwrap()
    }

    #[test]
    fn modes_become_ours_and_what_is_unset_stays_open() {
        use Mode::{Permissive, Strict};
        type Ports = &'static [(u16, Mode)];
        let cases: [(&str, Option<Mode>, Ports); 6] = [
            ("{}", None, &[]),
            ("{mtls: {}}", None, &[]),
            ("{mtls: {mode: STRICT}}", Some(Strict), &[]),
            ("{mtls: {mode: DISABLE}}", Some(Permissive), &[]),
            (
                "{selector: {matchLabels: {a: b}}, mtls: {mode: STRICT}, portLevelMtls: {'80': {mode: DISABLE}, '81': {mode: UNSET}}}",
                Some(Strict),
                &[(80, Permissive)],
            ),
            (
                "{selector: {matchLabels: {a: b}}, portLevelMtls: {80: {mode: STRICT}}}",
                None,
                &[(80, Strict)],
            ),
        ];
        for (spec, mode, ports) in cases {
            let read = read(spec);
            assert_eq!(read.validate(), [], "{spec}");
            let ours = read.to_mesh_tls().spec;
            let found: Vec<_> = ours
                .ports
                .iter()
                .map(|port| (port.port, port.mode))
                .collect();
            assert_eq!((ours.mode, &*found), (mode, ports), "{spec}");
            assert_eq!(ours.selector.is_some(), spec.contains("selector"));
        }
        assert!(read("{selector: {}}").to_mesh_tls().spec.selector.is_none());
    }

    #[test]
    fn ports_need_labels_and_to_be_ports() {
        for spec in [
            "{portLevelMtls: {'80': {mode: STRICT}}}",
            "{selector: {}, portLevelMtls: {'80': {mode: STRICT}}}",
            "{selector: {matchLabels: {a: b}}, portLevelMtls: {'0': {mode: STRICT}}}",
            "{selector: {matchLabels: {a: b}}, portLevelMtls: {http: {mode: STRICT}}}",
        ] {
            assert_eq!(
                read(spec).validate()[0].field,
                "spec.portLevelMtls",
                "{spec}"
            );
        }
    }
}
