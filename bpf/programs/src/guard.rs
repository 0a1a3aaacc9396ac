//! tc ingress of the host's end of a pod's veth: drops the TCP connection attempts that leave an
//! enrolled pod without the proxy having made them.
//!
//! The hooks see sockets; this sees packets, whoever made them: raw and packet sockets (also past
//! the pod's own tc by `PACKET_QDISC_BYPASS`), AF_XDP, network namespaces nested in the pod. Judged
//! are segments with SYN and without ACK, which open a connection; what follows belongs to one that
//! was let through or that the other side doesn't know. Fragments of TCP are dropped, since only
//! the first has the ports. UDP passes, unless the pod's setting drops it: then all but DNS goes, and every
//! fragment of UDP. Not seen into: ESP and tunnels. ICMP passes. Minimum kernel 5.15; attached by TCX from 6.6, by a tc filter before.

use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::generated::bpf_skb_load_bytes_relative,
    macros::classifier,
    programs::TcContext,
};
use core::mem::MaybeUninit;
use seine_bpf_common::{
    Address, Counter, DNS_SERVICE_PORT, Tuple, directions, flags, mapped, port_kinds,
};

use crate::{
    context::field,
    maps::{ENROLLED, GUARDED, PROXY_DIALS, count, network_excluded, port_is},
};

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;

const HOP_BY_HOP: u8 = 0;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HOST_IDENTITY: u8 = 139;
const SHIM6: u8 = 140;
const UDP_LITE: u8 = 136;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// Extension headers that are walked; RFC 8200 names six, each once.
const EXTENSIONS: usize = 8;

#[classifier]
pub fn guard(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let ifindex = field!(skb, __sk_buff, ifindex);
    // SAFETY: entries are freed after a grace period only; copied at once.
    let Some(cookie) = (unsafe { GUARDED.get(ifindex) }).copied() else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: entries are freed after a grace period only, and read once.
    let Some(pod) = (unsafe { ENROLLED.get(cookie) }) else {
        return TC_ACT_UNSPEC;
    };
    let pod = Guarded {
        cookie,
        drops_udp: pod.flags & flags::DROP_UDP != 0,
    };
    let judged = match u16::from_be(field!(skb, __sk_buff, protocol) as u16) {
        ETH_P_IP => ipv4(skb, pod),
        ETH_P_IPV6 => ipv6(skb, pod),
        // The first tag is off by now: a second one hides the packet.
        ETH_P_8021Q | ETH_P_8021AD => Err(Counter::GuardDroppedMalformed),
        _ => Ok(()),
    };
    match judged {
        Ok(()) => TC_ACT_UNSPEC,
        Err(reason) => {
            count(reason);
            TC_ACT_SHOT
        }
    }
}

/// The pod that a packet leaves.
#[derive(Clone, Copy)]
struct Guarded {
    cookie: u64,
    drops_udp: bool,
}

impl Guarded {
    /// Whether packets of this protocol are judged. What is not passes.
    #[inline(always)]
    fn judges(self, protocol: u8) -> bool {
        protocol == TCP || (self.drops_udp && (protocol == UDP || protocol == UDP_LITE))
    }
}

/// Why a packet is dropped.
type Judged = Result<(), Counter>;

#[inline(always)]
fn ipv4(skb: *mut __sk_buff, pod: Guarded) -> Judged {
    let head: [u8; 20] = load(skb, 0)?;
    if !pod.judges(head[9]) {
        return Ok(());
    }
    // Offset and "more fragments".
    if u16::from_be_bytes([head[6], head[7]]) & 0x3fff != 0 {
        return Err(Counter::GuardDroppedFragment);
    }
    let length = u32::from(head[0] & 0x0f) * 4;
    if length < 20 {
        return Err(Counter::GuardDroppedMalformed);
    }
    let source = mapped(u32::from_ne_bytes([head[12], head[13], head[14], head[15]]));
    let destination = mapped(u32::from_ne_bytes([head[16], head[17], head[18], head[19]]));
    if head[9] != TCP {
        return datagram(skb, pod.cookie, length, destination);
    }
    segment(skb, pod.cookie, length, source, destination)
}

#[inline(always)]
fn ipv6(skb: *mut __sk_buff, pod: Guarded) -> Judged {
    let head: [u32; 10] = load(skb, 0)?;
    // The bytes of words 1: payload length (2), next header, hop limit.
    let mut next = head[1].to_ne_bytes()[2];
    let mut offset = 40_u32;
    let mut fragment = false;
    let mut walked = 0;
    loop {
        match next {
            protocol if pod.judges(protocol) => {
                if fragment {
                    return Err(Counter::GuardDroppedFragment);
                }
                let source = [head[2], head[3], head[4], head[5]];
                let destination = [head[6], head[7], head[8], head[9]];
                if protocol != TCP {
                    return datagram(skb, pod.cookie, offset, destination);
                }
                return segment(skb, pod.cookie, offset, source, destination);
            }
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS | MOBILITY
            | HOST_IDENTITY | SHIM6 => {}
            _ => return Ok(()),
        }
        if walked == EXTENSIONS {
            return Err(Counter::GuardDroppedExtension);
        }
        walked += 1;
        let bytes: [u8; 4] = match load(skb, offset) {
            Ok(bytes) => bytes,
            Err(_) => return Err(Counter::GuardDroppedExtension),
        };
        offset += match next {
            FRAGMENT => {
                // A later fragment shows no more headers: only what surely isn't TCP passes.
                if u16::from_be_bytes([bytes[2], bytes[3]]) & 0xfff8 != 0 {
                    return later_fragment(pod, bytes[0]);
                }
                fragment = true;
                8
            }
            AUTHENTICATION => (u32::from(bytes[1]) + 2) * 4,
            _ => (u32::from(bytes[1]) + 1) * 8,
        };
        next = bytes[0];
    }
}

/// A fragment but the first, of a packet whose fragmented part begins with header `next`.
#[inline(always)]
fn later_fragment(pod: Guarded, next: u8) -> Judged {
    match next {
        next if pod.judges(next) => Err(Counter::GuardDroppedFragment),
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS | MOBILITY
        | HOST_IDENTITY | SHIM6 => Err(Counter::GuardDroppedFragment),
        _ => Ok(()),
    }
}

/// Judges a TCP segment whose header is at `offset`.
#[inline(always)]
fn segment(
    skb: *mut __sk_buff,
    cookie: u64,
    offset: u32,
    local: Address,
    remote: Address,
) -> Judged {
    let head: [u8; 14] = load(skb, offset)?;
    if head[13] & (SYN | ACK) != SYN {
        return Ok(());
    }
    let remote_port = u16::from_be_bytes([head[2], head[3]]);
    let tuple = Tuple {
        cookie,
        local,
        remote,
        local_port: u16::from_be_bytes([head[0], head[1]]),
        remote_port,
        reserved: 0,
    };
    if PROXY_DIALS.get_ptr(&tuple).is_some() {
        count(Counter::GuardPassedProxy);
        return Ok(());
    }
    if port_is(cookie, remote_port, port_kinds::EXCLUDED_OUT)
        || network_excluded(cookie, directions::OUT, &remote)
    {
        count(Counter::GuardPassedExcluded);
        return Ok(());
    }
    Err(Counter::GuardDroppedSyn)
}

/// Judges a datagram of UDP whose header is at `offset`, of a pod that drops them.
#[inline(always)]
fn datagram(skb: *mut __sk_buff, cookie: u64, offset: u32, remote: Address) -> Judged {
    let ports: [u8; 4] = load(skb, offset)?;
    let remote_port = u16::from_be_bytes([ports[2], ports[3]]);
    if remote_port == DNS_SERVICE_PORT {
        return Ok(());
    }
    if port_is(cookie, remote_port, port_kinds::EXCLUDED_OUT)
        || network_excluded(cookie, directions::OUT, &remote)
    {
        count(Counter::GuardPassedExcluded);
        return Ok(());
    }
    Err(Counter::GuardDroppedUdp)
}

/// Bytes of the packet from `offset` after the start of its network header.
#[inline(always)]
fn load<T: Copy>(skb: *mut __sk_buff, offset: u32) -> Result<T, Counter> {
    const FROM_NETWORK_HEADER: u32 = 1;
    let mut bytes = MaybeUninit::<T>::uninit();
    // SAFETY: the buffer is as long as is said, and filled when the helper succeeds; T is an array
    // of integers.
    unsafe {
        let result = bpf_skb_load_bytes_relative(
            skb.cast(),
            offset,
            bytes.as_mut_ptr().cast(),
            size_of::<T>() as u32,
            FROM_NETWORK_HEADER,
        );
        if result != 0 {
            return Err(Counter::GuardDroppedMalformed);
        }
        Ok(bytes.assume_init())
    }
}
