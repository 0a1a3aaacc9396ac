//! Sockets with the options that the node proxy needs, made in a pod's network namespace.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::netns::Netns;

/// What ztunnel marks its sockets towards the application with, so that the answers to the client's own address come
/// back to it (an ip rule in the pod's namespace).
pub const MARK: u32 = 0x539;

/// From which address a connection is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The kernel's choice.
    Any,
    /// An address of the pod's own.
    Own(IpAddr),
    /// An address that is not local: the client's, towards the application. Needs CAP_NET_ADMIN in the namespace.
    Foreign(IpAddr),
}

/// Makes connections from one namespace.
#[derive(Debug, Clone)]
pub struct Dialer {
    /// The namespace that sockets are made in.
    pub netns: Netns,
    /// Mark every socket, as another mesh's agent expects, not only those towards the application.
    pub mark_all: bool,
    /// How long a connection may take.
    pub timeout: Duration,
    /// Keepalive of its connections, and of those that its listeners accept.
    pub keepalive: TcpKeepalive,
}

impl Dialer {
    /// Connects to `to`.
    pub async fn connect(&self, to: SocketAddr, source: Source) -> io::Result<TcpStream> {
        let socket = self.socket(to, source)?;
        let stream = match tokio::time::timeout(self.timeout, socket.connect(to)).await {
            Ok(connected) => connected?,
            Err(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("no answer within {:?}", self.timeout),
                ));
            }
        };
        prepare(&stream, &self.keepalive)?;
        Ok(stream)
    }

    fn socket(&self, to: SocketAddr, source: Source) -> io::Result<TcpSocket> {
        let socket = self.netns.run(|| {
            Socket::new(
                Domain::for_address(to),
                Type::STREAM.nonblocking(),
                Some(Protocol::TCP),
            )
        })??;
        let (bind_to, foreign) = match source {
            Source::Any => (None, false),
            Source::Own(ip) => (Some(ip), false),
            Source::Foreign(ip) => (Some(ip), true),
        };
        if foreign {
            match to {
                SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
                SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
            }
        }
        if foreign || self.mark_all {
            socket.set_mark(MARK)?;
        }
        if let Some(ip) = bind_to {
            // The port is chosen at connect(2), when the whole tuple is known: 28,000 ports for each destination
            // rather than for all.
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
            socket.bind(&SocketAddr::new(ip, 0).into())?;
        }
        Ok(TcpSocket::from_std_stream(socket.into()))
    }
}

/// Options of every stream that carries an application's bytes.
pub fn prepare(stream: &TcpStream, keepalive: &TcpKeepalive) -> io::Result<()> {
    stream.set_nodelay(true)?;
    SockRef::from(stream).set_tcp_keepalive(keepalive)
}

/// Makes the end of a connection a reset, until its bytes flow and end in order: whoever is at the other side sees that
/// it was refused, not that it is over, also if this process is killed before.
pub fn end_as_reset(stream: &TcpStream) {
    // Fails only for a socket that is closed already.
    let _ = stream.set_zero_linger();
}

/// Ends a connection as a reset.
pub fn refuse(stream: TcpStream) {
    end_as_reset(&stream);
}

/// Where the client wanted to go before it was redirected here.
///
/// `SO_ORIGINAL_DST`, answered by our eBPF program or by conntrack. `None`: nobody redirected it.
pub fn original_destination(stream: &TcpStream) -> Option<SocketAddr> {
    let local = stream.local_addr().ok()?;
    let v4 = || {
        rustix::net::sockopt::ip_original_dst(stream)
            .ok()
            .map(SocketAddr::V4)
    };
    let v6 = || {
        rustix::net::sockopt::ipv6_original_dst(stream)
            .ok()
            .map(SocketAddr::V6)
    };
    let found = if unmapped(local).is_ipv4() {
        v4().or_else(v6)
    } else {
        v6()
    };
    found.map(unmapped)
}

/// An IPv4 address that was written as IPv6 (`::ffff:1.2.3.4`) becomes IPv4 again.
pub fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Binds a listener in a namespace, beside that of the proxy that this one replaces (`SO_REUSEPORT`; the kernel lets the
/// same user only). `transparent`: it also receives what was steered here for other addresses.
pub fn listen(netns: &Netns, address: SocketAddr, transparent: bool) -> io::Result<TcpListener> {
    let socket = netns.run(|| -> io::Result<Socket> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM.nonblocking(),
            Some(Protocol::TCP),
        )?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if transparent {
            match address {
                SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
                SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
            }
        }
        socket.bind(&address.into())?;
        socket.listen(4096)?;
        Ok(socket)
    })??;
    TcpListener::from_std(socket.into())
}

/// Binds a port that the proxy that replaces this one may bind too (`SO_REUSEPORT`; the kernel lets the same user only).
pub fn listen_shared(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(128)?;
    TcpListener::from_std(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_connection_that_nobody_redirected_has_no_original_destination() {
        let listener = listen(&Netns::home(), "127.0.0.1:0".parse().unwrap(), false).unwrap();
        let dialer = Dialer {
            netns: Netns::home(),
            mark_all: false,
            timeout: Duration::from_secs(5),
            keepalive: TcpKeepalive::new(),
        };
        let address = listener.local_addr().unwrap();
        let from = IpAddr::from([127, 0, 0, 7]);
        let (_client, accepted) = tokio::join!(
            dialer.connect(address, Source::Own(from)),
            listener.accept()
        );
        let (server, peer) = accepted.unwrap();
        assert_eq!(peer.ip(), from);
        assert_eq!(original_destination(&server), None);
    }

    #[tokio::test]
    async fn two_proxies_share_the_admin_port_during_a_hand_over() {
        let first = listen_shared("127.0.0.1:0".parse().unwrap()).unwrap();
        listen_shared(first.local_addr().unwrap()).unwrap();
    }

    #[test]
    fn mapped_addresses_become_ipv4() {
        assert_eq!(
            unmapped("[::ffff:10.0.0.1]:80".parse().unwrap()),
            "10.0.0.1:80".parse().unwrap()
        );
        assert_eq!(
            unmapped("[fd00::1]:80".parse().unwrap()),
            "[fd00::1]:80".parse().unwrap()
        );
    }
}
