//! Who is in the mesh.
//!
//! One pure function answers for node agent and control plane, so that a pod is told to the
//! proxies as meshed exactly if the agent of its node captures it.

use k8s_openapi::api::core::v1::{Namespace, Pod};
use thiserror::Error;

use crate::{ObjectKey, ObjectSet, pods};

/// The label of a namespace that opts in ([`ENABLED`]), or of a pod that opts out ([`DISABLED`]).
pub const MESH_LABEL: &str = "seine.dev/mesh";
/// Value of [`MESH_LABEL`] that opts a namespace in.
pub const ENABLED: &str = "enabled";
/// Value of [`MESH_LABEL`] that opts a pod out.
pub const DISABLED: &str = "disabled";

const ISTIO_MODE_LABEL: &str = "istio.io/dataplane-mode";
const ISTIO_REDIRECTION: &str = "ambient.istio.io/redirection";
const GATEWAY_LABELS: [&str; 3] = [
    "gateway.networking.k8s.io/gateway-name",
    "gateway.istio.io/managed",
    "istio.io/gateway-name",
];
/// Annotations that an injector leaves on a pod, and whose they are.
const SIDECAR_ANNOTATIONS: [(&str, &str); 4] = [
    ("sidecar.istio.io/status", "Istio"),
    ("linkerd.io/proxy-version", "Linkerd"),
    ("kuma.io/sidecar-injected", "Kuma"),
    ("consul.hashicorp.com/connect-inject-status", "Consul"),
];
const SIDECAR_CONTAINERS: [&str; 4] = [
    "istio-proxy",
    "linkerd-proxy",
    "kuma-sidecar",
    "consul-dataplane",
];

/// Beginnings of the names by which nodes know runtimes that have a kernel of their own (gVisor, Kata, Firecracker,
/// libkrun, unikernels).
pub const SANDBOXED: [&str; 9] = [
    "gvisor",
    "runsc",
    "kata",
    "firecracker",
    "aws.firecracker",
    "krun",
    "quark",
    "urunc",
    "runnc",
];

/// What decides beside the objects; the same for agent and control plane of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnrolmentSettings {
    /// Take `istio.io/dataplane-mode=ambient` for an opt-in too (`none` on a pod opts out).
    pub istio_alias: bool,
    /// Beginnings of the names of runtime classes, and of their handlers, whose sockets are not the host kernel's.
    pub sandboxed_runtimes: Vec<String>,
}

impl EnrolmentSettings {
    /// The default, and further sandboxed runtimes.
    pub fn also_sandboxed(runtimes: Vec<String>) -> Self {
        let mut settings = Self::default();
        // An empty one would begin every name.
        let named = runtimes.into_iter().filter(|start| !start.is_empty());
        settings.sandboxed_runtimes.extend(named);
        settings
    }
}

impl Default for EnrolmentSettings {
    fn default() -> Self {
        Self {
            istio_alias: false,
            sandboxed_runtimes: SANDBOXED.map(String::from).to_vec(),
        }
    }
}

/// Whether a pod is in the mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Enrolment {
    /// Its connections are captured and it is reached over HBONE.
    Enrolled,
    /// Nobody asked for it.
    NotOptedIn,
    /// Asked for and impossible; the user must be told.
    Refused(Refusal),
}

impl Enrolment {
    /// The pod is in the mesh.
    pub fn is_enrolled(&self) -> bool {
        *self == Self::Enrolled
    }
}

/// Why a pod that opted in can't be enrolled.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// Its sockets are the node's own.
    #[error("the pod uses the host's network namespace, which is never enrolled")]
    HostNetwork,
    /// A sidecar captures its connections already.
    #[error("the pod has a sidecar proxy of {0}; remove the injection first")]
    Sidecar(String),
    /// A waypoint or an ingress or egress gateway: it speaks HBONE itself.
    #[error("the pod is a gateway or waypoint (label {0})")]
    Gateway(&'static str),
    /// Its sockets live in another kernel, where redirection can't see them.
    #[error("runtime class {0} is sandboxed: its sockets are not the host kernel's")]
    SandboxedRuntime(String),
    /// Another mesh's agent redirects it.
    #[error("another mesh's agent has enrolled the pod (annotation {0})")]
    OtherMesh(&'static str),
    /// No Linux pod.
    #[error("the pod's operating system is {0:?}")]
    OperatingSystem(String),
}

/// Whether `pod` of `namespace` is in the mesh. A namespace that isn't known opts nobody in.
///
/// It doesn't ask whether the pod has finished: see [`pods::is_finished`].
pub fn enrolment(
    objects: &ObjectSet,
    namespace: &str,
    pod: &Pod,
    settings: &EnrolmentSettings,
) -> Enrolment {
    if !opted_in(objects.namespace(namespace), pod, settings) {
        return Enrolment::NotOptedIn;
    }
    match refusal(objects, pod, settings) {
        Some(refusal) => Enrolment::Refused(refusal),
        None => Enrolment::Enrolled,
    }
}

/// Whether the namespace's labels put its pods in the mesh, but for those that opt out themselves.
pub fn namespace_opted_in(namespace: &Namespace, settings: &EnrolmentSettings) -> bool {
    let label = |name: &str| namespace.metadata.labels.as_ref()?.get(name);
    match label(MESH_LABEL).map(String::as_str) {
        Some(ENABLED) => true,
        // Any other value of our own label is an answer too: the alias doesn't overrule it.
        Some(_) => false,
        None => {
            settings.istio_alias && label(ISTIO_MODE_LABEL).is_some_and(|mode| mode == "ambient")
        }
    }
}

fn opted_in(namespace: Option<&Namespace>, pod: &Pod, settings: &EnrolmentSettings) -> bool {
    let Some(namespace) = namespace else {
        return false;
    };
    let of_pod = |label: &str| pod.metadata.labels.as_ref()?.get(label).map(String::as_str);
    if of_pod(MESH_LABEL) == Some(DISABLED) || !namespace_opted_in(namespace, settings) {
        return false;
    }
    let labels = namespace.metadata.labels.as_ref();
    let by_alias = labels.is_none_or(|labels| !labels.contains_key(MESH_LABEL));
    !(by_alias && of_pod(ISTIO_MODE_LABEL) == Some("none"))
}

fn refusal(objects: &ObjectSet, pod: &Pod, settings: &EnrolmentSettings) -> Option<Refusal> {
    let annotation = |name: &str| pod.metadata.annotations.as_ref()?.get(name);
    let label = |name: &str| pod.metadata.labels.as_ref()?.get(name);
    if pods::is_host_network(pod) {
        return Some(Refusal::HostNetwork);
    }
    if annotation(ISTIO_REDIRECTION).is_some_and(|value| value == "enabled") {
        return Some(Refusal::OtherMesh(ISTIO_REDIRECTION));
    }
    let injected = SIDECAR_ANNOTATIONS
        .iter()
        .find(|(name, _)| annotation(name).is_some());
    if let Some((_, mesh)) = injected {
        return Some(Refusal::Sidecar((*mesh).into()));
    }
    if let Some(name) = GATEWAY_LABELS
        .into_iter()
        .find(|name| label(name).is_some())
    {
        return Some(Refusal::Gateway(name));
    }
    let spec = pod.spec.as_ref()?;
    let containers = spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten());
    for container in containers {
        if SIDECAR_CONTAINERS.contains(&container.name.as_str()) {
            return Some(Refusal::Sidecar(format!("container {:?}", container.name)));
        }
    }
    if let Some(class) = &spec.runtime_class_name
        && let Some(runtime) = sandboxed(objects, class, settings)
    {
        return Some(Refusal::SandboxedRuntime(runtime));
    }
    let os = spec
        .os
        .as_ref()
        .map(|os| os.name.as_str())
        .filter(|name| *name != "linux");
    os.map(|name| Refusal::OperatingSystem(name.into()))
}

/// The class, and its handler where that tells, if its runtime is sandboxed. A class without an object has a name
/// alone: the API server admits no pod of one, so it was deleted since, and its pods run on as they are.
fn sandboxed(objects: &ObjectSet, class: &str, settings: &EnrolmentSettings) -> Option<String> {
    let is_sandboxed = |name: &str| {
        let mut starts = settings.sandboxed_runtimes.iter();
        starts.any(|start| name.starts_with(start.as_str()))
    };
    if is_sandboxed(class) {
        return Some(format!("{class:?}"));
    }
    let object = objects.runtime_classes.get(&ObjectKey::cluster(class))?;
    let handler = &object.handler;
    is_sandboxed(handler).then(|| format!("{class:?} (handler {handler:?})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn namespace(labels: serde_json::Value) -> Namespace {
        serde_json::from_value(json!({"metadata": {"name": "shop", "labels": labels}})).unwrap()
    }

    fn pod(metadata: serde_json::Value, spec: serde_json::Value) -> Pod {
        let mut spec = spec;
        spec.as_object_mut()
            .unwrap()
            .entry("containers")
            .or_insert(json!([{"name": "app"}]));
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    fn in_namespace(
        namespace: Option<Namespace>,
        pod: &Pod,
        settings: &EnrolmentSettings,
    ) -> Enrolment {
        let mut objects = ObjectSet::default();
        if let Some(namespace) = namespace {
            let key = ObjectKey::cluster("shop");
            objects.namespaces.insert(key, namespace.into());
        }
        for (class, handler) in [
            ("secure", "runsc-kvm"),
            ("fast", "crun"),
            ("vm", "kata-clh"),
        ] {
            let object = json!({"metadata": {"name": class}, "handler": handler});
            let (key, object) = crate::parse_object(crate::Kind::RuntimeClass, object).unwrap();
            objects.insert(key, object);
        }
        enrolment(&objects, "shop", pod, settings)
    }

    fn of(labels: serde_json::Value, pod: &Pod) -> Enrolment {
        in_namespace(Some(namespace(labels)), pod, &EnrolmentSettings::default())
    }

    #[test]
    fn a_namespace_opts_in_and_a_pod_opts_out() {
        let enabled = json!({"seine.dev/mesh": "enabled"});
        let plain = pod(json!({}), json!({}));
        assert_eq!(of(enabled.clone(), &plain), Enrolment::Enrolled);
        assert_eq!(of(json!({}), &plain), Enrolment::NotOptedIn);
        assert_eq!(
            of(json!({"seine.dev/mesh": "disabled"}), &plain),
            Enrolment::NotOptedIn
        );
        let out = pod(json!({"labels": {"seine.dev/mesh": "disabled"}}), json!({}));
        assert_eq!(of(enabled, &out), Enrolment::NotOptedIn);
        assert_eq!(
            in_namespace(None, &plain, &EnrolmentSettings::default()),
            Enrolment::NotOptedIn
        );
    }

    #[test]
    fn the_alias_counts_only_where_it_is_set() {
        let ambient = namespace(json!({"istio.io/dataplane-mode": "ambient"}));
        let both =
            namespace(json!({"istio.io/dataplane-mode": "ambient", "seine.dev/mesh": "disabled"}));
        let plain = pod(json!({}), json!({}));
        let none = pod(
            json!({"labels": {"istio.io/dataplane-mode": "none"}}),
            json!({}),
        );
        let off = EnrolmentSettings::default();
        let on = EnrolmentSettings {
            istio_alias: true,
            ..off.clone()
        };
        assert_eq!(
            in_namespace(Some(ambient.clone()), &plain, &off),
            Enrolment::NotOptedIn
        );
        assert_eq!(
            in_namespace(Some(ambient.clone()), &plain, &on),
            Enrolment::Enrolled
        );
        assert_eq!(
            in_namespace(Some(ambient), &none, &on),
            Enrolment::NotOptedIn
        );
        assert_eq!(in_namespace(Some(both), &plain, &on), Enrolment::NotOptedIn);
    }

    #[test]
    fn a_runtime_of_the_hosts_kernel_is_enrolled_and_a_setting_names_others() {
        let enabled = || Some(namespace(json!({"seine.dev/mesh": "enabled"})));
        let mut settings = EnrolmentSettings::also_sandboxed(vec![String::new()]);
        for class in ["fast", "deleted"] {
            let pod = pod(json!({}), json!({"runtimeClassName": class}));
            assert_eq!(
                in_namespace(enabled(), &pod, &settings),
                Enrolment::Enrolled
            );
        }
        settings = EnrolmentSettings::also_sandboxed(vec!["crun".into()]);
        let fast = pod(json!({}), json!({"runtimeClassName": "fast"}));
        let refused = Refusal::SandboxedRuntime("\"fast\" (handler \"crun\")".into());
        assert_eq!(
            in_namespace(enabled(), &fast, &settings),
            Enrolment::Refused(refused)
        );
    }

    #[test]
    fn what_cannot_be_enrolled_is_refused_with_its_reason() {
        let cases = [
            (
                pod(json!({}), json!({"hostNetwork": true})),
                "host's network",
            ),
            (
                pod(
                    json!({"annotations": {"sidecar.istio.io/status": "{}"}}),
                    json!({}),
                ),
                "Istio",
            ),
            (
                pod(
                    json!({}),
                    json!({"containers": [{"name": "linkerd-proxy"}]}),
                ),
                "linkerd-proxy",
            ),
            (
                pod(
                    json!({}),
                    json!({"initContainers": [{"name": "istio-proxy"}]}),
                ),
                "istio-proxy",
            ),
            (
                pod(
                    json!({"labels": {"gateway.networking.k8s.io/gateway-name": "w"}}),
                    json!({}),
                ),
                "gateway",
            ),
            (
                pod(json!({}), json!({"runtimeClassName": "kata-qemu"})),
                "kata-qemu",
            ),
            (
                pod(json!({}), json!({"runtimeClassName": "secure"})),
                "\"secure\" (handler \"runsc-kvm\") is sandboxed",
            ),
            (
                pod(json!({}), json!({"runtimeClassName": "vm"})),
                "\"vm\" (handler \"kata-clh\")",
            ),
            (
                pod(
                    json!({"annotations": {"ambient.istio.io/redirection": "enabled"}}),
                    json!({}),
                ),
                "another mesh",
            ),
            (
                pod(json!({}), json!({"os": {"name": "windows"}})),
                "windows",
            ),
        ];
        for (pod, expected) in cases {
            let Enrolment::Refused(reason) = of(json!({"seine.dev/mesh": "enabled"}), &pod) else {
                panic!("{pod:?} was not refused");
            };
            assert!(reason.to_string().contains(expected), "{reason}");
            assert_eq!(of(json!({}), &pod), Enrolment::NotOptedIn);
        }
    }
}
