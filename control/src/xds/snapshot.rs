//! What every proxy should hold at one time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    sync::{Arc, LazyLock},
};

use super::{Resource, ResourceType};
use crate::translate::{Resources, Settings};

/// So many generations back a client can be told what changed without comparing everything.
const HISTORY: usize = 64;

/// All resources of one generation; a new one is made only when something changed.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Counts the changes since the process started; 0 is "nothing translated yet".
    pub generation: u64,
    /// Policies.
    pub authorizations: TypeResources,
    /// Rules on tokens.
    pub authentications: TypeResources,
    /// Rules of routes.
    pub routes: TypeResources,
    /// How requests to services are treated.
    pub traffic: TypeResources,
    /// Listeners, by the service account that they are for.
    pub listeners: HashMap<String, TypeResources>,
    /// Workloads and services.
    pub addresses: TypeResources,
    index: Arc<AddressIndex>,
}

/// Resources by name.
pub(super) type ByName = HashMap<Arc<str>, Arc<Resource>>;

/// All resources of one type.
#[derive(Clone, Debug, Default)]
pub struct TypeResources {
    by_name: Arc<ByName>,
    /// Names changed or removed with each of the latest generations, the oldest first.
    history: VecDeque<(u64, Arc<[Arc<str>]>)>,
}

#[derive(Debug, Default)]
struct AddressIndex {
    by_alias: HashMap<String, Vec<Arc<str>>>,
    endpoints: HashMap<String, Vec<Arc<str>>>,
    by_node: HashMap<String, Vec<Arc<str>>>,
}

impl Snapshot {
    /// The snapshot after this one; `None` if the resources are the same.
    pub fn next(&self, resources: &Resources, settings: &Settings) -> Option<Self> {
        let workloads = resources
            .workloads
            .values()
            .map(|workload| Resource::workload(workload, settings));
        let services = resources
            .services
            .iter()
            .map(|(key, service)| Resource::service(key, service, settings));
        let policies = resources
            .authorizations
            .iter()
            .map(|(key, authorization)| Resource::authorization(key, authorization));

        let generation = self.generation + 1;
        let (addresses, changed) = self.addresses.next(generation, workloads.chain(services));
        let (authorizations, policies_changed) = self.authorizations.next(generation, policies);
        let routes = resources
            .routes
            .iter()
            .map(|(name, rule)| Resource::route(name, rule));
        let (routes, routes_changed) = self.routes.next(generation, routes);
        let traffic = resources.traffic.iter();
        let traffic = traffic.map(|(key, policy)| Resource::traffic(key, policy));
        let (traffic, traffic_changed) = self.traffic.next(generation, traffic);
        let authentications = resources
            .authentications
            .iter()
            .map(|(name, rules)| Resource::authentication(name, rules));
        let (authentications, authentications_changed) =
            self.authentications.next(generation, authentications);
        let (listeners, listeners_changed) = self.next_listeners(generation, resources);
        let any = changed
            || policies_changed
            || routes_changed
            || traffic_changed
            || authentications_changed
            || listeners_changed;
        if !any && self.generation > 0 {
            return None;
        }
        let index = match changed {
            true => Arc::new(AddressIndex::of(&addresses)),
            false => self.index.clone(),
        };
        Some(Self {
            generation,
            authorizations,
            authentications,
            routes,
            traffic,
            listeners,
            addresses,
            index,
        })
    }

    /// Also of a Gateway that is gone, with none: its proxies are to hear that.
    fn next_listeners(
        &self,
        generation: u64,
        resources: &Resources,
    ) -> (HashMap<String, TypeResources>, bool) {
        let none = TypeResources::default();
        let empty = BTreeMap::new();
        let mut all_changed = false;
        let accounts = self.listeners.keys().chain(resources.listeners.keys());
        let accounts: BTreeSet<_> = accounts.collect();
        let next = accounts.into_iter().map(|account| {
            let held = self.listeners.get(account).unwrap_or(&none);
            let listeners = resources.listeners.get(account).unwrap_or(&empty).iter();
            let listeners = listeners.map(|(name, listener)| Resource::listener(name, listener));
            let (next, changed) = held.next(generation, listeners);
            all_changed |= changed;
            (account.clone(), next)
        });
        (next.collect(), all_changed)
    }

    /// The resources of a type that a service account may read.
    pub fn of(&self, kind: ResourceType, account: &str) -> &TypeResources {
        static NONE: LazyLock<TypeResources> = LazyLock::new(TypeResources::default);
        match kind {
            ResourceType::Authorization => &self.authorizations,
            ResourceType::Authentication => &self.authentications,
            ResourceType::Route => &self.routes,
            ResourceType::Traffic => &self.traffic,
            ResourceType::Listener => self.listeners.get(account).unwrap_or(&NONE),
            ResourceType::Address => &self.addresses,
        }
    }

    /// All resources of a type.
    pub fn all(&self, kind: ResourceType) -> Box<dyn Iterator<Item = &Arc<Resource>> + '_> {
        match kind {
            ResourceType::Listener => {
                Box::new(self.listeners.values().flat_map(TypeResources::iter))
            }
            kind => Box::new(self.of(kind, "").iter()),
        }
    }

    /// What a subscription means: the names of the address resources that answer it. A service
    /// brings its endpoints along, since it is of no use without them.
    pub(super) fn resolve<'a>(&'a self, subscription: &'a str) -> Vec<&'a Arc<str>> {
        let mut found: Vec<&Arc<str>> = Vec::new();
        if let Some((name, _)) = self.addresses.by_name.get_key_value(subscription) {
            found.push(name);
        }
        found.extend(self.index.by_alias.get(subscription).into_iter().flatten());
        let endpoints: Vec<_> = found
            .iter()
            .filter_map(|name| self.index.endpoints.get(&***name))
            .flatten()
            .collect();
        found.extend(endpoints);
        found
    }

    /// The workloads of a node.
    pub(super) fn of_node(&self, node: &str) -> &[Arc<str>] {
        self.index
            .by_node
            .get(node)
            .map(Vec::as_slice)
            .unwrap_or_default()
    }
}

impl TypeResources {
    /// The resource of that name.
    pub fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.by_name.get(name)
    }

    /// Every resource, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.by_name.values()
    }

    /// All of them, for who keeps them.
    pub(super) fn shared(&self) -> Arc<ByName> {
        self.by_name.clone()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// There is none.
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// Names that may differ from what a client at `generation` was sent; `None` if it is so old
    /// that everything must be compared.
    pub(super) fn changed_since(&self, generation: u64, now: u64) -> Option<HashSet<&Arc<str>>> {
        // Without a change in the type, its history doesn't move on.
        let oldest = self.history.front().map_or(now + 1, |(oldest, _)| *oldest);
        let complete = self.history.len() < HISTORY || oldest <= generation + 1;
        if generation == 0 || !complete {
            return None;
        }
        let newer = self.history.iter().filter(|(at, _)| *at > generation);
        Some(newer.flat_map(|(_, names)| names.iter()).collect())
    }

    fn next(&self, generation: u64, resources: impl Iterator<Item = Resource>) -> (Self, bool) {
        let mut by_name = ByName::with_capacity(self.by_name.len());
        let mut changed = BTreeSet::new();
        for resource in resources {
            match self.by_name.get_key_value(&resource.name) {
                Some((name, held)) if **held == resource => {
                    by_name.insert(name.clone(), held.clone());
                }
                _ => {
                    changed.insert(resource.name.clone());
                    by_name.insert(resource.name.clone(), Arc::new(resource));
                }
            }
        }
        let gone = self
            .by_name
            .keys()
            .filter(|name| !by_name.contains_key(*name));
        changed.extend(gone.cloned());

        let mut history = self.history.clone();
        let any = !changed.is_empty();
        if any {
            history.push_back((generation, changed.into_iter().collect()));
            if history.len() > HISTORY {
                history.pop_front();
            }
        }
        let by_name = Arc::new(by_name);
        (Self { by_name, history }, any)
    }
}

/// For tests of who keeps them.
#[cfg(test)]
pub(super) fn resources(all: &[(&str, &str)]) -> TypeResources {
    let one = |&(name, version): &(&str, &str)| {
        let mut resource = Resource::authorization(name, &Default::default());
        resource.version = version.into();
        (resource.name.clone(), Arc::new(resource))
    };
    TypeResources {
        by_name: Arc::new(all.iter().map(one).collect()),
        history: VecDeque::new(),
    }
}

impl AddressIndex {
    fn of(addresses: &TypeResources) -> Self {
        let mut index = Self::default();
        for (name, resource) in &*addresses.by_name {
            for alias in &resource.aliases {
                index
                    .by_alias
                    .entry(alias.clone())
                    .or_default()
                    .push(name.clone());
            }
            for service in &resource.services {
                index
                    .endpoints
                    .entry(service.clone())
                    .or_default()
                    .push(name.clone());
            }
            if !resource.node.is_empty() {
                index
                    .by_node
                    .entry(resource.node.clone())
                    .or_default()
                    .push(name.clone());
            }
        }
        index
    }
}
