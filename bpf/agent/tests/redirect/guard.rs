//! What a pod tries past the hooks, each with a twin that differs only in what the guard judges.
//!
//! Both packets of a pair are sent the same way, one after the other, until the twin has arrived at
//! the outside host; by then the judged one would have arrived too.

use std::{collections::BTreeSet, time::Duration};

use seine_agent::redirect::{Counter, Udp};

use crate::{
    client::ask,
    frames::{
        ACK, DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, SYN, TCP, UDP, arrived, datagram,
        hardware_address, ipv4, ipv6, listen_frames, segment, send_frame, send_raw, sysctl,
    },
    process::Netns,
    world::{OUTSIDE4, OUTSIDE6, POD4, POD6, SERVER, World, connect, world},
};

/// The port that the pods of these tests may reach without the proxy.
const EXCLUDED: u16 = 7777;
const JUDGED: &str = "the judged packet";
const TWIN: &str = "its twin";

/// Enrols the pod with one excluded port.
fn guarded(world: &mut World) -> u64 {
    let mut settings = world.settings();
    settings.excluded_outbound_ports.insert(EXCLUDED);
    world.enrol(&settings, Default::default()).cookie
}

/// Sends both packets until the twin arrives, and says what arrived.
fn contest(
    world: &World,
    send: impl Fn(&[u8]) + Sync,
    judged: &[u8],
    twin: &[u8],
) -> Vec<&'static str> {
    let socket = world.outside.within(listen_frames);
    for _ in 0..100 {
        world.pod.within(|| {
            send(judged);
            send(twin);
        });
        std::thread::sleep(Duration::from_millis(20));
        let found = arrived(&socket, &[JUDGED, TWIN]);
        if found.contains(&TWIN) {
            return found;
        }
    }
    panic!("not even the twin arrived");
}

/// A pair by a packet socket that bypasses the pod's qdiscs; before enrolment both arrive.
fn only_the_twin_passes(judged: Vec<u8>, twin: Vec<u8>, reason: Counter) {
    world(move |world| {
        let gateway = world.node.within(|| hardware_address("pod0"));
        let send = |packet: &[u8]| send_frame("eth0", gateway, packet);
        assert_eq!(
            contest(world, send, &judged, &twin),
            [JUDGED, TWIN],
            "before enrolment"
        );
        guarded(world);
        assert_eq!(contest(world, send, &judged, &twin), [TWIN]);
        assert!(world.count(reason) > 0);
    });
}

fn packet4(protocol: u8, fragment: u16, options: usize, body: &[u8]) -> Vec<u8> {
    ipv4(POD4, OUTSIDE4, protocol, fragment, options, body)
}

fn packet6(extensions: &[(u8, u16)], protocol: u8, body: &[u8]) -> Vec<u8> {
    ipv6(POD6, OUTSIDE6, extensions, protocol, body)
}

fn syn(to: u16, word: &str) -> Vec<u8> {
    segment(4000, to, SYN, word)
}

#[test]
fn a_packet_sockets_syn_past_the_qdisc_is_dropped() {
    only_the_twin_passes(
        packet4(TCP, 0, 0, &syn(SERVER, JUDGED)),
        packet4(TCP, 0, 0, &syn(EXCLUDED, TWIN)),
        Counter::GuardDroppedSyn,
    );
}

#[test]
fn a_packet_sockets_syn_by_ipv6_is_dropped() {
    only_the_twin_passes(
        packet6(&[], TCP, &syn(SERVER, JUDGED)),
        packet6(&[], TCP, &syn(EXCLUDED, TWIN)),
        Counter::GuardDroppedSyn,
    );
}

#[test]
fn a_syn_is_dropped_and_an_answer_to_one_passes() {
    only_the_twin_passes(
        packet4(TCP, 0, 0, &segment(4000, SERVER, SYN, JUDGED)),
        packet4(TCP, 0, 0, &segment(4000, SERVER, SYN | ACK, TWIN)),
        Counter::GuardDroppedSyn,
    );
}

#[test]
fn a_syn_behind_ipv4_options_is_dropped() {
    only_the_twin_passes(
        packet4(TCP, 0, 3, &syn(SERVER, JUDGED)),
        packet4(TCP, 0, 3, &syn(EXCLUDED, TWIN)),
        Counter::GuardDroppedSyn,
    );
}

#[test]
fn first_fragments_of_tcp_are_dropped_and_those_of_udp_pass() {
    const MORE: u16 = 0x2000;
    only_the_twin_passes(
        packet4(TCP, MORE, 0, &syn(EXCLUDED, &format!("{JUDGED}   "))),
        packet4(
            UDP,
            MORE,
            0,
            &datagram(4000, SERVER, &format!("{TWIN}        ")),
        ),
        Counter::GuardDroppedFragment,
    );
}

#[test]
fn later_fragments_of_tcp_are_dropped_and_those_of_udp_pass() {
    only_the_twin_passes(
        packet4(TCP, 1, 0, &syn(EXCLUDED, JUDGED)),
        packet4(UDP, 1, 0, &datagram(4000, SERVER, TWIN)),
        Counter::GuardDroppedFragment,
    );
}

#[test]
fn a_syn_behind_ipv6_extension_headers_is_found() {
    let headers = [
        (HOP_BY_HOP, 0),
        (DESTINATION_OPTIONS, 0),
        (DESTINATION_OPTIONS, 0),
    ];
    only_the_twin_passes(
        packet6(&headers, TCP, &syn(SERVER, JUDGED)),
        packet6(&headers, TCP, &syn(EXCLUDED, TWIN)),
        Counter::GuardDroppedSyn,
    );
}

#[test]
fn more_ipv6_extension_headers_than_are_walked_are_dropped() {
    let body = datagram(4000, SERVER, JUDGED);
    let twin = datagram(4000, SERVER, TWIN);
    only_the_twin_passes(
        packet6(&[(DESTINATION_OPTIONS, 0); 9], UDP, &body),
        packet6(&[(DESTINATION_OPTIONS, 0); 8], UDP, &twin),
        Counter::GuardDroppedExtension,
    );
}

#[test]
fn ipv6_fragments_of_tcp_are_dropped_and_those_of_udp_pass() {
    // One that is whole, the first of several, a later one.
    for (judged, twin) in [(0, 0), (1, 1), (8, 8)] {
        only_the_twin_passes(
            packet6(
                &[(FRAGMENT, judged)],
                TCP,
                &syn(EXCLUDED, &format!("{JUDGED}   ")),
            ),
            packet6(
                &[(FRAGMENT, twin)],
                UDP,
                &datagram(4000, SERVER, &format!("{TWIN}        ")),
            ),
            Counter::GuardDroppedFragment,
        );
    }
}

#[test]
fn a_fragment_that_hides_tcp_behind_options_is_dropped() {
    // A later fragment whose next header is an extension could be anything.
    only_the_twin_passes(
        packet6(&[(FRAGMENT, 8)], DESTINATION_OPTIONS, &syn(SERVER, JUDGED)),
        packet6(&[(FRAGMENT, 8)], UDP, &datagram(4000, SERVER, TWIN)),
        Counter::GuardDroppedFragment,
    );
}

/// A pair of which both pass, until the pod's UDP is dropped.
fn only_the_twin_passes_where_udp_is_dropped(judged: Vec<u8>, twin: Vec<u8>, reason: Counter) {
    world(move |world| {
        let gateway = world.node.within(|| hardware_address("pod0"));
        let send = |packet: &[u8]| send_frame("eth0", gateway, packet);
        let cookie = guarded(world);
        assert_eq!(
            contest(world, send, &judged, &twin),
            [JUDGED, TWIN],
            "without the setting"
        );
        let mut settings = world.settings();
        settings.excluded_outbound_ports.insert(EXCLUDED);
        settings.udp = Udp::Drop;
        world.redirect().update(cookie, &settings).unwrap();
        assert_eq!(contest(world, send, &judged, &twin), [TWIN]);
        assert!(world.count(reason) > 0);
    });
}

#[test]
fn udp_is_dropped_where_the_setting_says_so_but_for_excluded_ports() {
    only_the_twin_passes_where_udp_is_dropped(
        packet4(UDP, 0, 0, &datagram(4000, SERVER, JUDGED)),
        packet4(UDP, 0, 0, &datagram(4000, EXCLUDED, TWIN)),
        Counter::GuardDroppedUdp,
    );
    only_the_twin_passes_where_udp_is_dropped(
        packet6(
            &[(DESTINATION_OPTIONS, 0)],
            UDP,
            &datagram(4000, SERVER, JUDGED),
        ),
        packet6(
            &[(DESTINATION_OPTIONS, 0)],
            UDP,
            &datagram(4000, EXCLUDED, TWIN),
        ),
        Counter::GuardDroppedUdp,
    );
}

#[test]
fn dns_and_other_protocols_pass_where_udp_is_dropped() {
    const SCTP: u8 = 132;
    only_the_twin_passes_where_udp_is_dropped(
        packet4(UDP, 0, 0, &datagram(4000, SERVER, JUDGED)),
        packet4(UDP, 0, 0, &datagram(4000, 53, TWIN)),
        Counter::GuardDroppedUdp,
    );
    only_the_twin_passes_where_udp_is_dropped(
        packet4(UDP, 0, 0, &datagram(4000, SERVER, JUDGED)),
        packet4(SCTP, 0, 0, &datagram(4000, SERVER, TWIN)),
        Counter::GuardDroppedUdp,
    );
}

#[test]
fn fragments_of_udp_are_dropped_with_it() {
    only_the_twin_passes_where_udp_is_dropped(
        packet4(UDP, 1, 0, &datagram(4000, EXCLUDED, JUDGED)),
        packet4(UDP, 0, 0, &datagram(4000, EXCLUDED, TWIN)),
        Counter::GuardDroppedFragment,
    );
    for fragment in [1, 8] {
        only_the_twin_passes_where_udp_is_dropped(
            packet6(
                &[(FRAGMENT, fragment)],
                UDP,
                &datagram(4000, EXCLUDED, &format!("{JUDGED}   ")),
            ),
            packet6(&[], UDP, &datagram(4000, EXCLUDED, TWIN)),
            Counter::GuardDroppedFragment,
        );
    }
}

#[test]
fn a_raw_sockets_syn_is_dropped() {
    world(|world| {
        let judged = packet4(TCP, 0, 0, &syn(SERVER, JUDGED));
        let twin = packet4(TCP, 0, 0, &syn(EXCLUDED, TWIN));
        assert_eq!(
            contest(world, send_raw, &judged, &twin),
            [JUDGED, TWIN],
            "before enrolment"
        );
        guarded(world);
        assert_eq!(contest(world, send_raw, &judged, &twin), [TWIN]);
        assert!(world.count(Counter::GuardDroppedSyn) > 0);
    });
}

#[test]
fn a_nested_netns_connects_to_nothing_but_excluded_ports() {
    world(|world| {
        let nested = Netns::new();
        connect(&world.pod, &nested, "nest0", "eth0", 3);
        nested.sh("ip route add default via 10.9.3.1");
        world.pod.within(|| sysctl("ipv4/ip_forward", "1"));
        // As a masquerade would do, but for its need of a tool: the way back is known.
        world.node.sh("ip route add 10.9.3.0/24 via 10.9.1.2");
        let pod = world.cgroup("kubepods/pod");
        let call =
            |port: u16| crate::process::Process::call(&pod, &nested, || ask((OUTSIDE4, port)));
        assert_eq!(
            call(SERVER),
            "outside at 10.9.2.2:7000 for 10.9.3.2",
            "before enrolment"
        );
        let cookie = guarded(world);
        assert_eq!(call(SERVER), "TimedOut");
        assert!(world.count(Counter::GuardDroppedSyn) > 0);
        let mut settings = world.settings();
        settings.excluded_outbound_ports.insert(SERVER);
        world.redirect().update(cookie, &settings).unwrap();
        assert_eq!(call(SERVER), "outside at 10.9.2.2:7000 for 10.9.3.2");
    });
}

#[test]
fn a_second_interface_is_guarded_as_the_first() {
    world(|world| {
        let second = connect(&world.node, &world.pod, "second0", "eth1", 4);
        let gateway = world.node.within(|| hardware_address("second0"));
        let send = |packet: &[u8]| send_frame("eth1", gateway, packet);
        let from = [10, 9, 4, 2].into();
        let judged = ipv4(from, OUTSIDE4, TCP, 0, 0, &syn(SERVER, JUDGED));
        let twin = ipv4(from, OUTSIDE4, TCP, 0, 0, &syn(EXCLUDED, TWIN));
        let cookie = guarded(world);
        assert_eq!(
            contest(world, send, &judged, &twin),
            [JUDGED, TWIN],
            "with one guard"
        );
        let mut settings = world.settings();
        settings.excluded_outbound_ports.insert(EXCLUDED);
        settings.host_ifindexes = BTreeSet::from([world.veth, second]);
        world.redirect().update(cookie, &settings).unwrap();
        assert_eq!(contest(world, send, &judged, &twin), [TWIN]);
        settings.host_ifindexes = BTreeSet::from([world.veth]);
        world.redirect().update(cookie, &settings).unwrap();
        assert_eq!(
            contest(world, send, &judged, &twin),
            [JUDGED, TWIN],
            "with one guard again"
        );
    });
}

#[test]
fn replies_of_connections_from_outside_pass_the_guard() {
    world(|world| {
        let mut settings = world.settings();
        settings.excluded_inbound_ports.insert(crate::world::APP);
        world.enrol(&settings, Default::default());
        let answer = world.outside(|| ask((POD4, crate::world::APP)));
        assert_eq!(answer, "app at 10.9.1.2:8080 for 10.9.2.2");
        assert_eq!(world.count(Counter::GuardDroppedSyn), 0);
    });
}
