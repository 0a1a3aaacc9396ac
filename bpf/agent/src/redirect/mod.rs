//! Redirection: everything the agent does through bpf(2).
//!
//! Owns the eBPF programs, their links and maps, pinned below one folder of a bpffs so that they
//! outlive the agent. What always holds: a pinned link runs either the old or the new program,
//! never both and never none; after a take-over that failed all run the old ones; a pod that is enrolled stays so until [`Redirect::release`],
//! [`Redirect::uninstall`], or the end of its netns; the agent's own netns is never enrolled.
//!
//! All methods block for short system calls (a program load takes some milliseconds), take `&self`
//! and may be called from any thread in the agent's netns, best through `spawn_blocking`; changes
//! are serialised inside.

mod canary;
mod cgroup;
mod error;
mod guard;
mod links;
mod model;
mod netns;
mod node;
mod object;
mod older;
mod pods;
mod settings;
mod sys;

use std::path::PathBuf;

use parking_lot::Mutex;

pub use error::RedirectError;
pub use model::{
    Attachment, Counters, DnsCapture, EnrolledPod, Enrolment, InboundListeners, OlderConnections,
    PodNetns, PodSettings, RedirectConfig, Repairs, Status, Udp,
};
pub use netns::netns_cookie;
pub use seine_bpf_common::{Counter, DNS_PORT, HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT};

use guard::Guard;
use links::{Done, Journal};
use node::Node;
use object::{Loaded, Pins};

type Result<T> = std::result::Result<T, RedirectError>;

/// The redirection of this node.
#[derive(Debug)]
pub struct Redirect {
    pins: Pins,
    node: Node,
    guard: Guard,
    host_cookies: Vec<u64>,
    loaded: Mutex<Loaded>,
}

impl Redirect {
    /// Loads the programs and takes over what is pinned: maps are reused if their schema is this
    /// agent's, pinned links get the new programs atomically, missing ones are made. One agent at a
    /// time may do this for one `bpffs` folder.
    ///
    /// # Errors
    ///
    /// [`RedirectError::Schema`] or [`RedirectError::ForeignMap`] if the pinned maps have another layout; then
    /// nothing was touched. On any later error the links run again what they ran before.
    /// [`RedirectError::Cgroup`] if a configured cgroup is of no use.
    pub fn load(config: RedirectConfig) -> Result<Self> {
        let host_cookies = netns::host_cookies()?;
        let node = Node::open(&config)?;
        let pins = Pins::make(&config.bpffs)?;
        let mut loaded = Loaded::load(&pins)?;
        node.set_proxies(&mut loaded, &config.ztunnel_cgroups)?;
        let guard = Guard::new();
        let mut journal = Journal::default();
        let taken = node
            .attach(&loaded, &pins, &mut journal)
            .and_then(|attached| {
                let repairs = pods::reconcile(&mut loaded, &pins, &guard, true, &mut journal)?;
                Ok((attached, repairs))
            });
        let (attached, repairs) = match taken {
            Ok(taken) => taken,
            Err(error) => {
                journal.undo();
                return Err(error);
            }
        };
        let removed = node.remove_unwanted(&loaded, &pins)?;
        for (name, done) in attached.into_iter().chain(removed) {
            tracing::debug!(program = name, "{done}");
        }
        for repaired in &repairs.repaired {
            tracing::info!("{repaired}");
        }
        Ok(Self {
            pins,
            node,
            guard,
            host_cookies,
            loaded: Mutex::new(loaded),
        })
    }

    /// Compares what is really attached with what should be, and repairs it. Releases pods whose
    /// netns is gone.
    pub fn reconcile(&self) -> Result<Repairs> {
        let mut loaded = self.loaded.lock();
        let mut repairs = Repairs::default();
        let mut journal = Journal::default();
        let mut attached = self.node.attach(&loaded, &self.pins, &mut journal)?;
        attached.extend(self.node.remove_unwanted(&loaded, &self.pins)?);
        for (name, done) in attached {
            if done != Done::Nothing {
                repairs.repaired.push(format!("program {name} {done}"));
            }
        }
        let pods = pods::reconcile(&mut loaded, &self.pins, &self.guard, false, &mut journal)?;
        repairs.repaired.extend(pods.repaired);
        repairs.vanished = pods.vanished;
        Ok(repairs)
    }

    /// The redirection as the kernel has it now.
    pub fn status(&self) -> Result<Status> {
        let loaded = self.loaded.lock();
        let proxies = loaded
            .proxies
            .get(&0, 0)
            .map_err(|error| RedirectError::program("reading map PROXIES", error))?;
        Ok(Status {
            schema: seine_bpf_common::SCHEMA,
            attachments: self.node.status(&loaded, &self.pins)?,
            proxy_cgroup_ids: proxies
                .slots
                .iter()
                .map(|slot| slot.id)
                .filter(|id| *id != 0)
                .collect(),
            guard_by_tcx: self.guard.by_tcx(),
            pods: pods::list(&loaded, &self.pins, &self.guard)?,
            counters: counters(&loaded)?
                .into_iter()
                .map(|(c, n)| (c.name(), n))
                .collect(),
        })
    }

    /// Proves that a connection of a process below the pods' cgroup, in an enrolled netns, is
    /// caught with its original destination (IPv4, and IPv6 where the node has it). Takes some
    /// milliseconds. The agent is not ready before it succeeded.
    ///
    /// # Errors
    ///
    /// [`RedirectError::Canary`] says what was seen instead.
    pub fn canary(&self) -> Result<()> {
        canary::run(self, self.node.pods_path())
    }

    /// Enrols a pod, or takes it over: the same netns again gets the settings and listeners given
    /// now. When this returns, its connections are caught and guarded.
    ///
    /// # Errors
    ///
    /// [`RedirectError::Refused`] for the host's netns. On any error a new pod is as it was before;
    /// one that was already enrolled stays enrolled.
    pub fn enrol(&self, pod: PodNetns<'_>) -> Result<Enrolment> {
        let identity = netns::identity(pod.netns)?;
        let cookie = identity.cookie;
        if self.host_cookies.contains(&cookie) {
            return Err(RedirectError::Refused(
                "its network namespace is the host's (hostNetwork)".into(),
            ));
        }
        let mut loaded = self.loaded.lock();
        let fresh = loaded.enrolled.get(&cookie, 0).is_err();
        let done = pods::enrol(
            &mut loaded,
            &self.pins,
            &self.guard,
            identity,
            pod.netns,
            pod.settings,
            pod.inbound,
        );
        if let Err(error) = done {
            if fresh && let Err(undo) = pods::release(&mut loaded, &self.pins, &self.guard, cookie)
            {
                tracing::warn!(cookie, %undo, "a failed enrolment was not undone wholly");
            }
            return Err(error);
        }
        drop(loaded);
        let (older_found, older_reset) = if fresh {
            older::settle(pod.netns, pod.settings, pod.older_connections).unwrap_or_else(|error| {
                // The pod is enrolled; a kernel without sock_diag only can't count.
                tracing::warn!(cookie, %error, "connections older than the enrolment stay");
                (0, 0)
            })
        } else {
            (0, 0)
        };
        Ok(Enrolment {
            cookie,
            netns_inode: identity.inode,
            older_found,
            older_reset,
        })
    }

    /// Changes an enrolled pod's settings.
    ///
    /// # Errors
    ///
    /// [`RedirectError::NotEnrolled`].
    pub fn update(&self, cookie: u64, settings: &PodSettings) -> Result<()> {
        pods::update(
            &mut self.loaded.lock(),
            &self.pins,
            &self.guard,
            cookie,
            settings,
        )
    }

    /// Hands a pod's inbound connections to other listeners; those before keep what they accepted.
    /// A family without a listener is refused.
    ///
    /// # Errors
    ///
    /// [`RedirectError::NotEnrolled`].
    pub fn set_listeners(&self, cookie: u64, inbound: InboundListeners<'_>) -> Result<()> {
        let mut loaded = self.loaded.lock();
        if loaded.enrolled.get(&cookie, 0).is_err() {
            return Err(RedirectError::NotEnrolled(cookie));
        }
        pods::set_listeners(&mut loaded, cookie, inbound)
    }

    /// Releases a pod: its connections go their own way again. A pod that is not enrolled is fine.
    pub fn release(&self, cookie: u64) -> Result<()> {
        pods::release(&mut self.loaded.lock(), &self.pins, &self.guard, cookie)
    }

    /// The enrolled pods, also those that an earlier agent enrolled.
    pub fn enrolled(&self) -> Result<Vec<EnrolledPod>> {
        pods::list(&self.loaded.lock(), &self.pins, &self.guard)
    }

    /// Says which cgroups hold node proxies from now on (a new proxy's pod has a new cgroup); at
    /// most four. Sockets that a proxy has made keep their mark.
    ///
    /// # Errors
    ///
    /// [`RedirectError::Cgroup`] for one that is not below the pods' cgroup.
    pub fn set_proxy_cgroups(&self, cgroups: &[PathBuf]) -> Result<()> {
        self.node.set_proxies(&mut self.loaded.lock(), cgroups)
    }

    /// All counters, summed over processors.
    pub fn counters(&self) -> Result<Counters> {
        counters(&self.loaded.lock())
    }

    /// Detaches and removes everything, and releases every pod. Afterwards connections are in
    /// plaintext.
    pub fn uninstall(self) -> Result<()> {
        let mut loaded = self.loaded.lock();
        for pod in pods::list(&loaded, &self.pins, &self.guard)? {
            pods::release(&mut loaded, &self.pins, &self.guard, pod.cookie)?;
        }
        // Only pins are below, which go as files do.
        let root = self.pins.root();
        std::fs::remove_dir_all(root)
            .map_err(|error| RedirectError::call("unlink", root.display().to_string(), error))
    }
}

fn counters(loaded: &Loaded) -> Result<Counters> {
    Counter::ALL
        .iter()
        .map(|counter| {
            let values = loaded
                .counters
                .get(&(*counter as u32), 0)
                .map_err(|error| RedirectError::program("reading map COUNTERS", error))?;
            Ok((*counter, values.iter().sum()))
        })
        .collect()
}
