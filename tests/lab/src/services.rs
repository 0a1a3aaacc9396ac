//! Services: their addresses, and the endpoints that stand behind them. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Result, bail};
use k8s_openapi::api::core::v1::{Container, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use crate::manifest::Key;
use crate::names::Addresses;
use crate::pod::PodView;

/// Gives out service addresses; an index stands for one of each family.
#[derive(Debug)]
pub struct Allocator {
    addresses: Addresses,
    held: BTreeMap<Key, u16>,
}

/// The first address that is not reserved for the cluster's own services.
const FIRST_INDEX: u16 = 20;

impl Allocator {
    /// Nothing is given out yet.
    pub fn new(addresses: Addresses) -> Self {
        Self {
            addresses,
            held: BTreeMap::new(),
        }
    }

    /// The service's index: the one that it has, asks for by `clusterIP`, or a free one.
    fn index(&mut self, key: &Key, wanted: Option<IpAddr>) -> Result<u16> {
        if let Some(&index) = self.held.get(key) {
            return Ok(index);
        }
        let taken: BTreeSet<u16> = self.held.values().copied().collect();
        let index = match wanted {
            Some(address) => match self.addresses.service_index(address) {
                Some(index) if index >= FIRST_INDEX && !taken.contains(&index) => index,
                Some(_) => bail!("{key}: clusterIP {address} is taken"),
                None => bail!(
                    "{key}: clusterIP {address} is not in {} or {}",
                    self.addresses.services_v4(),
                    self.addresses.services_v6()
                ),
            },
            None => match (FIRST_INDEX..0x8000).find(|index| !taken.contains(index)) {
                Some(index) => index,
                None => bail!("{key}: no service address is free"),
            },
        };
        self.held.insert(key.clone(), index);
        Ok(index)
    }

    /// Takes the address of a deleted service back.
    pub fn release(&mut self, key: &Key) {
        self.held.remove(key);
    }

    /// Fills in what the API server would: addresses, families, ports.
    pub fn complete(&mut self, key: &Key, service: &mut Service) -> Result<()> {
        let spec = service.spec.get_or_insert_default();
        for port in spec.ports.iter_mut().flatten() {
            port.protocol.get_or_insert_with(|| "TCP".to_owned());
            port.target_port.get_or_insert(IntOrString::Int(port.port));
        }
        spec.type_.get_or_insert_with(|| "ClusterIP".to_owned());
        if spec.type_.as_deref() == Some("ExternalName") {
            return Ok(());
        }
        let dual = spec
            .ip_family_policy
            .as_deref()
            .is_some_and(|p| p != "SingleStack");
        let families = spec.ip_families.get_or_insert_default();
        if families.is_empty() {
            let v6 = spec
                .cluster_ip
                .as_deref()
                .is_some_and(|ip| ip.contains(':'));
            families.push(if v6 { "IPv6" } else { "IPv4" }.to_owned());
        }
        if dual && families.len() == 1 {
            families.push(
                if families[0] == "IPv4" {
                    "IPv6"
                } else {
                    "IPv4"
                }
                .to_owned(),
            );
        }
        if families.len() == 2 && spec.ip_family_policy.is_none() {
            spec.ip_family_policy = Some("RequireDualStack".to_owned());
        }
        spec.ip_family_policy
            .get_or_insert_with(|| "SingleStack".to_owned());
        if spec.cluster_ip.as_deref() == Some("None") {
            spec.cluster_ips = Some(vec!["None".to_owned()]);
            return Ok(());
        }
        let wanted = match spec.cluster_ip.as_deref() {
            None | Some("") => None,
            Some(text) => match text.parse() {
                Ok(address) => Some(address),
                Err(_) => bail!("{key}: clusterIP '{text}' is not an address"),
            },
        };
        let (v4, v6) = self.addresses.service(self.index(key, wanted)?);
        let ips: Vec<String> = families
            .iter()
            .map(|family| {
                if family == "IPv6" {
                    v6.to_string()
                } else {
                    v4.to_string()
                }
            })
            .collect();
        spec.cluster_ip = ips.first().cloned();
        spec.cluster_ips = Some(ips);
        Ok(())
    }
}

/// Whether `selector` picks a pod with these labels. An empty selector picks none, as for
/// services.
pub fn selects(selector: &BTreeMap<String, String>, labels: &BTreeMap<String, String>) -> bool {
    !selector.is_empty()
        && selector
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
}

/// The EndpointSlices of a completed service: one for each family.
pub fn endpoint_slices(key: &Key, service: &Service, pods: &[PodView]) -> Vec<(Key, Value)> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let selector = spec.selector.clone().unwrap_or_default();
    if selector.is_empty() {
        return Vec::new();
    }
    let always = spec.publish_not_ready_addresses == Some(true);
    let mut slices = Vec::new();
    for family in spec.ip_families.iter().flatten() {
        // Pods may disagree on the number behind a port's name; one slice for each answer.
        let mut groups: BTreeMap<Vec<Option<u16>>, Vec<Value>> = BTreeMap::new();
        let chosen = pods.iter().filter(|pod| {
            pod.desired.namespace == key.namespace && selects(&selector, &pod.desired.labels)
        });
        for pod in chosen {
            let Some(address) = pod.address(family == "IPv6") else {
                continue;
            };
            if pod.finished() {
                continue;
            }
            let ports: Vec<Option<u16>> = spec
                .ports
                .iter()
                .flatten()
                .map(|port| target_port(port, &pod.desired.spec.containers))
                .collect();
            groups
                .entry(ports)
                .or_default()
                .push(endpoint(key, pod, address, always));
        }
        for (number, (ports, endpoints)) in groups.into_iter().enumerate() {
            let name = format!("{}-{}-{number}", key.name, family.to_lowercase());
            let ports: Vec<Value> = spec
                .ports
                .iter()
                .flatten()
                .zip(ports)
                .filter_map(|(port, number)| {
                    Some(json!({
                        "name": port.name.clone().unwrap_or_default(),
                        "port": number?,
                        "protocol": port.protocol,
                        "appProtocol": port.app_protocol,
                    }))
                })
                .collect();
            let slice = json!({
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": name,
                    "namespace": key.namespace,
                    "labels": {"kubernetes.io/service-name": key.name},
                },
                "addressType": family,
                "endpoints": endpoints,
                "ports": ports,
            });
            slices.push((
                Key::namespaced("EndpointSlice", &key.namespace, &name),
                slice,
            ));
        }
    }
    slices
}

fn endpoint(service: &Key, pod: &PodView, address: IpAddr, always_ready: bool) -> Value {
    let ready = pod.ready() && !pod.terminating;
    let mut endpoint = json!({
        "addresses": [address],
        "conditions": {
            "ready": ready || always_ready,
            "serving": pod.ready(),
            "terminating": pod.terminating,
        },
        "nodeName": format!("node{}", pod.node),
        "zone": zone(pod.node),
        "targetRef": {
            "kind": "Pod",
            "name": pod.desired.name,
            "namespace": pod.desired.namespace,
            "uid": pod.uid,
        },
    });
    let spec = &pod.desired.spec;
    if let (Some(hostname), Some(subdomain)) = (&spec.hostname, &spec.subdomain)
        && *subdomain == service.name
    {
        endpoint["hostname"] = json!(hostname);
    }
    endpoint
}

/// The zone of a node; nodes take turns between two.
pub fn zone(node: u8) -> &'static str {
    if node % 2 == 1 { "zone-a" } else { "zone-b" }
}

fn target_port(port: &ServicePort, containers: &[Container]) -> Option<u16> {
    match port.target_port.as_ref()? {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(name) => named_port(name, containers),
    }
}

/// The number of the container port called `name`.
pub fn named_port(name: &str, containers: &[Container]) -> Option<u16> {
    containers
        .iter()
        .flat_map(|container| container.ports.iter().flatten())
        .find(|port| port.name.as_deref() == Some(name))
        .and_then(|port| u16::try_from(port.container_port).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complete(allocator: &mut Allocator, name: &str, spec: Value) -> Result<Service> {
        let mut service: Service =
            serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
        allocator.complete(&Key::namespaced("Service", "x", name), &mut service)?;
        Ok(service)
    }

    #[test]
    fn a_service_gets_addresses_of_the_families_that_it_asks_for() {
        let mut allocator = Allocator::new(Addresses { block: 42 });
        let ips = |s: Service| s.spec.unwrap().cluster_ips.unwrap();
        let single = complete(&mut allocator, "a", json!({})).unwrap();
        assert_eq!(ips(single), ["10.42.128.20"]);
        let dual = complete(
            &mut allocator,
            "b",
            json!({"ipFamilyPolicy": "PreferDualStack"}),
        );
        assert_eq!(ips(dual.unwrap()), ["10.42.128.21", "fd00:2a:ffff::15"]);
        let six = complete(&mut allocator, "c", json!({"ipFamilies": ["IPv6"]})).unwrap();
        assert_eq!(ips(six), ["fd00:2a:ffff::16"]);
        let headless = complete(&mut allocator, "d", json!({"clusterIP": "None"})).unwrap();
        assert_eq!(ips(headless), ["None"]);
    }

    #[test]
    fn an_address_can_be_asked_for_but_not_twice() {
        let mut allocator = Allocator::new(Addresses { block: 42 });
        let wish = json!({"clusterIP": "10.42.130.7"});
        assert!(complete(&mut allocator, "a", wish.clone()).is_ok());
        assert!(
            complete(&mut allocator, "a", wish.clone()).is_ok(),
            "it keeps its own"
        );
        assert!(complete(&mut allocator, "b", wish).is_err());
        assert!(complete(&mut allocator, "c", json!({"clusterIP": "10.1.1.1"})).is_err());
    }

    #[test]
    fn a_service_without_selector_selects_nothing() {
        assert!(!selects(&BTreeMap::new(), &BTreeMap::new()));
    }
}
