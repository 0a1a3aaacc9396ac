//! `cgroup/getpeername4` and `getpeername6` at the pods' cgroup: an application sees the peer that
//! it asked for, not the proxy. Minimum kernel 5.15.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use seine_bpf_common::{is_mapped, roles};

use crate::{context::SockAddr, maps::socket_state};

#[cgroup_sock_addr(getpeername4)]
pub fn name_peer4(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr(ctx.sock_addr);
    if let Some(state) = socket_state(ctx.socket())
        && state.roles & (roles::CAUGHT | roles::DNS) != 0
        && is_mapped(&state.address)
    {
        ctx.set_address4(state.address[3]);
        ctx.set_port(state.port);
    }
    1
}

#[cgroup_sock_addr(getpeername6)]
pub fn name_peer6(ctx: SockAddrContext) -> i32 {
    let ctx = SockAddr(ctx.sock_addr);
    if let Some(state) = socket_state(ctx.socket())
        && state.roles & (roles::CAUGHT | roles::DNS) != 0
    {
        let address = state.address;
        ctx.set_address6(&address);
        ctx.set_port(state.port);
    }
    1
}
