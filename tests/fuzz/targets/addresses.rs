//! Workloads and services from a control plane, and then a look-up by everything they name.

#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message;
use seine_proto::workload::{Address, address};

fuzz_target!(|bytes: &[u8]| {
    let Ok(Address { r#type: Some(kind) }) = Address::decode(bytes) else {
        return;
    };
    match kind {
        address::Type::Workload(message) => {
            let _ = seine_workload::parse::workload(&message);
        }
        address::Type::Service(message) => {
            let _ = seine_workload::parse::service(&message);
        }
    }
});
