//! Cgroups of version 2: where they are mounted, making, killing and removing them.
//!
//! The path is never assumed: machines have cgroup v2 alone at `/sys/fs/cgroup`, or beside
//! version 1 at `/sys/fs/cgroup/unified`, so `/proc/mounts` decides.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The mount point of the cgroup v2 hierarchy.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts").context("reading /proc/mounts")?;
    find_cgroup2(&mounts)
        .context("no cgroup v2 hierarchy is mounted: mount -t cgroup2 none /sys/fs/cgroup/unified")
}

fn find_cgroup2(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut fields = line.split(' ');
        let target = fields.nth(1)?;
        (fields.next()? == "cgroup2").then(|| PathBuf::from(target))
    })
}

/// Makes a cgroup and its parents.
pub fn create(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("making cgroup {}", path.display()))
}

/// Moves the calling process, which must have one thread, into the cgroup.
pub fn join(path: &Path) -> Result<()> {
    fs::write(path.join("cgroup.procs"), "0")
        .with_context(|| format!("joining cgroup {}", path.display()))
}

/// Whether any process is alive in the cgroup or below it; false where it is gone.
pub fn populated(path: &Path) -> bool {
    fs::read_to_string(path.join("cgroup.events"))
        .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
}

/// The processes in the cgroup itself, as numbered in the reader's PID namespace.
pub fn processes(path: &Path) -> Vec<i32> {
    fs::read_to_string(path.join("cgroup.procs"))
        .map(|text| text.lines().filter_map(|pid| pid.parse().ok()).collect())
        .unwrap_or_default()
}

/// Sends SIGKILL to every process in the cgroup and below it.
pub fn kill(path: &Path) -> io::Result<()> {
    fs::write(path.join("cgroup.kill"), "1")
}

/// Kills what is in the cgroup and below it and removes all of it. A cgroup that is gone is
/// no error.
pub fn destroy(path: &Path, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    loop {
        if !path.exists() {
            return Ok(());
        }
        if populated(path) {
            let _ = kill(path);
        }
        match remove_tree(path) {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                bail!("cgroup {} can't be removed: {error}", path.display())
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hierarchy_is_found_on_hybrid_and_on_pure_machines() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                      cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(
            find_cgroup2(hybrid).unwrap(),
            Path::new("/sys/fs/cgroup/unified")
        );
        let pure = "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n";
        assert_eq!(find_cgroup2(pure).unwrap(), Path::new("/sys/fs/cgroup"));
        assert_eq!(find_cgroup2("proc /proc proc rw 0 0\n"), None);
    }
}
