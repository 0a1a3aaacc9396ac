//! Where the objects come from.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context as _;
use seine_kubernetes::{KubernetesSource, Scope};
use seine_objects::{DirectoryOptions, DirectorySource, ObjectSet, Problem};
use tokio::sync::watch;

/// A folder or an API server; watched until it is dropped.
#[derive(Debug)]
pub(crate) enum Source {
    Directory(DirectorySource),
    Cluster(KubernetesSource),
}

impl Source {
    /// Reads all of the folder once.
    pub(crate) async fn directory(path: PathBuf) -> anyhow::Result<Self> {
        let source = tokio::task::spawn_blocking(move || {
            DirectorySource::open(path, DirectoryOptions::default())
        })
        .await?
        .context("opening the objects' directory")?;
        Ok(Self::Directory(source))
    }

    /// Lists all of the cluster once, however long the API server takes.
    pub(crate) async fn cluster(client: kube::Client) -> Self {
        Self::Cluster(KubernetesSource::start(client, Scope::Cluster).await)
    }

    pub(crate) fn objects(&self) -> watch::Receiver<Arc<ObjectSet>> {
        match self {
            Self::Directory(source) => source.subscribe(),
            Self::Cluster(source) => source.subscribe(),
        }
    }

    pub(crate) fn problems(&self) -> watch::Receiver<Arc<Vec<Problem>>> {
        match self {
            Self::Directory(source) => source.subscribe_problems(),
            Self::Cluster(source) => source.subscribe_problems(),
        }
    }
}
