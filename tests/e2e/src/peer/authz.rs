//! An authorization service of Envoy's `ext_authz`: `x-ext: deny` is refused with 418, a header and a body, `x-ext: silent` gets no
//! answer, `x-ext: bent` one that is none; all else may go on, with a header more for the backend and one for the client, and
//! without `x-secret`. Each request is printed to the log.

use std::io;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;
use seine_proto::external_auth::{
    CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValue, HeaderValueOption, HttpStatus,
    OkHttpResponse, check_response::HttpResponse,
};
use seine_proto::rpc;
use tokio::net::TcpStream;

/// Answers the requests of a connection.
pub(super) async fn authorize(stream: &mut TcpStream) -> io::Result<()> {
    let mut connection = h2::server::handshake(stream)
        .await
        .map_err(io::Error::other)?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted.map_err(io::Error::other)?;
        tokio::spawn(async move {
            if let Err(error) = answer(request, respond).await {
                println!("authz: {error}");
            }
        });
    }
    Ok(())
}

async fn answer(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let path = request.uri().path().to_owned();
    let mut stream = request.into_body();
    let mut body = BytesMut::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.put_slice(&data);
    }
    let message = body.get(5..).ok_or("no message")?;
    let asked = CheckRequest::decode(message)?
        .attributes
        .unwrap_or_default();
    let source = asked.source.unwrap_or_default();
    let http = asked
        .request
        .and_then(|request| request.http)
        .unwrap_or_default();
    println!(
        "authz: {path} for {} {} of {}",
        http.method, http.path, source.principal
    );
    let said = http.headers.get("x-ext").map_or("", String::as_str);
    if said == "silent" {
        std::future::pending::<()>().await;
    }
    let message = match said {
        "bent" => b"\xff\xff\xff".to_vec(),
        "deny" => denied().encode_to_vec(),
        _ => allowed(&source.principal).encode_to_vec(),
    };
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len())?);
    framed.put_slice(&message);
    let head = http::Response::builder()
        .header("content-type", "application/grpc")
        .body(())?;
    let mut body = respond.send_response(head, false)?;
    body.send_data(framed.freeze(), false)?;
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    body.send_trailers(trailers)?;
    Ok(())
}

fn header(key: &str, value: &str) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: key.into(),
            value: value.into(),
            raw_value: Vec::new(),
        }),
        ..HeaderValueOption::default()
    }
}

fn denied() -> CheckResponse {
    CheckResponse {
        status: Some(rpc::Status {
            code: 7,
            ..rpc::Status::default()
        }),
        http_response: Some(HttpResponse::DeniedResponse(DeniedHttpResponse {
            status: Some(HttpStatus { code: 418 }),
            headers: vec![header("x-by", "authz")],
            body: "no tea".into(),
        })),
    }
}

fn allowed(principal: &str) -> CheckResponse {
    CheckResponse {
        status: Some(rpc::Status::default()),
        http_response: Some(HttpResponse::OkResponse(OkHttpResponse {
            headers: vec![header("x-authorized", principal)],
            headers_to_remove: vec!["x-secret".into()],
            response_headers_to_add: vec![header("x-by", "authz")],
            ..OkHttpResponse::default()
        })),
    }
}
