use std::time::Duration;

use seine_proto::external_auth::{
    DeniedHttpResponse, HeaderValue as WireValue, HttpStatus, OkHttpResponse, QueryParameter,
};
use seine_proto::rpc;

use super::*;

fn option(key: &str, value: &str, append: Option<bool>, action: i32) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(WireValue {
            key: key.into(),
            value: value.into(),
            raw_value: Vec::new(),
        }),
        append,
        append_action: action,
    }
}

fn answer(code: i32, response: Option<HttpResponse>) -> Result<Answer, String> {
    of_check(CheckResponse {
        status: Some(rpc::Status {
            code,
            ..rpc::Status::default()
        }),
        http_response: response,
    })
}

fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    let pairs = pairs.iter().map(|(name, value)| {
        (
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )
    });
    let mut found = HeaderMap::new();
    for (name, value) in pairs {
        found.append(name, value);
    }
    found
}

#[test]
fn a_yes_changes_the_request_and_the_answer_and_never_their_framing() {
    let ok = OkHttpResponse {
        headers: vec![
            option("x-set", "new", None, 0),
            option("x-appended", "b", Some(true), 0),
            option("x-absent", "new", None, 1),
            option("x-missing", "new", None, 3),
            option("x-there", "new", None, 3),
            option("Host", "evil", None, 0),
            option("content-length", "9", None, 0),
            option("transfer-encoding", "chunked", None, 0),
            option("x-seine-first-client", "spiffe://a/ns/b/sa/c", None, 0),
        ],
        headers_to_remove: vec!["x-gone".into(), "host".into(), ":path".into()],
        response_headers_to_add: vec![option("x-by", "authz", None, 0)],
        ..OkHttpResponse::default()
    };
    let Ok(Answer::Allowed(changes)) = answer(0, Some(HttpResponse::OkResponse(ok))) else {
        panic!("it is a yes");
    };
    let mut request = headers(&[
        ("host", "web"),
        ("x-set", "old"),
        ("x-appended", "a"),
        ("x-absent", "old"),
        ("x-there", "old"),
        ("x-gone", "1"),
    ]);
    let rest = changes.on_request(&mut request);
    let expected = headers(&[
        ("host", "web"),
        ("x-set", "new"),
        ("x-appended", "a"),
        ("x-appended", "b"),
        ("x-absent", "old"),
        ("x-there", "new"),
    ]);
    assert_eq!(request, expected);
    let mut response = headers(&[("x-by", "backend")]);
    rest.on_response(&mut response);
    assert_eq!(response, headers(&[("x-by", "authz")]));
    // One that can't be obeyed is no yes.
    let query = OkHttpResponse {
        query_parameters_to_set: vec![QueryParameter::default()],
        ..OkHttpResponse::default()
    };
    assert!(answer(0, Some(HttpResponse::OkResponse(query))).is_err());
    let bent = OkHttpResponse {
        headers: vec![option("a b", "c", None, 0)],
        ..OkHttpResponse::default()
    };
    assert!(answer(0, Some(HttpResponse::OkResponse(bent))).is_err());
}

#[test]
fn a_no_is_the_clients_answer_and_what_is_neither_is_nothing() {
    let denied = |code: i32, body: &str| {
        HttpResponse::DeniedResponse(DeniedHttpResponse {
            status: Some(HttpStatus { code }),
            headers: vec![option("location", "/login", None, 0)],
            body: body.into(),
        })
    };
    let Ok(Answer::Denied(response)) = answer(7, Some(denied(302, "go"))) else {
        panic!("it is a no");
    };
    assert_eq!(response.status(), StatusCode::FOUND);
    assert_eq!(response.headers()["location"], "/login");
    let Ok(Answer::Denied(response)) = answer(16, None) else {
        panic!("it is a no");
    };
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    let ok = || HttpResponse::OkResponse(OkHttpResponse::default());
    let long = "a".repeat(MAX_ANSWER + 1);
    for (code, response) in [
        (0, Some(denied(403, ""))),
        (7, Some(ok())),
        // A denial that looks like a success to the client.
        (7, Some(denied(200, ""))),
        (7, Some(denied(0, ""))),
        (7, Some(denied(403, &long))),
    ] {
        assert!(
            answer(code, response.clone()).is_err(),
            "{code} {response:?}"
        );
    }
    // Nothing at all is no yes.
    let nothing = of_check(CheckResponse::default());
    assert!(matches!(nothing, Ok(Answer::Denied(_))), "{nothing:?}");
}

#[test]
fn an_answer_of_grpc_is_one_message() {
    let framed = |bytes: &'static [u8]| grpc_message(Bytes::from_static(bytes));
    assert_eq!(framed(b"\0\0\0\0\x01a").unwrap(), "a");
    assert_eq!(framed(b"\0\0\0\0\0").unwrap(), "");
    for bad in [
        &b""[..],
        b"\0\0\0\0",
        b"\x01\0\0\0\x01a",
        b"\0\0\0\0\x02a",
        b"\0\0\0\0\x01ab",
        b"\0\xff\xff\xff\xffa",
    ] {
        assert!(framed(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_provider_of_http_is_sent_the_request_without_its_body_and_the_headers_that_are_named() {
    let provider = Provider {
        namespace: "shop".into(),
        hostname: "authz".into(),
        port: 80,
        protocol: ProviderProtocol::Http,
        timeout: Duration::from_secs(1),
        fail_open: false,
        path_prefix: "/check/".into(),
        request_headers: vec!["cookie".into(), "content-length".into(), "host".into()],
        to_backend: Vec::new(),
        to_client: Vec::new(),
    };
    let mut parts = Request::builder()
        .method("POST")
        .uri("/a/../b?c=d")
        .header("host", "web.shop")
        .header("content-length", "5")
        .header("authorization", "Basic YTpi")
        .header("cookie", "e=f")
        .header("x-other", "g")
        .body(())
        .unwrap()
        .into_parts()
        .0;
    let head = Head::read(&parts).unwrap();
    let request = http_request(&provider, &head, &parts).unwrap();
    assert_eq!(
        (request.method(), request.uri().to_string()),
        (&Method::POST, "/check/b?c=d".into())
    );
    let expected = headers(&[
        ("host", "web.shop"),
        ("content-length", "0"),
        ("cookie", "e=f"),
        ("authorization", "Basic YTpi"),
    ]);
    assert_eq!(*request.headers(), expected);
    parts.method = Method::HEAD;
    let request = http_request(&provider, &head, &parts).unwrap();
    assert_eq!(request.method(), Method::GET);
}
