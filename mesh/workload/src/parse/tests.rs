//! What is refused, and that the error names the field.

use prost::Message;
use seine_proto::{extensions, security, workload as proto};

use super::{policy, service, workload};
use crate::encode;
use crate::model::{GatewayDestination, Mode, TunnelProtocol};
use crate::testing;

fn extension(name: &str, message: &impl Message) -> proto::Extension {
    let config = prost_types::Any {
        type_url: String::new(),
        value: message.encode_to_vec(),
    };
    proto::Extension {
        name: name.to_owned(),
        config: Some(config),
    }
}

#[test]
fn a_workload_has_the_defaults_of_the_wire() {
    let message = proto::Workload {
        trust_domain: String::new(),
        service_account: String::new(),
        ..testing::pod("a", "10.0.0.1")
    };
    let workload = workload(&message).unwrap();
    assert_eq!(
        workload.identity.as_str(),
        "spiffe://cluster.local/ns/shop/sa/default"
    );
    assert_eq!(workload.capacity, 1);
    assert!(workload.healthy && !workload.host_network);
    assert_eq!(workload.tunnel_protocol, TunnelProtocol::Hbone);
    assert_eq!(
        workload.target_port(&workload.services[0].0, 80),
        Some(8080)
    );
    assert_eq!(workload.target_port(&workload.services[0].0, 81), None);
    assert_eq!(workload.bound_to(8080), None);
}

#[test]
fn a_bad_workload_is_refused_with_the_field() {
    let pod = || testing::pod("a", "10.0.0.1");
    let gateway = proto::GatewayAddress::default();
    let bad_extension = proto::Extension {
        name: "seine.dev/workload".to_owned(),
        config: Some(prost_types::Any {
            type_url: String::new(),
            value: vec![0xff; 4],
        }),
    };
    let table: Vec<(&str, proto::Workload)> = vec![
        (
            "uid",
            proto::Workload {
                uid: String::new(),
                ..pod()
            },
        ),
        (
            "namespace or service_account",
            proto::Workload {
                namespace: "a/b".into(),
                ..pod()
            },
        ),
        (
            "trust_domain",
            proto::Workload {
                trust_domain: "UPPER CASE".into(),
                ..pod()
            },
        ),
        (
            "addresses[1].address",
            proto::Workload {
                addresses: vec![testing::bytes("10.0.0.1"), vec![1, 2, 3]],
                ..pod()
            },
        ),
        (
            "tunnel_protocol",
            proto::Workload {
                tunnel_protocol: 9,
                ..pod()
            },
        ),
        ("status", proto::Workload { status: 9, ..pod() }),
        (
            "network_mode",
            proto::Workload {
                network_mode: 9,
                ..pod()
            },
        ),
        (
            "authorization_policies[0]",
            proto::Workload {
                authorization_policies: vec!["noslash".into()],
                ..pod()
            },
        ),
        (
            "services[noslash]",
            proto::Workload {
                services: [("noslash".to_owned(), testing::ports(&[]))].into(),
                ..pod()
            },
        ),
        (
            "services[a/b].ports[0].service_port",
            proto::Workload {
                services: [("a/b".to_owned(), testing::ports(&[(0, 1)]))].into(),
                ..pod()
            },
        ),
        (
            "services[a/b].ports[0].target_port",
            proto::Workload {
                services: [("a/b".to_owned(), testing::ports(&[(1, 65536)]))].into(),
                ..pod()
            },
        ),
        (
            "waypoint.destination",
            proto::Workload {
                waypoint: Some(gateway),
                ..pod()
            },
        ),
        (
            "extensions[seine.dev/workload]",
            proto::Workload {
                extensions: vec![bad_extension],
                ..pod()
            },
        ),
    ];
    for (field, message) in table {
        assert_eq!(workload(&message).unwrap_err().field, field);
    }
}

#[test]
fn a_bad_service_is_refused_with_the_field() {
    let good = || testing::service("api", &["10.96.0.1"]);
    let balancing = |scope, mode| proto::LoadBalancing {
        routing_preference: vec![scope],
        mode,
        health_policy: 0,
    };
    let mut long = good();
    long.addresses[0].length = Some(33);
    let table: Vec<(&str, proto::Service)> = vec![
        (
            "hostname",
            proto::Service {
                hostname: String::new(),
                ..good()
            },
        ),
        (
            "namespace",
            proto::Service {
                namespace: String::new(),
                ..good()
            },
        ),
        ("addresses[0].length", long),
        (
            "ports[0].service_port",
            proto::Service {
                ports: testing::ports(&[(70000, 1)]).ports,
                ..good()
            },
        ),
        (
            "load_balancing.mode",
            proto::Service {
                load_balancing: Some(balancing(1, 7)),
                ..good()
            },
        ),
        (
            "load_balancing.routing_preference",
            proto::Service {
                load_balancing: Some(balancing(0, 1)),
                ..good()
            },
        ),
        (
            "weighted_waypoints[0].destination",
            proto::Service {
                weighted_waypoints: vec![proto::WeightedWaypoint::default()],
                ..good()
            },
        ),
    ];
    for (field, message) in table {
        assert_eq!(service(&message).unwrap_err().field, field);
    }
}

#[test]
fn a_bad_policy_is_refused_with_the_field() {
    let with = |m: security::Match| security::Authorization {
        rules: vec![security::Rule {
            clauses: vec![security::Clause { matches: vec![m] }],
        }],
        ..testing::policy("p")
    };
    let m = security::Match::default;
    let block = |address: &str, length| security::Address {
        address: testing::bytes(address),
        length,
    };
    let table: Vec<(&str, security::Authorization)> = vec![
        (
            "name",
            security::Authorization {
                name: String::new(),
                ..testing::policy("p")
            },
        ),
        (
            "scope",
            security::Authorization {
                scope: 3,
                ..testing::policy("p")
            },
        ),
        (
            "action",
            security::Authorization {
                action: 2,
                ..testing::policy("p")
            },
        ),
        (
            "rules[0].clauses[0].matches[0].namespaces[0].match_type",
            with(security::Match {
                namespaces: vec![Default::default()],
                ..m()
            }),
        ),
        (
            "rules[0].clauses[0].matches[0].source_ips[0].length",
            with(security::Match {
                source_ips: vec![block("10.0.0.0", 33)],
                ..m()
            }),
        ),
        (
            "rules[0].clauses[0].matches[0].destination_ports[0]",
            with(security::Match {
                destination_ports: vec![65536],
                ..m()
            }),
        ),
        (
            "rules[0].clauses[0].matches[0].service_accounts[0].namespace",
            with(security::Match {
                service_accounts: vec![Default::default()],
                ..m()
            }),
        ),
    ];
    for (field, message) in table {
        let got = policy(&message).unwrap_err().field;
        assert_eq!(got.trim_end_matches('.'), field);
    }
}

#[test]
fn an_ipv4_mapped_block_is_an_ipv4_one() {
    let block = security::Address {
        address: testing::bytes("::ffff:10.1.2.3"),
        length: 104,
    };
    let m = security::Match {
        source_ips: vec![block],
        ..Default::default()
    };
    let message = security::Authorization {
        rules: vec![security::Rule {
            clauses: vec![security::Clause { matches: vec![m] }],
        }],
        ..testing::policy("p")
    };
    let policy = policy(&message).unwrap();
    assert_eq!(
        policy.rules[0].clauses[0].matches[0].source_ips,
        ["10.0.0.0/8".parse().unwrap()]
    );
}

#[test]
fn a_principal_with_its_scheme_means_the_same_without() {
    let exact = security::StringMatch {
        match_type: Some(security::string_match::MatchType::Exact(
            "spiffe://d/ns/a/sa/b".into(),
        )),
    };
    let m = security::Match {
        principals: vec![exact],
        ..Default::default()
    };
    let message = security::Authorization {
        rules: vec![security::Rule {
            clauses: vec![security::Clause { matches: vec![m] }],
        }],
        ..testing::policy("p")
    };
    let principals = &policy(&message).unwrap().rules[0].clauses[0].matches[0].principals;
    assert_eq!(
        principals,
        &[seine_policy::StringMatch::Exact("d/ns/a/sa/b".into())]
    );
}

#[test]
fn our_own_extensions_are_read() {
    let extra = extensions::WorkloadExtension {
        bound_ports: vec![extensions::BoundPort {
            target_port: 8080,
            waypoint_identities: vec!["spiffe://cluster.local/ns/shop/sa/waypoint".into()],
        }],
        pod_hostname: "db-0".into(),
        pod_subdomain: "db".into(),
        dns_opt_out: true,
    };
    let message = proto::Workload {
        extensions: vec![
            proto::Extension {
                name: "somebody/else".into(),
                config: None,
            },
            extension("seine.dev/workload", &extra),
        ],
        ..testing::pod("a", "10.0.0.1")
    };
    let workload = workload(&message).unwrap();
    assert_eq!(workload.stateful_name(), Some(("db-0", "db")));
    assert!(workload.dns_opt_out());
    let bound = workload.bound_to(8080).unwrap();
    assert_eq!(
        bound[0].as_str(),
        "spiffe://cluster.local/ns/shop/sa/waypoint"
    );

    let names = extensions::ServiceExtension {
        port_names: [(80, "http".to_owned())].into(),
        policies: vec!["shop/web_at_api".to_owned()],
        authentications: vec!["shop/users".to_owned()],
    };
    let message = proto::Service {
        extensions: vec![extension("seine.dev/service", &names)],
        ..testing::service("api", &[])
    };
    let read = service(&message).unwrap();
    assert_eq!(read.port_named("http"), Some(80));
    assert_eq!(*read.authentications[0], *"shop/users");
    assert_eq!(service(&encode::service(&read)).unwrap(), read);
}

#[test]
fn what_is_encoded_is_parsed_to_the_same() {
    let gateway = |destination| proto::GatewayAddress {
        destination: Some(destination),
        hbone_mtls_port: 15008,
    };
    let by_name = gateway(proto::gateway_address::Destination::Hostname(
        proto::NamespacedHostname {
            namespace: "shop".into(),
            hostname: "waypoint.shop.svc.cluster.local".into(),
        },
    ));
    let by_address = gateway(proto::gateway_address::Destination::Address(
        proto::NetworkAddress {
            network: "n2".into(),
            address: testing::bytes("fd00::1"),
            length: None,
        },
    ));
    let first = workload(&proto::Workload {
        waypoint: Some(by_name.clone()),
        network_gateway: Some(by_address.clone()),
        network: "n1".into(),
        workload_type: proto::WorkloadType::Cronjob.into(),
        status: proto::WorkloadStatus::Unhealthy.into(),
        authorization_policies: vec!["shop/p".into()],
        locality: Some(proto::Locality {
            region: "r".into(),
            zone: "z".into(),
            subzone: "s".into(),
        }),
        application_tunnel: Some(proto::ApplicationTunnel {
            protocol: 1,
            port: 9000,
        }),
        network_mode: proto::NetworkMode::HostNetwork.into(),
        capacity: Some(7),
        extensions: vec![extension(
            "seine.dev/workload",
            &extensions::WorkloadExtension {
                dns_opt_out: true,
                ..Default::default()
            },
        )],
        ..testing::pod("a", "fd00::a")
    })
    .unwrap();
    assert_eq!(first.proxy_protocol_port, Some(9000));
    assert_eq!(workload(&encode::workload(&first)).unwrap(), first);

    let first = service(&proto::Service {
        waypoint: Some(by_name),
        weighted_waypoints: vec![proto::WeightedWaypoint {
            destination: Some(by_address),
            weight: 3,
        }],
        load_balancing: Some(proto::LoadBalancing {
            routing_preference: vec![1, 2, 3, 4, 5, 6],
            mode: 2,
            health_policy: 1,
        }),
        subject_alt_names: vec!["spiffe://d/ns/a/sa/b".into()],
        visibility: 1,
        canonical: true,
        ..testing::service("api", &["10.96.0.1", "fd00::96"])
    })
    .unwrap();
    assert_eq!(first.load_balancing.mode, Mode::Failover);
    assert!(matches!(
        first.weighted_waypoints[0].destination.destination,
        GatewayDestination::Address(_)
    ));
    assert_eq!(service(&encode::service(&first)).unwrap(), first);
}

fn requesting(extensions: &[(&str, Option<Vec<u8>>)]) -> security::Authorization {
    let extension = |(name, config): &(&str, Option<Vec<u8>>)| security::Extension {
        name: (*name).into(),
        config: config.clone().map(|value| prost_types::Any {
            type_url: String::new(),
            value,
        }),
    };
    let found = security::Match {
        extensions: extensions.iter().map(extension).collect(),
        ..Default::default()
    };
    security::Authorization {
        rules: vec![security::Rule {
            clauses: vec![security::Clause {
                matches: vec![found],
            }],
        }],
        ..testing::policy("p")
    }
}

#[test]
fn what_must_hold_of_a_request_is_read_and_encoded_to_the_same() {
    let prefix = |text: &str| {
        vec![security::StringMatch {
            match_type: Some(security::string_match::MatchType::Prefix(text.into())),
        }]
    };
    let request = extensions::RequestMatch {
        methods: vec!["GET".into()],
        not_methods: vec!["POST".into()],
        paths: prefix("/a"),
        not_paths: prefix("/b"),
        hosts: prefix("c"),
        not_hosts: prefix("d"),
        headers: vec![extensions::HeaderMatch {
            name: "x-e".into(),
            values: prefix("f"),
        }],
    };
    let token = extensions::TokenMatch {
        principals: prefix("https://a/"),
        not_principals: prefix("https://b/"),
        claims: vec![extensions::ClaimMatch {
            path: vec!["realm_access".into(), "roles".into()],
            values: prefix("g"),
            not_values: prefix("h"),
        }],
    };
    let (request, token) = (Some(request.encode_to_vec()), Some(token.encode_to_vec()));
    let known = [
        ("seine.dev/request", request),
        ("seine.dev/token", token.clone()),
    ];
    let first = policy(&requesting(&known)).unwrap();
    let found = &first.rules[0].clauses[0].matches[0];
    assert_eq!(found.request.as_ref().unwrap().headers.len(), 1);
    assert_eq!(found.token.as_ref().unwrap().claims[0].path.len(), 2);
    // It is a condition that is known.
    assert!(!found.unknown_condition);
    assert_eq!(policy(&encode::policy(&first)).unwrap(), first);
    // One that says nothing is no condition that holds: it is refused.
    for name in ["seine.dev/request", "seine.dev/token"] {
        assert!(policy(&requesting(&[(name, None)])).is_err(), "{name}");
        let twice = [(name, token.clone()), (name, token.clone())];
        assert!(policy(&requesting(&twice)).is_err(), "{name}");
    }
    let other = policy(&requesting(&[("seine.dev/other", token)])).unwrap();
    assert!(other.rules[0].clauses[0].matches[0].unknown_condition);
}

#[test]
fn whom_to_ask_is_read_and_encoded_to_the_same_and_an_unknown_protocol_refused() {
    let provider = extensions::ExternalProvider {
        namespace: "shop".into(),
        hostname: "authz.shop.svc.cluster.local".into(),
        port: 9000,
        protocol: extensions::external_provider::Protocol::Http.into(),
        timeout_ms: 250,
        fail_open: true,
        path_prefix: "/check".into(),
        request_headers: vec!["cookie".into()],
        to_backend: vec!["x-user".into()],
        to_client: vec!["set-cookie".into()],
    };
    let asking = |external: extensions::ExternalProvider| {
        let ours = extensions::AuthorizationExtension {
            external: Some(external),
            ..Default::default()
        };
        security::Authorization {
            extensions: vec![security::Extension {
                name: "seine.dev/authorization".into(),
                config: Some(prost_types::Any {
                    type_url: String::new(),
                    value: ours.encode_to_vec(),
                }),
            }],
            ..testing::policy("p")
        }
    };
    let first = policy(&asking(provider.clone())).unwrap();
    let found = first.provider.as_ref().unwrap();
    assert_eq!((found.port, found.fail_open), (9000, true));
    assert_eq!(policy(&encode::policy(&first)).unwrap(), first);
    for bad in [
        extensions::ExternalProvider {
            protocol: 7,
            ..provider.clone()
        },
        extensions::ExternalProvider {
            port: 0x10000,
            ..provider
        },
    ] {
        assert!(policy(&asking(bad)).is_err());
    }
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_parsers_panic(bytes in proptest::collection::vec(0u8.., 0..256)) {
        if let Ok(message) = proto::Workload::decode(&*bytes) { let _ = workload(&message); }
        if let Ok(message) = proto::Service::decode(&*bytes) { let _ = service(&message); }
        if let Ok(message) = security::Authorization::decode(&*bytes) { let _ = policy(&message); }
    }
}
