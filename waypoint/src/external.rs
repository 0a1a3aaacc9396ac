//! External authorization: a Service of the mesh is asked whether a request may go on, by Envoy's `ext_authz` over gRPC or by
//! HTTP. It is reached as any backend is, and judges this waypoint as its caller. Who doesn't answer in time, or not in the
//! way that was agreed, has not allowed anything, unless the policy says so.

use std::collections::HashMap;
use std::net::SocketAddr;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{
    AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderName, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version, request};
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::Incoming;
use prost::Message;
use seine_policy::{Ask, Provider, ProviderProtocol};
use seine_proto::external_auth::{
    Address, AttributeContext, CheckRequest, CheckResponse, HeaderValueOption, SocketAddress,
    attribute_context::{HttpRequest, Peer, Request as Asked},
    check_response::HttpResponse,
    header_value_option::HeaderAppendAction,
};
use seine_telemetry::{Lines, limited};
use seine_workload::ServiceKey;
use tokio::time::timeout;
use tracing::Span;

use crate::bind::{Bound, First};
use crate::body::Outgoing;
use crate::endpoint::Wanted;
use crate::failure::Failure;
use crate::head::{self, Head};
use crate::request::Body;
use crate::shared::Shared;

const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
const GRPC_STATUS: &str = "grpc-status";
/// Bytes of an answer, as what it says and as the body that the client gets.
const MAX_ANSWER: usize = 64 << 10;

static LINES: Lines = Lines::new();

/// What the providers say.
#[derive(Debug)]
pub(crate) enum Told {
    /// The request may go on, with these changes.
    Allowed(Changes),
    /// The client gets this answer, by this policy's provider.
    Denied(Box<Response<Body>>, Failure),
}

/// Changes to headers.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    request: Vec<Edit>,
    remove: Vec<HeaderName>,
    response: Vec<Edit>,
}

#[derive(Debug, PartialEq, Eq)]
struct Edit {
    how: How,
    name: HeaderName,
    value: HeaderValue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Append,
    AddIfAbsent,
    Set,
    SetIfPresent,
}

/// What one provider says.
#[derive(Debug)]
enum Answer {
    Allowed(Changes),
    Denied(Response<Body>),
}

/// Asks each provider once.
pub(crate) async fn ask(
    shared: &Shared,
    bound: &Bound,
    asks: &[Ask],
    head: &Head,
    parts: &mut request::Parts,
    span: &Span,
) -> Result<Told, Failure> {
    // What a provider tells the backend nobody else may.
    for name in asks.iter().flat_map(|ask| &ask.provider.to_backend) {
        parts.headers.remove(&**name);
    }
    let mut changes = Changes::default();
    for (index, ask) in asks.iter().enumerate() {
        let provider = &ask.provider;
        if asks[..index]
            .iter()
            .any(|earlier| earlier.provider == *provider)
        {
            continue;
        }
        let request = (head, &*parts);
        let asked = check(shared, bound, provider, request, span);
        let asked = timeout(provider.timeout, asked).await;
        let asked =
            asked.unwrap_or_else(|_| Err(format!("no answer within {:?}", provider.timeout)));
        let of = || (ask.policy.to_string(), provider.to_string());
        match asked {
            Ok(Answer::Allowed(more)) => changes.add(more),
            Ok(Answer::Denied(response)) => {
                let (policy, provider) = of();
                let refused = Failure::Refused { policy, provider };
                return Ok(Told::Denied(Box::new(response), refused));
            }
            Err(reason) if provider.fail_open => limited!(
                LINES, "external",
                warn: policy = %ask.policy, %provider, reason,
                "a request goes on without the provider's word, as the policy says"
            ),
            Err(reason) => {
                let (policy, provider) = of();
                return Err(Failure::External {
                    policy,
                    provider,
                    reason,
                });
            }
        }
    }
    Ok(Told::Allowed(changes))
}

async fn check(
    shared: &Shared,
    bound: &Bound,
    provider: &Provider,
    (head, parts): (&Head, &request::Parts),
    span: &Span,
) -> Result<Answer, String> {
    let request = match provider.protocol {
        ProviderProtocol::Grpc => grpc_request(bound, provider, head, parts),
        ProviderProtocol::Http => http_request(provider, head, parts),
    };
    let response = send(shared, provider, span, request?).await?;
    match provider.protocol {
        ProviderProtocol::Grpc => grpc_answer(response).await,
        ProviderProtocol::Http => http_answer(provider, response).await,
    }
}

async fn send(
    shared: &Shared,
    provider: &Provider,
    span: &Span,
    request: Request<Outgoing>,
) -> Result<Response<Incoming>, String> {
    let key = ServiceKey {
        namespace: (&*provider.namespace).into(),
        hostname: (&*provider.hostname).into(),
    };
    let service = shared.store.service(&key);
    let service = service.ok_or_else(|| format!("{key} is not known"))?;
    let first = First {
        identity: None,
        address: SocketAddr::new(shared.config.pod_ip, 0),
    };
    let to = (&service, provider.port);
    let wanted = Wanted {
        span: span.clone(),
        ..Wanted::new(shared, to, &first, request.headers())
    };
    let upstreams = &shared.upstreams;
    let sent = upstreams
        .send(shared, &wanted, request, &[], &mut None)
        .await;
    let (response, _load) = sent.map_err(|failure| failure.to_string())?;
    Ok(response)
}

/// Path and query as the backend would get them.
fn target(head: &Head) -> String {
    match &head.query {
        Some(query) => format!("{}?{query}", head.path),
        None => head.path.clone(),
    }
}

fn grpc_request(
    bound: &Bound,
    provider: &Provider,
    head: &Head,
    parts: &request::Parts,
) -> Result<Request<Outgoing>, String> {
    let message = check_request(bound, head, parts).encode_to_vec();
    let mut body = BytesMut::with_capacity(message.len() + 5);
    body.put_u8(0);
    body.put_u32(u32::try_from(message.len()).map_err(|_| "the request is too long")?);
    body.put_slice(&message);
    let uri = format!("http://{}:{}{CHECK}", provider.hostname, provider.port);
    Request::post(uri)
        .version(Version::HTTP_2)
        .header(CONTENT_TYPE, "application/grpc")
        .header(TE, "trailers")
        .body(Outgoing::from(body.freeze()))
        .map_err(|error| error.to_string())
}

fn check_request(bound: &Bound, head: &Head, parts: &request::Parts) -> CheckRequest {
    let peer = |address: SocketAddr, service: &str, principal: String| Peer {
        address: Some(Address {
            socket_address: Some(SocketAddress {
                address: address.ip().to_string(),
                port_value: address.port().into(),
            }),
        }),
        service: service.into(),
        principal,
    };
    let identity = bound.first.identity.as_ref();
    let identity = identity.map(ToString::to_string).unwrap_or_default();
    let length = parts.headers.get(CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
    let path = target(head);
    let mut headers = joined(&parts.headers);
    for (name, value) in [
        (":authority", head.authority.as_str()),
        (":method", parts.method.as_str()),
        (":path", &path),
        (":scheme", "http"),
    ] {
        headers.insert(name.into(), value.into());
    }
    let http = HttpRequest {
        method: parts.method.to_string(),
        headers,
        path,
        host: head.authority.to_string(),
        scheme: "http".into(),
        size: length.unwrap_or(-1),
        protocol: match parts.version {
            Version::HTTP_2 => "HTTP/2".into(),
            version => format!("{version:?}"),
        },
    };
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(peer(bound.first.address, "", identity)),
            destination: Some(peer(
                bound.destination,
                &bound.service.key.hostname,
                String::new(),
            )),
            request: Some(Asked {
                time: Some(std::time::SystemTime::now().into()),
                http: Some(http),
            }),
            context_extensions: HashMap::new(),
        }),
    }
}

/// Values of one name become one.
fn joined(headers: &HeaderMap) -> HashMap<String, String> {
    let mut found = HashMap::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        found
            .entry(name.as_str().to_owned())
            .and_modify(|all: &mut String| {
                all.push(',');
                all.push_str(&value);
            })
            .or_insert_with(|| value.into_owned());
    }
    found
}

async fn grpc_answer(response: Response<Incoming>) -> Result<Answer, String> {
    let status = response.status();
    if status != StatusCode::OK {
        return Err(format!("the answer is {status}"));
    }
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await;
    let body = body.map_err(|error| format!("the answer broke off or is too long: {error}"))?;
    // Without a message it is among the headers.
    let trailers = body.trailers().unwrap_or(&parts.headers);
    let code = trailers.get(GRPC_STATUS).map(HeaderValue::as_bytes);
    if code != Some(b"0") {
        let code = String::from_utf8_lossy(code.unwrap_or(b"none")).into_owned();
        return Err(format!("the answer has the status {code} of gRPC"));
    }
    let message = grpc_message(body.to_bytes())?;
    let answer = CheckResponse::decode(message).map_err(|error| error.to_string())?;
    of_check(answer)
}

fn grpc_message(mut body: Bytes) -> Result<Bytes, String> {
    if body.len() < 5 {
        return Err("the answer is no message of gRPC".into());
    }
    let (compressed, length) = (body.get_u8(), body.get_u32());
    match compressed == 0 && length as usize == body.len() {
        true => Ok(body),
        false => Err("the answer is not one message of gRPC without compression".into()),
    }
}

fn of_check(answer: CheckResponse) -> Result<Answer, String> {
    let allowed = answer.status.map(|status| status.code) == Some(0);
    match (allowed, answer.http_response) {
        (true, None) => Ok(Answer::Allowed(Changes::default())),
        (true, Some(HttpResponse::OkResponse(ok))) => {
            if !ok.query_parameters_to_set.is_empty() || !ok.query_parameters_to_remove.is_empty() {
                return Err("the answer changes query parameters, which is not supported".into());
            }
            let remove = ok.headers_to_remove.iter();
            let remove = remove.filter_map(|name| name.parse().ok());
            Ok(Answer::Allowed(Changes {
                request: edits(&ok.headers)?,
                remove: remove.filter(|name| !is_framing(name)).collect(),
                response: edits(&ok.response_headers_to_add)?,
            }))
        }
        (false, Some(HttpResponse::DeniedResponse(denied))) => {
            let status = denied.status.map_or(403, |status| status.code);
            let mut headers = HeaderMap::new();
            for edit in edits(&denied.headers)? {
                edit.apply(&mut headers);
            }
            denial(status, headers, denied.body.into())
        }
        (false, None) => denial(403, HeaderMap::new(), Bytes::new()),
        (true, Some(HttpResponse::DeniedResponse(_)))
        | (false, Some(HttpResponse::OkResponse(_))) => {
            Err("the answer says both yes and no".into())
        }
    }
}

/// Without any way to say otherwise, a header is set (as Envoy's `ext_authz` has it).
fn edits(options: &[HeaderValueOption]) -> Result<Vec<Edit>, String> {
    let mut found = Vec::new();
    for option in options {
        let header = option.header.clone().unwrap_or_default();
        let bytes = match header.value.is_empty() {
            true => header.raw_value,
            false => header.value.into_bytes(),
        };
        let bad = || format!("the answer has a header {:?} that can't be", header.key);
        let name: HeaderName = header.key.parse().map_err(|_| bad())?;
        let value = HeaderValue::from_bytes(&bytes).map_err(|_| bad())?;
        let how = match (&option.append, option.append_action()) {
            (Some(true), _) => How::Append,
            (_, HeaderAppendAction::AddIfAbsent) => How::AddIfAbsent,
            (_, HeaderAppendAction::OverwriteIfExists) => How::SetIfPresent,
            _ => How::Set,
        };
        if !is_framing(&name) {
            found.push(Edit { how, name, value });
        }
    }
    Ok(found)
}

fn http_request(
    provider: &Provider,
    head: &Head,
    parts: &request::Parts,
) -> Result<Request<Outgoing>, String> {
    let path = format!(
        "{}{}",
        provider.path_prefix.trim_end_matches('/'),
        target(head)
    );
    let path: PathAndQuery = path.parse().map_err(|_| "the path can't be in a request")?;
    let host = HeaderValue::from_str(head.authority.as_str());
    let mut request = Request::new(Outgoing::from(Bytes::new()));
    *request.method_mut() = match parts.method {
        // An answer without a body would say less.
        Method::HEAD => Method::GET,
        ref method => method.clone(),
    };
    *request.uri_mut() = Uri::from(path);
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    headers.insert(HOST, host.map_err(|_| "the host can't be in a request")?);
    headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
    let named = provider.request_headers.iter();
    let named = named.filter_map(|name| name.parse::<HeaderName>().ok());
    for name in named
        .chain([AUTHORIZATION])
        .filter(|name| !is_framing(name))
    {
        if !headers.contains_key(&name) {
            for value in parts.headers.get_all(&name) {
                headers.append(&name, value.clone());
            }
        }
    }
    Ok(request)
}

async fn http_answer(provider: &Provider, response: Response<Incoming>) -> Result<Answer, String> {
    let (mut parts, body) = response.into_parts();
    let status = parts.status;
    if status.is_server_error() || status.is_informational() {
        return Err(format!("the answer is {status}"));
    }
    // Also of a yes, so that the connection can be used again.
    let body = Limited::new(body, MAX_ANSWER).collect().await;
    let body = body.map_err(|error| format!("the answer broke off or is too long: {error}"))?;
    if status != StatusCode::OK {
        head::strip_hop_by_hop(&mut parts.headers);
        return denial(status.as_u16().into(), parts.headers, body.to_bytes());
    }
    let of = |names: &[Box<str>]| {
        let mut found = Vec::new();
        for name in names
            .iter()
            .filter_map(|name| name.parse::<HeaderName>().ok())
        {
            let values = parts.headers.get_all(&name).iter();
            found.extend(values.enumerate().map(|(index, value)| Edit {
                how: match index {
                    0 => How::Set,
                    _ => How::Append,
                },
                name: name.clone(),
                value: value.clone(),
            }));
        }
        found.retain(|edit| !is_framing(&edit.name));
        found
    };
    Ok(Answer::Allowed(Changes {
        request: of(&provider.to_backend),
        remove: Vec::new(),
        response: of(&provider.to_client),
    }))
}

fn denial(status: i32, mut headers: HeaderMap, body: Bytes) -> Result<Answer, String> {
    let status = u16::try_from(status).ok().map(StatusCode::from_u16);
    let status = status.and_then(Result::ok);
    // One that says that all is well is none.
    let status = status.filter(|status| !status.is_informational() && !status.is_success());
    let status = status.ok_or("the answer denies with a status that is none of a denial")?;
    headers.remove(CONTENT_LENGTH);
    if body.len() > MAX_ANSWER {
        return Err("the answer is too long".into());
    }
    let mut response = Response::new(Either::Right(Full::new(body)));
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(Answer::Denied(response))
}

/// What says where a message goes and where it ends, which is not the provider's to say; and what is our own.
fn is_framing(name: &HeaderName) -> bool {
    let framing = [
        CONNECTION,
        CONTENT_LENGTH,
        HOST,
        TE,
        TRANSFER_ENCODING,
        UPGRADE,
    ];
    framing.contains(name) || head::is_own(name)
}

impl Edit {
    fn apply(self, headers: &mut HeaderMap) {
        let there = headers.contains_key(&self.name);
        match self.how {
            How::Append => drop(headers.append(self.name, self.value)),
            How::Set => drop(headers.insert(self.name, self.value)),
            How::AddIfAbsent if !there => drop(headers.insert(self.name, self.value)),
            How::SetIfPresent if there => drop(headers.insert(self.name, self.value)),
            How::AddIfAbsent | How::SetIfPresent => {}
        }
    }
}

impl Changes {
    fn add(&mut self, more: Self) {
        self.request.extend(more.request);
        self.remove.extend(more.remove);
        self.response.extend(more.response);
    }

    /// Changes the request; what is left is for the answer.
    pub(crate) fn on_request(mut self, headers: &mut HeaderMap) -> Self {
        for name in self.remove.drain(..) {
            headers.remove(name);
        }
        for edit in self.request.drain(..) {
            edit.apply(headers);
        }
        self
    }

    /// Changes the answer.
    pub(crate) fn on_response(self, headers: &mut HeaderMap) {
        for edit in self.response {
            edit.apply(headers);
        }
    }
}

#[cfg(test)]
#[path = "external_tests.rs"]
mod tests;
