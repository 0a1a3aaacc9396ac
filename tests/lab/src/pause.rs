//! The process that holds a pod's namespaces (`seine-lab internal-pause`).
//!
//! A pod sees the machine's file system through an overlay: it can read all of it, and what
//! it writes is its own and in memory. So a pod's program may keep its usual paths
//! (`/var/log/nginx`, `/run/postgresql`) without a trace on the machine, and two pods of the
//! same program don't meet. `/run` is empty, which hides the lab's own sockets.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use serde::{Deserialize, Serialize};

use crate::cgroup;

/// A file or directory of the machine that a pod sees at another path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// On the machine.
    pub source: PathBuf,
    /// In the pod; made if missing.
    pub target: PathBuf,
    /// Whether the pod may not write to it.
    pub read_only: bool,
}

/// What a pod's sandbox is made of.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sandbox {
    /// The cgroup of the process that holds it.
    pub cgroup: PathBuf,
    /// The pod's network namespace.
    pub netns: PathBuf,
    /// The pod's host name.
    pub hostname: String,
    /// An empty directory for the pod's file system.
    pub root: PathBuf,
    /// Volumes, and the files that Kubernetes puts into `/etc`.
    pub binds: Vec<Bind>,
}

impl Sandbox {
    /// Makes the namespaces, says "ready" on standard output, and stays.
    pub fn hold(&self) -> Result<()> {
        cgroup::join(&self.cgroup)?;
        let netns =
            File::open(&self.netns).with_context(|| format!("opening {}", self.netns.display()))?;
        setns(netns, CloneFlags::CLONE_NEWNET).context("setns to the pod's network")?;
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC)
            .context("unshare")?;
        nix::unistd::sethostname(&self.hostname).context("sethostname")?;
        self.make_root()?;
        std::io::stdout().write_all(b"ready\n")?;
        loop {
            nix::unistd::pause();
        }
    }

    fn make_root(&self) -> Result<()> {
        // The file descriptor stays readable after the old /proc is out of sight.
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let (upper, work, merged) = (
            self.root.join("upper"),
            self.root.join("work"),
            self.root.join("merged"),
        );
        // A tmpfs: the machine's file system may itself be an overlay, which can't be the
        // upper layer of another one.
        fs::create_dir_all(&self.root)?;
        mount_at("tmpfs", &self.root, "tmpfs", "mode=755")?;
        for directory in [&upper, &work, &merged] {
            fs::create_dir(directory)?;
        }
        mount_at(
            "overlay",
            &merged,
            "overlay",
            &format!(
                "lowerdir=/,upperdir={},workdir={}",
                upper.display(),
                work.display()
            ),
        )?;
        for path in visible_mounts(&mounts) {
            let target = merged.join(path.strip_prefix("/").unwrap_or(&path));
            let made = if path.is_dir() {
                fs::create_dir_all(&target)
            } else {
                touch(&target)
            };
            // A mount that can't be shown (its parent is another file system) is left out.
            if made.is_ok() {
                let _ = bind(&path, &target, false);
            }
        }
        mount_at("tmpfs", &merged.join("run"), "tmpfs", "mode=755")?;
        for Bind {
            source,
            target,
            read_only,
        } in &self.binds
        {
            let target = merged.join(target.strip_prefix("/").unwrap_or(target));
            if source.is_dir() {
                fs::create_dir_all(&target)
            } else {
                touch(&target)
            }
            .with_context(|| format!("making mount point {}", target.display()))?;
            bind(source, &target, *read_only)?;
        }
        std::env::set_current_dir(&merged)?;
        nix::unistd::pivot_root(".", ".").context("pivot_root")?;
        umount2(".", MntFlags::MNT_DETACH).context("leaving the old root")?;
        std::env::set_current_dir("/")?;
        Ok(())
    }
}

fn touch(path: &Path) -> std::io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    // Not opened for writing: that would copy an existing file up.
    if path.symlink_metadata().is_ok_and(|m| m.is_symlink()) {
        // A bind mount would follow it to somewhere else (/etc/resolv.conf often is one).
        fs::remove_file(path)?;
    }
    if path.exists() {
        Ok(())
    } else {
        File::create(path).map(drop)
    }
}

fn mount_at(source: &str, target: &Path, kind: &str, options: &str) -> Result<()> {
    mount(
        Some(source),
        target,
        Some(kind),
        MsFlags::empty(),
        Some(options),
    )
    .with_context(|| format!("mounting {kind} at {}", target.display()))
}

fn bind(source: &Path, target: &Path, read_only: bool) -> Result<()> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(source), target, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("binding {} to {}", source.display(), target.display()))?;
    if read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, target, None::<&str>, flags, None::<&str>)
            .with_context(|| format!("making {} read-only", target.display()))?;
    }
    Ok(())
}

/// The mount points of the machine that a pod sees: an overlay shows the root file system
/// alone. Those below another in the list come with it.
fn visible_mounts(mountinfo: &str) -> Vec<PathBuf> {
    let mut seen: Vec<PathBuf> = Vec::new();
    for line in mountinfo.lines() {
        let Some(path) = line.split(' ').nth(4) else {
            continue;
        };
        // The kernel writes blanks as \040; such paths are left out.
        if path == "/" || path.contains('\\') {
            continue;
        }
        let path = PathBuf::from(path);
        let hidden = path.starts_with("/run") || path.starts_with("/var/run");
        if !hidden && !seen.iter().any(|outer| path.starts_with(outer)) {
            seen.retain(|inner| !inner.starts_with(&path));
            seen.push(path);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_sees_the_outermost_mounts_and_nothing_of_run() {
        let mountinfo = "1 0 8:1 / / rw - ext4 /dev/vda rw\n\
            2 1 0:5 / /proc rw - proc proc rw\n\
            3 1 0:6 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            4 1 0:7 / /sys rw - sysfs sysfs rw\n\
            5 1 0:8 / /run/lock rw - tmpfs tmpfs rw\n\
            6 1 8:2 / /home rw - ext4 /dev/vdb rw\n\
            7 6 8:3 / /home/a rw - ext4 /dev/vdc rw\n";
        let paths: Vec<_> = visible_mounts(mountinfo);
        assert_eq!(paths, ["/proc", "/sys", "/home"].map(PathBuf::from));
    }
}
