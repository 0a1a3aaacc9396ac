//! Connections made to a pod.

use std::net::{IpAddr, SocketAddr};

use seine_agent::redirect::Counter;
use socket2::{Domain, Socket, Type};

use crate::{
    client::{ask, read, word},
    process::Process,
    world::{APP, OUTSIDE4, OUTSIDE6, POD4, POD6, World, world},
};

#[test]
fn inbound_connections_are_steered_to_the_proxy_with_their_addresses() {
    world(|world| {
        let before = world.outside(|| ask((POD4, APP)));
        assert_eq!(before, "app at 10.9.1.2:8080 for 10.9.2.2");
        let (_, _proxy) = world.meshed();
        let after = world.outside(|| ask((POD4, APP)));
        assert_eq!(after, "inbound at 10.9.1.2:8080 for 10.9.2.2");
        let after = world.outside(|| ask((POD6, APP)));
        assert_eq!(after, "inbound at [fd09:1::2]:8080 for fd09:2::2");
        // Also where nobody listens: the proxy judges first.
        let closed = world.outside(|| ask((POD4, 9)));
        assert_eq!(closed, "inbound at 10.9.1.2:9 for 10.9.2.2");
        assert_eq!(world.count(Counter::Steered), 3);
    });
}

#[test]
fn hbone_and_excluded_inbound_ports_and_networks_are_not_steered() {
    world(|world| {
        let mut settings = world.settings();
        let (cookie, _proxy) = world.meshed_with(&settings);
        // Nobody listens there: refused by the pod, not accepted by the plaintext listener.
        assert_eq!(world.outside(|| ask((POD4, 15008))), "ConnectionRefused");
        settings.excluded_inbound_ports.insert(APP);
        world.redirect().update(cookie, &settings).unwrap();
        let direct = "app at 10.9.1.2:8080 for 10.9.2.2";
        assert_eq!(world.outside(|| ask((POD4, APP))), direct);
        settings.excluded_inbound_ports.clear();
        settings
            .excluded_inbound_networks
            .insert("10.9.2.2/32".parse().unwrap());
        world.redirect().update(cookie, &settings).unwrap();
        assert_eq!(world.outside(|| ask((POD4, APP))), direct);
        let steered = world.outside(|| ask((POD6, APP)));
        assert_eq!(steered, "inbound at [fd09:1::2]:8080 for fd09:2::2");
    });
}

#[test]
fn the_kubelets_probes_pass_and_nobody_elses() {
    world(|world| {
        let mut settings = world.settings();
        settings.probed_ports.insert(APP);
        let (cookie, _proxy) = world.meshed_with(&settings);
        let kubelet = |world: &World, to: (IpAddr, u16)| {
            Process::call(&world.cgroup("kubelet"), &world.node, move || ask(to))
        };
        let pod4 = (POD4.into(), APP);
        let pod6 = (POD6.into(), APP);
        assert_eq!(kubelet(world, pod4), "app at 10.9.1.2:8080 for 10.9.1.1");
        assert_eq!(
            kubelet(world, pod6),
            "app at [fd09:1::2]:8080 for fd09:1::1"
        );
        assert_eq!(world.count(Counter::ProbesPassed), 2);
        // The same address, another process; the same process, another port.
        let other = Process::call(&world.base, &world.node, || ask((POD4, APP)));
        assert_eq!(other, "inbound at 10.9.1.2:8080 for 10.9.1.1");
        let other = kubelet(world, (POD4.into(), 9));
        assert_eq!(other, "inbound at 10.9.1.2:9 for 10.9.1.1");
        settings.probed_ports.clear();
        world.redirect().update(cookie, &settings).unwrap();
        assert_eq!(
            kubelet(world, pod4),
            "inbound at 10.9.1.2:8080 for 10.9.1.1"
        );
    });
}

/// What the agent sets up in a pod for replies to a client's foreign address.
fn return_path(world: &World) {
    for command in [
        "ip rule add fwmark 0x539/0xfff lookup 539",
        "ip route add local default dev lo table 539",
        "ip -6 rule add fwmark 0x539/0xfff lookup 539",
        "ip -6 route add local default dev lo table 539",
    ] {
        world.pod.sh(command);
    }
    world.pod.within(|| {
        std::fs::write("/proc/sys/net/ipv4/tcp_fwmark_accept", "1").unwrap();
    });
}

/// Dials with a source address that is not the pod's.
fn dial(from: IpAddr, to: SocketAddr) -> String {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).unwrap();
    if to.is_ipv4() {
        socket.set_ip_transparent_v4(true).unwrap();
    } else {
        let on: libc::c_int = 1;
        // SAFETY: the value is an integer, as the option takes it.
        let result = unsafe {
            libc::setsockopt(
                std::os::fd::AsRawFd::as_raw_fd(&socket),
                libc::SOL_IPV6,
                libc::IPV6_TRANSPARENT,
                (&raw const on).cast(),
                size_of_val(&on) as u32,
            )
        };
        assert_eq!(result, 0);
    }
    socket.set_mark(0x539).unwrap();
    socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
    socket
        .connect_timeout(&to.into(), crate::client::PATIENCE)
        .and_then(|()| read(socket.into()))
        .unwrap_or_else(word)
}

#[test]
fn the_proxys_dial_with_the_clients_address_reaches_the_application() {
    world(|world| {
        let (_, _proxy) = world.meshed();
        return_path(world);
        let v4 = world.in_proxy(|| dial(OUTSIDE4.into(), (POD4, APP).into()));
        assert_eq!(v4, "app at 10.9.1.2:8080 for 10.9.2.2");
        let v6 = world.in_proxy(|| dial(OUTSIDE6.into(), (POD6, APP).into()));
        assert_eq!(v6, "app at [fd09:1::2]:8080 for fd09:2::2");
        assert_eq!(world.count(Counter::DialsPassed), 2);
        // And the same dial by the application is no way around the proxy.
        let posed = world.in_pod(|| dial(OUTSIDE4.into(), (POD4, APP).into()));
        assert_eq!(posed.split(' ').next(), Some("inbound"));
    });
}
