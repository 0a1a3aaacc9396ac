//! Packets made by hand, sent past the pod's own network stack, and seen at the outside host.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd as _,
};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const SOL_PACKET: i32 = 263;
const PACKET_QDISC_BYPASS: i32 = 20;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const FRAGMENT: u8 = 44;
pub(crate) const DESTINATION_OPTIONS: u8 = 60;

pub(crate) const SYN: u8 = 0x02;
pub(crate) const ACK: u8 = 0x10;

/// Twenty bytes of TCP header and a word by which the packet is known again.
pub(crate) fn segment(from: u16, to: u16, flags: u8, word: &str) -> Vec<u8> {
    let mut bytes = vec![0; 20];
    bytes[..2].copy_from_slice(&from.to_be_bytes());
    bytes[2..4].copy_from_slice(&to.to_be_bytes());
    bytes[12] = 5 << 4;
    bytes[13] = flags;
    bytes[14] = 0xff;
    bytes.extend_from_slice(word.as_bytes());
    bytes
}

/// A UDP datagram with a word.
pub(crate) fn datagram(from: u16, to: u16, word: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&from.to_be_bytes());
    bytes.extend_from_slice(&to.to_be_bytes());
    bytes.extend_from_slice(&(8 + word.len() as u16).to_be_bytes());
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(word.as_bytes());
    bytes
}

/// An IPv4 packet. `fragment` is the header's word of flags and offset; `options` are in words.
pub(crate) fn ipv4(
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    fragment: u16,
    options: usize,
    body: &[u8],
) -> Vec<u8> {
    let header = 20 + 4 * options;
    // No operation, as often as needed.
    let mut packet = vec![1; header];
    packet[..20].fill(0);
    packet[0] = 0x40 | (header / 4) as u8;
    packet[2..4].copy_from_slice(&((header + body.len()) as u16).to_be_bytes());
    packet[6..8].copy_from_slice(&fragment.to_be_bytes());
    packet[8] = 64;
    packet[9] = protocol;
    packet[12..16].copy_from_slice(&from.octets());
    packet[16..20].copy_from_slice(&to.octets());
    let mut sum: u32 = packet
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    packet.extend_from_slice(body);
    packet
}

/// An IPv6 packet with extension headers before the body: each is its number, and for a fragment
/// header the word of offset and flag.
pub(crate) fn ipv6(
    from: Ipv6Addr,
    to: Ipv6Addr,
    extensions: &[(u8, u16)],
    protocol: u8,
    body: &[u8],
) -> Vec<u8> {
    let mut numbers: Vec<u8> = extensions.iter().map(|(number, _)| *number).collect();
    numbers.push(protocol);
    let length = 8 * extensions.len() + body.len();
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&(length as u16).to_be_bytes());
    packet.extend_from_slice(&[numbers[0], 64]);
    packet.extend_from_slice(&from.octets());
    packet.extend_from_slice(&to.octets());
    for (place, (number, word)) in extensions.iter().enumerate() {
        let next = numbers[place + 1];
        let [high, low] = word.to_be_bytes();
        packet.extend_from_slice(&match *number {
            FRAGMENT => [next, 0, high, low, 0, 0, 0, 7],
            // Filled up with one padding option.
            _ => [next, 0, 1, 4, 0, 0, 0, 0],
        });
    }
    packet.extend_from_slice(body);
    packet
}

/// Sends a packet from a packet socket on eth0, past qdiscs and tc of the pod.
pub(crate) fn send_frame(name: &str, gateway: [u8; 6], packet: &[u8]) {
    let ethertype = if packet[0] >> 4 == 4 {
        ETH_P_IP
    } else {
        ETH_P_IPV6
    };
    let mut frame = gateway.to_vec();
    frame.extend_from_slice(&hardware_address(name));
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame.extend_from_slice(packet);
    let socket = packet_socket();
    let on: libc::c_int = 1;
    // SAFETY: the value is an integer, as the option takes it.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            SOL_PACKET,
            PACKET_QDISC_BYPASS,
            (&raw const on).cast(),
            size_of_val(&on) as u32,
        )
    };
    assert_eq!(result, 0);
    socket.send_to(&frame, &link_address(name)).unwrap();
}

/// Sends an IPv4 packet from a raw socket.
pub(crate) fn send_raw(packet: &[u8]) {
    let protocol = Some(Protocol::from(libc::IPPROTO_RAW));
    let socket = Socket::new(Domain::IPV4, Type::RAW, protocol).unwrap();
    let to = Ipv4Addr::new(packet[16], packet[17], packet[18], packet[19]);
    socket
        .send_to(packet, &std::net::SocketAddr::from((to, 0)).into())
        .unwrap();
}

/// A socket that sees every frame that arrives.
pub(crate) fn listen_frames() -> Socket {
    let socket = packet_socket();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// The words that are in the frames that have arrived, of those asked for.
pub(crate) fn arrived<'a>(socket: &Socket, words: &[&'a str]) -> Vec<&'a str> {
    let mut found = Vec::new();
    let mut frame = [std::mem::MaybeUninit::uninit(); 2048];
    while let Ok(length) = socket.recv(&mut frame) {
        // SAFETY: so many bytes were received.
        let bytes: Vec<u8> = frame[..length]
            .iter()
            .map(|byte| unsafe { byte.assume_init() })
            .collect();
        for word in words {
            let inside = bytes
                .windows(word.len())
                .any(|part| part == word.as_bytes());
            if inside && !found.contains(word) {
                found.push(word);
            }
        }
    }
    found
}

fn packet_socket() -> Socket {
    let all = u16::to_be(libc::ETH_P_ALL as u16);
    Socket::new(
        Domain::PACKET,
        Type::RAW,
        Some(Protocol::from(i32::from(all))),
    )
    .unwrap()
}

fn link_address(name: &str) -> SockAddr {
    let index = nix::net::if_::if_nametoindex(name).unwrap();
    // SAFETY: the storage is large enough for the address of a link and said to be as long.
    unsafe {
        SockAddr::try_init(|storage, length| {
            let address = storage.cast::<libc::sockaddr_ll>();
            (*address).sll_family = libc::AF_PACKET as u16;
            (*address).sll_ifindex = index as i32;
            (*address).sll_halen = 6;
            *length = size_of::<libc::sockaddr_ll>() as u32;
            Ok(())
        })
        .unwrap()
        .1
    }
}

/// An interface's address, as the calling thread's netns has it.
pub(crate) fn hardware_address(name: &str) -> [u8; 6] {
    // /sys shows the netns of its mount, so ask for this one's by netlink's older sister.
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    // SAFETY: ifreq is made of integers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the request is the structure that this call takes, and gives an address.
    unsafe {
        let result = libc::ioctl(
            socket.as_raw_fd(),
            libc::SIOCGIFHWADDR as _,
            &raw mut request,
        );
        assert_eq!(result, 0, "{name}");
        let data = request.ifr_ifru.ifru_hwaddr.sa_data;
        std::array::from_fn(|place| data[place] as u8)
    }
}

/// Sets a switch below /proc/sys/net in the calling thread's netns.
pub(crate) fn sysctl(name: &str, value: &str) {
    fs::write(format!("/proc/sys/net/{name}"), value).unwrap();
}
