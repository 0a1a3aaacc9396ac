//! What a node proxy sends to the control plane, request after request. It gets an end to the answers, and no
//! resource twice in one.

#![no_main]

use std::{collections::HashSet, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use prost::Message;
use seine_control::{
    translate::{Settings, translate},
    xds::{Snapshot, client::Client},
};
use seine_objects::ObjectSet;
use seine_proto::discovery::DeltaDiscoveryRequest;

static SNAPSHOT: LazyLock<Snapshot> = LazyLock::new(|| {
    let (objects, problems) = ObjectSet::from_yaml(include_str!("../seeds/manifests/shop.yaml"));
    assert!(problems.is_empty(), "{problems:?}");
    let settings = Settings::default();
    Snapshot::default()
        .next(&translate(&objects, &settings), &settings)
        .expect("the first one is news")
});

fuzz_target!(|bytes: &[u8]| {
    let mut client = Client::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        let Ok(mut request) = DeltaDiscoveryRequest::decode_length_delimited(&mut rest) else {
            return;
        };
        // Some kind of a served type, more often than chance would have it.
        match request.type_url.as_str() {
            "a" => request.type_url = seine_proto::ADDRESS_TYPE.into(),
            "p" => request.type_url = seine_proto::AUTHORIZATION_TYPE.into(),
            _ => {}
        }
        if client.request(request).is_err() {
            return;
        }
        let mut answers = 0;
        while let Some(response) = client.response(&SNAPSHOT) {
            let names: HashSet<_> = response.resources.iter().map(|r| &r.name).collect();
            assert_eq!(names.len(), response.resources.len(), "a resource twice");
            answers += 1;
            assert!(answers <= 2, "answer after answer to one request");
        }
    }
});
