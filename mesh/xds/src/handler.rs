//! Where the resources go.

use std::collections::HashMap;

use seine_proto::discovery::Resource;
use seine_proto::{ADDRESS_TYPE, AUTHORIZATION_TYPE};
use seine_workload::{Rejected, Store};

/// Takes the resources of a stream. Called from one task at a time, on a thread that may block.
pub trait Handler: Send + Sync + 'static {
    /// Names and versions of what is held of a type, for the first request of a stream.
    fn held(&self, type_url: &str) -> HashMap<String, String>;

    /// Applies one response, the removals first. What is refused stays as it was before.
    fn apply(&self, type_url: &str, resources: &[Resource], removed: &[String]) -> Vec<Refused>;
}

/// A resource that was not applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Its name.
    pub name: String,
    /// What is wrong with it, for the control plane's operator.
    pub problem: String,
}

impl Handler for Store {
    fn held(&self, type_url: &str) -> HashMap<String, String> {
        match type_url {
            ADDRESS_TYPE => self.held_addresses().collect(),
            AUTHORIZATION_TYPE => self.held_policies().collect(),
            _ => HashMap::new(),
        }
    }

    fn apply(&self, type_url: &str, resources: &[Resource], removed: &[String]) -> Vec<Refused> {
        let rejected = match type_url {
            ADDRESS_TYPE => self.apply_addresses(resources, removed),
            AUTHORIZATION_TYPE => self.apply_policies(resources, removed),
            _ => return Vec::new(),
        };
        let refused = |Rejected { name, error }| Refused {
            name,
            problem: error.to_string(),
        };
        rejected.into_iter().map(refused).collect()
    }
}
