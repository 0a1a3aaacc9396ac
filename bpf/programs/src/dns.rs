//! `cgroup/sendmsg4`, `sendmsg6`, `recvmsg4`, `recvmsg6` at the pods' cgroup: DNS queries on
//! sockets that are not connected. (Connected ones are caught in `connect`.)
//!
//! The answer seems to come from the resolver that was asked last: a socket that asks several at
//! once can't tell them apart. Minimum kernel 5.15.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use seine_bpf_common::{
    Address, Counter, DNS_PORT, DNS_SERVICE_PORT, directions, flags, is_loopback, is_mapped,
    mapped, port_kinds, roles,
};

use crate::{
    connect::stays_inside,
    context::{LOOPBACK4, SockAddr, netns_cookie},
    maps::{
        ENROLLED, count, current_is_proxy, make_socket_state, network_excluded, port_is,
        socket_state,
    },
};

#[cgroup_sock_addr(sendmsg4)]
pub fn catch_send4(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr(ctx.sock_addr);
    if catch(ctx, &ctx.address4()) {
        ctx.set_address4(LOOPBACK4);
        ctx.set_port(DNS_PORT);
    }
    1
}

#[cgroup_sock_addr(sendmsg6)]
pub fn catch_send6(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr(ctx.sock_addr);
    let destination = ctx.address6();
    if catch(ctx, &destination) {
        let loopback = if is_mapped(&destination) {
            mapped(LOOPBACK4)
        } else {
            [0, 0, 0, 1_u32.to_be()]
        };
        ctx.set_address6(&loopback);
        ctx.set_port(DNS_PORT);
    }
    1
}

#[cgroup_sock_addr(recvmsg4)]
pub fn name_resolver4(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr(ctx.sock_addr);
    if let Some(resolver) = resolver(ctx, &ctx.address4())
        && is_mapped(&resolver)
    {
        ctx.set_address4(resolver[3]);
        ctx.set_port(DNS_SERVICE_PORT);
    }
    1
}

#[cgroup_sock_addr(recvmsg6)]
pub fn name_resolver6(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr(ctx.sock_addr);
    if let Some(resolver) = resolver(ctx, &ctx.address6()) {
        ctx.set_address6(&resolver);
        ctx.set_port(DNS_SERVICE_PORT);
    }
    1
}

/// Whether this datagram is a query for the proxy; if so, the resolver is remembered.
#[inline(always)]
fn catch(ctx: SockAddr, destination: &Address) -> bool {
    if ctx.port() != DNS_SERVICE_PORT || !ctx.is_udp() {
        return false;
    }
    let cookie = netns_cookie(ctx.0);
    // SAFETY: entries are freed after a grace period only, and read once.
    let Some(pod) = (unsafe { ENROLLED.get(cookie) }) else {
        return false;
    };
    if pod.flags & flags::DNS_UDP == 0 || stays_inside(pod, destination) || current_is_proxy() {
        return false;
    }
    if port_is(cookie, DNS_SERVICE_PORT, port_kinds::EXCLUDED_OUT)
        || network_excluded(cookie, directions::OUT, destination)
    {
        return false;
    }
    let Some(state) = make_socket_state(ctx.socket()) else {
        return false;
    };
    if state.roles & roles::PROXY != 0 {
        return false;
    }
    state.address = *destination;
    state.port = DNS_SERVICE_PORT;
    state.roles |= roles::DNS;
    count(Counter::DnsCaught);
    true
}

/// The resolver that an answer from `source` is to be shown from.
#[inline(always)]
fn resolver(ctx: SockAddr, source: &Address) -> Option<Address> {
    if ctx.port() != DNS_PORT || !is_loopback(source) {
        return None;
    }
    let state = socket_state(ctx.socket())?;
    (state.roles & roles::DNS != 0).then_some(state.address)
}
