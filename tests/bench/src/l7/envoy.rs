//! Envoy as a waypoint: HBONE in, HTTP routes, HBONE out, configured by files.
//!
//! The way through it: listener `hbone` ends mutual TLS and CONNECT, listener `routes` reads the requests in it, and listener
//! `originate` opens a CONNECT of its own to the destination's ztunnel. The listeners within are reached in memory.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, SanType};
use seine_lab::ca::LabCa;
use serde_json::{Value, json};

use super::client::VERSION;

/// Where Envoy finds the folder of its files.
const MOUNTED: &str = "/etc/envoy";
const CONFIG: &str = "envoy.json";
const ROUTES: &str = "routes/routes.json";
/// Where HBONE is spoken.
const HBONE: u16 = 15008;

/// The folder with everything that Envoy reads.
pub(super) struct Files {
    folder: PathBuf,
}

impl Files {
    /// Writes all of it: for an Envoy that is this identity, in front of this server.
    pub(super) fn write(
        folder: &Path,
        state: &Path,
        identity: &str,
        server: SocketAddr,
    ) -> Result<Self> {
        fs::create_dir_all(folder.join("routes"))?;
        let files = Self {
            folder: folder.to_owned(),
        };
        let ca = LabCa::read(state)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.try_into()?)];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let (chain, key) = ca.sign(params)?;
        fs::write(files.path("chain.pem"), chain)?;
        fs::write(files.path("key.pem"), key)?;
        fs::write(files.path("roots.pem"), &ca.roots)?;
        files.write_routes(0, 0)?;
        let config = serde_json::to_vec_pretty(&bootstrap(server))?;
        fs::write(files.path(CONFIG), config)?;
        Ok(files)
    }

    /// What runs it, with one worker, in a pod.
    pub(super) fn container(&self, envoy: &Path) -> (Value, Value) {
        let command = json!([
            envoy,
            "--config-path",
            mounted(CONFIG),
            "--concurrency",
            "1",
            "--log-level",
            "warning",
            "--disable-hot-restart",
        ]);
        let container = json!({
            "command": command,
            // What is moved within a mount is seen there.
            "volumeMounts": [{"name": "files", "mountPath": MOUNTED}],
            "readinessProbe": {"tcpSocket": {"port": HBONE}, "periodSeconds": 1},
        });
        let volumes = json!([{"name": "files", "hostPath": {"path": self.folder}}]);
        (container, volumes)
    }

    /// So many routes before the one for all requests, and one whose answers say this version.
    pub(super) fn write_routes(&self, count: usize, version: u32) -> Result<()> {
        let to_server = json!({"cluster": "server", "timeout": "0s"});
        let mut routes: Vec<Value> = (0..count)
            .map(|i| json!({"match": {"path": format!("/r/{i}")}, "route": to_server}))
            .collect();
        routes.push(json!({
            "match": {"path": "/probe"}, "route": to_server,
            "response_headers_to_add": [{"header": {"key": VERSION, "value": version.to_string()}}],
        }));
        routes.push(json!({"match": {"prefix": "/"}, "route": to_server}));
        let resource = json!({
            "@type": "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            "name": "routes",
            "virtual_hosts": [{"name": "web", "domains": ["*"], "routes": routes}],
        });
        let all = json!({"version_info": version.to_string(), "resources": [resource]});
        // It is read when it is moved to its place.
        let new = self.path("routes.new");
        fs::write(&new, serde_json::to_vec(&all)?)?;
        fs::rename(&new, self.path(ROUTES)).context("moving Envoy's routes to their place")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

fn bootstrap(server: SocketAddr) -> Value {
    json!({
        "node": {"id": "bench", "cluster": "bench"},
        "admin": {"address": address(SocketAddr::from(([127, 0, 0, 1], 15000)))},
        "bootstrap_extensions": [{
            "name": "envoy.bootstrap.internal_listener",
            "typed_config": typed("bootstrap.internal_listener.v3.InternalListener", json!({})),
        }],
        "static_resources": {
            "listeners": [hbone(), requests(), originate(server)],
            "clusters": [
                within("routes", json!({})),
                within("originate", json!({"use_downstream_protocol_config": {
                    "http_protocol_options": {}, "http2_protocol_options": {},
                }})),
                tunnels(server.ip()),
            ],
        },
    })
}

/// Mutual TLS and CONNECT end here.
fn hbone() -> Value {
    let tls = json!({"require_client_certificate": true, "common_tls_context": tls()});
    let http = json!({
        "stat_prefix": "hbone",
        "codec_type": "HTTP2",
        "generate_request_id": false,
        "http2_protocol_options": {"allow_connect": true},
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "route_config": {"virtual_hosts": [{"name": "any", "domains": ["*"], "routes": [{
            "match": {"connect_matcher": {}},
            "route": {"cluster": "routes", "timeout": "0s", "upgrade_configs": [
                {"upgrade_type": "CONNECT", "connect_config": {}},
            ]},
        }]}]},
        "http_filters": [router()],
    });
    json!({
        "name": "hbone",
        "address": address(SocketAddr::from(([0, 0, 0, 0], HBONE))),
        "filter_chains": [{
            "transport_socket": {
                "name": "tls",
                "typed_config": typed("transport_sockets.tls.v3.DownstreamTlsContext", tls),
            },
            "filters": [manager(http)],
        }],
    })
}

/// The requests in a tunnel are read here; a line is written for each, as the waypoint does.
fn requests() -> Value {
    let line = "%START_TIME% info access direction=inbound method=%REQ(:METHOD)% path=%REQ(:PATH)% host=%REQ(:AUTHORITY)% \
                protocol=%PROTOCOL% route=%ROUTE_NAME% upstream=%UPSTREAM_HOST% status=%RESPONSE_CODE% bytes_in=%BYTES_RECEIVED% \
                bytes_out=%BYTES_SENT% duration=%DURATION%ms flag=%RESPONSE_FLAGS%\n";
    let log = typed(
        "access_loggers.stream.v3.StdoutAccessLog",
        json!({"log_format": {"text_format_source": {"inline_string": line}}}),
    );
    let http = json!({
        "stat_prefix": "routes",
        "codec_type": "AUTO",
        "generate_request_id": false,
        "access_log": [{"name": "stdout", "typed_config": log}],
        "rds": {"route_config_name": "routes", "config_source": {"path_config_source": {"path": mounted(ROUTES)}}},
        "http_filters": [router()],
    });
    json!({
        "name": "routes",
        "internal_listener": {},
        "filter_chains": [{"filters": [manager(http)]}],
    })
}

/// Tunnels to the destination's ztunnel.
fn tunnels(server: IpAddr) -> Value {
    json!({
        "name": "tunnels",
        "load_assignment": endpoint("tunnels", json!({"address": address(SocketAddr::new(server, HBONE))})),
        "transport_socket": {
            "name": "tls",
            "typed_config": typed("transport_sockets.tls.v3.UpstreamTlsContext", json!({"common_tls_context": tls()})),
        },
        "typed_extension_protocol_options": http_options(json!({
            "explicit_http_config": {"http2_protocol_options": {"allow_connect": true}},
        })),
    })
}

/// Opens a CONNECT for each connection to the server.
fn originate(server: SocketAddr) -> Value {
    let tcp = json!({
        "stat_prefix": "originate",
        "cluster": "tunnels",
        "tunneling_config": {"hostname": server.to_string()},
    });
    json!({
        "name": "originate",
        "internal_listener": {},
        "filter_chains": [{"filters": [{
            "name": "tcp", "typed_config": typed("filters.network.tcp_proxy.v3.TcpProxy", tcp),
        }]}],
    })
}

/// A cluster that is a listener of this Envoy.
fn within(listener: &str, http: Value) -> Value {
    let name = if listener == "originate" {
        "server"
    } else {
        listener
    };
    let address = json!({"address": {"envoy_internal_address": {"server_listener_name": listener, "endpoint_id": name}}});
    let mut cluster = json!({"name": name, "load_assignment": endpoint(name, address)});
    if http != json!({}) {
        cluster["typed_extension_protocol_options"] = http_options(http);
    }
    cluster
}

fn manager(http: Value) -> Value {
    json!({
        "name": "http",
        "typed_config": typed("filters.network.http_connection_manager.v3.HttpConnectionManager", http),
    })
}

fn router() -> Value {
    json!({"name": "envoy.filters.http.router", "typed_config": typed("filters.http.router.v3.Router", json!({}))})
}

fn http_options(options: Value) -> Value {
    let options = typed("upstreams.http.v3.HttpProtocolOptions", options);
    json!({"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options})
}

fn endpoint(cluster: &str, endpoint: Value) -> Value {
    json!({"cluster_name": cluster, "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]})
}

fn address(of: SocketAddr) -> Value {
    json!({"socket_address": {"address": of.ip(), "port_value": of.port()}})
}

fn typed(kind: &str, mut config: Value) -> Value {
    config["@type"] = json!(format!("type.googleapis.com/envoy.extensions.{kind}"));
    config
}

fn tls() -> Value {
    let file = |name: &str| json!({"filename": mounted(name)});
    json!({
        "alpn_protocols": ["h2"],
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [{"certificate_chain": file("chain.pem"), "private_key": file("key.pem")}],
        "validation_context": {
            "trusted_ca": file("roots.pem"),
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"prefix": "spiffe://cluster.local/ns/"}}],
        },
    })
}

fn mounted(name: &str) -> String {
    format!("{MOUNTED}/{name}")
}
