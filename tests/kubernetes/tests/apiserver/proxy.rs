//! A way to the API server that breaks: answers errors, cuts connections, or says nothing more.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use futures::StreamExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use kube::Client;
use kube::client::Body;
use parking_lot::RwLock;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::bed::Bed;

/// What becomes of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nothing: they are passed on.
    None,
    /// Every one is answered with this status, and running watches end.
    Answer(u16),
    /// Connections are cut, also in the middle of a watch.
    Cut,
    /// Requests get no answer, and running watches say nothing more, without an end.
    Stall,
}

/// The proxy; it passes on as administrator, over plain HTTP on loopback.
pub(crate) struct Proxy {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    state: Arc<State>,
}

struct State {
    client: Client,
    fault: RwLock<Fault>,
    changes: watch::Sender<Fault>,
    requests: AtomicU64,
}

type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

impl Proxy {
    pub(crate) fn start(bed: &Bed) -> Result<Self> {
        let state = Arc::new(State {
            client: bed.client.clone(),
            fault: RwLock::new(Fault::None),
            changes: watch::channel(Fault::None).0,
            requests: AtomicU64::new(0),
        });
        let listener = bed.runtime.block_on(TcpListener::bind("127.0.0.1:0"))?;
        let address = listener.local_addr()?;
        let shared = state.clone();
        bed.runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = shared.clone();
                tokio::spawn(async move {
                    let mut changes = state.changes.subscribe();
                    let service = service_fn(|request| state.clone().answer(request));
                    let server = auto::Builder::new(TokioExecutor::new());
                    let served = server.serve_connection(TokioIo::new(stream), service);
                    tokio::select! {
                        // How a connection ended is the client's to see.
                        _ = served => {}
                        _ = changes.wait_for(|fault| *fault == Fault::Cut) => {}
                    }
                });
            }
        });
        Ok(Self { address, state })
    }

    /// What becomes of requests from now on.
    pub(crate) fn set(&self, fault: Fault) {
        *self.state.fault.write() = fault;
        self.state.changes.send_replace(fault);
    }

    /// How many requests have come.
    pub(crate) fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::Relaxed)
    }
}

impl State {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Result<Answer, std::io::Error> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let fault = *self.fault.read();
        match fault {
            Fault::None => self.pass(request).await,
            Fault::Answer(code) => Ok(refusal(code)),
            Fault::Cut => Err(std::io::ErrorKind::ConnectionReset.into()),
            Fault::Stall => std::future::pending().await,
        }
    }

    async fn pass(&self, request: Request<Incoming>) -> Result<Answer, std::io::Error> {
        let (mut parts, body) = request.into_parts();
        parts.headers.remove(AUTHORIZATION);
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        parts.uri = path.parse().map_err(std::io::Error::other)?;
        let body = body
            .collect()
            .await
            .map_err(std::io::Error::other)?
            .to_bytes();
        let request = Request::from_parts(parts, Body::from(body.to_vec()));
        let answer = self
            .client
            .send(request)
            .await
            .map_err(std::io::Error::other)?;
        let (parts, body) = answer.into_parts();
        let changes = self.changes.subscribe();
        // Stalled, a running watch says nothing more and does not end.
        let gate = changes.clone();
        let chunks = body.into_data_stream().then(move |chunk| {
            let mut gate = gate.clone();
            async move {
                // The sender lives as long as the proxy.
                let _ = gate.wait_for(|fault| *fault != Fault::Stall).await;
                Ok(Frame::data(chunk.map_err(std::io::Error::other)?))
            }
        });
        // With errors it ends as a server's restart ends it.
        let mut ended = changes;
        let ended = async move {
            let is_end = |fault: &Fault| matches!(fault, Fault::Answer(_));
            let _ = ended.wait_for(is_end).await;
        };
        let body = StreamBody::new(chunks.take_until(Box::pin(ended)));
        Ok(Response::from_parts(parts, body.boxed_unsync()))
    }
}

fn refusal(code: u16) -> Answer {
    let reason = match code {
        410 => "Expired",
        429 => "TooManyRequests",
        500 => "InternalError",
        _ => "ServiceUnavailable",
    };
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "message": "made by the test", "reason": reason, "code": code,
    });
    let body = Full::new(Bytes::from(status.to_string()))
        .map_err(|never: Infallible| match never {})
        .boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = answer.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        hyper::header::HeaderValue::from_static("application/json"),
    );
    if code == 429 {
        headers.insert(RETRY_AFTER, hyper::header::HeaderValue::from_static("1"));
    }
    answer
}
