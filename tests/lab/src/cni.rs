//! Calls the CNI plugin as a container runtime would.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::names::Layout;
use crate::pod::PodView;

/// The plugin and where its agents are.
#[derive(Clone, Debug)]
pub struct Cni {
    /// `seine-cni`.
    pub plugin: PathBuf,
    /// Paths of the nodes.
    pub layout: Layout,
}

impl Cni {
    /// Before a pod's first process.
    pub async fn add(&self, pod: &PodView, netns: &Path) -> Result<()> {
        self.call("ADD", pod, netns).await
    }

    /// After a pod's last process.
    pub async fn del(&self, pod: &PodView, netns: &Path) -> Result<()> {
        self.call("DEL", pod, netns).await
    }

    async fn call(&self, command: &str, pod: &PodView, netns: &Path) -> Result<()> {
        let desired = &pod.desired;
        let node = self.layout.node(pod.node);
        let configuration = json!({
            "cniVersion": "1.1.0",
            "name": "seine-lab",
            "type": "seine-cni",
            "agentSocket": node.join("run/cni.sock"),
            "stateFile": node.join("agent/last-known.json"),
            "prevResult": previous_result(pod, netns),
        });
        let mut child = Command::new(&self.plugin)
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", pod.uid.replace('-', ""))
            .env("CNI_NETNS", netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", self.plugin.parent().unwrap_or(Path::new("/")))
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID={};\
                     K8S_POD_INFRA_CONTAINER_ID={}",
                    desired.namespace,
                    desired.name,
                    pod.uid,
                    pod.uid.replace('-', "")
                ),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", self.plugin.display()))?;
        let mut stdin = child.stdin.take().context("stdin was piped")?;
        let input = configuration.to_string();
        let limit = Duration::from_secs(30);
        let output = tokio::time::timeout(limit, async move {
            // A plugin that fails early may not read it.
            let _ = stdin.write_all(input.as_bytes()).await;
            drop(stdin);
            child.wait_with_output().await
        })
        .await
        .with_context(|| format!("no answer in {limit:?}"))??;
        if output.status.success() {
            return Ok(());
        }
        // Errors are JSON on standard output.
        let error: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let text = |field: &str| error.get(field).and_then(Value::as_str).unwrap_or_default();
        bail!(
            "{} {} {}{}",
            output.status,
            text("msg"),
            text("details"),
            String::from_utf8_lossy(&output.stderr).trim()
        )
    }
}

fn previous_result(pod: &PodView, netns: &Path) -> Value {
    json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "sandbox": netns}],
        "ips": [
            {"address": format!("{}/32", pod.v4), "interface": 0},
            {"address": format!("{}/128", pod.v6), "interface": 0},
        ],
    })
}
