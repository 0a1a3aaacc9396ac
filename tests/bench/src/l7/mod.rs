//! The waypoint beside Envoy: in one lab, one application behind both, each with one worker and a line in its log for each
//! request, measured by turns.
//!
//! A request's way is the same through both: the client's ztunnel, mutual TLS and CONNECT to the proxy, and from it to the
//! server's ztunnel. CPU and memory are those of the proxy's pod alone.

mod client;
mod envoy;
mod proxies;
mod server;

use std::fs;
use std::io::{BufRead, BufReader, Lines};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use seine_lab::protocol::{Component, Status};
use seine_lab::{Lab, Options};

pub(crate) use self::client::{Load, hold, requests, watch};
pub(crate) use self::server::server;

use self::client::VERSION;
use self::envoy::Files;
use self::proxies::{CLIENT, ENVOY, GRPC, HTTP1, HTTP2, NAMESPACE, OURS, SERVER, TARGET};
use crate::cpu;
use crate::load::Figures;
use crate::report::{Row, Samples};

/// The environment variable that names Envoy's binary.
const BINARY: &str = "SEINE_BENCH_ENVOY";
const HELD: usize = 1000;
const ROUTES: usize = 1000;
const MEGABYTE: &str = "/bytes/1048576";
/// A lab that answers at all does so sooner.
const PATIENCE: Duration = Duration::from_secs(60);

/// What to measure and how often.
pub(crate) struct Plan {
    pub(crate) programs: Option<PathBuf>,
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    pub(crate) only: Option<String>,
    pub(crate) markdown: Option<PathBuf>,
}

/// Measures everything and prints the table.
pub(crate) fn run(plan: &Plan) -> Result<()> {
    let root = nix::unistd::geteuid().is_root();
    ensure!(root, "the benchmark starts a lab, which needs root");
    let envoy = std::env::var_os(BINARY).with_context(|| format!("{BINARY} names no program"))?;
    let stage = Stage::up(plan, Path::new(&envoy))?;
    let mut samples = Samples::default();
    let paths = [OURS, ENVOY];
    let wanted = |name: &str| {
        plan.only
            .as_ref()
            .is_none_or(|only| name.contains(only.as_str()))
    };

    // Once: afterwards a proxy keeps some of what it has had.
    if wanted("memory") {
        for proxy in paths {
            samples.add(
                &Row::less("memory, idle (KiB)"),
                proxy,
                stage.memory(proxy)?,
            );
        }
        for proxy in paths {
            let row = Row::less("memory, 1,000 connections more (KiB)");
            samples.add(&row, proxy, stage.connections(proxy)?);
        }
    }
    let mut peaks = Peaks::default();
    for round in 1..=plan.rounds {
        println!("round {round} of {}", plan.rounds);
        for work in works().iter().filter(|work| wanted(&work.name)) {
            for proxy in paths {
                for (row, value) in work.measure(&stage, proxy, plan.seconds, &mut peaks)? {
                    samples.add(&row, proxy, value);
                }
            }
        }
    }
    if wanted("routes") {
        println!("with {ROUTES} routes");
        stage.add_routes()?;
        let among = Work::busy(
            "HTTP/1.1 among 1,000 routes",
            HTTP1,
            &["--connections", "32"],
        );
        for version in 1..=plan.rounds as u32 {
            for proxy in paths {
                for (row, value) in among.measure(&stage, proxy, plan.seconds, &mut peaks)? {
                    samples.add(&row, proxy, value);
                }
                let row = Row::less("a change among 1,000 routes: seen by a request after (ms)");
                samples.add(
                    &row,
                    proxy,
                    stage
                        .change(proxy, version)
                        .with_context(|| format!("a change of {proxy}'s routes"))?
                        * 1e3,
                );
            }
        }
    }
    let table = samples.table(&paths, &[(OURS, ENVOY)]);
    println!("\n{table}");
    println!(
        "Medians of {} rounds (min–max); ratios are medians of paired ratios. One worker each; CPU and memory of the proxy alone.",
        plan.rounds
    );
    if let Some(file) = &plan.markdown {
        fs::write(file, &table).with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

/// Requests a second that a proxy answered at most, by what was asked: the half of the lesser one is a rate for both.
#[derive(Default)]
struct Peaks(Vec<(u16, f64)>);

impl Peaks {
    fn add(&mut self, port: u16, rate: f64) {
        self.0.push((port, rate));
    }

    /// Half of the least.
    fn half(&self, port: u16) -> Option<f64> {
        let of = self.0.iter().filter(|(of, _)| *of == port);
        of.map(|(_, rate)| rate / 2.0).min_by(f64::total_cmp)
    }
}

/// One measurement, and the rows that come of it.
struct Work {
    name: String,
    port: u16,
    args: Vec<&'static str>,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Busy,
    Half,
    Bodies,
}

fn works() -> Vec<Work> {
    let speakers: [(&str, u16, &[&str]); 3] = [
        ("HTTP/1.1", HTTP1, &["--connections", "32"]),
        (
            "HTTP/2",
            HTTP2,
            &[
                "--protocol",
                "http2",
                "--connections",
                "4",
                "--streams",
                "8",
            ],
        ),
        (
            "gRPC",
            GRPC,
            &["--protocol", "grpc", "--connections", "4", "--streams", "8"],
        ),
    ];
    let busy = speakers.map(|(name, port, args)| Work::busy(name, port, args));
    let half = speakers.map(|(name, port, args)| Work {
        name: format!("{name} at half load"),
        kind: Kind::Half,
        ..Work::busy("", port, args)
    });
    let bodies = Work {
        name: "bodies of 1 MB, HTTP/1.1".into(),
        kind: Kind::Bodies,
        ..Work::busy("", HTTP1, &["--connections", "4", "--path", MEGABYTE])
    };
    busy.into_iter().chain(half).chain([bodies]).collect()
}

impl Work {
    /// As fast as it goes.
    fn busy(name: &str, port: u16, args: &[&'static str]) -> Self {
        Self {
            name: name.into(),
            port,
            args: args.to_vec(),
            kind: Kind::Busy,
        }
    }

    /// Each row's value, once.
    fn measure(
        &self,
        stage: &Stage,
        proxy: &str,
        seconds: f64,
        peaks: &mut Peaks,
    ) -> Result<Vec<(Row, f64)>> {
        let mut args: Vec<String> = self.args.iter().map(ToString::to_string).collect();
        args.extend(["--seconds".into(), seconds.to_string()]);
        if self.kind == Kind::Half {
            let rate = peaks
                .half(self.port)
                .context("half of a load that was not measured")?;
            args.extend(["--rate".into(), rate.to_string()]);
        }
        let before = stage.seconds(proxy)?;
        let figures = stage.load(proxy, self.port, &args)?;
        let cpu = stage.seconds(proxy)? - before;
        ensure!(
            figures.done > 0,
            "{}: nothing was done by {proxy}",
            self.name
        );
        let named = |what: &str| format!("{}: {what}", self.name);
        let done = figures.done as f64;
        Ok(match self.kind {
            Kind::Busy => {
                peaks.add(self.port, figures.rate());
                vec![
                    (Row::more(&named("a second")), figures.rate()),
                    (
                        Row::more(&named("a second and core of the proxy")),
                        done / cpu,
                    ),
                    (Row::less(&named("CPU s per 1,000")), cpu / done * 1e3),
                ]
            }
            Kind::Half => vec![
                (Row::less(&named("p50 (µs)")), figures.p50),
                (Row::less(&named("p99 (µs)")), figures.p99),
            ],
            Kind::Bodies => vec![
                (Row::more(&named("a second")), figures.rate()),
                (Row::less(&named("CPU s per 1,000")), cpu / done * 1e3),
            ],
        })
    }
}

/// The lab with both proxies.
struct Stage {
    lab: Lab,
    status: Status,
    envoy: Files,
    /// The load's program.
    load: PathBuf,
    /// Of what proxies and lab read.
    _work: tempfile::TempDir,
}

impl Stage {
    fn up(plan: &Plan, envoy: &Path) -> Result<Self> {
        let own = std::env::current_exe()?;
        let beside = own.parent().context("this program is in no folder")?;
        let programs = plan.programs.as_deref().unwrap_or(beside);
        let load = programs.join("seine-bench");
        let work = tempfile::tempdir()?;
        let options = Options {
            binaries: Some(programs.to_owned()),
            ..Options::new("bench-l7")
        };
        println!("starting lab {}", options.name);
        let lab = Lab::up(&options, &proxies::applications(&load))?;
        let status = lab.status()?;
        let state = Path::new(&status.state);

        let server = SocketAddr::new(pod(&status, SERVER)?.ip, TARGET);
        let identity = format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/{ENVOY}");
        let files = Files::write(&work.path().join("envoy"), state, &identity, server)?;
        let control = status
            .mesh
            .iter()
            .find(|part| part.component == Component::Control);
        let control = control.and_then(|part| part.addresses.first());
        let control = format!(
            "https://{}:15012",
            control.context("there is no control plane")?
        );
        write_objects(&status, "bench-gateway.yaml", &proxies::gateway())?;
        let waypoint = programs.join("seine-waypoint");
        let ours = proxies::ours(&waypoint, &control, &state.join("ca/root-cert.pem"));
        lab.apply_and_wait(&ours)?;
        lab.apply_and_wait(&proxies::envoy(files.container(envoy)))?;
        let status = lab.status()?;
        let stage = Self {
            lab,
            status,
            envoy: files,
            load,
            _work: work,
        };
        for proxy in [OURS, ENVOY] {
            stage.answers(proxy)?;
        }
        Ok(stage)
    }

    /// Waits until requests come through.
    fn answers(&self, proxy: &str) -> Result<()> {
        let give_up = SystemTime::now() + PATIENCE;
        loop {
            let error = match self.load(proxy, HTTP1, &["--seconds".into(), "0.01".into()]) {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            if SystemTime::now() > give_up {
                let log = self.lab.pod_logs(NAMESPACE, proxy).unwrap_or_default();
                bail!("{proxy} lets no request through: {error:#}\n{log}");
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn load(&self, proxy: &str, port: u16, args: &[String]) -> Result<Figures> {
        let output = self.command("requests", proxy, port, args)?.output()?;
        if !output.status.success() {
            bail!(
                "{proxy} {args:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        serde_json::from_slice(&output.stdout).context("the load printed no figures")
    }

    /// `seine-bench SUBCOMMAND ADDRESS ARGS` in the client's pod, to the Service that is bound to a proxy.
    fn command(
        &self,
        subcommand: &str,
        proxy: &str,
        port: u16,
        args: &[String],
    ) -> Result<Command> {
        let to = SocketAddr::new(self.service(&proxies::bound(proxy))?, port).to_string();
        let load = self.load.display().to_string();
        let mut command = self
            .lab
            .exec_command(NAMESPACE, CLIENT, &[&load, subcommand, &to]);
        command.args(args);
        Ok(command)
    }

    fn service(&self, name: &str) -> Result<IpAddr> {
        let found = self
            .status
            .services
            .iter()
            .find(|service| service.name == name);
        let address = found.and_then(|service| service.addresses.first());
        address
            .copied()
            .with_context(|| format!("the lab has no service {name}"))
    }

    /// CPU seconds that a proxy has used.
    fn seconds(&self, proxy: &str) -> Result<f64> {
        let cgroup = &pod(&self.status, proxy)?.cgroup;
        cpu::cgroup_seconds(Path::new(cgroup)).with_context(|| format!("{proxy} has ended"))
    }

    /// Private memory of a proxy, KiB.
    fn memory(&self, proxy: &str) -> Result<f64> {
        let processes = cpu::processes(Path::new(&pod(&self.status, proxy)?.cgroup));
        Ok(processes
            .into_iter()
            .filter_map(cpu::private_kib)
            .sum::<u64>() as f64)
    }

    /// What many connections take, KiB.
    fn connections(&self, proxy: &str) -> Result<f64> {
        let before = self.memory(proxy)?;
        let args = ["--connections".into(), HELD.to_string()];
        let client = Talking::start(self.command("hold-requests", proxy, HTTP1, &args)?)?;
        std::thread::sleep(Duration::from_secs(3));
        let held = self.memory(proxy)?;
        client.end()?;
        Ok(held - before)
    }

    /// Gives both proxies the same routes.
    fn add_routes(&self) -> Result<()> {
        write_objects(
            &self.status,
            "bench-probe.yaml",
            &proxies::probe(VERSION, 0),
        )?;
        write_objects(&self.status, "bench-routes.yaml", &proxies::routes(ROUTES))?;
        self.envoy.write_routes(ROUTES, 0)?;
        for proxy in [OURS, ENVOY] {
            let args = ["--path", "/probe", "--version", "0"].map(String::from);
            let mut client = Talking::start(self.command("watch-route", proxy, HTTP1, &args)?)?;
            client.line()?;
            client.end()?;
        }
        // The control plane has all of them when it has the one that is written last, and some are still on their way.
        std::thread::sleep(Duration::from_secs(2));
        Ok(())
    }

    /// Changes one route; the seconds until a request shows it.
    fn change(&self, proxy: &str, version: u32) -> Result<f64> {
        let args = ["--path", "/probe", "--version", &version.to_string()].map(String::from);
        let mut client = Talking::start(self.command("watch-route", proxy, HTTP1, &args)?)?;
        let begun = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        match proxy {
            ENVOY => self.envoy.write_routes(ROUTES, version)?,
            _ => write_objects(
                &self.status,
                "bench-probe.yaml",
                &proxies::probe(VERSION, version),
            )?,
        }
        let seen: f64 = client.line()?.trim().parse().context("no time")?;
        client.end()?;
        Ok(seen - begun)
    }
}

/// A client that says when it has begun, and ends when its input does.
struct Talking {
    process: Child,
    input: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
}

impl Talking {
    /// Returns when it has begun.
    fn start(mut command: Command) -> Result<Self> {
        let mut process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = process.stdout.take().context("its output is piped")?;
        let mut talking = Self {
            input: process.stdin.take(),
            process,
            output: BufReader::new(output).lines(),
        };
        talking.line()?;
        Ok(talking)
    }

    fn line(&mut self) -> Result<String> {
        Ok(self.output.next().context("the client ended")??)
    }

    fn end(mut self) -> Result<()> {
        drop(self.input.take());
        let status = self.process.wait()?;
        ensure!(status.success(), "the client failed ({status})");
        Ok(())
    }
}

fn pod<'a>(status: &'a Status, name: &str) -> Result<&'a seine_lab::protocol::PodStatus> {
    let found = status.pods.iter().find(|pod| pod.name == name);
    found.with_context(|| format!("the lab has no pod {name}"))
}

/// Gives the control plane objects that the lab needn't know.
fn write_objects(status: &Status, name: &str, objects: &str) -> Result<()> {
    let file = Path::new(&status.objects).join(name);
    // Whole or not at all: the control plane reads it whenever it changes.
    let new = Path::new(&status.state).join(format!("{name}.new"));
    fs::write(&new, objects).with_context(|| format!("writing {}", new.display()))?;
    fs::rename(&new, &file).with_context(|| format!("writing {}", file.display()))
}
