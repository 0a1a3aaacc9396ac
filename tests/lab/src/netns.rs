//! Network namespaces without names: made, bound to a file of the lab, entered by a thread.
//!
//! A child process inherits the namespaces of the thread that starts it, so running a
//! program in a namespace needs no code between fork and exec. (`ip netns exec` would mount
//! a new `/sys` and so hide cgroups and bpffs.)

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

/// A network namespace bound to a file, which keeps it alive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netns {
    path: PathBuf,
}

impl Netns {
    /// Makes a namespace and binds it to `path`. Its loopback is up.
    pub fn create(path: &Path) -> Result<Self> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        File::create(path).with_context(|| format!("making {}", path.display()))?;
        let target = path.to_owned();
        on_thread(move || {
            unshare(CloneFlags::CLONE_NEWNET).context("unshare(CLONE_NEWNET)")?;
            mount(
                Some("/proc/thread-self/ns/net"),
                &target,
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )
            .with_context(|| format!("binding a network namespace to {}", target.display()))
        })?;
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// The namespace that is bound to `path`.
    pub fn existing(path: &Path) -> Result<Self> {
        fs::metadata(path).with_context(|| format!("network namespace {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` on a thread of its own within the namespace. What it makes there (sockets,
    /// child processes) stays there.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let path = self.path.clone();
        on_thread(move || {
            let file = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
            setns(file, CloneFlags::CLONE_NEWNET)
                .with_context(|| format!("setns to {}", path.display()))?;
            work()
        })
    }

    /// Sets kernel settings below `net/`.
    pub fn sysctl(&self, settings: &'static [(&'static str, &'static str)]) -> Result<()> {
        self.run(move || {
            for (key, value) in settings {
                // What a kernel lacks it doesn't need set (IPv6 switched off).
                let path = format!("/proc/sys/net/{key}");
                if Path::new(&path).exists() {
                    fs::write(&path, value).with_context(|| format!("setting {path}"))?;
                }
            }
            Ok(())
        })
    }

    /// Runs `ip -batch` within the namespace.
    pub fn ip(&self, commands: String) -> Result<()> {
        self.run(move || ip_batch(&commands))
    }

    /// Replaces nftables rules within the namespace.
    pub fn nft(&self, rules: String) -> Result<()> {
        self.run(move || feed("nft", &["-f", "-"], &rules))
    }

    /// Unbinds the file and removes it; the namespace goes with its last process.
    pub fn remove(&self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(&self.path);
    }
}

/// Runs `ip -batch` in the caller's network namespace.
pub fn ip_batch(commands: &str) -> Result<()> {
    feed("ip", &["-batch", "-"], commands)
}

fn feed(program: &str, arguments: &[&str], input: &str) -> Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .env("PATH", crate::SEARCH_PATH)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {program} (install it)"))?;
    let mut stdin = child.stdin.take().expect("was piped");
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim();
        // `ip -batch` names the line by its number alone.
        let line = said.rsplit_once("-:").and_then(|(_, number)| {
            input
                .lines()
                .nth(number.trim().parse::<usize>().ok()?.checked_sub(1)?)
        });
        bail!(
            "{program} failed: {said}{}{}",
            if line.is_some() { ": " } else { "" },
            line.unwrap_or_default()
        );
    }
    Ok(())
}

fn on_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    thread::spawn(work)
        .join()
        .map_err(|_| anyhow!("a thread in a network namespace panicked"))?
}
