//! The command lines of the mesh's programs.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use super::{CLUSTER, CONTROL_PORT, DRAIN, Mesh, Place, SERVER_NAME, SYSTEM, TRUST_DOMAIN};
use crate::gateway::WaypointProgram;
use crate::protocol::Component;
use crate::token;

/// Settings that waypoints take from the lab's own environment, as they do from the chart's values.
const SETTINGS: [&str; 5] = [
    "SEINE_LOG",
    "SEINE_METRIC_NAMES",
    "SEINE_OTLP_ENDPOINT",
    "SEINE_OTLP_METRICS_INTERVAL_MS",
    "SEINE_TRACE_SAMPLING",
];

impl Mesh {
    /// The environment that a program gets besides the lab's own. A peer's node proxy takes all
    /// of its settings from there, by the names that its own deployment sets.
    pub(super) fn environment(&self, place: Place, pod: &str, ip: IpAddr) -> Vec<(String, String)> {
        let pair = |name: &str, value: String| (name.to_owned(), value);
        if place.0 != Component::Ztunnel || self.peer_ztunnel.is_none() {
            return vec![
                pair("SEINE_POD_NAME", pod.to_owned()),
                pair("SEINE_POD_NAMESPACE", SYSTEM.to_owned()),
                pair("SEINE_POD_IP", ip.to_string()),
            ];
        }
        let node = place.1.unwrap_or(1);
        let path = |path: PathBuf| path.display().to_string();
        let roots = path(self.layout.ca().join("root-cert.pem"));
        vec![
            pair("XDS_ADDRESS", self.control_url()),
            pair("CA_ADDRESS", self.control_url()),
            pair("XDS_ROOT_CA", roots.clone()),
            pair("CA_ROOT_CA", roots),
            pair("ALT_XDS_HOSTNAME", SERVER_NAME.to_owned()),
            pair("ALT_CA_HOSTNAME", SERVER_NAME.to_owned()),
            pair("AUTH_TOKEN", path(self.token_file(place))),
            pair("CLUSTER_ID", CLUSTER.to_owned()),
            pair("NODE_NAME", format!("node{node}")),
            pair("POD_NAME", pod.to_owned()),
            pair("POD_NAMESPACE", SYSTEM.to_owned()),
            pair("INSTANCE_IP", ip.to_string()),
            pair("PROXY_MODE", "shared".to_owned()),
            pair("INPOD_ENABLED", "true".to_owned()),
            pair(
                "INPOD_UDS",
                path(self.layout.node(node).join("run/ztunnel.sock")),
            ),
            pair("ISTIO_META_DNS_CAPTURE", "true".to_owned()),
            pair("RUST_LOG", "info".to_owned()),
        ]
    }

    /// What waypoints are started with.
    pub fn waypoint(&self) -> WaypointProgram {
        WaypointProgram {
            program: self.binaries.join("seine-waypoint"),
            control: self.control_url(),
            server_name: SERVER_NAME.to_owned(),
            roots: self.layout.ca().join("root-cert.pem"),
            environment: std::env::vars()
                .filter(|(name, _)| SETTINGS.contains(&name.as_str()))
                .collect(),
        }
    }

    fn control_url(&self) -> String {
        let address = SocketAddr::new(self.addresses.control_v4().into(), CONTROL_PORT);
        format!("https://{address}")
    }

    /// As `/proc/PID/cgroup` names it.
    fn cgroup_as_in_proc(&self, place: Place) -> String {
        let cgroup = self.cgroup(place);
        let mount = self.layout.cgroup.parent().unwrap_or(Path::new("/"));
        let below = cgroup.strip_prefix(mount).unwrap_or(&cgroup);
        format!("/{}", below.display())
    }

    pub(super) fn command(&self, place: Place) -> Vec<String> {
        let control = self.control_url();
        let path = |path: PathBuf| path.display().to_string();
        let binary = |name: &str| path(self.binaries.join(name));
        let objects = path(self.layout.objects());
        let ca = self.layout.ca();
        if let (Component::Ztunnel, Some(peer)) = (place.0, &self.peer_ztunnel) {
            return vec![path(peer.clone()), "proxy".to_owned(), "ztunnel".to_owned()];
        }
        let words: Vec<String> = match place {
            (Component::Control, _) => vec![
                binary("seine-control"),
                "--directory".into(),
                objects,
                "--listen".into(),
                SocketAddr::new(self.addresses.control_v4().into(), CONTROL_PORT).to_string(),
                "--ca-dir".into(),
                path(ca),
                "--token-public-key".into(),
                path(self.issuer.public_key().to_owned()),
                "--token-issuer".into(),
                token::ISSUER.into(),
                "--token-audience".into(),
                token::AUDIENCE.into(),
                "--trust-domain".into(),
                TRUST_DOMAIN.into(),
                "--cluster-id".into(),
                CLUSTER.into(),
                "--server-name".into(),
                SERVER_NAME.into(),
                "--trusted-account".into(),
                format!("{SYSTEM}/seine-ztunnel"),
                "--admin-address".into(),
                "127.0.0.1:15014".into(),
            ],
            (Component::Agent, node) => {
                let node = node.unwrap_or(1);
                let own = self.layout.node(node);
                vec![
                    binary("seine-agent"),
                    "run".into(),
                    "--node".into(),
                    format!("node{node}"),
                    "--directory".into(),
                    objects,
                    "--pods-cgroup".into(),
                    path(self.layout.pods_cgroup(node)),
                    "--ztunnel-cgroup".into(),
                    path(self.cgroup((Component::Ztunnel, Some(node)))),
                    "--kubelet-cgroup".into(),
                    path(self.layout.kubelet_cgroup(node)),
                    "--bpffs".into(),
                    path(own.join("bpffs")),
                    "--run-dir".into(),
                    path(own.join("run")),
                    "--state-dir".into(),
                    path(own.join("agent")),
                    "--admin-address".into(),
                    "127.0.0.1:15010".into(),
                    "--listeners".into(),
                    // A peer's proxy takes none over.
                    if self.peer_ztunnel.is_some() {
                        "ztunnel".into()
                    } else {
                        "agent".into()
                    },
                ]
            }
            (Component::Ztunnel, node) => {
                let node = node.unwrap_or(1);
                let own = self.layout.node(node);
                vec![
                    binary("seine-ztunnel"),
                    "--node".into(),
                    format!("node{node}"),
                    "--xds-address".into(),
                    control.clone(),
                    "--ca-address".into(),
                    control,
                    "--ca-roots".into(),
                    path(ca.join("root-cert.pem")),
                    "--server-name".into(),
                    SERVER_NAME.into(),
                    "--token-file".into(),
                    path(self.token_file(place)),
                    "--trust-domain".into(),
                    TRUST_DOMAIN.into(),
                    "--cluster-id".into(),
                    CLUSTER.into(),
                    "--zds-socket".into(),
                    path(own.join("run/ztunnel.sock")),
                    "--listeners-socket".into(),
                    path(own.join("run/listeners.sock")),
                    "--handover-socket".into(),
                    path(own.join("run/handover.sock")),
                    "--agent-cgroup".into(),
                    self.cgroup_as_in_proc((Component::Agent, Some(node))),
                    "--state-dir".into(),
                    path(own.join("ztunnel")),
                    // As the cluster's resolv.conf would say, which a pod of a cluster has.
                    "--dns-upstream".into(),
                    SocketAddr::new(self.addresses.dns().0.into(), 53).to_string(),
                    "--drain-deadline".into(),
                    format!("{}s", DRAIN.as_secs()),
                ]
            }
        };
        words
    }
}
