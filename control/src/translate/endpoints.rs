//! Endpoint slices, as far as they say more than the pods: endpoints outside of the cluster, and
//! pods that a service without a selector leads to.

use std::{collections::BTreeMap, net::IpAddr};

use seine_objects::{
    ObjectKey, ObjectSet,
    k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice},
};
use seine_proto::workload::{
    Locality, Port, PortList, TunnelProtocol, Workload, WorkloadStatus, WorkloadType,
};

use super::{Resources, Settings, service, workload};
use crate::ip_bytes;

/// Label of a slice: the service that it belongs to.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Adds services to the pods that slices name, and a workload for every other address.
pub(super) fn translate(
    objects: &ObjectSet,
    services: &BTreeMap<ObjectKey, service::Translated>,
    pods: &workload::Pods,
    settings: &Settings,
    resources: &mut Resources,
) {
    for (key, slice) in &objects.endpoint_slices {
        let labels = slice.metadata.labels.as_ref();
        let Some(name) = labels.and_then(|labels| labels.get(SERVICE_LABEL)) else {
            continue;
        };
        let service = services.get(&ObjectKey::new(&key.namespace, name));
        let Some(service) = service.filter(|_| slice.address_type != "FQDN") else {
            continue;
        };
        let ports = service::ports_of_slice(&service.object, &targets(slice));
        if ports.ports.is_empty() {
            continue;
        }
        for endpoint in slice.endpoints.iter().flatten() {
            let addresses = endpoint
                .addresses
                .iter()
                .filter_map(|text| text.parse().ok());
            for address in addresses {
                add(
                    address, endpoint, key, service, &ports, pods, objects, settings, resources,
                );
            }
        }
    }
}

#[allow(clippy::too_many_arguments, reason = "one loop's body, named")]
fn add(
    address: IpAddr,
    endpoint: &Endpoint,
    slice: &ObjectKey,
    service: &service::Translated,
    ports: &PortList,
    pods: &workload::Pods,
    objects: &ObjectSet,
    settings: &Settings,
    resources: &mut Resources,
) {
    let target = endpoint
        .target_ref
        .as_ref()
        .filter(|target| target.kind.as_deref() == Some("Pod"));
    let pod = target.and_then(|target| {
        let namespace = target.namespace.as_deref().unwrap_or(&slice.namespace);
        pods.by_key
            .get(&ObjectKey::new(namespace, target.name.as_deref()?))
    });
    let pod = pod
        .or_else(|| pods.by_address.get(&address))
        .map(|index| &pods.list[*index]);
    if let Some(workload) = pod.and_then(|pod| resources.workloads.get_mut(&pod.uid)) {
        // What the pod's own labels and ports say is as good, and there first.
        workload
            .services
            .entry(service.key.clone())
            .or_insert_with(|| ports.clone());
        return;
    }
    if target.is_some() {
        // A slice that is older than what is known of its pod: finished, or not there yet.
        return;
    }
    let ready = endpoint
        .conditions
        .as_ref()
        .and_then(|conditions| conditions.ready);
    let status = match ready.unwrap_or(true) {
        true => WorkloadStatus::Healthy,
        false => WorkloadStatus::Unhealthy,
    };
    let uid = format!(
        "{}/discovery.k8s.io/EndpointSlice/{}/{address}",
        settings.cluster_id, slice.namespace
    );
    let workload = resources.workloads.entry(uid.clone()).or_insert_with(|| {
        let node = endpoint.node_name.clone().unwrap_or_default();
        let of_node = objects.node(&node).and_then(workload::locality);
        let zone = endpoint.zone.clone().map(|zone| Locality {
            zone,
            ..Default::default()
        });
        Workload {
            uid,
            name: address.to_string(),
            namespace: slice.namespace.clone(),
            addresses: vec![ip_bytes(address)],
            network: settings.network.clone(),
            tunnel_protocol: TunnelProtocol::None.into(),
            locality: of_node.or(zone),
            node,
            canonical_name: service.message.name.clone(),
            canonical_revision: "latest".into(),
            workload_type: WorkloadType::Pod.into(),
            workload_name: service.message.name.clone(),
            status: status.into(),
            cluster_id: settings.cluster_id.clone(),
            ..Default::default()
        }
    });
    // Two services may share an address: it is healthy only if both say so.
    if status == WorkloadStatus::Unhealthy {
        workload.status = status.into();
    }
    let held: &mut Vec<Port> = &mut workload
        .services
        .entry(service.key.clone())
        .or_default()
        .ports;
    for port in &ports.ports {
        if !held.contains(port) {
            held.push(*port);
        }
    }
}

/// The slice's ports by name.
fn targets(slice: &EndpointSlice) -> BTreeMap<String, u32> {
    slice
        .ports
        .iter()
        .flatten()
        .filter(|port| matches!(port.protocol.as_deref(), None | Some("TCP" | "")))
        .filter_map(|port| {
            Some((
                port.name.clone().unwrap_or_default(),
                u32::try_from(port.port?).ok()?,
            ))
        })
        .collect()
}
