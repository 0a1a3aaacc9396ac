//! One resource in its encoded form.

use std::{
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use prost::Message as _;
use seine_proto::{
    discovery,
    security::Authorization,
    waypoint::{Listener, RequestAuthentication, RouteRule, TrafficPolicy},
    workload::{self, Service, Workload},
};

use super::ResourceType;
use crate::translate::Settings;

/// A resource as it is sent. Equal resources have equal bytes, and the version is their hash: it is
/// the same on every replica and after every restart, so that a proxy that comes back is sent only
/// what changed.
#[derive(Clone, PartialEq, Eq)]
pub struct Resource {
    /// Uid, `namespace/hostname` or `namespace/name`.
    pub name: Arc<str>,
    /// Hash of the content.
    pub version: Arc<str>,
    /// Other names by which it may be asked for.
    pub aliases: Vec<String>,
    /// The node that a workload is on; empty where there is none.
    pub(super) node: String,
    /// Keys of the services that a workload is behind.
    pub(super) services: Vec<String>,
    kind: ResourceType,
    body: Vec<u8>,
}

impl Resource {
    /// A workload.
    pub fn workload(workload: &Workload, settings: &Settings) -> Self {
        // A map has no order on the wire: one message for each entry, which a receiver merges.
        let mut services: Vec<_> = workload.services.iter().collect();
        services.sort_by_key(|(key, _)| *key);
        let mut inner = Workload {
            services: Default::default(),
            ..workload.clone()
        }
        .encode_to_vec();
        for (key, ports) in &services {
            let entry = [((*key).clone(), (*ports).clone())].into_iter().collect();
            inner.extend(
                Workload {
                    services: entry,
                    ..Default::default()
                }
                .encode_to_vec(),
            );
        }
        let addresses = workload.addresses.iter();
        let on_host = workload.network_mode() == workload::NetworkMode::HostNetwork;
        let aliases = match on_host {
            true => Vec::new(),
            false => addresses
                .filter_map(|ip| settings.address_name(ip))
                .collect(),
        };
        Self {
            name: workload.uid.as_str().into(),
            version: version(&inner),
            aliases,
            node: workload.node.clone(),
            services: services.into_iter().map(|(key, _)| key.clone()).collect(),
            kind: ResourceType::Address,
            // `Address.workload`, field 1 of kind "length-delimited".
            body: wrap(1, &inner),
        }
    }

    /// A service under its key.
    pub fn service(key: &str, service: &Service, settings: &Settings) -> Self {
        let inner = service.encode_to_vec();
        let addresses = service.addresses.iter();
        Self {
            name: key.into(),
            version: version(&inner),
            aliases: addresses
                .filter_map(|found| settings.address_name(&found.address))
                .collect(),
            node: String::new(),
            services: Vec::new(),
            kind: ResourceType::Address,
            body: wrap(2, &inner),
        }
    }

    /// A policy under its key.
    pub fn authorization(key: &str, authorization: &Authorization) -> Self {
        Self::of_one_name(ResourceType::Authorization, key, authorization)
    }

    /// Rules on tokens under their name.
    pub fn authentication(name: &str, rules: &RequestAuthentication) -> Self {
        Self::of_one_name(ResourceType::Authentication, name, rules)
    }

    /// A route's rule under its name.
    pub fn route(name: &str, rule: &RouteRule) -> Self {
        Self::of_one_name(ResourceType::Route, name, rule)
    }

    /// A traffic policy under its key.
    pub fn traffic(key: &str, policy: &TrafficPolicy) -> Self {
        Self::of_one_name(ResourceType::Traffic, key, policy)
    }

    /// A Gateway's listener under its name.
    pub fn listener(name: &str, listener: &Listener) -> Self {
        Self::of_one_name(ResourceType::Listener, name, listener)
    }

    fn of_one_name(kind: ResourceType, name: &str, message: &impl prost::Message) -> Self {
        let body = message.encode_to_vec();
        Self {
            name: name.into(),
            version: version(&body),
            aliases: Vec::new(),
            node: String::new(),
            services: Vec::new(),
            kind,
            body,
        }
    }

    /// The resource on the wire.
    pub fn to_wire(&self) -> discovery::Resource {
        discovery::Resource {
            name: self.name.to_string(),
            version: self.version.to_string(),
            aliases: self.aliases.clone(),
            resource: Some(prost_types::Any {
                type_url: self.kind.url().into(),
                value: self.body.clone(),
            }),
        }
    }

    /// Bytes of its content.
    pub fn size(&self) -> usize {
        self.body.len()
    }
}

impl fmt::Debug for Resource {
    /// Without its content, in which there may be a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resource")
            .field("name", &self.name)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// An encoded message as field `field` of another.
fn wrap(field: u32, inner: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(inner.len() + 6);
    prost::encoding::encode_key(field, prost::encoding::WireType::LengthDelimited, &mut body);
    prost::encoding::encode_varint(inner.len() as u64, &mut body);
    body.extend_from_slice(inner);
    body
}

/// Without keys of its own, this hasher gives the same result in every process.
fn version(content: &[u8]) -> Arc<str> {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    format!("{:016x}", hasher.finish()).into()
}

#[cfg(test)]
mod tests {
    use seine_proto::workload::{Address, Port, PortList, address};

    use super::*;

    #[test]
    fn encoding_is_deterministic_and_reads_back() {
        let ports = PortList {
            ports: vec![Port {
                service_port: 1,
                ..Default::default()
            }],
        };
        let build = || Workload {
            uid: "u".into(),
            name: "n".into(),
            addresses: vec![vec![10, 0, 0, 1]],
            services: (0..50)
                .map(|number| (format!("ns/{number}"), ports.clone()))
                .collect(),
            ..Default::default()
        };
        let settings = Settings::default();
        let resource = Resource::workload(&build(), &settings);
        for _ in 0..10 {
            assert_eq!(Resource::workload(&build(), &settings), resource);
        }
        let body = resource.to_wire().resource.unwrap().value;
        let Some(address::Type::Workload(read)) = Address::decode(body.as_slice()).unwrap().r#type
        else {
            panic!("no workload");
        };
        assert_eq!(read, build());
        assert_eq!(resource.aliases, ["/10.0.0.1"]);
    }
}
