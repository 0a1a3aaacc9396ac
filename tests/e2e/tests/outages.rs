//! Certificates that are short of life, and a control plane that is away.

#![allow(missing_docs, reason = "the names of tests say what they are about")]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use seine_e2e::manifests::{Pod, meshed_namespace, service};
use seine_e2e::peer::report::Loaded;
use seine_e2e::{Bed, Running, trials, until, until_within};
use seine_lab::Options;
use seine_lab::protocol::Component;
use serde_json::Value;

/// Seconds that a certificate lives; it is renewed at half of that.
const LIFETIME: &str = "14";
/// Seconds that the CA's intermediate lives; a new one signs at half of that.
const INTERMEDIATE: &str = "60";
/// A phase of a root's rotation takes a certificate's life and a minute, and up to 15 s until the CA looks.
const PHASE: Duration = Duration::from_secs(14 + 60 + 15 + 30);
const SERVERS: [&str; 1] = ["echo:8080"];
const PORTS: [(&str, u16, u16); 1] = [("echo", 8080, 8080)];

fn main() -> ExitCode {
    seine_e2e::trial::main(
        up,
        trials![
            certificates_are_renewed_under_load_without_a_failed_connection,
            keys_of_the_ca_are_rotated_under_load_without_a_broken_connection,
            without_the_control_plane_traffic_goes_on_until_certificates_end_and_recovers,
        ],
    )
}

fn up() -> Result<Bed> {
    let mut options = Options::new("e2e-outages");
    for (name, value) in [
        ("SEINE_CERTIFICATE_LIFETIME", LIFETIME),
        ("SEINE_INTERMEDIATE_LIFETIME", INTERMEDIATE),
    ] {
        options
            .environment
            .push((name.to_owned(), value.to_owned()));
    }
    Bed::with(
        options,
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

fn serial(bed: &Bed, node: u8, account: &str) -> Result<String> {
    let list: Value = serde_json::from_str(&bed.ztunnel_admin(node, "/certificates")?)?;
    let list = list.as_array().context("a list")?;
    let identity = format!("spiffe://cluster.local/ns/mesh/sa/{account}");
    let found = list
        .iter()
        .find(|certificate| certificate["identity"] == identity.as_str())
        .with_context(|| format!("no certificate of {identity}"))?;
    Ok(found["serial"].to_string())
}

fn await_renewal(bed: &Bed, node: u8, account: &str) -> Result<()> {
    let before = serial(bed, node, account)?;
    until(&format!("{account} has a new certificate"), || {
        Ok((serial(bed, node, account)? != before).then_some(()))
    })
}

/// Ends a load, of which nothing failed.
fn unbroken(load: Running) -> Result<()> {
    let loaded: Loaded = load.finish()?;
    ensure!(
        loaded.failed.is_empty() && loaded.lasting_failed.is_empty(),
        "{loaded:?}"
    );
    ensure!(
        loaded.connections > 100 && loaded.exchanges > 100,
        "that was no load: {loaded:?}"
    );
    Ok(())
}

fn certificates_are_renewed_under_load_without_a_failed_connection(bed: &Bed) -> Result<()> {
    let load = "load near,far --port 8080 --workers 4 --lasting 4";
    let load: Vec<_> = load.split(' ').collect();
    let load = bed.start("mesh/client", &load)?;
    for (node, account) in [(1, "client"), (1, "near"), (2, "far")] {
        // The second starts when the first has ended or is about to: nothing rests on that then.
        for _ in 0..2 {
            await_renewal(bed, node, account)?;
        }
    }
    unbroken(load)
}

fn keys_of_the_ca_are_rotated_under_load_without_a_broken_connection(bed: &Bed) -> Result<()> {
    let ca = || -> Result<Value> {
        let page = bed.page(Component::Control, None, 15014, "/debug/ca")?;
        Ok(serde_json::from_str(&page)?)
    };
    let reaches = |what: &str, there: &dyn Fn(&Value) -> bool| {
        until_within(PHASE, what, || Ok(there(&ca()?).then_some(())))
    };
    let renewed = || -> Result<()> {
        await_renewal(bed, 1, "client")?;
        await_renewal(bed, 2, "far")
    };
    let before = ca()?;
    ensure!(before["trustedRoots"] == 1, "{before}");
    let load = "load near,far --port 8080 --workers 2 --lasting 4";
    let arguments: Vec<_> = load.split(' ').collect();
    let load = bed.start("mesh/client", &arguments)?;

    reaches("another intermediate signs", &|ca| {
        ca["intermediate"] != before["intermediate"] && ca["root"] == before["root"]
    })?;
    renewed()?;
    std::fs::write(ca_directory(bed)?.join("rotate-root"), "")?;
    reaches("both roots are trusted", &|ca| ca["trustedRoots"] == 2)?;
    reaches("the new root signs", &|ca| {
        ca["trustedRoots"] == 2 && ca["root"] != before["root"]
    })?;
    reaches("the old root is dropped", &|ca| ca["trustedRoots"] == 1)?;
    // The proxies hear of it with their next certificates.
    renewed()?;
    renewed()?;
    unbroken(load)
}

/// Where the control plane keeps its keys.
fn ca_directory(bed: &Bed) -> Result<PathBuf> {
    let process = bed.process(Component::Control, None)?;
    let words = std::fs::read_to_string(format!("/proc/{process}/cmdline"))?;
    let mut words = words.split('\0').skip_while(|word| *word != "--ca-dir");
    words.nth(1).map(PathBuf::from).context("--ca-dir")
}

fn without_the_control_plane_traffic_goes_on_until_certificates_end_and_recovers(
    bed: &Bed,
) -> Result<()> {
    // Just renewed, so that there is life left.
    let before = serial(bed, 1, "client")?;
    until("the client has a new certificate", || {
        Ok((serial(bed, 1, "client")? != before).then_some(()))
    })?;
    bed.lab().kill(Component::Control, 1)?;
    for host in ["near", "far"] {
        bed.echoes("mesh/client", host, 8080)?;
    }
    until(
        "connections fail closed, as certificates have ended",
        || {
            let asked = bed.ask("mesh/client", "far", 8080, "x")?;
            Ok(asked.failure.is_some().then_some(()))
        },
    )?;
    // The server's may have ended first: asked again until the client's own has.
    until(
        "the client's proxy says that its certificate has ended",
        || {
            bed.ask("mesh/client", "far", 8080, "x")?;
            let because = [
                "direction=outbound",
                "response_flags=IDENTITY",
                "no certificate for spiffe://cluster.local/ns/mesh/sa/client",
            ];
            Ok(bed.ztunnel_lines(1, &because)?.pop())
        },
    )?;
    bed.lab().restart(Component::Control, 1)?;
    until("connections come about again", || {
        let asked = bed.ask("mesh/client", "far", 8080, "x")?;
        Ok((asked.received == "x").then_some(()))
    })
}
