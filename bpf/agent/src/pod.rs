//! One pod of the node: the steps of its enrolment, update and release. Touched by the keeper's
//! thread alone.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use seine_proto::listeners::Family;
use seine_proto::listeners::Kind;

use crate::config::Config;
use crate::config::Listeners;
use crate::door::Cgroups;
use crate::interfaces;
use crate::interfaces::Interfaces;
use crate::interfaces::Watched;
use crate::interfaces::Watcher;
use crate::metrics::Metrics;
use crate::netns::Netns;
use crate::netns::NetnsError;
use crate::plan::Plan;
use crate::redirect::DnsCapture;
use crate::redirect::InboundListeners;
use crate::redirect::OlderConnections;
use crate::redirect::PodNetns;
use crate::redirect::PodSettings;
use crate::redirect::RedirectError;
use crate::redirect::Udp;
use crate::redirector::Redirector;
use crate::registry::Record;
use crate::registry::Registry;
use crate::routing;
use crate::routing::RoutingError;
use crate::served::PodStatus;
use crate::served::ServedPod;
use crate::served::State;
use crate::sockets;
use crate::sockets::Held;
use crate::sockets::SocketError;

/// How long ztunnel may finish a released pod's connections, which need the way back.
const RELEASE_GRACE: Duration = Duration::from_secs(60);

/// What the steps work with.
#[derive(Clone, Copy)]
pub(crate) struct Tools<'a> {
    pub(crate) redirector: &'a dyn Redirector,
    pub(crate) config: &'a Config,
    pub(crate) proxies: &'a Cgroups,
    pub(crate) registry: &'a Registry,
    pub(crate) metrics: &'a Metrics,
    pub(crate) watcher: &'a Watcher,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum PodError {
    #[error(transparent)]
    Netns(#[from] NetnsError),
    #[error(transparent)]
    Routing(#[from] RoutingError),
    #[error(transparent)]
    Sockets(#[from] SocketError),
    #[error(transparent)]
    Redirect(#[from] RedirectError),
    #[error("keep the pod's record in the state folder: {0}")]
    Record(#[from] io::Error),
}

#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) record: Record,
    netns: Netns,
    state: State,
    reason: Option<String>,
    since: SystemTime,
    listeners: Option<Arc<Vec<Held>>>,
    /// What the kernel was told last, by this process.
    applied: Option<PodSettings>,
    warnings: Vec<String>,
    guard_warnings: Vec<String>,
    interfaces: Interfaces,
    watched: Option<Watched>,
    older: usize,
    older_reset: usize,
    /// The runtime said that the pod's network goes away.
    pub(crate) deleted: bool,
    undo_routing_at: Option<Instant>,
    /// The record's path led to the namespace once, so that its absence means something.
    reopenable: bool,
}

impl Pod {
    pub(crate) fn new(record: Record, netns: Netns) -> Self {
        let reopenable = leads_to(&record, &netns);
        Self {
            record,
            netns,
            state: State::NotEnrolled,
            reason: None,
            since: SystemTime::now(),
            listeners: None,
            applied: None,
            warnings: Vec::new(),
            guard_warnings: Vec::new(),
            interfaces: Interfaces::default(),
            watched: None,
            older: 0,
            older_reset: 0,
            deleted: false,
            undo_routing_at: None,
            reopenable,
        }
    }

    pub(crate) fn is_enrolled(&self) -> bool {
        self.state == State::Enrolled
    }

    pub(crate) fn state(&self) -> State {
        self.state
    }

    pub(crate) fn reason(&self) -> &str {
        self.reason.as_deref().unwrap_or("")
    }

    /// The runtime told of the pod again: the next enrolment does everything anew, the search for
    /// interfaces too. What listens goes on listening.
    pub(crate) fn with_record(mut self, record: Record) -> Self {
        self.record = record;
        self.reopenable = leads_to(&self.record, &self.netns);
        self.applied = None;
        self.deleted = false;
        self
    }

    /// Enrols the pod or brings it to the plan; nothing happens where it is right already.
    pub(crate) fn enrol(
        &mut self,
        plan: &Plan,
        warnings: Vec<String>,
        tools: Tools<'_>,
    ) -> Result<(), PodError> {
        if warnings != self.warnings {
            for warning in &warnings {
                tracing::warn!(pod = %self.label(), "{warning}");
            }
            self.warnings = warnings;
        }
        let result = self.bring_to(plan, tools);
        match &result {
            Ok(()) => self.enter(State::Enrolled, None),
            Err(error) => {
                let reason = error.to_string();
                if self.reason.as_ref() != Some(&reason) {
                    tracing::error!(pod = %self.label(), %error, "the pod can't be enrolled");
                    Metrics::count(&tools.metrics.changes, "failure");
                }
                self.enter(State::Failing, Some(reason));
            }
        }
        result
    }

    fn bring_to(&mut self, plan: &Plan, tools: Tools<'_>) -> Result<(), PodError> {
        self.undo_routing_at = None;
        if self.watched.is_none() {
            // Before the first look, so that no change is missed.
            self.watched = Some(tools.watcher.watch(&self.record.uid, &self.netns)?);
        }
        if let (Some(applied), Some(_)) = (&self.applied, &self.listeners) {
            let settings = settings(
                plan,
                &self.record.ips,
                self.interfaces.host_ends.clone(),
                tools.config.udp,
            );
            if settings != *applied {
                tools.redirector.update(self.netns.cookie(), &settings)?;
                self.applied = Some(settings);
                Metrics::count(&tools.metrics.changes, "update");
                tracing::info!(pod = %self.label(), "redirection changed");
            }
            return self.keep(Some(plan), tools);
        }
        let ipv6 = sockets::has_ipv6(&self.netns)?;
        routing::install(&self.netns, ipv6)?;
        if self.listeners.is_none() {
            let proxies = tools.proxies.list();
            self.listeners = Some(Arc::new(match tools.config.listeners {
                Listeners::Agent => sockets::obtain(&self.netns, ipv6, &proxies)?,
                Listeners::Ztunnel => Vec::new(),
            }));
        }
        self.look_at_interfaces()?;
        let settings = settings(
            plan,
            &self.record.ips,
            self.interfaces.host_ends.clone(),
            tools.config.udp,
        );
        let held = self
            .listeners
            .as_deref()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let inbound = |family| {
            let found = held
                .iter()
                .find(|h| h.kind == Kind::InboundPlaintext && h.family == family);
            found.map(AsFd::as_fd)
        };
        // A pod that an earlier agent enrolled has connections of ztunnel, which are not to be reset.
        let again = self.record.plan.is_some();
        let done = tools.redirector.enrol(PodNetns {
            netns: self.netns.as_fd(),
            settings: &settings,
            inbound: InboundListeners {
                ipv4: inbound(Family::Ipv4),
                ipv6: inbound(Family::Ipv6),
            },
            older_connections: if again {
                OlderConnections::Leave
            } else {
                tools.config.older_connections
            },
        })?;
        self.applied = Some(settings);
        if !again {
            self.older = done.older_found;
            self.older_reset = done.older_reset;
            Metrics::count_many(&tools.metrics.older_connections, "found", done.older_found);
            Metrics::count_many(&tools.metrics.older_connections, "reset", done.older_reset);
        }
        Metrics::count(&tools.metrics.changes, "enrol");
        tracing::info!(
            pod = %self.label(), uid = %self.record.uid, cookie = self.netns.cookie(), again,
            older_connections = done.older_found, older_reset = done.older_reset, "enrolled"
        );
        self.keep(Some(plan), tools)
    }

    /// The next enrolment guards what is there now.
    pub(crate) fn look_at_interfaces(&mut self) -> Result<(), RoutingError> {
        self.interfaces = interfaces::find(&self.netns)?;
        let mut warnings = Vec::new();
        // A pod whose network is being taken down has nothing left to guard.
        if self.interfaces.host_ends.is_empty() && !self.deleted {
            warnings.push(
                "no interface of the pod has its other end in this network namespace: it has no guard"
                    .to_owned(),
            );
        }
        warnings.extend(self.interfaces.unguarded.iter().map(|name| {
            format!(
                "interface {name} of the pod has no other end in this network namespace: what raw \
                 sockets send through it is not guarded"
            )
        }));
        if warnings != self.guard_warnings {
            for warning in &warnings {
                tracing::warn!(pod = %self.label(), "{warning}");
            }
            self.guard_warnings = warnings;
        }
        Ok(())
    }

    /// Releases the pod, if it is enrolled; its connections go their own way again.
    pub(crate) fn release(&mut self, reason: &str, tools: Tools<'_>) -> Result<(), PodError> {
        let was_enrolled =
            self.applied.is_some() || self.record.plan.is_some() || self.listeners.is_some();
        if was_enrolled {
            if let Err(error) = tools.redirector.release(self.netns.cookie()) {
                self.enter(State::Failing, Some(format!("release: {error}")));
                return Err(error.into());
            }
            self.applied = None;
            self.listeners = None;
            self.watched = None;
            self.undo_routing_at = Some(Instant::now() + RELEASE_GRACE);
            Metrics::count(&tools.metrics.changes, "release");
            tracing::info!(pod = %self.label(), uid = %self.record.uid, reason, "released");
        }
        self.warnings.clear();
        self.guard_warnings.clear();
        self.enter(State::NotEnrolled, Some(reason.to_owned()));
        self.keep(None, tools)
    }

    /// The pod is gone: nothing of it is kept.
    pub(crate) fn forget(self, tools: Tools<'_>) {
        let label = self.label();
        if let Err(error) = tools.redirector.release(self.netns.cookie()) {
            // Its namespace is gone or going, and what is left in the maps goes at a reconcile.
            tracing::warn!(pod = %label, %error, "release of a pod that is gone");
        }
        if let Err(error) = tools.registry.remove(&self.record.uid) {
            tracing::warn!(pod = %label, %error, "remove a pod's record");
        }
        tracing::info!(pod = %label, uid = %self.record.uid, "gone");
    }

    /// Work that has waited: the way back of a released pod.
    pub(crate) fn tidy(&mut self, now: Instant) {
        if self.undo_routing_at.is_some_and(|at| at <= now) {
            self.undo_routing_at = None;
            if let Err(error) = routing::remove(&self.netns) {
                tracing::warn!(pod = %self.label(), %error, "remove the rule and route of a released pod");
            }
        }
    }

    /// Nothing of the pod is left: the runtime removed its namespace, and no process is in it.
    pub(crate) fn is_gone(&self) -> bool {
        let removed = self.deleted || (self.reopenable && !leads_to(&self.record, &self.netns));
        removed && !self.netns.has_processes()
    }

    pub(crate) fn has_processes(&self) -> bool {
        self.netns.has_processes()
    }

    /// As ztunnel is to be told of it; a pod that was enrolled before and fails now stays.
    pub(crate) fn served(&self) -> Option<ServedPod> {
        let plan = self.record.plan.as_ref()?;
        Some(ServedPod {
            uid: self.record.uid.clone(),
            name: self.record.name.clone(),
            namespace: self.record.namespace.clone(),
            service_account: plan.service_account.clone(),
            cookie: self.netns.cookie(),
            netns: self.netns.descriptor(),
            listeners: self.listeners.clone(),
        })
    }

    pub(crate) fn status(&self) -> PodStatus {
        PodStatus {
            uid: self.record.uid.clone(),
            namespace: self.record.namespace.clone(),
            name: self.record.name.clone(),
            state: self.state,
            reason: self.reason.clone(),
            since: seconds(self.since),
            enrolled_since: self.record.enrolled_since,
            netns_cookie: self.netns.cookie(),
            listeners: self.listeners.as_ref().map_or(0, |held| held.len()),
            older_connections: self.older,
            older_connections_reset: self.older_reset,
            warnings: self
                .warnings
                .iter()
                .chain(&self.guard_warnings)
                .cloned()
                .collect(),
            terminating: self.deleted,
        }
    }

    fn enter(&mut self, state: State, reason: Option<String>) {
        if self.state != state {
            self.since = SystemTime::now();
        }
        self.state = state;
        self.reason = reason;
    }

    fn keep(&mut self, plan: Option<&Plan>, tools: Tools<'_>) -> Result<(), PodError> {
        let since = plan.map(|_| {
            let earlier = self.record.enrolled_since;
            earlier.unwrap_or_else(|| seconds(SystemTime::now()))
        });
        if self.record.plan.as_ref() != plan || self.record.enrolled_since != since {
            self.record.plan = plan.cloned();
            self.record.enrolled_since = since;
            tools.registry.save(&self.record)?;
        }
        Ok(())
    }

    fn label(&self) -> String {
        format!("{}/{}", self.record.namespace, self.record.name)
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

fn leads_to(record: &Record, netns: &Netns) -> bool {
    use std::os::unix::fs::MetadataExt;
    let own = nix::sys::stat::fstat(netns);
    match (fs::metadata(&record.netns), own) {
        (Ok(found), Ok(own)) => (found.dev(), found.ino()) == (own.st_dev, own.st_ino),
        _ => false,
    }
}

fn settings(plan: &Plan, ips: &[IpAddr], host_ifindexes: BTreeSet<u32>, udp: Udp) -> PodSettings {
    PodSettings {
        ipv4: ips.iter().find_map(|ip| match ip {
            IpAddr::V4(ip) => Some(*ip),
            IpAddr::V6(_) => None,
        }),
        ipv6: ips.iter().find_map(|ip| match ip {
            IpAddr::V6(ip) => Some(*ip),
            IpAddr::V4(_) => None,
        }),
        host_ifindexes,
        excluded_outbound_ports: plan.excluded_outbound_ports.clone(),
        excluded_outbound_networks: plan.excluded_outbound_networks.clone(),
        excluded_inbound_ports: plan.excluded_inbound_ports.clone(),
        excluded_inbound_networks: plan.excluded_inbound_networks.clone(),
        probed_ports: plan.probed_ports.clone(),
        dns: if plan.dns {
            DnsCapture::UdpAndTcp
        } else {
            DnsCapture::Off
        },
        udp: plan.udp.unwrap_or(udp),
    }
}
