//! Two labs with a mesh each on one machine, and what is left of them.

#![allow(missing_docs, reason = "the names of tests say what they are about")]

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use aya::programs::loaded_programs;
use seine_e2e::manifests::{Pod, meshed_namespace, service};
use seine_e2e::trial::Shared;
use seine_e2e::{Bed, trials, until};
use seine_lab::protocol::Component;

const SERVERS: [&str; 1] = ["echo:8080"];
const PORTS: [(&str, u16, u16); 1] = [("echo", 8080, 8080)];

fn main() -> ExitCode {
    seine_e2e::trial::main(
        || Ok(Nothing),
        trials![
            two_meshes_side_by_side_serve_their_own_pods_and_end_apart,
            nothing_is_left_of_a_mesh_whose_lab_was_killed,
        ],
    )
}

/// These tests start their labs themselves.
struct Nothing;

impl Shared for Nothing {
    fn last_words(&self) -> String {
        String::new()
    }
}

fn bed(name: &str) -> Result<Bed> {
    Bed::up(
        name,
        &[
            meshed_namespace("mesh"),
            Pod::new("mesh", "client", 1).object(),
            Pod::new("mesh", "far", 2).serves(&SERVERS).object(),
            service("mesh", "far", "far", &PORTS),
        ],
    )
}

/// What a lab has on the machine: its cgroup and its folder.
fn places(bed: &Bed) -> Result<[PathBuf; 2]> {
    let agent = bed.component(Component::Agent, Some(1))?;
    let name = format!("seine-lab-{}", bed.lab().name());
    let cgroup = Path::new(&agent.cgroup)
        .ancestors()
        .find(|path| path.ends_with(&name))
        .with_context(|| format!("no {name} above {}", agent.cgroup))?
        .to_owned();
    let state = PathBuf::from(bed.lab().status()?.state);
    ensure!(cgroup.is_dir() && state.is_dir());
    Ok([cgroup, state])
}

fn await_gone(places: &[PathBuf]) -> Result<()> {
    for place in places {
        until(&format!("{} is gone", place.display()), || {
            Ok((!place.exists()).then_some(()))
        })?;
    }
    Ok(())
}

fn two_meshes_side_by_side_serve_their_own_pods_and_end_apart(_: &Nothing) -> Result<()> {
    let one = bed("e2e-one")?;
    let other = bed("e2e-other")?;
    for bed in [&one, &other] {
        bed.echoes("mesh/client", "far", 8080)?;
        bed.await_ztunnel(2, &["direction=inbound", "security=mutual_tls"])?;
    }
    let places = places(&one)?;
    drop(one);
    await_gone(&places)?;
    other.echoes("mesh/client", "far", 8080)?;
    Ok(())
}

fn nothing_is_left_of_a_mesh_whose_lab_was_killed(_: &Nothing) -> Result<()> {
    let bed = bed("e2e-killed")?;
    bed.echoes("mesh/client", "far", 8080)?;
    let places = places(&bed)?;
    let [cgroup, state] = &places;
    let before = processes(cgroup)?;
    ensure!(before.len() > 5, "a lab has more processes than {before:?}");
    let namespaces: HashSet<_> = before.iter().filter_map(|&pid| netns(pid)).collect();
    let programs: HashSet<_> = before.iter().flat_map(|&pid| programs(pid)).collect();
    ensure!(
        namespaces.len() > 4 && !programs.is_empty(),
        "nodes and pods: {namespaces:?}; eBPF: {programs:?}"
    );

    // Both processes that would clean up, at once: what is gone now, the kernel took away.
    let init = std::fs::read_to_string(state.join("init.pid"))?.parse()?;
    for pid in [parent(init)?, init] {
        let pid = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
    }
    until("its processes are gone", || {
        let left = before
            .iter()
            .filter(|pid| Path::new(&format!("/proc/{pid}/ns/net")).exists())
            .count();
        Ok((left == 0).then_some(()))
    })?;
    // With the last process its eBPF programs, soon; whatever was attached or pinned would hold one.
    until("its eBPF programs are gone", || {
        let loaded = loaded_programs().collect::<Result<Vec<_>, _>>();
        // One that goes while it is asked for is an error.
        let Ok(loaded) = loaded else { return Ok(None) };
        let left = loaded
            .iter()
            .any(|program| programs.contains(&program.id()));
        Ok((!left).then_some(()))
    })?;
    let mut living = std::fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter_map(netns);
    ensure!(
        !living.any(|namespace| namespaces.contains(&namespace)),
        "somebody lives in a network namespace of the lab"
    );
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!mounts.contains("e2e-killed"), "mounts: {mounts}");
    for namespace in &namespaces {
        ensure!(
            !mounts.contains(&format!("net:[{namespace}]")),
            "a network namespace is mounted: {mounts}"
        );
    }

    // Empty folders that nobody lives in the next lab of that name removes, or down.
    drop(bed);
    await_gone(&places)
}

/// The number of a process's network namespace.
fn netns(pid: i32) -> Option<u64> {
    let namespace = std::fs::metadata(format!("/proc/{pid}/ns/net")).ok()?;
    Some(namespace.ino())
}

/// The numbers of the eBPF programs that a process has open.
fn programs(pid: i32) -> Vec<u32> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fdinfo"));
    descriptors
        .into_iter()
        .flatten()
        .filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok())
        .filter_map(|about| {
            about
                .lines()
                .find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok())
        })
        .collect()
}

fn parent(pid: i32) -> Result<i32> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("a process has a name")?;
    Ok(fields.split(' ').nth(1).context("and a parent")?.parse()?)
}

/// The processes in a cgroup and below.
fn processes(cgroup: &Path) -> Result<Vec<i32>> {
    let mut found: Vec<i32> = std::fs::read_to_string(cgroup.join("cgroup.procs"))?
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    for entry in std::fs::read_dir(cgroup)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(processes(&path)?);
        }
    }
    Ok(found)
}
