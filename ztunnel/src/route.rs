//! From a resolved destination to a connection: plain TCP, one tunnel, or a tunnel within a gateway's.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use futures::future::BoxFuture;
use seine_hbone::{
    Authority, Baggage, ConnectRequest, Connected, Connector, Forwarded, Io, OpenError, Pool,
    Stream, TraceParent, TrustWatch, TunnelKey, WorkloadKind,
};
use seine_identity::{AcceptedIdentities, CertificateManager, Identity};
use seine_telemetry::trace;
use seine_workload::{
    Destination, HBONE_PORT, Target, Transport, Upstream, Waypoint, Workload, WorkloadType,
};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::connection::{ConnectionInfo, Security};
use crate::failure::Failure;
use crate::pod::Pod;
use crate::shared::Shared;
use crate::sockets::Source;
use crate::trust::Trust;

/// What the bytes go into.
#[derive(Debug)]
pub(crate) enum Way {
    /// An unmeshed destination.
    Plain(TcpStream),
    /// A stream of a tunnel; boxed, as it is much larger.
    Tunnel(Box<Stream>),
}

/// Connects to what was chosen, and notes in `info` what that is.
pub(crate) async fn connect(
    shared: &Shared,
    pod: &Pod,
    pool: &Pool,
    destination: &Destination,
    info: &mut ConnectionInfo,
) -> Result<Way, Failure> {
    match destination {
        Destination::Passthrough => {
            info.upstream = Some(info.original);
            plain(shared, pod, info.client, info.original).await
        }
        Destination::Waypoint(waypoint) => to_waypoint(shared, pod, pool, waypoint, info).await,
        Destination::Workload(upstream) => to_workload(shared, pod, pool, upstream, info).await,
    }
}

async fn to_waypoint(
    shared: &Shared,
    pod: &Pod,
    pool: &Pool,
    waypoint: &Waypoint,
    info: &mut ConnectionInfo,
) -> Result<Way, Failure> {
    info.through_waypoint = true;
    info.security = Security::MutualTls;
    info.upstream = Some(waypoint.address);
    info.service.clone_from(&waypoint.service);
    info.destination.workload = waypoint
        .destination
        .clone()
        .or_else(|| Some(waypoint.workload.clone()));
    info.destination.identity = Some(waypoint.workload.identity.clone());
    let key = key(
        shared,
        pod,
        info.client,
        waypoint.address,
        waypoint.identities(),
        None,
    )
    .await?;
    let opened = open(
        pool,
        &key,
        &pod.connector,
        request(info, Authority::from(waypoint.authority)),
    )
    .await?;
    Ok(Way::Tunnel(Box::new(opened)))
}

async fn to_workload(
    shared: &Shared,
    pod: &Pod,
    pool: &Pool,
    upstream: &Upstream,
    info: &mut ConnectionInfo,
) -> Result<Way, Failure> {
    info.service.clone_from(&upstream.service);
    info.destination.workload = Some(upstream.workload.clone());
    match &upstream.transport {
        Transport::Tcp => {
            info.security = Security::Plaintext;
            let to = address(&upstream.target).await?;
            info.upstream = Some(to);
            plain(shared, pod, info.client, to).await
        }
        Transport::Hbone => {
            info.security = Security::MutualTls;
            info.destination.identity = Some(upstream.workload.identity.clone());
            let to = address(&upstream.target).await?;
            info.upstream = Some(to);
            let key = key(
                shared,
                pod,
                info.client,
                SocketAddr::new(to.ip(), HBONE_PORT),
                upstream.identities(),
                None,
            )
            .await?;
            let stream = open(
                pool,
                &key,
                &pod.connector,
                request(info, Authority::from(to)),
            )
            .await?;
            Ok(Way::Tunnel(Box::new(stream)))
        }
        Transport::Gateway {
            gateway,
            address: proxy,
            authority,
            ..
        } => {
            info.security = Security::MutualTls;
            info.destination.identity = Some(upstream.workload.identity.clone());
            info.upstream = Some(*proxy);
            let authority: Authority = authority.parse().map_err(OpenError::from)?;
            let outer = key(
                shared,
                pod,
                info.client,
                *proxy,
                gateway.identity.clone().into(),
                None,
            )
            .await?;
            let connector: Arc<dyn Connector> = Arc::new(ThroughGateway {
                pool: pool.clone(),
                certificates: shared.certificates.clone(),
                trust: shared.trust.clone(),
                handshakes: pod.limits.handshakes().clone(),
                outer,
                connector: pod.connector.clone(),
                request: request(info, authority.clone()),
            });
            // Which workload an inner tunnel ends at is the gateway's choice, for this service and port alone.
            let inner = key(
                shared,
                pod,
                info.client,
                *proxy,
                upstream.identities(),
                Some(&authority),
            )
            .await?;
            let stream = open(pool, &inner, &connector, request(info, authority)).await?;
            Ok(Way::Tunnel(Box::new(stream)))
        }
    }
}

async fn plain(
    shared: &Shared,
    pod: &Pod,
    client: SocketAddr,
    to: SocketAddr,
) -> Result<Way, Failure> {
    let source = pod
        .source_address(shared, client, to.ip())
        .map_or(Source::Any, Source::Own);
    let connected = pod.dialer.connect(to, source).await;
    connected
        .map(Way::Plain)
        .map_err(|source| Failure::Connect { to, source })
}

async fn open(
    pool: &Pool,
    key: &Arc<TunnelKey>,
    connector: &Arc<dyn Connector>,
    request: ConnectRequest,
) -> Result<Stream, Failure> {
    // Boxed: its state is large, and gone once the stream is open.
    let opened = Box::pin(pool.open(key, connector, &request)).await?;
    Ok(opened.stream)
}

/// The tunnels that a stream may share. Without a certificate in force there are none.
async fn key(
    shared: &Shared,
    pod: &Pod,
    client: SocketAddr,
    peer: SocketAddr,
    destinations: AcceptedIdentities,
    within: Option<&Authority>,
) -> Result<Arc<TunnelKey>, Failure> {
    let credentials = shared
        .certificates
        .get(&pod.identity)
        .await
        .map_err(|error| Failure::NoCertificate {
            identity: pod.identity.to_string(),
            reason: error.to_string(),
        })?;
    let source_address = pod
        .source_address(shared, client, peer.ip())
        .unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    // The pod, as its address may have been another's; our certificate, as the other side takes nothing new in a tunnel
    // after the end of the one that it was shown; our trust, as a tunnel made before it changed may be to a peer that is
    // no longer trusted; and for a tunnel within a gateway's, what it leads to.
    let mut hasher = DefaultHasher::new();
    (
        pod.generation,
        credentials.svid().serial(),
        shared.certificates.changes().borrow().bundles,
        within,
    )
        .hash(&mut hasher);
    let generation = hasher.finish();
    Ok(Arc::new(TunnelKey {
        source: pod.identity.clone(),
        destinations,
        peer,
        source_address,
        generation,
    }))
}

fn request(info: &ConnectionInfo, authority: Authority) -> ConnectRequest {
    let host = info
        .service
        .as_ref()
        .map(|service| Box::from(&*service.key.hostname));
    let mut request = ConnectRequest::new(authority);
    request.baggage = info.source.workload.as_deref().map(baggage);
    request.forwarded = Some(Forwarded {
        client: Some(info.client),
        host,
    });
    request.traceparent = trace::traceparent(&info.span).and_then(|text| TraceParent::parse(&text));
    request
}

/// What a workload says of itself to the other side, for its telemetry.
pub(crate) fn baggage(workload: &Workload) -> Baggage {
    let some = |text: &str| (!text.is_empty()).then(|| Box::from(text));
    let kind = match workload.workload_type {
        WorkloadType::Deployment => WorkloadKind::Deployment,
        WorkloadType::CronJob => WorkloadKind::CronJob,
        WorkloadType::Pod => WorkloadKind::Pod,
        WorkloadType::Job => WorkloadKind::Job,
    };
    Baggage {
        cluster: some(&workload.cluster_id),
        namespace: some(&workload.namespace),
        workload: some(&workload.workload_name).map(|name| (kind, name)),
        service: some(&workload.canonical_name),
        version: some(&workload.canonical_revision),
        region: some(&workload.locality.region),
        zone: some(&workload.locality.zone),
    }
}

async fn address(target: &Target) -> Result<SocketAddr, Failure> {
    match target {
        Target::Address(address) => Ok(*address),
        Target::Hostname { name, port } => {
            let unknown = |why: String| {
                Failure::Unavailable(format!("the workload's name {name} is not known: {why}"))
            };
            let mut found = tokio::net::lookup_host((&**name, *port))
                .await
                .map_err(|error| unknown(error.to_string()))?;
            found.next().ok_or_else(|| unknown("no address".to_owned()))
        }
    }
}

/// Makes tunnels within a stream to another network's gateway.
struct ThroughGateway {
    pool: Pool,
    certificates: CertificateManager,
    trust: Trust,
    handshakes: Arc<Semaphore>,
    outer: Arc<TunnelKey>,
    connector: Arc<dyn Connector>,
    request: ConnectRequest,
}

impl Connector for ThroughGateway {
    fn connect<'a>(&'a self, key: &'a TunnelKey) -> BoxFuture<'a, io::Result<Connected>> {
        Box::pin(async move {
            let source: &Identity = &key.source;
            let credentials = self
                .certificates
                .get(source)
                .await
                .map_err(io::Error::other)?;
            let tls = credentials
                .client_config(&key.destinations)
                .map_err(io::Error::other)?;
            let outer = self
                .pool
                .open(&self.outer, &self.connector, &self.request)
                .await;
            Ok(Connected {
                io: Io::from(outer.map_err(io::Error::other)?.stream),
                tls,
                // Never closed.
                turn: self.handshakes.clone().acquire_owned().await.ok(),
            })
        })
    }

    fn watch_trust(&self) -> TrustWatch {
        self.trust.watch()
    }
}
