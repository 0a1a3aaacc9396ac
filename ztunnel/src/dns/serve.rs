//! A pod's DNS sockets.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use seine_workload::Store;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::answer::{Answer, Transport, answer};
use super::forward::{Forwarder, UpstreamSockets, read_message, write_message};
use super::message;
use super::names::View;

/// The largest query that is read from a datagram: the largest datagram, so that none is forwarded cut.
const MAX_QUERY: usize = 65_535;

/// The sockets that a pod's queries come to.
#[derive(Debug, Default)]
pub struct DnsSockets {
    /// Bound to 15053 on the pod's loopback addresses.
    pub udp: Vec<UdpSocket>,
    /// The same for TCP.
    pub tcp: Vec<TcpListener>,
}

impl DnsSockets {
    /// The same sockets, polled by the calling thread's runtime.
    ///
    /// # Errors
    ///
    /// The thread is out of memory or descriptors.
    pub fn on_this_thread(self) -> io::Result<Self> {
        let udp = |socket: UdpSocket| UdpSocket::from_std(socket.into_std()?);
        let tcp = |listener: TcpListener| TcpListener::from_std(listener.into_std()?);
        Ok(Self {
            udp: self.udp.into_iter().map(udp).collect::<io::Result<_>>()?,
            tcp: self.tcp.into_iter().map(tcp).collect::<io::Result<_>>()?,
        })
    }
}

/// Whose queries these are.
#[derive(Clone, Debug)]
pub struct DnsClient {
    /// The workload's uid, under which its opt-out is looked up at each query.
    pub uid: Arc<str>,
    /// The pod's namespace.
    pub namespace: Arc<str>,
}

/// How to serve a pod.
#[derive(Clone, Debug)]
pub struct DnsOptions {
    /// The resolvers that the rest is forwarded to, in order.
    pub upstreams: Arc<[SocketAddr]>,
    /// How long each is waited for. Clients usually try again after 5 s.
    pub timeout: Duration,
    /// Queries over UDP that wait for a resolver at one time; more are dropped, and the client
    /// asks again.
    pub max_forwarded: usize,
    /// TCP connections at one time; more wait in the backlog.
    pub max_tcp: usize,
    /// How long a TCP connection may be idle.
    pub tcp_idle: Duration,
    /// Where queries are counted; shared by pods or not.
    pub stats: Arc<DnsStats>,
}

impl Default for DnsOptions {
    fn default() -> Self {
        Self {
            upstreams: Arc::new([]),
            timeout: Duration::from_secs(2),
            max_forwarded: 256,
            max_tcp: 32,
            tcp_idle: Duration::from_secs(10),
            stats: Arc::default(),
        }
    }
}

/// Queries by what became of them.
#[derive(Debug, Default)]
pub struct DnsStats {
    /// Answered from the store.
    pub answered: Counter,
    /// Answered by a resolver.
    pub forwarded: Counter,
    /// Answered with a failure, because no resolver answered.
    pub failed: Counter,
    /// Not answered: no query or not a whole one, or too many at one time.
    pub dropped: Counter,
}

/// Serves a pod's queries until `stop` is cancelled; then all that waits is given up.
pub async fn serve(
    sockets: DnsSockets,
    client: DnsClient,
    store: Arc<Store>,
    options: DnsOptions,
    upstream_sockets: Arc<dyn UpstreamSockets>,
    stop: CancellationToken,
) {
    let DnsOptions {
        upstreams, timeout, ..
    } = &options;
    let server = Arc::new(Server {
        forwarder: Forwarder::new(upstreams.clone(), upstream_sockets, *timeout),
        udp_slots: Arc::new(Semaphore::new(options.max_forwarded)),
        tcp_slots: Arc::new(Semaphore::new(options.max_tcp)),
        client,
        store,
        options,
    });
    let mut tasks = JoinSet::new();
    for socket in sockets.udp {
        tasks.spawn(server.clone().udp(Arc::new(socket)));
    }
    for listener in sockets.tcp {
        tasks.spawn(server.clone().tcp(listener));
    }
    // The tasks end when the set is dropped, and theirs with them.
    stop.cancelled().await;
}

struct Server {
    client: DnsClient,
    store: Arc<Store>,
    forwarder: Forwarder,
    options: DnsOptions,
    udp_slots: Arc<Semaphore>,
    tcp_slots: Arc<Semaphore>,
}

impl Server {
    /// What to do with a query of this pod, now.
    fn answer(&self, transport: Transport, query: &[u8]) -> Answer {
        let opted_out = self
            .store
            .workload(&self.client.uid)
            .is_some_and(|w| w.dns_opt_out());
        if opted_out {
            return match message::is_response(query) {
                Some(false) => Answer::Forward,
                Some(true) | None => Answer::Ignore,
            };
        }
        let view = View {
            store: &self.store,
            namespace: &self.client.namespace,
        };
        answer(&view, transport, query)
    }

    async fn udp(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut forwarded = JoinSet::new();
        let mut buffer = vec![0; MAX_QUERY];
        loop {
            while forwarded.try_join_next().is_some() {}
            let (length, from) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    pause(&self.client, &error).await;
                    continue;
                }
            };
            let query = &buffer[..length];
            match self.answer(Transport::Udp, query) {
                Answer::Reply(reply) => {
                    self.options.stats.answered.inc();
                    send(&socket, &reply, from).await;
                }
                Answer::Ignore => {
                    self.options.stats.dropped.inc();
                }
                Answer::Forward => {
                    let Ok(slot) = self.udp_slots.clone().try_acquire_owned() else {
                        self.options.stats.dropped.inc();
                        continue;
                    };
                    let (server, socket) = (self.clone(), socket.clone());
                    let query = query.to_vec();
                    forwarded.spawn(async move {
                        if let Some(reply) = server.forward(Transport::Udp, &query).await {
                            send(&socket, &reply, from).await;
                        }
                        drop(slot);
                    });
                }
            }
        }
    }

    async fn tcp(self: Arc<Self>, listener: TcpListener) {
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let slot = self.tcp_slots.clone().acquire_owned().await;
            let Ok(slot) = slot else { return };
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let server = self.clone();
                    connections.spawn(async move {
                        // A client that breaks off, or sends half a message, only ends its own.
                        if let Err(error) = server.connection(stream).await {
                            tracing::debug!(%error, %peer, "DNS over TCP");
                        }
                        drop(slot);
                    });
                }
                Err(error) => pause(&self.client, &error).await,
            }
        }
    }

    async fn connection(&self, mut stream: TcpStream) -> io::Result<()> {
        let idle = self.options.tcp_idle;
        loop {
            // Between two queries the connection may end or be idle; within one it may not.
            match tokio::time::timeout(idle, stream.peek(&mut [0])).await {
                Ok(Ok(1..)) => {}
                Ok(Ok(0)) | Err(_) => return Ok(()),
                Ok(Err(error)) => return Err(error),
            }
            let read = tokio::time::timeout(idle, read_message(&mut stream)).await;
            let query = match read.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(Some(query)) => query,
                Ok(None) => return Ok(()),
                Err(error) => {
                    self.options.stats.dropped.inc();
                    return Err(error);
                }
            };
            let reply = match self.answer(Transport::Tcp, &query) {
                Answer::Reply(reply) => {
                    self.options.stats.answered.inc();
                    reply
                }
                Answer::Forward => match self.forward(Transport::Tcp, &query).await {
                    Some(reply) => reply,
                    None => return Ok(()),
                },
                Answer::Ignore => {
                    self.options.stats.dropped.inc();
                    let reason = format!("{} bytes that are no query", query.len());
                    return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
                }
            };
            let written = tokio::time::timeout(idle, write_message(&mut stream, &reply)).await;
            written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        }
    }

    /// A resolver's answer, or "server failure".
    async fn forward(&self, transport: Transport, query: &[u8]) -> Option<Vec<u8>> {
        let answered = match transport {
            Transport::Udp => self.forwarder.udp(query).await,
            Transport::Tcp => self.forwarder.tcp(query).await,
        };
        match answered {
            Ok(reply) => {
                self.options.stats.forwarded.inc();
                Some(reply)
            }
            Err(error) => {
                self.options.stats.failed.inc();
                tracing::debug!(%error, workload = &*self.client.uid, "DNS query not answered");
                message::server_failure(query)
            }
        }
    }
}

async fn send(socket: &UdpSocket, reply: &[u8], to: SocketAddr) {
    if let Err(error) = socket.send_to(reply, to).await {
        // The client is gone, or will ask again.
        tracing::debug!(%error, %to, "DNS reply not sent");
    }
}

/// After an error of a socket of ours, which may well come again at once.
async fn pause(client: &DnsClient, error: &io::Error) {
    tracing::debug!(%error, workload = &*client.uid, "DNS socket");
    tokio::time::sleep(Duration::from_millis(10)).await;
}
