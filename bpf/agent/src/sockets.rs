//! The listening sockets that the agent keeps for each enrolled pod.
//!
//! The agent is their keeper: connections wait in their backlog while no ztunnel runs. They are
//! never made with `SO_REUSEPORT`, so the kernel itself makes sure that there is only one for an
//! address: an orphan that swallows connections can't come to be. A new agent that finds an address
//! taken looks for the socket in the processes of ztunnel's cgroup and takes a duplicate of it
//! (`pidfd_getfd`), so that the restart of an agent refuses no connection; where nobody holds a
//! socket any more it makes a new one.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::Ipv6Addr;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use seine_proto::listeners::Family;
use seine_proto::listeners::Kind;
use socket2::Domain;
use socket2::Socket;
use socket2::Type;

use crate::door;
use crate::netns::Netns;
use crate::netns::NetnsError;

/// Connections that wait while ztunnel is away; the kernel's `somaxconn` bounds it too.
const BACKLOG: i32 = 16_384;

/// One socket of a pod.
#[derive(Debug)]
pub struct Held {
    /// What it is for.
    pub kind: Kind,
    /// Its address family.
    pub family: Family,
    fd: OwnedFd,
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Why a pod has no listening sockets.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The namespace can't be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// Another program of the pod has the address, or a ztunnel that this agent can't see.
    #[error(
        "{protocol} {address} is taken in the pod, by a process outside ztunnel's cgroup: the mesh \
         needs the ports 15001, 15006, 15008 and 15053"
    )]
    Taken {
        /// `TCP` or `UDP`.
        protocol: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// The socket could not be made.
    #[error("{protocol} {address} in the pod: {source}")]
    Open {
        /// `TCP` or `UDP`.
        protocol: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

#[derive(Clone, Copy)]
struct Wanted {
    kind: Kind,
    address: SocketAddr,
}

impl Wanted {
    fn is_udp(self) -> bool {
        self.kind == Kind::DnsUdp
    }

    fn protocol(self) -> &'static str {
        if self.is_udp() { "UDP" } else { "TCP" }
    }

    fn family(self) -> Family {
        if self.address.is_ipv4() {
            Family::Ipv4
        } else {
            Family::Ipv6
        }
    }
}

fn wanted(ipv6: bool) -> Vec<Wanted> {
    const KINDS: [(Kind, u16, bool); 5] = [
        (Kind::Outbound, 15001, true),
        (Kind::InboundPlaintext, 15006, false),
        (Kind::InboundHbone, 15008, false),
        (Kind::DnsUdp, 15053, true),
        (Kind::DnsTcp, 15053, true),
    ];
    let v4 = [Ipv4Addr::LOCALHOST, Ipv4Addr::UNSPECIFIED].map(IpAddr::from);
    let v6 = [Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED].map(IpAddr::from);
    let families: &[[IpAddr; 2]] = if ipv6 { &[v4, v6] } else { &[v4] };
    families
        .iter()
        .flat_map(|[loopback, any]| {
            KINDS.map(|(kind, port, local)| Wanted {
                kind,
                address: SocketAddr::new(if local { *loopback } else { *any }, port),
            })
        })
        .collect()
}

/// Does the pod have IPv6?
///
/// # Errors
///
/// The namespace can't be entered.
pub fn has_ipv6(netns: &Netns) -> Result<bool, NetnsError> {
    netns.within(|| {
        Socket::new(Domain::IPV6, Type::DGRAM, None)
            .and_then(|socket| socket.bind(&SocketAddr::from((Ipv6Addr::LOCALHOST, 0)).into()))
            .is_ok()
    })
}

/// Makes a pod's sockets, or takes over those that processes of the `proxies`' cgroups hold.
///
/// # Errors
///
/// Not one of them is kept then; what ztunnel holds stays as it is.
pub fn obtain(netns: &Netns, ipv6: bool, proxies: &[PathBuf]) -> Result<Vec<Held>, SocketError> {
    netns.within(|| {
        let mut held = Vec::new();
        let mut taken = Vec::new();
        for wanted in wanted(ipv6) {
            match open(wanted) {
                Ok(fd) => held.push(Held {
                    kind: wanted.kind,
                    family: wanted.family(),
                    fd,
                }),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => taken.push(wanted),
                Err(source) => {
                    let (protocol, address) = (wanted.protocol(), wanted.address);
                    return Err(SocketError::Open {
                        protocol,
                        address,
                        source,
                    });
                }
            }
        }
        if taken.is_empty() {
            return Ok(held);
        }
        let holders = socket_holders(proxies);
        for wanted in taken {
            let fd = listening_inodes(wanted)
                .into_iter()
                .find_map(|inode| duplicate(*holders.get(&inode)?))
                .ok_or(SocketError::Taken {
                    protocol: wanted.protocol(),
                    address: wanted.address,
                })?;
            tracing::debug!(address = %wanted.address, "took a listener over from ztunnel");
            held.push(Held {
                kind: wanted.kind,
                family: wanted.family(),
                fd,
            });
        }
        held.sort_by_key(|held| (held.family, held.kind));
        Ok(held)
    })?
}

fn open(wanted: Wanted) -> io::Result<OwnedFd> {
    let domain = Domain::for_address(wanted.address);
    let kind = if wanted.is_udp() {
        Type::DGRAM
    } else {
        Type::STREAM
    };
    let socket = Socket::new(domain, kind.nonblocking().cloexec(), None)?;
    if wanted.address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if !wanted.is_udp() {
        // For addresses still in TIME_WAIT; it does not allow a second listener. On UDP it would.
        socket.set_reuse_address(true)?;
    }
    if wanted.kind == Kind::InboundPlaintext {
        // What sk_lookup steers here is addressed to the pod's other ports and addresses.
        if wanted.address.is_ipv4() {
            socket.set_ip_transparent_v4(true)?;
        } else {
            socket.set_ip_transparent_v6(true)?;
        }
    }
    socket.bind(&wanted.address.into())?;
    if !wanted.is_udp() {
        socket.listen(BACKLOG)?;
    }
    Ok(socket.into())
}

/// Inodes of the sockets of this namespace that have exactly the wanted address, by the tables in
/// `/proc`, which are those of the calling thread's namespace.
fn listening_inodes(wanted: Wanted) -> Vec<u64> {
    let table = match (wanted.is_udp(), wanted.address.is_ipv4()) {
        (false, true) => "tcp",
        (false, false) => "tcp6",
        (true, true) => "udp",
        (true, false) => "udp6",
    };
    let text = fs::read_to_string(format!("/proc/thread-self/net/{table}")).unwrap_or_default();
    inodes_in(&text, wanted.address, wanted.is_udp())
}

fn inodes_in(table: &str, address: SocketAddr, udp: bool) -> Vec<u64> {
    /// State of a listening TCP socket, and of an unconnected UDP socket.
    const LISTEN: &str = "0A";
    const UNCONNECTED: &str = "07";
    let state = if udp { UNCONNECTED } else { LISTEN };
    let local = in_proc_notation(address);
    table
        .lines()
        .filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            (*fields.get(1)? == local && *fields.get(3)? == state).then_some(())?;
            fields.get(9)?.parse().ok()
        })
        .collect()
}

/// Each 32-bit word of the address in the machine's byte order, as `/proc/net/tcp` prints it.
fn in_proc_notation(address: SocketAddr) -> String {
    let words = |bytes: &[u8]| -> String {
        bytes
            .chunks_exact(4)
            .map(|word| {
                let word = u32::from_ne_bytes([word[0], word[1], word[2], word[3]]);
                format!("{word:08X}")
            })
            .collect()
    };
    let ip = match address.ip() {
        IpAddr::V4(ip) => words(&ip.octets()),
        IpAddr::V6(ip) => words(&ip.octets()),
    };
    format!("{ip}:{:04X}", address.port())
}

/// Who holds which socket, by inode, among the processes of a cgroup.
fn socket_holders(cgroups: &[PathBuf]) -> HashMap<u64, (i32, i32)> {
    let mut holders = HashMap::new();
    for pid in cgroups.iter().flat_map(|cgroup| door::processes(cgroup)) {
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
            continue;
        };
        for entry in entries.flatten() {
            let inode = fs::read_link(entry.path()).ok().and_then(|target| {
                target
                    .to_str()?
                    .strip_prefix("socket:[")?
                    .strip_suffix(']')?
                    .parse()
                    .ok()
            });
            let number = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok());
            if let (Some(inode), Some(number)) = (inode, number) {
                holders.insert(inode, (pid, number));
            }
        }
    }
    holders
}

/// A duplicate of another process's descriptor; `None` where the process is gone or may not be
/// looked into (the agent needs `CAP_SYS_PTRACE` for that).
fn duplicate((pid, number): (i32, i32)) -> Option<OwnedFd> {
    let call = |call: libc::c_long, a: i32, b: i32| {
        // SAFETY: pidfd_open and pidfd_getfd take integers and return a new descriptor or -1.
        let raw = unsafe { libc::syscall(call, a, b, 0) };
        let raw = i32::try_from(raw).ok().filter(|raw| *raw >= 0)?;
        // SAFETY: the kernel made this descriptor for us, with close-on-exec.
        Some(unsafe { OwnedFd::from_raw_fd(raw) })
    };
    let process = call(libc::SYS_pidfd_open, pid, 0)?;
    call(libc::SYS_pidfd_getfd, process.as_raw_fd(), number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_with_ipv6_has_ten_sockets_and_one_without_has_five() {
        assert_eq!(wanted(true).len(), 10);
        assert_eq!(wanted(false).len(), 5);
        let listed: Vec<_> = wanted(true).iter().map(|w| w.address.to_string()).collect();
        for address in [
            "127.0.0.1:15001",
            "[::]:15008",
            "[::1]:15053",
            "0.0.0.0:15006",
        ] {
            assert!(
                listed.iter().any(|a| a == address),
                "{address} in {listed:?}"
            );
        }
    }

    #[test]
    fn a_listener_is_found_in_the_kernels_table() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let wanted = Wanted {
            kind: Kind::Outbound,
            address: listener.local_addr().unwrap(),
        };
        assert_eq!(listening_inodes(wanted).len(), 1);
        let elsewhere = Wanted {
            kind: Kind::Outbound,
            address: "127.0.0.2:1".parse().unwrap(),
        };
        assert!(listening_inodes(elsewhere).is_empty());
        assert_eq!(in_proc_notation("[::1]:15001".parse().unwrap()).len(), 37);
    }

    #[test]
    fn another_processs_table_of_descriptors_gives_a_duplicate_of_its_socket() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let own = std::process::id().cast_signed();
        let copy = duplicate((own, listener.as_raw_fd())).unwrap();
        let copy = std::net::TcpListener::from(copy);
        assert_eq!(copy.local_addr().unwrap(), listener.local_addr().unwrap());
        assert!(duplicate((own, 100_000)).is_none());
    }
}
