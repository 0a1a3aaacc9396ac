//! Ports that are open to the outside: each that has a listener, as long as it has one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use hyper::Request;
use hyper::body::Incoming;
use seine_hbone::DrainSignal;
use seine_telemetry::{Lines, limited};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::hello::{self, Rewound};
use super::listener::{Listener, Protocol};
use super::{Door, forwarded, passthrough};
use crate::bind::{Bound, First, unmapped};
use crate::serve::{self, MAX_HANDSHAKES};
use crate::shared::{Shared, Worker, Workers};

/// Of what strangers cause.
static LINES: Lines = Lines::new();
/// Connections at a time; further ones wait at the port.
const MAX_CONNECTIONS: usize = 16_384;
/// How long a handshake may take, with the wait for its turn.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// After which time a port that could not be opened is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Opens and closes ports, until `stop`.
pub(crate) async fn run(
    shared: Arc<Shared>,
    workers: Arc<Workers>,
    drain: DrainSignal,
    stop: CancellationToken,
) {
    let mut changes = shared.listeners.changed();
    let limits = Arc::new(Limits {
        connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        handshakes: Semaphore::new(MAX_HANDSHAKES),
    });
    let mut open: BTreeMap<u16, CancellationToken> = BTreeMap::new();
    loop {
        changes.mark_unchanged();
        let ports = shared.listeners.ports();
        open.retain(|port, accepting| {
            let stays = ports.contains(port);
            if !stays {
                info!(port, "no listener is left: the port is closed");
                accepting.cancel();
            }
            stays
        });
        let mut missing = false;
        for port in ports {
            if open.contains_key(&port) {
                continue;
            }
            let address = SocketAddr::new(shared.config.listen.ip(), port);
            match TcpListener::bind(address).await {
                Ok(listener) => {
                    info!(port, "listening");
                    let accepting = stop.child_token();
                    open.insert(port, accepting.clone());
                    let (home, workers) = (workers.home(), workers.clone());
                    let (limits, drain, own) = (limits.clone(), drain.clone(), home.clone());
                    home.listen(&shared.tasks, listener, |listener| {
                        accept(workers, own, listener, limits, drain, accepting)
                    });
                }
                Err(error) => {
                    missing = true;
                    limited!(LINES, "bind", warn: %address, %error, "a listener's port can't be opened");
                }
            }
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN), if missing => {}
            () = stop.cancelled() => return,
        }
    }
}

struct Limits {
    connections: Arc<Semaphore>,
    handshakes: Semaphore,
}

async fn accept(
    workers: Arc<Workers>,
    home: Arc<Worker>,
    listener: TcpListener,
    limits: Arc<Limits>,
    drain: DrainSignal,
    stop: CancellationToken,
) {
    loop {
        let accepted = async {
            let permit = limits.connections.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            accepted = accepted => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((tcp, peer)) => {
                let (limits, drain) = (limits.clone(), drain.clone());
                let place = workers.for_tunnel(&home);
                place.serve(
                    &home,
                    &home.own().tasks,
                    tcp,
                    move |place, tcp| async move {
                        let shared = place.own().clone();
                        connection(shared, tcp, unmapped(peer), &limits, drain).await;
                        drop(permit);
                    },
                );
            }
            Err(error) => {
                limited!(LINES, "accept", warn: %error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(
    shared: Arc<Shared>,
    tcp: TcpStream,
    peer: SocketAddr,
    limits: &Limits,
    drain: DrainSignal,
) {
    let Ok(local) = tcp.local_addr().map(unmapped) else {
        return;
    };
    // Fails only for a connection that is gone already, which the first read will tell.
    let _ = tcp.set_nodelay(true);
    let Some(port) = shared.listeners.port(local.port()) else {
        return;
    };
    let bound = |tls: Option<Arc<Listener>>, certificate| {
        let listener = port.any()?;
        let bound = Bound {
            service: shared.store.service(&listener.service)?,
            port: local.port(),
            destination: local,
            pod: None,
            first: First {
                identity: None,
                address: peer,
            },
            door: Some(Door {
                port: local.port(),
                tls,
                certificate,
            }),
        };
        Some((Arc::new(bound), listener.trusted_proxies))
    };
    if !port.is_tls() {
        let Some((bound, trusted)) = bound(None, None) else {
            return no_service(&shared, peer);
        };
        // The control plane lets no other be at its port.
        let tcp_listener = port
            .any()
            .filter(|any| matches!(any.protocol, Protocol::Tcp));
        if let Some(listener) = tcp_listener {
            return passthrough::carry(&shared, &bound, listener, "", tcp).await;
        }
        let of_request = move |request: &mut Request<Incoming>| marked(&bound, trusted, request);
        return serve::http(shared, peer, of_request, tcp, drain).await;
    }
    let begun = match timeout(HANDSHAKE, begin(&port, tcp, limits)).await {
        Ok(Ok(begun)) => begun,
        Ok(Err(why)) => return refused(&shared, peer, &why),
        Err(_) => return refused(&shared, peer, "the handshake took too long"),
    };
    let (Begun::Http(listener, _) | Begun::Ended(listener, ..) | Begun::Passed(listener, ..)) =
        &begun;
    let certificate = begun.certificate();
    let Some((bound, trusted)) = bound(Some(listener.clone()), certificate) else {
        return no_service(&shared, peer);
    };
    let stream = match begun {
        Begun::Http(_, stream) => stream,
        Begun::Ended(listener, host, stream) => {
            return passthrough::carry(&shared, &bound, &listener, &host, stream).await;
        }
        Begun::Passed(listener, host, stream) => {
            return passthrough::carry(&shared, &bound, &listener, &host, stream).await;
        }
    };
    let of_request = move |request: &mut Request<Incoming>| marked(&bound, trusted, request);
    serve::http(shared, peer, of_request, stream, drain).await;
}

type Tls = tokio_rustls::server::TlsStream<Rewound>;

/// What became of a connection that began with TLS.
enum Begun {
    /// HTTP within it.
    Http(Arc<Listener>, Box<Tls>),
    /// What is said within it, for the host that the client asks for.
    Ended(Arc<Listener>, String, Box<Tls>),
    /// All of it, for the host that the client asks for.
    Passed(Arc<Listener>, String, Rewound),
}

impl Begun {
    /// What backends are told of the client's certificate.
    fn certificate(&self) -> Option<HeaderValue> {
        let Self::Http(listener, stream) = self else {
            return None;
        };
        let (_, connection) = stream.get_ref();
        let clients = listener.clients.as_ref()?;
        clients.told(connection.peer_certificates()?)
    }
}

/// The listener that the client asks for by name.
async fn begin(
    port: &super::listeners::Port,
    mut tcp: TcpStream,
    limits: &Limits,
) -> Result<Begun, String> {
    let text = |error: std::io::Error| error.to_string();
    let hello = hello::read(&mut tcp).await.map_err(text)?;
    let Some(listener) = port.taking(&hello.host) else {
        // Where nothing but TLS that is passed on comes in, any word would be ours and not the host's. A client may be gone already.
        if port.ends_tls() {
            let _ = tcp.write_all(&hello::UNRECOGNIZED_NAME).await;
        }
        return Err(format!("no listener is for {:?}", hello.host));
    };
    let stream = Rewound::new(hello.bytes, tcp);
    let Some(config) = listener.protocol.tls() else {
        return Ok(Begun::Passed(listener.clone(), hello.host, stream));
    };
    let _turn = limits.handshakes.acquire().await;
    let acceptor = TlsAcceptor::from(config.clone());
    let stream = Box::new(acceptor.accept(stream).await.map_err(text)?);
    Ok(match listener.protocol {
        Protocol::Https(_) => Begun::Http(listener.clone(), stream),
        _ => Begun::Ended(listener.clone(), hello.host, stream),
    })
}

/// For whom a request is made, which its headers then say, too.
fn marked(bound: &Arc<Bound>, trusted: usize, request: &mut Request<Incoming>) -> Arc<Bound> {
    let scheme = bound.door.as_ref().map_or("http", Door::scheme);
    let peer = bound.first.address;
    let client = forwarded::mark(request.headers_mut(), peer, scheme, trusted);
    if client == peer {
        return bound.clone();
    }
    let mut bound = Bound::clone(bound);
    bound.first.address = client;
    Arc::new(bound)
}

fn refused(shared: &Shared, peer: SocketAddr, why: &str) {
    shared.telemetry.refused("handshake");
    limited!(LINES, "handshake", info: %peer, flag = "TLS_FAILURE", why, "a connection is refused");
}

/// Its policies are found by it.
fn no_service(shared: &Shared, peer: SocketAddr) {
    shared.telemetry.refused("no-service");
    limited!(
        LINES, "no-service",
        warn: %peer, "a connection is refused: the Gateway's own Service is not known, and so aren't its policies"
    );
}
