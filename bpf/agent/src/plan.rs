//! What an enrolled pod's redirection should be: a pure function of the objects.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::redirect::Udp;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Container;
use k8s_openapi::api::core::v1::LifecycleHandler;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::core::v1::Probe;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use seine_objects::Enrolment;
use seine_objects::EnrolmentSettings;
use seine_objects::ObjectSet;
use seine_objects::enrolment;
use seine_objects::enrolment::namespace_opted_in;
use seine_objects::pods;
use serde::Deserialize;
use serde::Serialize;

/// Ports of the pod that its clients reach without the mesh, separated by commas.
pub const EXCLUDE_INBOUND_PORTS: &str = "seine.dev/exclude-inbound-ports";
/// Ports that the pod reaches without the mesh, separated by commas.
pub const EXCLUDE_OUTBOUND_PORTS: &str = "seine.dev/exclude-outbound-ports";
/// Networks that reach the pod without the mesh, as CIDRs separated by commas.
pub const EXCLUDE_INBOUND_CIDRS: &str = "seine.dev/exclude-inbound-cidrs";
/// Networks that the pod reaches without the mesh, as CIDRs separated by commas.
pub const EXCLUDE_OUTBOUND_CIDRS: &str = "seine.dev/exclude-outbound-cidrs";
/// `false`: the pod's DNS queries are left alone.
pub const DNS_CAPTURE: &str = "seine.dev/dns-capture";

/// `drop`: UDP that leaves the pod is dropped, but for DNS and what is excluded; `pass`: it passes.
pub const UDP: &str = "seine.dev/udp";

/// How a pod is redirected; kept on disk, so that an agent that restarts while the pod's object is
/// already gone goes on as before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The pod's service account.
    pub service_account: String,
    /// Destination ports that are not caught.
    pub excluded_outbound_ports: BTreeSet<u16>,
    /// Destination networks that are not caught.
    pub excluded_outbound_networks: BTreeSet<IpNet>,
    /// Ports of the pod that are not steered.
    pub excluded_inbound_ports: BTreeSet<u16>,
    /// Client networks whose connections are not steered.
    #[serde(default)]
    pub excluded_inbound_networks: BTreeSet<IpNet>,
    /// Ports that the kubelet may probe in plaintext.
    pub probed_ports: BTreeSet<u16>,
    /// Whether DNS queries are caught.
    pub dns: bool,
    /// What happens to other datagrams, where the pod says so itself.
    #[serde(default)]
    pub udp: Option<Udp>,
}

/// What should happen to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Desired {
    /// It is part of the mesh.
    Enrolled(Plan),
    /// It is not, for this reason.
    NotEnrolled(String),
    /// Its object is not there: not yet, or no longer. It stays as it is.
    Unknown,
}

/// Decides for the pod of that namespace, name and UID. What is wrong in its annotations comes
/// back in words; the rest of them holds.
pub fn desired(
    objects: &ObjectSet,
    namespace: &str,
    name: &str,
    uid: &str,
    settings: &EnrolmentSettings,
) -> (Desired, Vec<String>) {
    let Some(pod) = objects.pod(namespace, name).filter(|pod| has_uid(pod, uid)) else {
        return (Desired::Unknown, Vec::new());
    };
    // A pod whose namespace is being deleted keeps what it has until its processes are gone.
    if objects.namespace(namespace).is_none() {
        return (Desired::Unknown, Vec::new());
    }
    match enrolment(objects, namespace, pod, settings) {
        Enrolment::Enrolled => {
            let (plan, warnings) = plan(pod);
            (Desired::Enrolled(plan), warnings)
        }
        Enrolment::NotOptedIn => (Desired::NotEnrolled("not opted in".into()), Vec::new()),
        Enrolment::Refused(refusal) => (Desired::NotEnrolled(refusal.to_string()), Vec::new()),
    }
}

/// Could a pod of this namespace be enrolled, as far as the namespace decides?
pub fn may_enrol(namespace: &Namespace, settings: &EnrolmentSettings) -> bool {
    namespace_opted_in(namespace, settings)
}

/// A pod without a UID in a hand-written file is known by its name alone.
fn has_uid(pod: &Pod, uid: &str) -> bool {
    pods::node_uid(pod).is_none_or(|own| own == uid)
}

fn plan(pod: &Pod) -> (Plan, Vec<String>) {
    let mut warnings = Vec::new();
    let empty = BTreeMap::new();
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&empty);
    let dns = match annotations.get(DNS_CAPTURE).map(String::as_str) {
        None | Some("true") => true,
        Some("false") => false,
        Some(other) => {
            warnings.push(format!(
                "annotation {DNS_CAPTURE}: {other:?} is neither true nor false"
            ));
            true
        }
    };
    let udp = annotations.get(UDP).and_then(|text| {
        let parsed = text.parse();
        if parsed.is_err() {
            warnings.push(format!(
                "annotation {UDP}: {text:?} is neither pass nor drop"
            ));
        }
        parsed.ok()
    });
    let plan = Plan {
        service_account: pods::service_account(pod).to_owned(),
        excluded_outbound_ports: list(annotations, EXCLUDE_OUTBOUND_PORTS, &mut warnings),
        excluded_outbound_networks: list(annotations, EXCLUDE_OUTBOUND_CIDRS, &mut warnings),
        excluded_inbound_ports: list(annotations, EXCLUDE_INBOUND_PORTS, &mut warnings),
        excluded_inbound_networks: list(annotations, EXCLUDE_INBOUND_CIDRS, &mut warnings),
        probed_ports: probed_ports(pod, &mut warnings),
        dns,
        udp,
    };
    (plan, warnings)
}

fn list<T: std::str::FromStr + Ord>(
    annotations: &BTreeMap<String, String>,
    name: &str,
    warnings: &mut Vec<String>,
) -> BTreeSet<T> {
    let Some(text) = annotations.get(name) else {
        return BTreeSet::new();
    };
    let entries = text
        .split(',')
        .map(str::trim)
        .filter(|entry| !entry.is_empty());
    let mut parsed = BTreeSet::new();
    for entry in entries {
        match entry.parse() {
            Ok(value) => drop(parsed.insert(value)),
            Err(_) => warnings.push(format!("annotation {name}: {entry:?} is left out")),
        }
    }
    parsed
}

/// Ports of what the kubelet asks of all containers: HTTP, TCP and gRPC probes, and hooks. Names are
/// resolved in their own container.
fn probed_ports(pod: &Pod, warnings: &mut Vec<String>) -> BTreeSet<u16> {
    let mut ports = BTreeSet::new();
    let Some(spec) = &pod.spec else {
        return ports;
    };
    for container in spec
        .containers
        .iter()
        .chain(spec.init_containers.iter().flatten())
    {
        let probes = [
            &container.liveness_probe,
            &container.readiness_probe,
            &container.startup_probe,
        ];
        let probed = probes.into_iter().flatten().flat_map(ports_of);
        let lifecycle = container.lifecycle.as_ref();
        let hooks = lifecycle.map(|hooks| [&hooks.post_start, &hooks.pre_stop]);
        let hooked = hooks
            .into_iter()
            .flatten()
            .flatten()
            .flat_map(ports_of_hook);
        for (port, of) in probed
            .map(|port| (port, "probe"))
            .chain(hooked.map(|port| (port, "hook")))
        {
            match resolve(&port, container) {
                Some(port) => drop(ports.insert(port)),
                None => warnings.push(format!(
                    "container {}: its {of}'s port {port:?} is no port of it",
                    container.name
                )),
            }
        }
    }
    ports
}

fn ports_of(probe: &Probe) -> Vec<IntOrString> {
    let http = probe.http_get.as_ref().map(|action| action.port.clone());
    let tcp = probe.tcp_socket.as_ref().map(|action| action.port.clone());
    let grpc = probe
        .grpc
        .as_ref()
        .map(|action| IntOrString::Int(action.port));
    [http, tcp, grpc].into_iter().flatten().collect()
}

fn ports_of_hook(hook: &LifecycleHandler) -> Vec<IntOrString> {
    let http = hook.http_get.as_ref().map(|action| action.port.clone());
    let tcp = hook.tcp_socket.as_ref().map(|action| action.port.clone());
    [http, tcp].into_iter().flatten().collect()
}

fn resolve(port: &IntOrString, container: &Container) -> Option<u16> {
    let number = match port {
        IntOrString::Int(number) => *number,
        IntOrString::String(text) => {
            let named = container
                .ports
                .iter()
                .flatten()
                .find(|p| p.name.as_deref() == Some(text.as_str()));
            match named {
                Some(named) => named.container_port,
                None => text.parse().ok()?,
            }
        }
    };
    u16::try_from(number).ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objects(annotations: &str, spec: &str) -> ObjectSet {
        let text = format!(
            r#"{{"apiVersion": "v1", "kind": "Namespace", "metadata": {{"name": "shop", "labels": {{"seine.dev/mesh": "enabled"}}}}}}
---
{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "web", "namespace": "shop", "uid": "u1", "annotations": {annotations}}}, "spec": {spec}}}
"#
        );
        let (set, problems) = ObjectSet::from_yaml(&text);
        assert!(problems.is_empty(), "{problems:?}");
        set
    }

    fn decide(set: &ObjectSet, uid: &str) -> (Desired, Vec<String>) {
        desired(set, "shop", "web", uid, &EnrolmentSettings::default())
    }

    const PLAIN: &str = r#"{"containers": [{"name": "app"}]}"#;

    #[test]
    fn annotations_and_probes_make_the_plan() {
        let set = objects(
            r#"{"seine.dev/exclude-outbound-ports": "5432, 6379,",
                "seine.dev/exclude-outbound-cidrs": "10.0.0.0/8,fd00::/8",
                "seine.dev/exclude-inbound-ports": "9090",
                "seine.dev/exclude-inbound-cidrs": "10.2.0.0/16, fd02::/16", "seine.dev/dns-capture": "false", "seine.dev/udp": "drop"}"#,
            r#"{"serviceAccountName": "web", "containers": [
                {"name": "app", "ports": [{"name": "http", "containerPort": 8080}],
                 "livenessProbe": {"httpGet": {"port": "http"}},
                 "readinessProbe": {"tcpSocket": {"port": 8081}},
                 "startupProbe": {"grpc": {"port": 8082}},
                 "lifecycle": {"postStart": {"httpGet": {"port": "http"}}, "preStop": {"httpGet": {"port": 8083}}}}]}"#,
        );
        let (Desired::Enrolled(plan), warnings) = decide(&set, "u1") else {
            panic!("not enrolled");
        };
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(plan.service_account, "web");
        assert_eq!(plan.excluded_outbound_ports, [5432, 6379].into());
        assert_eq!(plan.excluded_outbound_networks.len(), 2);
        assert_eq!(plan.excluded_inbound_ports, [9090].into());
        let clients = ["10.2.0.0/16", "fd02::/16"].map(|text| text.parse().unwrap());
        assert_eq!(plan.excluded_inbound_networks, clients.into());
        assert_eq!(plan.probed_ports, [8080, 8081, 8082, 8083].into());
        assert!(!plan.dns);
        assert_eq!(plan.udp, Some(Udp::Drop));
    }

    #[test]
    fn what_is_wrong_in_an_annotation_is_told_and_the_rest_holds() {
        let set = objects(
            r#"{"seine.dev/exclude-outbound-ports": "x,443,70000", "seine.dev/dns-capture": "no", "seine.dev/udp": "no"}"#,
            r#"{"containers": [{"name": "app", "livenessProbe": {"httpGet": {"port": "nope"}}}]}"#,
        );
        let (Desired::Enrolled(plan), warnings) = decide(&set, "u1") else {
            panic!("not enrolled");
        };
        assert_eq!(plan.excluded_outbound_ports, [443].into());
        assert!(plan.dns);
        assert_eq!(plan.udp, None);
        assert_eq!(warnings.len(), 5, "{warnings:?}");
    }

    #[test]
    fn another_pod_of_the_same_name_decides_nothing() {
        let set = objects("{}", PLAIN);
        assert_eq!(decide(&set, "u2").0, Desired::Unknown);
        assert!(matches!(decide(&set, "u1").0, Desired::Enrolled(_)));
    }

    #[test]
    fn a_refused_pod_carries_its_reason() {
        let set = objects(
            "{}",
            r#"{"hostNetwork": true, "containers": [{"name": "app"}]}"#,
        );
        let (Desired::NotEnrolled(reason), _) = decide(&set, "u1") else {
            panic!("enrolled");
        };
        assert!(reason.contains("host"), "{reason}");
    }
}
