//! Many bytes and many connections: nothing is lost, mixed up, or held up by others.

#![allow(missing_docs, reason = "the names of tests say what they are about")]

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use seine_e2e::manifests::{Pod, meshed_namespace, service};
use seine_e2e::peer::pattern::expected;
use seine_e2e::peer::report::{Failure, Held, Received, Transferred};
use seine_e2e::{Bed, trials};
use seine_lab::protocol::Component;

/// Each way; `SEINE_E2E_BYTES=1000000000` for the whole gigabyte, which the unoptimised programs
/// of a test run take longer for than a test run should.
const BYTES: u64 = 256 << 20;
const CONNECTIONS: usize = 5000;
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
            a_long_stream_arrives_unharmed_in_both_directions_at_once,
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

fn transfer(bed: &Bed, target: &str, bytes: u64) -> Result<()> {
    let count = bytes.to_string();
    let done: Transferred =
        bed.peer("mesh/client", &["transfer", target, "8082", "8083", &count])?;
    let expected = expected(bytes);
    ensure!(
        done.failures.is_empty()
            && done.sent.as_ref() == Some(&expected)
            && done.received.as_ref() == Some(&expected),
        "{target}: {done:?}, but {expected:?} was sent"
    );
    Ok(())
}

fn a_long_stream_arrives_unharmed_in_both_directions_at_once(bed: &Bed) -> Result<()> {
    let bytes = match std::env::var("SEINE_E2E_BYTES") {
        Ok(bytes) => bytes.parse().context("SEINE_E2E_BYTES")?,
        Err(_) => BYTES,
    };
    transfer(bed, "far", bytes)?;
    transfer(bed, "near", bytes / 4)
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

fn a_slow_reader_costs_bounded_memory_and_stalls_nobody_in_its_tunnel(bed: &Bed) -> Result<()> {
    let bytes: u64 = 128 << 20;
    // The same two pods, so the same tunnel.
    transfer(bed, "far", 1 << 20)?;
    let before = [memory(bed, 1)?, memory(bed, 2)?];
    let mut slow = bed.start("mesh/client", &["slow", "far", "8083", &bytes.to_string()])?;
    ensure!(slow.report::<String>()? == "asked");
    transfer(bed, "far", 16 << 20)?;
    for (node, before) in [1, 2].into_iter().zip(before) {
        let grown = memory(bed, node)?.saturating_sub(before);
        ensure!(
            grown < bytes / 2,
            "ztunnel of node{node} grew by {grown} bytes for {bytes} that nobody reads"
        );
    }
    slow.say("now read")?;
    let received: Result<Received, Failure> = slow.report()?;
    ensure!(received.as_ref() == Ok(&expected(bytes)), "{received:?}");
    Ok(())
}

fn thousands_of_connections_stand_at_once_and_each_has_its_own_bytes(bed: &Bed) -> Result<()> {
    let count = CONNECTIONS.to_string();
    let mut holder = bed.start("mesh/client", &["hold", "far", "8080", &count])?;
    let held: Held = holder.report()?;
    ensure!(
        held.answered == CONNECTIONS && held.failed.is_empty(),
        "{held:?}"
    );
    let again: Held = holder.finish()?;
    ensure!(
        again.answered == CONNECTIONS && again.failed.is_empty(),
        "after holding them: {again:?}"
    );
    Ok(())
}
