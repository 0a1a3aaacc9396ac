//! Messages and stores for the tests of this crate.

use std::net::IpAddr;

use prost::Message;
use seine_proto::discovery::Resource;
use seine_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE, security, workload as proto};

use crate::store::Store;

pub(crate) fn bytes(address: &str) -> Vec<u8> {
    match address.parse::<IpAddr>().unwrap() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// A meshed pod that backs `shop/api.shop.svc.cluster.local`, port 80 at 8080.
pub(crate) fn pod(name: &str, address: &str) -> proto::Workload {
    proto::Workload {
        uid: uid(name),
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        addresses: vec![bytes(address)],
        service_account: "api".to_owned(),
        node: "node1".to_owned(),
        tunnel_protocol: proto::TunnelProtocol::Hbone.into(),
        services: [(API.to_owned(), ports(&[(80, 8080)]))].into(),
        ..Default::default()
    }
}

pub(crate) const API: &str = "shop/api.shop.svc.cluster.local";

pub(crate) fn uid(name: &str) -> String {
    format!("Kubernetes//Pod/shop/{name}")
}

pub(crate) fn ports(ports: &[(u32, u32)]) -> proto::PortList {
    let port = |&(service_port, target_port): &(u32, u32)| proto::Port {
        service_port,
        target_port,
        app_protocol: 0,
    };
    proto::PortList {
        ports: ports.iter().map(port).collect(),
    }
}

/// A service `name.shop.svc.cluster.local` with port 80.
pub(crate) fn service(name: &str, addresses: &[&str]) -> proto::Service {
    let address = |address: &&str| proto::NetworkAddress {
        network: String::new(),
        address: bytes(address),
        length: None,
    };
    proto::Service {
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        hostname: format!("{name}.shop.svc.cluster.local"),
        addresses: addresses.iter().map(address).collect(),
        ports: ports(&[(80, 8080)]).ports,
        ..Default::default()
    }
}

pub(crate) fn policy(name: &str) -> security::Authorization {
    security::Authorization {
        name: name.to_owned(),
        namespace: "shop".to_owned(),
        scope: security::Scope::Namespace.into(),
        ..Default::default()
    }
}

pub(crate) trait IntoResource {
    fn resource(self) -> Resource;
}

impl IntoResource for proto::Workload {
    fn resource(self) -> Resource {
        let name = self.uid.clone();
        let message = proto::Address {
            r#type: Some(proto::address::Type::Workload(self)),
        };
        resource(name, ADDRESS_TYPE, message.encode_to_vec())
    }
}

impl IntoResource for proto::Service {
    fn resource(self) -> Resource {
        let name = format!("{}/{}", self.namespace, self.hostname);
        let message = proto::Address {
            r#type: Some(proto::address::Type::Service(self)),
        };
        resource(name, ADDRESS_TYPE, message.encode_to_vec())
    }
}

impl IntoResource for security::Authorization {
    fn resource(self) -> Resource {
        let name = format!("{}/{}", self.namespace, self.name);
        resource(name, AUTHORIZATION_TYPE, self.encode_to_vec())
    }
}

fn resource(name: String, type_url: &str, value: Vec<u8>) -> Resource {
    Resource {
        version: "1".to_owned(),
        resource: Some(prost_types::Any {
            type_url: type_url.to_owned(),
            value,
        }),
        name,
        aliases: Vec::new(),
    }
}

/// A store that knows these, and that there are no policies.
pub(crate) fn store<const N: usize>(resources: [Resource; N]) -> Store {
    let store = Store::new("");
    assert_eq!(store.apply_addresses(&resources, &[]), []);
    assert_eq!(store.apply_policies(&[], &[]), []);
    store
}
