//! The command line's side: talks to a lab's supervisor, and goes into the lab for `exec` and
//! `capture`. One thread and no runtime: a process with several can't change its mount
//! namespace.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigSet, Signal};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::cgroup;
use crate::enter::Enter;
use crate::keeper::{self, exit_code};
use crate::locks;
use crate::names::{LabName, Layout};
use crate::protocol::{
    Component, ComponentStatus, PodPlace, ProcessStatus, Reply, Request, Status,
};
use crate::supervisor::Settings;

/// A lab, up or not.
pub struct Client {
    layout: Layout,
}

impl Client {
    /// The lab called `name`.
    pub fn new(name: LabName) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("seine-lab needs root: it makes network namespaces, cgroups and eBPF programs");
        }
        Ok(Self {
            layout: Layout::new(name, &cgroup::mount_point()?),
        })
    }

    /// Starts the lab; [`Self::wait`] tells when it is ready.
    pub fn up(
        &self,
        nodes: u8,
        binaries: Option<PathBuf>,
        peer_ztunnel: Option<PathBuf>,
        objects: Vec<Value>,
    ) -> Result<()> {
        let settings = Settings {
            peer_ztunnel,
            name: self.layout.name.to_string(),
            nodes,
            binaries,
            block: 0,
            objects,
        };
        let mut keeper = Command::new(std::env::current_exe()?)
            .arg("internal-keep")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting the lab's keeper")?;
        // Not as an argument: manifests may be larger than one may be.
        let mut stdin = keeper.stdin.take().context("stdin was piped")?;
        stdin.write_all(serde_json::to_string(&settings)?.as_bytes())?;
        drop(stdin);
        let deadline = Instant::now() + Duration::from_secs(30);
        while UnixStream::connect(self.layout.control_socket()).is_err() {
            if keeper.try_wait()?.is_some() || Instant::now() > deadline {
                let mut why = String::new();
                if let Some(mut stderr) = keeper.stderr.take()
                    && keeper.try_wait()?.is_some()
                {
                    stderr.read_to_string(&mut why)?;
                }
                bail!("the lab did not start: {}", why.trim());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Returns when everything is ready, telling `progress` meanwhile.
    pub fn wait(&self, limit: Duration, progress: impl FnMut(&str)) -> Result<()> {
        self.request_with(
            &Request::Wait {
                seconds: limit.as_secs(),
            },
            progress,
        )
        .map(drop)
    }

    /// Sends a request and waits for its answer.
    pub fn request(&self, request: &Request) -> Result<Value> {
        self.request_with(request, |_| {})
    }

    fn request_with(&self, request: &Request, mut progress: impl FnMut(&str)) -> Result<Value> {
        let name = &self.layout.name;
        let mut stream = UnixStream::connect(self.layout.control_socket())
            .with_context(|| format!("lab '{name}' is not up (seine-lab up DIR --name {name})"))?;
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        stream.write_all(line.as_bytes())?;
        for line in BufReader::new(stream).lines() {
            match serde_json::from_str(&line?)? {
                Reply::Progress(what) => progress(&what),
                Reply::Done(value) => return Ok(value),
                Reply::Failed(why) => bail!("{why}"),
            }
        }
        bail!("lab '{name}' ended meanwhile")
    }

    fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T> {
        Ok(serde_json::from_value(self.request(request)?)?)
    }

    /// Everything about the lab.
    pub fn status(&self) -> Result<Status> {
        let mut status: Status = self.ask(&Request::Status)?;
        // The supervisor numbers processes as the lab does; its cgroups, read here, as we do.
        for part in &mut status.mesh {
            let within = part.pid;
            part.pid = cgroup::processes(Path::new(&part.cgroup))
                .into_iter()
                .find(|&pid| number_within(pid).is_some() && number_within(pid) == within);
        }
        for (node, index) in status.nodes.iter_mut().zip(1..) {
            let own = |part: &&ComponentStatus| {
                part.component == Component::Ztunnel && part.node == Some(index)
            };
            let pid = status.mesh.iter().find(own).and_then(|part| part.pid);
            node.ztunnel = pid.map(|pid| ProcessStatus { pid });
        }
        for pod in &mut status.pods {
            let cgroup = Path::new(&pod.cgroup).join(&pod.container);
            pod.pid = cgroup::processes(&cgroup).first().copied();
        }
        Ok(status)
    }

    /// Ends the lab, or removes what one that died left. No lab at all is no error.
    pub fn down(&self) -> Result<()> {
        if UnixStream::connect(self.layout.control_socket()).is_ok() {
            let _ = self.request(&Request::Down);
        } else if let Some(pid) = self.init_pid() {
            // It hangs or was killed half-way; process 1 takes the others along.
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
        }
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(lock) = locks::lock_name(&self.layout.name)? {
                keeper::remove_remains(&self.layout)?;
                drop(lock);
                locks::tidy();
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("lab '{}' does not end", self.layout.name);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The lab's process 1 as numbered here, if it is one still.
    fn init_pid(&self) -> Option<i32> {
        let pid: i32 = fs::read_to_string(self.layout.state.join("init.pid"))
            .ok()?
            .trim()
            .parse()
            .ok()?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let init = command.split(|&b| b == 0).nth(1) == Some(b"internal-init".as_slice());
        init.then_some(pid)
    }

    /// Runs a command in a pod; its exit code.
    pub fn exec(
        &self,
        namespace: &str,
        pod: &str,
        container: Option<&str>,
        command: &[String],
    ) -> Result<i32> {
        let mut place: PodPlace = self.ask(&Request::Pod {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            container: container.map(str::to_owned),
        })?;
        place.enter.death_signal = Some(Signal::SIGKILL as i32);
        let mut process = self.inside(&place.enter, command)?;
        process.env_clear().envs(place.environment);
        if let Some(terminal) = std::env::var_os("TERM") {
            process.env("TERM", terminal);
        }
        Ok(exit_code(process.status()?))
    }

    /// Captures what is on a node's wire to the others: pcap to `output`, or standard output.
    pub fn capture(
        &self,
        node: u8,
        output: Option<&Path>,
        duration: Option<Duration>,
        filter: &[String],
    ) -> Result<i32> {
        #[derive(Deserialize)]
        struct Wire {
            enter: Enter,
            interface: String,
        }
        let Wire {
            mut enter,
            interface,
        } = self.ask(&Request::Wire { node })?;
        enter.death_signal = Some(Signal::SIGTERM as i32);
        let file = match output {
            Some(path) => {
                Some(File::create(path).with_context(|| format!("making {}", path.display()))?)
            }
            None => None,
        };
        // Each packet at once, all of it, as the user that we are.
        let options = "--immediate-mode -n -U -s 0 -B 16384 -Z root -w - -i";
        let mut command = Vec::new();
        if let Some(duration) = duration {
            // Not a thread of ours, which the lab's PID namespace doesn't allow any more.
            let timeout = [
                "timeout",
                "--foreground",
                "--preserve-status",
                "--signal=INT",
            ];
            command.extend(timeout.map(str::to_owned));
            command.push(duration.as_secs_f64().to_string());
        }
        command.push("tcpdump".to_owned());
        command.extend(options.split(' ').map(str::to_owned));
        command.push(interface);
        command.extend_from_slice(filter);
        let mut process = self.inside(&enter, &command)?;
        process.env("PATH", crate::SEARCH_PATH);
        if let Some(file) = file {
            process.stdout(file);
        }
        // We end after tcpdump, which writes what it still has when it is interrupted.
        let mut signals = SigSet::empty();
        for signal in [
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGCHLD,
        ] {
            signals.add(signal);
        }
        // After the start: a child inherits what is blocked.
        let mut child = process.spawn().context("starting tcpdump")?;
        signals.thread_block().context("blocking signals")?;
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id())?);
        let interrupt = move || {
            let _ = nix::sys::signal::kill(pid, Signal::SIGINT);
        };
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(exit_code(status));
            }
            if signals.wait().context("sigwait")? != Signal::SIGCHLD {
                interrupt();
            }
        }
    }

    /// A process that will run within the lab. Changes the caller's own namespaces.
    fn inside(&self, enter: &Enter, command: &[String]) -> Result<Command> {
        let program = std::env::current_exe()?;
        let init = self.init_pid().context("the lab's first process is gone")?;
        let open = |kind: &str| {
            File::open(format!("/proc/{init}/ns/{kind}"))
                .with_context(|| format!("the lab's {kind} namespace"))
        };
        let (pid, mounts) = (open("pid")?, open("mnt")?);
        setns(pid, CloneFlags::CLONE_NEWPID).context("setns to the lab's processes")?;
        setns(mounts, CloneFlags::CLONE_NEWNS).context("setns to the lab's mounts")?;
        let mut process = Command::new(program);
        process.args(enter.arguments(command)?).current_dir("/");
        Ok(process)
    }

    /// The files that hold the logs of a pod's containers.
    pub fn pod_logs(
        &self,
        namespace: &str,
        pod: &str,
        container: Option<&str>,
    ) -> Result<Vec<PathBuf>> {
        let directory = self.layout.logs().join("pods").join(namespace);
        let place = self.ask::<PodPlace>(&Request::Pod {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            container: container.map(str::to_owned),
        });
        // The logs of a pod that is gone, or never came up, are there as well.
        let name = place.map_or_else(|_| pod.to_owned(), |place| place.pod);
        let directory = directory.join(&name);
        let mut files: Vec<PathBuf> = fs::read_dir(&directory)
            .with_context(|| format!("pod {name} in namespace {namespace} has no logs"))?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| container.is_none_or(|c| path.file_stem().is_some_and(|stem| stem == c)))
            .collect();
        files.sort();
        Ok(files)
    }

    /// The files that hold the logs of a component, on one node or all.
    pub fn component_logs(&self, component: Component, node: Option<u8>) -> Result<Vec<PathBuf>> {
        let name = component.name();
        let mut files: Vec<PathBuf> = match (component.per_node(), node) {
            (false, _) => vec![self.layout.logs().join(format!("{name}.log"))],
            (true, Some(node)) => vec![self.layout.logs().join(format!("{name}-node{node}.log"))],
            (true, None) => fs::read_dir(self.layout.logs())?
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| {
                    path.file_name()
                        .is_some_and(|f| f.to_string_lossy().starts_with(&format!("{name}-node")))
                })
                .collect(),
        };
        files.retain(|file| file.exists());
        files.sort();
        if files.is_empty() {
            bail!("{name} has no logs in lab '{}'", self.layout.name);
        }
        Ok(files)
    }

    /// The lab's own log.
    pub fn lab_log(&self) -> PathBuf {
        self.layout.logs().join("lab.log")
    }
}

/// A process's number in the innermost PID namespace that it is in.
fn number_within(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_whitespace().last()?.parse().ok()
}

/// Writes files to standard output, with their names where there are several; with `follow`,
/// goes on with what is added to them.
pub fn show(files: &[PathBuf], follow: bool) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let mut open = Vec::new();
    for path in files {
        if files.len() > 1 {
            let name = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            writeln!(out, "==> {name}")?;
        }
        let mut file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
        std::io::copy(&mut file, &mut out)?;
        open.push(file);
    }
    if !follow {
        return Ok(out.flush()?);
    }
    loop {
        out.flush()?;
        for file in &mut open {
            // Reading on after the end sees what was added meanwhile.
            let at = file.stream_position()?;
            file.seek(SeekFrom::Start(at))?;
            std::io::copy(file, &mut out)?;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}
