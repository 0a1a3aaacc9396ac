//! What one proxy holds and is sent next. No I/O, no clock.
//!
//! What always holds: at most one response of a type is unanswered; a policy is sent before the
//! workloads that name it and removed after them; a version that the client has, rejected or not,
//! is not sent again until it changes.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use prost::Message as _;
use seine_proto::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use seine_proto::extensions::RefusedResources;
use seine_proto::{REFUSED_RESOURCES_TYPE, rpc};
use thiserror::Error;

use super::{ResourceType, Snapshot, TypeResources, held::Held};

/// More subscriptions than this are refused: memory is the server's.
const MAX_SUBSCRIPTIONS: usize = 200_000;
/// A wildcard subscription.
const WILDCARD: &str = "*";

/// The server's view of one connected proxy.
#[derive(Debug, Default)]
pub struct Client {
    /// The id of its xDS node, from its first request.
    pub node_id: String,
    /// `NODE_NAME` of its metadata: the Kubernetes node that it serves.
    pub node_name: String,
    streams: HashMap<ResourceType, TypeStream>,
    nonces: u64,
    /// The service account that it has shown a token of.
    account: String,
}

/// One type of one client.
#[derive(Debug, Default)]
pub struct TypeStream {
    /// It asked for everything.
    pub wildcard: bool,
    subscriptions: BTreeSet<String>,
    /// Subscriptions that were answered with "there is no such thing".
    told_missing: HashSet<String>,
    /// What it was last sent or said that it holds, by name.
    held: Held,
    /// Names in `held` of whose version it has not said that it applied it.
    rejected: HashMap<Arc<str>, Rejected>,
    /// Everything up to this generation was sent; 0: compare everything.
    generation: u64,
    /// Removals were kept back at `generation`.
    removals_wait: bool,
    /// It has had an answer.
    answered: bool,
    in_flight: Option<InFlight>,
    /// It has accepted everything of its type up to this generation.
    pub accepted_generation: u64,
    /// Responses that it accepted and rejected.
    pub counts: (u64, u64),
    /// What it said of the last response that it rejected.
    pub last_rejection: Option<String>,
    /// The nonce of the last response.
    pub last_nonce: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rejected {
    /// It named it.
    Named,
    /// It rejected a response without a word on what of it it has applied all the same.
    Perhaps,
}

#[derive(Debug)]
struct InFlight {
    nonce: String,
    generation: u64,
    names: Vec<Arc<str>>,
}

/// The client broke the protocol; its stream ends.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ProtocolError {
    /// Too many subscriptions.
    #[error("more than {MAX_SUBSCRIPTIONS} subscriptions")]
    TooManySubscriptions,
}

impl Client {
    /// A client that has shown a token of this service account (`namespace/name`).
    pub fn new(account: String) -> Self {
        Self {
            account,
            ..Self::default()
        }
    }

    /// Takes a request in. One for a type that isn't served is left without an answer.
    pub fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), ProtocolError> {
        if let Some(node) = &request.node
            && self.node_id.is_empty()
        {
            self.node_id = node.id.clone();
            self.node_name = node_name(node).unwrap_or_default();
        }
        let Some(kind) = ResourceType::from_url(&request.type_url) else {
            tracing::debug!(
                client = self.node_id,
                kind = request.type_url,
                "type is not served"
            );
            return Ok(());
        };
        match self.streams.get_mut(&kind) {
            Some(stream) => stream.request(request),
            None => self.streams.entry(kind).or_default().first_request(request),
        }
    }

    /// What to send now, if anything. Call it after every request and every new snapshot, until
    /// it has nothing more.
    pub fn response(&mut self, snapshot: &Snapshot) -> Option<DeltaDiscoveryResponse> {
        if snapshot.generation == 0 {
            return None;
        }
        let nonce = format!("{}-{}", snapshot.generation, self.nonces);
        let to = To {
            snapshot,
            node: &self.node_name,
            account: &self.account,
        };
        let addresses_behind = match self.streams.get(&ResourceType::Address) {
            Some(stream) if stream.in_flight.is_some() => true,
            Some(stream) if stream.answered && stream.generation == snapshot.generation => false,
            Some(stream) => !stream.plan(ResourceType::Address, &to).is_empty(),
            None => false,
        };
        let mut sent = None;
        let mut policies_behind = false;
        if let Some(stream) = self.streams.get_mut(&ResourceType::Authorization) {
            sent = stream.respond(ResourceType::Authorization, &to, &nonce, !addresses_behind);
            // Still waiting for its answer to an earlier push while there is a newer one to make.
            policies_behind = sent.is_none() && stream.has_updates(&to);
        }
        if !policies_behind {
            for kind in [
                ResourceType::Authentication,
                ResourceType::Route,
                ResourceType::Traffic,
                ResourceType::Listener,
                ResourceType::Address,
            ] {
                let stream = self.streams.get_mut(&kind).filter(|_| sent.is_none());
                // Services name them, as workloads do policies.
                let removals = kind != ResourceType::Authentication || !addresses_behind;
                sent = sent.or_else(|| stream.and_then(|s| s.respond(kind, &to, &nonce, removals)));
            }
        }
        self.nonces += u64::from(sent.is_some());
        sent
    }

    /// The state of a type, if the client asked for it.
    pub fn stream(&self, kind: ResourceType) -> Option<&TypeStream> {
        self.streams.get(&kind)
    }
}

impl TypeStream {
    /// The client has accepted this version of the resource.
    pub fn has_accepted(&self, name: &str, version: &str) -> bool {
        self.held.get(name).is_some_and(|held| **held == *version)
            && !self.rejected.contains_key(name)
            && !self
                .in_flight
                .as_ref()
                .is_some_and(|sent| sent.names.iter().any(|n| **n == *name))
    }

    /// Resources that the client holds, as far as it has answered.
    pub fn accepted(&self) -> usize {
        let waiting = self.in_flight.as_ref().map_or(0, |sent| {
            sent.names
                .iter()
                .filter(|name| self.held.contains(name))
                .count()
        });
        self.held
            .len()
            .saturating_sub(waiting + self.rejected.len())
    }

    /// Names whose latest version the client rejected.
    pub fn rejected(&self) -> impl Iterator<Item = &str> {
        self.rejected_so(Rejected::Named)
    }

    /// Names of which some were rejected: the client didn't say which.
    pub fn perhaps_rejected(&self) -> impl Iterator<Item = &str> {
        self.rejected_so(Rejected::Perhaps)
    }

    fn rejected_so(&self, how: Rejected) -> impl Iterator<Item = &str> {
        let so = self
            .rejected
            .iter()
            .filter(move |(_, found)| **found == how);
        so.map(|(name, _)| &**name)
    }

    /// It holds everything that it should hold of this generation, as far as it has said.
    pub fn is_current(&self, generation: u64) -> bool {
        self.answered
            && self.generation == generation
            && self.in_flight.is_none()
            && self.rejected.is_empty()
            && !self.removals_wait
    }

    /// A response waits for the client's answer.
    pub fn is_waiting(&self) -> bool {
        self.in_flight.is_some()
    }

    fn first_request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), ProtocolError> {
        let star = |names: &[String]| names.iter().any(|name| name == WILDCARD);
        let subscribe = &request.resource_names_subscribe;
        // `*` in both lists is the way to say "not the wildcard that an empty list would mean".
        self.wildcard = match star(&request.resource_names_unsubscribe) {
            true => false,
            false => subscribe.is_empty() || star(subscribe),
        };
        self.held = request.initial_resource_versions.into_iter().collect();
        self.subscribe(
            request.resource_names_subscribe,
            request.resource_names_unsubscribe,
        )
    }

    fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), ProtocolError> {
        let answers = self
            .in_flight
            .take_if(|sent| sent.nonce == request.response_nonce);
        if let Some(sent) = answers {
            match request.error_detail {
                None => {
                    self.counts.0 += 1;
                    for name in &sent.names {
                        self.rejected.remove(name);
                    }
                    if self.rejected.is_empty() {
                        self.accepted_generation = sent.generation;
                        self.last_rejection = None;
                    }
                }
                Some(error) => {
                    self.counts.1 += 1;
                    let refused = refused(&error, &sent);
                    let said = format!("{} (code {})", error.message, error.code);
                    self.last_rejection = Some(match (&refused, sent.names.len()) {
                        (None, 2..) => format!("some of {} resources: {said}", sent.names.len()),
                        _ => said,
                    });
                    // The good ones of a response are applied all the same.
                    for name in sent.names {
                        let rejected = match &refused {
                            Some(names) if !names.contains(&*name) => continue,
                            Some(_) => Rejected::Named,
                            None => Rejected::Perhaps,
                        };
                        self.rejected.insert(name, rejected);
                    }
                }
            }
        }
        self.subscribe(
            request.resource_names_subscribe,
            request.resource_names_unsubscribe,
        )
    }

    fn subscribe(
        &mut self,
        subscribe: Vec<String>,
        unsubscribe: Vec<String>,
    ) -> Result<(), ProtocolError> {
        for name in unsubscribe.iter().filter(|name| *name != WILDCARD) {
            self.subscriptions.remove(name);
            self.told_missing.remove(name);
            self.generation = 0;
        }
        for name in subscribe.into_iter().filter(|name| name != WILDCARD) {
            // Asked for again: to be answered again, also that it isn't there.
            self.told_missing.remove(&name);
            self.subscriptions.insert(name);
            self.generation = 0;
        }
        if self.subscriptions.len() > MAX_SUBSCRIPTIONS {
            return Err(ProtocolError::TooManySubscriptions);
        }
        Ok(())
    }

    fn has_updates(&self, to: &To<'_>) -> bool {
        self.generation != to.snapshot.generation
            && !self
                .plan(ResourceType::Authorization, to)
                .updates
                .is_empty()
    }

    fn respond(
        &mut self,
        kind: ResourceType,
        to: &To<'_>,
        nonce: &str,
        with_removals: bool,
    ) -> Option<DeltaDiscoveryResponse> {
        let snapshot = to.snapshot;
        let up_to_date = self.generation == snapshot.generation;
        if self.in_flight.is_some()
            || (up_to_date && self.answered && !(self.removals_wait && with_removals))
        {
            return None;
        }
        let plan = self.plan(kind, to);
        let Plan {
            updates,
            mut removals,
            missing,
        } = plan;
        self.removals_wait = !with_removals && !removals.is_empty();
        if self.removals_wait {
            removals.clear();
        }
        self.generation = snapshot.generation;
        if updates.is_empty() && removals.is_empty() && missing.is_empty() && self.answered {
            if self.wildcard && !self.removals_wait {
                // The same as before, and the older snapshot can go.
                self.held.set_all(to.of(kind));
            }
            if self.rejected.is_empty() && !self.removals_wait {
                self.accepted_generation = snapshot.generation;
            }
            return None;
        }
        let resources = to.of(kind);
        let mut sent = Vec::with_capacity(updates.len());
        for name in &updates {
            let Some(resource) = resources.get(name) else {
                continue;
            };
            let (name_held, version) = (resource.name.clone(), resource.version.clone());
            self.held.insert(name_held, version);
            self.rejected.remove(name);
            sent.push(resource.to_wire());
        }
        for name in &removals {
            self.held.remove(name);
            self.rejected.remove(name);
        }
        if self.wildcard && !self.removals_wait {
            self.held.set_all(resources);
        }
        self.told_missing.extend(missing.iter().cloned());
        self.answered = true;
        self.last_nonce = nonce.into();
        let removed_resources = removals
            .iter()
            .map(ToString::to_string)
            .chain(missing)
            .collect();
        self.in_flight = Some(InFlight {
            nonce: nonce.into(),
            generation: snapshot.generation,
            names: updates,
        });
        Some(DeltaDiscoveryResponse {
            system_version_info: snapshot.generation.to_string(),
            type_url: kind.url().into(),
            nonce: nonce.into(),
            resources: sent,
            removed_resources,
        })
    }

    /// What the client lacks and what it has too much.
    fn plan(&self, kind: ResourceType, to: &To<'_>) -> Plan {
        let resources = to.of(kind);
        let mut plan = Plan::default();
        if !self.wildcard {
            self.plan_on_demand(kind, to, &mut plan);
            return plan;
        }
        let candidates = match resources.changed_since(self.generation, to.snapshot.generation) {
            Some(names) if !self.removals_wait => names,
            _ => self
                .held
                .names()
                .chain(resources.iter().map(|found| &found.name))
                .collect(),
        };
        for name in candidates {
            match (resources.get(name), self.held.get(name)) {
                (Some(wanted), held) if held != Some(&wanted.version) => {
                    plan.updates.push(wanted.name.clone());
                }
                (None, Some(_)) => plan.removals.push(name.clone()),
                _ => {}
            }
        }
        plan.updates.sort();
        plan.removals.sort();
        plan
    }

    fn plan_on_demand(&self, kind: ResourceType, to: &To<'_>, plan: &mut Plan) {
        let resources = to.of(kind);
        let mut wanted: BTreeSet<&Arc<str>> = BTreeSet::new();
        for subscription in &self.subscriptions {
            let found = match kind {
                ResourceType::Address => to.snapshot.resolve(subscription),
                ResourceType::Authorization
                | ResourceType::Authentication
                | ResourceType::Route
                | ResourceType::Traffic
                | ResourceType::Listener => resources
                    .get(subscription)
                    .map(|found| &found.name)
                    .into_iter()
                    .collect(),
            };
            // A name that it holds is removed as such.
            if found.is_empty()
                && !self.told_missing.contains(subscription)
                && !self.held.contains(subscription)
            {
                plan.missing.push(subscription.clone());
            }
            wanted.extend(found);
        }
        if kind == ResourceType::Address {
            // The node's own pods must be known before anyone asks for them.
            wanted.extend(to.snapshot.of_node(to.node));
        }
        for name in &wanted {
            let version = resources.get(name).map(|found| &found.version);
            if self.held.get(name) != version {
                plan.updates.push((*name).clone());
            }
        }
        plan.removals = self
            .held
            .names()
            .filter(|name| !wanted.contains(name))
            .cloned()
            .collect();
        plan.removals.sort();
    }
}

/// The resources of the response that the client says it refused; `None` if it doesn't say.
fn refused(error: &rpc::Status, sent: &InFlight) -> Option<HashSet<String>> {
    if let [only] = &sent.names[..] {
        return Some([only.to_string()].into());
    }
    let mut details = error.details.iter();
    let detail = details.find(|detail| detail.type_url == REFUSED_RESOURCES_TYPE)?;
    let names: HashSet<_> = RefusedResources::decode(&*detail.value)
        .ok()?
        .names
        .into_iter()
        .collect();
    // Of none of them: then it is about something that we don't know of.
    let any = sent.names.iter().any(|name| names.contains(&**name));
    any.then_some(names)
}

/// What there is to send, and to whom.
struct To<'a> {
    snapshot: &'a Snapshot,
    /// The Kubernetes node that it serves.
    node: &'a str,
    /// Its service account.
    account: &'a str,
}

impl<'a> To<'a> {
    /// What of a type it may read.
    fn of(&self, kind: ResourceType) -> &'a TypeResources {
        self.snapshot.of(kind, self.account)
    }
}

#[derive(Default)]
struct Plan {
    updates: Vec<Arc<str>>,
    removals: Vec<Arc<str>>,
    /// Subscriptions that nothing answers.
    missing: Vec<String>,
}

impl Plan {
    fn is_empty(&self) -> bool {
        self.updates.is_empty() && self.removals.is_empty() && self.missing.is_empty()
    }
}

fn node_name(node: &seine_proto::core::Node) -> Option<String> {
    match node
        .metadata
        .as_ref()?
        .fields
        .get("NODE_NAME")?
        .kind
        .as_ref()?
    {
        prost_types::value::Kind::StringValue(name) => Some(name.clone()),
        _ => None,
    }
}
