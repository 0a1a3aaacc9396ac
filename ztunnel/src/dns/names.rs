//! What a name means to the mesh.

use std::net::IpAddr;
use std::sync::Arc;

use seine_workload::{HealthPolicy, IpFamilies, Service, Store, Workload};

/// The mesh as one client sees it.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// What there is.
    pub store: &'a Store,
    /// The client's namespace: of services of one name its own comes first.
    pub namespace: &'a str,
}

/// What a name is.
pub(crate) enum Owned {
    /// A service, or a name below a wildcard service.
    Service(Arc<Service>),
    /// One workload of a service.
    Endpoint(Arc<Workload>),
    /// `_port._tcp.<service>`: one port of a service.
    Port(Arc<Service>, u16),
    /// `_port._tcp.<service>` where the service has no such port.
    NoSuchPort,
}

impl View<'_> {
    /// What a name is: in lower case and without the dot at its end. None if the mesh doesn't
    /// own it, or knows too little to answer for it.
    pub(crate) fn find(&self, name: &str) -> Option<Owned> {
        if let Some(service) = self.named(name) {
            return Some(Owned::Service(service));
        }
        let (first, rest) = name.split_once('.')?;
        if let Some(port) = first.strip_prefix('_') {
            // UDP ports aren't known here.
            return self.port(port, rest.strip_prefix("_tcp.")?);
        }
        if let Some(service) = self.named(rest)
            && let Some(endpoint) = self.endpoint(&service, first)
        {
            return Some(Owned::Endpoint(endpoint));
        }
        self.wildcard(rest).map(Owned::Service)
    }

    /// The service whose wildcard holds names directly or farther below `parent`; the longest.
    fn wildcard(&self, parent: &str) -> Option<Arc<Service>> {
        let mut parent = Some(parent);
        while let Some(domain) = parent {
            if let Some(service) = self.named(&format!("*.{domain}")) {
                return Some(service);
            }
            parent = domain.split_once('.').map(|(_, rest)| rest);
        }
        None
    }

    fn named(&self, name: &str) -> Option<Arc<Service>> {
        self.store.service_named(name, Some(self.namespace))
    }

    fn port(&self, port: &str, service: &str) -> Option<Owned> {
        let service = self.named(service)?;
        if let Some(number) = service.port_named(port) {
            return Some(Owned::Port(service, number));
        }
        // Sure only if the names of all ports are known.
        let all_named = !service.ports.is_empty()
            && service.ports.iter().all(|port| {
                service
                    .port_names
                    .iter()
                    .any(|(n, _)| *n == port.service_port)
            });
        all_named.then_some(Owned::NoSuchPort)
    }

    /// The workload that is `first.<service>`: by its pod's host name (a StatefulSet's pod), or by
    /// its address with dashes.
    fn endpoint(&self, service: &Service, first: &str) -> Option<Arc<Workload>> {
        let mut endpoints = self.endpoints(service).into_iter();
        if let Some(address) = dashed(first) {
            return endpoints.find(|endpoint| endpoint.addresses.contains(&address));
        }
        endpoints.find(|endpoint| {
            endpoint.stateful_name() == Some((first, &service.name))
                && endpoint.namespace == service.key.namespace
        })
    }

    /// The workloads of a service that DNS gives out: ready ones, unless the service wants all.
    pub(crate) fn endpoints(&self, service: &Service) -> Vec<Arc<Workload>> {
        let all = service.load_balancing.health_policy == HealthPolicy::AllowAll;
        let mut endpoints = self.store.endpoints(&service.key);
        endpoints.retain(|endpoint| {
            (all || endpoint.healthy) && *endpoint.network == *self.store.network()
        });
        endpoints
    }

    /// Every address of a service in this network: its own, or those of its workloads if it has
    /// none.
    pub(crate) fn addresses(&self, service: &Service) -> Vec<IpAddr> {
        let mut addresses: Vec<_> = if service.is_headless() {
            let endpoints = self.endpoints(service);
            endpoints
                .iter()
                .flat_map(|e| e.addresses.iter().copied())
                .collect()
        } else {
            let here = service
                .addresses
                .iter()
                .filter(|a| *a.network == *self.store.network());
            here.filter_map(|address| address.single()).collect()
        };
        addresses.retain(|address| family_of(service.ip_families, *address));
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }
}

/// The first label of an endpoint's name below its service.
pub(crate) fn endpoint_label(service: &Service, endpoint: &Workload) -> Option<String> {
    if let Some((hostname, subdomain)) = endpoint.stateful_name()
        && *subdomain == *service.name
        && endpoint.namespace == service.key.namespace
    {
        return Some(hostname.to_owned());
    }
    endpoint.addresses.first().map(|address| match address {
        IpAddr::V4(v4) => v4.to_string().replace('.', "-"),
        // A label may not begin or end with a dash, so nothing is shortened.
        IpAddr::V6(v6) => {
            let segments = v6.segments();
            segments
                .iter()
                .map(|s| format!("{s:x}"))
                .collect::<Vec<_>>()
                .join("-")
        }
    })
}

/// `10-0-0-1` or `fd00-0-0-0-0-0-0-1`.
fn dashed(label: &str) -> Option<IpAddr> {
    label
        .replace('-', ".")
        .parse()
        .ok()
        .map(IpAddr::V4)
        .or_else(|| label.replace('-', ":").parse().ok().map(IpAddr::V6))
}

fn family_of(families: IpFamilies, address: IpAddr) -> bool {
    match families {
        IpFamilies::Automatic | IpFamilies::Dual => true,
        IpFamilies::Ipv4Only => address.is_ipv4(),
        IpFamilies::Ipv6Only => address.is_ipv6(),
    }
}
