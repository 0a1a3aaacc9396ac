//! Connections and DNS queries that a pod makes.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};

use seine_agent::redirect::{Counter, DnsCapture};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    client::{PATIENCE, ask, ask_with, query, read, word},
    process::Process,
    world::{APP, NODE4, OUTSIDE4, OUTSIDE6, POD4, POD6, SERVER, World, world},
};

#[test]
fn an_ipv4_connection_reaches_the_proxy_with_its_destination() {
    world(|world| {
        let before = world.in_pod(|| ask((OUTSIDE4, SERVER)));
        assert_eq!(before, "outside at 10.9.2.2:7000 for 10.9.1.2");
        let (_, _proxy) = world.meshed();
        assert_eq!(
            world.in_pod(|| ask((OUTSIDE4, SERVER))),
            "caught to 10.9.2.2:7000"
        );
        assert_eq!(world.count(Counter::CaughtIpv4), 1);
        assert_eq!(world.count(Counter::OriginalsHanded), 1);
    });
}

#[test]
fn an_ipv6_connection_reaches_the_proxy_with_its_destination() {
    world(|world| {
        let before = world.in_pod(|| ask((OUTSIDE6, SERVER)));
        assert_eq!(before, "outside at [fd09:2::2]:7000 for fd09:1::2");
        let (_, _proxy) = world.meshed();
        assert_eq!(
            world.in_pod(|| ask((OUTSIDE6, SERVER))),
            "caught to [fd09:2::2]:7000"
        );
        assert_eq!(world.count(Counter::CaughtIpv6), 1);
    });
}

#[test]
fn a_mapped_connection_reaches_the_proxy_as_ipv4() {
    world(|world| {
        let (_, _proxy) = world.meshed();
        let mapped = OUTSIDE4.to_ipv6_mapped();
        assert_eq!(
            world.in_pod(|| ask((mapped, SERVER))),
            "caught to 10.9.2.2:7000"
        );
    });
}

#[test]
fn an_application_sees_the_addresses_that_it_expects() {
    world(|world| {
        let (_, _proxy) = world.meshed();
        let seen = |to: SocketAddr| {
            let stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
            format!(
                "{} {}",
                stream.local_addr().unwrap().ip(),
                stream.peer_addr().unwrap()
            )
        };
        let v4 = world.in_pod(|| seen((OUTSIDE4, SERVER).into()));
        assert_eq!(v4, "10.9.1.2 10.9.2.2:7000");
        let v6 = world.in_pod(|| seen((OUTSIDE6, SERVER).into()));
        assert_eq!(v6, "fd09:1::2 [fd09:2::2]:7000");
        let mapped = world.in_pod(|| seen((OUTSIDE4.to_ipv6_mapped(), SERVER).into()));
        assert_eq!(mapped, "::ffff:10.9.1.2 [::ffff:10.9.2.2]:7000");
    });
}

#[test]
fn no_socket_option_of_an_application_walks_around_the_proxy() {
    world(|world| {
        let (_, _proxy) = world.meshed();
        let to = SocketAddr::from((OUTSIDE4, SERVER));
        let bound = world.in_pod(|| {
            ask_with(to, |socket| {
                socket.bind(&SocketAddr::from((POD4, 4321)).into()).unwrap()
            })
        });
        assert_eq!(bound, "caught to 10.9.2.2:7000");
        let device =
            world.in_pod(|| ask_with(to, |socket| socket.bind_device(Some(b"eth0")).unwrap()));
        assert_eq!(device, "caught to 10.9.2.2:7000");
        let mark = world.in_pod(|| ask_with(to, |socket| socket.set_mark(0x539).unwrap()));
        assert_eq!(mark, "caught to 10.9.2.2:7000");
    });
}

#[test]
fn a_pod_that_is_not_enrolled_is_left_alone() {
    world(|world| {
        let (_, _proxy) = world.meshed();
        // A process below the pods' cgroup, in another netns.
        let other = Process::call(&world.cgroup("kubepods/pod"), &world.node, || {
            ask((OUTSIDE4, SERVER))
        });
        assert_eq!(other, "outside at 10.9.2.2:7000 for 10.9.2.1");
    });
}

#[test]
fn talk_within_the_pod_is_left_alone() {
    world(|world| {
        let (_, _proxy) = world.meshed();
        for (to, from) in [
            (SocketAddr::from((Ipv4Addr::LOCALHOST, APP)), "127.0.0.1"),
            (SocketAddr::from((Ipv6Addr::LOCALHOST, APP)), "::1"),
            (SocketAddr::from((POD4, APP)), "10.9.1.2"),
            (SocketAddr::from((POD6, APP)), "fd09:1::2"),
        ] {
            assert_eq!(world.in_pod(|| ask(to)), format!("app at {to} for {from}"));
        }
    });
}

#[test]
fn excluded_ports_and_networks_are_left_alone_and_others_are_not() {
    world(|world| {
        let mut settings = world.settings();
        let (cookie, _proxy) = world.meshed_with(&settings);
        let direct = "outside at 10.9.2.2:7000 for 10.9.1.2";
        settings.excluded_outbound_ports.insert(SERVER);
        world.redirect().update(cookie, &settings).unwrap();
        assert_eq!(world.in_pod(|| ask((OUTSIDE4, SERVER))), direct);
        settings.excluded_outbound_ports.clear();
        settings
            .excluded_outbound_networks
            .insert("10.9.2.0/24".parse().unwrap());
        world.redirect().update(cookie, &settings).unwrap();
        assert_eq!(world.in_pod(|| ask((OUTSIDE4, SERVER))), direct);
        assert_eq!(
            world.in_pod(|| ask((OUTSIDE6, SERVER))),
            "caught to [fd09:2::2]:7000"
        );
        settings.excluded_outbound_networks = ["fd09:2::/32".parse().unwrap()].into();
        world.redirect().update(cookie, &settings).unwrap();
        assert_eq!(
            world.in_pod(|| ask((OUTSIDE4, SERVER))),
            "caught to 10.9.2.2:7000"
        );
        let direct = "outside at [fd09:2::2]:7000 for fd09:1::2";
        assert_eq!(world.in_pod(|| ask((OUTSIDE6, SERVER))), direct);
    });
}

#[test]
fn the_proxys_own_connections_are_not_caught() {
    world(|world| {
        let (_, _proxy) = world.meshed();
        let direct = world.in_proxy(|| ask((OUTSIDE4, SERVER)));
        assert_eq!(direct, "outside at 10.9.2.2:7000 for 10.9.1.2");
        let direct = world.in_proxy(|| ask((OUTSIDE6, SERVER)));
        assert_eq!(direct, "outside at [fd09:2::2]:7000 for fd09:1::2");
        assert_eq!(world.count(Counter::ProxyDials), 2);
        // A SYN may be sent again.
        assert!(world.count(Counter::GuardPassedProxy) >= 2);
        assert_eq!(world.count(Counter::GuardDroppedSyn), 0);
    });
}

#[test]
fn without_a_proxy_connections_wait_and_without_listeners_they_are_refused() {
    world(|world| {
        let settings = world.settings();
        world.enrol(&settings, Default::default());
        // Accepted by the kernel into the backlog, answered when a proxy comes.
        let waiting = Process::start(&world.cgroup("kubepods/pod"), &world.pod, |output| {
            use std::io::Write as _;
            output
                .write_all(ask((OUTSIDE4, SERVER)).as_bytes())
                .unwrap();
        });
        std::thread::sleep(std::time::Duration::from_millis(200));
        let _proxy = world.proxy();
        let mut waiting = waiting;
        assert_eq!(waiting.line(), "caught to 10.9.2.2:7000");
        drop(_proxy);
        world.listeners = None;
        assert_eq!(
            world.in_pod(|| ask((OUTSIDE4, SERVER))),
            "ConnectionRefused"
        );
        let inbound = Process::call(&world.base, &world.node, || ask((POD4, APP)));
        assert_eq!(inbound, "ConnectionRefused");
    });
}

#[test]
fn dns_queries_by_udp_go_to_the_proxy_and_answers_seem_to_come_from_the_resolver() {
    world(|world| {
        let settings = world.settings();
        let (cookie, _proxy) = world.meshed_with(&settings);
        for resolver in ["10.9.2.9:53", "[fd09:2::9]:53", "[::ffff:10.9.2.9]:53"] {
            let resolver: SocketAddr = resolver.parse().unwrap();
            for connected in [false, true] {
                assert_eq!(
                    world.in_pod(|| query(resolver, connected)),
                    format!("proxied query from {resolver}"),
                    "connected: {connected}"
                );
            }
        }
        // Another port is no query, and a pod may opt out.
        let other = SocketAddr::from((OUTSIDE4, 5353));
        assert_ne!(
            world.in_pod(|| query(other, false)).split(' ').next(),
            Some("proxied")
        );
        let mut settings = settings;
        settings.dns = DnsCapture::Off;
        world.redirect().update(cookie, &settings).unwrap();
        let resolver = SocketAddr::from((OUTSIDE4, 53));
        assert_ne!(
            world.in_pod(|| query(resolver, true)).split(' ').next(),
            Some("proxied")
        );
    });
}

#[test]
fn dns_queries_by_tcp_go_to_the_proxys_dns_listener_where_the_pod_asks_for_it() {
    world(|world| {
        let mut settings = world.settings();
        settings.dns = DnsCapture::UdpAndTcp;
        let (cookie, _proxy) = world.meshed_with(&settings);
        let v4 = SocketAddr::from((OUTSIDE4, 53));
        let v6 = SocketAddr::from((OUTSIDE6, 53));
        let ask_all = |world: &World| [v4, v6].map(|resolver| world.in_pod(|| ask(resolver)));
        let dns = [
            "query caught to 10.9.2.2:53",
            "query caught to [fd09:2::2]:53",
        ];
        assert_eq!(ask_all(world), dns);
        let mapped = SocketAddr::from((OUTSIDE4.to_ipv6_mapped(), 53));
        assert_eq!(world.in_pod(|| ask(mapped)), dns[0]);
        // Another port is no query.
        assert_eq!(
            world.in_pod(|| ask((OUTSIDE4, SERVER))),
            "caught to 10.9.2.2:7000"
        );
        // Uncaught, it is a connection like any other: never past the proxy.
        let plain = ["caught to 10.9.2.2:53", "caught to [fd09:2::2]:53"];
        for capture in [DnsCapture::Udp, DnsCapture::Off] {
            settings.dns = capture;
            world.redirect().update(cookie, &settings).unwrap();
            assert_eq!(ask_all(world), plain, "{capture:?}");
        }
    });
}

#[test]
fn the_proxys_own_queries_are_not_caught() {
    world(|world| {
        let (_, _proxy) = world.meshed();
        let resolver = SocketAddr::from((OUTSIDE4, 53));
        for connected in [false, true] {
            let answer = world.in_proxy(|| query(resolver, connected));
            assert_ne!(
                answer.split(' ').next(),
                Some("proxied"),
                "connected: {connected}"
            );
        }
    });
}

#[test]
fn a_socket_may_be_connected_again_elsewhere() {
    world(|world| {
        let (_, _proxy) = world.meshed();
        // A datagram socket first asks a resolver, then talks to the node.
        let seen = world.in_pod(|| {
            let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
            socket
                .connect(&SocketAddr::from((OUTSIDE4, 53)).into())
                .unwrap();
            let socket = std::net::UdpSocket::from(socket);
            let first = socket.peer_addr().unwrap();
            socket.connect((NODE4, 5300)).unwrap();
            format!(
                "{first} {} {}",
                socket.peer_addr().unwrap(),
                socket.local_addr().unwrap().ip()
            )
        });
        assert_eq!(seen, "10.9.2.2:53 10.9.1.1:5300 10.9.1.2");
    });
}

#[test]
fn many_connections_at_once_keep_their_destinations_and_leave_no_tuple() {
    world(|world| {
        let (_, _proxy) = world.meshed();
        let result = world.in_pod(|| {
            let clients: Vec<_> = (0..64_u16)
                .map(|client| {
                    std::thread::spawn(move || {
                        for round in 0..20 {
                            let port = 10_000 + 100 * client + round;
                            let answer = ask((OUTSIDE4, port));
                            assert_eq!(answer, format!("caught to 10.9.2.2:{port}"));
                        }
                    })
                })
                .collect();
            let wrong = clients
                .into_iter()
                .filter_map(|client| client.join().err())
                .count();
            format!("{wrong} wrong")
        });
        assert_eq!(result, "0 wrong");
        assert_eq!(world.count(Counter::CaughtIpv4), 64 * 20);
        assert_eq!(world.count(Counter::OriginalsHanded), 64 * 20);
        assert_eq!(world.tuples("ORIGINALS"), 0);
    });
}

#[test]
fn tuples_go_when_a_connection_fails_or_ends() {
    world(|world| {
        let settings = world.settings();
        world.enrol(&settings, Default::default());
        world.listeners = None;
        assert_eq!(
            world.in_pod(|| ask((OUTSIDE4, SERVER))),
            "ConnectionRefused"
        );
        assert_eq!(world.tuples("ORIGINALS"), 0);
        assert_eq!(world.in_proxy(|| ask((OUTSIDE4, 9))), "ConnectionRefused");
        let held = world.in_proxy(|| {
            let _stream = TcpStream::connect_timeout(&(OUTSIDE4, SERVER).into(), PATIENCE).unwrap();
            world.tuples("PROXY_DIALS").to_string()
        });
        assert_eq!(held, "1");
        // The last segments may still be on their way.
        for _ in 0..200 {
            if world.tuples("PROXY_DIALS") == 0 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        assert_eq!(world.tuples("PROXY_DIALS"), 0);
    });
}

#[test]
fn no_kind_of_tcp_walks_around_the_proxy() {
    world(|world| {
        let (_, _proxy) = world.meshed();
        let to = SocketAddr::from((OUTSIDE4, SERVER));
        let mptcp = world.in_pod(|| {
            let kind = Some(Protocol::from(libc::IPPROTO_MPTCP));
            let Ok(socket) = Socket::new(Domain::IPV4, Type::STREAM, kind) else {
                return "no MPTCP".into();
            };
            socket.connect_timeout(&to.into(), PATIENCE).unwrap();
            read(socket.into()).unwrap_or_else(word)
        });
        if mptcp == "no MPTCP" {
            println!("SKIPPED: MPTCP around the proxy: this kernel has none");
        } else {
            assert_eq!(mptcp, "caught to 10.9.2.2:7000");
        }
        let fast_open = world.in_pod(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket
                .send_to_with_flags(b"early", &to.into(), libc::MSG_FASTOPEN)
                .unwrap();
            read(socket.into()).unwrap_or_else(word)
        });
        assert_eq!(fast_open, "caught to 10.9.2.2:7000");
    });
}

#[test]
fn a_socket_made_before_the_enrolment_is_caught_when_it_connects() {
    world(|world| {
        let mut client = Process::start(&world.cgroup("kubepods/pod"), &world.pod, |output| {
            use std::io::Write as _;
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            writeln!(output, "made").unwrap();
            std::thread::sleep(std::time::Duration::from_secs(1));
            let to = SocketAddr::from((OUTSIDE4, SERVER));
            let answer = socket.connect_timeout(&to.into(), PATIENCE);
            let answer = answer
                .and_then(|()| read(socket.into()))
                .unwrap_or_else(word);
            writeln!(output, "{answer}").unwrap();
        });
        assert_eq!(client.line(), "made");
        let (_, _proxy) = world.meshed();
        assert_eq!(client.line(), "caught to 10.9.2.2:7000");
    });
}
