//! The application behind the proxies: small answers, long ones, and a unary call of gRPC; HTTP of either version.

use std::convert::Infallible;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::TcpListener;

/// What a small answer carries.
const SMALL: [u8; 64] = [b'x'; 64];
/// Bytes of a frame of a long answer.
const CHUNK: usize = 64 << 10;
/// A path that begins so is answered with as many bytes as it says.
pub(super) const BYTES: &str = "/bytes/";

type Body = BoxBody<Bytes, Infallible>;

/// Serves until the process ends.
pub(crate) async fn server(address: SocketAddr) -> Result<()> {
    crate::load::raise_file_limit()?;
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("listening on {address}"))?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let builder = auto::Builder::new(TokioExecutor::new());
            // A client that goes away ends its own connection only.
            let _ = builder
                .serve_connection(TokioIo::new(stream), service_fn(answer))
                .await;
        });
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, hyper::Error> {
    let (parts, body) = request.into_parts();
    // Whatever was sent is taken before the answer, as a real application does.
    let sent = body.collect().await?.to_bytes();
    let grpc = parts.headers.get("content-type");
    if grpc.is_some_and(|kind| kind == "application/grpc") {
        return Ok(unary(sent));
    }
    let wanted = parts.uri.path().strip_prefix(BYTES).map(str::parse);
    Ok(match wanted {
        Some(Ok(length)) => Response::new(long(length)),
        Some(Err(_)) => {
            let mut bad = Response::new(Empty::new().boxed());
            *bad.status_mut() = StatusCode::BAD_REQUEST;
            bad
        }
        None => Response::new(Full::from(&SMALL[..]).boxed()),
    })
}

fn long(length: usize) -> Body {
    let chunk = Bytes::from_static(&[b'x'; CHUNK]);
    let frames = (0..length.div_ceil(CHUNK)).map(move |at| {
        let size = CHUNK.min(length - at * CHUNK);
        Ok(Frame::data(chunk.slice(..size)))
    });
    StreamBody::new(tokio_stream::iter(frames)).boxed()
}

/// The message comes back.
fn unary(message: Bytes) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [Ok(Frame::data(message)), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(StreamBody::new(tokio_stream::iter(frames)).boxed());
    let kind = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert("content-type", kind);
    response
}
