//! Cgroups of the v2 hierarchy: ids and depths as the programs need them.

use std::{
    fs::File,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use super::{RedirectError, Result, sys};

const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;

/// An open cgroup.
#[derive(Debug)]
pub(super) struct Cgroup {
    pub(super) path: PathBuf,
    directory: File,
    /// What `bpf_get_current_ancestor_cgroup_id` gives.
    pub(super) id: u64,
    /// Depth below the root of the hierarchy.
    pub(super) level: u32,
}

impl Cgroup {
    /// Opens a cgroup and finds its depth, which must be that in the node's hierarchy: a mount that
    /// shows only a part of it (a cgroup namespace's) is refused.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let refuse = |reason: String| RedirectError::Cgroup {
            path: path.to_owned(),
            reason,
        };
        let path = path
            .canonicalize()
            .map_err(|error| refuse(error.to_string()))?;
        let filesystem = sys::filesystem(&path).map_err(|error| refuse(error.to_string()))?;
        if filesystem != CGROUP2_SUPER_MAGIC {
            return Err(refuse("is not in a cgroup v2 hierarchy".into()));
        }
        let directory = File::open(&path).map_err(|error| refuse(error.to_string()))?;
        let id = directory
            .metadata()
            .map_err(|error| refuse(error.to_string()))?
            .ino();
        // Every cgroup but the root of the hierarchy has this file.
        let mut level = 0;
        let mut place = path.as_path();
        while place.join("cgroup.events").exists() {
            level += 1;
            place = place.parent().ok_or_else(|| refuse("has no root".into()))?;
        }
        if sys::filesystem(place).ok() != Some(CGROUP2_SUPER_MAGIC) {
            return Err(refuse(
                "the mount does not reach up to the node's root cgroup; \
                 give the agent the host's cgroup namespace"
                    .into(),
            ));
        }
        Ok(Self {
            path,
            directory,
            id,
            level,
        })
    }

    /// The number of the descriptor, for making links.
    pub(super) fn descriptor(&self) -> u32 {
        self.directory.as_raw_fd() as u32
    }

    /// Whether `self` is `other` or below it.
    pub(super) fn is_within(&self, other: &Self) -> bool {
        self.path.starts_with(&other.path)
    }
}
