//! The last known answer for each namespace, which the agent writes and the plugin reads while the
//! agent is away.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::io::Write;
use std::path::Path;

use serde::Deserialize;
use serde::Serialize;

/// Whether pods of a namespace may be opted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NamespaceState {
    /// The namespace, or a pod in it, is opted in: its pods wait for the agent.
    OptedIn,
    /// Nothing in the namespace is opted in: its pods start without the agent.
    NotOptedIn,
}

/// The content of the state file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastKnown {
    /// By namespace. One that is not here was made after the agent went away.
    pub namespaces: BTreeMap<String, NamespaceState>,
    /// UIDs of the node's pods that stay out, though their namespaces are opted in: they start without
    /// the agent, too, when the node restarts or their sandboxes are made anew.
    #[serde(default)]
    pub pods_not_opted_in: BTreeSet<String>,
    /// The agent takes `istio.io/dataplane-mode=ambient` for an opt-in too. Where it did not say, it may: then a pod
    /// waits rather than start in plaintext.
    #[serde(default = "yes")]
    pub istio_alias: bool,
}

fn yes() -> bool {
    true
}

impl LastKnown {
    /// Reads the state file.
    ///
    /// # Errors
    ///
    /// The file is not there, can't be read, or is not what [`LastKnown::write`] writes.
    pub fn read(path: &Path) -> io::Result<Self> {
        Self::parse(&fs::read_to_string(path)?)
    }

    #[doc(hidden)]
    pub fn parse(text: &str) -> io::Result<Self> {
        serde_json::from_str(text)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Replaces the state file in one step, so that a reader sees the old or the new one whole, also
    /// after a crash of the node.
    ///
    /// # Errors
    ///
    /// The folder can't be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".new");
        let mut file = fs::File::create(&temporary)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back_and_a_broken_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("last-known.json");
        assert!(LastKnown::read(&path).is_err());
        let mut state = LastKnown::default();
        state
            .namespaces
            .insert("shop".into(), NamespaceState::OptedIn);
        state.write(&path).unwrap();
        assert_eq!(LastKnown::read(&path).unwrap(), state);
        fs::write(&path, "{").unwrap();
        assert_eq!(
            LastKnown::read(&path).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
    }
}
