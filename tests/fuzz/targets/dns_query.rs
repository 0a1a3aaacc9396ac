//! A datagram or message to the DNS proxy of a pod.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use prost::Message;
use seine_proto::discovery::Resource;
use seine_proto::workload::{Address, NetworkAddress, Port, PortList, Service, Workload, address};
use seine_workload::Store;
use seine_ztunnel::dns::{Answer, Transport, View, answer};

static STORE: LazyLock<Store> = LazyLock::new(|| {
    let port = Port {
        service_port: 80,
        target_port: 8080,
        ..Default::default()
    };
    let service = Service {
        name: "web".into(),
        namespace: "shop".into(),
        hostname: "web.shop.svc.cluster.local".into(),
        addresses: vec![NetworkAddress {
            address: vec![10, 0, 0, 1],
            ..Default::default()
        }],
        ports: vec![port],
        ..Default::default()
    };
    let workload = Workload {
        uid: "c//Pod/shop/web-0".into(),
        name: "web-0".into(),
        namespace: "shop".into(),
        addresses: vec![vec![10, 0, 1, 1]],
        services: [(
            "shop/web.shop.svc.cluster.local".into(),
            PortList { ports: vec![port] },
        )]
        .into(),
        ..Default::default()
    };
    let store = Store::new("");
    let resource = |name: &str, r#type| Resource {
        name: name.into(),
        version: "1".into(),
        resource: Some(prost_any(&Address {
            r#type: Some(r#type),
        })),
        ..Default::default()
    };
    let refused = store.apply_addresses(
        &[
            resource(
                "shop/web.shop.svc.cluster.local",
                address::Type::Service(service),
            ),
            resource("c//Pod/shop/web-0", address::Type::Workload(workload)),
        ],
        &[],
    );
    assert!(refused.is_empty(), "{refused:?}");
    store
});

fn prost_any(address: &Address) -> prost_types::Any {
    prost_types::Any {
        type_url: seine_proto::ADDRESS_TYPE.into(),
        value: address.encode_to_vec(),
    }
}

fuzz_target!(|query: &[u8]| {
    let view = View {
        store: &STORE,
        namespace: "shop",
    };
    for (transport, limit) in [(Transport::Udp, 4096), (Transport::Tcp, 65535)] {
        if let Answer::Reply(reply) = answer(&view, transport, query) {
            assert!(
                reply.len() <= limit,
                "{} bytes for {transport:?}",
                reply.len()
            );
            assert_eq!(reply[..2], query[..2], "the id of the query");
        }
    }
});
