//! YAML as a user writes it, on to what agents do with its pods and what proxies are told of it.
//!
//! A proxy takes whatever the control plane made of it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use seine_control::{
    translate::{Settings, translate},
    xds::{Snapshot, client::Client},
};
use seine_objects::ObjectSet;
use seine_proto::discovery::DeltaDiscoveryRequest;
use seine_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use seine_workload::Store;
use seine_xds::Handler;

fuzz_target!(|text: &str| {
    let (objects, _) = ObjectSet::from_yaml(text);
    let settings = Settings {
        istio_root_namespace: Some(seine_objects::istio::ROOT_NAMESPACE.into()),
        ..Settings::default()
    };
    for key in objects.pods.keys() {
        let (namespace, name) = (key.namespace.as_str(), key.name.as_str());
        let _ = seine_agent::plan::desired(&objects, namespace, name, "", &settings.enrolment);
    }
    let resources = translate(&objects, &settings);
    let Some(snapshot) = Snapshot::default().next(&resources, &settings) else {
        return;
    };
    let store = Store::new("");
    let mut client = Client::default();
    for type_url in [AUTHORIZATION_TYPE, ADDRESS_TYPE] {
        let everything = DeltaDiscoveryRequest {
            type_url: type_url.into(),
            ..Default::default()
        };
        client.request(everything).expect("few subscriptions");
    }
    while let Some(response) = client.response(&snapshot) {
        let refused = store.apply(&response.type_url, &response.resources, &[]);
        assert!(refused.is_empty(), "{refused:?}");
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            ..Default::default()
        };
        client.request(ack).expect("no subscription");
    }
});
