//! A small HTTP/1.1 server for pages about the process: admin, metrics, readiness.
//!
//! These pages are for operators and scrapers, so it takes few connections at a time, no body, and
//! closes whoever sends its headers too slowly.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderValue, StatusCode, header};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::debug;

/// A request to a page; its body is not read.
pub type Request = ::http::Request<()>;
/// A page.
pub type Response = ::http::Response<Full<Bytes>>;

/// Connections served at a time; further ones wait in the backlog.
const MAX_CONNECTIONS: usize = 64;
/// How long a client may take to send its request's head.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves `pages` on `listener` until the future is dropped.
pub async fn serve<F, Fut, B>(listener: TcpListener, pages: F)
where
    F: Fn(Request) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ::http::Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    serve_until(listener, CancellationToken::new(), pages).await;
}

/// The same until `stop`; then what was asked before is still answered.
pub async fn serve_until<F, Fut, B>(listener: TcpListener, stop: CancellationToken, pages: F)
where
    F: Fn(Request) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ::http::Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let pages = Arc::new(pages);
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let next = tokio::select! {
            next = accept(&listener, &permits) => next,
            () = stop.cancelled() => break,
        };
        while connections.try_join_next().is_some() {}
        let (stream, from, permit) = match next {
            Ok(next) => next,
            Err(error) => {
                debug!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let pages = Arc::clone(&pages);
        let stop = stop.clone();
        connections.spawn(async move {
            let service = service_fn(move |request: ::http::Request<Incoming>| {
                let response = pages(request.map(|_| ()));
                async move { Ok::<_, Infallible>(response.await) }
            });
            let mut connection = pin!(
                hyper::server::conn::http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), service)
            );
            let served = tokio::select! {
                served = connection.as_mut() => served,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = served {
                debug!(%error, %from, "a connection to a page ended");
            }
            drop(permit);
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let permit = Arc::clone(permits)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (stream, mut from) = listener.accept().await?;
    from.set_ip(from.ip().to_canonical());
    Ok((stream, from, permit))
}

/// A plain text page.
pub fn text(status: StatusCode, body: String) -> Response {
    page(status, "text/plain; charset=utf-8", body)
}

/// A JSON page, indented for people.
pub fn json(value: &serde_json::Value) -> Response {
    page(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

/// The registry in the OpenMetrics text format.
pub fn metrics(registry: &Registry) -> Response {
    let mut body = String::new();
    match prometheus_client::encoding::text::encode(&mut body, registry) {
        Ok(()) => page(
            StatusCode::OK,
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            body,
        ),
        Err(error) => text(
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("metrics: {error}\n"),
        ),
    }
}

/// 404 with the pages that there are.
pub fn not_found(pages: &[&str]) -> Response {
    text(
        StatusCode::NOT_FOUND,
        format!("no such page; there are:\n{}\n", pages.join("\n")),
    )
}

/// The value of a query parameter, not decoded.
pub fn query<'a>(request: &'a Request, name: &str) -> Option<&'a str> {
    request
        .uri()
        .query()?
        .split('&')
        .find_map(|pair| match pair.split_once('=') {
            Some((key, value)) if key == name => Some(value),
            _ => None,
        })
}

fn page(status: StatusCode, content_type: &'static str, body: String) -> Response {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn pages_are_served_and_garbage_is_refused_without_ending_the_server() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(serve(listener, |request| async move {
            match request.uri().path() {
                "/hello" => text(
                    StatusCode::OK,
                    query(&request, "name").unwrap_or("-").to_owned(),
                ),
                _ => not_found(&["/hello"]),
            }
        }));
        let exchange = |sent: &'static str| async move {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            stream.write_all(sent.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let close = "GET /hello?name=seine HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        assert!(
            exchange("\u{1}\u{2}garbage\r\n\r\n")
                .await
                .starts_with("HTTP/1.1 400")
        );
        assert!(exchange(close).await.ends_with("\r\n\r\nseine"));
        let missing = "GET /other HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        assert!(exchange(missing).await.starts_with("HTTP/1.1 404"));
        server.abort();
    }

    /// What asks a process to end is answered by the process that ends.
    #[tokio::test]
    async fn what_was_asked_before_the_end_is_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let asked = stop.clone();
        let server = tokio::spawn(serve_until(listener, stop, move |_| {
            asked.cancel();
            async {
                tokio::time::sleep(Duration::from_millis(50)).await;
                text(StatusCode::OK, "ending".to_owned())
            }
        }));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream
            .write_all(b"POST /drain HTTP/1.1\r\nhost: x\r\n\r\n")
            .await
            .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("\r\n\r\nending"), "{answer}");
        server.await.unwrap();
    }
}
