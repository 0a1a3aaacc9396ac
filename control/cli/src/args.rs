//! The commands and their flags.

use std::{
    io::{IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::bail;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use seine_control::translate::Settings;
use seine_objects::istio;

use crate::{
    analyze::analyze,
    asked::Asked,
    check,
    cluster::{Cluster, Where},
    explain::Verdict,
    files::{self, Objects},
    finding::Severity,
    output::{self, Format, Outcome},
    pages::{Program, ZTUNNEL},
    party::Name,
    status::Status,
    tap::Tapped,
    uninstall::{self, Part},
    world::World,
    ztunnel::{What, Which},
};

/// Checks and explains a Seine mesh.
///
/// Exit status: 0 if the answer is good, 1 if it is bad (denied, unhealthy, errors found), 2 if
/// there is no answer.
#[derive(Parser)]
#[command(name = "seine", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

/// Of every command.
#[derive(Args)]
struct Global {
    /// How to print: a table for people, the others for programs.
    #[arg(short, long, global = true, value_enum, default_value = "table")]
    output: Format,
    #[command(flatten)]
    cluster: Where,
}

#[derive(Subcommand)]
enum Command {
    /// Say whether a connection or a request would be allowed, which policies and routes decide, and where it goes.
    ///
    /// SOURCE and DESTINATION: an IP address, [KIND/]NAME[.NAMESPACE] of a pod, of what makes pods,
    /// or of a service account, and as destination of a service, also by its DNS name.
    Explain {
        /// Who connects.
        source: Name,
        /// Where to, with :PORT where there are several.
        destination: Name,
        /// Namespace of what is named without one.
        #[arg(short, long, default_value = "default")]
        namespace: String,
        #[command(flatten)]
        objects: From,
        #[command(flatten)]
        asked: Asked,
    },
    /// Look for mistakes in policies, labels and what they refer to.
    Analyze {
        #[command(flatten)]
        objects: From,
        /// The exit status is 1 for findings as bad as this, or worse.
        #[arg(long, value_enum, default_value = "error")]
        fail_on: Severity,
    },
    /// Check that this cluster's Seine works, or that it can be installed.
    Check {
        /// Before an installation.
        #[arg(long)]
        pre: bool,
        /// The exit status is 1 for findings as bad as this, or worse.
        #[arg(long, value_enum, default_value = "error")]
        fail_on: Severity,
    },
    /// Show programs, proxies, and conditions that don't hold.
    Status {
        /// Show conditions that hold, too.
        #[arg(long)]
        all: bool,
        /// Ask HOST:PORT, which must be the admin page of a control plane, without a cluster.
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
    },
    /// Show what node proxies hold and do.
    Ztunnel {
        #[command(subcommand)]
        what: What,
        #[command(flatten)]
        which: Which,
    },
    /// Show requests as a waypoint answers them, until it is interrupted.
    ///
    /// One line each, with -o json one object each. No header, query or body is shown. It needs the permission to list pods and to
    /// create pods/portforward in the Gateway's namespace.
    Tap {
        #[command(flatten)]
        tapped: Tapped,
    },
    /// Release the nodes, and remove what the programs made. Connections are plaintext afterwards.
    ///
    /// `helm uninstall` does it by itself: `--only nodes` before it deletes anything, and
    /// `--only objects` after.
    Uninstall {
        /// One half alone.
        #[arg(long, value_enum)]
        only: Option<Part>,
        /// Seconds that all agents together may take, as 300s.
        #[arg(long, default_value = "300s", value_parser = seconds)]
        timeout: Duration,
        /// Leave the Secret with the CA.
        #[arg(long)]
        keep_ca: bool,
        /// Don't ask.
        #[arg(short, long)]
        yes: bool,
    },
    /// Print a completion script for a shell: `source <(seine completion bash)`.
    Completion {
        /// The shell.
        shell: Shell,
    },
}

/// Where objects are from, and how they are to be read.
#[derive(Args)]
struct From {
    /// Manifests, or folders of them; - is standard input. Without it the cluster.
    #[arg(short, long = "filename", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Trust domain of the mesh; by default the installation's, or cluster.local.
    #[arg(long)]
    trust_domain: Option<String>,
    /// Domain of the cluster's DNS names; by default the installation's, or cluster.local.
    #[arg(long)]
    dns_domain: Option<String>,
    /// Take `istio.io/dataplane-mode=ambient` for an opt-in too.
    #[arg(long)]
    istio_alias: bool,
}

impl From {
    /// The objects, and how to translate them.
    async fn read(&self, global: &Global) -> anyhow::Result<(Objects, Settings)> {
        let (objects, mut settings) = if self.files.is_empty() {
            let cluster = Cluster::new(&global.cluster).await?;
            (cluster.objects().await?, cluster.settings().await?)
        } else {
            let settings = Settings {
                istio_root_namespace: Some(istio::ROOT_NAMESPACE.into()),
                ..Settings::default()
            };
            (files::read(&self.files)?, settings)
        };
        if let Some(domain) = &self.trust_domain {
            settings.trust_domain.clone_from(domain);
        }
        if let Some(domain) = &self.dns_domain {
            settings.dns_domain.clone_from(domain);
        }
        settings.enrolment.istio_alias |= self.istio_alias;
        settings
            .root_namespace
            .clone_from(&global.cluster.system_namespace);
        Ok((objects, settings))
    }
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let outcome = runtime
        .map_err(anyhow::Error::from)
        .and_then(|runtime| runtime.block_on(cli.command.run(&cli.global)));
    match outcome {
        Ok(Outcome::Good) => ExitCode::SUCCESS,
        Ok(Outcome::Bad) => ExitCode::from(1),
        Err(error) => {
            eprintln!("seine: {error:#}");
            ExitCode::from(2)
        }
    }
}

impl Command {
    async fn run(self, global: &Global) -> anyhow::Result<Outcome> {
        match self {
            Self::Explain {
                source,
                destination,
                namespace,
                objects,
                asked,
            } => {
                let (found, settings) = objects.read(global).await?;
                let world = World::new(found.set, settings)?;
                let explained = world.explain(&source, &destination, &namespace, &asked)?;
                output::print(&explained, global.output)?;
                Ok(Outcome::of(explained.verdict == Verdict::Allowed))
            }
            Self::Analyze { objects, fail_on } => {
                let (found, settings) = objects.read(global).await?;
                let world = World::new(found.set.clone(), settings)?;
                let findings = analyze(&world, &found);
                output::print(&findings, global.output)?;
                Ok(Outcome::of(findings.better_than(fail_on)))
            }
            Self::Check { pre, fail_on } => {
                let cluster = Cluster::new(&global.cluster).await?;
                let findings = match pre {
                    true => check::before(&cluster).await?,
                    false => check::installed(&cluster).await?,
                };
                output::print(&findings, global.output)?;
                Ok(Outcome::of(findings.better_than(fail_on)))
            }
            Self::Status { all, address } => {
                let mut status = match address {
                    Some(address) => Status::of_replica(&Program::at(&address)).await?,
                    None => Status::of_cluster(&Cluster::new(&global.cluster).await?).await?,
                };
                status.all = all;
                output::print(&status, global.output)?;
                Ok(Outcome::of(status.is_good()))
            }
            Self::Ztunnel { what, which } => {
                let (answers, outcome) = what.ask(&proxies(&which, global).await?).await?;
                output::print(&answers, global.output)?;
                Ok(outcome)
            }
            Self::Tap { tapped } => {
                let cluster = async || Cluster::new(&global.cluster).await;
                let programs = tapped.programs(cluster).await?;
                tapped.follow(programs, global.output).await?;
                Ok(Outcome::Good)
            }
            Self::Uninstall {
                only,
                timeout,
                keep_ca,
                yes,
            } => {
                let cluster = Cluster::new(&global.cluster).await?;
                if !yes {
                    confirm(&cluster, only).await?;
                }
                if only != Some(Part::Objects) {
                    uninstall::nodes(&cluster, timeout).await?;
                }
                if only != Some(Part::Nodes) {
                    uninstall::objects(&cluster, keep_ca).await?;
                }
                Ok(Outcome::Good)
            }
            Self::Completion { shell } => {
                let mut script = Vec::new();
                clap_complete::generate(shell, &mut Cli::command(), "seine", &mut script);
                output::print_text(&String::from_utf8_lossy(&script))?;
                Ok(Outcome::Good)
            }
        }
    }
}

async fn proxies(which: &Which, global: &Global) -> anyhow::Result<Vec<Program>> {
    if let Some(address) = &which.address {
        return Ok(vec![Program::at(address)]);
    }
    let cluster = Cluster::new(&global.cluster).await?;
    let pods = cluster.component("ztunnel").await?;
    let pods = Cluster::select(pods, which.pod.as_deref(), which.node.as_deref())?;
    let program = |pod| Program::in_pod(&cluster, pod, ZTUNNEL);
    Ok(pods.iter().map(program).collect())
}

/// Asks whoever sits at the terminal; nobody there is a no.
async fn confirm(cluster: &Cluster, only: Option<Part>) -> anyhow::Result<()> {
    if !std::io::stdin().is_terminal() {
        bail!("nobody can be asked here: add --yes");
    }
    let what = match only {
        Some(Part::Objects) => "The CA and what else the control plane made is deleted".to_owned(),
        _ => {
            let nodes = uninstall::agents(cluster).await?.len();
            format!("The pods of {nodes} nodes leave the mesh, and talk in plaintext")
        }
    };
    eprint!("{what}. Go on? [y/N] ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => bail!("nothing was done"),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text).parse();
    let number = number.map_err(|_| format!("{text:?} is no number of seconds, as 300s"));
    number.map(Duration::from_secs)
}
