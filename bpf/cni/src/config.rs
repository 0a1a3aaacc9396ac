//! The plugin's configuration, as the runtime passes it on standard input.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;

use crate::error::CniError;

/// The plugin's `type` in a network configuration list, and the name of its program.
pub const PLUGIN_TYPE: &str = "seine-cni";

/// Versions of the specification that the plugin speaks, oldest first.
pub const SUPPORTED: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Version reported where the input doesn't say one.
pub(crate) const DEFAULT_VERSION: &str = "1.1.0";

/// The plugin's own part of a network configuration list, as the agent writes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PluginEntry {
    /// The agent's `cni.sock`.
    pub agent_socket: PathBuf,
    /// Where the agent keeps the last known answers, for which it need not run.
    pub state_file: PathBuf,
    /// Where the agent keeps its way to the API server, for what it never saw before it went away.
    pub kubeconfig: PathBuf,
    /// Namespaces whose pods start whatever happens: the mesh's own and system-critical ones.
    pub always_start_namespaces: Vec<String>,
    /// The longest time to wait for the agent, in seconds.
    pub timeout_seconds: u64,
}

impl PluginEntry {
    /// The entry as it stands in the list of plugins.
    pub fn to_value(&self) -> Value {
        let mut value = serde_json::json!(self);
        value["type"] = PLUGIN_TYPE.into();
        value
    }
}

impl Default for PluginEntry {
    fn default() -> Self {
        Self {
            agent_socket: default_socket(),
            state_file: default_state_file(),
            kubeconfig: "/var/lib/seine/agent/api-server.kubeconfig".into(),
            always_start_namespaces: default_always_start(),
            timeout_seconds: default_timeout(),
        }
    }
}

/// The whole configuration.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Config {
    #[serde(default)]
    pub(crate) cni_version: Option<String>,
    /// The agent's `cni.sock`.
    #[serde(default = "default_socket")]
    pub(crate) agent_socket: PathBuf,
    /// Where the agent keeps the last known answers, for which it need not run.
    #[serde(default = "default_state_file")]
    pub(crate) state_file: PathBuf,
    /// Where the agent keeps its way to the API server; without it none is asked.
    #[serde(default)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Namespaces whose pods start whatever happens: the mesh's own and system-critical ones.
    #[serde(default = "default_always_start")]
    pub(crate) always_start_namespaces: Vec<String>,
    /// The longest time to wait for the agent, in seconds.
    #[serde(default = "default_timeout")]
    timeout_seconds: u64,
    /// The result of the plugins before this one, which goes on unchanged.
    #[serde(default)]
    pub(crate) prev_result: Option<Value>,
    /// What the runtime knows to exist, for `GC`.
    #[serde(default, rename = "cni.dev/valid-attachments")]
    pub(crate) valid_attachments: Option<Vec<ValidAttachment>>,
}

/// One sandbox that the runtime knows.
#[derive(Debug, Deserialize)]
pub(crate) struct ValidAttachment {
    #[serde(rename = "containerID")]
    pub(crate) container_id: String,
}

fn default_socket() -> PathBuf {
    "/run/seine/cni.sock".into()
}

fn default_state_file() -> PathBuf {
    "/var/lib/seine/agent/last-known.json".into()
}

fn default_always_start() -> Vec<String> {
    vec!["kube-system".into(), "seine-system".into()]
}

fn default_timeout() -> u64 {
    20
}

impl Config {
    pub(crate) fn parse(input: &str) -> Result<Self, CniError> {
        let config: Self = serde_json::from_str(input).map_err(|error| {
            CniError::new(
                CniError::DECODE_FAILURE,
                format!("the network configuration on standard input can't be read: {error}"),
                "seine-cni is a chained plugin: see its entry in the network configuration list",
            )
        })?;
        let version = config.version();
        if !SUPPORTED.contains(&version) {
            return Err(CniError::new(
                CniError::INCOMPATIBLE_VERSION,
                format!("cniVersion {version:?} is not supported"),
                format!("supported: {}", SUPPORTED.join(", ")),
            ));
        }
        if !config.agent_socket.is_absolute() {
            return Err(CniError::new(
                CniError::INVALID_CONFIG,
                format!(
                    "agentSocket {:?} is not an absolute path",
                    config.agent_socket
                ),
                "",
            ));
        }
        Ok(config)
    }

    pub(crate) fn version(&self) -> &str {
        self.cni_version.as_deref().unwrap_or(DEFAULT_VERSION)
    }

    /// At least one second, at most two minutes: the runtime has a limit of its own.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout_seconds.clamp(1, 120))
    }

    /// For the API server, whose answer comes at once or helps nobody.
    pub(crate) fn api_timeout(&self) -> Duration {
        self.timeout().min(Duration::from_secs(10))
    }

    pub(crate) fn always_starts(&self, namespace: &str) -> bool {
        self.always_start_namespaces.iter().any(|n| n == namespace)
    }

    /// The previous plugins' result, which a chained plugin can't do without.
    pub(crate) fn previous(&self) -> Result<&Value, CniError> {
        self.prev_result.as_ref().ok_or_else(|| {
            CniError::new(
                CniError::INVALID_CONFIG,
                "there is no prevResult: seine-cni must come after the plugin that makes the pod's network",
                "put seine-cni last in the list of plugins",
            )
        })
    }
}

/// What an ADD would tell the agent by a network configuration, for tests of that alone.
///
/// # Errors
///
/// As the plugin's.
#[doc(hidden)]
pub fn facts_of(input: &str) -> Result<(Vec<IpAddr>, Vec<String>), CniError> {
    let config = Config::parse(input)?;
    config.timeout();
    config.previous().map(facts)
}

/// What the agent wants to know of a previous result: the pod's addresses, and interfaces on the
/// host's side. What is malformed is left out; the agent looks in the namespace itself.
pub(crate) fn facts(value: &Value) -> (Vec<IpAddr>, Vec<String>) {
    let list = |name: &str| {
        value
            .get(name)
            .and_then(Value::as_array)
            .cloned()
            .unwrap_or_default()
    };
    let ips = list("ips")
        .iter()
        .filter_map(|ip| ip.get("address")?.as_str()?.split('/').next()?.parse().ok())
        .collect();
    let interfaces = list("interfaces")
        .iter()
        .filter(|i| {
            i.get("sandbox")
                .and_then(Value::as_str)
                .unwrap_or("")
                .is_empty()
        })
        .filter_map(|i| Some(i.get("name")?.as_str()?.to_owned()))
        .collect();
    (ips, interfaces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_keys_are_left_alone_and_defaults_fill_in() {
        let config = Config::parse(
            r#"{"cniVersion":"1.0.0","name":"n","type":"seine-cni","capabilities":{}}"#,
        )
        .unwrap();
        assert_eq!(config.version(), "1.0.0");
        assert!(config.always_starts("kube-system"));
        assert_eq!(config.timeout(), Duration::from_secs(20));
    }

    #[test]
    fn the_entry_that_the_agent_writes_is_read_as_it_was_meant() {
        let entry = PluginEntry {
            agent_socket: "/run/x/cni.sock".into(),
            state_file: "/run/x/n.json".into(),
            kubeconfig: "/run/x/k.json".into(),
            always_start_namespaces: vec!["mesh".into()],
            timeout_seconds: 7,
        };
        let config = Config::parse(&entry.to_value().to_string()).unwrap();
        assert_eq!(entry.to_value()["type"], PLUGIN_TYPE);
        assert_eq!(config.agent_socket, entry.agent_socket);
        assert_eq!(config.state_file, entry.state_file);
        assert_eq!(config.kubeconfig, Some(entry.kubeconfig));
        assert_eq!(
            config.always_start_namespaces,
            entry.always_start_namespaces
        );
        assert_eq!(config.timeout(), Duration::from_secs(7));
    }

    #[test]
    fn a_version_of_the_future_is_refused_with_its_code() {
        let error = Config::parse(r#"{"cniVersion":"9.0.0"}"#).unwrap_err();
        assert_eq!(error.code, CniError::INCOMPATIBLE_VERSION);
    }

    #[test]
    fn facts_take_the_hosts_interfaces_and_the_addresses() {
        let raw: Value = serde_json::from_str(
            r#"{"interfaces":[{"name":"cni0"},{"name":"veth1","sandbox":""},{"name":"eth0","sandbox":"/run/netns/x"}],
                "ips":[{"address":"10.1.0.5/24","interface":2},{"address":"fd00::5/64"},{"address":"nonsense"},{}]}"#,
        )
        .unwrap();
        let (ips, interfaces) = facts(&raw);
        assert_eq!(
            ips,
            [
                "10.1.0.5".parse::<IpAddr>().unwrap(),
                "fd00::5".parse().unwrap()
            ]
        );
        assert_eq!(interfaces, ["cni0", "veth1"]);
    }
}
