//! The pages: readiness and metrics for others, what is known on loopback.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use http::StatusCode;
use http_body_util::{Either, Full};
use seine_telemetry::http::{self as pages, Request, Response};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::ingress::listener::Protocol;
use crate::shared::Shared;
use crate::tap::{Filter, Watched};

/// Serves all pages.
pub(crate) async fn start(shared: &Arc<Shared>) -> anyhow::Result<()> {
    let config = &shared.config;
    serve(
        shared,
        config.readiness_address,
        |shared, request| match request.uri().path() {
            "/healthz/ready" => shared.readiness.page(),
            _ => pages::not_found(&["/healthz/ready"]),
        },
    )
    .await?;
    serve(
        shared,
        config.metrics_address,
        |shared, request| match request.uri().path() {
            "/metrics" => shared.telemetry.page(),
            _ => pages::not_found(&["/metrics"]),
        },
    )
    .await?;
    let listener = listen(config.admin_address).await?;
    let shared = shared.clone();
    tokio::spawn(pages::serve(listener, move |request| {
        let answer = match request.uri().path() {
            "/tap" => tap(&shared, &request),
            _ => admin(&shared, &request).map(Either::Left),
        };
        async move { answer }
    }));
    Ok(())
}

/// A page that goes on for as long as somebody reads it.
fn tap(shared: &Shared, request: &Request) -> http::Response<Either<Full<Bytes>, Watched>> {
    let refused = |status, why: &str| pages::text(status, format!("{why}\n")).map(Either::Left);
    let filter = match Filter::parse(request.uri().query().unwrap_or_default()) {
        Ok(filter) => filter,
        Err(why) => return refused(StatusCode::BAD_REQUEST, &why),
    };
    match shared.telemetry.tap().watch(filter) {
        Some(watched) => http::Response::new(Either::Right(watched)),
        None => refused(StatusCode::TOO_MANY_REQUESTS, "enough others watch already"),
    }
}

async fn listen(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| format!("listening on {address}"))
}

async fn serve(
    shared: &Arc<Shared>,
    address: SocketAddr,
    page: fn(&Shared, &Request) -> Response,
) -> anyhow::Result<()> {
    let listener = listen(address).await?;
    let shared = shared.clone();
    tokio::spawn(pages::serve(listener, move |request| {
        let answer = page(&shared, &request);
        async move { answer }
    }));
    Ok(())
}

fn admin(shared: &Shared, request: &Request) -> Response {
    match request.uri().path() {
        "/config_dump" => pages::json(&configuration(shared)),
        "/certificates" => pages::json(&certificates(shared)),
        "/healthz/ready" => shared.readiness.page(),
        "/metrics" => shared.telemetry.page(),
        _ => pages::not_found(&[
            "/config_dump",
            "/certificates",
            "/healthz/ready",
            "/metrics",
            "/tap",
        ]),
    }
}

fn configuration(shared: &Shared) -> Value {
    let rules = shared.routes.all();
    let services = shared.store.services();
    let bound = services.iter().filter(|service| shared.serves(service));
    json!({
        "identity": shared.identity.to_string(),
        "services": bound.map(|service| json!({
            "name": service.key.to_string(),
            "policies": service.policies.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })).collect::<Value>(),
        "listeners": shared.listeners.all().iter().map(|listener| json!({
            "name": listener.name,
            "port": listener.port,
            "protocol": match listener.protocol {
                Protocol::Http => "HTTP",
                Protocol::Https(_) => "HTTPS",
                Protocol::Tls(_) => "TLS (Terminate)",
                Protocol::Passthrough => "TLS (Passthrough)",
                Protocol::Tcp => "TCP",
            },
            "hosts": format!("{:?}", listener.hosts),
            "trustedProxies": listener.trusted_proxies,
        })).collect::<Value>(),
        "routes": rules.iter().map(|rule| json!({
            "name": rule.name,
            "listeners": rule.listeners.iter()
                .map(|(listener, hosts)| json!([listener, format!("{hosts:?}")]))
                .collect::<Value>(),
            "parents": rule.parents.iter()
                .map(|(service, port)| json!([service.to_string(), port]))
                .collect::<Value>(),
            "matches": rule.matches.iter().map(|m| format!("{m:?}")).collect::<Vec<_>>(),
            "filters": rule.filters.iter().map(|f| format!("{f:?}")).collect::<Vec<_>>(),
            "backends": rule.backends.iter().map(|backend| json!({
                "service": backend.service.to_string(), "port": backend.port, "weight": backend.weight,
                "refused": backend.refused,
            })).collect::<Value>(),
            "refused": rule.refused,
        })).collect::<Value>(),
    })
}

fn certificates(shared: &Shared) -> Value {
    let status = shared.certificates.status();
    let list = status.iter().map(|certificate| {
        json!({
            "identity": certificate.identity.to_string(),
            "state": certificate.state.as_str(),
            "serial": certificate.serial,
            "secondsLeft": certificate.remaining.map(|left| left.as_secs()),
            "lastError": certificate.last_error,
        })
    });
    list.collect()
}
