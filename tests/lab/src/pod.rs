//! A pod as the supervisor sees it, and as the API server would hold it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::SystemTime;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::clock::rfc3339;
use crate::expand::DesiredPod;
use crate::manifest::Key;

/// How far a container has come.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Phase {
    /// Not started; why not.
    #[default]
    Waiting,
    /// Its process runs.
    Running,
    /// Its process ended and stays so.
    Ended(i32),
}

/// One container's state.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct ContainerState {
    /// `spec.containers[].name`.
    pub name: String,
    /// How far it has come.
    pub phase: Phase,
    /// Its readiness probe says yes, or it has none and runs.
    pub ready: bool,
    /// How often its process was started again.
    pub restarts: u32,
}

/// What a pod's task reports of it.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PodReport {
    /// The sandbox is there and the pod is enrolled where it opted in.
    pub sandboxed: bool,
    /// The process that holds the pod's namespaces.
    pub sandbox: Option<i32>,
    /// Its containers, in the order of the specification.
    pub containers: Vec<ContainerState>,
    /// What went wrong last, if it stands in the way.
    pub message: Option<String>,
}

/// One pod, as the supervisor sees it.
#[derive(Clone, Debug)]
pub struct PodView {
    /// What it should be.
    pub desired: DesiredPod,
    /// `metadata.uid`.
    pub uid: String,
    /// The number of its node.
    pub node: u8,
    /// Number of its address on the node.
    pub host: u8,
    /// Its addresses.
    pub v4: Ipv4Addr,
    /// Its addresses.
    pub v6: Ipv6Addr,
    /// Since when it exists.
    pub created: SystemTime,
    /// It is being ended.
    pub terminating: bool,
    /// The node's addresses; equal to the pod's own where it is in the node's network.
    pub node_v4: Ipv4Addr,
    /// What its task says.
    pub report: PodReport,
}

impl PodView {
    /// The key of its object.
    pub fn key(&self) -> Key {
        Key::namespaced("Pod", &self.desired.namespace, &self.desired.name)
    }

    /// Its address of a family.
    pub fn address(&self, v6: bool) -> Option<IpAddr> {
        self.report
            .sandboxed
            .then(|| if v6 { self.v6.into() } else { self.v4.into() })
    }

    /// Whether it is in the node's network namespace.
    pub fn host_network(&self) -> bool {
        self.desired.spec.host_network == Some(true)
    }

    /// Whether all of its containers are ready.
    pub fn ready(&self) -> bool {
        let containers = &self.report.containers;
        !containers.is_empty() && containers.iter().all(|container| container.ready)
    }

    /// Whether all of its containers ended for good.
    pub fn finished(&self) -> bool {
        matches!(self.phase(), "Succeeded" | "Failed")
    }

    /// `status.phase`.
    pub fn phase(&self) -> &'static str {
        let containers = &self.report.containers;
        let ended = |c: &ContainerState| matches!(c.phase, Phase::Ended(_));
        if containers.is_empty() {
            "Pending"
        } else if containers.iter().all(|c| c.phase == Phase::Ended(0)) {
            "Succeeded"
        } else if containers.iter().all(ended) {
            "Failed"
        } else if containers
            .iter()
            .all(|c| c.phase == Phase::Waiting && c.restarts == 0)
        {
            "Pending"
        } else {
            "Running"
        }
    }

    /// The number of restarts of all of its containers.
    pub fn restarts(&self) -> u32 {
        self.report
            .containers
            .iter()
            .map(|container| container.restarts)
            .sum()
    }

    /// The Pod object, with status.
    pub fn object(&self) -> Value {
        let desired = &self.desired;
        let mut spec = desired.spec.clone();
        spec.node_name = Some(format!("node{}", self.node));
        spec.service_account_name
            .get_or_insert_with(|| "default".to_owned());
        spec.restart_policy
            .get_or_insert_with(|| "Always".to_owned());
        let mut metadata = json!({
            "name": desired.name,
            "namespace": desired.namespace,
            "uid": self.uid,
            "labels": desired.labels,
            "annotations": desired.annotations,
            "creationTimestamp": rfc3339(self.created),
        });
        if let Some(owner) = &desired.owner {
            metadata["ownerReferences"] = json!([{
                "apiVersion": owner.api_version,
                "kind": owner.kind,
                "name": owner.name,
                // The lab makes no objects of these kinds, so the name serves as uid.
                "uid": owner.name,
                "controller": true,
            }]);
        }
        if self.terminating {
            metadata["deletionTimestamp"] = json!(rfc3339(SystemTime::now()));
        }
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": metadata,
            "spec": spec,
            "status": self.status(),
        })
    }

    fn status(&self) -> Value {
        let word = |yes: bool| if yes { "True" } else { "False" };
        let conditions: Vec<Value> = [
            ("PodScheduled", true),
            ("Initialized", self.report.sandboxed),
            ("ContainersReady", self.ready()),
            ("Ready", self.ready()),
        ]
        .into_iter()
        .map(|(kind, yes)| json!({"type": kind, "status": word(yes)}))
        .collect();
        let containers: Vec<Value> = self
            .report
            .containers
            .iter()
            .map(|container| {
                let state = match container.phase {
                    Phase::Waiting => json!({"waiting": {"reason": "ContainerCreating"}}),
                    Phase::Running => json!({"running": {}}),
                    Phase::Ended(code) => json!({"terminated": {"exitCode": code}}),
                };
                json!({
                    "name": container.name,
                    "ready": container.ready,
                    "restartCount": container.restarts,
                    "started": container.phase == Phase::Running,
                    "image": "",
                    "imageID": "",
                    "state": state,
                })
            })
            .collect();
        let mut status = json!({
            "phase": self.phase(),
            "hostIP": self.node_v4,
            "hostIPs": [{"ip": self.node_v4}],
            "startTime": rfc3339(self.created),
            "conditions": conditions,
            "containerStatuses": containers,
        });
        if self.report.sandboxed {
            status["podIP"] = json!(self.v4);
            status["podIPs"] = json!([{"ip": self.v4}, {"ip": self.v6}]);
        }
        if let Some(message) = &self.report.message {
            status["message"] = json!(message);
        }
        status
    }

    /// The object as Kubernetes' own type, to check that it is one.
    pub fn typed(&self) -> Result<Pod, serde_json::Error> {
        serde_json::from_value(self.object())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::PodSpec;
    use std::collections::BTreeMap;

    fn view(containers: Vec<ContainerState>) -> PodView {
        PodView {
            desired: DesiredPod {
                namespace: "x".into(),
                name: "p".into(),
                labels: BTreeMap::new(),
                annotations: BTreeMap::new(),
                spec: PodSpec::default(),
                owner: None,
                revision: String::new(),
            },
            uid: "u".into(),
            node: 1,
            host: 2,
            v4: Ipv4Addr::new(10, 42, 65, 2),
            v6: Ipv6Addr::LOCALHOST,
            created: SystemTime::UNIX_EPOCH,
            terminating: false,
            node_v4: Ipv4Addr::new(10, 42, 0, 11),
            report: PodReport {
                sandboxed: true,
                containers,
                ..PodReport::default()
            },
        }
    }

    fn container(phase: Phase, ready: bool) -> ContainerState {
        ContainerState {
            name: "c".into(),
            phase,
            ready,
            restarts: 0,
        }
    }

    #[test]
    fn phase_and_readiness_follow_the_containers() {
        assert_eq!(view(vec![]).phase(), "Pending");
        assert!(!view(vec![]).ready());
        let running = view(vec![container(Phase::Running, true)]);
        assert_eq!(running.phase(), "Running");
        assert!(running.ready());
        let half = view(vec![
            container(Phase::Running, true),
            container(Phase::Waiting, false),
        ]);
        assert_eq!((half.phase(), half.ready()), ("Running", false));
        assert_eq!(
            view(vec![container(Phase::Ended(0), false)]).phase(),
            "Succeeded"
        );
        assert_eq!(
            view(vec![container(Phase::Ended(1), false)]).phase(),
            "Failed"
        );
    }

    #[test]
    fn the_object_is_a_pod_as_the_api_server_would_hold_it() {
        let pod = view(vec![container(Phase::Running, true)]).typed().unwrap();
        assert_eq!(pod.spec.unwrap().node_name.as_deref(), Some("node1"));
        let status = pod.status.unwrap();
        assert_eq!(status.pod_ip.as_deref(), Some("10.42.65.2"));
        assert_eq!(status.pod_ips.unwrap().len(), 2);
    }
}
