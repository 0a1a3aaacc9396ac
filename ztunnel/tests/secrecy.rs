//! A process of its own, since what is forbidden stays forbidden.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use rustix::process::{DumpableBehavior, Resource, dumpable_behavior, getrlimit};
use seine_ztunnel::secrecy::forbid_dumps;

#[test]
fn a_process_with_keys_can_not_be_dumped() {
    assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::Dumpable);
    forbid_dumps().unwrap();
    assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
    assert_eq!(getrlimit(Resource::Core).current, Some(0));
}
