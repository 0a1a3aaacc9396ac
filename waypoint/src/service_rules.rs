//! The rules about a service, so that of thousands a request looks at few.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use seine_workload::ServiceKey;

use crate::rule::{PathMatch, Rule};

/// The rules about a service.
#[derive(Debug, Default)]
pub struct ServiceRules {
    /// Those that are about one path, or several, by each.
    exact: HashMap<String, Vec<Arc<Rule>>>,
    /// All others.
    others: Vec<Arc<Rule>>,
    attached: HashSet<Attached>,
}

/// What routes there are.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(crate) struct Attached {
    /// At this port, or all of them.
    port: Option<u16>,
    /// Their namespace.
    pub(crate) namespace: String,
    /// They are `GRPCRoute`s.
    pub(crate) grpc: bool,
}

impl ServiceRules {
    /// Adds a rule, of which the service is a parent. In any order, each once.
    pub(crate) fn add(&mut self, service: &ServiceKey, rule: &Arc<Rule>) {
        let at = rule.parents.iter().filter(|(parent, _)| parent == service);
        self.attached.extend(at.map(|(_, port)| Attached {
            port: *port,
            namespace: rule.namespace.clone(),
            grpc: rule.grpc,
        }));
        let paths = rule.matches.iter().map(|wanted| match &wanted.path {
            PathMatch::Exact(path) => Some(path),
            _ => None,
        });
        let Some(paths) = paths.collect::<Option<HashSet<_>>>() else {
            return self.others.push(rule.clone());
        };
        for path in paths {
            let of_path = self.exact.entry(path.clone()).or_default();
            of_path.push(rule.clone());
        }
    }

    /// What is attached to a port.
    pub(crate) fn attached(&self, port: u16) -> impl Iterator<Item = &Attached> {
        let about = move |of: &Option<u16>| of.is_none_or(|of| of == port);
        self.attached.iter().filter(move |at| about(&at.port))
    }

    /// Those that may match a path, in any order.
    pub(crate) fn possible(&self, path: &str) -> impl Iterator<Item = &Arc<Rule>> {
        let exact = self.exact.get(path).into_iter().flatten();
        exact.chain(&self.others)
    }

    /// All of them, each once.
    pub(crate) fn all(&self) -> Vec<&Arc<Rule>> {
        let exact = self.exact.values().flatten();
        let mut all: Vec<_> = exact.chain(&self.others).collect();
        all.sort_by(|a, b| a.age.cmp(&b.age));
        all.dedup_by(|a, b| a.age == b.age);
        all
    }
}
