//! What being bound to a waypoint means for the pods behind a service.
//!
//! A port of a pod is bound if any bound service leads to it: then the waypoints of those services alone may
//! reach it, whoever else the pod serves on that port. It doesn't matter whether the waypoint is there.
//!
//! Where the waypoint takes requests to pods, too, the pod names it: then clients that address the pod itself are sent there.

use std::collections::{BTreeMap, BTreeSet};

use seine_objects::{ObjectKey, ObjectSet};
use seine_proto::extensions::BoundPort;

use super::{Resources, Settings, service, workload};

/// Completes the pods' workloads with the ports that are bound there, and the services with their policies.
pub(super) fn bind(
    objects: &ObjectSet,
    services: &mut BTreeMap<ObjectKey, service::Translated>,
    pods: &workload::Pods,
    settings: &Settings,
    resources: &mut Resources,
) {
    let waypoints: BTreeMap<&str, ObjectKey> = services
        .iter()
        .filter_map(|(key, service)| {
            let name = service.waypoint.as_ref()?;
            Some((service.key.as_str(), ObjectKey::new(&key.namespace, name)))
        })
        .collect();
    let identity = |waypoint: &ObjectKey| {
        let ObjectKey { namespace, name } = waypoint;
        format!(
            "spiffe://{}/ns/{namespace}/sa/{name}",
            settings.trust_domain
        )
    };
    for pod in &pods.list {
        let Some(workload) = resources.workloads.get_mut(&pod.uid) else {
            continue;
        };
        let mut bound: BTreeMap<u32, BTreeSet<&ObjectKey>> = BTreeMap::new();
        for (service, ports) in &workload.services {
            let Some(waypoint) = waypoints.get(service.as_str()) else {
                continue;
            };
            for port in &ports.ports {
                bound.entry(port.target_port).or_default().insert(waypoint);
            }
        }
        let mut all: BTreeSet<_> = bound.values().flatten().copied().collect();
        // A workload has one at most: with several, whoever addresses it is refused.
        if let (Some(only), None) = (all.pop_first(), all.first())
            && (objects.gateways.get(only)).is_some_and(|gateway| gateway.takes_pods())
        {
            let address = service::waypoint_address(&only.namespace, &only.name, settings);
            workload.waypoint = Some(address);
        }
        let bound = bound.into_iter().map(|(target_port, waypoints)| BoundPort {
            target_port,
            waypoint_identities: waypoints.into_iter().map(identity).collect(),
        });
        let extension = workload::extension(&pod.object, bound.collect());
        workload.extensions = extension.into_iter().collect();
    }
    for service in services.values_mut() {
        service.policies.sort();
        service.authentications.sort();
        service.message.extensions = service::extension(service).into_iter().collect();
    }
}

/// Services that are bound to a waypoint which is not there, and the waypoint: nobody reaches them.
pub(super) fn missing(
    objects: &ObjectSet,
    services: &BTreeMap<ObjectKey, service::Translated>,
) -> BTreeMap<ObjectKey, ObjectKey> {
    let bound = services.iter().filter_map(|(key, service)| {
        let waypoint = ObjectKey::new(&key.namespace, service.waypoint.as_ref()?);
        let gateway = objects.gateways.get(&waypoint);
        let is_there = gateway.is_some_and(|gateway| gateway.is_waypoint());
        (!is_there).then(|| (key.clone(), waypoint))
    });
    bound.collect()
}
