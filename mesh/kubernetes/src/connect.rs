//! How an API server is reached.

use std::path::{Path, PathBuf};

use kube::config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};

/// There is no way to an API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig can't be used.
    #[error("kubeconfig {}: {source}", path.display())]
    Kubeconfig {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<KubeconfigError>,
    },
    /// This is no pod, or its service account's files are not there.
    #[error("no --kubeconfig, and no service account of a pod: {0}")]
    InCluster(#[from] InClusterError),
    /// The configuration is of no use to the client.
    #[error("making a client of the API server: {0}")]
    Client(#[from] kube::Error),
}

/// A client by this kubeconfig's current context, or by the pod's service account.
///
/// # Errors
///
/// If there is neither, or it can't be used. Nothing is sent to the API server.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, ConnectError> {
    let config = match kubeconfig {
        Some(path) => read(path)
            .await
            .map_err(|source| ConnectError::Kubeconfig {
                path: path.to_owned(),
                source: Box::new(source),
            })?,
        None => Config::incluster()?,
    };
    Ok(Client::try_from(config)?)
}

async fn read(path: &Path) -> Result<Config, KubeconfigError> {
    let kubeconfig = Kubeconfig::read_from(path)?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await
}
