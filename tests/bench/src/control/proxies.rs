//! Node proxies that speak the real protocol over TLS, each by a connection of its own. They keep a hash of each name and
//! version and nothing else, so that one machine has room for a thousand.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::{Result, ensure};
use prost::Message;
use seine_proto::discovery::Resource;
use seine_xds::{Client, Handler, NodeInfo, Protocol, Refused};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use super::{Control, PATIENCE};

/// The pod that changes.
const CHANGED: &str = "Kubernetes//Pod/changes/changed";
/// Proxies that are sent everything at the same time: each costs the control plane a message as large as the mesh.
pub(super) const AT_ONCE: usize = 4;

/// Each proxy has what there is when this returns.
pub(super) async fn connect(
    which: Range<usize>,
    control: &Control,
    mesh: &Arc<Mesh>,
    running: &mut JoinSet<()>,
) -> Result<Vec<Arc<Proxy>>> {
    let room = Arc::new(Semaphore::new(AT_ONCE));
    let mut proxies = Vec::new();
    let mut synchronising = JoinSet::new();
    for index in which {
        let permit = room.clone().acquire_owned().await?;
        let proxy = Arc::new(Proxy {
            held: Mutex::new(mesh.hashes()),
            mesh: mesh.clone(),
            names: Mutex::new((index == 0).then(HashMap::new)),
        });
        proxies.push(proxy.clone());
        let node = NodeInfo {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            pod: format!("seine-ztunnel-{index}"),
            namespace: "seine-system".into(),
            node: format!("node-{index}"),
            metadata: Default::default(),
        };
        let client = Client::new(control.grpc(), Protocol::new(&node), proxy);
        let mut status = client.status();
        running.spawn(async move {
            let never = client.run().await;
            match never {}
        });
        synchronising.spawn(async move {
            let ready = status.wait_for(|status| status.ready);
            let ready = tokio::time::timeout(PATIENCE, ready).await;
            drop(permit);
            ready.map(|ready| ready.is_ok()).unwrap_or(false)
        });
    }
    let all = synchronising.join_all().await;
    ensure!(
        all.iter().all(|ready| *ready),
        "a proxy got no configuration"
    );
    Ok(proxies)
}

/// What all proxies count together.
#[derive(Default)]
pub(super) struct Mesh {
    /// Of resources and removals, before HTTP/2 and TLS.
    pub(super) bytes: AtomicU64,
    /// How often one was sent the pod that changes, but for the first time.
    arrivals: AtomicU64,
    arrived: Notify,
    /// What one that comes back holds: names and versions by type, and their hashes.
    known: OnceLock<(Versions, HashMap<u32, u32>)>,
}

/// Names and versions by type.
type Versions = HashMap<String, HashMap<String, String>>;

impl Mesh {
    /// Whoever comes from now on holds what this one does.
    pub(super) fn remember(&self, first: &Proxy) {
        let mut names = first.names.lock().unwrap_or_else(PoisonError::into_inner);
        let held = first.held.lock().unwrap_or_else(PoisonError::into_inner);
        let known = (names.take().unwrap_or_default(), held.clone());
        assert!(self.known.set(known).is_ok(), "it is remembered once");
    }

    fn hashes(&self) -> HashMap<u32, u32> {
        self.known
            .get()
            .map(|(_, hashes)| hashes.clone())
            .unwrap_or_default()
    }

    pub(super) async fn arrivals_are(&self, wanted: u64) {
        loop {
            let arrived = self.arrived.notified();
            if self.arrivals.load(Ordering::Acquire) >= wanted {
                return;
            }
            arrived.await;
        }
    }
}

/// One proxy's memory: a hash of each name, and of its version.
pub(super) struct Proxy {
    held: Mutex<HashMap<u32, u32>>,
    mesh: Arc<Mesh>,
    /// Of the first proxy, until the others come.
    names: Mutex<Option<Versions>>,
}

impl Proxy {
    /// How many resources, and which.
    pub(super) fn digest(&self) -> (usize, u64) {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let one = |(name, version): (&u32, &u32)| u64::from(*name) << 32 | u64::from(*version);
        (
            held.len(),
            held.iter().map(one).fold(0, |all, one| all ^ hash(&one)),
        )
    }
}

impl Handler for Proxy {
    fn held(&self, kind: &str) -> HashMap<String, String> {
        let known = self.mesh.known.get();
        known
            .and_then(|(versions, _)| versions.get(kind).cloned())
            .unwrap_or_default()
    }

    fn apply(&self, kind: &str, resources: &[Resource], removed: &[String]) -> Vec<Refused> {
        if let Some(names) = &mut *self.names.lock().unwrap_or_else(PoisonError::into_inner) {
            let pairs = resources
                .iter()
                .map(|one| (one.name.clone(), one.version.clone()));
            names.entry(kind.to_owned()).or_default().extend(pairs);
        }
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes: usize = removed.iter().map(String::len).sum();
        for name in removed {
            held.remove(&short(name));
        }
        for resource in resources {
            bytes += resource.encoded_len();
            let before = held.insert(short(&resource.name), short(&resource.version));
            if resource.name == CHANGED && before.is_some() {
                self.mesh.arrivals.fetch_add(1, Ordering::Release);
                self.mesh.arrived.notify_waiters();
            }
        }
        self.mesh.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        Vec::new()
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Half of the hash is enough.
fn short(text: &str) -> u32 {
    hash(&text) as u32
}
