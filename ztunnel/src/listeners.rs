//! Where the listening sockets of a pod come from: handed over by the agent, or bound here.
//!
//! Under our agent the sockets are the agent's: connections wait in their backlog while no proxy runs. Under another
//! mesh's agent, and in dedicated mode, the proxy binds them in the pod's namespace itself.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::Duration;

use prost::Message;
use seine_proto::listeners::{Kind, ListenersRequest, ListenersResponse};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};

use crate::agent::{AgentError, AgentSocket};
use crate::netns::Netns;
use crate::seqpacket::{is_listening, is_udp};
use crate::sockets;

const MAX_MESSAGE: usize = 1024;
/// The agent answers from memory.
const AGENT_TIMEOUT: Duration = Duration::from_secs(5);

/// The ports that a pod's proxy listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// What the pod's applications are redirected to.
    pub outbound: u16,
    /// What plaintext towards the pod is redirected to.
    pub inbound_plaintext: u16,
    /// HBONE.
    pub inbound_hbone: u16,
    /// DNS, over UDP and TCP.
    pub dns: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            outbound: 15001,
            inbound_plaintext: 15006,
            inbound_hbone: 15008,
            dns: 15053,
        }
    }
}

impl Ports {
    /// Whether a port is one of the proxy's own, where no application can be.
    pub fn contains(&self, port: u16) -> bool {
        [
            self.outbound,
            self.inbound_plaintext,
            self.inbound_hbone,
            self.dns,
        ]
        .contains(&port)
    }
}

/// The listening sockets of one pod, of both families.
#[derive(Debug, Default)]
pub struct PodListeners {
    /// Redirected connections of the pod's applications.
    pub outbound: Vec<TcpListener>,
    /// Plaintext towards the pod.
    pub inbound_plaintext: Vec<TcpListener>,
    /// HBONE towards the pod.
    pub inbound_hbone: Vec<TcpListener>,
    /// DNS queries.
    pub dns_udp: Vec<UdpSocket>,
    /// DNS queries over TCP.
    pub dns_tcp: Vec<TcpListener>,
}

/// Where listeners come from.
#[derive(Debug, Clone)]
pub enum ListenerSource {
    /// The agent's listener socket.
    Agent(AgentSocket),
    /// Bound by this proxy, beside one that it replaces.
    Own(Ports),
}

/// Why a pod's listeners are not there.
#[derive(Debug, thiserror::Error)]
pub enum ListenersError {
    /// The agent could not be spoken to.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The agent has no listeners for the pod.
    #[error("the agent refuses the listeners of pod {uid}: {reason}")]
    Refused {
        /// The pod.
        uid: String,
        /// The agent's words.
        reason: String,
    },
    /// The agent's answer is no message of the protocol.
    #[error("the agent's answer about the listeners of pod {uid} is broken: {reason}")]
    Protocol {
        /// The pod.
        uid: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A port can't be bound in the pod's namespace.
    #[error("can't listen on {address} for pod {uid}: {source}")]
    Bind {
        /// The pod.
        uid: String,
        /// What was to be bound.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

impl ListenerSource {
    /// The listeners of a pod.
    pub async fn obtain(&self, uid: &str, netns: &Netns) -> Result<PodListeners, ListenersError> {
        match self {
            Self::Agent(agent) => from_agent(agent, uid).await,
            Self::Own(ports) => bind(*ports, uid, netns),
        }
    }
}

async fn from_agent(agent: &AgentSocket, uid: &str) -> Result<PodListeners, ListenersError> {
    let failed = |source| ListenersError::from(agent.failed(source));
    let socket = agent.connect()?;
    let request = ListenersRequest {
        uid: uid.to_owned(),
    };
    let mut buffer = [0; MAX_MESSAGE];
    let exchange = async {
        socket.send_bytes(&request.encode_to_vec()).await?;
        socket.recv(&mut buffer).await
    };
    let received = tokio::time::timeout(AGENT_TIMEOUT, exchange)
        .await
        .map_err(|_| {
            failed(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no answer within {AGENT_TIMEOUT:?}"),
            ))
        })?
        .map_err(failed)?;
    let Some((length, descriptors)) = received else {
        return Err(failed(io::ErrorKind::UnexpectedEof.into()));
    };
    parse(uid, &buffer[..length], descriptors)
}

/// Whether bytes from the agent's socket are an answer with these descriptors, for tests of that alone.
#[doc(hidden)]
pub fn understands(bytes: &[u8], descriptors: Vec<OwnedFd>) -> bool {
    parse("", bytes, descriptors).is_ok()
}

fn parse(
    uid: &str,
    bytes: &[u8],
    descriptors: Vec<OwnedFd>,
) -> Result<PodListeners, ListenersError> {
    let protocol = |reason: String| ListenersError::Protocol {
        uid: uid.to_owned(),
        reason,
    };
    let answer = ListenersResponse::decode(bytes).map_err(|error| protocol(error.to_string()))?;
    if !answer.error.is_empty() {
        return Err(ListenersError::Refused {
            uid: uid.to_owned(),
            reason: answer.error,
        });
    }
    if answer.listeners.len() != descriptors.len() {
        return Err(protocol(format!(
            "{} listeners and {} descriptors",
            answer.listeners.len(),
            descriptors.len()
        )));
    }
    let mut listeners = PodListeners::default();
    for (about, descriptor) in answer.listeners.iter().zip(descriptors) {
        listeners
            .put(about.kind(), descriptor)
            .map_err(|error| protocol(format!("{:?}: {error}", about.kind())))?;
    }
    Ok(listeners)
}

impl PodListeners {
    fn put(&mut self, kind: Kind, descriptor: OwnedFd) -> io::Result<()> {
        let tcp = match kind {
            Kind::Outbound => &mut self.outbound,
            Kind::InboundPlaintext => &mut self.inbound_plaintext,
            Kind::InboundHbone => &mut self.inbound_hbone,
            Kind::DnsTcp => &mut self.dns_tcp,
            Kind::DnsUdp => {
                if !is_udp(&descriptor) {
                    return Err(invalid("the descriptor is no UDP socket"));
                }
                let socket = std::net::UdpSocket::from(descriptor);
                socket.set_nonblocking(true)?;
                self.dns_udp.push(UdpSocket::from_std(socket)?);
                return Ok(());
            }
            // A newer agent's: closed here, it stays open there.
            Kind::Unspecified => return Ok(()),
        };
        if !is_listening(&descriptor) {
            return Err(invalid("the descriptor is no listening socket"));
        }
        let listener = std::net::TcpListener::from(descriptor);
        listener.set_nonblocking(true)?;
        tcp.push(TcpListener::from_std(listener)?);
        Ok(())
    }
}

fn invalid(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

fn bind(ports: Ports, uid: &str, netns: &Netns) -> Result<PodListeners, ListenersError> {
    let mut listeners = PodListeners::default();
    let loopback = |port| -> [SocketAddr; 2] {
        [
            (Ipv4Addr::LOCALHOST, port).into(),
            (Ipv6Addr::LOCALHOST, port).into(),
        ]
    };
    let anywhere = |port| -> [SocketAddr; 2] {
        [
            (Ipv4Addr::UNSPECIFIED, port).into(),
            (Ipv6Addr::UNSPECIFIED, port).into(),
        ]
    };
    let tcp = |addresses: [SocketAddr; 2],
               transparent: bool|
     -> Result<Vec<TcpListener>, ListenersError> {
        let mut bound = Vec::new();
        for address in addresses {
            // Transparent wants CAP_NET_ADMIN; without it only redirection by address translation reaches us.
            let attempt = sockets::listen(netns, address, transparent).or_else(|error| {
                if transparent {
                    sockets::listen(netns, address, false)
                } else {
                    Err(error)
                }
            });
            match attempt {
                Ok(listener) => bound.push(listener),
                // A pod without IPv6 has no such loopback.
                Err(error) if address.is_ipv6() && no_such_family(&error) => {}
                Err(source) => {
                    return Err(ListenersError::Bind {
                        uid: uid.to_owned(),
                        address,
                        source,
                    });
                }
            }
        }
        Ok(bound)
    };
    listeners.outbound = tcp(loopback(ports.outbound), true)?;
    listeners.inbound_plaintext = tcp(anywhere(ports.inbound_plaintext), true)?;
    listeners.inbound_hbone = tcp(anywhere(ports.inbound_hbone), false)?;
    listeners.dns_tcp = tcp(loopback(ports.dns), false)?;
    for address in loopback(ports.dns) {
        match bind_udp(netns, address) {
            Ok(socket) => listeners.dns_udp.push(socket),
            Err(error) if address.is_ipv6() && no_such_family(&error) => {}
            Err(source) => {
                return Err(ListenersError::Bind {
                    uid: uid.to_owned(),
                    address,
                    source,
                });
            }
        }
    }
    Ok(listeners)
}

fn bind_udp(netns: &Netns, address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = netns.run(|| -> io::Result<Socket> {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::DGRAM.nonblocking(),
            Some(Protocol::UDP),
        )?;
        socket.set_reuse_port(true)?;
        socket.bind(&address.into())?;
        Ok(socket)
    })??;
    UdpSocket::from_std(socket.into())
}

fn no_such_family(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL)
    )
}

#[cfg(test)]
mod tests {
    use seine_proto::listeners::{Family, Listener};

    use super::*;
    use crate::seqpacket::SeqPacketListener;

    async fn answer(
        socket: &SeqPacketListener,
        answer: ListenersResponse,
        descriptors: Vec<OwnedFd>,
    ) {
        let agent = socket.accept().await.unwrap();
        let mut buffer = [0; MAX_MESSAGE];
        let (length, _) = agent.recv(&mut buffer).await.unwrap().unwrap();
        assert_eq!(
            ListenersRequest::decode(&buffer[..length]).unwrap().uid,
            "u"
        );
        agent
            .send(&answer.encode_to_vec(), &descriptors)
            .await
            .unwrap();
    }

    async fn obtain(
        response: ListenersResponse,
        descriptors: Vec<OwnedFd>,
    ) -> Result<PodListeners, ListenersError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("l");
        let socket = SeqPacketListener::replace(&path).unwrap();
        let source = ListenerSource::Agent(AgentSocket::new(&path, None));
        let netns = Netns::home();
        let (obtained, ()) = tokio::join!(
            source.obtain("u", &netns),
            answer(&socket, response, descriptors)
        );
        obtained
    }

    fn described(kind: Kind) -> Listener {
        Listener {
            kind: kind as i32,
            family: Family::Ipv4 as i32,
        }
    }

    #[tokio::test]
    async fn the_agents_listeners_are_sorted_by_kind() {
        let outbound = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let dns = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = outbound.local_addr().unwrap();
        let listeners = vec![described(Kind::DnsUdp), described(Kind::Outbound)];
        let response = ListenersResponse {
            error: String::new(),
            listeners,
        };
        let got = obtain(response, vec![dns.into(), outbound.into()])
            .await
            .unwrap();
        assert_eq!(got.outbound[0].local_addr().unwrap(), address);
        assert_eq!((got.dns_udp.len(), got.inbound_hbone.len()), (1, 0));
    }

    #[tokio::test]
    async fn a_socket_of_another_kind_than_it_was_described_as_is_refused() {
        let tcp = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = || std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let (pair, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let (stream, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        let no_udp = "DnsUdp: the descriptor is no UDP socket";
        let cases: [(Kind, OwnedFd, &str); 5] = [
            (Kind::DnsUdp, tcp().into(), no_udp),
            (Kind::DnsUdp, pair.into(), no_udp),
            (Kind::DnsUdp, stream.into(), no_udp),
            (Kind::DnsUdp, file.into(), no_udp),
            (
                Kind::DnsTcp,
                udp().into(),
                "DnsTcp: the descriptor is no listening socket",
            ),
        ];
        for (kind, descriptor, expected) in cases {
            let response = ListenersResponse {
                error: String::new(),
                listeners: vec![described(kind)],
            };
            let got = obtain(response, vec![descriptor]).await;
            assert!(
                matches!(&got, Err(ListenersError::Protocol { reason, .. }) if reason == expected),
                "{kind:?}: {:?}",
                got.err()
            );
        }
    }

    #[tokio::test]
    async fn the_agents_refusal_and_its_broken_answers_are_told_apart() {
        let refusal = ListenersResponse {
            error: "no such pod".into(),
            listeners: vec![],
        };
        assert!(
            matches!(obtain(refusal, vec![]).await, Err(ListenersError::Refused { reason, .. }) if reason == "no such pod")
        );
        let short = ListenersResponse {
            error: String::new(),
            listeners: vec![described(Kind::Outbound)],
        };
        assert!(matches!(
            obtain(short.clone(), vec![]).await,
            Err(ListenersError::Protocol { .. })
        ));
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(
            obtain(short, vec![file.into()]).await,
            Err(ListenersError::Protocol { .. })
        ));
    }
}
