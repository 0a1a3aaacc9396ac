//! The agent's way to the API server, as a file for the CNI plugin: a pod of a namespace that is made while the agent
//! is away is opted in or not, and only the API server knows.
//!
//! The token is the agent's own, bound to its Pod: it holds while the agent crashes or its node restarts, and ends with
//! the Pod. The plugin gets no right that the agent has not, and the file is readable to root alone.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::ByteString;
use kube::config::InClusterError;
use serde_json::json;

use crate::cni_chain::write_new;

/// Name of the file, in the state folder.
pub const KUBECONFIG_FILE: &str = "api-server.kubeconfig";

const FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The kubelet renews a token when a fifth of its life is left, that is ten minutes at the least.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// What a pod is given to reach the API server.
#[derive(Clone, Debug)]
pub struct ServiceAccount {
    server: String,
    folder: PathBuf,
}

impl ServiceAccount {
    /// Of this pod.
    ///
    /// # Errors
    ///
    /// This is no pod, or its service account is not there.
    pub fn of_pod() -> Result<Self, InClusterError> {
        let server = kube::Config::incluster()?.cluster_url.to_string();
        Ok(Self::new(server, FOLDER))
    }

    /// With `token` and `ca.crt` in this folder.
    pub(crate) fn new(server: impl Into<String>, folder: impl Into<PathBuf>) -> Self {
        Self {
            server: server.into(),
            folder: folder.into(),
        }
    }

    /// JSON is YAML, so this is a kubeconfig.
    fn kubeconfig(&self) -> io::Result<Vec<u8>> {
        let read = |name: &str| {
            let path = self.folder.join(name);
            fs::read(&path).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            })
        };
        let token = String::from_utf8_lossy(&read("token")?).trim().to_owned();
        let name = "seine-agent";
        let roots = ByteString(read("ca.crt")?);
        let cluster = json!({"server": self.server, "certificate-authority-data": roots});
        let all = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
            "current-context": name,
        });
        Ok(serde_json::to_vec(&all)?)
    }
}

/// Keeps the file as the account is, which changes as its token is renewed.
pub(super) async fn keep(account: ServiceAccount, path: PathBuf) {
    let mut written = None;
    loop {
        if let Err(error) = update(&account, &path, &mut written) {
            tracing::error!(path = %path.display(), %error,
                "keep the CNI plugin's way to the API server: pods of namespaces made while the agent is away would wait");
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn update(account: &ServiceAccount, path: &Path, written: &mut Option<Vec<u8>>) -> io::Result<()> {
    let now = account.kubeconfig()?;
    if written.as_ref() != Some(&now) {
        write_new(path, &now, 0o600)?;
        *written = Some(now);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::Value;

    use super::*;

    #[test]
    fn the_copy_is_for_root_alone_and_follows_the_token() {
        let folder = tempfile::tempdir().unwrap();
        let account = ServiceAccount::new("https://10.0.0.1:443", folder.path());
        let path = folder.path().join(KUBECONFIG_FILE);
        let mut written = None;
        let error = update(&account, &path, &mut written).unwrap_err();
        assert!(error.to_string().contains("token"), "{error}");
        fs::write(folder.path().join("ca.crt"), "roots").unwrap();
        for token in ["first", "second"] {
            fs::write(folder.path().join("token"), token).unwrap();
            update(&account, &path, &mut written).unwrap();
            let kubeconfig: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
            assert_eq!(kubeconfig["users"][0]["user"]["token"], token);
            let cluster = &kubeconfig["clusters"][0]["cluster"];
            assert_eq!(cluster["server"], "https://10.0.0.1:443");
            assert_eq!(cluster["certificate-authority-data"], "cm9vdHM=");
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }
}
