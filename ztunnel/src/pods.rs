//! The pods that this proxy serves, and the tasks that serve them.
//!
//! The agent's client ([`crate::zds`]) is the only writer. A pod's tasks run in its [`Lifetime`](crate::drain::Lifetime); when the pod goes, or
//! comes back in another network namespace, the old one stops accepting at once and its live connections drain.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use seine_identity::{Identity, TrustDomain};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::dns::DnsSockets;
use crate::listeners::{ListenerSource, PodListeners};
use crate::netns::Netns;
use crate::pod::Pod;
use crate::shared::Shared;
use crate::sockets::Dialer;
use crate::zds::{PodInfo, PodSink};
use crate::{inbound, inbound_plaintext, outbound, pod_dns};

/// How often listeners are asked for again that the agent did not have, or that could not be bound.
const RETRY: Duration = Duration::from_secs(1);

/// All pods that are served.
#[derive(Debug)]
pub struct Pods {
    shared: Arc<Shared>,
    source: ListenerSource,
    by_uid: Mutex<HashMap<String, Arc<Pod>>>,
    /// The agent has named all of them.
    complete: watch::Sender<bool>,
}

impl Pods {
    /// None yet.
    pub fn new(shared: Arc<Shared>, source: ListenerSource) -> Arc<Self> {
        Arc::new(Self {
            shared,
            source,
            by_uid: Mutex::default(),
            complete: watch::Sender::default(),
        })
    }

    /// All of them, by name.
    pub fn list(&self) -> Vec<Arc<Pod>> {
        let mut pods: Vec<_> = self.by_uid.lock().values().cloned().collect();
        pods.sort_by(|a, b| {
            (&a.info.namespace, &a.info.name).cmp(&(&b.info.namespace, &b.info.name))
        });
        pods
    }

    /// Serves a pod on listeners that are there already.
    pub fn serve(
        &self,
        info: PodInfo,
        netns: Netns,
        listeners: PodListeners,
    ) -> Result<Arc<Pod>, String> {
        let pod = self.enter(info, netns)?;
        self.start(&pod, listeners);
        Ok(pod)
    }

    /// All pods have been named, for now.
    pub fn all_named(&self) {
        self.complete.send_replace(true);
    }

    fn enter(&self, info: PodInfo, netns: Netns) -> Result<Arc<Pod>, String> {
        let config = &self.shared.config;
        let identity = TrustDomain::new(&config.trust_domain)
            .map_err(|error| error.to_string())
            .and_then(|domain| {
                Identity::new(domain, &info.namespace, &info.service_account)
                    .map_err(|error| error.to_string())
            })
            .map_err(|error| {
                format!(
                    "pod {}/{} can have no identity: {error}",
                    info.namespace, info.name
                )
            })?;
        let dialer = Dialer {
            netns,
            mark_all: matches!(self.source, ListenerSource::Own(_)) && !config.dedicated,
            timeout: config.connect_timeout,
            keepalive: config.tuning.keepalive(),
        };
        let pod = Arc::new(Pod::new(&self.shared, info, identity, dialer));
        // Asked for now, so that the first connection need not wait for it.
        self.shared.certificates.prefetch(&pod.identity);
        let old = self.by_uid.lock().insert(pod.info.uid.clone(), pod.clone());
        if let Some(old) = old {
            self.end(old);
        }
        Ok(pod)
    }

    fn start(&self, pod: &Arc<Pod>, listeners: PodListeners) {
        let (shared, tasks) = (&self.shared, pod.life.tasks());
        for listener in listeners.outbound {
            let (shared, served) = (shared.clone(), pod.clone());
            pod.home
                .listen(tasks, listener, |at| outbound::run(shared, served, at));
        }
        for listener in listeners.inbound_plaintext {
            let (shared, served) = (shared.clone(), pod.clone());
            pod.home.listen(tasks, listener, |at| {
                inbound_plaintext::run(shared, served, at)
            });
        }
        for listener in listeners.inbound_hbone {
            let (shared, served) = (shared.clone(), pod.clone());
            pod.home
                .listen(tasks, listener, |at| inbound::run(shared, served, at));
        }
        let dns = DnsSockets {
            udp: listeners.dns_udp,
            tcp: listeners.dns_tcp,
        };
        let (shared, served) = (shared.clone(), pod.clone());
        pod.home.run(tasks, async move {
            match dns.on_this_thread() {
                Ok(dns) => pod_dns::run(shared, served, dns).await,
                Err(error) => {
                    error!(pod = ?served, %error, "its DNS can't be polled and is not served")
                }
            }
        });
        pod.set_served();
        info!(?pod, uid = %pod.info.uid, identity = %pod.identity, "pod is served");
    }

    /// Asks for a pod's listeners until they come or the pod goes.
    fn retry(self: &Arc<Self>, pod: Arc<Pod>) {
        let (pods, life) = (self.clone(), pod.life.clone());
        life.clone().spawn(async move {
            let mut told = String::new();
            loop {
                tokio::select! {
                    () = life.stop().cancelled() => return,
                    () = tokio::time::sleep(RETRY) => {}
                }
                match pods.source.obtain(&pod.info.uid, &pod.dialer.netns).await {
                    Ok(listeners) => return pods.start(&pod, listeners),
                    Err(error) => {
                        let text = error.to_string();
                        if text != told {
                            warn!(?pod, error = %text, "the pod is not served yet");
                            told = text;
                        }
                    }
                }
            }
        });
    }

    /// Lets a pod's connections end, and its key when no other pod needs it.
    fn end(&self, pod: Arc<Pod>) {
        info!(?pod, uid = %pod.info.uid, "pod is no longer served");
        let addresses = pod
            .workload(&self.shared)
            .map(|workload| workload.addresses.clone())
            .unwrap_or_default();
        for pool in self.shared.workers.own() {
            pool.forget_where(|key| {
                key.source == pod.identity && addresses.contains(&key.source_address)
            });
        }
        let in_use = self
            .by_uid
            .lock()
            .values()
            .any(|other| other.identity == pod.identity);
        if !in_use {
            self.shared.certificates.forget(&pod.identity);
            for pool in self.shared.workers.own() {
                pool.forget(&pod.identity);
            }
        }
        let deadline = self.shared.config.drain_deadline;
        tokio::spawn(async move {
            let cut = pod.drain(deadline).await;
            if cut > 0 {
                warn!(
                    ?pod,
                    connections = cut,
                    "connections of a pod that is gone were cut"
                );
            }
        });
    }

    /// Keeps the readiness condition `certificates`: pods without a single certificate among them can't be served.
    /// Runs as one task, for the life of the process.
    pub async fn watch_certificates(self: Arc<Self>) {
        let shared = &self.shared;
        let mut changes = shared.certificates.changes();
        // Fails only when the sender is gone, which `self` holds.
        let _ = self.complete.subscribe().wait_for(|all| *all).await;
        let mut told = false;
        loop {
            changes.mark_unchanged();
            match self.without_certificates() {
                None => {
                    shared.readiness.done("certificates");
                    told = false;
                }
                Some((identity, error)) => {
                    if let (Some(error), false) = (&error, told) {
                        error!(%identity, %error, "no pod can be served: there is no certificate");
                        told = true;
                    }
                    let why = error.unwrap_or_else(|| "the CA has not answered yet".to_owned());
                    let text = format!("none of any pod; {identity}: {why}");
                    shared.readiness.pending("certificates", text);
                }
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    /// If no pod has a certificate: one that has none, and the CA's last error.
    fn without_certificates(&self) -> Option<(Identity, Option<String>)> {
        let certificates = &self.shared.certificates;
        let pods = self.list();
        if pods
            .iter()
            .any(|pod| certificates.current(&pod.identity).is_some())
        {
            return None;
        }
        let identity = pods.first()?.identity.clone();
        let mut status = certificates.status().into_iter();
        let error = status
            .find(|status| status.identity == identity)
            .and_then(|status| status.last_error);
        Some((identity, error))
    }

    /// Drains all pods at once. Returns how many connections were cut.
    pub async fn drain(&self, deadline: Duration) -> usize {
        let pods: Vec<_> = self.by_uid.lock().values().cloned().collect();
        let cut = futures::future::join_all(pods.iter().map(|pod| pod.drain(deadline))).await;
        cut.into_iter().sum()
    }
}

/// The agent's client keeps this handle.
#[derive(Debug, Clone)]
pub struct AgentSink(pub Arc<Pods>);

impl PodSink for AgentSink {
    async fn add(&self, info: PodInfo, netns: Netns) -> Result<(), String> {
        let pods = &self.0;
        let known = pods.by_uid.lock().get(&info.uid).cloned();
        if let Some(known) = known
            && known.dialer.netns.id() == netns.id()
            && known.info == info
        {
            return if known.is_served() {
                Ok(())
            } else {
                Err("its listeners are not there yet: they are asked for again and again".into())
            };
        }
        let pod = pods.enter(info, netns)?;
        match pods.source.obtain(&pod.info.uid, &pod.dialer.netns).await {
            Ok(listeners) => {
                pods.start(&pod, listeners);
                Ok(())
            }
            Err(error) => {
                warn!(?pod, %error, "the pod is not served yet");
                pods.retry(pod);
                Err(error.to_string())
            }
        }
    }

    fn remove(&self, uid: &str) {
        let removed = self.0.by_uid.lock().remove(uid);
        if let Some(pod) = removed {
            self.0.end(pod);
        }
    }

    fn retain(&self, uids: &HashSet<String>) {
        let gone: Vec<_> = self
            .0
            .by_uid
            .lock()
            .extract_if(|uid, _| !uids.contains(uid))
            .map(|(_, pod)| pod)
            .collect();
        for pod in gone {
            self.0.end(pod);
        }
    }

    fn synced(&self) {
        self.0.all_named();
        self.0.shared.readiness.done("agent");
    }
}
