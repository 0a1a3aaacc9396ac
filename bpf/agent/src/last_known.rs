//! The files by which the CNI plugin decides while the agent is away.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use seine_cni::LastKnown;
use seine_cni::NamespaceState;
use seine_objects::ObjectSet;
use seine_objects::pods;

use crate::agent::LAST_KNOWN_FILE;
use crate::cluster::KUBECONFIG_FILE;
use crate::config::Config;
use crate::plan;
use crate::plan::Desired;

/// Writes `last-known.json` when it changes.
#[derive(Debug)]
pub(crate) struct LastKnownFile {
    path: PathBuf,
    written: Option<LastKnown>,
}

impl LastKnownFile {
    /// The file at this path, which may or may not be there.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            written: None,
        }
    }

    /// Brings it up to date; a failure is logged and tried again the next time.
    pub(crate) fn update(&mut self, objects: &ObjectSet, config: &Config) {
        let now = last_known(objects, config);
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

/// Of a node that the mesh leaves. The plugin is out of the chain, so that nobody reads them; one is a secret.
pub(crate) fn remove_all(state_dir: &Path) {
    for name in [LAST_KNOWN_FILE, KUBECONFIG_FILE] {
        let path = state_dir.join(name);
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "remove what the CNI plugin read");
            }
        }
    }
}

fn last_known(objects: &ObjectSet, config: &Config) -> LastKnown {
    let settings = &config.enrolment;
    let namespaces = objects.namespaces.iter().map(|(key, namespace)| {
        let state = if plan::may_enrol(namespace, settings) {
            NamespaceState::OptedIn
        } else {
            NamespaceState::NotOptedIn
        };
        (key.name.clone(), state)
    });
    let stays_out = objects.pods.iter().filter_map(|(key, pod)| {
        let uid = pods::node_uid(pod)?;
        let here = pods::node(pod) == Some(config.node.as_str());
        let in_mesh = here
            && objects
                .namespace(&key.namespace)
                .is_some_and(|namespace| plan::may_enrol(namespace, settings));
        let desired = in_mesh.then(|| {
            let (desired, _) = plan::desired(objects, &key.namespace, &key.name, uid, settings);
            desired
        })?;
        matches!(desired, Desired::NotEnrolled(_)).then(|| uid.to_owned())
    });
    LastKnown {
        namespaces: namespaces.collect(),
        pods_not_opted_in: stays_out.collect(),
        istio_alias: settings.istio_alias,
    }
}
