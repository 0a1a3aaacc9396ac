//! The last good objects of each file, on disk: a start finds them there when a file is broken by
//! then, and takes nothing away from the proxies.
//!
//! One file here for each file of the source, replaced in one step.

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::state::FileObjects;
use crate::{Kind, Object, parse_object};

/// A folder that nobody else writes to.
#[derive(Debug)]
pub(super) struct Memory {
    folder: PathBuf,
}

/// What one file had.
#[derive(Serialize, Deserialize)]
struct Remembered {
    /// Relative to the source's folder.
    file: PathBuf,
    /// With their lines.
    objects: Vec<(u64, Value)>,
}

impl Memory {
    pub(super) fn open(folder: PathBuf) -> io::Result<Self> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&folder)?;
        Ok(Self { folder })
    }

    /// What every file had. What can't be used any more is left out, with a line in the log.
    pub(super) fn recall(&self) -> io::Result<Vec<(PathBuf, FileObjects)>> {
        let mut recalled = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let read =
                fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice::<Remembered>(&bytes)?));
            match read {
                Ok(Remembered { file, objects }) => {
                    let objects = objects.into_iter().filter_map(|(line, value)| {
                        let (key, object) = object(value, &path)?;
                        Some(((object.kind(), key), (object, line)))
                    });
                    recalled.push((file, objects.collect()));
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "last good objects can't be read");
                }
            }
        }
        Ok(recalled)
    }

    /// The file, relative to the source's folder, has these.
    pub(super) fn remember(&self, file: &Path, objects: &FileObjects) {
        let remembered = Remembered {
            file: file.into(),
            objects: objects
                .values()
                .map(|(object, line)| (*line, object.to_value()))
                .collect(),
        };
        let path = self.path(file);
        let new = path.with_extension("new");
        let written = serde_json::to_vec(&remembered)
            .map_err(io::Error::from)
            .and_then(|bytes| fs::write(&new, bytes))
            .and_then(|()| fs::rename(&new, &path));
        if let Err(error) = written {
            tracing::warn!(
                path = %path.display(), %error,
                "last good objects can't be kept: should the file be invalid when this program starts, they are lost"
            );
        }
    }

    /// The file is gone.
    pub(super) fn forget(&self, file: &Path) {
        let path = self.path(file);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.display(), %error, "last good objects can't be removed");
            }
            _ => {}
        }
    }

    fn path(&self, file: &Path) -> PathBuf {
        let name = file.to_string_lossy().replace('%', "%25");
        self.folder.join(name.replace('/', "%2F") + ".json")
    }
}

fn object(value: Value, path: &Path) -> Option<(crate::ObjectKey, Object)> {
    let text = |field: &str| value[field].as_str().unwrap_or_default();
    let kind = Kind::known(text("apiVersion"), text("kind"))?;
    parse_object(kind, value)
        .inspect_err(|invalid| {
            for problem in invalid.problems(None, crate::InForce::Nothing) {
                tracing::warn!(path = %path.display(), %problem, "a last good object isn't one any more");
            }
        })
        .ok()
}
