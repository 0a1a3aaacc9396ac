//! Backends that speak TLS themselves: which `BackendTLSPolicy` is about a port of a Service, and what becomes of it.
//!
//! Translation and status both ask [`judge`].

use seine_objects::gateway::{AnyRoute, BackendTlsPolicy, TlsTarget};
use seine_objects::{Kind, ObjectKey, ObjectSet};
use seine_proto::waypoint as wire;

use super::ingress::{self, Because, Candidate};
use super::{Claims, clients};

/// What becomes of a policy.
#[derive(Debug)]
pub(crate) struct Judged {
    /// Why it isn't obeyed.
    pub(crate) refused: Option<Because>,
    /// Which reference leads nowhere.
    pub(crate) unresolved: Option<Because>,
    message: wire::BackendTls,
}

/// What a port of a Service speaks by policy; `None`: there is none about it.
pub(super) fn of(objects: &ObjectSet, service: &ObjectKey, port: u16) -> Option<wire::BackendTls> {
    let spec = objects.services.get(service)?.spec.as_ref()?;
    let mut ports = spec.ports.iter().flatten();
    let port = ports.find(|found| found.port == i32::from(port));
    let section = port.and_then(|port| port.name.as_deref());
    // Of a port's own before that of the whole Service.
    let own = section.and_then(|section| first(objects, service, Some(section)));
    let (key, policy) = own.or_else(|| first(objects, service, None))?;
    let judged = judge(objects, key, policy);
    let mut message = judged.message;
    if let Some(why) = judged.refused.or(judged.unresolved) {
        message.refused = format!("BackendTLSPolicy {key}: {}", why.message);
    }
    Some(message)
}

/// Of the policies about a Service, or a port of it, the oldest, then the first by name.
fn first<'a>(
    objects: &'a ObjectSet,
    service: &ObjectKey,
    section: Option<&str>,
) -> Option<(&'a ObjectKey, &'a BackendTlsPolicy)> {
    let policies = objects.backend_tls_policies.iter();
    let of_namespace = policies.filter(|(key, _)| key.namespace == service.namespace);
    let about = of_namespace.filter(|(_, policy)| {
        let mut targets = policy.spec.target_refs.iter();
        targets.any(|target| {
            target.service() == Some(&*service.name) && target.section_name.as_deref() == section
        })
    });
    let oldest = about.min_by_key(|(key, policy)| {
        let created = policy.metadata.creation_timestamp.as_ref();
        (created.is_none(), created.map(|time| time.0), *key)
    });
    oldest.map(|(key, policy)| (key, &**policy))
}

/// What becomes of a policy. With one bad reference, also beside good ones, nothing is sent to its backends: part of them would
/// be taken for strangers.
pub(crate) fn judge(objects: &ObjectSet, key: &ObjectKey, policy: &BackendTlsPolicy) -> Judged {
    let validation = &policy.spec.validation;
    let (mut authorities, mut unresolved) = (Vec::new(), None);
    for reference in &validation.ca_certificate_refs {
        let named = reference.config_map(&key.namespace);
        let read = match named.filter(|_| reference.namespace.is_none()) {
            None => {
                let message = format!("{} is no ConfigMap of its namespace", reference.name);
                Err(Because::new("InvalidKind", message))
            }
            Some(named) => clients::read(objects, &named)
                .map_err(|why| Because::new("InvalidCACertificateRef", why)),
        };
        match read {
            Ok(read) => authorities.extend(read),
            Err(why) => unresolved = unresolved.or(Some(why)),
        }
    }
    let names = &validation.subject_alt_names;
    let of_type = |wanted: &'static str| names.iter().filter(move |name| name.r#type == wanted);
    let hostnames: Vec<String> = match names.is_empty() {
        true => vec![validation.hostname.clone()],
        false => of_type("Hostname")
            .filter_map(|name| name.hostname.clone())
            .collect(),
    };
    let uris: Vec<String> = of_type("URI").filter_map(|name| name.uri.clone()).collect();
    let refused = conflict(objects, key, policy).or_else(|| {
        let invalid = |message: String| Some(Because::new("Invalid", message));
        if let Some(path) = policy.unread().first() {
            return invalid(format!("{path} is not supported"));
        }
        if let Some(target) = policy
            .spec
            .target_refs
            .iter()
            .find(|target| target.service().is_none())
        {
            return invalid(format!(
                "spec.targetRefs: a {} can't be a target: use a Service",
                target.kind
            ));
        }
        if validation.hostname.is_empty() {
            return invalid("spec.validation.hostname is missing".into());
        }
        if !names.is_empty() && hostnames.len() + uris.len() != names.len() {
            return invalid(
                "spec.validation.subjectAltNames: each has a hostname or a uri, by its type".into(),
            );
        }
        authorities.is_empty().then(|| {
            let message = "spec.validation: no certificate authority is known".to_owned();
            Because::new("NoValidCACertificate", message)
        })
    });
    Judged {
        refused,
        unresolved,
        message: wire::BackendTls {
            hostname: validation.hostname.clone(),
            authorities,
            hostnames,
            uris,
            refused: String::new(),
        },
    }
}

/// Another policy is about one of its targets, and comes first.
fn conflict(objects: &ObjectSet, key: &ObjectKey, policy: &BackendTlsPolicy) -> Option<Because> {
    let before = |target: &TlsTarget| {
        let service = ObjectKey::new(&key.namespace, target.service()?);
        let (before, _) = first(objects, &service, target.section_name.as_deref())?;
        (before != key).then_some((service, before))
    };
    let (service, before) = policy.spec.target_refs.iter().find_map(before)?;
    let message = format!("BackendTLSPolicy {before} is about Service {service}, and older");
    Some(Because::new("Conflicted", message))
}

/// The Gateways of ours that send to a policy's targets.
pub(crate) fn gateways(
    objects: &ObjectSet,
    claims: &Claims,
    key: &ObjectKey,
    policy: &BackendTlsPolicy,
) -> Vec<ObjectKey> {
    let targets = policy.spec.target_refs.iter();
    let targets: Vec<&str> = targets.filter_map(TlsTarget::service).collect();
    let leads_there = |route: &AnyRoute<'_>| {
        let backends = objects.route_backends(route.kind, route.key);
        backends.into_iter().any(|backend| {
            let namespace = backend.namespace.as_ref().unwrap_or(&route.key.namespace);
            *namespace == key.namespace && targets.contains(&&*backend.name)
        })
    };
    let mut found = Vec::new();
    // What is passed on as it is is not looked into.
    let routes = objects
        .routes()
        .filter(|route| route.kind != Kind::TlsRoute);
    for route in routes.filter(leads_there) {
        let candidate = Candidate::new(&route, claims);
        for parent in route.parents {
            if let Some((gateway, Ok(_))) = ingress::attach(objects, &candidate, parent) {
                found.push(gateway);
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn authority() -> String {
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().pem()
    }

    fn policy(name: &str, year: u32, section: Option<&str>, validation: Value) -> Value {
        let mut target = json!({"group": "", "kind": "Service", "name": "web"});
        if let Some(section) = section {
            target["sectionName"] = json!(section);
        }
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "BackendTLSPolicy",
            "metadata": {"name": name, "namespace": "shop", "creationTimestamp": format!("{year}-01-01T00:00:00Z")},
            "spec": {"targetRefs": [target], "validation": validation},
        })
    }

    fn validation(hostname: &str) -> Value {
        json!({"hostname": hostname, "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "good"}]})
    }

    fn with(policies: &[Value]) -> ObjectSet {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"ports": [{"name": "a", "port": 443}, {"name": "b", "port": 444}]},
        });
        let bundle = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "good", "namespace": "shop"},
            "data": {"ca.crt": authority()},
        });
        let objects = [&[service, bundle], policies].concat();
        let texts: Vec<_> = objects.iter().map(Value::to_string).collect();
        let (objects, problems) = ObjectSet::from_yaml(&texts.join("\n---\n"));
        assert_eq!(problems, []);
        objects
    }

    #[test]
    fn a_port_s_own_policy_comes_first_then_the_older() {
        let objects = with(&[
            policy("new", 2003, None, validation("new.example")),
            policy("old", 2002, None, validation("old.example")),
            policy("own", 2004, Some("b"), validation("own.example")),
        ]);
        let key = ObjectKey::new("shop", "web");
        let hostname = |port| of(&objects, &key, port).unwrap().hostname;
        assert_eq!(hostname(443), "old.example");
        assert_eq!(hostname(444), "own.example");
        assert!(of(&objects, &ObjectKey::new("shop", "other"), 443).is_none());
        for (name, expected) in [("new", Some("Conflicted")), ("old", None), ("own", None)] {
            let key = ObjectKey::new("shop", name);
            let judged = judge(&objects, &key, &objects.backend_tls_policies[&key]);
            assert_eq!(judged.refused.map(|why| why.reason), expected, "{name}");
        }
    }

    #[test]
    fn nothing_is_sent_to_a_backend_whose_policy_cannot_be_obeyed() {
        let changed = |change: &dyn Fn(&mut Value)| {
            let mut one = policy("p", 2001, None, validation("a.example"));
            change(&mut one["spec"]);
            let objects = with(&[one]);
            let key = ObjectKey::new("shop", "p");
            let judged = judge(&objects, &key, &objects.backend_tls_policies[&key]);
            let message = of(&objects, &ObjectKey::new("shop", "web"), 443).unwrap();
            let reason = |why: Option<Because>| why.map_or("-", |why| why.reason);
            let is_bad = judged.refused.is_some() || judged.unresolved.is_some();
            assert_eq!(message.refused.is_empty(), !is_bad, "{message:?}");
            format!("{} {}", reason(judged.refused), reason(judged.unresolved))
        };
        let refs = |refs: Value| {
            move |spec: &mut Value| spec["validation"]["caCertificateRefs"] = refs.clone()
        };
        let named = |name: &str| json!({"group": "", "kind": "ConfigMap", "name": name});
        assert_eq!(changed(&|_| {}), "- -");
        assert_eq!(
            changed(&refs(json!([named("gone")]))),
            "NoValidCACertificate InvalidCACertificateRef"
        );
        assert_eq!(
            changed(&refs(json!([named("good"), named("gone")]))),
            "- InvalidCACertificateRef"
        );
        assert_eq!(
            changed(&refs(
                json!([{"group": "", "kind": "Secret", "name": "good"}])
            )),
            "NoValidCACertificate InvalidKind"
        );
        assert_eq!(
            changed(&|spec| spec["validation"]["wellKnownCACertificates"] = json!("System")),
            "Invalid -"
        );
        assert_eq!(
            changed(&|spec| spec["options"] = json!({"a": "b"})),
            "Invalid -"
        );
        assert_eq!(
            changed(&|spec| spec["validation"]["subjectAltNames"] = json!([{"type": "Hostname"}])),
            "Invalid -"
        );
    }
}
