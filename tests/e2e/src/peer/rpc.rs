//! A server of gRPC whose methods end in the ways that there are, and a client that reports how its call ended.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, HeaderValue, Request, Response};
use tokio::net::TcpStream;

use super::client::connect;
use super::report::{Called, Failure, Stage};

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// An empty message.
const MESSAGE: Bytes = Bytes::from_static(&[0; 5]);
/// So long until what was sent has been seen.
const PAUSE: Duration = Duration::from_millis(200);

/// Answers the calls of a connection by the method that is called, whatever the service.
pub(super) async fn serve(stream: &mut TcpStream) -> io::Result<()> {
    let handshake = h2::server::handshake(stream).await;
    let mut connection = handshake.map_err(io::Error::other)?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted.map_err(io::Error::other)?;
        let path = request.uri().path().to_owned();
        println!("call: {path}");
        if path.ends_with("/Gone") {
            let _body = begin(respond).map_err(io::Error::other)?;
            // What was sent is seen first; then the connection breaks off.
            let _ = tokio::time::timeout(PAUSE, connection.accept()).await;
            return Ok(());
        }
        tokio::spawn(async move {
            if let Err(error) = answer(&path, request, respond).await {
                println!("call of {path}: {error}");
            }
        });
    }
    Ok(())
}

async fn answer(
    path: &str,
    request: Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) -> Result<(), BoxError> {
    let method = path.rsplit('/').next().unwrap_or_default();
    if method == "Only" {
        let mut head = head();
        let status = HeaderValue::from_static("3");
        head.headers_mut().insert("grpc-status", status);
        respond.send_response(head, true)?;
        return Ok(());
    }
    let mut body = begin(respond)?;
    let status = match method {
        "Ok" => "0",
        "NotFound" => "5",
        "Silent" => return Ok(body.send_data(Bytes::new(), true)?),
        "Reset" => {
            // What was sent is seen first.
            tokio::time::sleep(PAUSE).await;
            body.send_reset(Reason::ENHANCE_YOUR_CALM);
            return Ok(());
        }
        // Until its client leaves.
        "Endless" => {
            let left = poll_fn(|cx| body.poll_reset(cx)).await?;
            println!("call of {path}: {left:?}");
            drop(request);
            return Ok(());
        }
        _ => return Ok(()),
    };
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static(status));
    body.send_trailers(trailers)?;
    Ok(())
}

fn head() -> Response<()> {
    let mut head = Response::new(());
    let kind = HeaderValue::from_static("application/grpc");
    head.headers_mut().insert("content-type", kind);
    head
}

/// The head of an answer, and a message.
fn begin(mut respond: h2::server::SendResponse<Bytes>) -> Result<h2::SendStream<Bytes>, h2::Error> {
    let mut body = respond.send_response(head(), false)?;
    body.send_data(MESSAGE, false)?;
    Ok(body)
}

/// Calls a method with an empty message. If it is to `leave`, the call is given up when the first message is there.
pub(super) async fn call(
    host: &str,
    port: u16,
    path: &str,
    trace: &str,
    leave: bool,
) -> Result<Called, Failure> {
    let failed = |error: BoxError| Failure::named(Stage::Receive, &error.to_string());
    let stream = connect(host, port, None).await?;
    exchange(stream, host, path, trace, leave)
        .await
        .map_err(failed)
}

async fn exchange(
    stream: TcpStream,
    host: &str,
    path: &str,
    trace: &str,
    leave: bool,
) -> Result<Called, BoxError> {
    let (mut sender, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    let request = Request::post(format!("http://{host}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("traceparent", trace)
        .body(())?;
    let (response, mut body) = sender.send_request(request, false)?;
    body.send_data(MESSAGE, true)?;
    let mut called = Called::default();
    match ending(response, leave).await {
        Ok(status) => called.status = status,
        Err(error) => called.reset = error.reason().map(u32::from),
    }
    if leave {
        body.send_reset(Reason::CANCEL);
        // The other side hears of it.
        tokio::time::sleep(PAUSE).await;
    }
    Ok(called)
}

/// What the trailers say of the call, or the head; none of them does of one that is left.
async fn ending(
    response: h2::client::ResponseFuture,
    leave: bool,
) -> Result<Option<u16>, h2::Error> {
    let response = response.await?;
    let status = |headers: &HeaderMap| headers.get("grpc-status")?.to_str().ok()?.parse().ok();
    let head = status(response.headers());
    let mut body = response.into_body();
    while let Some(data) = body.data().await {
        let length = data?.len();
        body.flow_control().release_capacity(length)?;
        if leave {
            return Ok(head);
        }
    }
    let trailers = body.trailers().await?;
    Ok(trailers.as_ref().and_then(status).or(head))
}
