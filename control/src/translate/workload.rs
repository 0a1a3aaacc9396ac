//! Pods.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::Arc,
};

use seine_objects::{
    Enrolment, ObjectKey, ObjectSet, enrolment,
    k8s_openapi::api::core::v1::{Node, Pod},
    pods,
};
use seine_proto::{
    extensions::{BoundPort, WorkloadExtension},
    workload::{
        Extension, Locality, NetworkMode, TunnelProtocol, Workload, WorkloadStatus, WorkloadType,
    },
};

use super::{Resources, Settings, any, service};
use crate::ip_bytes;

/// Name of the extension that carries [`WorkloadExtension`].
pub const WORKLOAD_EXTENSION: &str = "seine.dev/workload";
/// Annotation of a pod; `false` leaves its DNS queries alone. The node agent reads it too.
pub const DNS_ANNOTATION: &str = "seine.dev/dns-capture";

/// The pods that became workloads.
pub(super) struct Pods {
    pub(super) list: Vec<TranslatedPod>,
    /// Places in `list` by address; pods of the host network are not in it.
    pub(super) by_address: HashMap<IpAddr, usize>,
    pub(super) by_key: HashMap<ObjectKey, usize>,
}

pub(super) struct TranslatedPod {
    pub(super) uid: String,
    pub(super) key: ObjectKey,
    pub(super) object: Arc<Pod>,
    pub(super) enrolled: bool,
}

/// Every pod that has an address and has not finished.
pub(super) fn translate(
    objects: &ObjectSet,
    services: &BTreeMap<ObjectKey, service::Translated>,
    settings: &Settings,
    resources: &mut Resources,
) -> Pods {
    let mut services_of: HashMap<&str, Vec<&service::Translated>> = HashMap::new();
    for (key, service) in services {
        services_of.entry(&key.namespace).or_default().push(service);
    }
    let mut found = Pods {
        list: Vec::new(),
        by_address: HashMap::new(),
        by_key: HashMap::new(),
    };
    for (key, object) in &objects.pods {
        if pods::is_finished(object) {
            continue;
        }
        let enrolment = enrolment(objects, &key.namespace, object, &settings.enrolment);
        if let Enrolment::Refused(reason) = &enrolment {
            resources
                .findings
                .refused_pods
                .insert(key.clone(), reason.clone());
        }
        let addresses = pods::addresses(object);
        if addresses.is_empty() {
            continue;
        }
        let mut workload = pod(key, object, &addresses, objects, settings);
        workload.tunnel_protocol = match enrolment.is_enrolled() {
            true => TunnelProtocol::Hbone.into(),
            false => TunnelProtocol::None.into(),
        };
        for service in services_of
            .get(key.namespace.as_str())
            .into_iter()
            .flatten()
        {
            if service::selects(&service.object, object) {
                let ports = service::ports_at(&service.object, object);
                workload.services.insert(service.key.clone(), ports);
            }
        }
        let index = found.list.len();
        found.by_key.insert(key.clone(), index);
        if !pods::is_host_network(object) {
            // A pod that ends may still be there while its address is another's already.
            for address in addresses {
                let held = found
                    .by_address
                    .get(&address)
                    .map(|held| &found.list[*held].object);
                if held.is_none_or(|holder| pods::is_terminating(holder)) {
                    found.by_address.insert(address, index);
                }
            }
        }
        found.list.push(TranslatedPod {
            uid: workload.uid.clone(),
            key: key.clone(),
            object: object.clone(),
            enrolled: enrolment.is_enrolled(),
        });
        resources.workloads.insert(workload.uid.clone(), workload);
    }
    found
}

/// Without tunnel protocol, services and policies.
fn pod(
    key: &ObjectKey,
    object: &Pod,
    addresses: &[IpAddr],
    objects: &ObjectSet,
    settings: &Settings,
) -> Workload {
    let (workload_type, workload_name) = owner(key, object);
    let label = |name: &str| object.metadata.labels.as_ref()?.get(name).cloned();
    let first = |names: [&str; 3]| names.into_iter().find_map(label);
    let node = pods::node(object).unwrap_or_default();
    let healthy = pods::is_ready(object) && !pods::is_terminating(object);
    Workload {
        uid: format!(
            "{}//Pod/{}/{}",
            settings.cluster_id, key.namespace, key.name
        ),
        name: key.name.clone(),
        namespace: key.namespace.clone(),
        addresses: addresses.iter().copied().map(ip_bytes).collect(),
        network: settings.network.clone(),
        trust_domain: match settings.trust_domain.as_str() {
            "cluster.local" => String::new(),
            other => other.into(),
        },
        service_account: pods::service_account(object).into(),
        node: node.into(),
        canonical_name: first([
            "service.istio.io/canonical-name",
            "app.kubernetes.io/name",
            "app",
        ])
        .unwrap_or_else(|| workload_name.clone()),
        canonical_revision: first([
            "service.istio.io/canonical-revision",
            "app.kubernetes.io/version",
            "version",
        ])
        .unwrap_or_else(|| "latest".into()),
        workload_type: workload_type.into(),
        workload_name,
        status: match healthy {
            true => WorkloadStatus::Healthy.into(),
            false => WorkloadStatus::Unhealthy.into(),
        },
        cluster_id: settings.cluster_id.clone(),
        locality: objects.node(node).and_then(locality),
        network_mode: match pods::is_host_network(object) {
            true => NetworkMode::HostNetwork.into(),
            false => NetworkMode::Standard.into(),
        },
        ..Default::default()
    }
}

/// What runs the pod, as far as the wire can name it; else the pod itself.
fn owner(key: &ObjectKey, pod: &Pod) -> (WorkloadType, String) {
    let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
    let itself = (WorkloadType::Pod, key.name.clone());
    let Some(owner) = owners.iter().find(|owner| owner.controller == Some(true)) else {
        return itself;
    };
    match owner.kind.as_str() {
        "ReplicaSet" => {
            let hash = pod
                .metadata
                .labels
                .as_ref()
                .and_then(|l| l.get("pod-template-hash"));
            let deployment = hash
                .and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'))
                .filter(|name| !name.is_empty());
            deployment.map_or(itself, |name| (WorkloadType::Deployment, name.into()))
        }
        // A CronJob names its Jobs by itself and the minute.
        "Job" => match owner.name.rsplit_once('-') {
            Some((cron, minute))
                if (8..=10).contains(&minute.len())
                    && minute.bytes().all(|byte| byte.is_ascii_digit()) =>
            {
                (WorkloadType::Cronjob, cron.into())
            }
            _ => (WorkloadType::Job, owner.name.clone()),
        },
        "Deployment" => (WorkloadType::Deployment, owner.name.clone()),
        _ => itself,
    }
}

/// The place of a node by its labels.
pub(super) fn locality(node: &Node) -> Option<Locality> {
    let label = |name: &str| {
        let labels = node.metadata.labels.as_ref();
        labels
            .and_then(|labels| labels.get(name))
            .cloned()
            .unwrap_or_default()
    };
    let locality = Locality {
        region: label("topology.kubernetes.io/region"),
        zone: label("topology.kubernetes.io/zone"),
        subzone: label("topology.istio.io/subzone"),
    };
    (locality != Locality::default()).then_some(locality)
}

/// What only we say of a workload: with the ports that waypoints alone may reach, which are known last.
pub(super) fn extension(pod: &Pod, bound_ports: Vec<BoundPort>) -> Option<Extension> {
    let spec = pod.spec.as_ref()?;
    let annotations = pod.metadata.annotations.as_ref();
    let extension = WorkloadExtension {
        bound_ports,
        pod_hostname: spec.hostname.clone().unwrap_or_default(),
        pod_subdomain: spec.subdomain.clone().unwrap_or_default(),
        dns_opt_out: annotations
            .and_then(|annotations| annotations.get(DNS_ANNOTATION))
            .is_some_and(|value| value == "false"),
    };
    (extension != WorkloadExtension::default()).then(|| Extension {
        name: WORKLOAD_EXTENSION.into(),
        config: Some(any("seine.workload.v1.WorkloadExtension", &extension)),
    })
}
