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

/// The processes of a cgroup and of those below it.
pub(crate) fn processes(cgroup: &Path) -> Vec<u32> {
    let listed = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let mut all: Vec<u32> = listed.lines().filter_map(|pid| pid.parse().ok()).collect();
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(processes(&entry.path()));
        }
    }
    all
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

/// The most memory that a process had so far, in KiB.
pub(crate) fn most_kib(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// CPU seconds of a process so far, to the hundredth (`stat`; clock ticks are hundredths on every Linux).
pub(crate) fn process_seconds(pid: u32) -> Option<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before may have spaces.
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut ticks = fields.split(' ').skip(11).map(str::parse::<u64>);
    Some((ticks.next()?.ok()? + ticks.next()?.ok()?) as f64 / 100.0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_has_some_memory_of_its_own() {
        let own = std::process::id();
        assert!(super::private_kib(own).unwrap() > 100);
        assert!(super::most_kib(own).unwrap() > 100);
    }

    #[test]
    fn this_process_has_used_a_processor() {
        let own = std::process::id();
        let before = super::process_seconds(own).unwrap();
        let mut sum = 0u64;
        while super::process_seconds(own).unwrap() == before {
            sum = std::hint::black_box(sum + 1);
        }
    }
}
