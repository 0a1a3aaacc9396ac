//! The two processes that make sure that nothing of a lab outlives it.
//!
//! - The *keeper* (`internal-keep`) stays outside of the lab. It holds the lab's locks, starts
//!   the first process of a PID namespace, and when that ends, in whatever way, removes the
//!   cgroups and the state directory.
//! - The *first process* (`internal-init`) is process 1 in there. When it ends, the kernel
//!   kills every process of the lab, and with them go their network and mount namespaces:
//!   interfaces, nftables rules, bpffs with its pins, links to eBPF programs. It starts the
//!   supervisor, collects orphans, and ends when the supervisor does.
//!
//! The supervisor's standard input is a pipe from the keeper; its end tells the supervisor
//! that the keeper is gone, and it takes the lab down itself. If both are killed at once, what
//! stays are empty cgroups and files, which the next `up` or `down` of the name removes.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, wait};

use crate::cgroup;
use crate::locks;
use crate::names::Layout;
use crate::supervisor::Settings;

/// How long processes may take to die before cleaning up gives up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Runs as the keeper until the lab is gone. `settings.block` is chosen here.
pub fn keep(mut settings: Settings) -> Result<()> {
    // A session of its own: the terminal's Ctrl-C and hang-up are not the lab's.
    nix::unistd::setsid().context("setsid")?;
    let layout = settings.layout()?;
    let Some(_name) = locks::lock_name(&layout.name)? else {
        bail!(
            "lab '{0}' is up already (seine-lab down --name {0})",
            layout.name
        );
    };
    remove_remains(&layout)?;
    let (block, block_lock) = locks::lock_block(&layout.name)?;
    settings.block = block;

    for directory in [
        layout.objects(),
        layout.scratch(),
        layout.logs(),
        layout.tokens(),
    ] {
        fs::create_dir_all(&directory)
            .with_context(|| format!("making {}", directory.display()))?;
    }
    let status = run_init(&layout, &settings);
    let removed = remove_remains(&layout);
    drop(block_lock);
    drop(_name);
    locks::tidy();
    status?;
    removed
}

fn run_init(layout: &Layout, settings: &Settings) -> Result<()> {
    let log = layout.logs().join("lab.log");
    let log = File::create(&log).with_context(|| format!("making {}", log.display()))?;
    let program = std::env::current_exe().context("finding this program")?;
    // Readable by root alone: it may hold Secrets.
    let file = layout.state.join("settings.json");
    write_private(&file, &serde_json::to_string(settings)?)?;
    unshare(CloneFlags::CLONE_NEWPID).context("unshare(CLONE_NEWPID)")?;
    let mut init = Command::new(program)
        .arg("internal-init")
        .arg(&file)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context("starting the lab's first process")?;
    fs::write(layout.state.join("init.pid"), init.id().to_string())?;
    // Not `wait`, which closes the pipe that tells the supervisor that we are here.
    let pipe = init.stdin.take();
    let status = init.wait()?;
    drop(pipe);
    tracing::info!(%status, "the lab's first process ended");
    Ok(())
}

/// Removes what a lab that is gone left: its cgroups, with the processes in them, and its
/// state directory. The caller holds the lab's lock.
pub fn remove_remains(layout: &Layout) -> Result<()> {
    cgroup::destroy(&layout.cgroup, PATIENCE)?;
    match fs::remove_dir_all(&layout.state) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", layout.state.display()))
        }
        _ => Ok(()),
    }
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("writing {}", path.display()))
}

/// Runs as process 1 of the lab until the supervisor ends.
pub fn init(settings: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC)
        .context("unshare")?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .context("making mounts private")?;
    mount(
        Some("proc"),
        "/proc",
        Some("proc"),
        MsFlags::empty(),
        None::<&str>,
    )
    .context("mounting /proc")?;
    let program = std::env::current_exe().context("finding this program")?;
    let supervisor = Command::new(program)
        .arg("internal-supervise")
        .arg(settings)
        .spawn()
        .context("starting the supervisor")?;
    let supervisor = i32::try_from(supervisor.id()).context("a PID fits i32")?;
    loop {
        match wait() {
            Ok(WaitStatus::Exited(pid, code)) if pid.as_raw() == supervisor => {
                std::process::exit(code)
            }
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid.as_raw() == supervisor => {
                eprintln!("the supervisor was killed by {signal}");
                std::process::exit(128 + signal as i32)
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("wait"),
        }
    }
}

/// The exit code by which a shell would report `status`.
pub fn exit_code(status: std::process::ExitStatus) -> i32 {
    status
        .code()
        .unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
