//! What tests against real Kubernetes share: starting it, and asking it.
//!
//! The components are built by `components.sh` and started by `cluster/cluster`, both beside this
//! crate; `make test-kubernetes` does all of it. No test measures time. Whatever takes effect later is
//! waited for, with a bound.

#![forbid(unsafe_code)]

mod cluster;
pub mod docs;
pub mod objects;
mod wait;

pub use cluster::{Cluster, Output};
pub use seine_e2e::guard::Guard;
pub use wait::{step, within};

use std::path::{Path, PathBuf};

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("this crate is two folders below the root")
        .to_owned()
}

/// A program of ours of the build that the test belongs to.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let found = own
        .ancestors()
        .skip(1)
        .take(3)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file());
    anyhow::Context::context(found, format!("{name} is not built: make test-kubernetes"))
}
