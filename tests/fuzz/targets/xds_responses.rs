//! What a control plane sends to a node proxy, response after response; and the file in which that is kept.
//!
//! What was taken comes back from its file, and a resource is held, refused or gone.

#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use seine_proto::discovery::DeltaDiscoveryResponse;
use seine_workload::Store;
use seine_xds::{Handler, NodeInfo, Protocol};

fuzz_target!(|bytes: &[u8]| {
    // As it was saved, broken or not.
    let _ = Store::new("").restore(bytes);

    let node = NodeInfo {
        address: [10, 0, 0, 1].into(),
        pod: "seine-ztunnel-x".into(),
        namespace: "seine-system".into(),
        node: "node1".into(),
        metadata: Default::default(),
    };
    let mut protocol = Protocol::new(&node);
    let store = Store::new("");
    let mut rest = bytes;
    while !rest.is_empty() {
        let Ok(mut response) = DeltaDiscoveryResponse::decode_length_delimited(&mut rest) else {
            break;
        };
        match response.type_url.as_str() {
            "a" => response.type_url = seine_proto::ADDRESS_TYPE.into(),
            "p" => response.type_url = seine_proto::AUTHORIZATION_TYPE.into(),
            _ => {}
        }
        for resource in &mut response.resources {
            if let Some(any) = resource
                .resource
                .as_mut()
                .filter(|any| any.type_url.is_empty())
            {
                any.type_url.clone_from(&response.type_url);
            }
        }
        if protocol.check(&response).is_err() {
            continue;
        }
        let refused = store.apply(
            &response.type_url,
            &response.resources,
            &response.removed_resources,
        );
        let answer = protocol.answer(&response, &refused);
        assert_eq!(answer.error_detail.is_some(), !refused.is_empty());
        protocol.open(|kind| store.held(kind));
    }

    let (mut saved, again) = (Vec::new(), Store::new(""));
    store.snapshot(&mut saved).expect("a Vec takes everything");
    // Policies that were refused are so again.
    let refused = again.restore(&saved).expect("what was saved is read");
    let names = |store: &Store| {
        let mut names: Vec<_> = store
            .held_addresses()
            .chain(store.held_policies())
            .collect();
        names.sort();
        names
    };
    let held = names(&again);
    assert_eq!(names(&store), held);
    for refused in refused {
        assert!(
            held.iter().all(|(name, _)| *name != refused.name),
            "{refused}"
        );
    }
});
