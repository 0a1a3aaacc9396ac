//! One replica of the control plane, many node proxies that are simulated, and many workloads: what it costs the control
//! plane, and how long a change takes to reach all.

mod objects;
mod proxies;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use seine_lab::control_alone::ControlAlone;
use seine_lab::token::Subject;
use seine_xds::{Grpc, GrpcOptions};
use tokio::task::JoinSet;

use self::proxies::{AT_ONCE, Mesh, connect};
use crate::{cpu, report};

const SERVER_NAME: &str = "seine-control.seine-system.svc";
/// The file with the pod that changes.
const CHANGES: &str = "changed.yaml";
const PATIENCE: Duration = Duration::from_secs(300);

/// What is measured.
pub(crate) struct Plan {
    pub(crate) programs: Option<PathBuf>,
    pub(crate) proxies: usize,
    /// So many of them begin with nothing; the others come back with what they hold.
    pub(crate) new: usize,
    pub(crate) workloads: usize,
    pub(crate) changes: usize,
}

pub(crate) fn run(plan: &Plan) -> Result<()> {
    raise_descriptors()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let folder = tempfile::tempdir()?;
    println!(
        "{} workloads in {} namespaces, {} proxies",
        plan.workloads,
        objects::namespaces(plan.workloads),
        plan.proxies
    );
    let control = Control::start(plan, folder.path())?;
    runtime.block_on(measure(plan, &control))
}

async fn measure(plan: &Plan, control: &Control) -> Result<()> {
    let start = control.begun.elapsed();
    let alone = control.cost()?;
    println!(
        "started: {:.1} s, {:.1} s of CPU, {} MiB",
        start.as_secs_f64(),
        alone.cpu,
        alone.mib
    );

    let begun = Instant::now();
    let mesh = Arc::new(Mesh::default());
    let mut running = JoinSet::new();
    let new = plan.new.clamp(1, plan.proxies);
    let mut proxies = connect(0..new, control, &mesh, &mut running).await?;
    let took = begun.elapsed();
    let connected = control.cost()?;
    let bytes = mesh.bytes.swap(0, Ordering::Relaxed);
    let (resources, _) = proxies[0].digest();
    println!(
        "first synchronisation of {new} proxies, {AT_ONCE} at once: {:.1} s; to each {:.1} MB in {resources} resources, {:.0} ms of \
         CPU; {} MiB, at most {}",
        took.as_secs_f64(),
        bytes as f64 / new as f64 / 1e6,
        (connected.cpu - alone.cpu) / new as f64 * 1e3,
        connected.mib,
        control.most()?,
    );
    mesh.remember(&proxies[0]);
    let begun = Instant::now();
    proxies.extend(connect(new..plan.proxies, control, &mesh, &mut running).await?);
    let took = begun.elapsed();
    let back = control.cost()?;
    if let Some(others @ 1..) = plan.proxies.checked_sub(new) {
        println!(
            "{others} proxies that come back and hold all of it, {AT_ONCE} at once: {:.1} s; for each {:.0} ms of CPU; {} MiB, {:.2} \
             more for each, at most {}",
            took.as_secs_f64(),
            (back.cpu - connected.cpu) / others as f64 * 1e3,
            back.mib,
            (back.mib as f64 - connected.mib as f64) / others as f64,
            control.most()?,
        );
    }
    let sets: Vec<_> = proxies.iter().map(|proxy| proxy.digest()).collect();
    ensure!(
        sets.iter()
            .all(|set| *set == sets[0] && set.0 > plan.workloads),
        "proxies hold different configurations: {:?}",
        sets.iter().min().zip(sets.iter().max())
    );
    mesh.bytes.store(0, Ordering::Relaxed);
    let each = plan.proxies as f64;

    let (mut times, mut seconds) = (Vec::new(), Vec::new());
    for change in 1..=plan.changes {
        // The source's and the model's own waits start anew.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let before = control.cost()?;
        let begun = Instant::now();
        control.process.write(CHANGES, &objects::changed(change))?;
        let all = mesh.arrivals_are((plan.proxies * change) as u64);
        tokio::time::timeout(PATIENCE, all)
            .await
            .with_context(|| format!("change {change} reached not all"))?;
        times.push(begun.elapsed().as_secs_f64());
        seconds.push(control.cost()?.cpu - before.cpu);
    }
    let bytes = mesh.bytes.load(Ordering::Relaxed) as f64 / each / plan.changes as f64;
    println!(
        "a change of one pod, {} times: at all proxies after {} s, {} s of CPU, {bytes:.0} bytes to each; {} MiB",
        plan.changes,
        report::spread(&times),
        report::spread(&seconds),
        control.cost()?.mib,
    );
    Ok(())
}

/// The control plane.
struct Control {
    process: ControlAlone,
    token: PathBuf,
    begun: Instant,
}

struct Cost {
    cpu: f64,
    mib: u64,
}

impl Control {
    /// When this returns it serves.
    fn start(plan: &Plan, folder: &Path) -> Result<Self> {
        let objects = folder.join("objects");
        fs::create_dir(&objects)?;
        objects::write(plan, &objects)?;
        fs::write(objects.join(CHANGES), objects::changed(0))?;
        let own = std::env::current_exe()?;
        let beside = own.parent().context("this program is in no folder")?;
        let program = plan.programs.as_deref().unwrap_or(beside);
        let begun = Instant::now();
        let process = ControlAlone::start(
            &program.join("seine-control"),
            folder,
            &["--max-stream-age=86400", "--log-level=warn"],
            PATIENCE,
        )?;
        let subject = Subject {
            namespace: "seine-system".into(),
            service_account: "seine-ztunnel".into(),
            pod: "seine-ztunnel-0".into(),
            pod_uid: "u".into(),
            node: "node-0".into(),
        };
        let token = folder.join("token");
        process.issuer().write(&subject, &token)?;
        Ok(Self {
            process,
            token,
            begun,
        })
    }

    fn grpc(&self) -> Grpc {
        Grpc::new(GrpcOptions {
            address: format!("https://{}", self.process.listen()),
            roots_file: self.process.roots(),
            server_name: SERVER_NAME.into(),
            token_file: self.token.clone(),
            cluster_id: "Kubernetes".into(),
        })
    }

    fn cost(&self) -> Result<Cost> {
        let pid = self.process.pid();
        let kib = cpu::private_kib(pid).context("seine-control has ended")?;
        Ok(Cost {
            cpu: cpu::process_seconds(pid).context("seine-control has ended")?,
            mib: kib / 1024,
        })
    }

    /// The most memory that it had so far, in MiB.
    fn most(&self) -> Result<u64> {
        let kib = cpu::most_kib(self.process.pid()).context("seine-control has ended")?;
        Ok(kib / 1024)
    }
}

/// A connection for each proxy, here and in the control plane, which inherits it.
fn raise_descriptors() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Ok(())
}
