//! Live connections: what is known of each, and how one is ended from outside.
//!
//! A connection's own task fills a [`ConnectionInfo`] as it learns, and holds an [`Open`] while bytes flow; dropping
//! that takes it out of the [`Connections`]. The re-judging task ends those that a change of policy no longer allows;
//! the admin page lists them. One lock, held only to insert, remove and list.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use seine_hbone::Counters;
use seine_identity::Identity;
use seine_policy::Reason;
use seine_workload::{Service, Workload};
use tokio_util::sync::CancellationToken;
use tracing::Span;

use crate::pod::Pod;
use crate::telemetry::Traffic;

/// Which way a connection goes, seen from the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// The pod opened it.
    Outbound,
    /// Somebody opened it towards the pod.
    Inbound,
}

/// What carries it between the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Security {
    /// HBONE: mutual TLS.
    MutualTls,
    /// Plain TCP.
    Plaintext,
}

/// One end of a connection, as far as it is known.
#[derive(Debug, Clone, Default)]
pub struct Party {
    /// The verified identity; at the destination, the accepted one.
    pub identity: Option<Identity>,
    /// What the control plane says of it.
    pub workload: Option<Arc<Workload>>,
}

/// All that is known of a connection.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// The pod that it belongs to.
    pub pod: Arc<Pod>,
    /// Which way it goes.
    pub direction: Direction,
    /// What carries it between the nodes.
    pub security: Security,
    /// The client's address.
    pub client: SocketAddr,
    /// Where the client wanted to go.
    pub original: SocketAddr,
    /// Where it goes: the chosen endpoint, the waypoint, or the application.
    pub upstream: Option<SocketAddr>,
    /// The client.
    pub source: Party,
    /// The destination.
    pub destination: Party,
    /// The service that the client asked for.
    pub service: Option<Arc<Service>>,
    /// It goes through a waypoint of the destination.
    pub through_waypoint: bool,
    /// For whom a waypoint asks, as it says. Of anybody else this is forgotten with the verdict.
    pub on_behalf_of: Option<Identity>,
    /// The address of whom a waypoint asks for; the same.
    pub first_address: Option<SocketAddr>,
    /// What the verdict was based on; inbound only.
    pub because: Option<Reason>,
    /// When it was accepted.
    pub began: Instant,
    /// Its span, where traces are exported.
    pub span: Span,
}

impl ConnectionInfo {
    /// What is known when it has just been accepted.
    pub fn accepted(
        pod: &Arc<Pod>,
        direction: Direction,
        client: SocketAddr,
        original: SocketAddr,
    ) -> Self {
        Self {
            pod: Arc::clone(pod),
            direction,
            security: Security::Plaintext,
            client,
            original,
            upstream: None,
            source: Party::default(),
            destination: Party::default(),
            service: None,
            through_waypoint: false,
            on_behalf_of: None,
            first_address: None,
            because: None,
            began: Instant::now(),
            span: Span::none(),
        }
    }
}

impl ConnectionInfo {
    /// The client's address as the application is to see it: not the waypoint's that is in between.
    pub fn first_client(&self) -> SocketAddr {
        self.first_address.unwrap_or(self.client)
    }
}

/// A connection whose bytes flow.
#[derive(Debug)]
pub struct Live {
    /// Number of the connection, in the order of opening.
    pub id: u64,
    /// What is known of it.
    pub info: ConnectionInfo,
    /// When it was opened, for people.
    pub opened: SystemTime,
    /// Bytes between the application's TCP connection (`forth` is what it sends) and the other side.
    pub counters: Counters,
    /// Where its bytes are counted for metrics.
    pub(crate) traffic: OnceLock<Traffic>,
    revoked: CancellationToken,
    because: Mutex<Option<Reason>>,
}

impl Live {
    /// Ends the connection; the first reason counts.
    pub fn revoke(&self, because: Reason) {
        self.because.lock().get_or_insert(because);
        self.revoked.cancel();
    }

    /// Waits until the connection is to end, and says why.
    pub async fn revoked(&self) -> Reason {
        self.revoked.cancelled().await;
        self.because.lock().clone().unwrap_or(Reason::NoAllowPolicy)
    }

    /// Bytes that the client has sent.
    pub fn from_client(&self) -> u64 {
        match self.info.direction {
            Direction::Outbound => self.counters.forth(),
            Direction::Inbound => self.counters.back(),
        }
    }

    /// Bytes that the client was sent.
    pub fn to_client(&self) -> u64 {
        match self.info.direction {
            Direction::Outbound => self.counters.back(),
            Direction::Inbound => self.counters.forth(),
        }
    }

    /// How long it has lived.
    pub fn age(&self) -> Duration {
        self.info.began.elapsed()
    }
}

/// All live connections of the proxy.
#[derive(Debug, Default)]
pub struct Connections {
    live: Mutex<HashMap<u64, Arc<Live>>>,
    next: AtomicU64,
}

impl Connections {
    /// Enters a connection until the returned value is dropped.
    pub fn open(self: &Arc<Self>, info: ConnectionInfo) -> Open {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let live = Arc::new(Live {
            id,
            info,
            opened: SystemTime::now(),
            counters: Counters::default(),
            traffic: OnceLock::new(),
            revoked: CancellationToken::new(),
            because: Mutex::new(None),
        });
        self.live.lock().insert(id, Arc::clone(&live));
        Open {
            live,
            connections: Arc::clone(self),
        }
    }

    /// All of them, in the order of opening.
    pub fn list(&self) -> Vec<Arc<Live>> {
        let mut all: Vec<_> = self.live.lock().values().cloned().collect();
        all.sort_unstable_by_key(|live| live.id);
        all
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.live.lock().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.live.lock().is_empty()
    }
}

/// A live connection's entry; dropping it removes the connection.
#[derive(Debug)]
pub struct Open {
    live: Arc<Live>,
    connections: Arc<Connections>,
}

impl std::ops::Deref for Open {
    type Target = Live;

    fn deref(&self) -> &Live {
        &self.live
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.connections.live.lock().remove(&self.live.id);
    }
}
