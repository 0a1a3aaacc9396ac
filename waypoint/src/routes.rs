//! The rules that the control plane has sent, by the service that they are about.
//!
//! One writer, the configuration's task; requests read a service's list and keep it while they need it. What they read is made
//! anew beside what holds, and then put in its place: nobody waits for thousands of rules.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use prost::Message;
use seine_proto::discovery::Resource;
use seine_proto::waypoint::RouteRule;
use seine_proto::{AUTHENTICATION_TYPE, LISTENER_TYPE, ROUTE_RULE_TYPE, TRAFFIC_POLICY_TYPE};
use seine_workload::{ServiceKey, Store};
use seine_xds::{Handler, Refused};

use crate::authentication::Authentications;
use crate::ingress::listeners::Listeners;
use crate::rule::Rule;
use crate::service_rules::ServiceRules;
use crate::traffic::Traffic;

/// The rules.
#[derive(Debug, Default)]
pub struct Routes {
    /// Version and rule by name.
    held: Mutex<HashMap<String, (String, Arc<Rule>)>>,
    found: RwLock<Found>,
}

/// Where requests look.
#[derive(Debug, Default)]
struct Found {
    by_service: HashMap<ServiceKey, Arc<ServiceRules>>,
    by_listener: HashMap<String, Arc<[Arc<Rule>]>>,
}

impl Routes {
    /// The rules about a service.
    pub fn of(&self, service: &ServiceKey) -> Arc<ServiceRules> {
        let found = self.found.read().by_service.get(service).cloned();
        found.unwrap_or_default()
    }

    /// The rules that are attached to a listener.
    pub fn at_listener(&self, name: &str) -> Arc<[Arc<Rule>]> {
        let found = self.found.read().by_listener.get(name).cloned();
        found.unwrap_or_default()
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Rule>> {
        let held = self.held.lock();
        let mut all: Vec<_> = held.values().map(|(_, rule)| rule.clone()).collect();
        all.sort_by(|a, b| a.age.cmp(&b.age));
        all
    }

    fn versions(&self) -> HashMap<String, String> {
        let held = self.held.lock();
        let named = held.iter();
        named
            .map(|(name, (version, _))| (name.clone(), version.clone()))
            .collect()
    }

    /// Applies what the control plane sent. Of a rule that can't be read the earlier version stays in force.
    pub fn apply(&self, resources: &[Resource], removed: &[String]) -> Vec<Refused> {
        let mut refused = Vec::new();
        let mut all = self.held.lock();
        for name in removed {
            all.remove(name);
        }
        for resource in resources {
            match parse(resource) {
                Ok(rule) => {
                    let held = (resource.version.clone(), Arc::new(rule));
                    all.insert(resource.name.clone(), held);
                }
                Err(problem) => refused.push(Refused {
                    name: resource.name.clone(),
                    problem,
                }),
            }
        }
        let rules = || all.values().map(|(_, rule)| rule);
        let found = Found {
            by_service: by_service(rules()),
            by_listener: by_listener(rules()),
        };
        let before = std::mem::replace(&mut *self.found.write(), found);
        // What held is dropped when nobody waits any more.
        drop(before);
        refused
    }
}

fn by_service<'a>(
    rules: impl Iterator<Item = &'a Arc<Rule>>,
) -> HashMap<ServiceKey, Arc<ServiceRules>> {
    let mut found: HashMap<ServiceKey, ServiceRules> = HashMap::new();
    for rule in rules {
        let services: HashSet<_> = rule.parents.iter().map(|(service, _)| service).collect();
        for service in services {
            found.entry(service.clone()).or_default().add(service, rule);
        }
    }
    let found = found.into_iter();
    found.map(|(key, rules)| (key, Arc::new(rules))).collect()
}

fn by_listener<'a>(
    rules: impl Iterator<Item = &'a Arc<Rule>>,
) -> HashMap<String, Arc<[Arc<Rule>]>> {
    let mut found: HashMap<String, Vec<Arc<Rule>>> = HashMap::new();
    for rule in rules {
        let listeners: HashSet<_> = rule.listeners.iter().map(|(name, _)| name).collect();
        for name in listeners {
            found.entry(name.clone()).or_default().push(rule.clone());
        }
    }
    let found = found.into_iter();
    found.map(|(name, rules)| (name, rules.into())).collect()
}

fn parse(resource: &Resource) -> Result<Rule, String> {
    let body = resource.resource.as_ref().ok_or("it has no content")?;
    let message = RouteRule::decode(&*body.value).map_err(|error| error.to_string())?;
    Rule::parse(&resource.name, &message)
}

/// Everything that the control plane tells a waypoint.
pub struct Configuration {
    /// Workloads, services and policies.
    pub store: Arc<Store>,
    /// Rules of routes.
    pub routes: Arc<Routes>,
    /// How requests to services are treated.
    pub traffic: Arc<Traffic>,
    /// Rules on tokens.
    pub authentications: Arc<Authentications>,
    /// Of a Gateway that takes connections from outside.
    pub listeners: Arc<Listeners>,
}

impl Handler for Configuration {
    fn held(&self, type_url: &str) -> HashMap<String, String> {
        match type_url {
            ROUTE_RULE_TYPE => self.routes.versions(),
            TRAFFIC_POLICY_TYPE => self.traffic.versions(),
            AUTHENTICATION_TYPE => self.authentications.versions(),
            LISTENER_TYPE => self.listeners.versions(),
            _ => self.store.held(type_url),
        }
    }

    fn apply(&self, type_url: &str, resources: &[Resource], removed: &[String]) -> Vec<Refused> {
        match type_url {
            ROUTE_RULE_TYPE => self.routes.apply(resources, removed),
            TRAFFIC_POLICY_TYPE => self.traffic.apply(resources, removed),
            AUTHENTICATION_TYPE => self.authentications.apply(resources, removed),
            LISTENER_TYPE => self.listeners.apply(resources, removed),
            _ => self.store.apply(type_url, resources, removed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use seine_proto::waypoint::{Match, Parent, r#match};

    fn resource(name: &str, version: &str, path: Option<&str>) -> Resource {
        let message = RouteRule {
            namespace: "shop".into(),
            name: name.into(),
            parents: ["web", "api"]
                .map(|host| Parent {
                    namespace: "shop".into(),
                    hostname: host.into(),
                    port: 0,
                })
                .to_vec(),
            matches: vec![Match {
                path: path.map(|path| r#match::Path::Exact(path.into())),
                ..Match::default()
            }],
            ..RouteRule::default()
        };
        Resource {
            name: name.into(),
            version: version.into(),
            resource: Some(prost_types::Any {
                type_url: ROUTE_RULE_TYPE.into(),
                value: message.encode_to_vec(),
            }),
            ..Resource::default()
        }
    }

    #[test]
    fn rules_are_found_by_service_and_a_bad_one_leaves_the_earlier_in_force() {
        let routes = Routes::default();
        let service = |host: &str| ServiceKey {
            namespace: "shop".into(),
            hostname: host.into(),
        };
        let names = |host: &str| {
            let found = routes.of(&service(host));
            let paths = ["/a", "/b"].into_iter();
            let rules = paths.flat_map(|path| found.possible(path));
            rules.map(|rule| rule.name.clone()).collect::<Vec<_>>()
        };
        let both = [
            resource("b", "1", Some("/b")),
            resource("a", "1", Some("/a")),
        ];
        assert_eq!(routes.apply(&both, &[]), []);
        assert_eq!(names("web"), ["a", "b"]);
        assert_eq!(names("api"), ["a", "b"]);
        assert!(names("other").is_empty());

        let refused = routes.apply(&[resource("a", "2", None)], &["b".to_owned()]);
        assert_eq!(refused.len(), 1);
        assert_eq!(names("web"), ["a"]);
        assert_eq!(routes.versions()["a"], "1");
    }
}
