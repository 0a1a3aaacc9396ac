//! Entering a pod's or node's cgroup and namespaces, then becoming a program.
//!
//! Runs as a process of its own with one thread (`seine-lab internal-enter`): the kernel
//! moves only the caller between mount namespaces, and the cgroup must be joined before the
//! program's first instruction. Nothing here returns on success.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::cgroup;

/// Where a program runs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Enter {
    /// The cgroup to join.
    pub cgroup: PathBuf,
    /// A network namespace bound to a file; for nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netns: Option<PathBuf>,
    /// A process whose network, mount, UTS and IPC namespaces to enter; for pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<i32>,
    /// User to become.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<u32>,
    /// Group to become; the user's number if only that is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
    /// Working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// The signal that the program gets when its parent dies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub death_signal: Option<i32>,
}

impl Enter {
    /// The arguments that make this binary run `command` there.
    pub fn arguments(&self, command: &[String]) -> Result<Vec<String>> {
        let mut arguments = vec![
            "internal-enter".to_owned(),
            serde_json::to_string(self)?,
            "--".to_owned(),
        ];
        arguments.extend_from_slice(command);
        Ok(arguments)
    }

    /// Goes there and becomes `command`.
    pub fn exec(self, command: &[String]) -> Result<()> {
        let Some((program, arguments)) = command.split_first() else {
            bail!("no command given");
        };
        cgroup::join(&self.cgroup)?;
        if let Some(netns) = &self.netns {
            let file = File::open(netns).with_context(|| format!("opening {}", netns.display()))?;
            setns(file, CloneFlags::CLONE_NEWNET).context("setns to the network namespace")?;
        }
        if let Some(pid) = self.sandbox {
            enter_sandbox(pid)?;
        }
        let directory = self.directory.unwrap_or_else(|| PathBuf::from("/"));
        std::env::set_current_dir(&directory)
            .with_context(|| format!("entering directory {}", directory.display()))?;
        let mut process = Command::new(program);
        process.args(arguments);
        if let Some(user) = self.user {
            // In this order: the rights to change groups go with the user.
            let group = self.group.unwrap_or(user);
            nix::unistd::setgroups(&[group.into()]).context("setgroups")?;
            nix::unistd::setgid(group.into()).context("setgid")?;
            nix::unistd::setuid(user.into()).context("setuid")?;
        }
        if let Some(signal) = self.death_signal {
            // After the change of user, which clears it.
            set_pdeathsig(Signal::try_from(signal)?).context("prctl(PR_SET_PDEATHSIG)")?;
        }
        let error = process.exec();
        Err(error).with_context(|| format!("running {program}"))
    }
}

fn enter_sandbox(pid: i32) -> Result<()> {
    let kinds = [
        ("net", CloneFlags::CLONE_NEWNET),
        ("uts", CloneFlags::CLONE_NEWUTS),
        ("ipc", CloneFlags::CLONE_NEWIPC),
        ("mnt", CloneFlags::CLONE_NEWNS),
    ];
    // All are opened first: after the mount namespace, /proc is another one.
    let files =
        kinds.map(|(kind, flag)| (File::open(format!("/proc/{pid}/ns/{kind}")), kind, flag));
    for (file, kind, flag) in files {
        let file = file.with_context(|| format!("the pod's {kind} namespace (is it running?)"))?;
        setns(file, flag).with_context(|| format!("setns to the pod's {kind} namespace"))?;
    }
    Ok(())
}
