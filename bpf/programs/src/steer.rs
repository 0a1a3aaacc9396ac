//! `sk_lookup` at a pod's netns: new inbound connections go to the proxy's plaintext listener.
//!
//! One program is loaded for each pod, since the netns cookie can't be asked for here: it is the
//! constant `COOKIE`. Passed on to the pod's own sockets: the pod's talk with itself, the proxy's
//! dials to the application, HBONE, excluded ports and networks, and the kubelet's probes of probed
//! ports. Everything else needs the listener; without one it is refused. Minimum kernel 5.9.

use aya_ebpf::{
    bindings::{bpf_sk_lookup, sk_action},
    helpers::generated::{bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release},
    macros::sk_lookup,
    programs::SkLookupContext,
};
use core::ffi::c_void;
use seine_bpf_common::{
    Address, Counter, HBONE_PORT, ListenerKey, Tuple, directions, is_loopback, mapped, port_kinds,
    same,
};

use crate::{
    context::{AF_INET, IPPROTO_TCP, field, words},
    maps::{LISTENERS, PROBES, PROXY_DIALS, count, network_excluded, port_is},
};

/// Cookie of the netns that the program is loaded for; the agent sets it.
#[unsafe(no_mangle)]
static COOKIE: u64 = 0;

#[sk_lookup]
pub fn steer(ctx: SkLookupContext) -> u32 {
    let lookup = ctx.lookup;
    if field!(lookup, bpf_sk_lookup, protocol) != IPPROTO_TCP {
        return sk_action::SK_PASS;
    }
    let ipv4 = field!(lookup, bpf_sk_lookup, family) == AF_INET;
    let (local, remote) = addresses(lookup, ipv4);
    if is_loopback(&remote) || is_loopback(&local) || same(&remote, &local) {
        return sk_action::SK_PASS;
    }
    let port = field!(lookup, bpf_sk_lookup, local_port) as u16;
    if port == HBONE_PORT {
        return sk_action::SK_PASS;
    }
    // SAFETY: a constant; volatile, since the agent sets it after compilation.
    let cookie = unsafe { core::ptr::read_volatile(&raw const COOKIE) };
    // As the connecting socket sees it.
    let mut tuple = Tuple {
        cookie,
        local: remote,
        remote: local,
        local_port: remote_port(lookup),
        remote_port: port,
        reserved: 0,
    };
    if PROXY_DIALS.get_ptr(&tuple).is_some() {
        count(Counter::DialsPassed);
        return sk_action::SK_PASS;
    }
    if port_is(cookie, port, port_kinds::EXCLUDED_IN)
        || network_excluded(cookie, directions::IN, &remote)
    {
        count(Counter::ExcludedIn);
        return sk_action::SK_PASS;
    }
    if port_is(cookie, port, port_kinds::PROBED) {
        tuple.cookie = 0;
        if PROBES.get_ptr(&tuple).is_some() {
            count(Counter::ProbesPassed);
            return sk_action::SK_PASS;
        }
    }
    let family = if ipv4 { 4 } else { 6 };
    assign(
        lookup,
        &ListenerKey {
            cookie,
            family,
            reserved: 0,
        },
    )
}

/// The remote port: sixteen bits in network order, alone among these fields.
#[inline(always)]
fn remote_port(lookup: *mut bpf_sk_lookup) -> u16 {
    let value: u64;
    // SAFETY: as in `context::field`.
    unsafe {
        core::arch::asm!(
            "{value} = *(u16 *)({lookup} + {offset})",
            value = out(reg) value,
            lookup = in(reg) lookup,
            offset = const core::mem::offset_of!(bpf_sk_lookup, remote_port),
            options(nostack),
        );
    }
    u16::from_be(value as u16)
}

#[inline(always)]
fn addresses(lookup: *mut bpf_sk_lookup, ipv4: bool) -> (Address, Address) {
    if ipv4 {
        return (
            mapped(field!(lookup, bpf_sk_lookup, local_ip4)),
            mapped(field!(lookup, bpf_sk_lookup, remote_ip4)),
        );
    }
    (
        words!(lookup, bpf_sk_lookup, local_ip6),
        words!(lookup, bpf_sk_lookup, remote_ip6),
    )
}

/// Gives the connection to the listener, or to nobody.
#[inline(always)]
fn assign(lookup: *mut bpf_sk_lookup, key: &ListenerKey) -> u32 {
    let map = (&raw const LISTENERS).cast_mut().cast::<c_void>();
    // SAFETY: the map is a socket map with this key; the socket found is released below.
    let socket = unsafe { bpf_map_lookup_elem(map, core::ptr::from_ref(key).cast()) };
    if socket.is_null() {
        count(Counter::SteeredNowhere);
        return sk_action::SK_DROP;
    }
    // SAFETY: the context is the program's, the socket is referenced until it is released.
    let result = unsafe {
        let result = bpf_sk_assign(lookup.cast(), socket, 0);
        bpf_sk_release(socket);
        result
    };
    if result != 0 {
        count(Counter::SteeredNowhere);
        return sk_action::SK_DROP;
    }
    count(Counter::Steered);
    sk_action::SK_PASS
}
