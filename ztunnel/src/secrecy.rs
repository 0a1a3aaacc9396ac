//! Keys stay in this process's memory: no crash writes it to a disk, and no process without `CAP_SYS_PTRACE` reads it.

use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Before there is a key. The agent, which has the capability, can still duplicate this process's listening sockets.
pub fn forbid_dumps() -> io::Result<()> {
    // A dump into a pipe, as systemd's, asks for this alone.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    Ok(setrlimit(Resource::Core, none)?)
}
