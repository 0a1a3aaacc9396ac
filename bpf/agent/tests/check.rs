//! `seine-agent check` as an operator runs it: on this machine, which has what is needed, and with one thing
//! taken away. Needs root and a cgroup v2; SKIPPED without.

#![allow(clippy::unwrap_used, reason = "a test's helper fails by panicking")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;

use nix::mount::MntFlags;
use nix::mount::MsFlags;
use nix::mount::mount;
use nix::mount::umount2;
use serde_json::Value;

/// Cgroups and a bpffs; they go when it is dropped.
struct Node {
    cgroup: PathBuf,
    folder: tempfile::TempDir,
}

impl Node {
    fn new(name: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("SKIPPED: needs root");
            return None;
        }
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let mut mounts = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>());
        let Some(cgroup2) = mounts.find(|fields| fields.get(2) == Some(&"cgroup2")) else {
            eprintln!("SKIPPED: needs cgroup v2");
            return None;
        };
        let name = format!("seine-check-test-{name}-{}", std::process::id());
        let node = Self {
            cgroup: PathBuf::from(cgroup2[1]).join(name),
            folder: tempfile::tempdir().unwrap(),
        };
        for name in ["kubepods", "kubelet"] {
            fs::create_dir_all(node.cgroup.join(name)).unwrap();
        }
        let none = None::<&str>;
        mount(
            none,
            node.folder.path(),
            Some("bpf"),
            MsFlags::empty(),
            none,
        )
        .unwrap();
        Some(node)
    }

    /// Runs the check, by way of other programs.
    fn check(&self, by: &[&str], bpffs: PathBuf) -> Output {
        let line: Vec<_> = by
            .iter()
            .copied()
            .chain([env!("CARGO_BIN_EXE_seine-agent"), "check", "-o", "json"])
            .collect();
        Command::new(line[0])
            .args(&line[1..])
            .arg("--pods-cgroup")
            .arg(self.cgroup.join("kubepods"))
            .arg("--kubelet-cgroup")
            .arg(self.cgroup.join("kubelet"))
            .arg("--bpffs")
            .arg(bpffs)
            .output()
            .unwrap()
    }

    fn bpffs(&self) -> PathBuf {
        self.folder.path().join("seine")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = umount2(self.folder.path(), MntFlags::MNT_DETACH);
        for name in ["kubepods", "kubelet", ""] {
            let _ = fs::remove_dir(self.cgroup.join(name));
        }
    }
}

/// Name and finding of what is missing.
fn missing(output: &Output) -> Vec<(String, String)> {
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    findings
        .iter()
        .filter(|finding| finding["verdict"] == "missing")
        .map(|finding| (text(&finding["name"]), text(&finding["found"])))
        .collect()
}

#[test]
fn a_node_that_has_everything_passes() {
    let Some(node) = Node::new("a") else { return };
    let entries = || fs::read_dir(node.folder.path()).unwrap().count();
    let before = entries();
    let output = node.check(&["env"], node.bpffs());
    assert_eq!(missing(&output), []);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(entries(), before, "it leaves nothing");
}

#[test]
fn a_capability_that_is_taken_away_is_named_and_is_the_exit_status() {
    let Some(node) = Node::new("b") else { return };
    for (capability, name) in [
        ("-sys_ptrace", "SYS_PTRACE"),
        ("-net_admin", "NET_ADMIN"),
        ("-sys_admin", "SYS_ADMIN"),
    ] {
        let by = ["setpriv", "--bounding-set", capability];
        let output = node.check(&by, node.bpffs());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let missing = missing(&output);
        assert!(
            missing.contains(&("capabilities".to_owned(), format!("without {name}"))),
            "{missing:?}"
        );
    }
}

#[test]
fn a_bpffs_that_is_none_is_named_alone() {
    let Some(node) = Node::new("c") else { return };
    let elsewhere = tempfile::tempdir().unwrap();
    let output = node.check(&["env"], elsewhere.path().join("seine"));
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let names: Vec<_> = missing(&output).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["bpffs"]);
}
