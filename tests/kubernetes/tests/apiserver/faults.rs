//! An API server that is slow, ends watches, answers errors, or nothing.

use std::time::Duration;

use anyhow::{Result, ensure};
use seine_e2e::manifests::authorization;
use seine_kubernetes_tests::{step, within};
use serde_json::json;

use crate::bed::{Bed, PATIENCE, namespace};
use crate::proxy::{Fault, Proxy};

pub(crate) fn an_api_server_that_fails_in_every_way_costs_no_knowledge_and_no_change(
    bed: &Bed,
) -> Result<()> {
    let policy = |name: &str| authorization("faults", name, "db", "Allow", json!([{}]));
    bed.cluster.apply(&[
        namespace("faults", json!({"seine.dev/mesh": "enabled"})),
        policy("always-there"),
    ])?;
    let proxy = Proxy::start(bed)?;
    let mut replica = bed.replica("faults-0", Some(proxy.address))?;
    replica.await_ready()?;
    let knows = |name: &str| -> Result<bool> {
        Ok(replica_status(&replica)?.contains(&format!("\"{name}\"")))
    };
    within(PATIENCE, "the first policy is known", || {
        Ok(knows("always-there")?.then_some(()))
    })?;

    let faults = [
        ("cut", Fault::Cut),
        ("410", Fault::Answer(410)),
        ("429", Fault::Answer(429)),
        ("500", Fault::Answer(500)),
        ("503", Fault::Answer(503)),
        ("stall", Fault::Stall),
    ];
    for (index, (what, fault)) in faults.into_iter().enumerate() {
        let before = proxy.requests();
        proxy.set(fault);
        let name = format!("during-{index}");
        bed.cluster.apply(&[policy(&name)])?;
        // Long enough for several tries.
        for _ in 0..6 {
            std::thread::sleep(Duration::from_millis(500));
            ensure!(
                knows("always-there")?,
                "{what}: what was known is forgotten"
            );
            ensure!(!knows(&name)?, "{what}: the fault is none");
        }
        let tries = proxy.requests() - before;
        // A watch for each of a dozen kinds, and the Lease, each backing off from 0.8 s on: seen were 3 to 29. One that asks
        // again by itself below that, as kube's client would, is past this at once.
        ensure!(tries < 80, "{what}: {tries} requests in three seconds");
        proxy.set(Fault::None);

        within(
            PATIENCE,
            &format!("{what} is over, and the change known"),
            || Ok(knows(&name)?.then_some(())),
        )?;
        step(format!("{what}: {tries} requests while it lasted"));
    }
    bed.cluster
        .kubectl(&["-n", "faults", "delete", "authorizationpolicy", "--all"])?;
    within(PATIENCE, "what was deleted is forgotten", || {
        Ok((!replica_status(&replica)?.contains("\"faults\"")).then_some(()))
    })?;
    replica.still_runs()
}

fn replica_status(replica: &crate::bed::Replica) -> Result<String> {
    replica.status()
}
