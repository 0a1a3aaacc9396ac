//! A cluster of two nodes with the mesh installed as docs/INSTALL.md says.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use seine_e2e::Running;
use seine_e2e::peer::report::Asked;
use seine_e2e::trial::Shared;
use seine_kubernetes_tests::docs::{self, Place};
use seine_kubernetes_tests::objects::{PEER, PEER_IMAGE, real};
use seine_kubernetes_tests::{Cluster, Output, program, root, step, within};
use seine_lab::pcap::Capture;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The namespace of the mesh.
pub(crate) const SYSTEM: &str = "seine-system";
/// The nodes.
pub(crate) const NODES: [&str; 2] = ["node1", "node2"];
/// How long what takes effect later may take: a pod's start, on a busy machine.
pub(crate) const PATIENCE: u64 = 120;

/// What the tests share.
#[derive(Debug)]
pub(crate) struct Bed {
    /// The cluster.
    pub(crate) cluster: Cluster,
    /// The folder in which the guides' commands run.
    work: tempfile::TempDir,
    /// Folder of the images.
    images: PathBuf,
}

impl Bed {
    /// Starts the cluster, loads the images and installs the mesh.
    pub(crate) fn up() -> Result<Self> {
        let images = std::env::var_os("SEINE_IMAGES").map_or_else(
            || root().join("target/images"),
            |folder| root().join(folder),
        );
        ensure!(
            images.join("digests").is_file(),
            "no images in {}: make images",
            images.display()
        );
        step("starting etcd, API server and two nodes");
        let cluster = Cluster::up("mesh", 2)?;
        let work = tempfile::tempdir()?;
        let bed = Self {
            cluster,
            work,
            images,
        };
        bed.prepare()?;
        // Before the chart, which then has the GatewayClass.
        bed.cluster.define_gateway_api()?;
        step("installing as docs/INSTALL.md says");
        bed.follow("INSTALL.md")?;
        step("installed");
        Ok(bed)
    }

    /// The folder of the commands: what a user's clone has, and the settings that this cluster needs.
    fn prepare(&self) -> Result<()> {
        let folder = self.work.path();
        symlink(root().join("deploy"), folder.join("deploy"))?;
        std::fs::create_dir(folder.join("target"))?;
        symlink(&self.images, folder.join("target/images"))?;
        std::fs::create_dir(folder.join("bin"))?;
        symlink(program("seine")?, folder.join("bin/seine"))?;
        self.set_values(None)?;
        let archive = folder.join("peer.tar");
        let peer = format!("{}:{PEER}", seine_e2e::bed::peer_program().display());
        let made = Command::new(root().join("tests/kubernetes/cluster/mkimage"))
            .args(["--libs", "--entrypoint", PEER, PEER_IMAGE])
            .arg(&archive)
            .arg(peer)
            .output()?;
        ensure!(
            made.status.success(),
            "mkimage: {}",
            String::from_utf8_lossy(&made.stderr)
        );
        self.cluster.load_images(&[archive])
    }

    /// Writes the settings, with the images' tag where it isn't the chart's.
    pub(crate) fn set_values(&self, tag: Option<&str>) -> Result<()> {
        // Nodes are cgroups here, and the variable is the agent's own, which Kubernetes puts in.
        let cgroups = cgroup2()?.join(format!("cluster-{}-$(SEINE_NODE)", self.cluster.name()));
        let values = json!({
            "image": {"tag": tag.unwrap_or_default()},
            "agent": {
                "podsCgroup": cgroups.join("kubepods"),
                "kubeletCgroup": cgroups.join("kubelet"),
            },
            "ztunnel": {"drainSeconds": 5},
        });
        let file = self.work.path().join("values.yaml");
        Ok(std::fs::write(file, values.to_string())?)
    }

    /// Runs the commands of a guide as they stand there.
    pub(crate) fn follow(&self, file: &str) -> Result<()> {
        let blocks = docs::blocks(file)?;
        ensure!(!blocks.is_empty(), "{file} has no commands");
        for block in blocks {
            match block.place {
                Place::Here => self.script("control-plane", &block.script).map(drop),
                Place::EachNode => NODES
                    .iter()
                    .try_for_each(|node| self.script(node, &block.script).map(drop)),
                Place::Nowhere => Ok(()),
            }
            .with_context(|| file.to_owned())?;
        }
        Ok(())
    }

    /// The `nth` block of a guide.
    pub(crate) fn follow_one(&self, file: &str, nth: usize) -> Result<String> {
        let block = docs::blocks(file)?
            .into_iter()
            .nth(nth)
            .with_context(|| format!("{file} has no block {nth}"))?;
        self.script("control-plane", &block.script)
            .with_context(|| file.to_owned())
    }

    /// Runs a script of bash in the folder of the commands; what it printed.
    pub(crate) fn script(&self, place: &str, script: &str) -> Result<String> {
        for line in script.lines() {
            println!("          {place}$ {line}");
        }
        self.try_script(place, script)?.good(script)
    }

    /// As [`Self::script`], whatever comes of it.
    pub(crate) fn try_script(&self, place: &str, script: &str) -> Result<Output> {
        let folder = self.work.path().display();
        let script = format!("set -euo pipefail; cd {folder}; PATH={folder}/bin:$PATH\n{script}\n");
        self.cluster.run_in(place, &["bash", "-c", &script])
    }

    /// Makes or changes objects as [`seine_e2e::manifests`] writes them.
    pub(crate) fn apply(&self, objects: &[Value]) -> Result<()> {
        self.cluster.apply(&real(objects)?)
    }

    /// Waits until all pods of a namespace are ready.
    pub(crate) fn ready(&self, namespace: &str) -> Result<()> {
        let timeout = format!("--timeout={PATIENCE}s");
        let waited = self.cluster.kubectl(&[
            "-n",
            namespace,
            "wait",
            "--for=condition=Ready",
            "pod",
            "--all",
            &timeout,
        ]);
        waited.map(drop).with_context(|| {
            let words = ["-n", namespace, "describe", "pods"];
            self.cluster.kubectl(&words).unwrap_or_default()
        })
    }

    /// Runs the peer in `namespace/pod`, and reads its report.
    pub(crate) fn peer<T: DeserializeOwned>(&self, pod: &str, arguments: &[&str]) -> Result<T> {
        let output = self.exec(pod, arguments)?;
        let said = output.good(&format!("{arguments:?} in {pod}"))?;
        serde_json::from_str(&said).with_context(|| format!("{arguments:?} in {pod} said {said:?}"))
    }

    fn exec(&self, pod: &str, arguments: &[&str]) -> Result<Output> {
        let (namespace, name) = split(pod)?;
        let mut words = vec!["-n", namespace, "exec", "-i", name, "--", PEER];
        words.extend(arguments);
        self.cluster.try_kubectl(&words)
    }

    /// Starts the peer in `namespace/pod`.
    pub(crate) fn start(&self, pod: &str, arguments: &[&str]) -> Result<Running> {
        let (namespace, name) = split(pod)?;
        let mut words = vec!["-n", namespace, "exec", "-i", name, "--", PEER];
        words.extend(arguments);
        let mut command = self.cluster.kubectl_command(&words);
        Running::start(&mut command, format!("{arguments:?} in {pod}"))
    }

    /// Connects from `namespace/pod`, sends the text, half-closes, and reads to the end.
    pub(crate) fn ask(&self, from: &str, host: &str, port: u16, send: &str) -> Result<Asked> {
        self.peer(from, &["ask", host, &port.to_string(), "--send", send])
    }

    /// As [`Self::ask`] of an echo server, which must answer all.
    pub(crate) fn echoes(&self, from: &str, host: &str, port: u16, text: &str) -> Result<()> {
        let asked = self.ask(from, host, port, text)?;
        ensure!(
            asked.failure.is_none() && asked.received == text,
            "{from} to {host} port {port}: {asked:?}"
        );
        Ok(())
    }

    /// Waits until an echo server answers.
    pub(crate) fn await_echo(&self, from: &str, host: &str, port: u16) -> Result<()> {
        within(PATIENCE, &format!("{host} answers {from}"), || {
            self.echoes(from, host, port, "there?").map(Some)
        })
    }

    /// A pod's annotation `seine.dev/enrolled`.
    pub(crate) fn enrolled(&self, pod: &str) -> Result<Option<String>> {
        let (namespace, name) = split(pod)?;
        let pod = self.cluster.get(&["-n", namespace, "pod", name])?;
        let value = pod["metadata"]["annotations"]["seine.dev/enrolled"].as_str();
        Ok(value.map(str::to_owned))
    }

    /// Waits until each pod says that it is, or is not, enrolled.
    pub(crate) fn await_enrolled(&self, pods: &[&str], wanted: bool) -> Result<()> {
        for pod in pods {
            within(PATIENCE, &format!("enrolment of {pod} is {wanted}"), || {
                let value = self.enrolled(pod)?;
                // A time, and no reason why not.
                let is = value.is_some_and(|value| value.starts_with("20"));
                Ok((is == wanted).then_some(()))
            })?;
        }
        Ok(())
    }

    /// A pod's address.
    pub(crate) fn address(&self, pod: &str) -> Result<String> {
        let (namespace, name) = split(pod)?;
        let pod = self.cluster.get(&["-n", namespace, "pod", name])?;
        let address = pod["status"]["podIP"].as_str();
        Ok(address.context("no address yet")?.to_owned())
    }

    /// The lines of all ztunnels that contain all of these.
    pub(crate) fn ztunnel_lines(&self, needles: &[&str]) -> Result<Vec<String>> {
        let log = self.logs("seine-ztunnel")?;
        let found = log
            .lines()
            .filter(|line| needles.iter().all(|needle| line.contains(needle)));
        Ok(found.map(str::to_owned).collect())
    }

    fn logs(&self, name: &str) -> Result<String> {
        let label = format!("app.kubernetes.io/name={name}");
        let words = ["-n", SYSTEM, "logs", "--tail=-1", "--prefix", "-l", &label];
        self.cluster.kubectl(&words)
    }

    /// A condition of an object: status, reason, message, observedGeneration.
    pub(crate) fn condition(&self, object: &[&str], kind: &str) -> Result<Option<Value>> {
        let object = self.cluster.get(object)?;
        let conditions = object["status"]["conditions"].as_array();
        let mut conditions = conditions.into_iter().flatten();
        Ok(conditions.find(|one| one["type"] == kind).cloned())
    }

    /// Starts a capture of all that goes through a node's link.
    pub(crate) fn capture(&self, node: &str) -> Result<Wire> {
        let file = tempfile::NamedTempFile::new()?;
        let net = format!("--net=/run/netns/cluster-{}-{node}", self.cluster.name());
        let child = Command::new("nsenter")
            .arg(net)
            .args(["tcpdump", "-i", "eth0", "--immediate-mode", "-n", "-U"])
            .args(["-s", "0", "-Z", "root", "-w"])
            .arg(file.path())
            .arg("tcp")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting tcpdump")?;
        let wire = Wire { child, file };
        // The header of the file comes when it captures.
        within(30, "tcpdump captures", || {
            Ok((wire.file.path().metadata()?.len() >= 24).then_some(()))
        })?;
        Ok(wire)
    }

    /// What is in the metadata of every pod of a namespace under an annotation's name.
    pub(crate) fn annotations(&self, namespace: &str) -> Result<BTreeMap<String, String>> {
        let pods = self.cluster.get(&["-n", namespace, "pods"])?;
        let mut found = BTreeMap::new();
        for pod in pods["items"].as_array().into_iter().flatten() {
            let own = pod["metadata"]["annotations"].as_object();
            for (key, value) in own.into_iter().flatten() {
                if key.contains("seine.dev/") {
                    found.insert(
                        format!("{} {key}", pod["metadata"]["name"]),
                        value.to_string(),
                    );
                }
            }
        }
        Ok(found)
    }
}

impl Shared for Bed {
    fn last_words(&self) -> String {
        let pods = self.cluster.kubectl(&["get", "pods", "-A", "-o", "wide"]);
        let mut text = pods.unwrap_or_default();
        for name in ["seine-control", "seine-agent", "seine-ztunnel"] {
            let log = self.logs(name).unwrap_or_default();
            let lines: Vec<_> = log.lines().collect();
            text += &format!("  --- {name}\n");
            for line in &lines[lines.len().saturating_sub(12)..] {
                text += &format!("  {line}\n");
            }
        }
        text
    }
}

/// A capture that runs.
pub(crate) struct Wire {
    child: Child,
    file: tempfile::NamedTempFile,
}

impl Wire {
    /// Ends it; what it has.
    pub(crate) fn end(mut self) -> Result<Capture> {
        kill(
            Pid::from_raw(i32::try_from(self.child.id())?),
            Signal::SIGTERM,
        )?;
        self.child.wait()?;
        Capture::read(self.file.path())
    }
}

fn split(pod: &str) -> Result<(&str, &str)> {
    pod.split_once('/')
        .with_context(|| format!("{pod} has no namespace"))
}

/// Where the cgroup v2 hierarchy is: below v1's, or alone.
fn cgroup2() -> Result<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ').skip(1);
            let place = words.next()?;
            (words.next()? == "cgroup2").then(|| PathBuf::from(place))
        })
        .next()
        .context("no cgroup v2 is mounted")
}
