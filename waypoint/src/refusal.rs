//! Answers of the waypoint's own: for HTTP a status and a few words, for gRPC its own status in an answer without a body.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, Version};
use http_body_util::{Either, Full};

use crate::failure::Failure;
use crate::grpc::GRPC_STATUS;
use crate::request::Body;
use crate::token::TokenError;

const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Whether a request is one of gRPC. `application/grpc-web` is another protocol.
pub(crate) fn is_grpc(version: Version, headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let rest = kind.and_then(|kind| kind.strip_prefix(b"application/grpc"));
    let is = rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')));
    is && version == Version::HTTP_2
}

/// A few words for people; the reason is for the log.
pub(crate) fn refusal(failure: &Failure, grpc: bool) -> Response<Body> {
    let status = failure.status();
    let word = status.canonical_reason().unwrap_or("refused");
    let text = format!("{word} (waypoint: {})", failure.flag());
    if grpc {
        let mut response = Response::new(Either::Right(Full::default()));
        let headers = response.headers_mut();
        let kind = HeaderValue::from_static("application/grpc");
        headers.insert(CONTENT_TYPE, kind);
        headers.insert(GRPC_STATUS, failure.grpc_status().into());
        if let Ok(text) = HeaderValue::from_str(&text) {
            headers.insert(GRPC_MESSAGE, text);
        }
        return response;
    }
    let mut response = Response::new(Either::Right(Full::new(Bytes::from(text + "\n"))));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    if let Failure::Limited(wait) = failure {
        // In whole seconds, and never too early.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    if let Failure::Token(error) = failure {
        let challenge = challenge(error);
        response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    }
    response
}

/// What the client is told of its token (RFC 6750, section 3).
fn challenge(error: &TokenError) -> HeaderValue {
    let code = match error {
        TokenError::Several => "invalid_request",
        _ => "invalid_token",
    };
    let text = format!("Bearer error=\"{code}\", error_description=\"{error}\"");
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("Bearer"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::body::Body as _;

    #[test]
    fn a_client_of_grpc_is_told_in_its_own_terms_and_without_a_body() {
        let headers = |kind: &'static str| {
            HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))])
        };
        for (kind, version, is) in [
            ("application/grpc", Version::HTTP_2, true),
            ("application/grpc+proto", Version::HTTP_2, true),
            ("application/grpc; a=b", Version::HTTP_2, true),
            ("application/grpc-web", Version::HTTP_2, false),
            ("application/grpc", Version::HTTP_11, false),
            ("application/json", Version::HTTP_2, false),
        ] {
            assert_eq!(is_grpc(version, &headers(kind)), is, "{kind} {version:?}");
        }
        let told = refusal(&Failure::NoRoute, true);
        assert_eq!(
            (told.status().as_u16(), &told.headers()["grpc-status"]),
            (200, &HeaderValue::from(12))
        );
        assert!(told.body().is_end_stream());
        let expired = Failure::Token(TokenError::Expired);
        let told = refusal(&expired, false);
        assert_eq!(told.status().as_u16(), 401);
        assert_eq!(
            told.headers()["www-authenticate"],
            "Bearer error=\"invalid_token\", error_description=\"the token has expired, or says no end\""
        );
        let told = refusal(&expired, true);
        assert_eq!(told.headers()["grpc-status"], HeaderValue::from(16));
        let told = refusal(&Failure::Token(TokenError::Several), false);
        assert_eq!(told.status().as_u16(), 400);
        let told = refusal(&Failure::NoRoute, false);
        assert_eq!(told.status().as_u16(), 404);
        assert!(!told.headers().contains_key("grpc-status"));
        let limited = Failure::Limited(std::time::Duration::from_millis(1001));
        let told = refusal(&limited, false);
        assert_eq!(
            (told.status().as_u16(), &told.headers()["retry-after"]),
            (429, &HeaderValue::from(2))
        );
        assert_eq!(refusal(&limited, true).headers()["grpc-status"], "8");
    }
}
