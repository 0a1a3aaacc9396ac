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
    let mut config = match kubeconfig {
        Some(path) => read(path)
            .await
            .map_err(|source| ConnectError::Kubeconfig {
                path: path.to_owned(),
                source: Box::new(source),
            })?,
        None => Config::incluster()?,
    };
    // Who asks backs off by itself. The client would ask again 15 times below that, from 5 ms on, and say nothing of it:
    // a storm at a server that fails, and an error that is known minutes later.
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

async fn read(path: &Path) -> Result<Config, KubeconfigError> {
    let kubeconfig = Kubeconfig::read_from(path)?;
    Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Namespace;
    use kube::Api;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_request_is_one_request_also_where_the_server_fails() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("kubeconfig");
        let address = server.local_addr().unwrap();
        let text = format!(
            r#"{{"clusters": [{{"name": "x", "cluster": {{"server": "http://{address}"}}}}],
                "contexts": [{{"name": "x", "context": {{"cluster": "x", "user": "x"}}}}],
                "users": [{{"name": "x", "user": {{}}}}], "current-context": "x"}}"#
        );
        std::fs::write(&kubeconfig, text).unwrap();
        let client = client(Some(&kubeconfig)).await.unwrap();
        let asking =
            tokio::spawn(
                async move { Api::<Namespace>::all(client).get("shop").await.unwrap_err() },
            );
        let (mut connection, _) = server.accept().await.unwrap();
        let (mut asked, mut piece) = (Vec::new(), [0; 1024]);
        while !asked.ends_with(b"\r\n\r\n") {
            let read = connection.read(&mut piece).await.unwrap();
            asked.extend_from_slice(&piece[..read]);
        }
        let answer =
            b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        connection.write_all(answer).await.unwrap();
        drop(connection);
        let again = server.accept();
        tokio::select! {
            _ = again => panic!("it asked again"),
            error = asking => drop(error.unwrap()),
        }
    }
}
