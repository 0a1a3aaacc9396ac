//! The objects of a cluster, watched at its API server: what [`DirectorySource`] is for a folder.
//!
//! [`KubernetesSource`] has a task for each kind (`watch`) that lists and watches and never gives up, and
//! one that gathers what they report (`gather`) and publishes an [`ObjectSet`]. What always holds:
//!
//! - The first set is complete: each kind has been listed.
//! - An object leaves the set only when the API server says that it is gone, never because the server
//!   is away or because the object became invalid.
//! - A list that repeats what is known publishes nothing.
//!
//! Secrets and ConfigMaps are apart: `named` reads those alone that Gateways name.
//!
//! [`DirectorySource`]: seine_objects::DirectorySource

#![forbid(unsafe_code)]

mod connect;
mod gather;
mod named;
mod scope;
mod source;
mod watch;

use std::sync::Arc;

use kube::Client;
use seine_objects::{ObjectSet, Problem};
use tokio::sync::{mpsc, watch as latest};
use tokio::task::JoinSet;

pub use connect::{ConnectError, client};
pub use scope::{Scope, resource};
pub use source::Source;

/// Reports of the watches that wait to be gathered. A watch that finds no room waits, and so does the
/// API server's stream.
const BACKLOG: usize = 1024;

/// The objects of a cluster. Dropping it ends the watches; receivers keep the last set.
#[derive(Debug)]
pub struct KubernetesSource {
    objects: latest::Receiver<Arc<ObjectSet>>,
    problems: latest::Receiver<Arc<Vec<Problem>>>,
    /// Aborted when dropped.
    _tasks: JoinSet<()>,
}

impl KubernetesSource {
    /// Starts to watch and returns when everything has been listed once. While the API server can't be
    /// reached or refuses, that is tried again and said in the log.
    pub async fn start(client: Client, scope: Scope) -> Self {
        let (reports, reported) = mpsc::channel(BACKLOG);
        let mut tasks = JoinSet::new();
        let kinds = scope.kinds();
        for &kind in &kinds {
            let selector = scope.selector(kind);
            tasks.spawn(watch::follow(
                client.clone(),
                kind,
                selector,
                reports.clone(),
            ));
        }
        let (objects_out, mut objects) = latest::channel(Arc::default());
        let (problems_out, problems) = latest::channel(Arc::default());
        let gathering = gather::Gathering::new(&kinds);
        tasks.spawn(gathering.run(reported, objects_out, problems_out));
        if matches!(scope, Scope::Cluster { .. }) {
            let (complete, all) = latest::channel(Arc::default());
            tasks.spawn(named::add(client, objects, complete));
            objects = all;
        }
        // The gathering task lives as long as this does.
        let _ = objects.changed().await;
        Self {
            objects,
            problems,
            _tasks: tasks,
        }
    }

    /// The objects as they are now.
    pub fn objects(&self) -> Arc<ObjectSet> {
        self.objects.borrow().clone()
    }

    /// Told of every new set.
    pub fn subscribe(&self) -> latest::Receiver<Arc<ObjectSet>> {
        self.objects.clone()
    }

    /// What is wrong with objects now.
    pub fn problems(&self) -> Arc<Vec<Problem>> {
        self.problems.borrow().clone()
    }

    /// Told whenever [`Self::problems`] changes.
    pub fn subscribe_problems(&self) -> latest::Receiver<Arc<Vec<Problem>>> {
        self.problems.clone()
    }
}
