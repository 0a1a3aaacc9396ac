//! TCP connections that are older than a pod's enrolment: found and, if asked for, reset, by
//! sock_diag(7) in the pod's netns.

use std::{io, os::fd::BorrowedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use std::os::fd::{AsRawFd as _, OwnedFd};

use super::{OlderConnections, PodSettings, RedirectError, Result, netns};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// `struct inet_diag_sockid`.
const ID: usize = 48;
/// All TCP states but LISTEN, TIME_WAIT and CLOSE, as bits.
const STATES: u32 = 0xfff & !(1 << 10) & !(1 << 6) & !(1 << 7);

/// A connection as sock_diag names it.
#[derive(Debug)]
struct Connection {
    family: u8,
    id: [u8; ID],
}

impl Connection {
    fn local_port(&self) -> u16 {
        u16::from_be_bytes([self.id[0], self.id[1]])
    }

    fn remote_port(&self) -> u16 {
        u16::from_be_bytes([self.id[2], self.id[3]])
    }

    fn address(&self, at: usize) -> std::net::IpAddr {
        let mut octets = [0; 16];
        octets.copy_from_slice(&self.id[at..at + 16]);
        if i32::from(self.family) == libc::AF_INET {
            let mut v4 = [0; 4];
            v4.copy_from_slice(&octets[..4]);
            return std::net::Ipv4Addr::from(v4).into();
        }
        std::net::Ipv6Addr::from(octets).to_canonical()
    }

    /// Whether the mesh would carry this connection, were it made now.
    fn concerns(&self, settings: &PodSettings) -> bool {
        let (local, remote) = (self.address(4), self.address(20));
        let excluded = settings
            .excluded_outbound_ports
            .contains(&self.remote_port())
            || settings.excluded_inbound_ports.contains(&self.local_port())
            || settings
                .excluded_outbound_networks
                .iter()
                .any(|net| net.contains(&remote))
            || settings
                .excluded_inbound_networks
                .iter()
                .any(|net| net.contains(&remote));
        !remote.is_loopback() && local != remote && !excluded
    }
}

/// Counts the connections that a pod has with the outside, and resets them if asked for. Returns
/// how many there were, and how many were reset.
pub(super) fn settle(
    pod: BorrowedFd<'_>,
    settings: &PodSettings,
    policy: OlderConnections,
) -> Result<(usize, usize)> {
    netns::within(pod, || {
        let netlink = open()?;
        let mut found = 0;
        let mut reset = 0;
        for family in [libc::AF_INET, libc::AF_INET6] {
            for connection in list(&netlink, family as u8)? {
                if !connection.concerns(settings) {
                    continue;
                }
                found += 1;
                if policy == OlderConnections::Reset && destroy(&netlink, &connection)? {
                    reset += 1;
                }
            }
        }
        Ok((found, reset))
    })
}

fn failed(call: &'static str) -> impl Fn(nix::Error) -> RedirectError {
    move |error| RedirectError::call(call, "sock_diag in the pod's netns", error)
}

fn open() -> Result<OwnedFd> {
    socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkSockDiag,
    )
    .map_err(failed("socket"))
}

/// `struct inet_diag_req_v2` behind a netlink header.
fn request(kind: u16, flags: u16, family: u8, id: &[u8; ID]) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER + 8 + ID);
    message.extend_from_slice(&((HEADER + 8 + ID) as u32).to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(NLM_F_REQUEST | flags).to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[family, libc::IPPROTO_TCP as u8, 0, 0]);
    message.extend_from_slice(&STATES.to_ne_bytes());
    message.extend_from_slice(id);
    message
}

fn send(netlink: &OwnedFd, message: &[u8]) -> Result<()> {
    sendto(
        netlink.as_raw_fd(),
        message,
        &NetlinkAddr::new(0, 0),
        MsgFlags::empty(),
    )
    .map(drop)
    .map_err(failed("sendto"))
}

fn list(netlink: &OwnedFd, family: u8) -> Result<Vec<Connection>> {
    send(
        netlink,
        &request(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, &[0; ID]),
    )?;
    let mut connections = Vec::new();
    let mut buffer = vec![0; 32 * 1024];
    loop {
        let length =
            recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(failed("recv"))?;
        for (kind, body) in messages(&buffer[..length]) {
            match kind {
                NLMSG_DONE => return Ok(connections),
                NLMSG_ERROR => return answer(body).map(|()| connections),
                // family, state, timer, retransmissions, then the id.
                SOCK_DIAG_BY_FAMILY => {
                    if let Some(id) = body.get(4..4 + ID).and_then(|id| id.try_into().ok()) {
                        connections.push(Connection {
                            family: body[0],
                            id,
                        });
                    }
                }
                _ => {}
            }
        }
    }
}

/// Resets a connection; false if it is gone by itself.
fn destroy(netlink: &OwnedFd, connection: &Connection) -> Result<bool> {
    send(
        netlink,
        &request(SOCK_DESTROY, NLM_F_ACK, connection.family, &connection.id),
    )?;
    let mut buffer = [0; 1024];
    let length =
        recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty()).map_err(failed("recv"))?;
    for (kind, body) in messages(&buffer[..length]) {
        if kind == NLMSG_ERROR {
            return match answer(body) {
                Ok(()) => Ok(true),
                Err(error) if error.errno() == Some(libc::ENOENT) => Ok(false),
                Err(error) => Err(error),
            };
        }
    }
    Ok(false)
}

/// The result in an error message.
fn answer(body: &[u8]) -> Result<()> {
    let code = body.get(..4).map_or(-libc::EIO, |code| {
        i32::from_ne_bytes([code[0], code[1], code[2], code[3]])
    });
    if code == 0 {
        return Ok(());
    }
    Err(RedirectError::call(
        "SOCK_DESTROY (CONFIG_INET_DIAG_DESTROY)",
        "connection older than the enrolment",
        io::Error::from_raw_os_error(-code),
    ))
}

/// Kinds and bodies of the netlink messages in a datagram.
fn messages(mut datagram: &[u8]) -> Vec<(u16, &[u8])> {
    let mut messages = Vec::new();
    while datagram.len() >= HEADER {
        let length = u32::from_ne_bytes([datagram[0], datagram[1], datagram[2], datagram[3]]);
        let length = length as usize;
        if length < HEADER || length > datagram.len() {
            break;
        }
        messages.push((
            u16::from_ne_bytes([datagram[4], datagram[5]]),
            &datagram[HEADER..length],
        ));
        datagram = &datagram[length.next_multiple_of(4).min(datagram.len())..];
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_cut_short_are_left_out() {
        let mut datagram = request(SOCK_DESTROY, 0, 2, &[0; ID]);
        let whole = datagram.len();
        datagram.extend_from_slice(&[255; 8]);
        let found = messages(&datagram);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, SOCK_DESTROY);
        assert_eq!(found[0].1.len(), whole - HEADER);
    }

    #[test]
    fn connections_within_the_pod_and_excluded_ones_are_left() {
        let mut id = [0; ID];
        id[..4].copy_from_slice(&[0x1f, 0x90, 0x00, 0x50]);
        id[4..8].copy_from_slice(&[10, 0, 0, 1]);
        id[20..24].copy_from_slice(&[10, 0, 0, 2]);
        let connection = Connection {
            family: libc::AF_INET as u8,
            id,
        };
        let mut settings = PodSettings::default();
        assert!(connection.concerns(&settings));
        settings.excluded_outbound_ports.insert(80);
        assert!(!connection.concerns(&settings));
        id[20..24].copy_from_slice(&[10, 0, 0, 1]);
        let inner = Connection {
            family: libc::AF_INET as u8,
            id,
        };
        assert!(!inner.concerns(&PodSettings::default()));
    }
}
