//! The mesh on a real cluster: two nodes with kubelet, containerd and CNI, images of `make images`, the charts.
//!
//! The tests share one cluster and run in this order: the guides of `docs/` are followed from installing to
//! uninstalling. A test selected alone finds what it needs, since each makes its own objects.

#![allow(missing_docs, reason = "the names of tests say what they are about")]

mod bed;
mod operations;
mod policy;
mod traffic;
mod waypoint;

use std::process::ExitCode;

use bed::Bed;
use operations::*;
use policy::*;
use seine_e2e::trials;
use traffic::*;
use waypoint::*;

fn main() -> ExitCode {
    seine_e2e::trial::main(
        Bed::up,
        trials![
            a_labelled_namespaces_running_pods_talk_in_mutual_tls_between_nodes,
            a_policy_is_enforced_by_both_nodes_and_the_command_line_explains_it,
            the_command_line_shows_a_mesh_that_works,
            probes_and_workloads_of_every_kind_work_while_plaintext_is_refused,
            a_network_policy_that_stops_the_mesh_is_found_and_reported,
            a_labelled_namespaces_requests_are_routed_and_denied_by_its_waypoint_and_by_nobody_without_it,
            pods_leave_and_join_by_labels_without_a_restart,
            an_upgrade_and_a_rollback_under_load_fail_no_connection,
            after_a_nodes_reboot_its_pods_are_in_the_mesh_again,
            an_uninstall_leaves_nothing_and_pods_go_on,
        ],
    )
}
