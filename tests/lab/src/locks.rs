//! Locks that tell a live lab from the remains of a dead one.
//!
//! A lab holds two files locked for as long as its keeper lives: one for its name, one for
//! its block of addresses. The kernel lets go of them when the keeper dies in whatever way,
//! so a lock that can be had means that nobody is there.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::names::{LabName, ROOT};

/// A lock that is held until it is dropped; the file goes with it.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    _file: Flock<File>,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While still locked: who waits for it sees that the file is another one.
        let _ = fs::remove_file(&self.path);
    }
}

fn directory() -> PathBuf {
    Path::new(ROOT).join(".locks")
}

/// Takes the lock on `name`, or `None` where a living process has it.
fn try_lock(name: &str) -> Result<Option<Lock>> {
    fs::create_dir_all(directory()).context("making the directory of locks")?;
    let path = directory().join(name);
    loop {
        let file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("opening lock {}", path.display()))?;
        let Ok(file) = Flock::lock(file, FlockArg::LockExclusiveNonblock) else {
            return Ok(None);
        };
        let same = fs::metadata(&path).is_ok_and(|now| {
            file.metadata()
                .is_ok_and(|ours| now.ino() == ours.ino() && now.dev() == ours.dev())
        });
        if same {
            return Ok(Some(Lock { path, _file: file }));
        }
    }
}

/// Takes the lock on a lab's name, or `None` where that lab is alive.
pub fn lock_name(name: &LabName) -> Result<Option<Lock>> {
    try_lock(&format!("lab-{name}"))
}

/// Takes a block of addresses, the preferred one of the name if it is free.
pub fn lock_block(name: &LabName) -> Result<(u8, Lock)> {
    let first = u16::from(name.preferred_block()) - 16;
    for step in 0..200 {
        let block = u8::try_from(16 + (first + step) % 200).expect("at most 215");
        if let Some(lock) = try_lock(&format!("block-{block}"))? {
            return Ok((block, lock));
        }
    }
    bail!("all 200 blocks of addresses are taken by running labs: end one with 'seine-lab down'")
}

/// Removes the directories of all labs where no lab is left in them.
pub fn tidy() {
    let _ = fs::remove_dir(directory());
    let _ = fs::remove_dir(ROOT);
}
