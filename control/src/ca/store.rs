//! The CA directory: files written whole or not at all, keys readable by their owner alone.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::CaError;
use super::authority::Phase;

const STATE: &str = "state.json";
const ROOTS: &str = "root-cert.pem";
const TRIGGER: &str = "rotate-root";

/// What survives a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct State {
    /// Layout of the directory.
    pub(super) version: u32,
    pub(super) trust_domain: String,
    pub(super) phase: Phase,
    /// Start of the phase, in seconds since 1970.
    pub(super) since: u64,
    /// The longest life, in seconds, that a certificate was ever given.
    pub(super) longest_lifetime: u64,
    /// The older root in a rotation, else the only one.
    pub(super) root: u64,
    pub(super) intermediate: u64,
}

/// A directory with a CA in it, or an empty one.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
}

impl Store {
    pub(super) fn open(directory: &Path) -> Result<Self, CaError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(io("make directory", directory))?;
        Ok(Self {
            directory: directory.into(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.directory
    }

    /// `None` if no CA was made here yet.
    pub(super) fn state(&self) -> Result<Option<State>, CaError> {
        let path = self.directory.join(STATE);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<State>(&bytes)
                .map(Some)
                .map_err(|error| file(&path, format!("no state of a CA: {error}"))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let roots = self.directory.join(ROOTS);
                if roots.exists() {
                    // A new root here would cut off everybody who trusts the old one.
                    return Err(file(
                        &path,
                        format!(
                            "is missing, but {ROOTS} is there: restore it, or empty the directory"
                        ),
                    ));
                }
                Ok(None)
            }
            Err(error) => Err(io("read", &path)(error)),
        }
    }

    pub(super) fn write_state(&self, state: &State) -> Result<(), CaError> {
        let text = serde_json::to_vec_pretty(state).expect("the state has no maps and no floats");
        self.write(STATE, &text, 0o600)
    }

    /// Certificate and key, in PEM.
    pub(super) fn read_keys(&self, name: &str) -> Result<Zeroizing<String>, CaError> {
        let path = self.directory.join(name);
        let mode = fs::metadata(&path)
            .map_err(io("read", &path))?
            .permissions()
            .mode();
        if mode & 0o077 != 0 {
            let reason = format!(
                "mode {:o} lets others read a key of the CA; if nobody did, chmod it to 600",
                mode & 0o777
            );
            return Err(file(&path, reason));
        }
        fs::read_to_string(&path)
            .map(Zeroizing::new)
            .map_err(io("read", &path))
    }

    pub(super) fn write_keys(&self, name: &str, pem: &str) -> Result<(), CaError> {
        self.write(name, pem.as_bytes(), 0o600)
    }

    /// The public file with every trusted root; untouched if it is right already.
    pub(super) fn publish_roots(&self, pem: &str) -> Result<(), CaError> {
        let path = self.directory.join(ROOTS);
        if fs::read(&path).is_ok_and(|old| old == pem.as_bytes()) {
            return Ok(());
        }
        self.write(ROOTS, pem.as_bytes(), 0o644)
    }

    /// Removes a file that nothing names any more; a failure is not worth stopping for.
    pub(super) fn remove(&self, name: &str) {
        let path = self.directory.join(name);
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "an old CA file can't be removed");
        }
    }

    /// Whether an operator asks for a new root.
    pub(super) fn rotation_asked(&self) -> bool {
        self.directory.join(TRIGGER).exists()
    }

    pub(super) fn rotation_started(&self) {
        self.remove(TRIGGER);
    }

    fn write(&self, name: &str, content: &[u8], mode: u32) -> Result<(), CaError> {
        let path = self.directory.join(name);
        let temporary = self.directory.join(format!(".{name}.new"));
        // Of a crash, perhaps with another mode.
        let _ = fs::remove_file(&temporary);
        let write = || -> std::io::Result<()> {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(mode)
                .open(&temporary)?;
            file.set_permissions(fs::Permissions::from_mode(mode))?;
            file.write_all(content)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.directory)?.sync_all()
        };
        write().map_err(io("write", &path))
    }
}

pub(super) fn root_file(number: u64) -> String {
    format!("root-{number}.pem")
}

pub(super) fn intermediate_file(number: u64) -> String {
    format!("intermediate-{number}.pem")
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> CaError {
    let path = path.to_owned();
    move |source| CaError::Io {
        action,
        path,
        source,
    }
}

pub(super) fn file(path: &Path, reason: String) -> CaError {
    CaError::File {
        path: path.into(),
        reason,
    }
}
