//! The last good configuration on disk, so that a restart serves the same traffic while the control plane is away.
//!
//! One file, written anew beside the old one and renamed over it: a reader sees either. It begins with a magic line,
//! which names the version of the format, and ends with a checksum of what is between. There are no secrets in it. One task writes it.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crc32fast::Hasher;
use seine_workload::Store;
use tracing::{error, info, warn};

use crate::shared::Shared;

const NAME: &str = "configuration";
const MAGIC: &[u8] = b"seine ztunnel state 2\n";
/// Changes that come within this time are written together.
const GATHER: Duration = Duration::from_secs(1);

/// The file can't be used. The proxy starts without it and waits for the control plane.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file can't be read or written.
    #[error("{path} can't be used: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is not a whole file of this version.
    #[error("{path} is not a saved configuration of this version: {reason}")]
    Broken {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Fills an empty store from the file in `folder`. False: there is none.
pub fn load(store: &Store, folder: &Path) -> Result<bool, StateError> {
    let path = folder.join(NAME);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(StateError::File { path, source }),
    };
    let broken = |reason: &str| StateError::Broken {
        path: path.clone(),
        reason: reason.to_owned(),
    };
    let rest = bytes
        .strip_prefix(MAGIC)
        .ok_or_else(|| broken("it begins otherwise"))?;
    let (content, sum) = rest
        .split_last_chunk::<4>()
        .ok_or_else(|| broken("it is cut off"))?;
    if crc32fast::hash(content) != u32::from_be_bytes(*sum) {
        return Err(broken("its checksum is wrong"));
    }
    let rejected = store
        .restore(content)
        .map_err(|error| broken(&error.to_string()))?;
    for rejected in rejected {
        warn!(%rejected, path = %path.display(), "a saved resource is not used");
    }
    Ok(true)
}

/// Writes what the store holds.
pub fn save(store: &Store, folder: &Path) -> Result<(), StateError> {
    let path = folder.join(NAME);
    let write = || -> io::Result<()> {
        fs::create_dir_all(folder)?;
        // Two proxies run side by side during a hand-over.
        let temporary = folder.join(format!("{NAME}.{}", std::process::id()));
        let mut file = BufWriter::new(File::create(&temporary)?);
        file.write_all(MAGIC)?;
        let mut content = Summed {
            inner: file,
            sum: Hasher::new(),
        };
        store.snapshot(&mut content)?;
        let Summed {
            inner: mut file,
            sum,
        } = content;
        file.write_all(&sum.finalize().to_be_bytes())?;
        file.into_inner()?.sync_all()?;
        fs::rename(&temporary, &path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|source| StateError::File {
        path: path.clone(),
        source,
    })
}

/// Reads the file at start. Whether there was a good one.
pub fn load_at_start(store: &Store, folder: &Path) -> bool {
    match load(store, folder) {
        Ok(true) => {
            info!(counts = ?store.counts(), "the last good configuration was read from disk");
            true
        }
        Ok(false) => false,
        Err(error) => {
            error!(%error, "the last good configuration is not used");
            false
        }
    }
}

/// Writes the file after every change, until the proxy stops.
pub async fn keep(shared: Arc<Shared>, folder: PathBuf) {
    let mut changes = shared.store.changed();
    loop {
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = shared.life.stop().cancelled() => return,
        }
        tokio::time::sleep(GATHER).await;
        changes.mark_unchanged();
        let (store, folder) = (shared.store.clone(), folder.clone());
        // Encoding and writing 100,000 workloads takes longer than a task may.
        match tokio::task::spawn_blocking(move || save(&store, &folder)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                warn!(%error, "a restart without the control plane would serve an older configuration")
            }
            Err(error) => warn!(%error, "the configuration was not saved"),
        }
    }
}

/// Sums up what goes through it. The checksum finds a torn or flipped file; it is no protection against somebody who may
/// write there.
struct Summed<W> {
    inner: W,
    sum: Hasher,
}

impl<W: Write> Write for Summed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.sum.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_a_cut_and_another_version_are_refused_and_nothing_is_applied() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::new("");
        assert!(!load(&store, folder.path()).unwrap());
        save(&store, folder.path()).unwrap();
        assert!(load(&store, folder.path()).unwrap());
        let path = folder.path().join(NAME);
        let good = fs::read(&path).unwrap();
        let mut flipped = good.clone();
        *flipped.last_mut().unwrap() ^= 1;
        let mut other = good.clone();
        other[MAGIC.len() - 2] = b'9';
        for bad in [flipped, good[..MAGIC.len() + 2].to_vec(), other, Vec::new()] {
            fs::write(&path, bad).unwrap();
            assert!(matches!(
                load(&store, folder.path()),
                Err(StateError::Broken { .. })
            ));
        }
    }
}
