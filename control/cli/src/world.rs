//! What the proxies would hold, from the objects: the control plane's translation, read back by
//! the proxies' own store. So an explanation is made of the parts that decide in fact.

use std::sync::Arc;

use anyhow::bail;
use seine_control::{
    translate::{Findings, Settings, translate},
    xds::Resource,
};
use seine_objects::ObjectSet;
use seine_waypoint::routes::Routes;
use seine_workload::Store;

/// A mesh as one moment's objects make it.
pub struct World {
    /// The objects.
    pub objects: Arc<ObjectSet>,
    /// What the control plane found out about them.
    pub findings: Findings,
    /// What a proxy would hold.
    pub store: Store,
    /// What a waypoint would hold.
    pub routes: Routes,
    /// Of the translation.
    pub settings: Settings,
}

impl World {
    /// Translates and reads back.
    pub fn new(objects: ObjectSet, settings: Settings) -> anyhow::Result<Self> {
        let resources = translate(&objects, &settings);
        let store = Store::new(&settings.network);
        let workloads = resources.workloads.values();
        let workloads = workloads.map(|workload| Resource::workload(workload, &settings));
        let services = resources.services.iter();
        let services = services.map(|(key, service)| Resource::service(key, service, &settings));
        let addresses: Vec<_> = workloads
            .chain(services)
            .map(|found| found.to_wire())
            .collect();
        let policies = resources.authorizations.iter();
        let policies: Vec<_> = policies
            .map(|(key, policy)| Resource::authorization(key, policy).to_wire())
            .collect();
        let mut rejected = store.apply_addresses(&addresses, &[]);
        rejected.extend(store.apply_policies(&policies, &[]));
        let mut rejected: Vec<String> = rejected.iter().map(ToString::to_string).collect();
        let routes = Routes::default();
        let rules = resources.routes.iter();
        let rules: Vec<_> = rules
            .map(|(name, rule)| Resource::route(name, rule).to_wire())
            .collect();
        let refused = routes.apply(&rules, &[]).into_iter();
        rejected.extend(refused.map(|refused| format!("{}: {}", refused.name, refused.problem)));
        if let Some(first) = rejected.first() {
            bail!(
                "a proxy would refuse {} resources of the control plane, the first: {first} (this is a bug of Seine)",
                rejected.len()
            );
        }
        Ok(Self {
            objects: Arc::new(objects),
            findings: resources.findings,
            store,
            routes,
            settings,
        })
    }
}
