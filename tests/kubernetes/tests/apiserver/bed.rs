//! An API server with the CRDs and the chart's permissions, and replicas of the control plane beside it.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use kube::Client;
use seine_e2e::trial::Shared;
use seine_kubernetes_tests::{Cluster, program, root, step, within};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// The namespace of the mesh.
pub(crate) const SYSTEM: &str = "seine-system";
/// How long what takes effect later may take, on a busy machine.
pub(crate) const PATIENCE: u64 = 60;

/// What the tests share.
pub(crate) struct Bed {
    /// The API server.
    pub(crate) cluster: Cluster,
    /// Speaks to it as administrator.
    pub(crate) client: Client,
    /// Where the tests' tasks run.
    pub(crate) runtime: Runtime,
    folder: tempfile::TempDir,
}

impl Bed {
    /// Starts etcd and API server, and installs what the charts have but for the programs.
    pub(crate) fn up() -> Result<Self> {
        step("starting etcd and API server");
        let cluster = Cluster::up("api", 0)?;
        let runtime = Runtime::new()?;
        let kubeconfig = cluster.kubeconfig();
        let client = runtime.block_on(seine_kubernetes::client(Some(&kubeconfig)))?;
        let bed = Self {
            cluster,
            client,
            runtime,
            folder: tempfile::tempdir()?,
        };
        step("CRDs, and permissions as the chart has them");
        bed.cluster.apply(&[namespace(SYSTEM, json!({}))])?;
        let crds = root().join("deploy/crds");
        let crds = crds.to_str().context("a path that is no UTF-8")?;
        bed.cluster
            .kubectl(&["apply", "--server-side", "-f", crds])?;
        bed.cluster.define_gateway_api()?;
        bed.cluster.apply(&bed.chart()?)?;
        let kinds = [
            "crd/authorizationpolicies.policy.seine.dev",
            "crd/meshtls.policy.seine.dev",
            "crd/trafficpolicies.policy.seine.dev",
            "crd/requestauthentications.policy.seine.dev",
        ];
        let mut wait = vec!["wait", "--for=condition=Established", "--timeout=60s"];
        wait.extend(kinds);
        bed.cluster.kubectl(&wait)?;
        Ok(bed)
    }

    /// Of the chart, what an API server alone has use for.
    fn chart(&self) -> Result<Vec<Value>> {
        let rendered = Command::new(self.cluster.program("helm"))
            .args(["template", "seine", "--namespace", SYSTEM])
            .args([
                "--api-versions",
                "gateway.networking.k8s.io/v1/GatewayClass",
            ])
            .arg(root().join("deploy/helm/seine"))
            .stderr(Stdio::null())
            .output()
            .context("running helm")?;
        ensure!(rendered.status.success(), "helm template failed");
        let text = String::from_utf8(rendered.stdout)?;
        let objects: Vec<Value> = serde_saphyr::from_multiple(&text)?;
        let wanted = [
            "ServiceAccount",
            "ClusterRole",
            "ClusterRoleBinding",
            "Role",
            "RoleBinding",
            "ConfigMap",
            "GatewayClass",
        ];
        let is_wanted = |object: &Value| {
            let kind = object["kind"].as_str().unwrap_or_default();
            // Hooks of an uninstall are no part of what runs.
            let is_hook = object["metadata"]["annotations"]["helm.sh/hook"].is_string();
            wanted.contains(&kind) && !is_hook
        };
        Ok(objects.into_iter().filter(is_wanted).collect())
    }

    /// A token of a service account. `more` are further arguments of `kubectl create token`.
    pub(crate) fn token(&self, namespace: &str, account: &str, more: &[&str]) -> Result<String> {
        let mut words = vec!["-n", namespace, "create", "token", account];
        words.extend(more);
        Ok(self.cluster.kubectl(&words)?.trim().to_owned())
    }

    /// The file of the roots that the control plane publishes.
    pub(crate) fn roots(&self) -> Result<PathBuf> {
        let roots = within(PATIENCE, "the trust bundle is published", || {
            let map = self
                .cluster
                .get(&["-n", SYSTEM, "configmap", "seine-ca-root"])?;
            Ok(map["data"]["root-cert.pem"].as_str().map(str::to_owned))
        })?;
        self.file("roots.pem", &roots)
    }

    /// A file in a folder that goes with the bed.
    pub(crate) fn file(&self, name: &str, content: &str) -> Result<PathBuf> {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content)?;
        Ok(path)
    }

    /// Starts a replica of the control plane with the chart's permissions and no more; `server` is another
    /// address of the API server.
    pub(crate) fn replica(&self, name: &str, server: Option<SocketAddr>) -> Result<Replica> {
        // A replica's ConfigMap goes with its pod, so there has to be one.
        self.cluster
            .apply(&[pod(SYSTEM, name, "seine-control", None, json!({}))])?;
        let uid = self.cluster.get(&["-n", SYSTEM, "pod", name])?;
        let uid = uid["metadata"]["uid"]
            .as_str()
            .context("a pod without UID")?
            .to_owned();
        let kubeconfig = self.kubeconfig_of(name, server)?;
        let map = ["-n", SYSTEM, "configmap", "seine-waypoint-template"];
        let map = self.cluster.get(&map)?;
        let template = map["data"]["template.json"].as_str();
        let template = self.file(
            "template.json",
            template.context("the ConfigMap has no template")?,
        )?;
        let addresses: Vec<_> = (0..2).map(|_| free()).collect::<Result<_>>()?;
        let log = self.folder.path().join(format!("{name}.log"));
        let child = Command::new(program("seine-control")?)
            .arg("--kubeconfig")
            .arg(&kubeconfig)
            .arg(format!("--listen={}", addresses[0]))
            .arg(format!("--admin-address={}", addresses[1]))
            .arg("--waypoint-template")
            .arg(template)
            .args(["--pod-name", name, "--log-level=info,seine_control=debug"])
            .env("POD_NAMESPACE", SYSTEM)
            .env("POD_UID", uid)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .context("starting seine-control")?;
        Ok(Replica {
            name: name.to_owned(),
            child,
            listen: addresses[0],
            admin: addresses[1],
            log,
        })
    }

    /// As [`Self::replica`], when it is ready.
    pub(crate) fn ready_replica(&self, name: &str) -> Result<Replica> {
        let replica = self.replica(name, None)?;
        replica.await_ready()?;
        Ok(replica)
    }

    fn kubeconfig_of(&self, name: &str, server: Option<SocketAddr>) -> Result<PathBuf> {
        let admin = std::fs::read_to_string(self.cluster.kubeconfig())?;
        let mut config: Value = serde_saphyr::from_str(&admin)?;
        let token = self.token(SYSTEM, "seine-control", &["--duration=4h"])?;
        config["users"][0]["user"] = json!({"token": token});
        if let Some(server) = server {
            config["clusters"][0]["cluster"] = json!({"server": format!("http://{server}")});
        }
        self.file(&format!("{name}.kubeconfig"), &config.to_string())
    }

    /// A condition of an object.
    pub(crate) fn condition(&self, object: &[&str], kind: &str) -> Result<Value> {
        let object = self.cluster.get(object)?;
        let conditions = object["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        let found = conditions.find(|one| one["type"] == kind);
        found
            .cloned()
            .with_context(|| format!("no condition {kind} yet"))
    }

    /// Waits until a condition of an object has a status, for a generation.
    pub(crate) fn await_condition(
        &self,
        object: &[&str],
        kind: &str,
        status: &str,
        generation: i64,
    ) -> Result<Value> {
        let what = format!("{kind} of {object:?} is {status} for generation {generation}");
        within(PATIENCE, &what, || {
            let condition = self.condition(object, kind)?;
            let is = condition["status"] == status && condition["observedGeneration"] == generation;
            ensure!(is, "{condition}");
            Ok(Some(condition))
        })
    }
}

impl Shared for Bed {
    fn last_words(&self) -> String {
        let mut text = String::new();
        let files = std::fs::read_dir(self.folder.path());
        for path in files
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
        {
            if path.extension().is_some_and(|end| end == "log") {
                let log = std::fs::read_to_string(&path).unwrap_or_default();
                let lines: Vec<_> = log.lines().collect();
                text += &format!("  --- {}\n", path.display());
                for line in &lines[lines.len().saturating_sub(15)..] {
                    text += &format!("  {line}\n");
                }
            }
        }
        text + "  --- kube-apiserver\n" + &self.cluster.last_lines("kube-apiserver", 5)
    }
}

/// A replica of the control plane that runs. It is killed when this is dropped.
pub(crate) struct Replica {
    pub(crate) name: String,
    child: Child,
    /// xDS and certificates.
    pub(crate) listen: SocketAddr,
    admin: SocketAddr,
    log: PathBuf,
}

impl Replica {
    /// Waits until it serves.
    pub(crate) fn await_ready(&self) -> Result<()> {
        within(PATIENCE, &format!("{} is ready", self.name), || {
            self.page("/healthz/ready").map(Some)
        })
        .map(drop)
    }

    /// A page of its admin interface, if it is 200.
    pub(crate) fn page(&self, path: &str) -> Result<String> {
        let timeout = Duration::from_secs(5);
        let mut stream = TcpStream::connect_timeout(&self.admin, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        write!(stream, "GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n")?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8(answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        ensure!(head.contains(" 200 "), "{path}: {head} {body}");
        Ok(body.to_owned())
    }

    /// What it says of the objects, as one text.
    pub(crate) fn status(&self) -> Result<String> {
        self.page("/status")
    }

    /// A field of `/proc/PID/status` in MiB, as `VmHWM`.
    pub(crate) fn memory(&self, field: &str) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find(|line| line.starts_with(field));
        let words = line.and_then(|line| line.split_whitespace().nth(1));
        Ok(words.context("no such field")?.parse::<u64>()? / 1024)
    }

    /// Its log.
    pub(crate) fn log(&self) -> Result<String> {
        Ok(std::fs::read_to_string(&self.log)?)
    }

    /// Ends it at once.
    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Fails if it ended by itself.
    pub(crate) fn still_runs(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("{} ended: {status}", self.name),
            None => Ok(()),
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address that is free now; nobody else of this machine takes it in the next moment, or the start fails.
fn free() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// A namespace.
pub(crate) fn namespace(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
}

/// A pod that nothing runs.
pub(crate) fn pod(
    namespace: &str,
    name: &str,
    account: &str,
    node: Option<&str>,
    labels: Value,
) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "serviceAccountName": account,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "none", "image": "localhost/none:1"}],
        },
    });
    if let Some(node) = node {
        pod["spec"]["nodeName"] = json!(node);
    }
    pod
}
