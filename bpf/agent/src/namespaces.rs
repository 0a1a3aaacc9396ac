//! The file by which the CNI plugin decides while the agent is away.

use std::path::PathBuf;

use seine_cni::LastKnown;
use seine_cni::NamespaceState;
use seine_objects::EnrolmentSettings;
use seine_objects::ObjectSet;

use crate::plan;

/// Writes `namespaces.json` when it changes.
#[derive(Debug)]
pub(crate) struct NamespacesFile {
    path: PathBuf,
    written: Option<LastKnown>,
}

impl NamespacesFile {
    /// The file at this path, which may or may not be there.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            written: None,
        }
    }

    /// Brings it up to date; a failure is logged and tried again the next time.
    pub(crate) fn update(&mut self, objects: &ObjectSet, settings: &EnrolmentSettings) {
        let now = last_known(objects, settings);
        if self.written.as_ref() == Some(&now) {
            return;
        }
        match now.write(&self.path) {
            Ok(()) => self.written = Some(now),
            Err(error) => {
                tracing::error!(path = %self.path.display(), %error, "write what the CNI plugin needs");
            }
        }
    }
}

fn last_known(objects: &ObjectSet, settings: &EnrolmentSettings) -> LastKnown {
    let namespaces = objects
        .namespaces
        .iter()
        .map(|(key, namespace)| {
            let state = if plan::may_enrol(namespace, settings) {
                NamespaceState::OptedIn
            } else {
                NamespaceState::NotOptedIn
            };
            (key.name.clone(), state)
        })
        .collect();
    LastKnown { namespaces }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_tells_opted_in_namespaces_from_others() {
        let (objects, problems) = ObjectSet::from_yaml(
            r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {"seine.dev/mesh": "enabled"}}}
---
{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "plain"}}
"#,
        );
        assert!(problems.is_empty(), "{problems:?}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("namespaces.json");
        NamespacesFile::new(path.clone()).update(&objects, &EnrolmentSettings::default());
        let read = LastKnown::read(&path).unwrap();
        assert_eq!(read.namespaces["shop"], NamespaceState::OptedIn);
        assert_eq!(read.namespaces["plain"], NamespaceState::NotOptedIn);
    }
}
