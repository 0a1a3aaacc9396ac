//! The command line.

use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand, ValueEnum};

use crate::client::{self, Client};
use crate::enter::Enter;
use crate::keeper;
use crate::manifest;
use crate::mesh::Mesh;
use crate::names::{LabName, MAX_NODES};
use crate::pause::Sandbox;
use crate::prober;
use crate::protocol::{Component, KillSignal, Request, Status};
use crate::supervisor;
use crate::table::Table;

/// A mesh on one Linux machine, from a directory of Kubernetes manifests.
///
/// Nodes and pods are network namespaces, pods run local programs (the container's command and
/// args; images are ignored), and the real control plane, agents and ztunnels run on them.
/// Needs root.
#[derive(Parser)]
#[command(name = "seine-lab", version)]
pub struct Arguments {
    #[command(subcommand)]
    command: Action,
    /// The lab; several can be up at a time.
    #[arg(long, global = true, default_value = "lab", env = "SEINE_LAB_NAME")]
    name: LabName,
}

#[derive(Subcommand)]
enum Action {
    /// Start a lab from manifests; returns when every pod is ready.
    Up {
        /// Manifests, or directories of them; without any, an empty lab.
        manifests: Vec<PathBuf>,
        /// How many nodes.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_NODES)))]
        nodes: u8,
        /// How long to wait for pods, in seconds.
        #[arg(long, default_value_t = 90)]
        timeout: u64,
        /// Run the pods alone, without control plane, agents and ztunnels.
        #[arg(long)]
        no_mesh: bool,
        /// The folder of seine-control, seine-agent, seine-cni and seine-ztunnel; by default
        /// that of this program.
        #[arg(long, env = "SEINE_BIN_DIR")]
        bin_dir: Option<PathBuf>,
        /// Another mesh's node proxy, run in the place of seine-ztunnel with the settings that its
        /// own deployment would give it.
        #[arg(long)]
        peer_ztunnel: Option<PathBuf>,
        /// Leave a lab that did not get ready as it is, for a look at it.
        #[arg(long)]
        keep: bool,
    },
    /// Make or change objects.
    Apply {
        /// Manifests, directories of them, or - for standard input.
        #[arg(required = true)]
        manifests: Vec<PathBuf>,
        /// Return when every pod is ready.
        #[arg(long)]
        wait: bool,
    },
    /// Delete an object; returns when its pods are gone.
    Delete {
        /// KIND/NAME, as pod/web-1.
        object: String,
        /// Its namespace.
        #[arg(short, long, default_value = "default")]
        namespace: String,
    },
    /// Wait until every pod is ready.
    Wait {
        /// How long, in seconds.
        #[arg(long, default_value_t = 90)]
        timeout: u64,
    },
    /// Run a command in a pod's namespaces and cgroup, with this program's standard streams.
    Exec {
        /// The pod's namespace.
        #[arg(short, long, default_value = "default")]
        namespace: String,
        /// The container whose environment and cgroup it gets; else the first.
        #[arg(short, long)]
        container: Option<String>,
        /// The pod, or KIND/NAME of a workload for one of its pods.
        pod: String,
        /// The command.
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Show the logs of a pod (POD or KIND/NAME), of agent, ztunnel or control, or of the lab.
    Logs {
        /// The pod's namespace; with it, agent, ztunnel and control are names of pods.
        #[arg(short, long)]
        namespace: Option<String>,
        /// Of one container.
        #[arg(short, long)]
        container: Option<String>,
        /// Of the component on one node; else of all.
        #[arg(long)]
        node: Option<u8>,
        /// Go on with what is added.
        #[arg(short, long)]
        follow: bool,
        /// POD, KIND/NAME, agent, ztunnel, control or lab.
        of: String,
    },
    /// Capture what is on the wire between nodes, as pcap; until Ctrl-C or --duration.
    Capture {
        /// On which node's wire.
        #[arg(long, default_value_t = 1)]
        node: u8,
        /// The file to write; else standard output.
        #[arg(short = 'w', long)]
        output: Option<PathBuf>,
        /// Stop after so many seconds.
        #[arg(long)]
        duration: Option<f64>,
        /// A tcpdump filter.
        #[arg(last = true)]
        filter: Vec<String>,
    },
    /// Start a new agent, ztunnel or control plane and have it take over; also after kill.
    ///
    /// A new ztunnel is ready before the old one gets SIGTERM. Agent and control plane end first.
    Restart {
        /// What.
        component: Component,
        /// On one node; else on all.
        #[arg(long)]
        node: Option<u8>,
    },
    /// Kill an agent, ztunnel or control plane. It stays dead until restart.
    Kill {
        /// What.
        component: Component,
        /// On one node; else on all.
        #[arg(long)]
        node: Option<u8>,
        /// As a crash, or in order: TERM lets it drain and returns when it has ended.
        #[arg(long, value_enum, default_value = "kill", ignore_case = true)]
        signal: KillSignal,
    },
    /// Show nodes, mesh and pods.
    Status {
        /// As what.
        #[arg(short, long, value_enum, default_value = "table")]
        output: Output,
    },
    /// End the lab, or remove what is left of one that died.
    Down,
    #[command(hide = true)]
    InternalKeep,
    #[command(hide = true)]
    InternalInit { settings: PathBuf },
    #[command(hide = true)]
    InternalSupervise { settings: PathBuf },
    #[command(hide = true)]
    InternalPause { sandbox: String },
    #[command(hide = true)]
    InternalProbe,
    #[command(hide = true)]
    InternalEnter {
        enter: String,
        #[arg(last = true)]
        command: Vec<String>,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

impl Arguments {
    /// Does what the command line says; the exit code.
    pub fn run(self) -> Result<i32> {
        match self.command {
            Action::InternalKeep => {
                let mut text = String::new();
                std::io::stdin().read_to_string(&mut text)?;
                keeper::keep(serde_json::from_str(&text)?)?;
                Ok(0)
            }
            Action::InternalInit { settings } => {
                keeper::init(&settings)?;
                Ok(0)
            }
            Action::InternalSupervise { settings } => {
                log_to_stderr();
                let text = std::fs::read_to_string(&settings).context("reading the settings")?;
                runtime(2)?.block_on(supervisor::run(serde_json::from_str(&text)?))?;
                Ok(0)
            }
            Action::InternalPause { sandbox } => {
                let sandbox: Sandbox = serde_json::from_str(&sandbox)?;
                sandbox.hold()?;
                Ok(0)
            }
            Action::InternalProbe => {
                runtime(0)?.block_on(prober::run())?;
                Ok(0)
            }
            Action::InternalEnter { enter, command } => {
                let enter: Enter = serde_json::from_str(&enter)?;
                if let Err(error) = enter.exec(&command) {
                    eprintln!("seine-lab: {error:#}");
                }
                // As a shell says that a command can't be run.
                Ok(127)
            }
            command => command.run(&Client::new(self.name.clone())?, &self.name),
        }
    }
}

impl Action {
    fn run(self, lab: &Client, name: &LabName) -> Result<i32> {
        match self {
            Self::Up {
                manifests,
                nodes,
                timeout,
                no_mesh,
                bin_dir,
                peer_ztunnel,
                keep,
            } => {
                let binaries = match (no_mesh, bin_dir) {
                    (true, _) => None,
                    (false, given) => Some(binaries(given)?),
                };
                let objects = manifest::read(&manifests)?;
                let begun = Instant::now();
                let peer = peer_ztunnel.map(|path| path.canonicalize()).transpose()?;
                lab.up(nodes, binaries, peer, objects)?;
                let ready = lab.wait(Duration::from_secs(timeout), |what| {
                    eprintln!("lab {name}: {what}")
                });
                if let Err(error) = ready {
                    if !keep {
                        lab.down()?;
                    }
                    return Err(error);
                }
                print!("{}", table(&lab.status()?));
                eprintln!(
                    "lab {name}: ready in {:.1} s",
                    begun.elapsed().as_secs_f64()
                );
            }
            Self::Apply { manifests, wait } => {
                let objects = manifest::read(&manifests)?;
                let lines = lab.request(&Request::Apply(objects))?;
                for line in lines.as_array().into_iter().flatten() {
                    println!("{}", line.as_str().unwrap_or_default());
                }
                if wait {
                    lab.wait(Duration::from_secs(90), |_| {})?;
                }
            }
            Self::Delete { object, namespace } => {
                let Some((kind, name)) = object.split_once('/') else {
                    bail!("'{object}': want KIND/NAME, as pod/web-1");
                };
                let (kind, name) = (kind.to_owned(), name.to_owned());
                lab.request(&Request::Delete {
                    kind,
                    name,
                    namespace,
                })?;
                println!("{object} deleted");
            }
            Self::Wait { timeout } => lab.wait(Duration::from_secs(timeout), |_| {})?,
            Self::Exec {
                namespace,
                container,
                pod,
                command,
            } => {
                return lab.exec(&namespace, &pod, container.as_deref(), &command);
            }
            Self::Logs {
                namespace,
                container,
                node,
                follow,
                of,
            } => {
                let component = match namespace {
                    None => Component::from_str(&of, false).ok(),
                    Some(_) => None,
                };
                let files = match component {
                    Some(component) => lab.component_logs(component, node)?,
                    None if of == "lab" && namespace.is_none() => vec![lab.lab_log()],
                    None => lab.pod_logs(
                        namespace.as_deref().unwrap_or("default"),
                        &of,
                        container.as_deref(),
                    )?,
                };
                client::show(&files, follow)?;
            }
            Self::Capture {
                node,
                output,
                duration,
                filter,
            } => {
                let duration = duration.map(Duration::try_from_secs_f64).transpose()?;
                return lab.capture(node, output.as_deref(), duration, &filter);
            }
            Self::Restart { component, node } => {
                lab.request(&Request::Restart { component, node })?;
            }
            Self::Kill {
                component,
                node,
                signal,
            } => {
                lab.request(&Request::Kill {
                    component,
                    node,
                    signal,
                })?;
            }
            Self::Status { output } => {
                let status = lab.status()?;
                match output {
                    Output::Table => print!("{}", table(&status)),
                    Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
                }
            }
            Self::Down => lab.down()?,
            Self::InternalKeep
            | Self::InternalInit { .. }
            | Self::InternalSupervise { .. }
            | Self::InternalPause { .. }
            | Self::InternalProbe
            | Self::InternalEnter { .. } => bail!("not a command for people"),
        }
        Ok(0)
    }
}

fn binaries(given: Option<PathBuf>) -> Result<PathBuf> {
    let directory = match given {
        Some(directory) => directory
            .canonicalize()
            .context("the folder of the programs")?,
        None => std::env::current_exe()?
            .parent()
            .context("programs are in folders")?
            .to_owned(),
    };
    let missing = Mesh::missing_programs(&directory);
    if !missing.is_empty() {
        bail!(
            "{} not in {}: build them (cargo build), or run pods alone with --no-mesh",
            missing.join(", "),
            directory.display()
        );
    }
    Ok(directory)
}

fn runtime(workers: usize) -> Result<tokio::runtime::Runtime> {
    let mut builder = match workers {
        0 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if workers > 0 {
        builder.worker_threads(workers);
    }
    builder.enable_all().build().context("starting the runtime")
}

fn log_to_stderr() {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_env_filter(tracing_subscriber::EnvFilter::new("info"))
        .init();
}

/// What `up` and `status` print.
fn table(status: &Status) -> String {
    let mut mesh = Table::new(["MESH", "NODE", "STATE", "STARTS", "ADDRESS"]);
    for part in &status.mesh {
        mesh.row([
            part.component.name().to_owned(),
            part.node
                .map_or_else(|| "-".to_owned(), |node| format!("node{node}")),
            match &part.ended {
                None => "running".to_owned(),
                Some(how) => format!("ended ({how})"),
            },
            part.generation.to_string(),
            part.addresses
                .first()
                .map(ToString::to_string)
                .unwrap_or_default(),
        ]);
    }
    let mut pods = Table::new([
        "NAMESPACE",
        "POD",
        "READY",
        "STATUS",
        "RESTARTS",
        "NODE",
        "ADDRESS",
        "ACCOUNT",
    ]);
    for pod in &status.pods {
        pods.row([
            pod.namespace.clone(),
            pod.name.clone(),
            if pod.ready { "yes" } else { "no" }.to_owned(),
            pod.phase.clone(),
            pod.restarts.to_string(),
            format!("node{}", pod.node),
            pod.addresses
                .first()
                .map(ToString::to_string)
                .unwrap_or_default(),
            pod.service_account.clone(),
        ]);
    }
    format!(
        "{mesh}{}{pods}",
        if status.mesh.is_empty() { "" } else { "\n" }
    )
}
