//! The keeper: one thread that owns all pods of the node and does everything to them, one at a time.
//!
//! It wakes on a request of the CNI plugin, on changed objects and on a timer; each time it compares
//! the objects with the pods, and what is not as it should be is changed. What always holds: a pod
//! that an answer called enrolled is enrolled; a pod whose object is gone stays as it is until its
//! last process is gone; nothing is published before the pods of an earlier agent are taken over,
//! so that a node proxy never hears of fewer pods than there are.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Instant;

use seine_bpf_common::PROXY_SLOTS;
use seine_cni::api::Attachment;
use seine_cni::api::Response;
use seine_objects::ObjectSet;
use seine_objects::pods;
use seine_telemetry::Readiness;
use tokio::sync::oneshot;
use tokio::sync::watch;

use crate::config::Config;
use crate::config::NodeProxy;
use crate::discover;
use crate::door::Cgroups;
use crate::interfaces::Watcher;
use crate::last_known::LastKnownFile;
use crate::metrics::Metrics;
use crate::netns::Netns;
use crate::netns::NetnsError;
use crate::plan;
use crate::plan::Desired;
use crate::plan::Plan;
use crate::pod::Pod;
use crate::pod::Tools;
use crate::redirector::Redirector;
use crate::registry;
use crate::registry::Record;
use crate::registry::Registry;
use crate::registry::is_uid;
use crate::served::PodStatus;
use crate::served::Served;
use crate::served::State;

/// Readiness condition: redirection catches a connection.
pub(crate) const REDIRECTION: &str = "redirection";
/// Readiness condition: the pods of an earlier agent are taken over and served.
pub(crate) const PODS: &str = "pods";

/// A request to the keeper.
pub(crate) enum Command {
    Add {
        attachment: Attachment,
        uid: String,
        netns: OwnedFd,
        reply: oneshot::Sender<Response>,
    },
    Check {
        attachment: Attachment,
        uid: String,
        reply: oneshot::Sender<Response>,
    },
    Delete {
        container_id: String,
        reply: oneshot::Sender<Response>,
    },
    CollectGarbage {
        valid_containers: Vec<String>,
        reply: oneshot::Sender<Response>,
    },
    ObjectsChanged,
    /// An interface of the pod came, changed or went.
    InterfacesChanged {
        uid: String,
    },
    /// A node proxy connected: its cgroup is there, and the kernel must know it before the proxy
    /// hears of any pod.
    ProxyArrived {
        reply: oneshot::Sender<()>,
    },
    Stop,
}

/// What the keeper is made of and what it publishes.
pub(crate) struct Keeper {
    pub(crate) config: Arc<Config>,
    pub(crate) redirector: Arc<dyn Redirector>,
    pub(crate) registry: Registry,
    pub(crate) metrics: Metrics,
    pub(crate) readiness: Readiness,
    pub(crate) objects: watch::Receiver<Arc<ObjectSet>>,
    pub(crate) served: watch::Sender<Option<Arc<Served>>>,
    pub(crate) status: watch::Sender<Arc<Vec<PodStatus>>>,
    pub(crate) last_known: LastKnownFile,
    pub(crate) pods: BTreeMap<String, Pod>,
    /// What the kernel has enrolled for an earlier agent and is no pod's yet, by cookie, with its
    /// record where there is one. It stays caught, and refused, until it is found or its namespace ends.
    pub(crate) unclaimed: BTreeMap<u64, Option<Record>>,
    /// Of the node proxies, as the kernel and the doors know them.
    pub(crate) proxies: Cgroups,
    pub(crate) watcher: Watcher,
    pub(crate) proxy_cgroups: Vec<(PathBuf, u64)>,
    /// When a connection was caught last; nothing since it was not, or something was not attached
    /// as it should be.
    pub(crate) caught: Option<Instant>,
}

impl Keeper {
    /// Runs until [`Command::Stop`] or until nobody can send any more. Releases nothing then.
    pub(crate) fn run(mut self, commands: &Receiver<Command>) {
        self.follow_proxy_cgroup();
        self.prove();
        self.take_over();
        self.reconcile_pods();
        self.readiness.done(PODS);
        let mut next_tick = Instant::now() + self.config.reconcile_every;
        loop {
            match commands.recv_timeout(next_tick.saturating_duration_since(Instant::now())) {
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(command) => self.obey(command),
                Err(RecvTimeoutError::Timeout) => {
                    self.tick();
                    next_tick = Instant::now() + self.config.reconcile_every;
                }
            }
        }
    }

    fn obey(&mut self, command: Command) {
        // Who asked may have gone away meanwhile; what was asked is done all the same.
        match command {
            Command::Add {
                attachment,
                uid,
                netns,
                reply,
            } => {
                let response = self.add(attachment, uid, netns);
                self.publish();
                let _ = reply.send(response);
            }
            Command::Check {
                attachment,
                uid,
                reply,
            } => {
                let _ = reply.send(self.check(&attachment, &uid));
            }
            Command::Delete {
                container_id,
                reply,
            } => {
                self.delete(|record| record.container_id == container_id);
                let _ = reply.send(Response::Done);
            }
            Command::CollectGarbage {
                valid_containers,
                reply,
            } => {
                let valid: BTreeSet<_> = valid_containers.into_iter().collect();
                self.delete(|r| !r.container_id.is_empty() && !valid.contains(&r.container_id));
                let _ = reply.send(Response::Done);
            }
            Command::ObjectsChanged => self.reconcile_pods(),
            Command::InterfacesChanged { uid } => self.follow_interfaces(&uid),
            Command::ProxyArrived { reply } => {
                self.follow_proxy_cgroup();
                let _ = reply.send(());
            }
            Command::Stop => {}
        }
    }

    fn tools(&self) -> Tools<'_> {
        Tools {
            redirector: self.redirector.as_ref(),
            config: &self.config,
            proxies: &self.proxies,
            registry: &self.registry,
            metrics: &self.metrics,
            watcher: &self.watcher,
        }
    }

    /// The pods that an earlier agent left.
    fn take_over(&mut self) {
        let records = self.registry.load().unwrap_or_else(|error| {
            tracing::error!(%error, "the registry of pods can't be read: running pods are looked for");
            Vec::new()
        });
        let enrolled = self.enrolled();
        for mut record in records {
            let in_kernel = enrolled.as_ref().map(|all| all.contains(&record.cookie));
            match self.reopen(&record) {
                Ok((path, netns)) => {
                    if in_kernel == Some(true) {
                        // The earlier agent may have ended before it could write that down; the
                        // objects decide.
                        record.plan.get_or_insert_default();
                    }
                    record.netns = path;
                    self.pods
                        .insert(record.uid.clone(), Pod::new(record, netns));
                }
                Err(error) if in_kernel != Some(false) => {
                    tracing::warn!(
                        pod = %record.name, namespace = %record.namespace, %error,
                        "an enrolled pod's network namespace is not found: it stays enrolled, and is looked for"
                    );
                    self.unclaimed.insert(record.cookie, Some(record));
                }
                Err(error) => {
                    tracing::info!(pod = %record.name, namespace = %record.namespace, %error, "is gone");
                    self.forget_record(&record);
                }
            }
        }
        let known: BTreeSet<_> = self.pods.values().map(|pod| pod.record.cookie).collect();
        for cookie in enrolled.into_iter().flatten() {
            if !known.contains(&cookie) && !self.unclaimed.contains_key(&cookie) {
                tracing::warn!(
                    cookie,
                    "an enrolled pod has no record: it stays enrolled, and is looked for"
                );
                self.unclaimed.insert(cookie, None);
            }
        }
        tracing::info!(
            pods = self.pods.len(),
            unclaimed = self.unclaimed.len(),
            "took over the pods of the node"
        );
    }

    /// Cookies of the pods that the kernel has enrolled, whose namespaces are all alive; nothing if
    /// it can't be asked.
    fn enrolled(&self) -> Option<BTreeSet<u64>> {
        match self.redirector.enrolled() {
            Ok(pods) => Some(pods.iter().map(|pod| pod.cookie).collect()),
            Err(error) => {
                tracing::error!(%error, "which pods the kernel has enrolled");
                None
            }
        }
    }

    /// Finds a pod's namespace again: by its path, or where another is there or none by its processes.
    fn reopen(&self, record: &Record) -> Result<(PathBuf, Netns), NetnsError> {
        let open = |path: &Path| match Netns::open(path) {
            Ok(netns) if netns.cookie() == record.cookie => Ok((path.to_owned(), netns)),
            Ok(_) => Err(NetnsError::Gone),
            Err(error) => Err(error),
        };
        open(&record.netns).or_else(|error| {
            let cgroup = self.config.pods_cgroup.as_deref().ok_or(error)?;
            let path = discover::running(cgroup, std::slice::from_ref(&record.uid))
                .remove(&record.uid)
                .ok_or(NetnsError::Gone)?;
            open(&path)
        })
    }

    /// Of a pod that is gone. Another sandbox of the same pod may have a record by now.
    fn forget_record(&self, record: &Record) {
        if !self.pods.contains_key(&record.uid)
            && let Err(error) = self.registry.remove(&record.uid)
        {
            tracing::warn!(pod = %record.name, %error, "remove a pod's record");
        }
    }

    /// Looks again for what an earlier agent left enrolled: by its record here, by the objects in
    /// [`Keeper::discover`].
    fn claim(&mut self) {
        if self.unclaimed.is_empty() {
            return;
        }
        let Some(enrolled) = self.enrolled() else {
            return;
        };
        for (cookie, record) in std::mem::take(&mut self.unclaimed) {
            if !enrolled.contains(&cookie) {
                // The kernel has released it, since its namespace is gone.
                if let Some(record) = record {
                    self.forget_record(&record);
                }
                continue;
            }
            if self.pods.values().any(|pod| pod.record.cookie == cookie) {
                continue;
            }
            let found = record.as_ref().map(|record| self.reopen(record));
            match (record, found) {
                (Some(mut record), Some(Ok((path, netns)))) => {
                    record.netns = path;
                    record.plan.get_or_insert_default();
                    self.pods
                        .insert(record.uid.clone(), Pod::new(record, netns));
                }
                (record, _) => drop(self.unclaimed.insert(cookie, record)),
            }
        }
    }

    fn add(&mut self, attachment: Attachment, uid: String, netns: OwnedFd) -> Response {
        let failed = |reason: String| Response::Failed { reason };
        if !is_uid(&uid) {
            return failed(format!("{uid:?} is no pod's UID"));
        }
        let netns = match Netns::new(netns) {
            Ok(netns) => netns,
            Err(error) => return failed(error.to_string()),
        };
        let known = match self.pods.remove(&uid) {
            // A new sandbox of the same pod.
            Some(pod) if pod.record.cookie != netns.cookie() => {
                pod.forget(self.tools());
                None
            }
            known => known,
        };
        let record = Record {
            uid: uid.clone(),
            namespace: attachment.namespace,
            name: attachment.name,
            container_id: attachment.container_id,
            netns: attachment.netns,
            cookie: netns.cookie(),
            ips: attachment.ips,
            host_interfaces: attachment.host_interfaces,
            plan: known.as_ref().and_then(|pod| pod.record.plan.clone()),
            enrolled_since: known.as_ref().and_then(|pod| pod.record.enrolled_since),
            version: registry::VERSION,
            boot: self.registry.boot().to_owned(),
        };
        if let Err(error) = self.registry.save(&record) {
            let reason = format!("keep the pod's record in the state folder: {error}");
            // The record of a pod that is not opted in is for an opt-in later, when the pod is found
            // without it too.
            if self
                .not_opted_in(&record.namespace, &record.name, &uid)
                .is_none()
            {
                if let Some(pod) = known {
                    self.pods.insert(uid, pod);
                }
                return failed(reason);
            }
            tracing::warn!(pod = %record.name, "{reason}");
        }
        let pod = match known {
            Some(pod) => pod.with_record(record),
            None => Pod::new(record, netns),
        };
        self.pods.insert(uid.clone(), pod);
        self.reconcile(&uid);
        self.answer(&uid)
    }

    /// Why the pod is not to be enrolled, where the objects say so.
    fn not_opted_in(&self, namespace: &str, name: &str, uid: &str) -> Option<String> {
        let (objects, settings) = (self.objects.borrow(), &self.config.enrolment);
        match plan::desired(&objects, namespace, name, uid, settings).0 {
            Desired::NotEnrolled(reason) => Some(reason),
            Desired::Enrolled(_) => None,
            // Whatever the pod is, its namespace decides.
            Desired::Unknown => objects
                .namespace(namespace)
                .filter(|namespace| !plan::may_enrol(namespace, settings))
                .map(|_| "not opted in".to_owned()),
        }
    }

    fn answer(&self, uid: &str) -> Response {
        match self.pods.get(uid) {
            Some(pod) => match pod.state() {
                State::Enrolled if self.caught.is_none() => Response::Failed {
                    reason: "redirection does not work on this node; /healthz/ready of the agent says why"
                        .to_owned(),
                },
                State::Enrolled => Response::Enrolled,
                State::NotEnrolled => Response::NotEnrolled {
                    reason: pod.reason().to_owned(),
                },
                State::Failing => Response::Failed {
                    reason: pod.reason().to_owned(),
                },
            },
            None => Response::Failed {
                reason: "the agent does not know the pod".to_owned(),
            },
        }
    }

    fn check(&self, attachment: &Attachment, uid: &str) -> Response {
        let Some(pod) = self.pods.get(uid) else {
            // It may have started while no agent ran.
            return match self.not_opted_in(&attachment.namespace, &attachment.name, uid) {
                Some(reason) => Response::NotEnrolled { reason },
                None => self.answer(uid),
            };
        };
        if !pod.is_enrolled() {
            return self.answer(uid);
        }
        match self.redirector.enrolled() {
            Ok(pods)
                if pods
                    .iter()
                    .any(|p| p.cookie == pod.record.cookie && p.steered) =>
            {
                Response::Enrolled
            }
            Ok(_) => Response::Failed {
                reason: "its redirection is not attached; the agent attaches it again".to_owned(),
            },
            Err(error) => Response::Failed {
                reason: error.to_string(),
            },
        }
    }

    fn delete(&mut self, which: impl Fn(&Record) -> bool) {
        for pod in self.pods.values_mut().filter(|pod| which(&pod.record)) {
            pod.deleted = true;
            if pod.has_processes() {
                tracing::info!(pod = %pod.record.name, "stays enrolled until its last process is gone");
            }
        }
        self.forget_gone();
        self.publish();
    }

    fn forget_gone(&mut self) {
        let gone: Vec<_> = self
            .pods
            .iter()
            .filter(|(_, pod)| pod.is_gone())
            .map(|(uid, _)| uid.clone())
            .collect();
        for uid in gone {
            if let Some(pod) = self.pods.remove(&uid) {
                pod.forget(self.tools());
            }
        }
    }

    fn tick(&mut self) {
        self.follow_proxy_cgroup();
        match self.redirector.reconcile() {
            Ok(repairs) => {
                for line in &repairs.repaired {
                    tracing::warn!("repaired: {line}");
                }
                self.metrics.repairs.inc_by(repairs.repaired.len() as u64);
                if !repairs.repaired.is_empty() {
                    self.caught = None;
                }
                self.prove();
            }
            Err(error) => {
                tracing::error!(%error, "compare with what is attached");
                self.readiness.pending(REDIRECTION, error.to_string());
                self.caught = None;
            }
        }
        self.forget_gone();
        let now = Instant::now();
        for pod in self.pods.values_mut() {
            pod.tidy(now);
        }
        self.reconcile_pods();
    }

    /// Readiness waits for a connection that was really caught, and for another from time to time: a
    /// program that somebody attaches before ours changes nothing in what is attached of ours.
    fn prove(&mut self) {
        let every = self.config.canary_every;
        if self.caught.is_some_and(|at| at.elapsed() < every) {
            return;
        }
        match self.redirector.canary() {
            Ok(()) => {
                self.caught = Some(Instant::now());
                self.readiness.done(REDIRECTION);
            }
            Err(error) => {
                self.caught = None;
                tracing::error!(%error, "redirection does not work");
                self.readiness.pending(REDIRECTION, error.to_string());
            }
        }
    }

    /// Tells the kernel of the node proxy's cgroup when it appears, and again when it was made anew.
    fn follow_proxy_cgroup(&mut self) {
        use std::os::unix::fs::MetadataExt;
        let found: Vec<_> = self
            .find_proxy_cgroups()
            .into_iter()
            .filter_map(|path| Some((path.clone(), std::fs::metadata(path).ok()?.ino())))
            .take(PROXY_SLOTS)
            .collect();
        if found.is_empty() || found == self.proxy_cgroups {
            return;
        }
        let paths: Vec<_> = found.iter().map(|(path, _)| path.clone()).collect();
        match self.redirector.set_proxy_cgroups(&paths) {
            Ok(()) => {
                self.proxies.set(paths);
                self.proxy_cgroups = found;
            }
            Err(error) => tracing::error!(%error, "the node proxy's cgroup"),
        }
    }

    fn find_proxy_cgroups(&self) -> Vec<PathBuf> {
        match (&self.config.proxy, &self.config.pods_cgroup) {
            (NodeProxy::Cgroup(path), _) => vec![path.clone()],
            (NodeProxy::ServiceAccount { namespace, name }, Some(pods_cgroup)) => {
                let objects = self.objects.borrow();
                let uids: Vec<_> = objects
                    .pods
                    .values()
                    .filter(|pod| pod.metadata.namespace.as_ref() == Some(namespace))
                    .filter(|pod| {
                        let account = pod.spec.as_ref().map(|s| s.service_account_name.as_ref());
                        account.flatten() == Some(name)
                    })
                    .filter_map(|pod| pods::node_uid(pod))
                    .collect();
                discover::cgroups(pods_cgroup, &uids)
            }
            (NodeProxy::AnyProcess | NodeProxy::ServiceAccount { .. }, _) => Vec::new(),
        }
    }

    fn follow_interfaces(&mut self, uid: &str) {
        let Some(pod) = self.pods.get_mut(uid) else {
            return;
        };
        match pod.look_at_interfaces() {
            Ok(()) => {
                self.reconcile(uid);
                self.publish();
            }
            // Its namespace is going, or the next change or enrolment looks again.
            Err(error) => tracing::warn!(%uid, %error, "look at a pod's interfaces"),
        }
    }

    fn reconcile_pods(&mut self) {
        let objects = self.objects.borrow_and_update().clone();
        self.last_known.update(&objects, &self.config);
        self.claim();
        self.discover(&objects);
        let uids: Vec<_> = self.pods.keys().cloned().collect();
        for uid in uids {
            self.reconcile(&uid);
        }
        self.publish();
    }

    /// Brings one pod to what the objects say.
    fn reconcile(&mut self, uid: &str) {
        let Some(mut pod) = self.pods.remove(uid) else {
            return;
        };
        let objects = self.objects.borrow().clone();
        let (namespace, name) = (&pod.record.namespace, &pod.record.name);
        let (desired, warnings) =
            plan::desired(&objects, namespace, name, uid, &self.config.enrolment);
        // The pod keeps the error as its reason, and the next tick tries again.
        let _ = match (desired, pod.record.plan.clone()) {
            (Desired::Enrolled(plan), _) => pod.enrol(&plan, warnings, self.tools()),
            // While it is terminating, nobody can take it out of the mesh by a label either.
            (_, Some(plan)) if pod.deleted => pod.enrol(&plan, warnings, self.tools()),
            (Desired::Unknown, Some(plan)) => pod.enrol(&plan, warnings, self.tools()),
            (Desired::NotEnrolled(reason), _) => pod.release(&reason, self.tools()),
            (Desired::Unknown, None) => {
                pod.release("the pod is not among the objects", self.tools())
            }
        };
        self.pods.insert(uid.to_owned(), pod);
    }

    /// Registers pods that run on this node though the CNI plugin never told of them: those that are
    /// opted in, and those that an earlier agent left enrolled.
    fn discover(&mut self, objects: &ObjectSet) {
        let Some(cgroup) = &self.config.pods_cgroup else {
            return;
        };
        let mut wanted = BTreeMap::new();
        for pod in objects.pods.values() {
            let (Some(uid), Some(name)) = (pods::node_uid(pod), &pod.metadata.name) else {
                continue;
            };
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
            if pods::node(pod) != Some(self.config.node.as_str())
                || pods::is_finished(pod)
                || self.pods.contains_key(uid)
                || !is_uid(uid)
            {
                continue;
            }
            let desired = plan::desired(objects, namespace, name, uid, &self.config.enrolment).0;
            let opted_in = matches!(desired, Desired::Enrolled(_));
            if opted_in || !self.unclaimed.is_empty() {
                let found = (namespace.to_owned(), name.clone(), pods::addresses(pod));
                wanted.insert(uid.to_owned(), (opted_in, found));
            }
        }
        let uids: Vec<_> = wanted.keys().cloned().collect();
        for (uid, path) in discover::running(cgroup, &uids) {
            let Some((opted_in, (namespace, name, ips))) = wanted.remove(&uid) else {
                continue;
            };
            match Netns::open(&path) {
                Ok(netns) => {
                    let earlier = self.unclaimed.remove(&netns.cookie());
                    if !opted_in && earlier.is_none() {
                        continue;
                    }
                    let plan = earlier.as_ref().map(|_| Plan::default());
                    let earlier = earlier.flatten();
                    tracing::info!(pod = %name, %namespace, %uid, "found a running pod");
                    let record = Record {
                        uid: uid.clone(),
                        namespace,
                        name,
                        container_id: String::new(),
                        netns: path,
                        cookie: netns.cookie(),
                        ips,
                        host_interfaces: Vec::new(),
                        plan,
                        enrolled_since: earlier.and_then(|record| record.enrolled_since),
                        version: registry::VERSION,
                        boot: self.registry.boot().to_owned(),
                    };
                    // Without the record a restarted agent finds the pod in this way again.
                    if let Err(error) = self.registry.save(&record) {
                        tracing::error!(pod = %record.name, %error, "keep the pod's record");
                    }
                    self.pods.insert(uid, Pod::new(record, netns));
                }
                Err(error) => tracing::warn!(pod = %name, %namespace, %error, "a running pod"),
            }
        }
    }

    fn publish(&self) {
        let served: Served = self
            .pods
            .iter()
            .filter_map(|(uid, pod)| Some((uid.clone(), Arc::new(pod.served()?))))
            .collect();
        self.served.send_replace(Some(Arc::new(served)));
        let status: Vec<_> = self.pods.values().map(Pod::status).collect();
        for state in [State::Enrolled, State::NotEnrolled, State::Failing] {
            let count = status.iter().filter(|pod| pod.state == state).count();
            Metrics::set(&self.metrics.pods, state.name(), count as u64);
        }
        Metrics::set(&self.metrics.pods, "unclaimed", self.unclaimed.len() as u64);
        self.status.send_replace(Arc::new(status));
    }
}
