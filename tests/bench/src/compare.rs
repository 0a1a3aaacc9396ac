//! The comparison: labs, rows, rounds.
//!
//! Every round measures each row on every path before the next row, and direct TCP anew before each other path, so
//! that what the machine does meanwhile falls on all alike. The load's client runs on the first core, its server on
//! the second, the proxies wherever the kernel puts them.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::cpu;
use crate::load::Figures;
use crate::report::{DIRECT, Row, Samples};

/// What to measure and how often.
pub(crate) struct Plan {
    pub(crate) programs: Option<PathBuf>,
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    pub(crate) only: Option<String>,
    pub(crate) markdown: Option<PathBuf>,
}

/// The environment variable that names a peer's node proxy.
const PEER: &str = "SEINE_BENCH_PEER";
const PORT: u16 = 7000;
/// How the names of workloads that run nowhere begin.
const EXTRA: &str = "extra-";
const HELD: usize = 2000;
const WORKLOADS: usize = 10_000;
/// A change has arrived everywhere, and what that needed for a moment is given back: allocators wait ten seconds.
const SETTLED: Duration = Duration::from_secs(20);
/// How long configuration may take to reach every proxy.
const PATIENCE: Duration = Duration::from_secs(120);

/// Measures everything and prints the table.
pub(crate) fn run(plan: &Plan) -> Result<()> {
    let programs = match &plan.programs {
        Some(folder) => folder.clone(),
        None => {
            let own = std::env::current_exe()?;
            own.parent()
                .context("this program has no folder")?
                .to_owned()
        }
    };
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the benchmark starts labs, which needs root"
    );
    let work = tempdir()?;
    let peer = std::env::var_os(PEER).map(PathBuf::from);
    if peer.is_none() {
        println!("{PEER} is not set: no peer beside ours");
    }
    let mesh = Lab::up(&programs, &work, "bench", None)?;
    let beside = match &peer {
        Some(binary) => Some(Lab::up(&programs, &work, "bench-peer", Some(binary))?),
        None => None,
    };
    let mut paths = vec![
        Route {
            name: DIRECT,
            lab: &mesh,
            namespace: "plain",
        },
        Route {
            name: "seine",
            lab: &mesh,
            namespace: "mesh",
        },
    ];
    if let Some(lab) = &beside {
        paths.push(Route {
            name: "peer",
            lab,
            namespace: "mesh",
        });
    }
    let names: Vec<_> = paths.iter().map(|path| path.name).collect();
    let mut ratios: Vec<_> = names[1..].iter().map(|name| (*name, DIRECT)).collect();
    if let [_, ours, peer] = names[..] {
        ratios.push((ours, peer));
    }
    let mut samples = Samples::default();
    let wanted = |name: &str| {
        plan.only
            .as_ref()
            .is_none_or(|only| name.contains(only.as_str()))
    };

    for round in 1..=plan.rounds {
        println!("round {round} of {}", plan.rounds);
        // Once: afterwards a proxy keeps some of what it has had.
        let memory = round == 1 && wanted("memory");
        if memory {
            for path in &paths[1..] {
                let row = Row::less("memory, idle, both proxies (KiB)");
                samples.add(&row, path.name, path.lab.memory()?);
            }
        }
        for work in works().iter().filter(|work| wanted(&work.name)) {
            for path in &paths[1..] {
                let direct = work.measure(&paths[0], plan.seconds)?;
                let beside = work.measure(path, plan.seconds)?;
                for ((row, direct), (_, value)) in direct.iter().zip(&beside) {
                    samples.add_beside(row, path.name, *value, *direct);
                }
            }
        }
        if memory {
            for path in &paths[1..] {
                held_connections(path, &mut samples)?;
            }
            for path in &paths[1..] {
                many_workloads(path, &mut samples)?;
            }
        }
    }
    let table = samples.table(&names, &ratios);
    println!("\n{table}");
    println!(
        "Medians of {} rounds (min–max); ratios are medians of paired ratios, to direct TCP as measured just before. \
         Client on core 0, server on core 1, proxies unpinned. CPU: client, server and proxies.",
        plan.rounds
    );
    if let Some(file) = &plan.markdown {
        fs::write(file, &table).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

fn held_connections(path: &Route<'_>, samples: &mut Samples) -> Result<()> {
    let before = path.lab.memory()?;
    let mut client = path.command(&["hold"], &[&HELD.to_string()])?;
    let mut client = client
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = client
        .stdout
        .take()
        .context("the client's output is piped")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    ensure!(
        line.starts_with("holding"),
        "the client could not hold {HELD} connections"
    );
    std::thread::sleep(Duration::from_secs(3));
    let held = path.lab.memory()?;
    drop(client.stdin.take());
    client.wait()?;
    std::thread::sleep(Duration::from_secs(5));
    let after = path.lab.memory()?;
    let each = (held - before) / HELD as f64;
    samples.add(
        &Row::less("memory, a held connection, both proxies (KiB)"),
        path.name,
        each,
    );
    let row = Row::less("memory, after 2,000 connections are gone, above idle (KiB)");
    samples.add(&row, path.name, after - before);
    Ok(())
}

fn many_workloads(path: &Route<'_>, samples: &mut Samples) -> Result<()> {
    let before = path.lab.memory()?;
    path.lab.set_workloads(WORKLOADS)?;
    std::thread::sleep(SETTLED);
    let after = path.lab.memory()?;
    // Asked afterwards: a page of so many takes more memory than they do.
    path.lab.await_workloads(WORKLOADS)?;
    let row = Row::less("memory, 10,000 workloads more, a proxy (KiB)");
    samples.add(&row, path.name, (after - before) / 2.0);
    path.lab.set_workloads(0)?;
    path.lab.await_workloads(0)?;
    std::thread::sleep(SETTLED);
    Ok(())
}

/// One measurement, and the rows that come of it.
struct Work {
    name: String,
    args: [&'static str; 3],
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    RoundTrips,
    Connections,
    Bulk,
}

fn works() -> Vec<Work> {
    let of = |kind, count: &'static str| match kind {
        Kind::RoundTrips => Work {
            name: format!("round trip, {count} at once"),
            args: ["round-trips", "--connections", count],
            kind,
        },
        Kind::Connections => Work {
            name: format!("new connections, {count} at once"),
            args: ["connections", "--at-once", count],
            kind,
        },
        Kind::Bulk => Work {
            name: format!("bulk, {count} streams"),
            args: ["bulk", "--streams", count],
            kind,
        },
    };
    vec![
        of(Kind::RoundTrips, "1"),
        of(Kind::RoundTrips, "16"),
        of(Kind::RoundTrips, "64"),
        of(Kind::Connections, "1"),
        of(Kind::Connections, "16"),
        of(Kind::Bulk, "1"),
        of(Kind::Bulk, "4"),
    ]
}

impl Work {
    /// Each row's value, once.
    fn measure(&self, path: &Route<'_>, seconds: f64) -> Result<Vec<(Row, f64)>> {
        let (figures, cpu) = path.measure(&self.args, seconds)?;
        ensure!(
            figures.done > 0,
            "{} on {}: nothing was done in {seconds} s",
            self.name,
            path.name
        );
        let each = cpu / figures.done as f64;
        let named = |what: &str| format!("{}: {what}", self.name);
        Ok(match self.kind {
            Kind::RoundTrips => vec![
                (Row::less(&named("p50 (µs)")), figures.p50),
                (Row::less(&named("p99 (µs)")), figures.p99),
                (Row::more(&named("a second")), figures.rate()),
                (Row::less(&named("CPU s per 1,000")), each * 1e3),
            ],
            Kind::Connections => vec![
                (Row::more(&named("a second")), figures.rate()),
                (Row::less(&named("CPU ms each")), each * 1e3),
            ],
            Kind::Bulk => vec![
                (Row::more(&named("GB/s")), figures.rate() / 1e9),
                (Row::less(&named("CPU s per GB")), each * 1e9),
            ],
        })
    }
}

/// A way from a client to a server.
struct Route<'a> {
    name: &'static str,
    lab: &'a Lab,
    namespace: &'static str,
}

impl Route<'_> {
    /// Runs the client once; its figures, and the CPU seconds of client, server and proxies.
    fn measure(&self, args: &[&str], seconds: f64) -> Result<(Figures, f64)> {
        let cgroups = self.lab.cgroups(self.namespace)?;
        let used = || -> f64 { cgroups.iter().filter_map(|c| cpu::cgroup_seconds(c)).sum() };
        let before = used();
        let output = self
            .command(args, &["--seconds", &seconds.to_string()])?
            .output()?;
        let spent = used() - before;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr);
            bail!("{} {args:?} failed: {error}", self.name);
        }
        let figures = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{} {args:?} printed no figures", self.name))?;
        Ok((figures, spent))
    }

    /// `seine-bench SUBCOMMAND ADDRESS ARGS` in the client's pod.
    fn command(&self, args: &[&str], rest: &[&str]) -> Result<Command> {
        let to = format!("{}:{PORT}", self.lab.server(self.namespace)?);
        let mut command = self.lab.command("exec");
        command
            .args(["-n", self.namespace, "client", "--"])
            .arg(self.lab.load());
        command.arg(args[0]).arg(to).args(&args[1..]).args(rest);
        Ok(command)
    }
}

/// A running lab, torn down when dropped.
struct Lab {
    name: String,
    programs: PathBuf,
    folder: PathBuf,
    status: serde_json::Value,
}

impl Lab {
    fn up(programs: &Path, work: &Path, name: &str, peer: Option<&Path>) -> Result<Self> {
        let folder = work.join(name);
        fs::create_dir_all(&folder)?;
        let load = programs.join("seine-bench");
        for namespace in ["plain", "mesh"] {
            let manifest = manifests(namespace, &load);
            fs::write(folder.join(format!("{namespace}.yaml")), manifest)?;
        }
        let mut lab = Self {
            name: name.to_owned(),
            programs: programs.to_owned(),
            folder,
            status: serde_json::Value::Null,
        };
        println!("starting lab {name}");
        let mut command = lab.command("up");
        command.arg(&lab.folder).args(["--nodes", "2"]);
        if let Some(binary) = peer {
            command.arg("--peer-ztunnel").arg(binary);
        }
        let status = command.stdout(Stdio::null()).status()?;
        ensure!(status.success(), "seine-lab up failed ({status})");
        let output = lab.command("status").args(["-o", "json"]).output()?;
        ensure!(output.status.success(), "seine-lab status failed");
        lab.status = serde_json::from_slice(&output.stdout).context("seine-lab status -o json")?;
        for namespace in ["plain", "mesh"] {
            lab.reuse_ports(namespace)?;
        }
        Ok(lab)
    }

    /// Lets ports be used again a second after they were closed, as who opens many connections sets it. Without
    /// this 28,000 ports that each wait a minute are 470 new connections a second: the client's, or where a proxy connects
    /// to the application in the client's name those in the server's namespace.
    fn reuse_ports(&self, namespace: &str) -> Result<()> {
        let set = "echo 1 >/proc/sys/net/ipv4/tcp_tw_reuse";
        for pod in ["client", "server"] {
            let status = self
                .command("exec")
                .args(["-n", namespace, pod, "--", "sh", "-c", set])
                .status()?;
            ensure!(
                status.success(),
                "setting tcp_tw_reuse in the {pod} of {namespace} failed ({status})"
            );
        }
        Ok(())
    }

    fn command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(self.programs.join("seine-lab"));
        command.arg(subcommand).args(["--name", &self.name]);
        command
    }

    fn load(&self) -> PathBuf {
        self.programs.join("seine-bench")
    }

    /// The address of a namespace's server pod.
    fn server(&self, namespace: &str) -> Result<&str> {
        let address = self
            .pod(namespace, "server")
            .and_then(|pod| pod["addresses"][0].as_str());
        address.context("the server's address is not in the lab's status")
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<&serde_json::Value> {
        self.status["pods"]
            .as_array()?
            .iter()
            .find(|pod| pod["namespace"] == namespace && pod["name"] == name)
    }

    /// The cgroups of the node proxies.
    fn proxies(&self) -> Result<Vec<PathBuf>> {
        let mesh = self.status["mesh"]
            .as_array()
            .context("the lab's status has no mesh")?;
        let ztunnels = mesh.iter().filter(|part| part["component"] == "ztunnel");
        let cgroups: Vec<PathBuf> = ztunnels.filter_map(cgroup).collect();
        ensure!(
            cgroups.len() == 2,
            "the lab {} has no two ztunnels",
            self.name
        );
        Ok(cgroups)
    }

    /// The cgroups of the proxies and of a namespace's client and server.
    fn cgroups(&self, namespace: &str) -> Result<Vec<PathBuf>> {
        let mut cgroups = self.proxies()?;
        for name in ["client", "server"] {
            let pod = self.pod(namespace, name).and_then(cgroup);
            cgroups.push(pod.with_context(|| format!("the lab's status has no pod {name}"))?);
        }
        Ok(cgroups)
    }

    /// Private memory of both proxies, KiB.
    fn memory(&self) -> Result<f64> {
        let proxies = self.proxies()?;
        let processes = proxies.iter().flat_map(|proxy| cpu::processes(proxy));
        Ok(processes.filter_map(cpu::private_kib).sum::<u64>() as f64)
    }

    /// So many pods of a node that does not exist, known to all and running nowhere.
    fn set_workloads(&self, count: usize) -> Result<()> {
        let mut text = String::new();
        for i in 0..count {
            let ip = format!("10.255.{}.{}", i / 250, i % 250 + 1);
            text.push_str(&format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {EXTRA}{i}, namespace: mesh, uid: u{i}, labels: {{app: w{}}}}}\n\
                 spec: {{nodeName: elsewhere, serviceAccountName: sa{}, containers: [{{name: c, image: none}}]}}\n\
                 status: {{phase: Running, podIP: {ip}, podIPs: [{{ip: {ip}}}], conditions: [{{type: Ready, status: \"True\"}}]}}\n",
                i % 500, i % 500,
            ));
        }
        let state = self.status["state"]
            .as_str()
            .context("the lab's status names no folder")?;
        let file = Path::new(state).join("objects/bench-workloads.yaml");
        // Whole or not at all: the control plane reads it whenever it changes.
        let new = Path::new(state).join("bench-workloads.new");
        fs::write(&new, text).with_context(|| format!("writing {}", new.display()))?;
        fs::rename(&new, &file).with_context(|| format!("writing {}", file.display()))
    }

    /// Waits until both proxies know of exactly so many.
    fn await_workloads(&self, count: usize) -> Result<()> {
        let begun = Instant::now();
        for proxy in self.proxies()? {
            loop {
                let known = self.extra_workloads(&proxy)?;
                if known == count {
                    break;
                }
                ensure!(
                    begun.elapsed() < PATIENCE,
                    "a ztunnel of {} knows {known} of {count} workloads after {PATIENCE:?}",
                    self.name
                );
                std::thread::sleep(Duration::from_millis(500));
            }
        }
        Ok(())
    }

    /// How many of the workloads that [`Self::set_workloads`] made a proxy knows, by its own word.
    fn extra_workloads(&self, proxy: &Path) -> Result<usize> {
        let pid = *cpu::processes(proxy)
            .first()
            .with_context(|| format!("nothing runs in {}", proxy.display()))?;
        let output = Command::new("nsenter")
            .arg(format!("--net=/proc/{pid}/ns/net"))
            .arg(self.load())
            .args(["known-workloads", "127.0.0.1:15000", EXTRA])
            .output()
            .context("running nsenter")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let count = text.trim().parse().ok().filter(|_| output.status.success());
        count.with_context(|| {
            let error = String::from_utf8_lossy(&output.stderr);
            format!("the config_dump of a ztunnel of {}: {error}", self.name)
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.command("down").stdout(Stdio::null()).status();
    }
}

/// Asks a node proxy's admin page `/config_dump` how many workloads it knows whose names begin so.
pub(crate) fn known_workloads(admin: SocketAddr, prefix: &str) -> Result<usize> {
    let mut stream = TcpStream::connect(admin).with_context(|| format!("connecting to {admin}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /config_dump HTTP/1.0\r\nhost: localhost\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let body = answer.windows(4).position(|end| end == b"\r\n\r\n");
    let body = body.map(|at| &answer[at + 4..]).context("no HTTP answer")?;
    let dump: serde_json::Value = serde_json::from_slice(body).context("it is not JSON")?;
    let workloads = dump["workloads"].as_array().context("no workloads in it")?;
    let names = workloads
        .iter()
        .filter_map(|workload| workload["name"].as_str());
    Ok(names.filter(|name| name.starts_with(prefix)).count())
}

fn cgroup(part: &serde_json::Value) -> Option<PathBuf> {
    part["cgroup"].as_str().map(PathBuf::from)
}

/// A client on the first node and a server on the second.
fn manifests(namespace: &str, load: &Path) -> String {
    let label = if namespace == "mesh" {
        "enabled"
    } else {
        "disabled"
    };
    let load = load.display();
    let mut text = format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{seine.dev/mesh: {label}}}}}\n"
    );
    let server = format!(
        "[{load}, server, \"0.0.0.0:{PORT}\"], readinessProbe: {{tcpSocket: {{port: {PORT}}}}}"
    );
    for (name, node, command) in [
        ("client", "node1", "[sleep, infinity]"),
        ("server", "node2", server.as_str()),
    ] {
        text.push_str(&format!(
            "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             ---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec: {{nodeName: {node}, serviceAccountName: {name}, containers: [{{name: main, image: none, command: {command}}}]}}\n"
        ));
    }
    text
}

fn tempdir() -> Result<PathBuf> {
    let folder = std::env::temp_dir().join(format!("seine-bench-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    Ok(folder)
}
