//! TCP segments of one's own making, which no hook on `connect` sees.

use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Result;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::report::RawAnswer;

const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// Sends a SYN a few times; what came back for it.
pub fn syn(source: SocketAddr, destination: SocketAddr) -> Result<RawAnswer> {
    let socket = Socket::new(
        Domain::for_address(destination),
        Type::RAW,
        Some(Protocol::TCP),
    )?;
    // The kernel writes the IP header; its source is the address that the socket is bound to.
    socket.bind(&SocketAddr::new(source.ip(), 0).into())?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let segment = segment(source, destination, SYN);
    let to: SockAddr = SocketAddr::new(destination.ip(), 0).into();
    for _ in 0..3 {
        if let Err(error) = socket.send_to(&segment, &to) {
            return Ok(RawAnswer::NotSent(error.to_string()));
        }
        let deadline = Instant::now() + Duration::from_millis(700);
        while Instant::now() < deadline {
            if let Some(flags) = receive(&socket, source, destination)? {
                return Ok(if flags & RST != 0 {
                    RawAnswer::Reset
                } else {
                    RawAnswer::Accepted
                });
            }
        }
    }
    Ok(RawAnswer::Nothing)
}

/// The flags of a segment that answers ours.
fn receive(socket: &Socket, source: SocketAddr, destination: SocketAddr) -> Result<Option<u8>> {
    let mut packet = [0; 2048];
    let mut socket = socket;
    let Ok(length) = socket.read(&mut packet) else {
        return Ok(None);
    };
    // IPv4 raw sockets show the IP header, IPv6 ones don't.
    let offset = match destination.ip() {
        IpAddr::V4(_) => usize::from(packet[0] & 15) * 4,
        IpAddr::V6(_) => 0,
    };
    let Some(tcp) = packet[..length].get(offset..offset + 14) else {
        return Ok(None);
    };
    let from = u16::from_be_bytes([tcp[0], tcp[1]]);
    let to = u16::from_be_bytes([tcp[2], tcp[3]]);
    let answers = from == destination.port() && to == source.port() && tcp[13] & (ACK | RST) != 0;
    Ok(answers.then_some(tcp[13]))
}

/// A TCP header without options, with its checksum.
fn segment(source: SocketAddr, destination: SocketAddr, flags: u8) -> Vec<u8> {
    let mut tcp = Vec::with_capacity(20);
    tcp.extend(source.port().to_be_bytes());
    tcp.extend(destination.port().to_be_bytes());
    tcp.extend(0x5e1e_0001_u32.to_be_bytes());
    tcp.extend([0; 4]);
    tcp.extend([5 << 4, flags]);
    tcp.extend(64240_u16.to_be_bytes());
    tcp.extend([0; 4]);
    let mut covered = Vec::new();
    for address in [source.ip(), destination.ip()] {
        match address {
            IpAddr::V4(v4) => covered.extend(v4.octets()),
            IpAddr::V6(v6) => covered.extend(v6.octets()),
        }
    }
    // The length and the protocol, in either family's pseudo header.
    covered.extend([0, 20, 0, 6]);
    covered.extend(&tcp);
    let mut sum: u32 = covered
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = !u16::try_from(sum).expect("folded to 16 bits");
    tcp[16..18].copy_from_slice(&checksum.to_be_bytes());
    tcp
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segments_checksum_makes_the_sum_of_all_words_all_ones() {
        let source = "10.0.0.1:4000".parse().unwrap();
        let destination = "10.0.0.2:8080".parse().unwrap();
        let tcp = segment(source, destination, SYN);
        let mut all = vec![10, 0, 0, 1, 10, 0, 0, 2, 0, 20, 0, 6];
        all.extend(tcp);
        let sum: u32 = all
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}
