//! What being bound to waypoints means for a service and the pods behind it.
//!
//! A port of a pod is bound if any bound service leads to it: then the waypoints of those services alone may
//! reach it, whoever else the pod serves on that port. It doesn't matter whether the waypoint is there. One that doesn't admit the
//! service's namespace is named to nobody: neither it nor anybody else is let through.
//!
//! Of two waypoints clients choose one for each connection, by weight; the pods admit both. One that is not there, or isn't any more,
//! gets no new connection as long as the other one is.
//!
//! Where the waypoint takes requests to pods, too, the pod names it: then clients that address the pod itself are sent there.

use std::collections::{BTreeMap, BTreeSet};

use seine_objects::gateway::{Binding, NoWaypoint, WAYPOINT_PORT};
use seine_objects::{ObjectKey, ObjectSet};
use seine_proto::extensions::BoundPort;
use seine_proto::workload::{
    GatewayAddress, NamespacedHostname, Service, WeightedWaypoint, gateway_address,
};

use super::{BindingFinding, Resources, Settings, service, workload};

/// In the place of the hostname of a waypoint that is not to be used: no service has it, and errors show it.
const NOT_ALLOWED: &str = "not-allowed.invalid";

/// Names a service's waypoints to the clients' proxies.
pub(super) fn name(
    objects: &ObjectSet,
    key: &ObjectKey,
    binding: &Binding,
    settings: &Settings,
    message: &mut Service,
) {
    let found = |waypoint: &ObjectKey| objects.waypoint_for(waypoint, &key.namespace).err();
    let at = |waypoint: &ObjectKey| match found(waypoint) {
        Some(NoWaypoint::NotAllowed) => address(
            waypoint,
            format!("{}.{}.{NOT_ALLOWED}", waypoint.name, waypoint.namespace),
        ),
        None | Some(NoWaypoint::Missing) => usable_address(waypoint, settings),
    };
    message.waypoint = Some(at(&binding.waypoint));
    let Some(canary) = &binding.canary else {
        return;
    };
    let percent = u32::from(canary.percent.unwrap_or(0));
    let is_there = |waypoint: &ObjectKey| found(waypoint).is_none();
    let percent = match (is_there(&binding.waypoint), is_there(&canary.waypoint)) {
        (true, false) | (false, false) => 0,
        (false, true) => 100,
        (true, true) => percent,
    };
    let one = |waypoint: &ObjectKey, weight| WeightedWaypoint {
        destination: Some(at(waypoint)),
        weight,
    };
    message.weighted_waypoints = vec![
        one(&binding.waypoint, 100 - percent),
        one(&canary.waypoint, percent),
    ];
}

/// Where a waypoint takes HBONE.
fn usable_address(waypoint: &ObjectKey, settings: &Settings) -> GatewayAddress {
    address(waypoint, service::hostname(waypoint, settings))
}

fn address(waypoint: &ObjectKey, hostname: String) -> GatewayAddress {
    let destination = NamespacedHostname {
        namespace: waypoint.namespace.clone(),
        hostname,
    };
    GatewayAddress {
        destination: Some(gateway_address::Destination::Hostname(destination)),
        hbone_mtls_port: WAYPOINT_PORT.into(),
    }
}

/// Completes the pods' workloads with the ports that are bound there, and the services with their policies.
pub(super) fn bind(
    objects: &ObjectSet,
    services: &mut BTreeMap<ObjectKey, service::Translated>,
    pods: &workload::Pods,
    settings: &Settings,
    resources: &mut Resources,
) {
    let waypoints: BTreeMap<&str, Vec<&ObjectKey>> = services
        .iter()
        .filter_map(|(key, service)| {
            let allowed = |waypoint: &&ObjectKey| {
                let found = objects.waypoint_for(waypoint, &key.namespace);
                found.err() != Some(NoWaypoint::NotAllowed)
            };
            let waypoints = service.waypoint.as_ref()?.waypoints();
            Some((service.key.as_str(), waypoints.filter(allowed).collect()))
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
            let Some(waypoints) = waypoints.get(service.as_str()) else {
                continue;
            };
            for port in &ports.ports {
                bound.entry(port.target_port).or_default().extend(waypoints);
            }
        }
        let mut all: BTreeSet<_> = bound.values().flatten().copied().collect();
        // A workload has one at most: with several, whoever addresses it is refused.
        if let (Some(only), None) = (all.pop_first(), all.first())
            && (objects.gateways.get(only)).is_some_and(|gateway| gateway.takes_pods())
        {
            workload.waypoint = Some(usable_address(only, settings));
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

/// Of each bound service what to know about its waypoints.
pub(super) fn findings(
    objects: &ObjectSet,
    services: &BTreeMap<ObjectKey, service::Translated>,
) -> BTreeMap<ObjectKey, BindingFinding> {
    let bound = services.iter().filter_map(|(key, service)| {
        let binding = service.waypoint.clone()?;
        let missing = binding.waypoints().filter_map(|waypoint| {
            let why = objects.waypoint_for(waypoint, &key.namespace).err()?;
            Some((waypoint.clone(), why))
        });
        let finding = BindingFinding {
            missing: missing.collect(),
            binding,
        };
        Some((key.clone(), finding))
    });
    bound.collect()
}
