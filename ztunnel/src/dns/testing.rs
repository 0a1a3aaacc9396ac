//! Stores for the tests of DNS, fed as the control plane feeds them.

use std::net::IpAddr;

use prost::Message;
use seine_proto::discovery::Resource;
use seine_proto::{ADDRESS_TYPE, extensions, workload as proto};
use seine_workload::Store;

/// One `Address` resource.
pub(crate) struct Fed(Resource);

fn bytes(address: &str) -> Vec<u8> {
    match address.parse::<IpAddr>().unwrap() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn any(message: &impl Message) -> Option<prost_types::Any> {
    Some(prost_types::Any {
        type_url: String::new(),
        value: message.encode_to_vec(),
    })
}

/// A service of namespace `shop` with port 80.
pub(crate) fn service(name: &str, hostname: &str, addresses: &[&str]) -> proto::Service {
    let address = |address: &&str| proto::NetworkAddress {
        address: bytes(address),
        ..Default::default()
    };
    proto::Service {
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        hostname: hostname.to_owned(),
        addresses: addresses.iter().map(address).collect(),
        ports: vec![proto::Port {
            service_port: 80,
            target_port: 8080,
            app_protocol: 0,
        }],
        ..Default::default()
    }
}

/// A service without addresses.
pub(crate) fn headless(name: &str, hostname: &str) -> proto::Service {
    service(name, hostname, &[])
}

/// A service with the names of its ports.
pub(crate) fn names(mut service: proto::Service, names: &[(u32, &str)]) -> Fed {
    let port_names = names
        .iter()
        .map(|(port, name)| (*port, (*name).to_owned()))
        .collect();
    service.extensions = vec![proto::Extension {
        name: "seine.dev/service".to_owned(),
        config: any(&extensions::ServiceExtension {
            port_names,
            ..Default::default()
        }),
    }];
    service.into()
}

/// A pod of namespace `shop` that backs port 80 of a service.
pub(crate) struct Endpoint(proto::Workload, extensions::WorkloadExtension);

/// A ready one.
pub(crate) fn endpoint(name: &str, address: &str, hostname: &str) -> Endpoint {
    let port = proto::Port {
        service_port: 80,
        target_port: 8080,
        app_protocol: 0,
    };
    let ports = proto::PortList { ports: vec![port] };
    let workload = proto::Workload {
        uid: format!("Kubernetes//Pod/shop/{name}"),
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        addresses: vec![bytes(address)],
        services: [(format!("shop/{hostname}"), ports)].into(),
        ..Default::default()
    };
    Endpoint(workload, extensions::WorkloadExtension::default())
}

impl Endpoint {
    /// With `spec.hostname` and `spec.subdomain`.
    pub(crate) fn stateful(mut self, hostname: &str, subdomain: &str) -> Self {
        self.1.pod_hostname = hostname.to_owned();
        self.1.pod_subdomain = subdomain.to_owned();
        self
    }

    pub(crate) fn unhealthy(mut self) -> Self {
        self.0.status = proto::WorkloadStatus::Unhealthy.into();
        self
    }

    pub(crate) fn opted_out(mut self) -> Self {
        self.1.dns_opt_out = true;
        self
    }

    pub(crate) fn network(&mut self, network: &str) {
        self.0.network = network.to_owned();
    }
}

impl From<Endpoint> for Fed {
    fn from(Endpoint(mut workload, extension): Endpoint) -> Self {
        let config = any(&extension);
        workload.extensions = vec![proto::Extension {
            name: "seine.dev/workload".to_owned(),
            config,
        }];
        let name = workload.uid.clone();
        fed(name, proto::address::Type::Workload(workload))
    }
}

impl From<proto::Service> for Fed {
    fn from(service: proto::Service) -> Self {
        let name = format!("{}/{}", service.namespace, service.hostname);
        fed(name, proto::address::Type::Service(service))
    }
}

fn fed(name: String, message: proto::address::Type) -> Fed {
    let value = proto::Address {
        r#type: Some(message),
    }
    .encode_to_vec();
    let resource = Some(prost_types::Any {
        type_url: ADDRESS_TYPE.to_owned(),
        value,
    });
    Fed(Resource {
        version: "1".to_owned(),
        resource,
        name,
        aliases: Vec::new(),
    })
}

pub(crate) fn store<const N: usize>(all: [Fed; N]) -> Store {
    store_of(all.into())
}

pub(crate) fn store_of(all: Vec<Fed>) -> Store {
    let store = Store::new("");
    let resources: Vec<_> = all.into_iter().map(|fed| fed.0).collect();
    assert_eq!(store.apply_addresses(&resources, &[]), []);
    store
}
