//! Where connections go, and which workload gets them.

use std::collections::HashMap;
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::StdRng;
use seine_proto::workload as proto;

use crate::testing::{self, API, IntoResource, pod, service, store, uid};
use crate::{Destination, Store, Target, Transport, UnavailableReason, Upstream, Waypoint};

const VIP: &str = "10.96.0.1:80";

fn to(
    store: &Store,
    destination: &str,
    from: Option<&str>,
) -> Result<Destination, UnavailableReason> {
    let source = from.map(|name| store.workload(&uid(name)).unwrap());
    store
        .resolve(destination.parse().unwrap(), source.as_deref(), &[])
        .map_err(|unavailable| unavailable.reason)
}

fn upstream(destination: Result<Destination, UnavailableReason>) -> Upstream {
    match destination {
        Ok(Destination::Workload(upstream)) => upstream,
        other => panic!("{other:?}"),
    }
}

fn waypoint(destination: Result<Destination, UnavailableReason>) -> Waypoint {
    match destination {
        Ok(Destination::Waypoint(waypoint)) => waypoint,
        other => panic!("{other:?}"),
    }
}

/// How often each workload is chosen in 4,000 draws.
fn shares(store: &Store, from: Option<&str>) -> HashMap<String, usize> {
    let mut random = StdRng::seed_from_u64(7);
    let source = from.map(|name| store.workload(&uid(name)).unwrap());
    let mut counts = HashMap::new();
    for _ in 0..4000 {
        let chosen = store
            .resolve_with(VIP.parse().unwrap(), source.as_deref(), &[], &mut random)
            .unwrap();
        *counts
            .entry(upstream(Ok(chosen)).workload.name.to_string())
            .or_default() += 1;
    }
    counts
}

fn names(shares: &HashMap<String, usize>) -> Vec<&str> {
    let mut names: Vec<_> = shares.keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

fn api() -> proto::Service {
    service("api", &["10.96.0.1", "fd00:96::1"])
}

fn balanced(
    mode: proto::load_balancing::Mode,
    scopes: &[proto::load_balancing::Scope],
) -> proto::Service {
    proto::Service {
        load_balancing: Some(proto::LoadBalancing {
            routing_preference: scopes.iter().map(|s| (*s).into()).collect(),
            mode: mode.into(),
            health_policy: 0,
        }),
        ..api()
    }
}

#[test]
fn a_service_address_leads_to_a_workload_at_its_target_port() {
    let store = store([api().resource(), pod("a", "10.0.0.1").resource()]);
    let found = upstream(to(&store, VIP, None));
    assert_eq!(
        found.target,
        Target::Address("10.0.0.1:8080".parse().unwrap())
    );
    assert_eq!(found.transport, Transport::Hbone);
    assert_eq!(found.service.as_ref().unwrap().key.to_string(), API);
    assert_eq!(
        found.identities().to_string(),
        "spiffe://cluster.local/ns/shop/sa/api"
    );
}

#[test]
fn a_meshed_workload_that_is_known_by_name_alone_gets_no_plain_tcp() {
    let named = proto::Workload {
        addresses: Vec::new(),
        hostname: "db.example.com".to_owned(),
        ..pod("a", "10.0.0.1")
    };
    let store = store([api().resource(), named.resource()]);
    let found = upstream(to(&store, VIP, None));
    let name = "db.example.com".into();
    assert_eq!(found.target, Target::Hostname { name, port: 8080 });
    assert_eq!(found.transport, Transport::Hbone);
}

#[test]
fn the_services_other_identities_are_accepted_too() {
    let service = proto::Service {
        subject_alt_names: vec!["spiffe://cluster.local/ns/shop/sa/old".to_owned()],
        ..api()
    };
    let store = store([service.resource(), pod("a", "10.0.0.1").resource()]);
    assert_eq!(
        upstream(to(&store, VIP, None)).identities().iter().count(),
        2
    );
}

#[test]
fn a_pod_address_leads_to_the_pod_at_the_same_port() {
    let plain = proto::Workload {
        tunnel_protocol: 0,
        ..pod("b", "10.0.0.2")
    };
    let store = store([pod("a", "10.0.0.1").resource(), plain.resource()]);
    let found = upstream(to(&store, "[::ffff:10.0.0.1]:9999", None));
    assert_eq!(
        found.target,
        Target::Address("10.0.0.1:9999".parse().unwrap())
    );
    assert_eq!(found.transport, Transport::Hbone);
    assert_eq!(found.service, None);
    assert_eq!(
        upstream(to(&store, "10.0.0.2:9999", None)).transport,
        Transport::Tcp
    );
    assert_eq!(
        to(&store, "10.0.0.3:9999", None),
        Ok(Destination::Passthrough)
    );
}

#[test]
fn the_workloads_address_is_of_the_family_that_the_client_used() {
    let dual = proto::Workload {
        addresses: vec![testing::bytes("10.0.0.1"), testing::bytes("fd00::1")],
        ..pod("a", "10.0.0.1")
    };
    let store = store([api().resource(), dual.resource()]);
    let target = |to_| upstream(to(&store, to_, None)).target.to_string();
    assert_eq!(target(VIP), "10.0.0.1:8080");
    assert_eq!(target("[fd00:96::1]:80"), "[fd00::1]:8080");
}

#[test]
fn what_the_mesh_knows_and_nobody_serves_is_unavailable_and_not_passed_through() {
    use UnavailableReason::*;
    let unhealthy = proto::Workload {
        status: 1,
        ..pod("a", "10.0.0.1")
    };
    let other_port = proto::Workload {
        services: [(API.to_owned(), testing::ports(&[(81, 1)]))].into(),
        ..pod("a", "10.0.0.1")
    };
    let drained = proto::Workload {
        capacity: Some(0),
        ..pod("a", "10.0.0.1")
    };
    let elsewhere = proto::Workload {
        network: "n2".to_owned(),
        ..pod("a", "10.0.0.1")
    };
    let nowhere = proto::Workload {
        addresses: vec![],
        ..pod("a", "10.0.0.1")
    };
    let table = [
        (other_port, NoEndpointWithPort),
        (unhealthy, NoneHealthy),
        (drained, NoneHealthy),
        (elsewhere, NoneReachable),
        (nowhere, NoneReachable),
    ];
    for (workload, reason) in table {
        let store = store([api().resource(), workload.resource()]);
        assert_eq!(to(&store, VIP, None), Err(reason));
    }
    let store = store([api().resource()]);
    assert_eq!(to(&store, VIP, None), Err(NoEndpoints));
    assert_eq!(to(&store, "10.96.0.1:81", None), Err(NoSuchPort));
}

#[test]
fn unhealthy_workloads_are_chosen_where_the_service_allows_it() {
    let service = proto::Service {
        load_balancing: Some(proto::LoadBalancing {
            health_policy: 1,
            ..Default::default()
        }),
        ..api()
    };
    let unhealthy = proto::Workload {
        status: 1,
        ..pod("a", "10.0.0.1")
    };
    let store = store([service.resource(), unhealthy.resource()]);
    assert_eq!(&*upstream(to(&store, VIP, None)).workload.name, "a");
}

#[test]
fn equal_workloads_get_equal_shares_also_beside_ineligible_ones() {
    let unhealthy = |name: &str, address: &str| {
        proto::Workload {
            status: 1,
            ..pod(name, address)
        }
        .resource()
    };
    let store = store([
        api().resource(),
        pod("a", "10.0.0.1").resource(),
        unhealthy("u1", "10.0.0.2"),
        unhealthy("u2", "10.0.0.3"),
        unhealthy("u3", "10.0.0.4"),
        unhealthy("u4", "10.0.0.5"),
        pod("b", "10.0.0.6").resource(),
    ]);
    let shares = shares(&store, None);
    assert_eq!(names(&shares), ["a", "b"]);
    assert!(shares["a"].abs_diff(2000) < 150, "{shares:?}");
}

#[test]
fn capacity_is_a_share() {
    let heavy = proto::Workload {
        capacity: Some(3),
        ..pod("b", "10.0.0.2")
    };
    let store = store([
        api().resource(),
        pod("a", "10.0.0.1").resource(),
        heavy.resource(),
    ]);
    let shares = shares(&store, None);
    assert!(shares["a"].abs_diff(1000) < 150, "{shares:?}");
}

/// A client and three workloads: on its node, in its zone, elsewhere.
fn spread(service: proto::Service) -> [seine_proto::discovery::Resource; 5] {
    let at = |name: &str, address: &str, node: &str, zone: &str| {
        proto::Workload {
            node: node.to_owned(),
            locality: Some(proto::Locality {
                region: "r".to_owned(),
                zone: zone.to_owned(),
                subzone: String::new(),
            }),
            ..pod(name, address)
        }
        .resource()
    };
    let client = proto::Workload {
        node: "n1".to_owned(),
        services: [].into(),
        locality: Some(proto::Locality {
            region: "r".to_owned(),
            zone: "z1".to_owned(),
            subzone: String::new(),
        }),
        ..pod("client", "10.0.0.9")
    };
    [
        service.resource(),
        client.resource(),
        at("near", "10.0.0.1", "n1", "z1"),
        at("zone", "10.0.0.2", "n2", "z1"),
        at("far", "10.0.0.3", "n3", "z2"),
    ]
}

#[test]
fn failover_takes_the_best_rank_and_strict_needs_all_scopes() {
    use proto::load_balancing::{Mode, Scope};
    #[rustfmt::skip]
    let table: [(Mode, &[Scope], &[&str]); 6] = [
        (Mode::Failover, &[Scope::Region, Scope::Zone, Scope::Node], &["near"]),
        (Mode::Failover, &[Scope::Region, Scope::Zone], &["near", "zone"]),
        (Mode::Failover, &[], &["far", "near", "zone"]),
        (Mode::Strict, &[Scope::Node], &["near"]),
        (Mode::Strict, &[Scope::Zone], &["near", "zone"]),
        (Mode::UnspecifiedMode, &[Scope::Node], &["far", "near", "zone"]),
    ];
    for (mode, scopes, expected) in table {
        let store = store(spread(balanced(mode, scopes)));
        assert_eq!(
            names(&shares(&store, Some("client"))),
            expected,
            "{mode:?} {scopes:?}"
        );
        // A waypoint is given all that may be chosen.
        let [service] = &store.services()[..] else {
            panic!("{:?}", store.services());
        };
        let (ip, source) = ("10.0.0.9".parse().unwrap(), store.workload(&uid("client")));
        let all = store.backends(service, 80, ip, source.as_deref(), &[]);
        let mut all: Vec<_> = (all.unwrap().iter())
            .map(|upstream| upstream.workload.name.to_string())
            .collect();
        all.sort_unstable();
        assert_eq!(all, expected, "{mode:?} {scopes:?}");
        let tried: Vec<Arc<str>> = ["near", "zone", "far"].map(|name| uid(name).into()).into();
        let none = store.backends(service, 80, ip, source.as_deref(), &tried);
        assert_eq!(none.unwrap_err().reason, UnavailableReason::AllTried);
        // Where they are is the waypoint's to look at, unless the service is strict.
        let spread = store
            .spread(service, 80, ip, source.as_deref(), "z1")
            .unwrap();
        let everywhere = match mode {
            Mode::Strict => expected.len(),
            _ => 3,
        };
        assert_eq!(
            (spread.usable.len(), spread.in_zone),
            (everywhere, 2),
            "{mode:?}"
        );
    }
}

#[test]
fn failover_falls_back_rank_by_rank_as_workloads_are_tried_and_strict_does_not() {
    use proto::load_balancing::{Mode, Scope};
    let source = |store: &Store| store.workload(&uid("client")).unwrap();
    let scopes = [Scope::Zone, Scope::Node];
    let failover = store(spread(balanced(Mode::Failover, &scopes)));
    let mut tried: Vec<Arc<str>> = Vec::new();
    for expected in ["near", "zone", "far"] {
        let found = failover.resolve(VIP.parse().unwrap(), Some(&source(&failover)), &tried);
        let found = upstream(found.map_err(|u| u.reason));
        assert_eq!(&*found.workload.name, expected);
        tried.push(found.workload.uid.clone());
    }
    let last = failover.resolve(VIP.parse().unwrap(), Some(&source(&failover)), &tried);
    assert_eq!(last.unwrap_err().reason, UnavailableReason::AllTried);

    let strict = store(spread(balanced(Mode::Strict, &[Scope::Node])));
    let near: [Arc<str>; 1] = [uid("near").into()];
    let last = strict.resolve(VIP.parse().unwrap(), Some(&source(&strict)), &near);
    assert_eq!(last.unwrap_err().reason, UnavailableReason::AllTried);
    assert_eq!(
        to(&strict, VIP, None),
        Err(UnavailableReason::NoneInScope),
        "an unknown client"
    );
}

#[test]
fn a_passthrough_service_keeps_the_address() {
    let service = balanced(proto::load_balancing::Mode::Passthrough, &[]);
    let store = store([service.resource(), pod("a", "10.0.0.1").resource()]);
    assert_eq!(to(&store, VIP, None), Ok(Destination::Passthrough));
}

fn waypoint_name() -> proto::GatewayAddress {
    proto::GatewayAddress {
        destination: Some(proto::gateway_address::Destination::Hostname(
            proto::NamespacedHostname {
                namespace: "shop".to_owned(),
                hostname: "waypoint.shop.svc.cluster.local".to_owned(),
            },
        )),
        hbone_mtls_port: 15008,
    }
}

fn waypoint_parts() -> [seine_proto::discovery::Resource; 2] {
    let service = proto::Service {
        ports: testing::ports(&[(15008, 15008)]).ports,
        ..service("waypoint", &["10.96.0.7"])
    };
    let waypoint = "shop/waypoint.shop.svc.cluster.local".to_owned();
    let pod = proto::Workload {
        service_account: "waypoint".to_owned(),
        services: [(waypoint, testing::ports(&[(15008, 15008)]))].into(),
        ..pod("wp", "10.0.0.7")
    };
    [service.resource(), pod.resource()]
}

#[test]
fn a_service_with_a_waypoint_is_reached_through_it_but_by_the_waypoint_itself() {
    let [wp_service, wp_pod] = waypoint_parts();
    let service = proto::Service {
        waypoint: Some(waypoint_name()),
        ..api()
    };
    let store = store([
        service.resource(),
        pod("a", "10.0.0.1").resource(),
        wp_service,
        wp_pod,
    ]);
    let found = waypoint(to(&store, VIP, Some("a")));
    assert_eq!(found.address, "10.0.0.7:15008".parse().unwrap());
    assert_eq!(found.authority, VIP.parse().unwrap());
    assert_eq!(
        found.identities().to_string(),
        "spiffe://cluster.local/ns/shop/sa/waypoint"
    );
    assert_eq!(found.service.unwrap().key.to_string(), API);
    assert_eq!(&*upstream(to(&store, VIP, Some("wp"))).workload.name, "a");
    assert_eq!(
        &*upstream(to(&store, "10.0.0.1:8080", Some("a")))
            .workload
            .name,
        "a"
    );
}

#[test]
fn a_waypoint_reaches_a_backend_by_its_name_past_any_waypoint_and_without_an_address_too() {
    let service = proto::Service {
        waypoint: Some(waypoint_name()),
        addresses: Vec::new(),
        ..api()
    };
    let store = store([service.resource(), pod("a", "10.0.0.1").resource()]);
    let service = store.services().pop().unwrap();
    let backend = |port, tried: &[Arc<str>]| {
        let client = "10.0.0.9".parse().unwrap();
        let found = store.resolve_backend(&service, port, client, None, tried);
        found.map_err(|unavailable| unavailable.reason)
    };
    let found = upstream(backend(80, &[]));
    let target = Target::Address("10.0.0.1:8080".parse().unwrap());
    assert_eq!((found.target, found.transport), (target, Transport::Hbone));
    assert_eq!(backend(81, &[]), Err(UnavailableReason::NoSuchPort));
    let tried = [Arc::from(uid("a"))];
    assert_eq!(backend(80, &tried), Err(UnavailableReason::AllTried));
}

#[test]
fn a_workload_with_a_waypoint_is_reached_through_it_when_addressed_itself() {
    let [wp_service, wp_pod] = waypoint_parts();
    let by_address = proto::GatewayAddress {
        destination: Some(proto::gateway_address::Destination::Address(
            proto::NetworkAddress {
                network: String::new(),
                address: testing::bytes("10.0.0.7"),
                length: None,
            },
        )),
        hbone_mtls_port: 15008,
    };
    for gateway in [waypoint_name(), by_address] {
        let bound = proto::Workload {
            waypoint: Some(gateway),
            ..pod("a", "10.0.0.1")
        };
        let store = store([
            api().resource(),
            bound.resource(),
            wp_service.clone(),
            wp_pod.clone(),
        ]);
        let found = waypoint(to(&store, "10.0.0.1:8080", None));
        assert_eq!(found.authority, "10.0.0.1:8080".parse().unwrap());
        assert_eq!(&*found.destination.unwrap().name, "a");
        assert_eq!(
            &*upstream(to(&store, "10.0.0.1:8080", Some("wp")))
                .workload
                .name,
            "a"
        );
        assert_eq!(
            &*upstream(to(&store, VIP, None)).workload.name,
            "a",
            "by its service"
        );
    }
}

#[test]
fn where_ports_of_a_workload_are_bound_its_waypoint_is_of_those_alone() {
    let [wp_service, wp_pod] = waypoint_parts();
    let extension = seine_proto::extensions::WorkloadExtension {
        bound_ports: vec![seine_proto::extensions::BoundPort {
            target_port: 8080,
            waypoint_identities: vec!["spiffe://cluster.local/ns/shop/sa/waypoint".into()],
        }],
        ..Default::default()
    };
    let extension = prost_types::Any {
        type_url: String::new(),
        value: prost::Message::encode_to_vec(&extension),
    };
    let bound = proto::Workload {
        waypoint: Some(waypoint_name()),
        extensions: vec![proto::Extension {
            name: "seine.dev/workload".into(),
            config: Some(extension),
        }],
        ..pod("a", "10.0.0.1")
    };
    let store = store([api().resource(), bound.resource(), wp_service, wp_pod]);
    let through = waypoint(to(&store, "10.0.0.1:8080", None));
    assert_eq!(through.authority, "10.0.0.1:8080".parse().unwrap());
    let direct = upstream(to(&store, "10.0.0.1:9090", None));
    assert_eq!(&*direct.workload.name, "a");
}

#[test]
fn with_its_waypoint_away_a_service_is_unavailable() {
    let service = proto::Service {
        waypoint: Some(waypoint_name()),
        ..api()
    };
    let store = store([service.resource(), pod("a", "10.0.0.1").resource()]);
    assert_eq!(to(&store, VIP, None), Err(UnavailableReason::Unknown));
    let [wp_service, _] = waypoint_parts();
    store.apply_addresses(&[wp_service], &[]);
    assert_eq!(to(&store, VIP, None), Err(UnavailableReason::NoEndpoints));
}

#[test]
fn of_several_waypoints_each_gets_its_share() {
    let [wp_service, wp_pod] = waypoint_parts();
    let other = proto::GatewayAddress {
        destination: Some(proto::gateway_address::Destination::Address(
            proto::NetworkAddress {
                network: String::new(),
                address: testing::bytes("10.0.0.8"),
                length: None,
            },
        )),
        hbone_mtls_port: 15008,
    };
    let weighted = |destination, weight| proto::WeightedWaypoint {
        destination: Some(destination),
        weight,
    };
    let service = proto::Service {
        weighted_waypoints: vec![weighted(waypoint_name(), 3), weighted(other, 1)],
        ..api()
    };
    let wp2 = proto::Workload {
        services: [].into(),
        ..pod("wp2", "10.0.0.8")
    };
    let store = store([service.resource(), wp_service, wp_pod, wp2.resource()]);
    let mut random = StdRng::seed_from_u64(1);
    let second = (0..4000)
        .filter(|_| {
            let found = store.resolve_with(VIP.parse().unwrap(), None, &[], &mut random);
            &*waypoint(found.map_err(|u| u.reason)).workload.name == "wp2"
        })
        .count();
    assert!(second.abs_diff(1000) < 150, "{second}");
}

#[test]
fn a_workload_of_another_network_is_reached_through_its_gateway() {
    let gateway = proto::GatewayAddress {
        destination: Some(proto::gateway_address::Destination::Address(
            proto::NetworkAddress {
                network: String::new(),
                address: testing::bytes("10.0.0.50"),
                length: None,
            },
        )),
        hbone_mtls_port: 15443,
    };
    let remote = proto::Workload {
        network: "n2".to_owned(),
        network_gateway: Some(gateway),
        ..pod("a", "10.0.0.1")
    };
    let gw = proto::Workload {
        service_account: "gateway".to_owned(),
        services: [].into(),
        ..pod("gw", "10.0.0.50")
    };
    let store = store([api().resource(), remote.resource(), gw.resource()]);
    let found = upstream(to(&store, VIP, None));
    let Transport::Gateway {
        gateway,
        address,
        authority,
        ..
    } = found.transport
    else {
        panic!("{found:?}");
    };
    assert_eq!(address, "10.0.0.50:15443".parse().unwrap());
    assert_eq!(authority, "api.shop.svc.cluster.local:80");
    assert_eq!(
        gateway.identity.as_str(),
        "spiffe://cluster.local/ns/shop/sa/gateway"
    );
    assert_eq!(
        to(&store, "10.0.0.1:80", None),
        Ok(Destination::Passthrough),
        "its own network"
    );
}
