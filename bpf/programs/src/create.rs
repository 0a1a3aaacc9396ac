//! `cgroup/sock_create` at the pods' cgroup: marks the sockets that a node proxy makes.
//!
//! The mark is in the socket's storage, where no pod can put it. Minimum kernel 5.8 (ancestor
//! cgroup id in this program type).

use aya_ebpf::{macros::cgroup_sock, programs::SockContext};
use seine_bpf_common::roles;

use crate::maps::{current_is_proxy, make_socket_state};

#[cgroup_sock(sock_create)]
pub fn mark_proxy(ctx: SockContext) -> i32 {
    if current_is_proxy()
        && let Some(state) = make_socket_state(ctx.sock.cast())
    {
        state.roles = roles::PROXY;
    }
    1
}
