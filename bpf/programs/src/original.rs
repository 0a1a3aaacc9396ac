//! `cgroup/getsockopt` at the pods' cgroup: answers `SO_ORIGINAL_DST` and `IP6T_SO_ORIGINAL_DST` of
//! the connections that the proxy accepted, as the kernel does under iptables. Minimum kernel 5.15.

use aya_ebpf::{bindings::bpf_sockopt, macros::cgroup_sockopt, programs::SockoptContext};
use seine_bpf_common::{SocketState, is_mapped, roles};

use crate::{
    context::{AF_INET, AF_INET6, field, set_field},
    maps::socket_state,
};

const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;
/// `SO_ORIGINAL_DST` at `SOL_IP`, `IP6T_SO_ORIGINAL_DST` at `SOL_IPV6`.
const ORIGINAL_DST: i32 = 80;
/// Sizes of the socket addresses of the two families.
const NAME4: usize = 16;
const NAME6: usize = 28;

#[cgroup_sockopt(getsockopt)]
pub fn tell_original(ctx: SockoptContext) -> i32 {
    let option = ctx.sockopt;
    let mut length = 0;
    if field!(option, bpf_sockopt, optname) as i32 == ORIGINAL_DST {
        // SAFETY: the field is a pointer to the socket, of which the kernel sees to the lifetime.
        let socket = unsafe { (*option).__bindgen_anon_1.sk };
        if let Some(state) = socket_state(socket.cast())
            && state.roles & roles::ACCEPTED != 0
        {
            length = answer(&ctx, state);
        }
    }
    // Length zero: what the kernel answered stands, also where it is longer than a program may see.
    let result = if length == 0 {
        field!(option, bpf_sockopt, retval)
    } else {
        0
    };
    set_field!(option, bpf_sockopt, optlen = length);
    set_field!(option, bpf_sockopt, retval = result);
    1
}

/// Writes the socket address and gives its length; zero: this is not what was asked for.
#[inline(always)]
fn answer(ctx: &SockoptContext, state: &SocketState) -> u32 {
    let option = ctx.sockopt;
    let level = field!(option, bpf_sockopt, level) as i32;
    // SAFETY: the kernel's bounds of the value; each write below is within them.
    let (value, end) = unsafe {
        (
            (*option).__bindgen_anon_2.optval as usize,
            (*option).__bindgen_anon_3.optval_end as usize,
        )
    };
    let name = value as *mut u32;
    if level == SOL_IP && is_mapped(&state.address) && value + NAME4 <= end {
        // SAFETY: sixteen bytes were checked; the kernel's buffer is aligned.
        unsafe {
            name.write(head(AF_INET, state.port));
            name.add(1).write(state.address[3]);
            name.add(2).write(0);
            name.add(3).write(0);
        }
        return NAME4 as u32;
    }
    if level == SOL_IPV6 && !is_mapped(&state.address) && value + NAME6 <= end {
        // SAFETY: twenty-eight bytes were checked; the kernel's buffer is aligned.
        unsafe {
            name.write(head(AF_INET6, state.port));
            name.add(1).write(0);
            name.add(2).write(state.address[0]);
            name.add(3).write(state.address[1]);
            name.add(4).write(state.address[2]);
            name.add(5).write(state.address[3]);
            name.add(6).write(0);
        }
        return NAME6 as u32;
    }
    0
}

/// Family and port as they lie in a socket address (the target is little-endian).
#[inline(always)]
fn head(family: u32, port: u16) -> u32 {
    family | (u32::from(port.to_be()) << 16)
}
