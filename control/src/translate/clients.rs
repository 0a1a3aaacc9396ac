//! What a Gateway asks of its clients in TLS: the authorities of their certificates.

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use seine_objects::gateway::{ClientValidation, CoreRef, Gateway, Listener};
use seine_objects::{ObjectKey, ObjectSet};
use seine_proto::waypoint as wire;

use super::ingress::Because;

/// Whoever has no good certificate is let in all the same.
const FALLBACK: &str = "AllowInsecureFallback";

/// What is asked of a listener's clients.
#[derive(Debug, Default)]
pub(super) struct Clients {
    /// Why the listener is none.
    pub(super) refused: Option<Because>,
    /// Which reference leads nowhere.
    pub(super) unresolved: Option<Because>,
    /// Without it nothing is.
    pub(super) message: Option<wire::ClientCertificates>,
}

/// What is asked of the clients of a listener where TLS ends. With a reference that leads nowhere it isn't served, also where
/// others are good: some clients would be let in and others not, by a mistake that nobody sees.
pub(super) fn of(
    objects: &ObjectSet,
    key: &ObjectKey,
    gateway: &Gateway,
    listener: &Listener,
) -> Clients {
    let Some(wanted) = gateway.client_validation(listener.port) else {
        return Clients::default();
    };
    let name = &listener.name;
    let refuse = |reason, message: String| Clients {
        refused: Some(Because::new(reason, message)),
        ..Clients::default()
    };
    let optional = match wanted.mode.as_deref() {
        None | Some("AllowValidOnly") => false,
        Some(FALLBACK) => true,
        Some(mode) => {
            let message = format!(
                "listener {name}: mode {mode} of client certificates is neither AllowValidOnly nor {FALLBACK}"
            );
            return refuse("UnsupportedValue", message);
        }
    };
    let read = wanted.ca_certificate_refs.iter();
    let read = read.map(|reference| authorities(objects, key, reference));
    let (good, bad): (Vec<_>, Vec<_>) = read.partition(Result::is_ok);
    let authorities: Vec<Vec<u8>> = good.into_iter().flatten().flatten().collect();
    let unresolved = bad.into_iter().find_map(Result::err);
    let refused = authorities.is_empty().then(|| {
        let message = format!("listener {name}: no certificate authority of clients is known");
        Because::new("NoValidCACertificate", message)
    });
    Clients {
        refused,
        unresolved,
        message: Some(wire::ClientCertificates {
            authorities,
            optional,
        }),
    }
}

/// Whether some port of a Gateway lets in clients whose certificates are not good.
pub(crate) fn is_insecure(gateway: &Gateway) -> bool {
    let of_fallback = |wanted: &ClientValidation| wanted.mode.as_deref() == Some(FALLBACK);
    gateway.client_validations().any(of_fallback)
}

/// The certificates of a ConfigMap, in DER.
fn authorities(
    objects: &ObjectSet,
    gateway: &ObjectKey,
    reference: &CoreRef,
) -> Result<Vec<Vec<u8>>, Because> {
    let key = reference.config_map(&gateway.namespace).ok_or_else(|| {
        let kind = reference.kind.as_deref().unwrap_or("none");
        let message = format!(
            "certificate authorities of clients: {} is no ConfigMap but of kind {kind}",
            reference.name
        );
        Because::new("InvalidCACertificateKind", message)
    })?;
    // Whether it is there is for those to know who may refer to it.
    if !objects.is_granted("Gateway", &gateway.namespace, "ConfigMap", &key) {
        let message = format!(
            "ConfigMap {key} is of another namespace, and no ReferenceGrant there admits a Gateway of {}",
            gateway.namespace
        );
        return Err(Because::new("RefNotPermitted", message));
    }
    read(objects, &key).map_err(|why| Because::new("InvalidCACertificateRef", why))
}

/// The certificates of a ConfigMap in DER: at least one, and all of them good as roots.
pub(super) fn read(objects: &ObjectSet, key: &ObjectKey) -> Result<Vec<Vec<u8>>, String> {
    let bundle = objects.config_maps.get(key).ok_or_else(|| {
        format!("ConfigMap {key} is not there, or the control plane may not read it: see docs/INGRESS.md")
    })?;
    let text = bundle.authorities();
    let text = text.ok_or_else(|| format!("ConfigMap {key} has no ca.crt"))?;
    let not_pem = |_| format!("ConfigMap {key}: ca.crt is no certificate in PEM");
    let found = CertificateDer::pem_slice_iter(text.as_bytes());
    let found: Vec<_> = found.collect::<Result<_, _>>().map_err(not_pem)?;
    let mut roots = RootCertStore::empty();
    let (_, bad) = roots.add_parsable_certificates(found.iter().cloned());
    match (bad, found.is_empty()) {
        (0, false) => Ok(found.iter().map(|one| one.to_vec()).collect()),
        (_, true) => Err(format!("ConfigMap {key}: ca.crt has no certificate")),
        _ => Err(format!(
            "ConfigMap {key}: ca.crt has a certificate that is no X.509"
        )),
    }
}

#[cfg(test)]
mod tests {
    use seine_objects::k8s_openapi::ByteString;
    use serde_json::{Value, json};

    use super::super::ingress::{Because, State, listeners};
    use super::*;

    fn authority() -> String {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().pem()
    }

    fn bundle(namespace: &str, name: &str, data: Value) -> Value {
        json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": name, "namespace": namespace}, "data": data,
        })
    }

    /// What is said of the listeners of ports 443 and 8443, as `refused unresolved`, and how many authorities are sent.
    fn said(frontend: Value) -> Vec<(String, Option<(usize, bool)>)> {
        let own = rcgen::generate_simple_self_signed(vec!["a".to_owned()]).unwrap();
        let tls = json!({"certificateRefs": [{"name": "own"}]});
        let gateway = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {"name": "gw", "namespace": "shop"},
            "spec": {
                "gatewayClassName": "seine", "tls": {"frontend": frontend},
                "listeners": [
                    {"name": "a", "port": 443, "protocol": "HTTPS", "tls": tls},
                    {"name": "b", "port": 8443, "protocol": "TLS", "tls": tls},
                    {"name": "c", "port": 80, "protocol": "HTTP"},
                ],
            },
        });
        let objects = [
            gateway,
            json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "own", "namespace": "shop"},
                "type": "kubernetes.io/tls",
                "data": {
                    "tls.crt": ByteString(own.cert.pem().into_bytes()),
                    "tls.key": ByteString(own.signing_key.serialize_pem().into_bytes()),
                },
            }),
            bundle(
                "shop",
                "good",
                json!({"ca.crt": authority() + &authority()}),
            ),
            bundle("shop", "empty", json!({"ca.crt": ""})),
            bundle("shop", "other", json!({"other": "x"})),
            bundle(
                "shop",
                "odd",
                json!({"ca.crt": "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"}),
            ),
            bundle("team", "good", json!({"ca.crt": authority()})),
        ];
        let yaml = objects.map(|object| object.to_string()).join("\n---\n");
        let (objects, problems) = ObjectSet::from_yaml(&yaml);
        assert_eq!(problems, []);
        let key = ObjectKey::new("shop", "gw");
        let states = listeners(&objects, &key, &objects.gateways[&key]);
        assert!(states[2].is_served());
        let states = states.iter().take(2);
        let reason = |because: &Option<Because>| because.as_ref().map_or("-", |why| why.reason);
        let one = |state: &State<'_>| {
            let clients = state.clients.as_ref().filter(|_| state.is_served());
            (
                format!("{} {}", reason(&state.refused), reason(&state.unresolved)),
                clients.map(|clients| (clients.authorities.len(), clients.optional)),
            )
        };
        states.map(one).collect()
    }

    fn validation(names: &[Value], mode: Option<&str>) -> Value {
        json!({"validation": {"caCertificateRefs": names, "mode": mode}})
    }

    fn named(name: &str) -> Value {
        json!({"group": "", "kind": "ConfigMap", "name": name})
    }

    #[test]
    fn a_port_has_its_own_rules_or_the_default() {
        let default = validation(&[named("good")], None);
        let both = said(json!({"default": default}));
        assert_eq!(both, vec![("- -".into(), Some((2, false))); 2]);
        let own = validation(&[named("good")], Some("AllowInsecureFallback"));
        let own = said(json!({"default": default, "perPort": [{"port": 8443, "tls": own}]}));
        assert_eq!(own[1], ("- -".into(), Some((2, true))));
        let none = said(json!({"default": default, "perPort": [{"port": 8443, "tls": {}}]}));
        assert_eq!(none[1], ("- -".into(), None));
    }

    #[test]
    fn a_listener_whose_authorities_are_not_known_is_not_served() {
        let invalid = "NoValidCACertificate InvalidCACertificateRef";
        for (names, expected) in [
            (vec![named("gone")], invalid),
            (vec![named("empty")], invalid),
            (vec![named("other")], invalid),
            (vec![named("odd")], invalid),
            (
                vec![json!({"group": "", "kind": "Service", "name": "good"})],
                "NoValidCACertificate InvalidCACertificateKind",
            ),
            (
                vec![
                    json!({"group": "", "kind": "ConfigMap", "name": "good", "namespace": "team"}),
                ],
                "NoValidCACertificate RefNotPermitted",
            ),
            (vec![], "NoValidCACertificate -"),
            // Some are good.
            (
                vec![named("good"), named("gone")],
                "- InvalidCACertificateRef",
            ),
        ] {
            let is = said(json!({"default": validation(&names, None)}));
            assert_eq!(is, vec![(expected.into(), None); 2], "{names:?}");
        }
        let odd = said(json!({"default": validation(&[named("good")], Some("Maybe"))}));
        assert_eq!(odd[0].0, "UnsupportedValue -");
    }
}
