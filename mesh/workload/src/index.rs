//! The maps behind the store's lock. Knows nothing of the wire, of locks or of waiting.
//!
//! What always holds: each workload is listed under each of its addresses, under its namespace and name, and below each
//! service that it names, once; each service under each of its addresses and its hostname, once.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::model::{GatewayDestination, Service, ServiceKey, Workload};

/// A value with the version that the control plane gave it.
#[derive(Clone, Debug)]
pub(crate) struct Held<T> {
    pub(crate) version: Box<str>,
    pub(crate) value: Arc<T>,
}

/// Workloads and services, by everything that they are looked up by.
#[derive(Default)]
pub(crate) struct AddressIndex {
    workloads: HashMap<Arc<str>, Held<Workload>>,
    /// By namespace and then by name.
    names: HashMap<Arc<str>, HashMap<Arc<str>, OneOrMore<Workload>>>,
    services: HashMap<ServiceKey, ServiceEntry>,
    networks: HashMap<Arc<str>, NetworkIndex>,
    hostnames: HashMap<Arc<str>, OneOrMore<Service>>,
    service_count: usize,
}

/// A service with the workloads that back it; either may be known before the other.
#[derive(Default)]
pub(crate) struct ServiceEntry {
    pub(crate) service: Option<Held<Service>>,
    pub(crate) endpoints: Vec<Arc<Workload>>,
    /// Endpoints whose capacity is not 1.
    pub(crate) weighted: usize,
}

#[derive(Default)]
struct NetworkIndex {
    workloads: HashMap<IpAddr, OneOrMore<Workload>>,
    services: HashMap<IpAddr, OneOrMore<Service>>,
    blocks: Vec<(IpNet, Arc<Service>)>,
}

/// What a key leads to; nearly always one, so that no list is allocated.
enum OneOrMore<T> {
    One(Arc<T>),
    More(Vec<Arc<T>>),
}

impl<T> OneOrMore<T> {
    fn as_slice(&self) -> &[Arc<T>] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::More(more) => more,
        }
    }

    fn push(&mut self, value: Arc<T>) {
        match self {
            Self::One(one) => *self = Self::More(vec![one.clone(), value]),
            Self::More(more) => more.push(value),
        }
    }

    /// Takes a value out; true if nothing remains.
    fn remove(&mut self, value: &Arc<T>) -> bool {
        match self {
            Self::One(one) => Arc::ptr_eq(one, value),
            Self::More(more) => {
                more.retain(|v| !Arc::ptr_eq(v, value));
                match more.as_slice() {
                    [] => return true,
                    [one] => *self = Self::One(one.clone()),
                    _ => {}
                }
                false
            }
        }
    }
}

fn add<K: Eq + std::hash::Hash, T>(map: &mut HashMap<K, OneOrMore<T>>, key: K, value: &Arc<T>) {
    match map.entry(key) {
        std::collections::hash_map::Entry::Occupied(mut entry) => {
            entry.get_mut().push(value.clone())
        }
        std::collections::hash_map::Entry::Vacant(entry) => {
            entry.insert(OneOrMore::One(value.clone()));
        }
    }
}

fn take<K, Q, T>(map: &mut HashMap<K, OneOrMore<T>>, key: &Q, value: &Arc<T>)
where
    K: Eq + std::hash::Hash + std::borrow::Borrow<Q>,
    Q: Eq + std::hash::Hash + ?Sized,
{
    if map.get_mut(key).is_some_and(|held| held.remove(value)) {
        map.remove(key);
    }
}

impl AddressIndex {
    /// Adds a workload, or puts it in the place of the one of the same uid, which is returned.
    pub(crate) fn insert_workload(
        &mut self,
        version: &str,
        new: Workload,
    ) -> Option<Arc<Workload>> {
        let old = self.remove_workload(&new.uid);
        let new = Arc::new(new);
        let network = self.networks.entry(new.network.clone()).or_default();
        for (position, address) in new.addresses.iter().enumerate() {
            if !new.addresses[..position].contains(address) {
                add(&mut network.workloads, *address, &new);
            }
        }
        let names = self.names.entry(new.namespace.clone()).or_default();
        add(names, new.name.clone(), &new);
        for (key, _) in &new.services {
            let entry = self.services.entry(key.clone()).or_default();
            entry.weighted += usize::from(new.capacity != 1);
            entry.endpoints.push(new.clone());
        }
        let held = Held {
            version: version.into(),
            value: new.clone(),
        };
        self.workloads.insert(new.uid.clone(), held);
        old
    }

    /// Takes a workload out.
    pub(crate) fn remove_workload(&mut self, uid: &str) -> Option<Arc<Workload>> {
        let old = self.workloads.remove(uid)?.value;
        if let Some(network) = self.networks.get_mut(&old.network) {
            for address in &old.addresses {
                take(&mut network.workloads, address, &old);
            }
        }
        if let Some(names) = self.names.get_mut(&old.namespace) {
            take(names, &*old.name, &old);
            if names.is_empty() {
                self.names.remove(&old.namespace);
            }
        }
        for (key, _) in &old.services {
            let Some(entry) = self.services.get_mut(key) else {
                continue;
            };
            if let Some(at) = entry.endpoints.iter().position(|e| Arc::ptr_eq(e, &old)) {
                entry.endpoints.swap_remove(at);
                entry.weighted -= usize::from(old.capacity != 1);
            }
            if entry.endpoints.is_empty() && entry.service.is_none() {
                self.services.remove(key);
            }
        }
        Some(old)
    }

    /// Adds a service, or puts it in the place of the one of the same name.
    pub(crate) fn insert_service(&mut self, version: &str, new: Service) {
        self.remove_service(&new.key);
        let new = Arc::new(new);
        for (position, address) in new.addresses.iter().enumerate() {
            if new.addresses[..position].contains(address) {
                continue;
            }
            let network = self.networks.entry(address.network.clone()).or_default();
            match address.single() {
                Some(single) => add(&mut network.services, single, &new),
                None => network.blocks.push((address.block, new.clone())),
            }
        }
        add(&mut self.hostnames, new.key.hostname.clone(), &new);
        let held = Held {
            version: version.into(),
            value: new.clone(),
        };
        self.services.entry(new.key.clone()).or_default().service = Some(held);
        self.service_count += 1;
    }

    /// Takes a service out.
    pub(crate) fn remove_service(&mut self, key: &ServiceKey) -> Option<Arc<Service>> {
        let entry = self.services.get_mut(key)?;
        let old = entry.service.take()?.value;
        if entry.endpoints.is_empty() {
            self.services.remove(key);
        }
        self.service_count -= 1;
        for address in &old.addresses {
            let Some(network) = self.networks.get_mut(&address.network) else {
                continue;
            };
            match address.single() {
                Some(single) => take(&mut network.services, &single, &old),
                None => network
                    .blocks
                    .retain(|(_, service)| !Arc::ptr_eq(service, &old)),
            }
        }
        take(&mut self.hostnames, &*old.key.hostname, &old);
        Some(old)
    }

    pub(crate) fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid).map(|held| &held.value)
    }

    /// The workloads of a namespace that have this name, in whatever cluster.
    pub(crate) fn workloads_named(&self, namespace: &str, name: &str) -> &[Arc<Workload>] {
        let named = self.names.get(namespace).and_then(|names| names.get(name));
        named.map_or(&[], OneOrMore::as_slice)
    }

    pub(crate) fn workloads(&self) -> impl Iterator<Item = &Held<Workload>> {
        self.workloads.values()
    }

    pub(crate) fn workload_count(&self) -> usize {
        self.workloads.len()
    }

    pub(crate) fn services(&self) -> impl Iterator<Item = &Held<Service>> {
        self.services
            .values()
            .filter_map(|entry| entry.service.as_ref())
    }

    pub(crate) fn service_count(&self) -> usize {
        self.service_count
    }

    /// A service with its endpoints; the service itself may be unknown yet.
    pub(crate) fn entry(&self, key: &ServiceKey) -> Option<&ServiceEntry> {
        self.services.get(key)
    }

    /// The workload at an address. Where several are, one that has it to itself comes before one
    /// on the node's network, and a newer before an older.
    pub(crate) fn workload_at(&self, network: &str, address: IpAddr) -> Option<&Arc<Workload>> {
        let held = self
            .networks
            .get(network)?
            .workloads
            .get(&address)?
            .as_slice();
        held.iter().rev().find(|w| !w.host_network).or(held.last())
    }

    /// The service at an address, as seen from a namespace. Of several, that of the namespace
    /// itself comes first, then the canonical one; of blocks, the smallest.
    pub(crate) fn service_at(
        &self,
        network: &str,
        address: IpAddr,
        from: Option<&str>,
    ) -> Option<&Arc<Service>> {
        let network = self.networks.get(network)?;
        let exact = network
            .services
            .get(&address)
            .map_or(&[][..], OneOrMore::as_slice);
        preferred(exact, from).or_else(|| {
            let holds = network.blocks.iter().filter(|(block, service)| {
                block.contains(&address) && from.is_none_or(|ns| service.visible_from(ns))
            });
            holds
                .max_by_key(|(block, _)| block.prefix_len())
                .map(|(_, service)| service)
        })
    }

    /// The service of a hostname, as seen from a namespace.
    pub(crate) fn service_named(
        &self,
        hostname: &str,
        from: Option<&str>,
    ) -> Option<&Arc<Service>> {
        preferred(self.hostnames.get(hostname)?.as_slice(), from)
    }

    /// The service that a gateway address means, and if it means a workload, that.
    pub(crate) fn gateway(&self, destination: &GatewayDestination) -> Option<GatewayMatch<'_>> {
        match destination {
            GatewayDestination::Service(key) => self.entry(key).map(GatewayMatch::Service),
            GatewayDestination::Address(at) => {
                let service = self.service_at(&at.network, at.address, None);
                if let Some(entry) = service.and_then(|service| self.entry(&service.key)) {
                    return Some(GatewayMatch::Service(entry));
                }
                self.workload_at(&at.network, at.address)
                    .map(GatewayMatch::Workload)
            }
        }
    }
}

/// What a gateway's address leads to.
pub(crate) enum GatewayMatch<'a> {
    Service(&'a ServiceEntry),
    Workload(&'a Arc<Workload>),
}

fn preferred<'a>(services: &'a [Arc<Service>], from: Option<&str>) -> Option<&'a Arc<Service>> {
    let visible = services
        .iter()
        .filter(|s| from.is_none_or(|namespace| s.visible_from(namespace)));
    // The last maximum wins, so the list is reversed: among equals the oldest stays.
    visible
        .rev()
        .max_by_key(|s| (from == Some(&*s.key.namespace), s.canonical))
}
