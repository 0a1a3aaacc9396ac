//! `sock_ops` at the pods' cgroup: files tuples when a SYN is about to leave, and hands the original
//! destination to the socket that the proxy accepts.
//!
//! A caught connection's destination is in `ORIGINALS` from the SYN until the accepting side is
//! established, or until the connect fails. A connection of the proxy is in `PROXY_DIALS` from the
//! SYN until it is closed (with SYN cookies, the listener is looked up once more after the
//! connecting side is established). Callbacks run in softirqs too, so nothing here asks for the
//! running process. Minimum kernel 5.15 (netns cookie in this program type).

use aya_ebpf::{
    bindings::{
        BPF_ANY, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
        BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, BPF_TCP_SYN_SENT,
        bpf_sock_ops,
    },
    macros::sock_ops,
    programs::SockOpsContext,
};
use seine_bpf_common::{Counter, DNS_PORT, OUTBOUND_PORT, Original, roles};

use crate::{
    context::{SockOps, field, netns_cookie},
    maps::{ENROLLED, ORIGINALS, PROXY_DIALS, count, file_dial, make_socket_state, socket_state},
};

#[sock_ops]
pub fn watch_pods(ctx: SockOpsContext) -> u32 {
    match SockOps(ctx.ops).callback() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(&ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(SockOps(ctx.ops)),
        BPF_SOCK_OPS_STATE_CB => closing(&ctx),
        _ => {}
    }
    1
}

#[inline(always)]
fn connecting(context: &SockOpsContext) {
    let ctx = SockOps(context.ops);
    let socket = ctx.socket();
    if socket.is_null() {
        return;
    }
    let Some(state) = socket_state(socket) else {
        return;
    };
    let cookie = netns_cookie(ctx.0);
    let filed = if state.roles & roles::CAUGHT != 0 {
        let original = Original {
            address: state.address,
            port: state.port,
            roles: 0,
        };
        ORIGINALS
            .insert(&ctx.tuple(cookie), &original, u64::from(BPF_ANY))
            .is_ok()
    } else if state.roles & roles::PROXY != 0 {
        if ENROLLED.get_ptr(cookie).is_none() {
            return;
        }
        count(Counter::ProxyDials);
        file_dial(&ctx.tuple(cookie))
    } else {
        return;
    };
    if !filed {
        count(Counter::TuplesFull);
    }
    watch_state(context);
}

#[inline(always)]
fn accepted(ctx: SockOps) {
    let port = ctx.local_port();
    if port != OUTBOUND_PORT && port != DNS_PORT {
        return;
    }
    let socket = ctx.socket();
    if socket.is_null() {
        return;
    }
    let cookie = netns_cookie(ctx.0);
    let tuple = ctx.peer_tuple(cookie);
    // SAFETY: copied at once; the entry is this connection's own and removed below only.
    let Some(original) = (unsafe { ORIGINALS.get(&tuple) }).copied() else {
        if ENROLLED.get_ptr(cookie).is_some() {
            count(Counter::OriginalsMissing);
        }
        return;
    };
    let _ = ORIGINALS.remove(&tuple);
    if let Some(state) = make_socket_state(socket) {
        state.address = original.address;
        state.port = original.port;
        state.roles = roles::ACCEPTED;
        count(Counter::OriginalsHanded);
    }
}

#[inline(always)]
fn closing(context: &SockOpsContext) {
    let ctx = SockOps(context.ops);
    let (old, new) = states(ctx);
    let socket = ctx.socket();
    if new != BPF_TCP_CLOSE || socket.is_null() {
        return;
    }
    let Some(state) = socket_state(socket) else {
        return;
    };
    if state.roles & roles::PROXY != 0 {
        let _ = PROXY_DIALS.remove(&ctx.tuple(netns_cookie(ctx.0)));
    } else if state.roles & roles::CAUGHT != 0 && old == BPF_TCP_SYN_SENT {
        let _ = ORIGINALS.remove(&ctx.tuple(netns_cookie(ctx.0)));
    }
}

/// Asks for the callback at each change of the socket's state.
#[inline(always)]
pub(crate) fn watch_state(context: &SockOpsContext) {
    let _ =
        context.set_cb_flags((SockOps(context.ops).wanted() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
}

/// The old and the new state of a state callback.
#[inline(always)]
pub(crate) fn states(ctx: SockOps) -> (u32, u32) {
    (
        field!(ctx.0, bpf_sock_ops, __bindgen_anon_1[0]),
        field!(ctx.0, bpf_sock_ops, __bindgen_anon_1[1]),
    )
}
