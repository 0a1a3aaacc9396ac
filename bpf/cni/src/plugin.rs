//! The commands of the CNI specification, and the decision whether a pod may start.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;

use seine_objects::Enrolment;
use seine_objects::EnrolmentSettings;

use crate::api::Attachment;
use crate::api::Request;
use crate::api::Response;
use crate::api_server;
use crate::api_server::PodName;
use crate::client::Client;
use crate::config::Config;
use crate::config::DEFAULT_VERSION;
use crate::config::SUPPORTED;
use crate::config::facts;
use crate::error::CniError;
use crate::last_known::LastKnown;
use crate::last_known::NamespaceState;

/// The `CNI_*` variables.
#[derive(Clone, Debug, Default)]
pub struct Environment(pub HashMap<String, String>);

impl Environment {
    /// From the process's own environment.
    pub fn of_process() -> Self {
        Self(
            std::env::vars_os()
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .filter(|(name, _)| name.starts_with("CNI_"))
                .collect(),
        )
    }

    fn required(&self, name: &str) -> Result<&str, CniError> {
        self.0
            .get(name)
            .map(String::as_str)
            .filter(|v| !v.is_empty())
            .ok_or_else(|| {
                CniError::new(
                    CniError::INVALID_ENVIRONMENT,
                    format!("{name} is not set"),
                    "",
                )
            })
    }

    /// A value of `CNI_ARGS`, `KEY=VALUE;KEY=VALUE`.
    fn argument(&self, key: &str) -> Option<&str> {
        self.0
            .get("CNI_ARGS")?
            .split(';')
            .filter_map(|pair| pair.split_once('='))
            .find(|(k, _)| *k == key)
            .map(|(_, v)| v)
            .filter(|v| !v.is_empty())
    }

    fn pod(&self, key: &str) -> Result<&str, CniError> {
        self.argument(key).ok_or_else(|| {
            CniError::new(
                CniError::INVALID_ENVIRONMENT,
                format!("CNI_ARGS has no {key}"),
                "the container runtime of a Kubernetes node sets it",
            )
        })
    }
}

/// Runs the command that the environment names. `Ok` is what goes to standard output; notes for
/// the runtime's log go to `note`.
///
/// # Errors
///
/// [`CniError`], to be printed as [`CniError::to_json`] with exit status 1.
pub fn run(
    environment: &Environment,
    input: &str,
    note: &mut dyn FnMut(String),
) -> Result<String, CniError> {
    match environment.required("CNI_COMMAND")? {
        "VERSION" => Ok(version(input)),
        "ADD" => {
            let config = Config::parse(input)?;
            add(environment, &config, note)
        }
        "CHECK" => {
            let config = Config::parse(input)?;
            check(environment, &config, note)?;
            Ok(String::new())
        }
        "DEL" => {
            delete(environment, &Config::parse(input)?, note)?;
            Ok(String::new())
        }
        "STATUS" => {
            status(&Config::parse(input)?, note)?;
            Ok(String::new())
        }
        "GC" => {
            collect_garbage(&Config::parse(input)?, note);
            Ok(String::new())
        }
        other => Err(CniError::new(
            CniError::INVALID_ENVIRONMENT,
            format!("CNI_COMMAND {other:?} is not a command of the CNI specification"),
            "ADD, DEL, CHECK, STATUS, GC or VERSION",
        )),
    }
}

fn version(input: &str) -> String {
    let asked = serde_json::from_str::<serde_json::Value>(input)
        .ok()
        .and_then(|v| Some(v.get("cniVersion")?.as_str()?.to_owned()))
        .filter(|v| SUPPORTED.contains(&v.as_str()));
    serde_json::json!({
        "cniVersion": asked.as_deref().unwrap_or(DEFAULT_VERSION),
        "supportedVersions": SUPPORTED,
    })
    .to_string()
}

fn attachment(environment: &Environment, config: &Config) -> Result<(Attachment, File), CniError> {
    let netns = environment.required("CNI_NETNS")?;
    let (ips, host_interfaces) = facts(config.previous()?);
    let attachment = Attachment {
        container_id: environment.required("CNI_CONTAINERID")?.to_owned(),
        netns: netns.into(),
        namespace: environment.pod("K8S_POD_NAMESPACE")?.to_owned(),
        name: environment.pod("K8S_POD_NAME")?.to_owned(),
        uid: environment.argument("K8S_POD_UID").map(str::to_owned),
        ips,
        host_interfaces,
    };
    let file = File::open(netns).map_err(|error| {
        CniError::new(
            CniError::IO_FAILURE,
            format!("open the network namespace {netns} of CNI_NETNS: {error}"),
            "",
        )
    })?;
    Ok((attachment, file))
}

fn add(
    environment: &Environment,
    config: &Config,
    note: &mut dyn FnMut(String),
) -> Result<String, CniError> {
    let (pod, netns) = attachment(environment, config)?;
    let previous = config.previous()?.to_string();
    let name = format!("pod {}/{}", pod.namespace, pod.name);
    let id = pod.clone();
    let client = Client::new(&config.agent_socket, config.timeout());
    let failure = match client.call(&Request::Add(pod), Some(netns.as_fd())) {
        Ok(Response::Enrolled | Response::Done) => return Ok(previous),
        Ok(Response::NotEnrolled { reason }) => {
            note(format!("{name} is not enrolled: {reason}"));
            return Ok(previous);
        }
        Ok(Response::Failed { reason }) => CniError::new(
            CniError::NOT_ENROLLED,
            format!("{name} can't be enrolled in the mesh: {reason}"),
            "the seine-agent of this node has the details in its log and at /status",
        ),
        Err(error) => match without_agent(config, named(&id)) {
            Ok(()) => {
                note(format!(
                    "{name} starts without the agent, since it is not opted in: {error}"
                ));
                return Ok(previous);
            }
            Err(why) => CniError::new(
                CniError::TRY_AGAIN_LATER,
                format!("{name} waits for the mesh's node agent: {why}"),
                format!("{error}; is the seine-agent of this node running?"),
            ),
        },
    };
    if config.always_starts(&id.namespace) {
        note(format!(
            "{name} starts all the same, as every pod of its namespace: {failure}: {}",
            failure.details
        ));
        return Ok(previous);
    }
    Err(failure)
}

fn named(pod: &Attachment) -> PodName<'_> {
    PodName {
        namespace: &pod.namespace,
        name: &pod.name,
        uid: pod.uid.as_deref(),
    }
}

/// May this pod start while the agent is away? `Err` says why it has to wait.
fn without_agent(config: &Config, pod: PodName<'_>) -> Result<(), String> {
    let namespace = pod.namespace;
    let state_file = &config.state_file;
    let known = LastKnown::read(state_file)
        .map_err(|error| format!("what it last knew, {}: {error}", state_file.display()))?;
    if pod
        .uid
        .is_some_and(|uid| known.pods_not_opted_in.contains(uid))
    {
        return Ok(());
    }
    match known.namespaces.get(namespace) {
        Some(NamespaceState::NotOptedIn) => Ok(()),
        Some(NamespaceState::OptedIn) => Err(format!("namespace {namespace} is opted in")),
        None => ask(config, &known, pod)
            .map_err(|why| format!("the agent has not seen namespace {namespace} yet, and {why}")),
    }
}

/// The namespace was made while the agent was away: the API server knows whether it is opted in.
fn ask(config: &Config, known: &LastKnown, pod: PodName<'_>) -> Result<(), String> {
    let Some(kubeconfig) = &config.kubeconfig else {
        return Err("there is no API server to ask whether it is opted in".into());
    };
    let settings = EnrolmentSettings {
        istio_alias: known.istio_alias,
        ..EnrolmentSettings::default()
    };
    match api_server::ask(kubeconfig, config.api_timeout(), pod, &settings) {
        Ok(Enrolment::NotOptedIn | Enrolment::Refused(_)) => Ok(()),
        Ok(Enrolment::Enrolled) => Err("the API server says that the pod is opted in".into()),
        Err(error) => Err(format!(
            "the API server does not say whether it is opted in: {error}"
        )),
    }
}

fn check(
    environment: &Environment,
    config: &Config,
    note: &mut dyn FnMut(String),
) -> Result<(), CniError> {
    let (pod, netns) = attachment(environment, config)?;
    let name = format!("pod {}/{}", pod.namespace, pod.name);
    let id = pod.clone();
    match Client::new(&config.agent_socket, config.timeout())
        .call(&Request::Check(pod), Some(netns.as_fd()))
    {
        Ok(Response::Failed { reason }) => Err(CniError::new(
            CniError::NOT_ENROLLED,
            format!("{name} is not in the state that it should be in: {reason}"),
            "",
        )),
        Ok(_) => Ok(()),
        Err(error)
            if config.always_starts(&id.namespace) || without_agent(config, named(&id)).is_ok() =>
        {
            note(format!("{name} was not checked: {error}"));
            Ok(())
        }
        Err(error) => Err(CniError::new(
            CniError::TRY_AGAIN_LATER,
            format!("{name} can't be checked: {error}"),
            "is the seine-agent of this node running?",
        )),
    }
}

/// Always succeeds: what the agent misses while it is away it finds when it starts, since the
/// network namespace is gone then.
fn delete(
    environment: &Environment,
    config: &Config,
    note: &mut dyn FnMut(String),
) -> Result<(), CniError> {
    let container_id = environment.required("CNI_CONTAINERID")?.to_owned();
    match Client::new(&config.agent_socket, config.timeout())
        .call(&Request::Del { container_id }, None)
    {
        Ok(Response::Failed { reason }) => {
            note(format!("the agent could not forget the pod: {reason}"))
        }
        Ok(_) => {}
        Err(error) => note(format!(
            "the agent will find out later that the pod is gone: {error}"
        )),
    }
    Ok(())
}

/// With the agent away the plugin still works, for pods that are not opted in; a failing STATUS
/// would make the runtime keep back those too. So it fails only where neither way is open.
fn status(config: &Config, note: &mut dyn FnMut(String)) -> Result<(), CniError> {
    let away =
        match Client::new(&config.agent_socket, config.timeout()).call(&Request::Status, None) {
            Ok(Response::Failed { reason }) => reason,
            Ok(_) => return Ok(()),
            Err(error) => error.to_string(),
        };
    note(format!("opted-in pods wait: {away}"));
    if config.always_start_namespaces.is_empty() && LastKnown::read(&config.state_file).is_err() {
        return Err(CniError::new(
            50,
            "neither the node agent nor what it last knew is there, so no pod can start",
            away,
        ));
    }
    Ok(())
}

fn collect_garbage(config: &Config, note: &mut dyn FnMut(String)) {
    let Some(valid) = &config.valid_attachments else {
        return;
    };
    let valid_containers = valid.iter().map(|v| v.container_id.clone()).collect();
    if let Err(error) = Client::new(&config.agent_socket, config.timeout())
        .call(&Request::Gc { valid_containers }, None)
    {
        note(format!(
            "the agent finds out by itself which pods are gone: {error}"
        ));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Environment {
        Environment(
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect(),
        )
    }

    #[test]
    fn cni_args_are_read_by_key() {
        let e = environment(&[(
            "CNI_ARGS",
            "IgnoreUnknown=1;K8S_POD_NAME=web;K8S_POD_UID=;junk",
        )]);
        assert_eq!(e.pod("K8S_POD_NAME").unwrap(), "web");
        assert_eq!(e.argument("K8S_POD_UID"), None);
        assert_eq!(
            e.pod("K8S_POD_NAMESPACE").unwrap_err().code,
            CniError::INVALID_ENVIRONMENT
        );
    }

    #[test]
    fn without_the_agent_only_what_is_known_not_to_be_opted_in_starts() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("n.json");
        let config = json!({"stateFile": file}).to_string();
        let config = Config::parse(&config).unwrap();
        let without_agent = |namespace, uid| {
            let name = "web";
            let pod = PodName {
                namespace,
                name,
                uid,
            };
            without_agent(&config, pod)
        };
        assert!(without_agent("plain", None).is_err());
        let mut known = LastKnown::default();
        known
            .namespaces
            .insert("plain".into(), NamespaceState::NotOptedIn);
        known
            .namespaces
            .insert("shop".into(), NamespaceState::OptedIn);
        known.pods_not_opted_in.insert("u-out".into());
        known.write(&file).unwrap();
        assert_eq!(without_agent("plain", None), Ok(()));
        assert_eq!(without_agent("shop", Some("u-out")), Ok(()));
        assert!(without_agent("shop", Some("u-other")).is_err());
        assert!(
            without_agent("shop", None)
                .unwrap_err()
                .contains("opted in")
        );
        let why = without_agent("new", None).unwrap_err();
        assert!(
            why.contains("not seen") && why.contains("no API server"),
            "{why}"
        );
    }
}
