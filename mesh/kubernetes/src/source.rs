//! Objects from wherever they come.

use std::{path::PathBuf, sync::Arc};

use kube::Client;
use seine_objects::{DirectoryOptions, DirectorySource, ObjectSet, Problem, SourceError};
use tokio::sync::watch;

use crate::{KubernetesSource, Scope};

/// A folder or an API server; watched until it is dropped.
#[derive(Debug)]
pub enum Source {
    /// A folder.
    Directory(DirectorySource),
    /// An API server.
    Cluster(KubernetesSource),
}

impl Source {
    /// Reads all of the folder once. `memory`: [`DirectoryOptions::memory`].
    ///
    /// # Errors
    ///
    /// If it can't be opened or watched.
    pub async fn directory(path: PathBuf, memory: Option<PathBuf>) -> Result<Self, SourceError> {
        let options = DirectoryOptions {
            memory,
            ..DirectoryOptions::default()
        };
        let open = move || DirectorySource::open(path, options);
        let opened = tokio::task::spawn_blocking(open).await;
        Ok(Self::Directory(opened.expect("it does not panic")?))
    }

    /// Lists all that is in scope once, however long the API server takes.
    pub async fn cluster(client: Client, scope: Scope) -> Self {
        Self::Cluster(KubernetesSource::start(client, scope).await)
    }

    /// Told of every new set.
    pub fn objects(&self) -> watch::Receiver<Arc<ObjectSet>> {
        match self {
            Self::Directory(source) => source.subscribe(),
            Self::Cluster(source) => source.subscribe(),
        }
    }

    /// Told of what is wrong, whenever that changes.
    pub fn problems(&self) -> watch::Receiver<Arc<Vec<Problem>>> {
        match self {
            Self::Directory(source) => source.subscribe_problems(),
            Self::Cluster(source) => source.subscribe_problems(),
        }
    }
}
