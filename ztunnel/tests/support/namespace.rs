//! A pod's network namespace, for tests that run as root.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use seine_ztunnel::netns::Netns;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A namespace with a pod's addresses and the way back for foreign sources; gone when dropped.
pub(crate) struct PodNamespace(String);

impl PodNamespace {
    /// None without the privileges for it.
    pub(crate) fn new() -> Option<Self> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("seine-test-{}-{number}", std::process::id());
        let run = |line: &str| {
            let mut words = line.split_whitespace();
            let status = Command::new(words.next().unwrap()).args(words).status();
            status.is_ok_and(|status| status.success())
        };
        if !run(&format!("ip netns add {name}")) {
            return None;
        }
        let namespace = Self(name);
        let inside = |line: &str| {
            assert!(
                run(&format!("ip netns exec {} {line}", namespace.0)),
                "{line}"
            )
        };
        inside("ip link set lo up");
        // Both ends stay inside: nothing leaves.
        inside("ip link add eth0 type veth peer name eth1");
        inside("ip link set eth1 up");
        inside("ip link set eth0 up");
        inside("ip address add 10.99.0.2/24 dev eth0");
        inside("ip address add fd99::2/64 dev eth0 nodad");
        for (family, all) in [("-4", "0.0.0.0/0"), ("-6", "::/0")] {
            inside(&format!(
                "ip {family} rule add fwmark 0x539/0xfff lookup 539"
            ));
            inside(&format!(
                "ip {family} route add local {all} dev lo table 539"
            ));
        }
        inside("sysctl -qw net.ipv4.tcp_fwmark_accept=1");
        Some(namespace)
    }

    pub(crate) fn open(&self) -> Netns {
        Netns::from_descriptor(File::open(self.path()).unwrap().into()).unwrap()
    }

    /// A file that stands for it.
    pub(crate) fn path(&self) -> PathBuf {
        format!("/run/netns/{}", self.0).into()
    }
}

impl Drop for PodNamespace {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "delete", &self.0])
            .status();
    }
}
