//! The local API between the plugin and the agent: one JSON message each way over a SEQPACKET
//! Unix socket, the network namespace's descriptor in `SCM_RIGHTS` with `ADD` and `CHECK`.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

/// The largest message in bytes, either way.
pub const MAX_MESSAGE: usize = 128 * 1024;

/// What the plugin asks of the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "UPPERCASE")]
pub enum Request {
    /// A pod's network namespace is ready: know the pod, and enrol it where it is opted in. Comes
    /// with one descriptor, the network namespace.
    Add(Attachment),
    /// The pod's sandbox is being taken down.
    Del {
        /// The runtime's identifier of the pod's sandbox.
        #[serde(rename = "containerId")]
        container_id: String,
    },
    /// Is the pod in the state that it should be in? Comes with one descriptor, as `Add`.
    Check(Attachment),
    /// Can the agent enrol pods?
    Status,
    /// Every sandbox that is not listed is gone.
    Gc {
        /// The runtime's identifiers of the sandboxes that exist.
        #[serde(rename = "validContainers")]
        valid_containers: Vec<String>,
    },
}

/// One pod's network, as the runtime and the plugins before this one describe it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Attachment {
    /// The runtime's identifier of the pod's sandbox.
    pub container_id: String,
    /// Path of the network namespace, by which the agent finds it again after a restart.
    pub netns: PathBuf,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's UID; some runtimes don't tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The pod's addresses.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// Interfaces on the host's side that the plugins before this one made for the pod.
    #[serde(default)]
    pub host_interfaces: Vec<String>,
}

/// What the agent answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "camelCase")]
pub enum Response {
    /// The pod is enrolled: its connections go through ztunnel.
    Enrolled,
    /// The pod may start, and is not part of the mesh.
    NotEnrolled {
        /// Why not: not opted in, or refused and for what.
        reason: String,
    },
    /// Done, where there is nothing to tell.
    Done,
    /// It failed; a pod must not start.
    Failed {
        /// What failed, on which object, and what to do.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_back_as_it_was_written() {
        let add = Request::Add(Attachment {
            container_id: "c1".into(),
            netns: "/run/netns/x".into(),
            namespace: "shop".into(),
            name: "web".into(),
            uid: None,
            ips: vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()],
            host_interfaces: vec!["veth1".into()],
        });
        for request in [
            add,
            Request::Status,
            Request::Del {
                container_id: "c1".into(),
            },
        ] {
            let text = serde_json::to_string(&request).unwrap();
            assert_eq!(
                serde_json::from_str::<Request>(&text).unwrap(),
                request,
                "{text}"
            );
        }
    }
}
