//! Reading and writing what the kernel hands to the programs.
//!
//! Each field is read and written by an instruction of its own, in assembler: the verifier rewrites
//! field accesses one by one and refuses what a compiler makes of them when it merges two, of two
//! branches even volatile ones. Byte orders differ by program type; here they become addresses in
//! network order and ports in host order.

use aya_ebpf::{
    bindings::{bpf_sock_addr, bpf_sock_ops},
    helpers::generated::bpf_get_netns_cookie,
};
use core::ffi::c_void;
use seine_bpf_common::{Address, Tuple, mapped};

pub(crate) const AF_INET: u32 = 2;
pub(crate) const AF_INET6: u32 = 10;
pub(crate) const SOCK_STREAM: u32 = 1;
pub(crate) const SOCK_DGRAM: u32 = 2;
pub(crate) const IPPROTO_TCP: u32 = 6;
pub(crate) const IPPROTO_UDP: u32 = 17;
pub(crate) const IPPROTO_MPTCP: u32 = 262;

/// 127.0.0.1 in network order.
pub(crate) const LOOPBACK4: u32 = 0x7f00_0001_u32.to_be();

/// One 32-bit field of a context (or one word of an array in it): `field!(ctx, type, field)`,
/// `field!(ctx, type, field[word])`.
macro_rules! field {
    ($context:expr, $type:ty, $field:ident) => {
        $crate::context::field!($context, $type, $field[0])
    };
    ($context:expr, $type:ty, $field:ident[$word:literal]) => {{
        let value: u64;
        // SAFETY: the kernel hands a valid context; the verifier checks the offset.
        unsafe {
            core::arch::asm!(
                "{value} = *(u32 *)({context} + {offset})",
                value = out(reg) value,
                context = in(reg) $context,
                offset = const core::mem::offset_of!($type, $field) + 4 * $word,
                options(nostack),
            );
        }
        value as u32
    }};
}
/// Sets one 32-bit field of a context.
macro_rules! set_field {
    ($context:expr, $type:ty, $field:ident = $value:expr) => {
        $crate::context::set_field!($context, $type, $field[0] = $value)
    };
    ($context:expr, $type:ty, $field:ident[$word:literal] = $value:expr) => {{
        let value: u32 = $value;
        // SAFETY: as for reading; the verifier refuses fields that may not be written.
        unsafe {
            core::arch::asm!(
                "*(u32 *)({context} + {offset}) = {value}",
                value = in(reg) u64::from(value),
                context = in(reg) $context,
                offset = const core::mem::offset_of!($type, $field) + 4 * $word,
                options(nostack),
            );
        }
    }};
}
/// Four words of a context: an IPv6 address.
macro_rules! words {
    ($context:expr, $type:ty, $field:ident) => {
        [
            $crate::context::field!($context, $type, $field[0]),
            $crate::context::field!($context, $type, $field[1]),
            $crate::context::field!($context, $type, $field[2]),
            $crate::context::field!($context, $type, $field[3]),
        ]
    };
}
pub(crate) use {field, set_field, words};

/// The cookie of the netns that a context's socket is in.
#[inline(always)]
pub(crate) fn netns_cookie<T>(context: *mut T) -> u64 {
    // SAFETY: the pointer is the program's context.
    unsafe { bpf_get_netns_cookie(context.cast::<c_void>()) }
}

/// The context of the socket address hooks: connect, sendmsg, recvmsg, getpeername.
#[derive(Clone, Copy)]
pub(crate) struct SockAddr(pub(crate) *mut bpf_sock_addr);

impl SockAddr {
    #[inline(always)]
    pub(crate) fn socket(self) -> *mut c_void {
        // SAFETY: the field is a pointer to the socket, of which the kernel sees to the lifetime.
        unsafe { (*self.0).__bindgen_anon_1.sk }.cast()
    }

    #[inline(always)]
    pub(crate) fn port(self) -> u16 {
        u16::from_be(field!(self.0, bpf_sock_addr, user_port) as u16)
    }

    #[inline(always)]
    pub(crate) fn set_port(self, port: u16) {
        set_field!(self.0, bpf_sock_addr, user_port = u32::from(port.to_be()));
    }

    #[inline(always)]
    pub(crate) fn address4(self) -> Address {
        mapped(field!(self.0, bpf_sock_addr, user_ip4))
    }

    #[inline(always)]
    pub(crate) fn set_address4(self, address: u32) {
        set_field!(self.0, bpf_sock_addr, user_ip4 = address);
    }

    #[inline(always)]
    pub(crate) fn address6(self) -> Address {
        words!(self.0, bpf_sock_addr, user_ip6)
    }

    #[inline(always)]
    pub(crate) fn set_address6(self, address: &Address) {
        set_field!(self.0, bpf_sock_addr, user_ip6[0] = address[0]);
        set_field!(self.0, bpf_sock_addr, user_ip6[1] = address[1]);
        set_field!(self.0, bpf_sock_addr, user_ip6[2] = address[2]);
        set_field!(self.0, bpf_sock_addr, user_ip6[3] = address[3]);
    }

    /// Whether the socket speaks TCP (also as a subflow or shell of MPTCP).
    #[inline(always)]
    pub(crate) fn is_tcp(self) -> bool {
        let protocol = field!(self.0, bpf_sock_addr, protocol);
        field!(self.0, bpf_sock_addr, type_) == SOCK_STREAM
            && (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP)
    }

    #[inline(always)]
    pub(crate) fn is_udp(self) -> bool {
        field!(self.0, bpf_sock_addr, type_) == SOCK_DGRAM
            && field!(self.0, bpf_sock_addr, protocol) == IPPROTO_UDP
    }
}

/// The context of the TCP callbacks.
#[derive(Clone, Copy)]
pub(crate) struct SockOps(pub(crate) *mut bpf_sock_ops);

impl SockOps {
    /// The socket; null for callbacks of one that is not a full socket.
    #[inline(always)]
    pub(crate) fn socket(self) -> *mut c_void {
        // SAFETY: as for `SockAddr::socket`; the verifier makes callers test for null.
        unsafe { (*self.0).__bindgen_anon_2.sk }.cast()
    }

    /// Which callback this is.
    #[inline(always)]
    pub(crate) fn callback(self) -> u32 {
        field!(self.0, bpf_sock_ops, op)
    }

    /// The callbacks that are asked for.
    #[inline(always)]
    pub(crate) fn wanted(self) -> u32 {
        field!(self.0, bpf_sock_ops, bpf_sock_ops_cb_flags)
    }

    #[inline(always)]
    pub(crate) fn local_port(self) -> u16 {
        field!(self.0, bpf_sock_ops, local_port) as u16
    }

    #[inline(always)]
    fn remote_port(self) -> u16 {
        u32::from_be(field!(self.0, bpf_sock_ops, remote_port)) as u16
    }

    #[inline(always)]
    fn local(self) -> Address {
        if field!(self.0, bpf_sock_ops, family) == AF_INET {
            return mapped(field!(self.0, bpf_sock_ops, local_ip4));
        }
        words!(self.0, bpf_sock_ops, local_ip6)
    }

    #[inline(always)]
    fn remote(self) -> Address {
        if field!(self.0, bpf_sock_ops, family) == AF_INET {
            return mapped(field!(self.0, bpf_sock_ops, remote_ip4));
        }
        words!(self.0, bpf_sock_ops, remote_ip6)
    }

    /// The tuple of a socket that connects.
    #[inline(always)]
    pub(crate) fn tuple(self, cookie: u64) -> Tuple {
        Tuple {
            cookie,
            local: self.local(),
            remote: self.remote(),
            local_port: self.local_port(),
            remote_port: self.remote_port(),
            reserved: 0,
        }
    }

    /// The tuple of the socket that connected to this one.
    #[inline(always)]
    pub(crate) fn peer_tuple(self, cookie: u64) -> Tuple {
        Tuple {
            cookie,
            local: self.remote(),
            remote: self.local(),
            local_port: self.remote_port(),
            remote_port: self.local_port(),
            reserved: 0,
        }
    }
}
