//! PROXY protocol version 2 (haproxy's `proxy-protocol.txt`, section 2.2), for applications that want to hear from the
//! proxy who their client is: its address and, in a TLV, its verified identity.

use std::net::{IpAddr, SocketAddr};

use seine_identity::Identity;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, command PROXY.
const PROXY: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;
/// The client's SPIFFE ID, a type that other meshes use too.
const IDENTITY: u8 = 0xd0;

/// What precedes the bytes of a connection from `client` to `destination`.
pub(crate) fn header(
    client: SocketAddr,
    destination: SocketAddr,
    identity: Option<&Identity>,
) -> Vec<u8> {
    let mut body = Vec::with_capacity(64);
    let family = match (client.ip(), destination.ip()) {
        (IpAddr::V4(client), IpAddr::V4(destination)) => {
            body.extend(client.octets());
            body.extend(destination.octets());
            TCP_OVER_IPV4
        }
        // Of two families, one has to be written as the other.
        (client, destination) => {
            body.extend(as_ipv6(client));
            body.extend(as_ipv6(destination));
            TCP_OVER_IPV6
        }
    };
    body.extend(client.port().to_be_bytes());
    body.extend(destination.port().to_be_bytes());
    if let Some(identity) = identity {
        let text = identity.as_str().as_bytes();
        // A SPIFFE ID has at most 2048 bytes.
        if let Ok(length) = u16::try_from(text.len()) {
            body.push(IDENTITY);
            body.extend(length.to_be_bytes());
            body.extend(text);
        }
    }
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    let mut header = Vec::with_capacity(SIGNATURE.len() + 4 + body.len());
    header.extend(SIGNATURE);
    header.extend([PROXY, family]);
    header.extend(length.to_be_bytes());
    header.extend(body);
    header
}

fn as_ipv6(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_connection_is_written_as_the_specification_says() {
        let identity = "spiffe://d/ns/a/sa/b".parse().unwrap();
        let header = header(
            "10.0.0.1:256".parse().unwrap(),
            "10.0.0.2:80".parse().unwrap(),
            Some(&identity),
        );
        let mut expected = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x23".to_vec();
        expected.extend([10, 0, 0, 1, 10, 0, 0, 2, 1, 0, 0, 80, 0xd0, 0, 20]);
        expected.extend(b"spiffe://d/ns/a/sa/b");
        assert_eq!(header, expected);
    }

    #[test]
    fn a_connection_between_families_is_written_as_ipv6() {
        let header = header(
            "10.0.0.1:1".parse().unwrap(),
            "[fd00::1]:2".parse().unwrap(),
            None,
        );
        assert_eq!(header[12..16], [0x21, 0x21, 0, 36]);
        assert_eq!(header[26..32], [0xff, 0xff, 10, 0, 0, 1]);
        assert_eq!(header.len(), 16 + 36);
    }
}
