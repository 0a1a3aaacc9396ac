//! A lab with what tests do to it.

use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use seine_lab::protocol::{Component, ComponentStatus, PodStatus};
use seine_lab::{Lab, Options};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::guard::Guard;
use crate::manifests;
use crate::peer::report::{Asked, LiveEvent};
use crate::trial::Shared;

/// How long an effect may take that a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long a program in a pod may be silent that has something to report: longer than it waits itself
/// before it reports that it waited in vain.
const SILENCE: Duration = Duration::from_secs(90);

/// So many lines of each log are shown after a failure.
const LAST_LINES: usize = 8;

/// Asks until there is an answer; an error of `ask` is final. After [`PATIENCE`] it fails.
pub fn until<T>(what: &str, ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    until_within(PATIENCE, what, ask)
}

/// The same with another patience, for what takes its time.
pub fn until_within<T>(
    patience: Duration,
    what: &str,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask().with_context(|| format!("while waiting until {what}"))? {
            return Ok(answer);
        }
        ensure!(
            Instant::now() < deadline,
            "waited {patience:?} in vain until {what}"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// A family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// As the peer's command line takes it.
    pub fn number(self) -> &'static str {
        match self {
            Self::V4 => "4",
            Self::V6 => "6",
        }
    }

    /// The one of these.
    pub fn of<T>(self, (v4, v6): (T, T)) -> T {
        match self {
            Self::V4 => v4,
            Self::V6 => v6,
        }
    }
}

/// `seine-e2e-peer` of the build that the test belongs to.
pub fn peer_program() -> PathBuf {
    let own = std::env::current_exe().expect("Linux knows the path of the running program");
    own.ancestors()
        .skip(1)
        .take(3)
        .map(|directory| directory.join("seine-e2e-peer"))
        .find(|path| path.is_file())
        .expect("cargo builds a package's programs before its tests")
}

/// A running lab. It ends when this is dropped, or when the test's process ends in whatever way.
#[derive(Debug)]
pub struct Bed {
    // Dropped before the guard, so that the guard finds nothing to do.
    lab: Lab,
    _guard: Guard,
}

impl Bed {
    /// Two nodes with these objects; the name must be unique among tests that may run at once.
    pub fn up(name: &str, objects: &[Value]) -> Result<Self> {
        Self::with(Options::new(name), objects)
    }

    /// As [`Self::up`], with other options.
    pub fn with(mut options: Options, objects: &[Value]) -> Result<Self> {
        let log = ("SEINE_LOG".to_owned(), "info".to_owned());
        options.environment.insert(0, log);
        // It would be there already if the lab did not get ready.
        let lab = Lab::up(&options, &manifests::text(objects))?;
        let guard = Guard::start(&lab.command(["down"]))?;
        let bed = Self { lab, _guard: guard };
        bed.settle()?;
        Ok(bed)
    }

    /// The lab.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// Makes or changes objects and waits until all pods are ready.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        self.lab.apply_and_wait(&manifests::text(objects))?;
        self.settle()
    }

    /// Waits until every ztunnel that runs has heard of every pod as it is now.
    pub fn settle(&self) -> Result<()> {
        let status = self.lab.status()?;
        let mut expected: Vec<_> = status
            .pods
            .iter()
            .filter_map(|pod| {
                let address = pod.addresses.first()?;
                Some((pod.name.clone(), address.to_string(), pod.ready))
            })
            .collect();
        expected.sort();
        let running = status
            .mesh
            .iter()
            .filter(|c| c.component == Component::Ztunnel && c.ended.is_none());
        for node in running.filter_map(|c| c.node) {
            until(&format!("ztunnel of node{node} knows all pods"), || {
                let dump: Value = serde_json::from_str(&self.ztunnel_admin(node, "/config_dump")?)?;
                let workloads = dump["workloads"].as_array().cloned().unwrap_or_default();
                let knows = |(name, address, ready): &(String, String, bool)| {
                    workloads.iter().any(|workload| {
                        workload["name"] == name.as_str()
                            && workload["healthy"] == *ready
                            && workload["addresses"].to_string().contains(address.as_str())
                    })
                };
                Ok(expected.iter().all(knows).then_some(()))
            })?;
        }
        Ok(())
    }

    /// Deletes `kind/name`.
    pub fn delete(&self, namespace: &str, object: &str) -> Result<()> {
        self.lab.delete(namespace, object)
    }

    /// Applies objects for as long as `work` takes.
    pub fn during<T>(&self, objects: &[Value], work: impl FnOnce() -> Result<T>) -> Result<T> {
        let result = self.apply(objects).and_then(|()| work());
        for object in objects {
            let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
            let kind = object["kind"].as_str().unwrap_or_default();
            let deleted = self.delete(text("namespace"), &format!("{kind}/{}", text("name")));
            if result.is_ok() {
                deleted?;
            }
        }
        result
    }

    /// Runs the peer in `namespace/pod` until it ends and reads its report.
    pub fn peer<T: DeserializeOwned>(&self, pod: &str, arguments: &[&str]) -> Result<T> {
        let (namespace, name) = split(pod)?;
        let program = peer_program().display().to_string();
        let mut command = vec![program.as_str()];
        command.extend(arguments);
        let output = self.lab.exec(namespace, name, &command)?;
        ensure!(
            output.code == 0,
            "{arguments:?} in {pod}: exit status {}: {}{}",
            output.code,
            output.stderr,
            output.stdout
        );
        serde_json::from_str(&output.stdout)
            .with_context(|| format!("{arguments:?} in {pod} said {:?}", output.stdout))
    }

    /// Starts the peer in `namespace/pod`.
    pub fn start(&self, pod: &str, arguments: &[&str]) -> Result<Running> {
        let (namespace, name) = split(pod)?;
        let program = peer_program().display().to_string();
        let mut words = vec![program.as_str()];
        words.extend(arguments);
        let mut command = self.lab.exec_command(namespace, name, &words);
        Running::start(&mut command, format!("{arguments:?} in {pod}"))
    }

    /// Connects from `namespace/pod`, sends the text, half-closes, and reads to the end.
    pub fn ask(&self, from: &str, host: &str, port: u16, send: &str) -> Result<Asked> {
        self.peer(from, &["ask", host, &port.to_string(), "--send", send])
    }

    /// As [`Self::ask`] of an echo server, which must answer all.
    pub fn echoes(&self, from: &str, host: &str, port: u16) -> Result<Asked> {
        let text = format!("from {from} to {host}");
        let asked = self.ask(from, host, port, &text)?;
        ensure!(
            asked.failure.is_none() && asked.received == text,
            "{from} to {host} port {port}: {asked:?}"
        );
        Ok(asked)
    }

    /// As [`Self::start`] of a connection in the hands of the test: it stands when this returns.
    pub fn live(&self, from: &str, host: &str, port: u16, family: Family) -> Result<Running> {
        let port = port.to_string();
        let mut live = self.start(from, &["live", host, &port, "--family", family.number()])?;
        let event: LiveEvent = live.report()?;
        ensure!(
            matches!(event, LiveEvent::Connected { .. }),
            "{from} to {host} port {port}: {event:?}"
        );
        Ok(live)
    }

    /// A pod's state.
    pub fn pod(&self, pod: &str) -> Result<PodStatus> {
        let (namespace, name) = split(pod)?;
        self.lab
            .status()?
            .pods
            .into_iter()
            .find(|p| p.namespace == namespace && p.name == name)
            .with_context(|| format!("there is no pod {pod}"))
    }

    /// A pod's addresses, IPv4 and IPv6.
    pub fn pod_ips(&self, pod: &str) -> Result<(IpAddr, IpAddr)> {
        both(&self.pod(pod)?.addresses)
    }

    /// A service's addresses, IPv4 and IPv6.
    pub fn service_ips(&self, service: &str) -> Result<(IpAddr, IpAddr)> {
        let (namespace, name) = split(service)?;
        let services = self.lab.status()?.services;
        let found = services
            .iter()
            .find(|s| s.namespace == namespace && s.name == name)
            .with_context(|| format!("there is no service {service}"))?;
        both(&found.addresses)
    }

    /// The lines of a node's ztunnel that contain all of these.
    pub fn ztunnel_lines(&self, node: u8, needles: &[&str]) -> Result<Vec<String>> {
        let log = self.lab.logs(Component::Ztunnel, node)?;
        Ok(log
            .lines()
            .filter(|line| needles.iter().all(|needle| line.contains(needle)))
            .map(str::to_owned)
            .collect())
    }

    /// Waits for a line of a node's ztunnel with all of these.
    pub fn await_ztunnel(&self, node: u8, needles: &[&str]) -> Result<String> {
        until(&format!("ztunnel of node{node} logs {needles:?}"), || {
            Ok(self.ztunnel_lines(node, needles)?.pop())
        })
    }

    /// One of the mesh's programs.
    pub fn component(&self, component: Component, node: Option<u8>) -> Result<ComponentStatus> {
        self.lab
            .status()?
            .mesh
            .into_iter()
            .find(|c| c.component == component && c.node == node)
            .with_context(|| format!("there is no {component:?} on {node:?}"))
    }

    /// The process of one of the mesh's programs, as this process numbers it.
    pub fn process(&self, component: Component, node: Option<u8>) -> Result<i32> {
        let cgroup = self.component(component, node)?.cgroup;
        let name = format!("seine-{}", component.name());
        let pids = std::fs::read_to_string(Path::new(&cgroup).join("cgroup.procs"))
            .with_context(|| format!("reading the processes of {cgroup}"))?;
        pids.lines()
            .filter_map(|pid| pid.parse().ok())
            .find(|pid: &i32| {
                std::fs::read_to_string(format!("/proc/{pid}/comm"))
                    .is_ok_and(|comm| comm.trim() == name)
            })
            .with_context(|| format!("{name} does not run in {cgroup}"))
    }

    /// A page of the admin interface of a node's ztunnel, as `/config_dump`.
    pub fn ztunnel_admin(&self, node: u8, path: &str) -> Result<String> {
        self.page(Component::Ztunnel, Some(node), 15000, path)
    }

    /// A page that a program serves on loopback of its own network.
    pub fn page(
        &self,
        component: Component,
        node: Option<u8>,
        port: u16,
        path: &str,
    ) -> Result<String> {
        let pid = self.process(component, node)?;
        let output = Command::new("nsenter")
            .arg(format!("--net=/proc/{pid}/ns/net"))
            .arg(peer_program())
            .args(["get", &format!("127.0.0.1:{port}"), path])
            .output()
            .context("running nsenter")?;
        ensure!(
            output.status.success(),
            "{path} of {component:?} {node:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The sum of a node's ztunnel's metric over the series whose labels contain all of these.
    pub fn ztunnel_metric(&self, node: u8, name: &str, labels: &[&str]) -> Result<f64> {
        let text = self.ztunnel_admin(node, "/metrics")?;
        Ok(text
            .lines()
            .filter(|line| line.starts_with(name) && labels.iter().all(|l| line.contains(l)))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum())
    }

    /// Waits until the pod is enrolled on its node: its ztunnel serves it.
    pub fn await_enrolled(&self, pod: &str, enrolled: bool) -> Result<()> {
        let status = self.pod(pod)?;
        until(&format!("enrolment of {pod} is {enrolled}"), || {
            let dump = self.ztunnel_admin(status.node, "/config_dump")?;
            let dump: Value = serde_json::from_str(&dump)?;
            let served = dump["pods"].to_string().contains(&status.uid);
            Ok((served == enrolled).then_some(()))
        })
    }
}

impl Shared for Bed {
    fn last_words(&self) -> String {
        let mut text = String::new();
        let places = [
            (Component::Control, 1),
            (Component::Agent, 1),
            (Component::Agent, 2),
            (Component::Ztunnel, 1),
            (Component::Ztunnel, 2),
        ];
        for (component, node) in places {
            let log = self.lab.logs(component, node).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            let last = lines.len().saturating_sub(LAST_LINES);
            text += &format!("  --- {} --node {node}\n", component.name());
            for line in &lines[last..] {
                text += &format!("  {line}\n");
            }
        }
        text
    }
}

/// `namespace/name`.
fn split(pod: &str) -> Result<(&str, &str)> {
    pod.split_once('/')
        .with_context(|| format!("{pod} has no namespace"))
}

fn both(addresses: &[IpAddr]) -> Result<(IpAddr, IpAddr)> {
    let v4 = addresses.iter().find(|ip| ip.is_ipv4());
    let v6 = addresses.iter().find(|ip| ip.is_ipv6());
    match (v4, v6) {
        (Some(v4), Some(v6)) => Ok((*v4, *v6)),
        _ => bail!("not both families among {addresses:?}"),
    }
}

/// A peer that runs in a pod. It is killed when this is dropped.
#[derive(Debug)]
pub struct Running {
    what: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Running {
    /// Starts a command that takes words on standard input and answers lines of JSON.
    pub fn start(command: &mut Command, what: String) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {what}"))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().context("stdout was piped")?;
        let (sender, lines) = channel();
        // Apart, since a pipe can't be read with a deadline. It ends with the child's output.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self {
            what,
            child,
            stdin,
            lines,
        })
    }

    /// Says a line to it.
    pub fn say(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("it was told to end")?;
        writeln!(stdin, "{line}").with_context(|| format!("talking to {}", self.what))
    }

    /// The next line that it reports.
    pub fn report<T: DeserializeOwned>(&mut self) -> Result<T> {
        let line = match self.lines.recv_timeout(SILENCE) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                bail!("{} hangs: it reported nothing for {SILENCE:?}", self.what)
            }
            Err(RecvTimeoutError::Disconnected) => {
                bail!(
                    "{} ended without a report: {:?}",
                    self.what,
                    self.child.wait()?
                )
            }
        };
        serde_json::from_str(&line).with_context(|| format!("{} said {line:?}", self.what))
    }

    /// Tells it to end, by closing its standard input; its last report.
    pub fn finish<T: DeserializeOwned>(mut self) -> Result<T> {
        self.stdin = None;
        let report = self.report()?;
        // Nothing more comes, and then it is over.
        match self.lines.recv_timeout(SILENCE) {
            Err(RecvTimeoutError::Disconnected) => Ok(report),
            Err(RecvTimeoutError::Timeout) => bail!("{} hangs after its report", self.what),
            Ok(line) => bail!("{} said {line:?} after its last report", self.what),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Running {
        Running::start(Command::new("sh").args(["-c", script]), script.to_owned()).unwrap()
    }

    #[test]
    fn a_peers_reports_come_one_by_one_and_the_last_at_its_end() {
        let mut peer = shell("echo 1; read word; echo \"$word\"; cat >/dev/null; echo 3");
        assert_eq!(peer.report::<u8>().unwrap(), 1);
        peer.say("2").unwrap();
        assert_eq!(peer.report::<u8>().unwrap(), 2);
        assert_eq!(peer.finish::<u8>().unwrap(), 3);
    }

    #[test]
    fn a_peer_that_ended_early_or_says_too_much_is_an_error() {
        let error = shell("exit 7").report::<u8>().unwrap_err().to_string();
        assert!(error.contains("ended without a report"), "{error}");
        let error = shell("echo 1; echo 2").finish::<u8>().unwrap_err();
        assert!(
            error.to_string().contains("after its last report"),
            "{error}"
        );
    }
}
