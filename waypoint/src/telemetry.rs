//! One line and one count for each request, when its answer has been sent.

use std::fmt::{Display, Write as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use prometheus_client::registry::Registry;
use seine_hbone::Fault;
use seine_policy::Decision;
use seine_workload::Store;
use tonic::transport::Endpoint as Collector;
use tracing::Span;

use crate::balance::InFlight;
use crate::bind::Bound;
use crate::config::{Config, MetricNames};
use crate::endpoint::Endpoint;
use crate::failure::{Failure, fault_name};
use crate::grpc::GrpcStatus;
use crate::metrics::Metrics;
use crate::request::Body;
use crate::tap::Tap;
use crate::trace;
use crate::unread::body_gave;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What is known of a request, or of a connection that nobody parses.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) bound: Arc<Bound>,
    pub(crate) method: Option<Method>,
    pub(crate) version: Version,
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) rule: Option<String>,
    pub(crate) backend: Option<String>,
    pub(crate) endpoint: Option<Endpoint>,
    pub(crate) decision: Option<Decision>,
    /// Whom its token names.
    pub(crate) principal: Option<String>,
    pub(crate) status: Option<StatusCode>,
    pub(crate) failure: Option<Failure>,
    pub(crate) bytes: u64,
    /// It is a request of gRPC.
    pub(crate) grpc: bool,
    /// What its answer has said of it as one.
    pub(crate) grpc_said: Option<GrpcStatus>,
    /// How often it was sent again.
    pub(crate) retries: u32,
    /// Held until the answer has been sent.
    pub(crate) load: Option<Arc<InFlight>>,
    /// Where traces are exported.
    pub(crate) span: Span,
    /// The answer's body ended in order.
    pub(crate) complete: bool,
    began: Instant,
}

impl Entry {
    pub(crate) fn of_connection(bound: &Arc<Bound>) -> Self {
        Self {
            bound: bound.clone(),
            method: None,
            version: Version::HTTP_11,
            host: String::new(),
            path: String::new(),
            rule: None,
            backend: None,
            endpoint: None,
            decision: None,
            principal: None,
            status: None,
            failure: None,
            bytes: 0,
            grpc: false,
            grpc_said: None,
            retries: 0,
            load: None,
            span: Span::none(),
            complete: true,
            began: Instant::now(),
        }
    }

    pub(crate) fn of_request(bound: &Arc<Bound>, request: &Request<Incoming>) -> Self {
        Self {
            method: Some(request.method().clone()),
            version: request.version(),
            complete: false,
            ..Self::of_connection(bound)
        }
    }

    /// The trailers of its answer are there.
    fn ended(&mut self, trailers: &HeaderMap) {
        self.complete = true;
        if self.grpc {
            let said = GrpcStatus::said(trailers);
            self.grpc_said = said.or(self.grpc_said);
        }
    }

    /// How a call of gRPC ended, as its client sees it.
    pub(crate) fn grpc_status(&self) -> Option<GrpcStatus> {
        let ended = || match (&self.failure, self.grpc_said, self.complete) {
            (Some(failure), ..) => failure.grpc_status(),
            (None, Some(said), _) => said,
            (None, None, true) => GrpcStatus::of_http(self.status.unwrap_or_default()),
            // The client has left.
            (None, None, false) => GrpcStatus::Cancelled,
        };
        self.grpc.then(ended)
    }

    /// Whose fault it was, if something went wrong: an answer that nobody waited for was given up by its client.
    pub(crate) fn fault(&self) -> Option<Fault> {
        match &self.failure {
            Some(failure) => Some(failure.fault()),
            None => (!self.complete).then_some(Fault::Downstream),
        }
    }
}

/// Access log and metrics.
#[derive(Clone)]
pub struct Telemetry(Arc<Inner>);

struct Inner {
    registry: Arc<Registry>,
    metrics: Metrics,
    /// Who clients and endpoints are.
    store: Arc<Store>,
    tap: Arc<Tap>,
}

impl Telemetry {
    /// As the settings want it.
    pub(crate) fn new(names: MetricNames, store: Arc<Store>) -> Self {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry, names);
        let registry = Arc::new(registry);
        Self(Arc::new(Inner {
            registry,
            metrics,
            store,
            tap: Arc::default(),
        }))
    }

    /// Who watches requests.
    pub(crate) fn tap(&self) -> &Arc<Tap> {
        &self.0.tap
    }

    /// The metrics in the OpenMetrics text format.
    pub fn page(&self) -> seine_telemetry::http::Response {
        seine_telemetry::http::metrics(&self.0.registry)
    }

    /// Sends the metrics to the OTLP endpoint, too, for the life of the process.
    pub(crate) fn push(&self, config: &Config) -> anyhow::Result<()> {
        let Some(address) = &config.otlp_endpoint else {
            return Ok(());
        };
        let endpoint = Collector::from_shared(address.clone())
            .with_context(|| format!("--otlp-endpoint {address:?} is no URL"))?;
        tokio::spawn(seine_telemetry::otlp_metrics::push(
            self.0.registry.clone(),
            endpoint,
            "seine-waypoint",
            config.pod_name.clone(),
            config.otlp_metrics_interval,
        ));
        Ok(())
    }

    /// Counts a tunnel, or a CONNECT in one, that was refused.
    pub(crate) fn refused(&self, reason: &'static str) {
        self.0.metrics.refused(reason);
    }

    /// Has the request logged when its answer has been sent.
    pub(crate) fn log(
        &self,
        response: Response<Body>,
        mut entry: Box<Entry>,
    ) -> Response<LoggedBody> {
        if entry.grpc {
            entry.grpc_said = GrpcStatus::said(response.headers());
        }
        response.map(|body| LoggedBody {
            body,
            telemetry: self.clone(),
            entry,
        })
    }

    pub(crate) fn write(&self, entry: &Entry) {
        let took = entry.began.elapsed();
        let flag = match (&entry.failure, entry.complete) {
            (Some(failure), _) => failure.flag(),
            (None, false) => "INCOMPLETE",
            (None, true) => "-",
        };
        tracing::info!(target: "access", "{}", line(entry, flag, took));
        trace::end(entry, flag);
        self.0.tap.offer(entry, flag, took);
        if entry.method.is_some() {
            let Inner { metrics, store, .. } = &*self.0;
            metrics.answered(store, entry, flag, took);
        }
    }
}

/// `key=value` pairs, those that are known. What a client chose is quoted where it could look like another pair.
fn line(entry: &Entry, flag: &str, took: Duration) -> String {
    let bound = &entry.bound;
    // As long as most of them.
    let mut line = String::with_capacity(512);
    line.push_str(match entry.method {
        Some(_) => "request",
        None => "connection",
    });
    let mut pair = |key: &str, value: &dyn Display| {
        let before = line.len();
        // Writing to a string does not fail.
        let _ = write!(line, " {key}={value}");
        let start = before + key.len() + 2;
        let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'=');
        if line.len() == start {
            line.truncate(before);
        } else if !line[start..].bytes().all(plain) {
            let quoted = format!("{:?}", &line[start..]);
            line.replace_range(start.., &quoted);
        }
    };
    pair("src.addr", &bound.first.address);
    if let Some(identity) = &bound.first.identity {
        pair("src.identity", identity);
    }
    pair("dst.service", &bound.service.key.hostname);
    pair("dst.port", &bound.port);
    // Of a connection it is what its TLS asked for.
    pair("host", &entry.host);
    if let Some(method) = &entry.method {
        pair("method", method);
        pair("path", &entry.path);
        pair("protocol", &format_args!("{:?}", entry.version));
    }
    if let Some(status) = entry.status {
        pair("status", &status.as_u16());
    }
    if let Some(status) = entry.grpc_status() {
        pair("grpc_status", &(status as u16));
    }
    if let Some(principal) = &entry.principal {
        pair("principal", principal);
    }
    if let Some(rule) = &entry.rule {
        pair("route", rule);
    }
    if let Some(backend) = &entry.backend {
        pair("backend", backend);
    }
    if let Some(endpoint) = &entry.endpoint {
        pair("endpoint", &endpoint.address);
    }
    if let Some(decision) = &entry.decision {
        if let Some(policy) = decision.because.policy() {
            pair("policy", policy);
        }
        if decision.would_deny() {
            pair("would_deny", &true);
        }
    }
    if entry.retries > 0 {
        pair("retries", &entry.retries);
    }
    pair("bytes", &entry.bytes);
    pair("duration_ms", &took.as_millis());
    pair("response_flags", &flag);
    if let Some(fault) = entry.fault() {
        pair("fault", &fault_name(fault));
    }
    if let Some(failure) = &entry.failure {
        pair("error", failure);
    }
    line
}

/// As OpenTelemetry's conventions want it: clients must not make series.
pub(crate) fn known_method(method: &Method) -> &str {
    let known = [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::DELETE,
        Method::OPTIONS,
        Method::PATCH,
        Method::TRACE,
    ];
    match known.contains(method) {
        true => method.as_str(),
        false => "_OTHER",
    }
}

/// An answer's body; when it is dropped, the request is logged.
pub(crate) struct LoggedBody {
    body: Body,
    telemetry: Telemetry,
    entry: Box<Entry>,
}

impl hyper::body::Body for LoggedBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        let mut gave = 0;
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                gave = frame.data_ref().map_or(0, Bytes::len);
                this.entry.bytes += gave as u64;
                if let Some(trailers) = frame.trailers_ref() {
                    this.entry.ended(trailers);
                }
            }
            // A body of ours doesn't break off.
            Poll::Ready(Some(Err(error))) => {
                this.entry.failure = Some(Failure::Broken {
                    reason: error.to_string(),
                    grpc: GrpcStatus::of_break(&**error),
                });
            }
            Poll::Ready(None) => this.entry.complete = true,
            Poll::Pending => {}
        }
        body_gave(gave);
        // One whose end is known from its length may not be polled again.
        this.entry.complete |= this.body.is_end_stream();
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for LoggedBody {
    fn drop(&mut self) {
        self.entry.complete |= self.body.is_end_stream();
        self.telemetry.write(&self.entry);
    }
}
