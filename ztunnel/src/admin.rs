//! Pages for operators: admin on loopback, readiness, metrics.
//!
//! No page shows a key. During a hand-over the old and the new proxy share the ports (`SO_REUSEPORT`); the old one
//! closes its own when it begins to drain.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::SystemTime;

use http::uri::Authority;
use http::{Method, StatusCode, header};
use seine_telemetry::http::{
    Request, Response, json, metrics, not_found, query, serve_until, text,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::connection::{Direction, Live, Security};
use crate::drain::Lifetime;
use crate::pods::Pods;
use crate::shared::Shared;
use crate::sockets::listen_shared;

const PAGES: [&str; 6] = [
    "/config_dump",
    "/certificates",
    "/connections",
    "/stats",
    "/logging?level=DIRECTIVES",
    "POST /drain",
];

/// What the pages show and change.
#[derive(Clone)]
pub struct Admin {
    /// Everything else.
    pub shared: Arc<Shared>,
    /// The pods.
    pub pods: Arc<Pods>,
    /// The log, whose level can be changed.
    pub log: Option<Arc<seine_telemetry::Telemetry>>,
    /// Cancelled by `POST /drain`.
    pub drain: CancellationToken,
}

impl Admin {
    /// Serves admin, metrics and readiness for `life`. A port that can't be bound costs its pages, not the mesh's
    /// traffic.
    pub fn start(&self, life: &Lifetime) {
        let config = &self.shared.config;
        let admin = self.clone();
        spawn("admin", config.admin_address, life, move |request| {
            admin.page(&request)
        });
        let shared = self.shared.clone();
        spawn(
            "metrics",
            config.metrics_address,
            life,
            move |request| match request.uri().path() {
                "/metrics" | "/stats/prometheus" => metrics(shared.telemetry.registry()),
                _ => not_found(&["/metrics"]),
            },
        );
        let shared = self.shared.clone();
        spawn(
            "readiness",
            config.readiness_address,
            life,
            move |request| match request.uri().path() {
                "/healthz/ready" => shared.readiness.page(),
                _ => not_found(&["/healthz/ready"]),
            },
        );
    }

    /// One page of the admin port.
    pub fn page(&self, request: &Request) -> Response {
        if let Some(why) = from_a_browser(request) {
            return text(StatusCode::FORBIDDEN, format!("not for browsers: {why}\n"));
        }
        match (request.method(), request.uri().path()) {
            (_, "/config_dump") => json(&self.config_dump()),
            (_, "/certificates") => json(&self.certificates()),
            (_, "/connections") => json(
                &self
                    .shared
                    .connections
                    .list()
                    .iter()
                    .map(|live| connection(live))
                    .collect(),
            ),
            (_, "/stats" | "/metrics") => metrics(self.shared.telemetry.registry()),
            (_, "/logging") => self.logging(request),
            (&Method::POST, "/drain") => {
                info!("drain was asked for on the admin port");
                self.drain.cancel();
                text(StatusCode::OK, "draining\n".to_owned())
            }
            (_, "/drain") => text(StatusCode::METHOD_NOT_ALLOWED, "use POST\n".to_owned()),
            _ => not_found(&PAGES),
        }
    }

    fn logging(&self, request: &Request) -> Response {
        let Some(log) = &self.log else {
            return text(
                StatusCode::NOT_FOUND,
                "the log is not this program's\n".to_owned(),
            );
        };
        let Some(level) = query(request, "level") else {
            return text(StatusCode::OK, log.level() + "\n");
        };
        // A level decides what is logged, not what is done, so GET may change it, too, as with the peer's tools.
        match log.set_level(&level.replace("%3D", "=").replace("%2C", ",")) {
            Ok(()) => text(StatusCode::OK, log.level() + "\n"),
            Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        }
    }

    fn config_dump(&self) -> Value {
        let store = &self.shared.store;
        let pods = self.pods.list();
        let pods = pods.iter().map(|pod| {
            json!({
                "uid": pod.info.uid, "name": pod.info.name, "namespace": pod.info.namespace,
                "identity": pod.identity.to_string(),
                "workload": pod.workload(&self.shared).map(|workload| workload.uid.to_string()),
            })
        });
        let mut workloads = store.workloads();
        workloads.sort_by(|a, b| a.uid.cmp(&b.uid));
        let mut services = store.services();
        services.sort_by(|a, b| a.key.cmp(&b.key));
        let mut policies = store.policies();
        policies.sort_by(|a, b| a.key.cmp(&b.key));
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "node": self.shared.config.node,
            "controlPlane": control_plane(&self.shared.control_plane.borrow()),
            "pods": pods.collect::<Value>(),
            "workloads": workloads.iter().map(|workload| json!({
                "uid": &*workload.uid, "name": &*workload.name, "namespace": &*workload.namespace,
                "addresses": workload.addresses.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "network": &*workload.network, "node": &*workload.node,
                "identity": workload.identity.to_string(),
                "protocol": format!("{:?}", workload.tunnel_protocol),
                "healthy": workload.healthy,
                "waypoint": workload.waypoint.as_ref().map(|waypoint| waypoint.destination.to_string()),
                "policies": workload.policies.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "services": workload.services.iter().map(|(key, _)| key.to_string()).collect::<Vec<_>>(),
                "workloadType": workload.workload_type.as_str(), "workloadName": &*workload.workload_name,
            })).collect::<Value>(),
            "services": services.iter().map(|service| json!({
                "namespace": &*service.key.namespace, "hostname": &*service.key.hostname, "name": &*service.name,
                "addresses": service.addresses.iter().map(|a| a.block.to_string()).collect::<Vec<_>>(),
                "ports": service.ports.iter().map(|p| json!([p.service_port, p.target_port])).collect::<Vec<_>>(),
                "waypoint": service.waypoint.as_ref().map(|waypoint| waypoint.destination.to_string()),
                "weightedWaypoints": service.weighted_waypoints.iter()
                    .map(|waypoint| json!([waypoint.destination.destination.to_string(), waypoint.weight]))
                    .collect::<Value>(),
                "endpoints": store.endpoints(&service.key).iter().map(|w| w.uid.to_string()).collect::<Vec<_>>(),
            })).collect::<Value>(),
            "policies": policies.iter().map(|policy| json!({
                "name": policy.key.to_string(), "scope": format!("{:?}", policy.scope),
                "action": format!("{:?}", policy.action), "dryRun": policy.dry_run,
                "rules": policy.rules.iter().map(|rule| format!("{rule:?}")).collect::<Vec<_>>(),
            })).collect::<Value>(),
        })
    }

    fn certificates(&self) -> Value {
        let status = self.shared.certificates.status();
        let list = status.iter().map(|certificate| {
            json!({
                "identity": certificate.identity.to_string(),
                "state": certificate.state.as_str(),
                "serial": certificate.serial,
                "notBefore": certificate.not_before.map(seconds),
                "notAfter": certificate.not_after.map(seconds),
                "secondsLeft": certificate.remaining.map(|left| left.as_secs()),
                "nextAttempt": seconds(certificate.next_attempt),
                "lastError": certificate.last_error,
            })
        });
        list.collect()
    }
}

/// What gives away a page of another origin, opened in a browser on this host: what it posts has an `Origin`, and what it
/// reads is of its own host's name, which it lets its DNS lead here.
fn from_a_browser(request: &Request) -> Option<&'static str> {
    if request.headers().contains_key(header::ORIGIN) {
        return Some("the request has an Origin");
    }
    let host = request.headers().get(header::HOST);
    let host = host.and_then(|host| host.to_str().ok()?.parse::<Authority>().ok());
    let host = host.as_ref().map(Authority::host).unwrap_or_default();
    let address: Result<IpAddr, _> = host.trim_matches(['[', ']']).parse();
    let loopback = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    (!loopback).then_some("its Host is neither localhost nor a loopback address")
}

fn control_plane(status: &seine_xds::Status) -> Value {
    json!({
        "connection": format!("{:?}", status.connection),
        "waitingFor": status.waiting_for,
        "refused": status.refused,
    })
}

fn connection(live: &Live) -> Value {
    let info = &live.info;
    json!({
        "id": live.id,
        "direction": if info.direction == Direction::Outbound { "outbound" } else { "inbound" },
        "security": if info.security == Security::MutualTls { "mutual_tls" } else { "none" },
        "pod": format!("{:?}", info.pod),
        "client": info.client.to_string(),
        "original": info.original.to_string(),
        "upstream": info.upstream.map(|upstream| upstream.to_string()),
        "sourceIdentity": info.source.identity.as_ref().map(ToString::to_string),
        "destinationIdentity": info.destination.identity.as_ref().map(ToString::to_string),
        "service": info.service.as_ref().map(|service| service.key.to_string()),
        "because": info.because.as_ref().map(ToString::to_string),
        "opened": seconds(live.opened),
        "bytesSent": live.from_client(),
        "bytesReceived": live.to_client(),
    })
}

/// Seconds since 1970.
fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

fn spawn(
    what: &'static str,
    address: SocketAddr,
    life: &Lifetime,
    page: impl Fn(Request) -> Response + Send + Sync + 'static,
) {
    let listener = match listen_shared(address) {
        Ok(listener) => listener,
        Err(error) => return warn!(what, %address, %error, "the pages are not served"),
    };
    let page = Arc::new(page);
    // On a thread of its own: a page of a large mesh takes a second to write.
    let served = serve_until(listener, life.stop().clone(), move |request| {
        let page = page.clone();
        async move {
            let written = tokio::task::spawn_blocking(move || page(request)).await;
            written.unwrap_or_else(|error| {
                text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))
            })
        }
    });
    let cut = life.cut().clone();
    life.spawn(async move {
        tokio::select! {
            () = served => {}
            () = cut.cancelled() => {}
        }
    });
}
