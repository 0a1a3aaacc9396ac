//! What a process that got hold of the agent's socket could tell a node proxy, with a namespace and without.

#![no_main]

use std::fs::File;

use libfuzzer_sys::fuzz_target;
use seine_ztunnel::zds::understands;

fuzz_target!(|bytes: &[u8]| {
    let alone = understands(bytes, Vec::new());
    let netns = || File::open("/proc/self/ns/net").expect("this process has one");
    let with_one = understands(bytes, vec![netns().into()]);
    // A pod comes with a namespace, and with one alone.
    let with_two = understands(bytes, vec![netns().into(), netns().into()]);
    assert!(!with_two || alone, "two namespaces for one pod");
    assert!(
        with_one || !alone,
        "a request without a namespace is one with it, too"
    );
});
