//! What being bound to a waypoint means for the pods behind a service.
//!
//! A port of a pod is bound if any bound service leads to it: then the waypoints of those services alone may
//! reach it, whoever else the pod serves on that port. It doesn't matter whether the waypoint is there.

use std::collections::{BTreeMap, BTreeSet};

use seine_objects::ObjectKey;
use seine_proto::extensions::BoundPort;

use super::{Resources, Settings, service, workload};

/// Completes the pods' workloads with the ports that are bound there, and the services with their policies.
pub(super) fn bind(
    services: &mut BTreeMap<ObjectKey, service::Translated>,
    pods: &workload::Pods,
    settings: &Settings,
    resources: &mut Resources,
) {
    let waypoints: BTreeMap<&str, String> = services
        .iter()
        .filter_map(|(key, service)| {
            let account = service.waypoint.as_ref()?;
            let identity = format!(
                "spiffe://{}/ns/{}/sa/{account}",
                settings.trust_domain, key.namespace
            );
            Some((service.key.as_str(), identity))
        })
        .collect();
    for pod in &pods.list {
        let Some(workload) = resources.workloads.get_mut(&pod.uid) else {
            continue;
        };
        let mut bound: BTreeMap<u32, BTreeSet<&String>> = BTreeMap::new();
        for (service, ports) in &workload.services {
            let Some(waypoint) = waypoints.get(service.as_str()) else {
                continue;
            };
            for port in &ports.ports {
                bound.entry(port.target_port).or_default().insert(waypoint);
            }
        }
        let bound = bound.into_iter().map(|(target_port, waypoints)| BoundPort {
            target_port,
            waypoint_identities: waypoints.into_iter().cloned().collect(),
        });
        let extension = workload::extension(&pod.object, bound.collect());
        workload.extensions = extension.into_iter().collect();
    }
    for service in services.values_mut() {
        service.policies.sort();
        service.message.extensions = service::extension(service).into_iter().collect();
    }
}
