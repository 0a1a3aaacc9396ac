//! A real cluster, or an API server alone, as `cluster/cluster` starts it.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{Guard, root};

/// A running cluster. It ends when this is dropped, or when the test's process ends in whatever way.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    /// Folder of the Kubernetes programs.
    assets: PathBuf,
    state: PathBuf,
    _guard: Guard,
}

/// What a command said.
#[derive(Debug)]
pub struct Output {
    /// Its exit status.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output, if the exit status was 0.
    pub fn good(self, what: &str) -> Result<String> {
        ensure!(
            self.code == 0,
            "{what}: exit status {}: {}{}",
            self.code,
            self.stderr,
            self.stdout
        );
        Ok(self.stdout)
    }
}

impl Cluster {
    /// A cluster of so many nodes; with none an API server alone, on loopback. `kind` is a short word.
    pub fn up(kind: &str, nodes: u8) -> Result<Self> {
        let assets = std::env::var_os("KUBEBUILDER_ASSETS")
            .map(PathBuf::from)
            .context("KUBEBUILDER_ASSETS names no Kubernetes programs: make test-kubernetes")?;
        // Runs of several clones may go side by side.
        let name = format!("{kind}{}", std::process::id());
        let state = std::env::temp_dir().join(format!("cluster-{name}"));
        let guard = Guard::start(tool(&name, &assets, &state, "down").stderr(Stdio::null()))?;
        let cluster = Self {
            name,
            assets,
            state,
            _guard: guard,
        };
        let nodes = nodes.to_string();
        let status = cluster.tool("up").args(["--nodes", &nodes]).status()?;
        ensure!(status.success(), "the cluster did not start");
        Ok(cluster)
    }

    fn tool(&self, command: &str) -> Command {
        tool(&self.name, &self.assets, &self.state, command)
    }

    /// Its name, with which network namespaces and cgroups begin: `cluster-NAME-node1`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.join("admin.kubeconfig")
    }

    /// Folder of certificates, logs, and what the nodes keep.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// One of the Kubernetes programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.assets.join(name)
    }

    /// A command on `node1`, ..., or `control-plane`, with KUBECONFIG set.
    pub fn command_in(&self, place: &str, words: &[&str]) -> Command {
        let mut command = self.tool("enter");
        command.arg(place).args(words);
        command
    }

    /// Runs a command in a place to its end.
    pub fn run_in(&self, place: &str, words: &[&str]) -> Result<Output> {
        run(&mut self.command_in(place, words), None)
    }

    /// `kubectl ...` as administrator.
    pub fn kubectl_command(&self, words: &[&str]) -> Command {
        let mut command = self.tool("kubectl");
        command.args(words);
        command
    }

    /// Runs kubectl; its standard output, if it succeeded.
    pub fn kubectl(&self, words: &[&str]) -> Result<String> {
        self.try_kubectl(words)?.good(&words.join(" "))
    }

    /// Runs kubectl, whatever comes of it.
    pub fn try_kubectl(&self, words: &[&str]) -> Result<Output> {
        run(&mut self.kubectl_command(words), None)
    }

    /// `kubectl get ... --output json`.
    pub fn get(&self, words: &[&str]) -> Result<Value> {
        let mut all = vec!["get", "--output", "json"];
        all.extend(words);
        Ok(serde_json::from_str(&self.kubectl(&all)?)?)
    }

    /// Makes or changes objects.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        self.try_apply(objects)?.good("kubectl apply").map(drop)
    }

    /// As [`Self::apply`], whatever comes of it.
    pub fn try_apply(&self, objects: &[Value]) -> Result<Output> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        let mut command =
            self.kubectl_command(&["apply", "--server-side", "--force-conflicts", "-f", "-"]);
        run(&mut command, Some(&list))
    }

    /// What the server itself would say of an object, which is not stored.
    pub fn judged(&self, object: &Value) -> Result<Output> {
        let mut command = self.kubectl_command(&[
            "apply",
            "--server-side",
            "--dry-run=server",
            "--validate=false",
            "-f",
            "-",
        ]);
        run(&mut command, Some(&object.to_string()))
    }

    /// Applies manifests.
    pub fn apply_text(&self, text: &str) -> Result<()> {
        let mut command =
            self.kubectl_command(&["apply", "--server-side", "--force-conflicts", "-f", "-"]);
        run(&mut command, Some(text))?
            .good("kubectl apply")
            .map(drop)
    }

    /// Installs the definitions of the Gateway API's kinds.
    pub fn define_gateway_api(&self) -> Result<()> {
        let file = self.program("gateway-api.yaml");
        let file = file.to_str().context("a path that is no UTF-8")?;
        self.kubectl(&["apply", "--server-side", "-f", file])?;
        let kinds = ["gatewayclasses", "gateways", "httproutes"];
        let kinds = kinds.map(|kind| format!("crd/{kind}.gateway.networking.k8s.io"));
        let mut words = vec!["wait", "--for=condition=Established", "--timeout=60s"];
        words.extend(kinds.iter().map(String::as_str));
        self.kubectl(&words).map(drop)
    }

    /// Makes images available on every node.
    pub fn load_images(&self, archives: &[PathBuf]) -> Result<()> {
        let output = run(self.tool("load-image").args(archives), None)?;
        output.good("load-image").map(drop)
    }

    /// Kills all that runs on a node, as a loss of power does, and starts the node again.
    pub fn reboot(&self, node: &str) -> Result<()> {
        let output = run(self.tool("reboot").arg(node), None)?;
        output.good("reboot").map(drop)
    }

    /// The end of a component's log, as `kube-apiserver`.
    pub fn last_lines(&self, component: &str, lines: usize) -> String {
        let path = self.state.join("logs").join(format!("{component}.log"));
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let all: Vec<_> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::env::var_os("SEINE_KEEP_CLUSTER").is_some() {
            println!(
                "kept, until Enter: cluster {}, {}",
                self.name,
                self.state.display()
            );
            let _ = std::io::stdin().read_line(&mut String::new());
        }
        let status = self.tool("down").stderr(Stdio::null()).status();
        if !status.is_ok_and(|status| status.success()) {
            println!("cluster {} is not wholly down", self.name);
        }
    }
}

fn tool(name: &str, assets: &Path, state: &Path, command: &str) -> Command {
    let mut tool = Command::new(root().join("tests/kubernetes/cluster/cluster"));
    tool.args([command, "--name", name])
        .env("KUBEBUILDER_ASSETS", assets)
        .env("CLUSTER_DIR", state);
    tool
}

/// Runs a command to its end.
fn run(command: &mut Command, input: Option<&str>) -> Result<Output> {
    let what = format!("{command:?}");
    let stdin = match input {
        Some(_) => Stdio::piped(),
        None => Stdio::null(),
    };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| what.clone())?;
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    let Some(code) = output.status.code() else {
        bail!("{what}: {}", output.status);
    };
    Ok(Output {
        code,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
