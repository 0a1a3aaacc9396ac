//! Clearing up, however the test's process ends.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};

/// Runs a command when the pipe to its process breaks before this is dropped.
#[derive(Debug)]
pub struct Guard {
    child: Child,
}

impl Guard {
    /// `command` runs if this process dies.
    pub fn start(command: &Command) -> Result<Self> {
        let mut guard = Command::new("sh");
        guard
            .args(["-c", "read -r _ || exec \"$@\"", "guard"])
            .arg(command.get_program())
            .args(command.get_args());
        for (key, value) in command.get_envs() {
            guard.env(key, value.unwrap_or_default());
        }
        let child = guard
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // Ctrl-C is not for it.
            .process_group(0)
            .spawn()
            .context("starting a guard")?;
        Ok(Self { child })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(mut stdin) = self.child.stdin.take() {
            let _ = stdin.write_all(b"done\n");
        }
        let _ = self.child.wait();
    }
}
