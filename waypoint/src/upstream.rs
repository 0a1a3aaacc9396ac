//! Connections to backends: HTTP over a stream to the destination's proxy, or over plain TCP to one that is not meshed.
//!
//! A connection is for one client's identity and address alone, since the destination judges whom its stream was opened
//! for; requests of others never share it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::Version;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use seine_hbone::{
    Authority, ConnectRequest, Connected, Connector, Forwarded, Io, Pool, ProxyKind, TraceParent,
    TunnelKey,
};
use seine_identity::{CertificateManager, Identity};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::backend_tls::{BackendTls, Within};
use crate::balance::InFlight;
use crate::bind::First;
use crate::body::Outgoing;
use crate::connections::Connection;
use crate::endpoint::{self, Endpoint, Tunnel, Wanted};
use crate::failure::{Failure, Overload};
use crate::idle::{IDLE, IdleConnections, Pooled, Sender};
use crate::shared::Shared;
use crate::trace;
use crate::traffic::{Backend, Traffic};

/// How long a backend that is not meshed may take to accept.
const CONNECT: Duration = Duration::from_secs(5);
/// How long one that is closed for another may take to end.
const CLOSING: Duration = Duration::from_secs(1);
/// How many endpoints are tried.
const ATTEMPTS: usize = 3;

type Request = http::Request<Outgoing>;
type Response = http::Response<Incoming>;
/// A failure, and the request where the backend has certainly not seen it.
type Unanswered = (Failure, Option<Box<Request>>);

/// What a connection is opened with: the generation of [`Key`], and the trace of who needs it first.
type Opening = (u64, Option<TraceParent>);

/// What requests must have in common to share a connection.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    address: SocketAddr,
    tunnel: Option<Tunnel>,
    /// Of clients without an identity all: the destination judges this proxy, and is told of no other.
    first: Option<(Identity, IpAddr)>,
    two: bool,
    /// That it speaks TLS itself.
    tls: Option<Arc<BackendTls>>,
    /// Of our certificate and trust.
    generation: u64,
}

/// The connections to backends of a thread.
pub struct Upstreams {
    idle: IdleConnections,
    tunnels: Pool,
    connector: Arc<dyn Connector>,
    /// Swept together with the connections.
    traffic: Arc<Traffic>,
}

impl Upstreams {
    /// None yet. Starts a task, so it has to be called within a tokio runtime.
    pub(crate) fn new(
        tunnels: Pool,
        certificates: CertificateManager,
        traffic: Arc<Traffic>,
    ) -> Arc<Self> {
        let connector = Arc::new(Dial { certificates });
        Self::with(IdleConnections::default(), tunnels, connector, traffic)
    }

    /// The same for another thread.
    pub(crate) fn beside(&self) -> Arc<Self> {
        Self::with(
            self.idle.beside(),
            Pool::new(self.tunnels.settings().clone()),
            self.connector.clone(),
            self.traffic.clone(),
        )
    }

    fn with(
        idle: IdleConnections,
        tunnels: Pool,
        connector: Arc<dyn Connector>,
        traffic: Arc<Traffic>,
    ) -> Arc<Self> {
        let upstreams = Arc::new(Self {
            idle,
            tunnels,
            connector,
            traffic,
        });
        let swept = Arc::downgrade(&upstreams);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(IDLE / 4).await;
                let Some(upstreams) = swept.upgrade() else {
                    return;
                };
                upstreams.traffic.sweep();
                upstreams.idle.sweep();
            }
        });
        upstreams
    }

    /// Sends a request to a service's backend and waits for the head of the answer. Where an endpoint can't be
    /// reached, another one is tried. `seen` is the last one; those to `avoid` are asked if there are no others.
    pub(crate) async fn send(
        &self,
        shared: &Shared,
        to: &Wanted<'_>,
        mut request: Request,
        avoid: &[Arc<str>],
        seen: &mut Option<Endpoint>,
    ) -> Result<(Response, InFlight), Failure> {
        let upload = request.body().upload();
        let (backend, outlier) = (&to.backend, to.backend.rules().policy.outlier);
        let mut slot = backend.slot().await?;
        let mut tried: Vec<Arc<str>> = Vec::new();
        let mut last: Option<Failure> = None;
        loop {
            let avoided = [avoid, &tried].concat();
            let chosen = endpoint::choose(shared, to, &avoided);
            let endpoint = match chosen.or_else(|_| endpoint::choose(shared, to, &tried)) {
                Ok(endpoint) => endpoint,
                // The failure of the last endpoint says more than that there is no further one.
                Err(error) => return Err(last.unwrap_or(error)),
            };
            *seen = Some(endpoint.clone());
            let held = std::mem::take(&mut slot);
            let mut load = backend.loads.begin(endpoint.address, &upload, held);
            let mut span = trace::attempt(&to.span, &endpoint, avoided.len(), &mut request);
            let answer = self.attempt(shared, &endpoint, to, request).await;
            let answer = answer.map_err(|unanswered| match upload.failure() {
                Some(failure) => (failure, None),
                None => unanswered,
            });
            span.end(answer.as_ref().map_err(|(failure, _)| failure));
            load.keep(span);
            match &answer {
                Ok(response) => {
                    upload.answered();
                    let (loads, status) = (&backend.loads, response.status());
                    let count = || to.count(shared);
                    loads.answered(endpoint.address, &load, status, &outlier, count);
                }
                // A client doesn't decide which backends are held to be failing.
                Err((failure, _)) if failure.is_of_backend() && !load.was_client_slow() => {
                    let loads = &backend.loads;
                    loads.failed(endpoint.address, &outlier, || to.count(shared));
                }
                Err(_) => {}
            }
            match answer {
                Ok(response) => return Ok((response, load)),
                Err((failure, Some(unsent))) if tried.len() + 1 < ATTEMPTS => {
                    request = *unsent;
                    tried.push(endpoint.uid);
                    last = Some(failure);
                    slot = load.into_slot();
                }
                Err((failure, _)) => return Err(failure),
            }
        }
    }

    async fn attempt(
        &self,
        shared: &Shared,
        endpoint: &Endpoint,
        to: &Wanted<'_>,
        mut request: Request,
    ) -> Result<Response, Unanswered> {
        let (first, tls) = (to.first, to.tls);
        let two = request.version() == Version::HTTP_2;
        let generation = match generation(shared).await {
            Ok(generation) => generation,
            Err(failure) => return Err((failure, None)),
        };
        let key = Key {
            address: endpoint.address,
            tunnel: endpoint.tunnel.clone(),
            first: (first.identity.clone()).map(|identity| (identity, first.address.ip())),
            two,
            tls: tls.cloned(),
            generation,
        };
        // One that was idle may have been closed by its other end at this moment: then a new one is made.
        while let Some(sender) = self.checkout(&to.backend, &key) {
            match self.exchange(&key, sender, request).await {
                Err((_, Some(unsent))) => request = *unsent,
                answered => return answered,
            }
        }
        let trace = shared.config.otlp_endpoint.as_ref();
        let trace = trace.and_then(|_| request.headers().get("traceparent"));
        let trace = trace.and_then(|value| TraceParent::parse(value.to_str().ok()?));
        let opening = (generation, trace);
        let room = match self.room(&to.backend).await {
            Ok(room) => room,
            Err(failure) => return Err((failure, None)),
        };
        let of = room.as_ref().map(|room| room.of.clone());
        let connected = self
            .connect(shared, endpoint, first, (&key, room), opening)
            .await;
        let sender = match connected {
            Ok(sender) => sender,
            Err(failure) => {
                let unsent = failure.left_no_trace().then(|| Box::new(request));
                return Err((failure, unsent));
            }
        };
        self.exchange(&key, (sender, of), request).await
    }

    /// Room for a connection to a service's endpoints, where their number has a limit: an idle one is closed for it.
    pub(crate) async fn room(&self, backend: &Backend) -> Result<Option<Connection>, Failure> {
        let Some(all) = backend.rules().connections.clone() else {
            return Ok(None);
        };
        if let Some(room) = all.take() {
            return Ok(Some(room));
        }
        let refused = || Failure::Overloaded(Overload::Connections(all.max()));
        if !self.idle.close_oldest(&all) {
            return Err(refused());
        }
        let room = timeout(CLOSING, all.next()).await;
        room.map(Some).map_err(|_| refused())
    }

    /// A connection that waits: one of this thread's, unless there may be no more than there are.
    fn checkout(&self, backend: &Backend, key: &Key) -> Option<Pooled> {
        let own = self.idle.checkout(key);
        own.or_else(|| {
            let full = backend
                .rules()
                .connections
                .as_ref()
                .is_some_and(|all| all.is_full());
            full.then(|| self.idle.checkout_anywhere(key)).flatten()
        })
    }

    async fn exchange(
        &self,
        key: &Key,
        (sender, of): Pooled,
        request: Request,
    ) -> Result<Response, Unanswered> {
        let (answer, sender) = match sender {
            Sender::One(mut sender) => {
                let answer = sender.try_send_request(request).await;
                (answer, Sender::One(sender))
            }
            Sender::Two(mut sender) => {
                // One that others share is in the pool while it is used.
                self.idle.put_back(key, (Sender::Two(sender.clone()), of));
                return sender.try_send_request(request).await.map_err(failed);
            }
        };
        let response = answer.map_err(failed)?;
        // It is ready again only when the answer's body was read.
        self.idle.put_back(key, (sender, of));
        Ok(response)
    }

    async fn connect(
        &self,
        shared: &Shared,
        endpoint: &Endpoint,
        first: &First,
        (key, room): (&Key, Option<Connection>),
        opening: Opening,
    ) -> Result<Sender, Failure> {
        let mut io = self.open(shared, endpoint, first, opening).await?;
        if let Some(tls) = &key.tls {
            let to = endpoint.address;
            let within = if key.two { Within::Two } else { Within::One };
            let over = tls.over(io, within).await;
            io = over.map_err(|source| Failure::Connect { to, source })?;
        }
        let io = TokioIo::new(io);
        if key.two {
            let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                .handshake(io)
                .await
                .map_err(Failure::Upstream)?;
            // Its end is seen by whoever uses it.
            tokio::spawn(async move { drop((connection.await, room)) });
            return Ok(Sender::Two(sender));
        }
        let (sender, connection) = http1::handshake(io).await.map_err(Failure::Upstream)?;
        tokio::spawn(async move { drop((connection.with_upgrades().await, room)) });
        Ok(Sender::One(sender))
    }

    /// Bytes to an endpoint, on behalf of a client.
    pub(crate) async fn open(
        &self,
        shared: &Shared,
        endpoint: &Endpoint,
        first: &First,
        (generation, trace): Opening,
    ) -> Result<Io, Failure> {
        let to = endpoint.address;
        let Some(tunnel) = &endpoint.tunnel else {
            let timed_out = || io::Error::new(io::ErrorKind::TimedOut, "no answer");
            let connected = timeout(CONNECT, TcpStream::connect(to)).await;
            let connected = connected.unwrap_or_else(|_| Err(timed_out()));
            let stream = connected.map_err(|source| Failure::Connect { to, source })?;
            return Ok(Io::from(stream));
        };
        let key = Arc::new(TunnelKey {
            source: shared.identity.clone(),
            destinations: tunnel.peers.clone(),
            peer: tunnel.at,
            source_address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            generation,
        });
        let mut request = ConnectRequest::new(Authority::from(tunnel.asks));
        request.forwarded = Some(Forwarded {
            client: Some(first.address),
            host: Some((&*endpoint.service.key.hostname).into()),
        });
        request.traceparent = trace;
        request.proxy_kind = Some(match shared.config.ingress {
            false => ProxyKind::Waypoint,
            true => ProxyKind::Gateway,
        });
        request.first_client.clone_from(&first.identity);
        let opened = Box::pin(self.tunnels.open(&key, &self.connector, &request)).await?;
        Ok(Io::from(opened.stream))
    }
}

fn failed(mut error: hyper::client::conn::TrySendError<Request>) -> Unanswered {
    let unsent = error.take_message().map(Box::new);
    (Failure::Upstream(error.into_error()), unsent)
}

/// Tells connections apart by our certificate and our trust when they were made.
pub(crate) async fn generation(shared: &Shared) -> Result<u64, Failure> {
    let credentials = shared
        .certificates
        .get(&shared.identity)
        .await
        .map_err(|error| Failure::NoCertificate {
            identity: shared.identity.to_string(),
            reason: error.to_string(),
        })?;
    let mut hasher = DefaultHasher::new();
    (
        credentials.svid().serial(),
        shared.certificates.changes().borrow().bundles,
    )
        .hash(&mut hasher);
    Ok(hasher.finish())
}

/// Makes tunnels from this pod, as this waypoint.
struct Dial {
    certificates: CertificateManager,
}

impl Connector for Dial {
    fn connect<'a>(
        &'a self,
        key: &'a TunnelKey,
    ) -> Pin<Box<dyn Future<Output = io::Result<Connected>> + Send + 'a>> {
        Box::pin(async move {
            let credentials = self.certificates.get(&key.source).await;
            let credentials = credentials.map_err(io::Error::other)?;
            let tls = credentials
                .client_config(&key.destinations)
                .map_err(io::Error::other)?;
            Ok(Connected {
                io: Io::from(TcpStream::connect(key.peer).await?),
                tls,
                turn: None,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connections::Connections;
    use tokio::io::duplex;

    async fn one() -> http1::SendRequest<Outgoing> {
        let (near, far) = duplex(1024);
        let (mut sender, connection) = http1::handshake(TokioIo::new(near)).await.unwrap();
        tokio::spawn(async move { drop((connection.await, far)) });
        sender.ready().await.unwrap();
        sender
    }

    #[tokio::test]
    async fn what_waits_at_another_thread_is_used_or_closed_where_there_may_be_no_more() {
        let key = Key {
            address: "10.0.0.1:80".parse().unwrap(),
            tunnel: None,
            first: None,
            two: false,
            tls: None,
            generation: 0,
        };
        let limit = Arc::new(Connections::new(1));
        let permit = limit.take().unwrap();
        assert!(limit.is_full());
        let here = IdleConnections::default();
        let there = here.beside();
        there.put_back(&key, (Sender::One(one().await), Some(limit.clone())));
        assert!(here.checkout(&key).is_none());
        let pooled = here.checkout_anywhere(&key).unwrap();
        assert!(there.checkout(&key).is_none());
        here.put_back(&key, pooled);
        let other = Arc::new(Connections::new(1));
        assert!(!there.close_oldest(&other), "it is of another limit");
        assert!(there.close_oldest(&limit));
        assert!(here.checkout(&key).is_none());
        drop(permit);
        assert!(!limit.is_full());
    }
}
