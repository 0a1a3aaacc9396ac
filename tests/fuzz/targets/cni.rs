//! JSON around the CNI plugin: its configuration on standard input, the files of other plugins that the agent edits,
//! messages between plugin and agent, and the state file.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use seine_cni::{LastKnown, PluginEntry, api, facts_of};
use serde_json::Value;

static ENTRY: LazyLock<Value> = LazyLock::new(|| {
    PluginEntry {
        agent_socket: "/run/seine/cni.sock".into(),
        state_file: "/run/seine/namespaces.json".into(),
        kubeconfig: "/run/seine/api-server.kubeconfig".into(),
        always_start_namespaces: vec!["kube-system".into()],
        timeout_seconds: 20,
    }
    .to_value()
});

fuzz_target!(|text: &str| {
    let _ = facts_of(text);
    let _ = LastKnown::parse(text);
    for name in ["10-net.conflist", "10-net.conf"] {
        seine_agent::cni_chain::check_edits(name, text, &ENTRY);
    }
    if let Ok(request) = serde_json::from_str::<api::Request>(text) {
        let again = serde_json::to_string(&request).expect("strings and lists of them");
        assert_eq!(
            serde_json::from_str::<api::Request>(&again).expect("its own text"),
            request
        );
    }
    let _ = serde_json::from_str::<api::Response>(text);
});
