//! What running proxies enforce of policies that users write: random objects through the control plane's translation and
//! its delta xDS server to the clients of two ztunnels; beside them an oracle that was written from `docs/POLICY.md`,
//! and the verdict function's explanation. A case that fails is printed as small as it could be made, as objects to apply.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod cases;
mod oracle;
#[path = "../support/mod.rs"]
mod support;
mod world;

use cases::Case;
use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use world::World;

const CASES: u32 = 1000;

#[test]
fn proxies_enforce_what_the_oracle_and_the_explanation_say_of_objects_that_came_over_xds() {
    // Threads that are made from here on are in it.
    let families = world::enter_network();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let world = runtime.block_on(World::new(families));
    let config = Config {
        cases: CASES,
        failure_persistence: None,
        max_shrink_iters: 400,
        ..Config::default()
    };
    // The same cases each time.
    let mut runner = TestRunner::new_with_rng(
        config,
        proptest::test_runner::TestRng::deterministic_rng(
            proptest::test_runner::RngAlgorithm::ChaCha,
        ),
    );
    let cases = cases::case(families.len()).prop_map(Printed);
    let outcome = runner.run(&cases, |Printed(case)| {
        runtime
            .block_on(world.check(&case))
            .map_err(TestCaseError::fail)
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(why, Printed(case))) => panic!("{why}\nwith these objects:\n{case}"),
        Err(TestError::Abort(why)) => panic!("{why}"),
    }
    let (allowed, denied) = world.counts();
    let (would_allow, would_deny) = world.audited();
    println!(
        "{CASES} sets of objects: {allowed} connections allowed, {denied} denied; \
         in dry-run {would_allow} allowed and {would_deny} denied besides"
    );
    assert!(would_allow > 0 && would_deny > 0);
    let few = u64::from(CASES);
    assert!(
        allowed > few && denied > few,
        "{allowed} allowed, {denied} denied: too one-sided"
    );
}

/// Shown as the objects that it is.
#[derive(Clone)]
struct Printed(Case);

impl std::fmt::Debug for Printed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}
