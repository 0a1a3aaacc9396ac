//! The store: one writer, many readers.
//!
//! The writer (the xDS stream's task, or the start of the program with the last good
//! configuration) calls the `apply_` functions and [`Store::restore`]. Readers may be any task;
//! none holds the lock across an await. A reader that waits subscribes first, then reads, then
//! waits for the change.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use prost::Message;
use rand::Rng;
use seine_identity::Identity;
use seine_policy::{Applicable, Policy};
use seine_proto::discovery::Resource;
use seine_proto::{security, workload as proto};
use tokio::sync::watch;

use crate::index::AddressIndex;
use crate::intern::Interner;
use crate::model::{Service, ServiceKey, Workload};
use crate::parse::{ParseError, parse_policy, parse_service, parse_workload, service_key};
use crate::policies::{PolicyIndex, RefusedScope};
use crate::resolve::{
    Destination, Question, Spread, Unavailable, Upstream, backends, resolve, spread, to_backend,
    to_service,
};

/// Resources that are applied under one write lock, so that readers needn't wait for thousands.
const BATCH: usize = 256;

/// What the control plane says there is.
pub struct Store {
    network: Arc<str>,
    state: RwLock<State>,
    /// Taken for writing before `state`.
    writer: Mutex<Interner>,
    changes: watch::Sender<u64>,
    policy_changes: watch::Sender<u64>,
}

pub(crate) struct State {
    pub(crate) addresses: AddressIndex,
    pub(crate) policies: PolicyIndex,
}

/// A resource that was refused. What was held under its name is still in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {error}")]
pub struct Rejected {
    /// The resource's name.
    pub name: String,
    /// What is wrong with it.
    pub error: ParseError,
}

/// How much a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Counts {
    pub workloads: usize,
    pub services: usize,
    pub policies: usize,
}

/// What one `Address` resource became.
enum Parsed {
    Workload(Workload),
    Service(Service),
}

impl Store {
    /// An empty store of a node in `network` (empty for a mesh of one network).
    pub fn new(network: &str) -> Self {
        Self {
            network: network.into(),
            state: RwLock::new(State {
                addresses: AddressIndex::default(),
                policies: PolicyIndex::default(),
            }),
            writer: Mutex::new(Interner::new()),
            changes: watch::Sender::new(0),
            policy_changes: watch::Sender::new(0),
        }
    }

    /// The network of this node.
    pub fn network(&self) -> &str {
        &self.network
    }

    /// Applies a push of `istio.workload.Address` resources, one by one. Returns those refused.
    ///
    /// The removals come last: an address that passes from one to another is at no moment unknown, when
    /// connections to it would leave in plaintext. Where both have it, the newer workload does.
    pub fn apply_addresses(&self, resources: &[Resource], removed: &[String]) -> Vec<Rejected> {
        let mut interner = self.writer.lock();
        let mut judged_anew = false;
        let mut rejected = Vec::new();
        for batch in resources.chunks(BATCH) {
            let parsed: Vec<_> = batch
                .iter()
                .map(|resource| parse_address(resource, &mut interner))
                .collect();
            let mut state = self.state.write();
            for (resource, parsed) in batch.iter().zip(parsed) {
                match parsed {
                    Ok(Parsed::Workload(new)) => {
                        let old = state.addresses.workload(&new.uid);
                        // One that comes back may have left with connections that live on.
                        judged_anew |= old.is_none_or(|old| judged_differently(old, &new));
                        state.addresses.insert_workload(&resource.version, new);
                    }
                    Ok(Parsed::Service(new)) => {
                        state.addresses.insert_service(&resource.version, new);
                    }
                    Err(error) => {
                        let name = resource.name.clone();
                        rejected.push(Rejected { name, error });
                    }
                }
            }
        }
        let pushed: HashSet<_> = resources.iter().map(|resource| &*resource.name).collect();
        for names in removed.chunks(BATCH) {
            let mut state = self.state.write();
            for name in names.iter().filter(|name| !pushed.contains(&***name)) {
                judged_anew |= state.addresses.remove_workload(name).is_some();
                // Nothing keeps a workload from having a service's name.
                if let Ok(key) = service_key(name, &mut interner) {
                    state.addresses.remove_service(&key);
                }
            }
        }
        drop(interner);
        bump(&self.changes);
        if judged_anew {
            bump(&self.policy_changes);
        }
        rejected
    }

    /// Applies a push of `istio.security.Authorization` resources. Returns those refused.
    pub fn apply_policies(&self, resources: &[Resource], removed: &[String]) -> Vec<Rejected> {
        let mut interner = self.writer.lock();
        let mut rejected = Vec::new();
        let parsed: Vec<_> = resources
            .iter()
            .map(|r| (r, parse_authorization(r, &mut interner)))
            .collect();
        let mut state = self.state.write();
        for name in removed {
            state.policies.remove(name);
        }
        for (resource, parsed) in parsed {
            match parsed {
                Ok(policy) => state.policies.insert(&resource.version, policy),
                Err((error, scope)) => {
                    state.policies.refuse(resource, scope);
                    rejected.push(Rejected {
                        name: resource.name.clone(),
                        error,
                    });
                }
            }
        }
        state.policies.finish();
        drop(state);
        drop(interner);
        bump(&self.changes);
        bump(&self.policy_changes);
        rejected
    }

    /// Names and versions of the workloads and services held.
    pub fn held_addresses(&self) -> impl Iterator<Item = (String, String)> {
        let state = self.read();
        let mut held =
            Vec::with_capacity(state.addresses.workload_count() + state.addresses.service_count());
        for workload in state.addresses.workloads() {
            held.push((workload.value.uid.to_string(), workload.version.to_string()));
        }
        for service in state.addresses.services() {
            held.push((service.value.key.to_string(), service.version.to_string()));
        }
        held.into_iter()
    }

    /// Names and versions of the policies held.
    pub fn held_policies(&self) -> impl Iterator<Item = (String, String)> {
        let state = self.read();
        let held = state.policies.all();
        let held: Vec<_> = held
            .map(|held| (held.value.key.to_string(), held.version.to_string()))
            .collect();
        held.into_iter()
    }

    /// Where a connection to `destination` goes, for a client on this node.
    ///
    /// `exclude` names workloads (by uid) that were tried for this connection in vain.
    ///
    /// # Errors
    ///
    /// The mesh knows the destination, but nothing can take the connection. It must not be made
    /// in another way.
    pub fn resolve(
        &self,
        destination: SocketAddr,
        source: Option<&Workload>,
        exclude: &[Arc<str>],
    ) -> Result<Destination, Unavailable> {
        self.resolve_with(destination, source, exclude, &mut rand::rng())
    }

    /// [`Store::resolve`] with a source of randomness, for tests.
    ///
    /// # Errors
    ///
    /// As [`Store::resolve`].
    pub fn resolve_with(
        &self,
        destination: SocketAddr,
        source: Option<&Workload>,
        exclude: &[Arc<str>],
        random: &mut impl Rng,
    ) -> Result<Destination, Unavailable> {
        let question = self.question(destination, source, exclude);
        resolve(&self.read().addresses, &question, random)
    }

    /// The same for a service that its caller, a waypoint, knows by name: one of its workloads, whatever waypoint
    /// the service itself is bound to. By an address of the family of `client` if there is one, so that the workload can
    /// see the client's.
    ///
    /// # Errors
    ///
    /// As [`Store::resolve`].
    pub fn resolve_backend(
        &self,
        service: &Arc<Service>,
        port: u16,
        client: IpAddr,
        source: Option<&Workload>,
        exclude: &[Arc<str>],
    ) -> Result<Destination, Unavailable> {
        let question = self.of_backend(service, port, client, source, exclude);
        to_backend(&self.read().addresses, service, &question, &mut rand::rng())
    }

    /// The same for a client of the mesh, such as a Gateway: where the service is bound to a waypoint, to that.
    ///
    /// # Errors
    ///
    /// As [`Store::resolve`].
    pub fn resolve_service(
        &self,
        service: &Arc<Service>,
        port: u16,
        client: IpAddr,
        source: Option<&Workload>,
        exclude: &[Arc<str>],
    ) -> Result<Destination, Unavailable> {
        let question = self.of_backend(service, port, client, source, exclude);
        to_service(&self.read().addresses, service, &question, &mut rand::rng())
    }

    /// All of the workloads of which [`Store::resolve_backend`] chooses one; at least one, in no order.
    ///
    /// # Errors
    ///
    /// As [`Store::resolve`].
    pub fn backends(
        &self,
        service: &Arc<Service>,
        port: u16,
        client: IpAddr,
        source: Option<&Workload>,
        exclude: &[Arc<str>],
    ) -> Result<Vec<Upstream>, Unavailable> {
        let question = self.of_backend(service, port, client, source, exclude);
        backends(&self.read().addresses, service, &question, &mut rand::rng())
    }

    /// The same wherever they are, unless the service's scopes are strict; and how many workloads of the service a zone has, those that
    /// can't be chosen now too.
    ///
    /// # Errors
    ///
    /// As [`Store::resolve`].
    pub fn spread(
        &self,
        service: &Arc<Service>,
        port: u16,
        client: IpAddr,
        source: Option<&Workload>,
        zone: &str,
    ) -> Result<Spread, Unavailable> {
        let question = self.of_backend(service, port, client, source, &[]);
        let state = self.read();
        spread(&state.addresses, service, &question, zone, &mut rand::rng())
    }

    fn of_backend<'a>(
        &'a self,
        service: &Service,
        port: u16,
        client: IpAddr,
        source: Option<&'a Workload>,
        exclude: &'a [Arc<str>],
    ) -> Question<'a> {
        let destination = SocketAddr::new(address_like(service, client), port);
        self.question(destination, source, exclude)
    }

    fn question<'a>(
        &'a self,
        destination: SocketAddr,
        source: Option<&'a Workload>,
        exclude: &'a [Arc<str>],
    ) -> Question<'a> {
        Question {
            destination,
            source,
            network: &self.network,
            exclude,
        }
    }

    /// The policies that a service's waypoint enforces.
    pub fn policies_at_waypoint(&self, service: &Service) -> Applicable {
        self.read().policies.at_waypoint(service)
    }

    /// The policies that judge connections to a workload.
    pub fn policies_for(&self, workload_uid: &str) -> Applicable {
        let state = self.read();
        match state.addresses.workload(workload_uid) {
            Some(workload) => state.policies.applicable(workload),
            None => {
                let name = format!("workload {workload_uid} is not known");
                Applicable::Missing(Arc::new([name.into()]))
            }
        }
    }

    /// Whether a client may reach a port that is bound to waypoints: by its identity, and because
    /// its address is one of a workload that has that identity. True for a port that isn't bound.
    pub fn admits(
        &self,
        workload: &Workload,
        target_port: u16,
        identity: Option<&Identity>,
        source: IpAddr,
    ) -> bool {
        let Some(waypoints) = workload.bound_to(target_port) else {
            return true;
        };
        let Some(identity) = identity.filter(|identity| waypoints.contains(identity)) else {
            return false;
        };
        self.workload_at(source)
            .is_some_and(|client| client.identity == *identity)
    }

    /// A workload by uid.
    pub fn workload(&self, uid: &str) -> Option<Arc<Workload>> {
        self.read().addresses.workload(uid).cloned()
    }

    /// The workload at an address of this node's network.
    pub fn workload_at(&self, address: IpAddr) -> Option<Arc<Workload>> {
        self.workload_at_network(&self.network, address)
    }

    /// The workload at an address of a network.
    pub fn workload_at_network(&self, network: &str, address: IpAddr) -> Option<Arc<Workload>> {
        self.read()
            .addresses
            .workload_at(network, address.to_canonical())
            .cloned()
    }

    /// The workload of a pod, as the agent names it. Of pods of the same name in several
    /// clusters that in `cluster_id`.
    pub fn pod(&self, cluster_id: &str, namespace: &str, name: &str) -> Option<Arc<Workload>> {
        let state = self.read();
        let mut here = state
            .addresses
            .workloads_named(namespace, name)
            .iter()
            .filter(|workload| {
                *workload.cluster_id == *cluster_id || workload.cluster_id.is_empty()
            });
        let first = here.next()?;
        if here.clone().next().is_none() {
            return Some(first.clone());
        }
        let usual = format!("{cluster_id}//Pod/{namespace}/{name}");
        let usual = here.find(|workload| *workload.uid == *usual);
        Some(usual.unwrap_or(first).clone())
    }

    /// How many workloads are behind a service, whatever their state.
    pub fn endpoint_count(&self, service: &ServiceKey) -> usize {
        let state = self.read();
        let entry = state.addresses.entry(service);
        entry.map_or(0, |entry| entry.endpoints.len())
    }

    /// A service by namespace and hostname.
    pub fn service(&self, key: &ServiceKey) -> Option<Arc<Service>> {
        self.read()
            .addresses
            .entry(key)?
            .service
            .as_ref()
            .map(|held| held.value.clone())
    }

    /// The service at an address of this node's network, as seen from a namespace.
    pub fn service_at(&self, address: IpAddr, from: Option<&str>) -> Option<Arc<Service>> {
        let address = address.to_canonical();
        self.read()
            .addresses
            .service_at(&self.network, address, from)
            .cloned()
    }

    /// The service of a full DNS name in lower case, without the dot at its end, as seen from a
    /// namespace. A wildcard service is found by `*.` and its domain.
    pub fn service_named(&self, hostname: &str, from: Option<&str>) -> Option<Arc<Service>> {
        self.read().addresses.service_named(hostname, from).cloned()
    }

    /// The workloads that back a service.
    pub fn endpoints(&self, key: &ServiceKey) -> Vec<Arc<Workload>> {
        self.read()
            .addresses
            .entry(key)
            .map(|entry| entry.endpoints.clone())
            .unwrap_or_default()
    }

    /// A policy by `namespace/name`.
    pub fn policy(&self, name: &str) -> Option<Arc<Policy>> {
        self.read().policies.get(name).cloned()
    }

    /// All workloads, in no order.
    pub fn workloads(&self) -> Vec<Arc<Workload>> {
        self.read()
            .addresses
            .workloads()
            .map(|held| held.value.clone())
            .collect()
    }

    /// All services, in no order.
    pub fn services(&self) -> Vec<Arc<Service>> {
        self.read()
            .addresses
            .services()
            .map(|held| held.value.clone())
            .collect()
    }

    /// All policies, in no order.
    pub fn policies(&self) -> Vec<Arc<Policy>> {
        self.read()
            .policies
            .all()
            .map(|held| held.value.clone())
            .collect()
    }

    /// How much is held.
    pub fn counts(&self) -> Counts {
        let state = self.read();
        Counts {
            workloads: state.addresses.workload_count(),
            services: state.addresses.service_count(),
            policies: state.policies.len(),
        }
    }

    /// Tells of every change, as a number that grows.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Tells of the changes after which live inbound connections are to be judged again: of
    /// policies, and of what a workload is judged by.
    pub fn policies_changed(&self) -> watch::Receiver<u64> {
        self.policy_changes.subscribe()
    }

    pub(crate) fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read()
    }
}

fn bump(changes: &watch::Sender<u64>) {
    changes.send_modify(|n| *n = n.wrapping_add(1));
}

/// Whether connections to a workload are judged by other things than before.
fn judged_differently(old: &Workload, new: &Workload) -> bool {
    old.policies != new.policies
        || old.namespace != new.namespace
        || old.identity != new.identity
        || old.addresses != new.addresses
        || old.extension != new.extension
}

fn parse_address(resource: &Resource, interner: &mut Interner) -> Result<Parsed, ParseError> {
    let message: proto::Address = decode(resource)?;
    match message.r#type {
        Some(proto::address::Type::Workload(message)) => {
            let workload = parse_workload(&message, interner)?;
            check_name(&resource.name, &workload.uid)?;
            Ok(Parsed::Workload(workload))
        }
        Some(proto::address::Type::Service(message)) => {
            let service = parse_service(&message, interner)?;
            let name = resource.name.to_ascii_lowercase();
            check_name(&name, &service.key.to_string().to_ascii_lowercase())?;
            // A slash in the namespace: the name, divided again, is another service's.
            if service_key(&resource.name, interner)? != service.key {
                return Err(ParseError::new("namespace", "has a slash"));
            }
            Ok(Parsed::Service(service))
        }
        None => Err(ParseError::new(
            "type",
            "is neither a workload nor a service",
        )),
    }
}

fn parse_authorization(
    resource: &Resource,
    interner: &mut Interner,
) -> Result<Policy, (ParseError, RefusedScope)> {
    let message: security::Authorization =
        decode(resource).map_err(|error| (error, RefusedScope::of(&resource.name, None)))?;
    let parsed = parse_policy(&message, interner).and_then(|policy| {
        check_name(&resource.name, &policy.key.to_string())?;
        Ok(policy)
    });
    parsed.map_err(|error| {
        let scope = RefusedScope::of(&resource.name, Some(&message));
        (error, scope)
    })
}

fn decode<M: Message + Default>(resource: &Resource) -> Result<M, ParseError> {
    let any = resource.resource.as_ref();
    let any = any.ok_or_else(|| ParseError::new("resource", "is missing"))?;
    M::decode(&*any.value).map_err(|error| ParseError::new("resource", error.to_string()))
}

/// An address of a service, of the family of `client` if there is one; the client's own where the service has none.
fn address_like(service: &Service, client: IpAddr) -> IpAddr {
    let addresses = service.addresses.iter();
    let mut addresses = addresses.filter_map(|address| address.single());
    let like = |address: &IpAddr| address.is_ipv4() == client.is_ipv4();
    let found = addresses.clone().find(like);
    found.or_else(|| addresses.next()).unwrap_or(client)
}

/// A removal goes by the resource's name alone, so that must be what the content is held under.
fn check_name(name: &str, key: &str) -> Result<(), ParseError> {
    if name == key {
        return Ok(());
    }
    Err(ParseError::new(
        "name",
        format!("`{name}` is not the content's own, `{key}`"),
    ))
}
