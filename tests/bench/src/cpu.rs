//! What processes cost: CPU time from their cgroups, memory from `/proc`.

use std::fs;
use std::path::Path;

/// CPU seconds of everything that ran in a cgroup so far, to the microsecond (`cpu.stat`).
pub(crate) fn cgroup_seconds(cgroup: &Path) -> Option<f64> {
    let stat = fs::read_to_string(cgroup.join("cpu.stat")).ok()?;
    let usage = stat
        .lines()
        .find_map(|line| line.strip_prefix("usage_usec "))?;
    Some(usage.parse::<u64>().ok()? as f64 / 1e6)
}

/// The processes of a cgroup.
pub(crate) fn processes(cgroup: &Path) -> Vec<u32> {
    let listed = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    listed.lines().filter_map(|pid| pid.parse().ok()).collect()
}

/// Private memory of a process in KiB: what would be free without it (`smaps_rollup`).
pub(crate) fn private_kib(pid: u32) -> Option<u64> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let of = |name: &str| {
        let line = rollup.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    Some(of("Private_Clean:")? + of("Private_Dirty:")?)
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_has_some_memory_of_its_own() {
        assert!(super::private_kib(std::process::id()).unwrap() > 100);
    }
}
