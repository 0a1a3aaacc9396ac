//! One container: its process, restarts and probes.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Container, EnvVarSource, Probe};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio_util::sync::CancellationToken;

use crate::cgroup;
use crate::enter::Enter;
use crate::keeper::exit_code;
use crate::kubelet::{Machine, Reporter};
use crate::pod::{Phase, PodView};
use crate::prober::Check;
use crate::volumes::Sources;

/// Until a container is ready for the first time it is asked this often, so that a lab is up
/// as soon as its pods are; afterwards as often as its probe says.
const EAGER_PERIOD: Duration = Duration::from_millis(200);

/// What one container needs to run.
#[derive(Clone)]
pub struct ContainerTask {
    /// What all pods share.
    pub machine: Machine,
    /// Its pod.
    pub pod: PodView,
    /// Its specification.
    pub container: Container,
    /// Its place in the pod's report; init containers have none.
    pub index: Option<usize>,
    /// The process that holds the pod's namespaces.
    pub sandbox: Option<i32>,
    /// Its environment.
    pub environment: BTreeMap<String, String>,
    /// Where changes are reported.
    pub reporter: Reporter,
    /// Cancelled when the pod is to end.
    pub stop: CancellationToken,
}

impl ContainerTask {
    /// Runs the container until the pod ends or its restart policy is content.
    pub async fn run(self) {
        let policy = self
            .pod
            .desired
            .spec
            .restart_policy
            .as_deref()
            .unwrap_or("Always");
        let mut backoff = Duration::from_millis(500);
        loop {
            let Some(code) = self.run_once().await else {
                return;
            };
            let again = match policy {
                "Never" => false,
                "OnFailure" => code != 0,
                _ => true,
            };
            self.report(|state| {
                state.ready = false;
                state.phase = if again {
                    Phase::Waiting
                } else {
                    Phase::Ended(code)
                };
            });
            if !again {
                return;
            }
            let message = format!("container {}: exit status {code}", self.container.name);
            tracing::info!(pod = %self.pod.key(), "{message}");
            self.reporter.update(|state| state.message = Some(message));
            tokio::select! {
                () = tokio::time::sleep(backoff) => {}
                () = self.stop.cancelled() => return,
            }
            backoff = (backoff * 2).min(Duration::from_secs(10));
            self.report(|state| state.restarts += 1);
        }
    }

    /// Runs the process once; its exit code, or `None` when the pod is to end.
    pub async fn run_once(&self) -> Option<i32> {
        let mut child = match self.spawn() {
            Ok(child) => child,
            Err(error) => {
                tracing::warn!(pod = %self.pod.key(), "{error:#}");
                self.reporter
                    .update(|state| state.message = Some(format!("{error:#}")));
                return Some(128);
            }
        };
        let probes = CancellationToken::new();
        let unhealthy = CancellationToken::new();
        if self.index.is_some() {
            let has_gate =
                self.container.readiness_probe.is_some() || self.container.startup_probe.is_some();
            self.report(|state| {
                state.phase = Phase::Running;
                state.ready = !has_gate;
            });
            tokio::spawn(self.clone().probe(probes.clone(), unhealthy.clone()));
        }
        let code = tokio::select! {
            status = child.wait() => Some(status.map_or(128, exit_code)),
            () = unhealthy.cancelled() => {
                self.terminate(&mut child).await;
                Some(137)
            }
            () = self.stop.cancelled() => {
                self.report(|state| state.ready = false);
                self.terminate(&mut child).await;
                None
            }
        };
        probes.cancel();
        // What the process left running is part of it.
        let _ = cgroup::kill(&self.cgroup());
        code
    }

    fn report(&self, change: impl FnOnce(&mut crate::pod::ContainerState)) {
        if let Some(index) = self.index {
            self.reporter.container(index, change);
        }
    }

    fn cgroup(&self) -> PathBuf {
        let pod = self.machine.layout.pod_cgroup(self.pod.node, &self.pod.uid);
        pod.join(&self.container.name)
    }

    fn enter(&self) -> Enter {
        let spec = &self.pod.desired.spec;
        let own = self.container.security_context.as_ref();
        let pods = spec.security_context.as_ref();
        let number = |own: Option<i64>, pods: Option<i64>| {
            own.or(pods).and_then(|number| u32::try_from(number).ok())
        };
        Enter {
            cgroup: self.cgroup(),
            netns: None,
            sandbox: self.sandbox,
            user: number(
                own.and_then(|c| c.run_as_user),
                pods.and_then(|c| c.run_as_user),
            ),
            group: number(
                own.and_then(|c| c.run_as_group),
                pods.and_then(|c| c.run_as_group),
            ),
            directory: self.container.working_dir.clone().map(PathBuf::from),
            death_signal: None,
        }
    }

    fn command(&self) -> Vec<String> {
        self.container
            .command
            .iter()
            .chain(&self.container.args)
            .flatten()
            .map(|word| substitute(word, &self.environment))
            .collect()
    }

    fn spawn(&self) -> Result<Child> {
        let command = self.command();
        anyhow::ensure!(
            !command.is_empty(),
            "container {}: field 'command' is missing (the lab runs local programs, not images)",
            self.container.name
        );
        cgroup::create(&self.cgroup())?;
        let log = self.log()?;
        Command::new(&self.machine.program)
            .args(self.enter().arguments(&command)?)
            .env_clear()
            .envs(&self.environment)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting container {}", self.container.name))
    }

    fn log(&self) -> Result<File> {
        let desired = &self.pod.desired;
        let path = self.machine.layout.container_log(
            &desired.namespace,
            &desired.name,
            &self.container.name,
        );
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))
    }

    /// SIGTERM, then after the grace period SIGKILL.
    async fn terminate(&self, child: &mut Child) {
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let grace = self
            .pod
            .desired
            .spec
            .termination_grace_period_seconds
            .unwrap_or(30);
        let grace = Duration::from_secs(u64::try_from(grace).unwrap_or_default());
        if tokio::time::timeout(grace, child.wait()).await.is_err() {
            let _ = cgroup::kill(&self.cgroup());
            let _ = child.wait().await;
        }
    }

    /// Startup, then readiness and liveness, until the process has ended.
    async fn probe(self, ended: CancellationToken, unhealthy: CancellationToken) {
        tokio::select! {
            () = ended.cancelled() => {}
            () = self.probe_all(unhealthy) => {}
        }
    }

    async fn probe_all(&self, unhealthy: CancellationToken) {
        if let Some(probe) = &self.container.startup_probe {
            sleep_seconds(probe.initial_delay_seconds).await;
            let allowed = probe.failure_threshold.unwrap_or(3);
            let budget = Duration::from_secs(
                u64::try_from(allowed * probe.period_seconds.unwrap_or(10)).unwrap_or(30),
            );
            let deadline = tokio::time::Instant::now() + budget;
            while let Err(why) = self.ask(probe).await {
                if tokio::time::Instant::now() >= deadline {
                    self.note("startup", &why);
                    unhealthy.cancel();
                    return;
                }
                tokio::time::sleep(EAGER_PERIOD).await;
            }
            if self.container.readiness_probe.is_none() {
                self.report(|state| state.ready = true);
            }
        }
        let readiness = async {
            match &self.container.readiness_probe {
                Some(probe) => self.watch_readiness(probe).await,
                None => std::future::pending().await,
            }
        };
        let liveness = async {
            match &self.container.liveness_probe {
                Some(probe) => self.watch_liveness(probe).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = readiness => {}
            () = liveness => unhealthy.cancel(),
        }
    }

    async fn watch_readiness(&self, probe: &Probe) {
        sleep_seconds(probe.initial_delay_seconds).await;
        let (mut ready, mut ever) = (false, false);
        let (mut successes, mut failures) = (0, 0);
        loop {
            match self.ask(probe).await {
                Ok(()) => (successes, failures) = (successes + 1, 0),
                Err(why) => {
                    (successes, failures) = (0, failures + 1);
                    if ready {
                        self.note("readiness", &why);
                    }
                }
            }
            if !ready && successes >= probe.success_threshold.unwrap_or(1) {
                (ready, ever) = (true, true);
                self.report(|state| state.ready = true);
                self.reporter.update(|state| state.message = None);
            } else if ready && failures >= probe.failure_threshold.unwrap_or(3) {
                ready = false;
                self.report(|state| state.ready = false);
            }
            if ever {
                sleep_seconds(probe.period_seconds.or(Some(10))).await;
            } else {
                tokio::time::sleep(EAGER_PERIOD).await;
            }
        }
    }

    /// Returns when the container is to be restarted.
    async fn watch_liveness(&self, probe: &Probe) {
        sleep_seconds(probe.initial_delay_seconds).await;
        let mut failures = 0;
        loop {
            match self.ask(probe).await {
                Ok(()) => failures = 0,
                Err(why) => {
                    failures += 1;
                    self.note("liveness", &why);
                }
            }
            if failures >= probe.failure_threshold.unwrap_or(3) {
                return;
            }
            sleep_seconds(probe.period_seconds.or(Some(10))).await;
        }
    }

    fn note(&self, kind: &str, why: &str) {
        let message = format!("container {}: {kind} probe: {why}", self.container.name);
        tracing::info!(pod = %self.pod.key(), "{message}");
        self.reporter.update(|state| state.message = Some(message));
    }

    async fn ask(&self, probe: &Probe) -> Result<(), String> {
        let timeout = Duration::from_secs(
            u64::try_from(probe.timeout_seconds.unwrap_or(1))
                .unwrap_or(1)
                .max(1),
        );
        if let Some(exec) = &probe.exec {
            return self
                .ask_exec(exec.command.clone().unwrap_or_default(), timeout)
                .await;
        }
        let check = Check::from_probe(probe, &self.pod, &self.container)?;
        self.machine.probers[usize::from(self.pod.node) - 1]
            .ask(check, timeout)
            .await
    }

    async fn ask_exec(&self, command: Vec<String>, timeout: Duration) -> Result<(), String> {
        let run = async {
            let status = Command::new(&self.machine.program)
                .args(self.enter().arguments(&command)?)
                .env_clear()
                .envs(&self.environment)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .status()
                .await?;
            anyhow::ensure!(status.success(), "{status}");
            Ok(())
        };
        match tokio::time::timeout(timeout, run).await {
            Ok(result) => result.map_err(|error: anyhow::Error| format!("exec: {error:#}")),
            Err(_) => Err(format!("exec: no answer in {timeout:?}")),
        }
    }
}

async fn sleep_seconds(seconds: Option<i32>) {
    let seconds = u64::try_from(seconds.unwrap_or(0)).unwrap_or(0);
    if seconds > 0 {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }
}

/// The environment of a container: what images usually set, then the specification's.
pub fn environment(
    pod: &PodView,
    container: &Container,
    sources: &Sources,
) -> BTreeMap<String, String> {
    let mut environment = BTreeMap::from([
        ("PATH".to_owned(), crate::SEARCH_PATH.to_owned()),
        ("HOME".to_owned(), "/root".to_owned()),
        ("HOSTNAME".to_owned(), pod.desired.name.clone()),
        ("LANG".to_owned(), "C.UTF-8".to_owned()),
    ]);
    for source in container.env_from.iter().flatten() {
        let data = match (&source.config_map_ref, &source.secret_ref) {
            (Some(map), _) => sources.config_maps.get(&map.name),
            (_, Some(secret)) => sources.secrets.get(&secret.name),
            _ => None,
        };
        let prefix = source.prefix.clone().unwrap_or_default();
        for (key, value) in data.into_iter().flatten() {
            environment.insert(
                format!("{prefix}{key}"),
                String::from_utf8_lossy(value).into_owned(),
            );
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) => Some(substitute(value, &environment)),
            (None, Some(source)) => from_source(pod, source, sources),
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            environment.insert(variable.name.clone(), value);
        }
    }
    environment
}

fn from_source(pod: &PodView, source: &EnvVarSource, sources: &Sources) -> Option<String> {
    let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    if let Some(reference) = &source.config_map_key_ref {
        return sources
            .config_maps
            .get(&reference.name)?
            .get(&reference.key)
            .map(text);
    }
    if let Some(reference) = &source.secret_key_ref {
        return sources
            .secrets
            .get(&reference.name)?
            .get(&reference.key)
            .map(text);
    }
    let path = &source.field_ref.as_ref()?.field_path;
    let desired = &pod.desired;
    let quoted = |prefix: &str| {
        path.strip_prefix(prefix)?
            .strip_prefix("['")?
            .strip_suffix("']")
            .map(str::to_owned)
    };
    Some(match path.as_str() {
        "metadata.name" => desired.name.clone(),
        "metadata.namespace" => desired.namespace.clone(),
        "metadata.uid" => pod.uid.clone(),
        "spec.nodeName" => format!("node{}", pod.node),
        "spec.serviceAccountName" => desired
            .spec
            .service_account_name
            .clone()
            .unwrap_or_else(|| "default".to_owned()),
        "status.hostIP" => pod.node_v4.to_string(),
        "status.podIP" => pod.v4.to_string(),
        "status.podIPs" => format!("{},{}", pod.v4, pod.v6),
        _ => match (quoted("metadata.labels"), quoted("metadata.annotations")) {
            (Some(label), _) => desired.labels.get(&label)?.clone(),
            (_, Some(annotation)) => desired.annotations.get(&annotation)?.clone(),
            _ => return None,
        },
    })
}

/// Puts variables in the place of `$(NAME)`; unknown ones stay, `$$` is one `$`.
fn substitute(text: &str, environment: &BTreeMap<String, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest
            .strip_prefix('(')
            .and_then(|inner| inner.split_once(')'))
            && let Some(value) = environment.get(name)
        {
            out.push_str(value);
            rest = after;
        } else {
            out.push('$');
        }
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_put_in_as_kubernetes_does() {
        let environment = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
        assert_eq!(
            substitute("x$(A)y$(B)$$(A)$A", &environment),
            "x1y$(B)$(A)$A"
        );
    }
}
