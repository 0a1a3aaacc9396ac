//! Workloads and services from a control plane, and then a look-up by everything they name.

#![no_main]

use std::net::{IpAddr, SocketAddr};

use libfuzzer_sys::fuzz_target;
use prost::Message;
use seine_proto::discovery::Resource;
use seine_proto::workload::{Address, address};
use seine_workload::Store;

fuzz_target!(|bytes: &[u8]| {
    let store = Store::new("");
    let mut asked = vec![SocketAddr::from(([10, 0, 0, 1], 80))];
    let mut names = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() && names.len() < 16 {
        let Ok(message) = Address::decode_length_delimited(&mut rest) else {
            break;
        };
        let (name, addresses) = match &message.r#type {
            Some(address::Type::Workload(workload)) => (
                workload.uid.clone(),
                workload.addresses.iter().collect::<Vec<_>>(),
            ),
            Some(address::Type::Service(service)) => (
                format!("{}/{}", service.namespace, service.hostname),
                service.addresses.iter().map(|a| &a.address).collect(),
            ),
            None => continue,
        };
        for bytes in addresses {
            let ip = <[u8; 4]>::try_from(bytes.as_slice())
                .map(IpAddr::from)
                .or_else(|_| <[u8; 16]>::try_from(bytes.as_slice()).map(IpAddr::from));
            asked.extend(ip.ok().map(|ip| SocketAddr::new(ip, 80)));
        }
        let resource = Resource {
            name: name.clone(),
            resource: Some(prost_types::Any {
                type_url: seine_proto::ADDRESS_TYPE.into(),
                value: message.encode_to_vec(),
            }),
            ..Default::default()
        };
        store.apply_addresses(&[resource], &[]);
        names.push(name);
    }

    let workloads = store.workloads();
    let known: Vec<IpAddr> = asked.iter().map(SocketAddr::ip).take(4).collect();
    for service in store.services() {
        for port in service.ports.iter().take(8) {
            asked.extend(
                known
                    .iter()
                    .map(|&ip| SocketAddr::new(ip, port.service_port)),
            );
        }
    }
    for destination in asked {
        let _ = store.resolve(destination, None, &[]);
        if let Some(workload) = workloads.first() {
            let tried = std::slice::from_ref(&workload.uid);
            let _ = store.resolve(destination, Some(workload), tried);
        }
        let _ = store.workload_at(destination.ip());
        let _ = store.service_at(destination.ip(), Some("shop"));
    }
    for workload in &workloads {
        let _ = store.policies_for(&workload.uid);
    }
    // Nothing stays behind in an index.
    store.apply_addresses(&[], &names);
    assert!(store.workloads().is_empty() && store.services().is_empty());
    assert_eq!(store.held_addresses().count(), 0);
});
