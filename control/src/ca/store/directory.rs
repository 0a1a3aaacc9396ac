//! The CA directory: files written whole or not at all, keys readable by their owner alone.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use zeroize::Zeroizing;

use super::{Loaded, Revision, Store};
use crate::ca::CaError;
use crate::ca::material::{Material, STATE, is_key_file};

const ROOTS: &str = "root-cert.pem";
const TRIGGER: &str = "rotate-root";

/// A directory with a CA in it, or an empty one. It is this process's alone.
#[derive(Debug, Clone)]
pub struct DirectoryStore {
    directory: PathBuf,
}

impl DirectoryStore {
    /// Makes the directory if it isn't there.
    ///
    /// # Errors
    ///
    /// When it can't be made.
    pub fn open(directory: impl Into<PathBuf>) -> Result<Self, CaError> {
        let directory = directory.into();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(io("make directory", &directory))?;
        Ok(Self { directory })
    }

    /// File work is the blocking threads'.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, CaError> + Send + 'static,
    ) -> Result<T, CaError> {
        let store = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        done.unwrap_or_else(|error| {
            let source = std::io::Error::other(error);
            Err(io("use", &self.directory)(source))
        })
    }

    fn read(&self) -> Result<Loaded, CaError> {
        let path = self.directory.join(STATE);
        let state = match fs::read_to_string(&path) {
            Ok(state) => state,
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
                return Ok(Loaded::default());
            }
            Err(error) => return Err(io("read", &path)(error)),
        };
        let mut files = BTreeMap::new();
        for name in self.names()? {
            if is_key_file(&name) {
                files.insert(name.clone(), self.read_keys(&name)?);
            }
        }
        let place = self.directory.display().to_string();
        Ok(Loaded {
            material: Some(Material::from_files(&place, &state, files)?),
            revision: None,
            rotation_asked: self.rotation_asked(),
        })
    }

    fn names(&self) -> Result<Vec<String>, CaError> {
        let failed = io("read", &self.directory);
        let entries = fs::read_dir(&self.directory)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(failed)?;
        let names = entries.iter().map(fs::DirEntry::file_name);
        Ok(names.filter_map(|name| name.into_string().ok()).collect())
    }

    /// Certificate and key, in PEM.
    fn read_keys(&self, name: &str) -> Result<Zeroizing<String>, CaError> {
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

    /// Keys first, then the state that names them, then what they replace goes away: a crash at
    /// any moment leaves either the old or the new.
    fn write_all(&self, material: &Material) -> Result<(), CaError> {
        for (name, pem) in material.files() {
            let path = self.directory.join(name);
            if !fs::read(&path).is_ok_and(|old| old == pem.as_bytes()) {
                self.write(name, pem.as_bytes(), 0o600)?;
            }
        }
        self.write(STATE, material.state_json().as_bytes(), 0o600)?;
        self.write(ROOTS, material.roots_pem()?.as_bytes(), 0o644)?;
        for name in self.names()? {
            if is_key_file(&name) && !material.files().contains_key(&name) {
                self.remove(&name);
            }
        }
        Ok(())
    }

    /// A failure is not worth stopping for.
    fn remove(&self, name: &str) {
        let path = self.directory.join(name);
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "an old CA file can't be removed");
        }
    }

    fn rotation_asked(&self) -> bool {
        self.directory.join(TRIGGER).exists()
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

#[tonic::async_trait]
impl Store for DirectoryStore {
    fn place(&self) -> String {
        self.directory.display().to_string()
    }

    fn lag(&self) -> Duration {
        Duration::ZERO
    }

    async fn load(&self) -> Result<Loaded, CaError> {
        self.blocking(Self::read).await
    }

    /// Nobody else writes here: only the request is looked for.
    async fn poll(&self, _seen: Option<&Revision>) -> Result<Loaded, CaError> {
        Ok(Loaded {
            rotation_asked: self.rotation_asked(),
            ..Loaded::default()
        })
    }

    async fn replace(
        &self,
        material: &Material,
        _over: Option<&Revision>,
    ) -> Result<Revision, CaError> {
        let material = material.clone();
        self.blocking(move |store| store.write_all(&material))
            .await?;
        Ok(Revision(String::new()))
    }

    async fn rotation_answered(&self) -> Result<(), CaError> {
        self.remove(TRIGGER);
        Ok(())
    }

    async fn changed(&self) {
        std::future::pending().await
    }
}

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> CaError {
    let path = path.to_owned();
    move |source| CaError::Io {
        action,
        path,
        source,
    }
}

fn file(path: &Path, reason: String) -> CaError {
    CaError::Material {
        place: path.display().to_string(),
        reason,
    }
}
