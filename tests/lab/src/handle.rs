//! A lab in a test's hands.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::protocol::{Component, Status};

/// What a lab is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name; see [`crate::names::LabName`].
    pub name: String,
    /// How many nodes.
    pub nodes: u8,
    /// Whether control plane, agents and ztunnels run.
    pub mesh: bool,
    /// The folder of the programs, by default that of `seine-lab`.
    pub binaries: Option<PathBuf>,
    /// How long everything may take to get ready.
    pub timeout: Duration,
    /// More environment for the lab and so for the mesh's programs (`SEINE_LOG`).
    pub environment: Vec<(String, String)>,
}

impl Options {
    /// Two nodes with a mesh.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            nodes: 2,
            mesh: true,
            binaries: None,
            timeout: Duration::from_secs(90),
            environment: Vec::new(),
        }
    }
}

/// What a command printed and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its exit status; 127 if it could not be run.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// A running lab. It ends when this is dropped.
#[derive(Debug)]
pub struct Lab {
    name: String,
    program: PathBuf,
}

impl Lab {
    /// Starts a lab from the YAML in `manifests`; returns when every pod is ready. A lab of the
    /// same name is ended first.
    pub fn up(options: &Options, manifests: &str) -> Result<Self> {
        let lab = Self {
            name: options.name.clone(),
            program: find_program()?,
        };
        lab.command(["down"])
            .status()
            .context("running seine-lab down")?;
        let timeout = options.timeout.as_secs().to_string();
        let nodes = options.nodes.to_string();
        let mut up = lab.command(["up", "-", "--nodes", &nodes, "--timeout", &timeout]);
        if !options.mesh {
            up.arg("--no-mesh");
        }
        if let Some(binaries) = &options.binaries {
            up.arg("--bin-dir").arg(binaries);
        }
        up.envs(options.environment.iter().cloned());
        let output = run(up, manifests)?;
        if output.code != 0 {
            bail!("seine-lab up: {}", output.stderr.trim());
        }
        Ok(lab)
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A `seine-lab` command about this lab, to be run by the caller.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["--name", &self.name]).args(arguments);
        command
    }

    fn simple<S: AsRef<OsStr>>(
        &self,
        arguments: impl IntoIterator<Item = S>,
        input: &str,
    ) -> Result<String> {
        let command = self.command(arguments);
        let shown = format!("{command:?}");
        let output = run(command, input)?;
        if output.code != 0 {
            bail!("{shown}: {}", output.stderr.trim());
        }
        Ok(output.stdout)
    }

    /// Makes or changes objects.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        self.simple(["apply", "-"], manifests).map(drop)
    }

    /// Makes or changes objects and waits until every pod is ready.
    pub fn apply_and_wait(&self, manifests: &str) -> Result<()> {
        self.simple(["apply", "--wait", "-"], manifests).map(drop)
    }

    /// Deletes `kind/name`; its pods are gone then.
    pub fn delete(&self, namespace: &str, object: &str) -> Result<()> {
        self.simple(["delete", "-n", namespace, object], "")
            .map(drop)
    }

    /// Runs a command in a pod until it ends.
    pub fn exec(&self, namespace: &str, pod: &str, command: &[&str]) -> Result<Output> {
        self.exec_with(namespace, pod, command, "")
    }

    /// Runs a command in a pod with this standard input.
    pub fn exec_with(
        &self,
        namespace: &str,
        pod: &str,
        command: &[&str],
        input: &str,
    ) -> Result<Output> {
        run(self.exec_command(namespace, pod, command), input)
    }

    /// A command in a pod, to be run by the caller. Killing it kills the program in the pod.
    pub fn exec_command(&self, namespace: &str, pod: &str, command: &[&str]) -> Command {
        let mut exec = self.command(["exec", "-n", namespace, pod, "--"]);
        exec.args(command);
        exec
    }

    /// The logs of a pod (name, or `kind/name` of a workload).
    pub fn pod_logs(&self, namespace: &str, pod: &str) -> Result<String> {
        self.simple(["logs", "-n", namespace, pod], "")
    }

    /// The logs of a component on a node; of the control plane, any node.
    pub fn logs(&self, component: Component, node: u8) -> Result<String> {
        self.simple(["logs", "--node", &node.to_string(), component.name()], "")
    }

    /// Starts a new one and has it take over; returns when the old one is gone.
    pub fn restart(&self, component: Component, node: u8) -> Result<()> {
        self.simple(
            ["restart", component.name(), "--node", &node.to_string()],
            "",
        )
        .map(drop)
    }

    /// Kills with SIGKILL; it stays dead until [`Self::restart`].
    pub fn kill(&self, component: Component, node: u8) -> Result<()> {
        self.kill_with(component, node, "KILL")
    }

    /// Ends with SIGTERM and without a successor; returns when it is gone, which it stays until
    /// [`Self::restart`].
    pub fn terminate(&self, component: Component, node: u8) -> Result<()> {
        self.kill_with(component, node, "TERM")
    }

    fn kill_with(&self, component: Component, node: u8, signal: &str) -> Result<()> {
        let node = node.to_string();
        let arguments = [
            "kill",
            component.name(),
            "--node",
            &node,
            "--signal",
            signal,
        ];
        self.simple(arguments, "").map(drop)
    }

    /// Everything about the lab.
    pub fn status(&self) -> Result<Status> {
        let text = self.simple(["status", "-o", "json"], "")?;
        serde_json::from_str(&text).context("the answer of seine-lab status")
    }

    /// Begins to capture a node's wire to the others into `file`.
    pub fn capture(&self, node: u8, file: &Path, filter: &[&str]) -> Result<Capture> {
        let mut command = self.command(["capture", "--node", &node.to_string(), "-w"]);
        command
            .arg(file)
            .arg("--")
            .args(filter)
            .stderr(Stdio::piped());
        let mut child = command.spawn().context("starting seine-lab capture")?;
        // tcpdump says "listening on" when it does.
        let mut said = String::new();
        let stderr = child.stderr.take().context("stderr was piped")?;
        let mut lines = std::io::BufReader::new(stderr);
        while !said.contains("listening on") {
            let before = said.len();
            std::io::BufRead::read_line(&mut lines, &mut said)?;
            if said.len() == before {
                let _ = child.wait();
                bail!("seine-lab capture: {}", said.trim());
            }
        }
        Ok(Capture {
            child,
            _stderr: lines,
        })
    }

    /// Ends the lab and says whether that worked; dropping it ends it as well.
    pub fn down(self) -> Result<()> {
        self.simple(["down"], "").map(drop)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.command(["down"]).stdout(Stdio::null()).status();
    }
}

/// A capture that goes on until it is stopped or dropped.
#[derive(Debug)]
pub struct Capture {
    child: Child,
    _stderr: std::io::BufReader<std::process::ChildStderr>,
}

impl Capture {
    /// Ends it; the file is complete then, but for packets of the last moment.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        // What was sent just now is still on its way through the kernel's buffer.
        std::thread::sleep(Duration::from_millis(300));
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.end();
        }
    }
}

fn run(mut command: Command, input: &str) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", command.get_program().display()))?;
    let mut stdin = child.stdin.take().context("stdin was piped")?;
    let input = input.to_owned();
    // Apart, so that a program that writes before it reads does not wait for us.
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(input.as_bytes());
    });
    let output = child.wait_with_output()?;
    let _ = writer.join();
    Ok(Output {
        code: crate::keeper::exit_code(output.status),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// `seine-lab`: where `SEINE_LAB` says, or in the folder of this test's build.
fn find_program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("SEINE_LAB") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    own.ancestors()
        .skip(1)
        .take(3)
        .map(|directory| directory.join("seine-lab"))
        .find(|path| path.is_file())
        .context("seine-lab is not built: cargo build --workspace, or set SEINE_LAB")
}
