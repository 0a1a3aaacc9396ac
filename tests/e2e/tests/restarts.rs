//! Agents, ztunnels and the control plane that end, in order and not, while clients go on: none is
//! refused, none gets past the mesh, and what broke says so by its errno.

#![allow(missing_docs, reason = "the names of tests say what they are about")]

use std::collections::BTreeMap;
use std::fs::File;
use std::process::{Child, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seine_e2e::manifests::{Pod, meshed_namespace, plain_namespace, service};
use seine_e2e::peer::report::{Asked, LiveEvent, Loaded, Stage};
use seine_e2e::{Bed, Family, Running, trials, until};
use seine_lab::pcap::Capture;
use seine_lab::protocol::Component;

/// How often ztunnels restart under load.
const RESTARTS: usize = 100;
/// Where the lab's ztunnels take tunnels: the one port that a meshed pod may connect to.
const HBONE: u16 = 15008;

fn main() -> ExitCode {
    seine_e2e::trial::main(
        up,
        trials![
            restarts_of_ztunnel_by_turns_refuse_nobody_and_let_nothing_out,
            a_lasting_connection_outlives_a_handover_until_the_deadline,
            while_ztunnel_is_dead_connections_wait_for_the_next,
            a_dead_agent_interrupts_nothing,
            with_ztunnel_and_agent_dead_connections_are_refused_and_nothing_leaves,
            with_the_control_plane_away_a_handover_serves_on_and_a_crash_fails_closed,
        ],
    )
}

fn up() -> Result<Bed> {
    Bed::up(
        "e2e-restarts",
        &[
            meshed_namespace("mesh"),
            plain_namespace("plain"),
            Pod::new("mesh", "client", 1)
                .serves(&["echo:8080"])
                .object(),
            Pod::new("mesh", "server", 2)
                .serves(&["echo:8080"])
                .object(),
            Pod::new("plain", "client", 2).object(),
            Pod::new("mesh", "near", 1).serves(&["echo:8080"]).object(),
            service("mesh", "server", "server", &[("echo", 8080, 8080)]),
            service("mesh", "near", "near", &[("echo", 8080, 8080)]),
            service("mesh", "client", "client", &[("echo", 8080, 8080)]),
        ],
    )
}

/// Every attempt to connect that leaves or enters a pod, and nothing else.
struct Attempts {
    child: Child,
    file: tempfile::NamedTempFile,
}

impl Attempts {
    fn of(bed: &Bed, pod: &str) -> Result<Self> {
        let (namespace, name) = pod.split_once('/').context("NAMESPACE/NAME")?;
        let file = tempfile::NamedTempFile::new()?;
        let filter = "tcp[tcpflags] & tcp-syn != 0 or (ip6[6] = 6 and ip6[53] & 2 != 0)";
        // Each packet at once: without, some kernels keep the last ones to themselves for as long
        // as the buffer isn't full (seen on 6.18).
        let options = "-i eth0 --immediate-mode -n -U -s 0 -B 8192 -Z root -w -";
        let mut command = vec!["tcpdump"];
        command.extend(options.split(' '));
        command.push(filter);
        let child = bed
            .lab()
            .exec_command(namespace, name, &command)
            .stdin(Stdio::null())
            .stdout(File::create(file.path())?)
            .stderr(Stdio::null())
            .spawn()
            .context("starting tcpdump")?;
        let attempts = Self { child, file };
        // It writes the header when it captures.
        until("tcpdump captures", || {
            let length = std::fs::metadata(attempts.file.path())?.len();
            Ok((length >= 24).then_some(()))
        })?;
        Ok(attempts)
    }

    /// Which ports were connected to, and how often.
    fn stop(mut self) -> Result<BTreeMap<u16, usize>> {
        // tcpdump has yet to read what was sent just now.
        std::thread::sleep(Duration::from_millis(500));
        self.end()?;
        let capture = Capture::read(self.file.path())?;
        let mut ports = BTreeMap::new();
        for segment in capture.segments.iter().filter(|segment| segment.opens) {
            *ports.entry(segment.destination.1).or_default() += 1;
        }
        Ok(ports)
    }

    fn end(&mut self) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, Signal::SIGTERM)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Attempts {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.end();
        }
    }
}

/// Only HBONE was connected to, and it was.
fn only_hbone(ports: &BTreeMap<u16, usize>) -> Result<()> {
    ensure!(
        ports.keys().eq([&HBONE]),
        "ports that were connected to: {ports:?}"
    );
    Ok(())
}

/// Clients that connect anew all the time, to a pod on their node and to one on the other, by both
/// families.
fn load(bed: &Bed) -> Result<Running> {
    let load = ["load", "server,near", "--port", "8080", "--workers", "8"];
    let load = bed.start("mesh/client", &load)?;
    // So that connections are under way when something happens.
    std::thread::sleep(Duration::from_millis(300));
    Ok(load)
}

/// Ends them a moment after what happened.
fn end_load(load: Running) -> Result<Loaded> {
    std::thread::sleep(Duration::from_millis(300));
    load.finish()
}

fn nothing_failed(loaded: &Loaded) -> Result<()> {
    ensure!(
        loaded.failed.is_empty() && loaded.lasting_failed.is_empty() && loaded.connections > 0,
        "{loaded:?}"
    );
    Ok(())
}

/// What a client may see of a proxy that was killed: the connections that it carried break. One
/// that breaks between its handshake and the client's look at it says so while connecting; one that
/// nobody accepted would be refused (ECONNREFUSED).
fn only_broken(loaded: &Loaded) -> Result<()> {
    const MAY: [&str; 6] = [
        "connect econnreset",
        "send econnreset",
        "send epipe",
        "receive econnreset",
        "receive epipe",
        "receive eof",
    ];
    ensure!(
        loaded.failed.keys().all(|key| MAY.contains(&key.as_str())) && loaded.connections > 0,
        "{loaded:?}"
    );
    Ok(())
}

/// How a ztunnel is restarted.
#[derive(Clone, Copy, Debug)]
enum Restart {
    /// Its successor is ready before it gets SIGTERM.
    HandOver,
    /// SIGTERM, and a successor when it is gone.
    Term,
    /// SIGKILL, and then a successor.
    Kill,
}

impl Restart {
    fn of(self, bed: &Bed, node: u8) -> Result<()> {
        match self {
            Self::HandOver => {}
            Self::Term => bed.lab().terminate(Component::Ztunnel, node)?,
            Self::Kill => bed.lab().kill(Component::Ztunnel, node)?,
        }
        bed.lab().restart(Component::Ztunnel, node)
    }

    /// In order, clients notice nothing.
    fn judge(self, loaded: &Loaded) -> Result<()> {
        match self {
            Self::HandOver | Self::Term => nothing_failed(loaded),
            Self::Kill => only_broken(loaded),
        }
    }
}

fn restarts_of_ztunnel_by_turns_refuse_nobody_and_let_nothing_out(bed: &Bed) -> Result<()> {
    let client = Attempts::of(bed, "mesh/client")?;
    let server = Attempts::of(bed, "mesh/server")?;
    let near = Attempts::of(bed, "mesh/near")?;
    let mut errnos = BTreeMap::<String, u64>::new();
    let mut connections = 0;
    let ways = [Restart::HandOver, Restart::Term, Restart::Kill]
        .into_iter()
        .flat_map(|how| [(how, 1), (how, 2)]);
    for (round, (how, node)) in ways.cycle().take(RESTARTS).enumerate() {
        let load = load(bed)?;
        how.of(bed, node)?;
        let loaded = end_load(load)?;
        how.judge(&loaded)
            .with_context(|| format!("restart {round}, {how:?}, on node{node}"))?;
        connections += loaded.connections;
        for (errno, number) in loaded.failed {
            *errnos.entry(format!("{how:?}: {errno}")).or_default() += number;
        }
    }
    println!("{RESTARTS} restarts, {connections} connections in order; the others: {errnos:?}");
    bed.echoes("mesh/client", "server", 8080)?;
    for (attempts, at) in [(client, "client"), (server, "server"), (near, "near")] {
        only_hbone(&attempts.stop()?).with_context(|| format!("at {at}"))?;
    }
    Ok(())
}

fn line(live: &mut Running, text: &str) -> Result<()> {
    live.say(text)?;
    let event: LiveEvent = live.report()?;
    ensure!(event == LiveEvent::Line(text.to_owned()), "{event:?}");
    Ok(())
}

fn a_lasting_connection_outlives_a_handover_until_the_deadline(bed: &Bed) -> Result<()> {
    let mut live = bed.live("mesh/client", "server", 8080, Family::V6)?;
    line(&mut live, "before")?;
    let before = bed.process(Component::Ztunnel, Some(1))?;
    std::thread::scope(|scope| -> Result<()> {
        let restart = scope.spawn(|| bed.lab().restart(Component::Ztunnel, 1));
        bed.await_ztunnel(1, &["draining", "connections=1"])?;
        // Carried by the old one, while the new one serves who connects now.
        for _ in 0..5 {
            line(&mut live, "meanwhile")?;
            bed.echoes("mesh/client", "server", 8080)?;
        }
        restart.join().expect("it does not panic")
    })?;
    let ended: LiveEvent = live.report()?;
    let LiveEvent::Ended(Some(failure)) = &ended else {
        anyhow::bail!("the deadline passed and the connection says {ended:?}");
    };
    ensure!(failure.is(Stage::Receive, "ECONNRESET"), "{failure:?}");
    bed.await_ztunnel(1, &["the deadline passed: connections were reset"])?;
    ensure!(
        bed.process(Component::Ztunnel, Some(1))? != before,
        "no other ztunnel runs"
    );
    bed.echoes("mesh/client", "server", 8080).map(drop)
}

/// Starts to ask and says nothing about it until [`Running::finish`].
fn asks(bed: &Bed, from: &str, host: &str) -> Result<Running> {
    bed.start(
        from,
        &["ask", host, "8080", "--send", "waits", "--patience", "30"],
    )
}

fn was_served(asks: Running) -> Result<()> {
    let asked: Asked = asks.finish()?;
    ensure!(
        asked.received == "waits" && asked.failure.is_none(),
        "{asked:?}"
    );
    Ok(())
}

fn while_ztunnel_is_dead_connections_wait_for_the_next(bed: &Bed) -> Result<()> {
    // On the client's node, and on the server's.
    for (node, pod, other) in [
        (1, "mesh/client", "mesh/server"),
        (2, "mesh/server", "mesh/client"),
    ] {
        let attempts = Attempts::of(bed, pod)?;
        bed.lab().kill(Component::Ztunnel, node)?;
        let mut waiting = Vec::new();
        for family in Family::ALL {
            // By address, since names are the proxy's to answer as well.
            let own = family.of(bed.pod_ips(pod)?).to_string();
            let far = family.of(bed.pod_ips(other)?).to_string();
            waiting.push(("from the pod", family, asks(bed, pod, &far)?));
            waiting.push((
                "to the pod, through a tunnel",
                family,
                asks(bed, other, &own)?,
            ));
            let plain = asks(bed, "plain/client", &own)?;
            waiting.push(("to the pod, in plaintext", family, plain));
        }
        std::thread::sleep(Duration::from_secs(1));
        bed.lab().restart(Component::Ztunnel, node)?;
        for (which, family, asks) in waiting {
            was_served(asks).with_context(|| format!("{which} {pod} by {family:?}"))?;
        }
        let mut ports = attempts.stop()?;
        // The plaintext that came in; the policy lets it.
        ports.remove(&8080);
        only_hbone(&ports)?;
    }
    Ok(())
}

fn a_dead_agent_interrupts_nothing(bed: &Bed) -> Result<()> {
    let attempts = Attempts::of(bed, "mesh/client")?;
    let mut live = bed.live("mesh/client", "server", 8080, Family::V4)?;
    let load = load(bed)?;
    for node in [1, 2] {
        bed.lab().kill(Component::Agent, node)?;
    }
    line(&mut live, "without an agent")?;
    std::thread::sleep(Duration::from_millis(500));
    for node in [1, 2] {
        bed.lab().restart(Component::Agent, node)?;
    }
    line(&mut live, "with a new one")?;
    nothing_failed(&end_load(load)?)?;
    ensure!(live.finish::<LiveEvent>()? == LiveEvent::Ended(None));
    // The new one has the pods: a new ztunnel gets them from it.
    bed.lab().restart(Component::Ztunnel, 1)?;
    bed.await_enrolled("mesh/client", true)?;
    bed.echoes("mesh/client", "server", 8080)?;
    only_hbone(&attempts.stop()?)
}

fn with_ztunnel_and_agent_dead_connections_are_refused_and_nothing_leaves(bed: &Bed) -> Result<()> {
    for (node, pod, other) in [
        (1, "mesh/client", "mesh/server"),
        (2, "mesh/server", "mesh/client"),
    ] {
        with_both_dead(bed, node, pod, other).with_context(|| format!("on node{node}"))?;
    }
    Ok(())
}

fn with_both_dead(bed: &Bed, node: u8, pod: &str, other: &str) -> Result<()> {
    let own = Family::ALL.map(|family| Ok(family.of(bed.pod_ips(pod)?).to_string()));
    let own = own.into_iter().collect::<Result<Vec<_>>>()?;
    let far = Family::ALL.map(|family| Ok(family.of(bed.pod_ips(other)?).to_string()));
    let far = far.into_iter().collect::<Result<Vec<_>>>()?;
    let attempts = Attempts::of(bed, pod)?;
    bed.lab().kill(Component::Agent, node)?;
    bed.lab().kill(Component::Ztunnel, node)?;
    let outcome = || -> Result<()> {
        for far in far.iter().cycle().take(10) {
            let asked = bed.ask(pod, far, 8080, "x")?;
            ensure!(
                asked.failed(Stage::Connect, "ECONNREFUSED"),
                "{far}: {asked:?}"
            );
        }
        for own in &own {
            let asked = bed.ask("plain/client", own, 8080, "x")?;
            ensure!(
                asked.failed(Stage::Connect, "ECONNREFUSED"),
                "{own}: {asked:?}"
            );
        }
        Ok(())
    };
    let outcome = outcome();
    bed.lab().restart(Component::Agent, node)?;
    bed.lab().restart(Component::Ztunnel, node)?;
    outcome?;
    for (own, far) in own.iter().zip(&far) {
        until("the pod is served again", || {
            let asked = bed.ask(pod, far, 8080, "x")?;
            Ok((asked.received == "x").then_some(()))
        })?;
        bed.echoes("plain/client", own, 8080)?;
    }
    let mut ports = attempts.stop()?;
    // What the client in plaintext tried.
    ports.remove(&8080);
    only_hbone(&ports)
}

fn with_the_control_plane_away_a_handover_serves_on_and_a_crash_fails_closed(
    bed: &Bed,
) -> Result<()> {
    let lab = bed.lab();
    let (server, _) = bed.pod_ips("mesh/server")?;
    let server = server.to_string();
    bed.echoes("mesh/client", "server", 8080)?;
    lab.kill(Component::Control, 1)?;
    let outcome = || -> Result<()> {
        // Configuration from the disk, keys from the old one.
        let load = load(bed)?;
        for node in [1, 2] {
            lab.restart(Component::Ztunnel, node)
                .with_context(|| format!("a hand-over on node{node}"))?;
        }
        nothing_failed(&end_load(load)?)?;
        bed.await_ztunnel(1, &["the running proxy handed over its keys"])?;
        bed.echoes("mesh/client", "server", 8080)?;

        // Nobody has the keys any more.
        let attempts = Attempts::of(bed, "mesh/client")?;
        lab.kill(Component::Ztunnel, 1)?;
        let before = bed.ztunnel_lines(1, &["CA https://"])?.len();
        let started = lab.restart(Component::Ztunnel, 1);
        ensure!(started.is_err(), "a ztunnel without certificates is ready");
        let asked = bed.ask("mesh/client", &server, 8080, "x")?;
        ensure!(
            asked.received.is_empty() && asked.failure.is_some(),
            "{asked:?}"
        );
        let after = bed.ztunnel_lines(1, &["CA https://"])?.len();
        ensure!(after > before, "its log does not say that the CA is away");
        let ports = attempts.stop()?;
        ensure!(ports.is_empty(), "connections left the pod: {ports:?}");
        Ok(())
    };
    let outcome = outcome();
    lab.restart(Component::Control, 1)?;
    outcome?;
    until("the pod is served again", || {
        let asked = bed.ask("mesh/client", &server, 8080, "x")?;
        Ok((asked.received == "x").then_some(()))
    })
}
