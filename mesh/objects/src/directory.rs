//! The directory source: a folder of YAML in the place of an API server.
//!
//! One thread owns the files' state; it wakes on file events, on a slow timer and when the source
//! is dropped, and publishes a new [`ObjectSet`] when something changed. What always holds: an
//! object leaves the set only when a readable file no longer has it (or its file is gone), never
//! because something became invalid; with [`DirectoryOptions::memory`] across a restart too.

mod memory;
mod state;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use notify::{RecursiveMode, Watcher as _};
use thiserror::Error;
use tokio::sync::watch;

use crate::{ObjectSet, Problem};
use memory::Memory;
use state::DirectoryState;

/// A folder of YAML files, watched for changes.
///
/// Read are the files `*.yaml`, `*.yml` and `*.json` below it; what begins with a dot is not.
/// Dropping it ends the watch; receivers keep the last set.
#[derive(Debug)]
pub struct DirectorySource {
    objects: watch::Receiver<Arc<ObjectSet>>,
    problems: watch::Receiver<Arc<Vec<Problem>>>,
    wake: Sender<Wake>,
}

/// How changes are noticed.
#[derive(Clone, Debug)]
pub struct DirectoryOptions {
    /// Changes are gathered until nothing happened for this long …
    pub quiet: Duration,
    /// … but never longer than this.
    pub at_most: Duration,
    /// Everything is looked through this often even without an event.
    pub rescan: Duration,
    /// A folder of its own for the last good objects of each file.
    pub memory: Option<PathBuf>,
}

impl Default for DirectoryOptions {
    fn default() -> Self {
        Self {
            quiet: Duration::from_millis(20),
            at_most: Duration::from_millis(200),
            rescan: Duration::from_secs(5),
            memory: None,
        }
    }
}

/// The source can't be opened.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The folder can't be read at all.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system can't watch it, or start a thread.
    #[error("can't watch {}: {message}", path.display())]
    Watch {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        message: String,
    },
}

enum Wake {
    Changed(Vec<PathBuf>),
    Stop,
}

impl DirectorySource {
    /// Reads everything once, then keeps watching. Blocks for the first reading.
    pub fn open(
        directory: impl Into<PathBuf>,
        options: DirectoryOptions,
    ) -> Result<Self, SourceError> {
        let directory = directory.into();
        let directory = directory
            .canonicalize()
            .map_err(|source| SourceError::Unreadable {
                path: directory,
                source,
            })?;
        std::fs::read_dir(&directory).map_err(|source| SourceError::Unreadable {
            path: directory.clone(),
            source,
        })?;
        let watch_error = |message: String| SourceError::Watch {
            path: directory.clone(),
            message,
        };

        let (wake, wakes) = channel();
        let events = wake.clone();
        // Before the first reading, so that no change falls between the two.
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                let paths = match event {
                    Ok(event) if event.kind.is_access() => return,
                    Ok(event) => event.paths,
                    Err(_) => Vec::new(),
                };
                // The source is gone: nobody needs the event.
                let _ = events.send(Wake::Changed(paths));
            })
            .map_err(|error| watch_error(error.to_string()))?;
        watcher
            .watch(&directory, RecursiveMode::Recursive)
            .map_err(|error| watch_error(error.to_string()))?;

        let unreadable = |source| SourceError::Unreadable {
            path: options.memory.clone().unwrap_or_default(),
            source,
        };
        let memory = options.memory.clone().map(Memory::open).transpose();
        let mut state = memory
            .and_then(|memory| DirectoryState::new(directory.clone(), memory))
            .map_err(unreadable)?;
        state.rescan(&[]);
        let (objects_out, objects) = watch::channel(state.objects());
        let (problems_out, problems) = watch::channel(state.problems());
        log_problems(&problems.borrow(), &[]);
        thread::Builder::new()
            .name("directory-source".into())
            .spawn(move || {
                let _watcher = watcher;
                run(state, &options, &wakes, &objects_out, &problems_out);
            })
            .map_err(|error| watch_error(error.to_string()))?;
        Ok(Self {
            objects,
            problems,
            wake,
        })
    }

    /// The objects as they are now.
    pub fn objects(&self) -> Arc<ObjectSet> {
        self.objects.borrow().clone()
    }

    /// Told of every new set, once it is complete.
    pub fn subscribe(&self) -> watch::Receiver<Arc<ObjectSet>> {
        self.objects.clone()
    }

    /// What is wrong in the files now.
    pub fn problems(&self) -> Arc<Vec<Problem>> {
        self.problems.borrow().clone()
    }

    /// Told whenever [`Self::problems`] changes.
    pub fn subscribe_problems(&self) -> watch::Receiver<Arc<Vec<Problem>>> {
        self.problems.clone()
    }
}

impl Drop for DirectorySource {
    fn drop(&mut self) {
        // The thread may have ended by itself.
        let _ = self.wake.send(Wake::Stop);
    }
}

fn run(
    mut state: DirectoryState,
    options: &DirectoryOptions,
    wakes: &Receiver<Wake>,
    objects: &watch::Sender<Arc<ObjectSet>>,
    problems: &watch::Sender<Arc<Vec<Problem>>>,
) {
    while let Some(touched) = next_changes(wakes, options) {
        if !state.rescan(&touched) {
            continue;
        }
        problems.send_if_modified(|held| {
            let new = state.problems();
            if **held == *new {
                return false;
            }
            log_problems(&new, held);
            *held = new;
            true
        });
        objects.send_if_modified(|held| {
            let new = state.objects();
            let changed = **held != *new;
            if changed {
                *held = new;
            }
            changed
        });
    }
}

/// Waits for changes and gathers them; the paths that events named. `None`: the source is gone.
fn next_changes(wakes: &Receiver<Wake>, options: &DirectoryOptions) -> Option<Vec<PathBuf>> {
    let mut touched = match wakes.recv_timeout(options.rescan) {
        Ok(Wake::Changed(paths)) => paths,
        Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return None,
        Err(RecvTimeoutError::Timeout) => return Some(Vec::new()),
    };
    let deadline = Instant::now() + options.at_most;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match wakes.recv_timeout(options.quiet.min(left)) {
            Ok(Wake::Changed(paths)) if !left.is_zero() => touched.extend(paths),
            Ok(Wake::Changed(paths)) => {
                touched.extend(paths);
                return Some(touched);
            }
            Ok(Wake::Stop) | Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => return Some(touched),
        }
    }
}

fn log_problems(new: &[Problem], old: &[Problem]) {
    for problem in new.iter().filter(|problem| !old.contains(problem)) {
        tracing::warn!(%problem, "invalid object");
    }
}

/// A file of objects, by its name.
fn is_object_file(path: &Path) -> bool {
    path.extension()
        .is_some_and(|end| end == "yaml" || end == "yml" || end == "json")
}

fn is_hidden(path: &Path) -> bool {
    path.file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

#[cfg(test)]
mod tests;
