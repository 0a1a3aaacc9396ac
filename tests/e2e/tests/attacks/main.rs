//! What must not work, against the real programs. Each attack stands beside a twin that differs
//! from it only in what is attacked, and succeeds; and the reason of each refusal is looked up in
//! the log of the program that refused.

#![allow(missing_docs, reason = "the names of tests say what they are about")]

mod authority;
mod certificates;
mod kernel;
mod local;
mod ports;
mod stage;

use std::process::ExitCode;

use authority::*;
use certificates::*;
use kernel::*;
use local::*;
use ports::*;
use seine_e2e::trials;

fn main() -> ExitCode {
    seine_e2e::trial::main(
        stage::Stage::up,
        trials![
            a_client_without_a_certificate_opens_no_tunnel,
            an_expired_certificate_opens_no_tunnel,
            a_certificate_that_is_not_yet_valid_opens_no_tunnel,
            a_self_signed_certificate_opens_no_tunnel,
            a_certificate_of_another_trust_domain_opens_no_tunnel,
            another_ca_that_signs_our_domain_opens_no_tunnel,
            a_federated_ca_that_signs_our_domain_opens_no_tunnel,
            a_certificate_with_two_sans_opens_no_tunnel,
            a_certificate_without_a_san_opens_no_tunnel,
            a_node_gets_no_certificate_for_an_identity_of_another_node,
            a_forged_token_gets_no_certificate,
            an_expired_token_gets_no_certificate,
            a_tunnel_leads_to_no_address_but_the_pods,
            a_tunnel_leads_to_none_of_the_proxys_own_ports,
            a_tunnel_leads_not_to_loopback,
            another_pods_plaintext_port_can_not_be_connected_to,
            another_pods_outbound_port_can_not_be_connected_to,
            garbage_on_every_port_of_a_pod_harms_nobody,
            garbage_from_within_a_pod_harms_nobody,
            garbage_on_the_ports_of_the_meshs_programs_harms_nobody,
            garbage_on_the_pages_of_loopback_harms_nobody,
            datagrams_of_garbage_to_the_dns_proxy_harm_nobody,
            the_proxys_mark_on_a_pods_sockets_gets_past_nothing,
            a_probe_aimed_at_another_port_gets_nothing,
            a_probe_aimed_at_a_pod_of_another_node_gets_nothing,
            a_process_that_poses_as_ztunnel_is_told_of_no_pod,
            a_process_that_poses_as_ztunnel_gets_no_listening_sockets,
            a_process_that_poses_as_ztunnels_successor_gets_no_keys,
            a_process_that_poses_as_the_agent_is_not_spoken_to,
            a_process_that_poses_as_the_cni_plugin_is_not_answered,
            garbage_on_the_agents_sockets_harms_nobody,
        ],
    )
}
