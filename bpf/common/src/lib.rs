//! The map types that the eBPF programs and the node agent share.
//!
//! Owns the layout of every pinned map. A map outlives the agent that made it, so each change of a
//! layout, of a map's kind, or of the meaning of a field raises [`SCHEMA`]; an agent refuses maps of
//! another schema rather than misread them.
//!
//! Conventions: an address is four words in network order, IPv4 in its mapped form
//! ([`mapped`]); a port is in host order; every structure is free of padding, since the kernel
//! compares keys byte by byte.

#![no_std]
#![cfg_attr(not(feature = "user"), forbid(unsafe_code))]

mod counters;

pub use counters::Counter;

/// Version of all map layouts together; see the module's documentation.
pub const SCHEMA: u32 = 1;

/// Outbound listener of the proxy, on the pod's loopback addresses.
pub const OUTBOUND_PORT: u16 = 15001;
/// Plaintext inbound listener of the proxy; `sk_lookup` steers connections to it.
pub const INBOUND_PORT: u16 = 15006;
/// HBONE listener of the proxy, reached by its address like any other.
pub const HBONE_PORT: u16 = 15008;
/// DNS listener of the proxy, on the pod's loopback addresses.
pub const DNS_PORT: u16 = 15053;
/// Where applications send their DNS queries.
pub const DNS_SERVICE_PORT: u16 = 53;

/// An address of either family: four words in network order, IPv4 mapped.
pub type Address = [u32; 4];

/// The word that marks an IPv4-mapped address (`::ffff:0:0/96`), in network order.
pub const MAPPED_MARK: u32 = 0x0000_ffff_u32.to_be();

/// The mapped form of an IPv4 address that is in network order.
#[inline(always)]
#[must_use]
pub const fn mapped(ipv4: u32) -> Address {
    [0, 0, MAPPED_MARK, ipv4]
}

/// Whether the address is IPv4 in its mapped form.
#[inline(always)]
#[must_use]
pub const fn is_mapped(address: &Address) -> bool {
    address[0] == 0 && address[1] == 0 && address[2] == MAPPED_MARK
}

/// Whether the address is in 127.0.0.0/8 or is ::1.
#[inline(always)]
#[must_use]
pub const fn is_loopback(address: &Address) -> bool {
    if address[0] != 0 || address[1] != 0 {
        return false;
    }
    if address[2] == MAPPED_MARK {
        return address[3] & 0xff00_0000_u32.to_be() == 0x7f00_0000_u32.to_be();
    }
    address[2] == 0 && address[3] == 1_u32.to_be()
}

/// Whether the address is 0.0.0.0 or ::, which the kernel takes for loopback in a connect.
#[inline(always)]
#[must_use]
pub const fn is_unspecified(address: &Address) -> bool {
    address[0] == 0
        && address[1] == 0
        && (address[2] == 0 || address[2] == MAPPED_MARK)
        && address[3] == 0
}

/// Whether two addresses are the same; word by word, since eBPF has no `memcmp`.
#[inline(always)]
#[must_use]
pub const fn same(one: &Address, other: &Address) -> bool {
    one[0] == other[0] && one[1] == other[1] && one[2] == other[2] && one[3] == other[3]
}

/// Map `META`, one element: what the other maps are.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// [`SCHEMA`] of the agent that made the maps. This field keeps its place in every version.
    pub schema: u32,
    /// Zero.
    pub reserved: [u32; 3],
}

/// Map `ENROLLED`, value by netns cookie: a pod whose connections are the proxy's.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Enrolled {
    /// The pod's IPv4 address, mapped; all zero if it has none.
    pub ipv4: Address,
    /// The pod's IPv6 address; all zero if it has none.
    pub ipv6: Address,
    /// Bits of [`flags`].
    pub flags: u32,
    /// Inode of the pod's netns, for people and for reconciliation.
    pub netns_inode: u32,
}

/// Bits of [`Enrolled::flags`].
pub mod flags {
    /// DNS queries by UDP go to the proxy.
    pub const DNS_UDP: u32 = 1;
    /// DNS queries by TCP go to the proxy's DNS listener instead of its outbound one.
    pub const DNS_TCP: u32 = 2;
    /// UDP but DNS is dropped where it leaves the pod. (Not set, as by agents that don't know it: it
    /// passes, so that this bit needed no new schema.)
    pub const DROP_UDP: u32 = 4;
}

/// Key of the tuple maps: a connection as the socket that made it sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Cookie of the netns the socket is in; 0 in `PROBES`, which speaks of the node.
    pub cookie: u64,
    /// Local address of the connecting socket.
    pub local: Address,
    /// Remote address of the connecting socket.
    pub remote: Address,
    /// Local port.
    pub local_port: u16,
    /// Remote port.
    pub remote_port: u16,
    /// Zero.
    pub reserved: u32,
}

/// Map `ORIGINALS`, value by [`Tuple`]: where a caught connection was going, from the SYN until the
/// proxy's side is established.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Original {
    /// The destination that the application asked for.
    pub address: Address,
    /// Its port.
    pub port: u16,
    /// Bits of [`roles`].
    pub roles: u16,
}

/// Socket storage `SOCKETS`: the same structure, kept at a socket.
pub type SocketState = Original;

/// Bits of [`Original::roles`].
pub mod roles {
    /// The socket's connection was caught; the address is the one that the application asked for.
    pub const CAUGHT: u16 = 1;
    /// The socket was accepted by the proxy; the address is the original destination.
    pub const ACCEPTED: u16 = 2;
    /// The socket's last DNS query was caught; the address is the resolver that was asked.
    pub const DNS: u16 = 4;
    /// The socket was made by the proxy.
    pub const PROXY: u16 = 8;
}

/// Key of map `PORTS`: a port of a pod with a meaning.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortKey {
    /// Cookie of the pod's netns.
    pub cookie: u64,
    /// The port.
    pub port: u16,
    /// One of [`port_kinds`].
    pub kind: u16,
    /// Zero.
    pub reserved: u32,
}

/// Values of [`PortKey::kind`].
pub mod port_kinds {
    /// Connections of the pod to this port are left alone.
    pub const EXCLUDED_OUT: u16 = 1;
    /// Connections to this port of the pod are left alone.
    pub const EXCLUDED_IN: u16 = 2;
    /// The kubelet probes this port of the pod.
    pub const PROBED: u16 = 3;
}

/// Data of a key of the longest-prefix map `CIDRS`: cookie (two words), direction, address.
pub type CidrData = [u32; 7];

/// Bits of [`CidrData`] before the address.
pub const CIDR_HEAD_BITS: u32 = 96;

/// Directions of [`CidrData`].
pub mod directions {
    /// The remote address of connections that the pod makes.
    pub const OUT: u32 = 1;
    /// The remote address of connections made to the pod.
    pub const IN: u32 = 2;
}

/// Puts the parts of a key of `CIDRS` together.
#[inline(always)]
#[must_use]
pub const fn cidr_data(cookie: u64, direction: u32, address: &Address) -> CidrData {
    [
        (cookie >> 32) as u32,
        cookie as u32,
        direction,
        address[0],
        address[1],
        address[2],
        address[3],
    ]
}

/// Key of the socket map `LISTENERS`: the proxy's inbound listener of a pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenerKey {
    /// Cookie of the pod's netns.
    pub cookie: u64,
    /// 4 or 6.
    pub family: u32,
    /// Zero.
    pub reserved: u32,
}

/// Map `PROXIES`, one element: the cgroups whose processes are node proxies; several during an
/// upgrade.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proxies {
    /// In no order.
    pub slots: [ProxyCgroup; PROXY_SLOTS],
}

/// A slot of [`Proxies`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProxyCgroup {
    /// The cgroup's id; 0: the slot is free.
    pub id: u64,
    /// Depth of the cgroup below the root of the hierarchy.
    pub level: u32,
    /// Zero.
    pub reserved: u32,
}

/// Slots of [`Proxies`].
pub const PROXY_SLOTS: usize = 4;

/// What `PORTS`, `CIDRS`, `PROXY_DIALS` and `PROBES` hold: being there is the meaning.
pub const PRESENT: u8 = 1;

#[cfg(feature = "user")]
mod user {
    use super::{Enrolled, ListenerKey, Meta, Original, PortKey, Proxies, Tuple};

    macro_rules! pod {
        ($($name:ty),*) => {$(
            // SAFETY: the structure is repr(C), Copy, made of integers only, and has no padding
            // (tested), so every bit pattern is a value and no byte of it is uninitialised.
            unsafe impl aya::Pod for $name {}
        )*};
    }
    pod!(
        Enrolled,
        ListenerKey,
        Meta,
        Original,
        PortKey,
        Proxies,
        Tuple
    );
}

#[cfg(test)]
mod tests {
    use core::mem::{offset_of, size_of};

    use super::*;

    /// What is pinned on nodes has this layout as long as the version is this one: who changes the
    /// one changes the other. (The maps' kinds and sizes: `bpf/agent/tests/redirect/lifecycle.rs`.)
    #[test]
    fn the_layout_is_that_of_this_schema_version() {
        assert_eq!(SCHEMA, 1);
        assert_eq!(
            [offset_of!(Meta, schema), offset_of!(Meta, reserved)],
            [0, 4]
        );
        assert_eq!(
            [
                offset_of!(Enrolled, ipv4),
                offset_of!(Enrolled, ipv6),
                offset_of!(Enrolled, flags),
                offset_of!(Enrolled, netns_inode),
            ],
            [0, 16, 32, 36]
        );
        assert_eq!(
            [
                offset_of!(Tuple, cookie),
                offset_of!(Tuple, local),
                offset_of!(Tuple, remote),
                offset_of!(Tuple, local_port),
                offset_of!(Tuple, remote_port),
                offset_of!(Tuple, reserved),
            ],
            [0, 8, 24, 40, 42, 44]
        );
        assert_eq!(
            [
                offset_of!(Original, address),
                offset_of!(Original, port),
                offset_of!(Original, roles),
            ],
            [0, 16, 18]
        );
        assert_eq!(
            [
                offset_of!(PortKey, cookie),
                offset_of!(PortKey, port),
                offset_of!(PortKey, kind),
                offset_of!(PortKey, reserved),
            ],
            [0, 8, 10, 12]
        );
        assert_eq!(
            [
                offset_of!(ListenerKey, cookie),
                offset_of!(ListenerKey, family),
                offset_of!(ListenerKey, reserved),
            ],
            [0, 8, 12]
        );
        assert_eq!(
            [
                offset_of!(ProxyCgroup, id),
                offset_of!(ProxyCgroup, level),
                offset_of!(ProxyCgroup, reserved),
            ],
            [0, 8, 12]
        );
        assert_eq!(size_of::<Proxies>(), PROXY_SLOTS * size_of::<ProxyCgroup>());
        assert_eq!(
            cidr_data(0x0102_0304_0506_0708, 9, &[10, 11, 12, 13]),
            [0x0102_0304, 0x0506_0708, 9, 10, 11, 12, 13]
        );
        // Meanings too.
        assert_eq!([flags::DNS_UDP, flags::DNS_TCP, flags::DROP_UDP], [1, 2, 4]);
        assert_eq!(
            [roles::CAUGHT, roles::ACCEPTED, roles::DNS, roles::PROXY],
            [1, 2, 4, 8]
        );
        assert_eq!(
            [
                port_kinds::EXCLUDED_OUT,
                port_kinds::EXCLUDED_IN,
                port_kinds::PROBED,
            ],
            [1, 2, 3]
        );
        assert_eq!([directions::OUT, directions::IN], [1, 2]);
    }

    #[test]
    fn no_structure_has_padding() {
        assert_eq!(size_of::<Meta>(), 16);
        assert_eq!(size_of::<Enrolled>(), 16 + 16 + 4 + 4);
        assert_eq!(size_of::<Tuple>(), 8 + 16 + 16 + 2 + 2 + 4);
        assert_eq!(size_of::<Original>(), 16 + 2 + 2);
        assert_eq!(size_of::<PortKey>(), 8 + 2 + 2 + 4);
        assert_eq!(size_of::<ListenerKey>(), 8 + 4 + 4);
        assert_eq!(size_of::<ProxyCgroup>(), 8 + 4 + 4);
    }

    #[test]
    fn loopback_is_known_in_both_families_and_in_mapped_form() {
        assert!(is_loopback(&mapped(0x7f01_0203_u32.to_be())));
        assert!(is_loopback(&[0, 0, 0, 1_u32.to_be()]));
        assert!(!is_loopback(&mapped(0x8000_0001_u32.to_be())));
        assert!(!is_loopback(&[0, 0, 0, 2_u32.to_be()]));
        assert!(!is_loopback(&[1, 0, 0, 1_u32.to_be()]));
    }

    #[test]
    fn the_unspecified_address_is_known_in_both_families() {
        assert!(is_unspecified(&[0; 4]));
        assert!(is_unspecified(&mapped(0)));
        assert!(!is_unspecified(&mapped(1)));
    }
}
