//! `cgroup/connect4` and `cgroup/connect6` at the pods' cgroup: the connections of enrolled pods go
//! to the proxy's listener on the pod's loopback address.
//!
//! The destination is kept in the socket's storage; `watch` files it under the connection's tuple
//! once the source port is known. Never caught: the proxy's own sockets, a pod's talk with
//! itself, excluded ports and networks. When the destination can't be kept, the connect is refused.
//! Minimum kernel 5.15 (socket storage and netns cookies; `SO_BINDTODEVICE` from programs is 5.8).

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::generated::{bpf_bind, bpf_setsockopt},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use seine_bpf_common::{
    Address, Counter, DNS_PORT, DNS_SERVICE_PORT, Enrolled, OUTBOUND_PORT, directions, flags,
    is_loopback, is_mapped, is_unspecified, mapped, port_kinds, roles, same,
};

use crate::{
    context::{AF_INET, AF_INET6, LOOPBACK4, SockAddr, field, netns_cookie},
    maps::{
        ENROLLED, count, current_is_proxy, make_socket_state, network_excluded, port_is,
        socket_state,
    },
};

const SOL_SOCKET: i32 = 1;
const SO_BINDTODEVICE: i32 = 25;

const PASS: i32 = 1;
const REFUSE: i32 = 0;

/// ::1.
const LOOPBACK6: Address = [0, 0, 0, 1_u32.to_be()];

#[cgroup_sock_addr(connect4)]
pub fn catch_connect4(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr(ctx.sock_addr);
    let destination = ctx.address4();
    match judge(ctx, &destination) {
        Verdict::Pass => PASS,
        Verdict::Refuse => REFUSE,
        Verdict::Catch { port, pod } => {
            ctx.set_address4(LOOPBACK4);
            ctx.set_port(port);
            // Only where the application did not bind: the kernel refuses a second bind.
            bind4(ctx, pod);
            PASS
        }
    }
}

#[cgroup_sock_addr(connect6)]
pub fn catch_connect6(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr(ctx.sock_addr);
    let destination = ctx.address6();
    match judge(ctx, &destination) {
        Verdict::Pass => PASS,
        Verdict::Refuse => REFUSE,
        Verdict::Catch { port, pod } => {
            ctx.set_port(port);
            if is_mapped(&destination) {
                ctx.set_address6(&mapped(LOOPBACK4));
                bind6(ctx, &pod.ipv4);
            } else {
                ctx.set_address6(&LOOPBACK6);
                bind6(ctx, &pod.ipv6);
            }
            PASS
        }
    }
}

enum Verdict {
    Pass,
    Refuse,
    Catch { port: u16, pod: &'static Enrolled },
}

#[inline(always)]
fn judge(ctx: SockAddr, destination: &Address) -> Verdict {
    let cookie = netns_cookie(ctx.0);
    // SAFETY: entries are freed after a grace period only, and read once.
    let Some(pod) = (unsafe { ENROLLED.get(cookie) }) else {
        return Verdict::Pass;
    };
    let tcp = ctx.is_tcp();
    if !tcp && !ctx.is_udp() {
        return Verdict::Pass;
    }
    let socket = ctx.socket();
    if let Some(state) = socket_state(socket) {
        if state.roles & roles::PROXY != 0 {
            return Verdict::Pass;
        }
        // An earlier connect of the same socket says nothing about this one.
        state.roles = 0;
    }
    if current_is_proxy() {
        // Made before the programs were attached.
        if let Some(state) = make_socket_state(socket) {
            state.roles = roles::PROXY;
        }
        return Verdict::Pass;
    }
    let port = ctx.port();
    let dns = port == DNS_SERVICE_PORT
        && pod.flags & (if tcp { flags::DNS_TCP } else { flags::DNS_UDP }) != 0;
    if !tcp && !dns {
        return Verdict::Pass;
    }
    if stays_inside(pod, destination) {
        return Verdict::Pass;
    }
    if port_is(cookie, port, port_kinds::EXCLUDED_OUT)
        || network_excluded(cookie, directions::OUT, destination)
    {
        count(Counter::ExcludedOut);
        return Verdict::Pass;
    }
    let Some(state) = make_socket_state(socket) else {
        return Verdict::Refuse;
    };
    state.address = *destination;
    state.port = port;
    state.roles = if tcp { roles::CAUGHT } else { roles::DNS };
    if !free_of_device(ctx) {
        return Verdict::Refuse;
    }
    count(if !tcp {
        Counter::DnsCaught
    } else if is_mapped(destination) {
        Counter::CaughtIpv4
    } else {
        Counter::CaughtIpv6
    });
    Verdict::Catch {
        port: if dns { DNS_PORT } else { OUTBOUND_PORT },
        pod,
    }
}

/// Whether a connection does not leave the pod.
#[inline(always)]
pub(crate) fn stays_inside(pod: &Enrolled, destination: &Address) -> bool {
    is_loopback(destination)
        || is_unspecified(destination)
        || same(destination, &pod.ipv4)
        || same(destination, &pod.ipv6)
}

/// Frees the socket of an interface that it was bound to, since the proxy listens on lo.
#[inline(always)]
fn free_of_device(ctx: SockAddr) -> bool {
    let socket = ctx.socket().cast::<bpf_sock>();
    if field!(socket, bpf_sock, bound_dev_if) == 0 {
        return true;
    }
    let mut nothing = [0_u8; 4];
    // SAFETY: the context is the program's, the value is on its stack.
    let result = unsafe {
        bpf_setsockopt(
            ctx.0.cast(),
            SOL_SOCKET,
            SO_BINDTODEVICE,
            nothing.as_mut_ptr().cast(),
            nothing.len() as i32,
        )
    };
    result == 0
}

#[repr(C)]
struct SockaddrIn {
    family: u16,
    port: u16,
    address: u32,
    zero: [u32; 2],
}

#[repr(C)]
struct SockaddrIn6 {
    family: u16,
    port: u16,
    flow: u32,
    address: Address,
    scope: u32,
}

#[inline(always)]
fn bind4(ctx: SockAddr, pod: &Enrolled) {
    if pod.ipv4[3] == 0 {
        return;
    }
    let mut name = SockaddrIn {
        family: AF_INET as u16,
        port: 0,
        address: pod.ipv4[3],
        zero: [0; 2],
    };
    bind(ctx.0, &mut name);
}

#[inline(always)]
fn bind6(ctx: SockAddr, address: &Address) {
    if address[3] == 0 && address[0] == 0 && address[1] == 0 {
        return;
    }
    let mut name = SockaddrIn6 {
        family: AF_INET6 as u16,
        port: 0,
        flow: 0,
        address: *address,
        scope: 0,
    };
    bind(ctx.0, &mut name);
}

#[inline(always)]
fn bind<T>(ctx: *mut bpf_sock_addr, name: &mut T) {
    // SAFETY: the name is a socket address on the program's stack.
    let _ = unsafe { bpf_bind(ctx, core::ptr::from_mut(name).cast(), size_of::<T>() as i32) };
}
