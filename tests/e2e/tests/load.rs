//! Many bytes and many connections: nothing is lost, mixed up, or held up by others.

#![allow(missing_docs, reason = "the names of tests say what they are about")]

use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use seine_e2e::manifests::{Pod, meshed_namespace, service};
use seine_e2e::peer::pattern::expected;
use seine_e2e::peer::report::{Failure, Held, Received, Transferred};
use seine_e2e::{Bed, Family, trials};
use seine_lab::protocol::Component;

/// Each way.
const BYTES: u64 = 1_000_000_000;
const CONNECTIONS: usize = 5000;
/// Where ztunnels take tunnels.
const HBONE: u16 = 15008;
/// The threads of a lab's ztunnel that move bytes.
const WORKERS: usize = 2;
/// What a ztunnel may grow by beside a reader that reads nothing: the windows of the connections at
/// the time are 1 MiB each, and what the allocator keeps of the transfers comes on top.
const MOST_FOR_A_SLOW_READER: u64 = 24 << 20;
const SERVERS: [&str; 3] = ["echo:8080", "sink:8082", "source:8083"];
const PORTS: [(&str, u16, u16); 3] = [
    ("echo", 8080, 8080),
    ("sink", 8082, 8082),
    ("source", 8083, 8083),
];

fn main() -> ExitCode {
    seine_e2e::trial::main(
        up,
        trials![
            a_gigabyte_arrives_unharmed_in_both_directions_at_once,
            a_slow_reader_costs_bounded_memory_and_stalls_nobody_in_its_tunnel,
            thousands_of_connections_stand_at_once_and_each_has_its_own_bytes,
        ],
    )
}

fn up() -> Result<Bed> {
    Bed::up(
        "e2e-load",
        &[
            meshed_namespace("mesh"),
            Pod::new("mesh", "client", 1).object(),
            Pod::new("mesh", "near", 1).serves(&SERVERS).object(),
            Pod::new("mesh", "far", 2).serves(&SERVERS).object(),
            service("mesh", "near", "near", &PORTS),
            service("mesh", "far", "far", &PORTS),
        ],
    )
}

fn transfer(bed: &Bed, target: &str, family: Family, bytes: u64) -> Result<()> {
    let (count, number) = (bytes.to_string(), family.number());
    let done: Transferred = bed.peer(
        "mesh/client",
        &[
            "transfer", target, "8082", "8083", &count, "--family", number,
        ],
    )?;
    let expected = expected(bytes);
    ensure!(
        done.failures.is_empty()
            && done.sent.as_ref() == Some(&expected)
            && done.received.as_ref() == Some(&expected),
        "{target} by {family:?}: {done:?}, but {expected:?} was sent"
    );
    Ok(())
}

fn a_gigabyte_arrives_unharmed_in_both_directions_at_once(bed: &Bed) -> Result<()> {
    // On one node and across two; either family carries one, and what tells them apart is in the
    // first bytes.
    transfer(bed, "far", Family::V4, BYTES)?;
    transfer(bed, "near", Family::V6, BYTES)?;
    transfer(bed, "far", Family::V6, BYTES / 50)?;
    transfer(bed, "near", Family::V4, BYTES / 50)
}

/// Resident memory of a node's ztunnel, in bytes.
fn memory(bed: &Bed, node: u8) -> Result<u64> {
    let pid = bed.process(Component::Ztunnel, Some(node))?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("no VmRSS")?;
    let kilobytes = line.trim().trim_end_matches(" kB").trim();
    Ok(kilobytes.parse::<u64>()? * 1024)
}

/// How many TCP connections stand from the client to port 15008 of the target: its tunnels.
fn tunnels(bed: &Bed, target: &str, family: Family) -> Result<usize> {
    let address = family.of(bed.pod_ips(&format!("mesh/{target}"))?);
    // As /proc/net/tcp has it: 32-bit words, each in the machine's order of bytes.
    let bytes = match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let mut remote: String = bytes
        .chunks_exact(4)
        .map(|word| {
            format!(
                "{:08X}",
                u32::from_ne_bytes([word[0], word[1], word[2], word[3]])
            )
        })
        .collect();
    remote += &format!(":{HBONE:04X}");
    let table = match family {
        Family::V4 => "/proc/net/tcp",
        Family::V6 => "/proc/net/tcp6",
    };
    let output = bed.lab().exec("mesh", "client", &["cat", table])?;
    ensure!(output.code == 0, "{output:?}");
    // sl, local address, remote address, state; 01 is established.
    let stands = |line: &&str| {
        let fields: Vec<_> = line.split_whitespace().collect();
        matches!(fields[..], [_, _, to, "01", ..] if to == remote)
    };
    Ok(output.stdout.lines().filter(stands).count())
}

fn a_slow_reader_costs_bounded_memory_and_stalls_nobody_in_its_tunnel(bed: &Bed) -> Result<()> {
    let bytes: u64 = 128 << 20;
    for (target, family) in [("far", Family::V4), ("near", Family::V6)] {
        transfer(bed, target, family, 1 << 20)?;
        let before = [memory(bed, 1)?, memory(bed, 2)?];
        let (count, number) = (bytes.to_string(), family.number());
        let slow = ["slow", target, "8083", &count, "--family", number];
        let mut slow = bed.start("mesh/client", &slow)?;
        ensure!(slow.report::<String>()? == "asked");
        // Many, so that some are in the slow one's tunnel: a ztunnel has one for each thread.
        let hold = ["hold", target, "8080", "64", "--family", number];
        let mut beside = bed.start("mesh/client", &hold)?;
        let held: Held = beside.report()?;
        ensure!(held.answered == 64, "{target}: {held:?}");
        let tunnels = tunnels(bed, target, family)?;
        ensure!(
            (1..=WORKERS).contains(&tunnels),
            "66 connections are in {tunnels} tunnels to {target}, not in one for each thread"
        );
        transfer(bed, target, family, 16 << 20)?;
        for (node, before) in [1, 2].into_iter().zip(before) {
            let grown = memory(bed, node)?.saturating_sub(before);
            ensure!(
                grown < MOST_FOR_A_SLOW_READER,
                "ztunnel of node{node} grew by {grown} bytes for {bytes} that nobody reads"
            );
        }
        let held: Held = beside.finish()?;
        ensure!(held.answered == 64, "{target}: {held:?}");
        slow.say("now read")?;
        let received: Result<Received, Failure> = slow.report()?;
        ensure!(received.as_ref() == Ok(&expected(bytes)), "{received:?}");
    }
    Ok(())
}

fn thousands_of_connections_stand_at_once_and_each_has_its_own_bytes(bed: &Bed) -> Result<()> {
    for (target, family) in [("far", Family::V4), ("near", Family::V6)] {
        let count = CONNECTIONS.to_string();
        let hold = ["hold", target, "8080", &count, "--family", family.number()];
        let mut holder = bed.start("mesh/client", &hold)?;
        let held: Held = holder.report()?;
        ensure!(
            held.answered == CONNECTIONS && held.failed.is_empty(),
            "{target}: {held:?}"
        );
        let again: Held = holder.finish()?;
        ensure!(
            again.answered == CONNECTIONS && again.failed.is_empty(),
            "{target}, after holding them: {again:?}"
        );
    }
    Ok(())
}
