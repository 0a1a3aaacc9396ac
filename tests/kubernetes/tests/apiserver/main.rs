//! The control plane against a real API server and etcd: schemas, status, leaders, watches that break, tokens,
//! and a storm of pods. No node runs.

#![allow(missing_docs, reason = "the names of tests say what they are about")]

mod bed;
mod faults;
mod proxy;
mod schemas;
mod status;
mod storm;
mod tokens;
mod waypoints;

use std::process::ExitCode;

use bed::Bed;
use seine_e2e::trials;

fn main() -> ExitCode {
    use faults::*;
    use schemas::*;
    use status::*;
    use storm::*;
    use tokens::*;
    use waypoints::*;
    seine_e2e::trial::anywhere(
        Bed::up,
        trials![
            what_is_right_is_accepted,
            each_mistake_is_refused_at_its_field,
            an_object_is_told_what_became_of_it_and_nothing_is_written_when_nothing_changed,
            a_gateway_becomes_a_waypoint_and_is_told_so_with_its_routes,
            an_object_that_is_not_the_gateways_is_not_taken_over,
            when_the_leader_dies_another_goes_on_writing,
            the_proxies_of_two_replicas_add_up_to_what_enforced_says,
            an_api_server_that_fails_in_every_way_costs_no_knowledge_and_no_change,
            a_nodes_own_proxy_gets_certificates_and_every_other_token_is_refused_with_its_reason,
            ten_thousand_pods_come_and_go,
        ],
    )
}
