//! The policies behind the store's lock, and which of them apply to a workload.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use seine_policy::{Applicable, Policy, Scope};
use seine_proto::discovery::Resource;
use seine_proto::security;

use crate::index::Held;
use crate::model::{Service, Workload};
use crate::parse::namespaced;

/// Policies by name and by what they apply to.
///
/// A policy that was refused and of which no earlier version is held is kept by name: what it
/// would have restricted is not known, so whatever it applies to counts as missing it.
#[derive(Default)]
pub(crate) struct PolicyIndex {
    by_name: HashMap<Arc<str>, Held<Policy>>,
    /// Global ones and those of the namespace, made anew on any change.
    by_namespace: HashMap<Arc<str>, Arc<[Arc<Policy>]>>,
    global: Arc<[Arc<Policy>]>,
    refused: HashMap<Arc<str>, Refused>,
    /// Whether the control plane, or the last good configuration, has said which there are.
    complete: bool,
}

/// A policy that was refused.
struct Refused {
    scope: RefusedScope,
    /// As it came: a restart refuses it again, or is a newer version that understands it.
    resource: Resource,
}

/// What a policy that can't be understood applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RefusedScope {
    /// Everything: it says so, or can't be understood so far.
    Global,
    /// The namespace in its name.
    Namespace,
    /// Workloads name it themselves.
    Workload,
}

impl RefusedScope {
    /// Of a resource by its name and message, if that could be decoded at all.
    pub(crate) fn of(name: &str, message: Option<&security::Authorization>) -> Self {
        let Some(message) = message else {
            return Self::Global;
        };
        let own = namespaced(name).is_some_and(|(namespace, _)| namespace == message.namespace);
        match security::Scope::try_from(message.scope) {
            Ok(security::Scope::WorkloadSelector) => Self::Workload,
            Ok(security::Scope::Namespace) if own => Self::Namespace,
            Ok(security::Scope::Namespace | security::Scope::Global) | Err(_) => Self::Global,
        }
    }
}

impl PolicyIndex {
    pub(crate) fn insert(&mut self, version: &str, policy: Policy) {
        let name: Arc<str> = policy.key.to_string().into();
        self.refused.remove(&name);
        let held = Held {
            version: version.into(),
            value: Arc::new(policy),
        };
        self.by_name.insert(name, held);
    }

    pub(crate) fn remove(&mut self, name: &str) {
        self.by_name.remove(name);
        self.refused.remove(name);
    }

    /// Notes a policy that was refused, unless an earlier version of it is in force.
    pub(crate) fn refuse(&mut self, resource: &Resource, scope: RefusedScope) {
        if !self.by_name.contains_key(&*resource.name) {
            let resource = resource.clone();
            self.refused
                .insert(resource.name.as_str().into(), Refused { scope, resource });
        }
    }

    /// Those that were refused, as they came.
    pub(crate) fn refused(&self) -> impl Iterator<Item = &Resource> {
        self.refused.values().map(|refused| &refused.resource)
    }

    /// To be called after the last of a series of changes.
    pub(crate) fn finish(&mut self) {
        self.complete = true;
        let mut global = Vec::new();
        let mut own: HashMap<Arc<str>, Vec<Arc<Policy>>> = HashMap::new();
        for Held { value: policy, .. } in self.by_name.values() {
            match policy.scope {
                Scope::Global => global.push(policy.clone()),
                Scope::Namespace => {
                    own.entry(policy.key.namespace.clone())
                        .or_default()
                        .push(policy.clone());
                }
                Scope::Workload => {}
            }
        }
        // In order of names, so that of several policies that decide the same one is named.
        let sort = |list: &mut Vec<Arc<Policy>>| list.sort_by(|a, b| a.key.cmp(&b.key));
        sort(&mut global);
        let merge = |(namespace, mut list): (Arc<str>, Vec<Arc<Policy>>)| {
            sort(&mut list);
            (namespace, global.iter().cloned().chain(list).collect())
        };
        self.by_namespace = own.into_iter().map(merge).collect();
        self.global = global.into();
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Policy>> {
        self.by_name.get(name).map(|held| &held.value)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Held<Policy>> {
        self.by_name.values()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Those that a service lists, for its waypoint. All others judge at the destination.
    pub(crate) fn at_waypoint(&self, service: &Service) -> Applicable {
        let mut listed = Vec::with_capacity(service.policies.len());
        let mut missing = Vec::new();
        for name in &service.policies {
            match self.get(name) {
                Some(policy) => listed.push(policy.clone()),
                None => missing.push(name.clone()),
            }
        }
        match missing.is_empty() {
            true => Applicable::Ready(listed.into()),
            false => Applicable::Missing(missing.into()),
        }
    }

    /// Those of the workload's namespace, the global ones, and those that it lists.
    pub(crate) fn applicable(&self, workload: &Workload) -> Applicable {
        if !self.complete {
            return Applicable::Missing(Arc::new([Arc::from("the mesh's policies")]));
        }
        let common = self
            .by_namespace
            .get(&workload.namespace)
            .unwrap_or(&self.global);
        if workload.policies.is_empty() && self.refused.is_empty() {
            return Applicable::Ready(common.clone());
        }
        let mut missing: HashSet<Arc<str>> = HashSet::new();
        for (name, refused) in &self.refused {
            let namespace = namespaced(name).map(|(namespace, _)| namespace);
            let applies = match refused.scope {
                RefusedScope::Global => true,
                RefusedScope::Namespace => namespace == Some(&*workload.namespace),
                RefusedScope::Workload => false,
            };
            if applies {
                missing.insert(name.clone());
            }
        }
        let mut listed = Vec::with_capacity(workload.policies.len());
        for name in &workload.policies {
            match self.get(name) {
                // One of another scope is among the common ones, or not for this namespace.
                Some(policy) if policy.scope == Scope::Workload => listed.push(policy.clone()),
                Some(_) => {}
                None => {
                    missing.insert(name.clone());
                }
            }
        }
        if missing.is_empty() {
            return Applicable::Ready(common.iter().cloned().chain(listed).collect());
        }
        let mut missing: Vec<_> = missing.into_iter().collect();
        missing.sort();
        Applicable::Missing(missing.into())
    }
}
