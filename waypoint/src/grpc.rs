//! How a call of gRPC ended. Its status comes in the trailers of the answer, or in its head if there is no body; where it
//! doesn't come, the status is what the client's library makes of the end that it sees.

use std::error::Error;

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

/// Where a status stands.
pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// The codes of gRPC (its `doc/statuscodes.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "each is gRPC's of that name")]
pub enum GrpcStatus {
    Ok = 0,
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

/// Each at the place of its number.
const ALL: [(GrpcStatus, &str); 17] = [
    (GrpcStatus::Ok, "OK"),
    (GrpcStatus::Cancelled, "CANCELLED"),
    (GrpcStatus::Unknown, "UNKNOWN"),
    (GrpcStatus::InvalidArgument, "INVALID_ARGUMENT"),
    (GrpcStatus::DeadlineExceeded, "DEADLINE_EXCEEDED"),
    (GrpcStatus::NotFound, "NOT_FOUND"),
    (GrpcStatus::AlreadyExists, "ALREADY_EXISTS"),
    (GrpcStatus::PermissionDenied, "PERMISSION_DENIED"),
    (GrpcStatus::ResourceExhausted, "RESOURCE_EXHAUSTED"),
    (GrpcStatus::FailedPrecondition, "FAILED_PRECONDITION"),
    (GrpcStatus::Aborted, "ABORTED"),
    (GrpcStatus::OutOfRange, "OUT_OF_RANGE"),
    (GrpcStatus::Unimplemented, "UNIMPLEMENTED"),
    (GrpcStatus::Internal, "INTERNAL"),
    (GrpcStatus::Unavailable, "UNAVAILABLE"),
    (GrpcStatus::DataLoss, "DATA_LOSS"),
    (GrpcStatus::Unauthenticated, "UNAUTHENTICATED"),
];

impl GrpcStatus {
    /// As conventions for logs and metrics write it.
    pub fn name(self) -> &'static str {
        ALL[self as usize].1
    }

    /// Whether it is the server's fault, by OpenTelemetry's conventions for gRPC.
    pub(crate) fn is_of_server(self) -> bool {
        matches!(
            self,
            Self::Unknown
                | Self::DeadlineExceeded
                | Self::Unimplemented
                | Self::Internal
                | Self::Unavailable
                | Self::DataLoss
        )
    }

    /// What a head or trailers say. A code that there isn't is `UNKNOWN`, as for clients.
    pub(crate) fn said(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get(GRPC_STATUS)?;
        let number = value.to_str().ok().and_then(|text| text.parse().ok());
        let known = number.and_then(|number: usize| ALL.get(number));
        Some(known.map_or(Self::Unknown, |(status, _)| *status))
    }

    /// Of an answer that ended in order and has not said it (gRPC's `doc/http-grpc-status-mapping.md`).
    pub(crate) fn of_http(status: StatusCode) -> Self {
        match status.as_u16() {
            400 => Self::Internal,
            401 => Self::Unauthenticated,
            403 => Self::PermissionDenied,
            404 => Self::Unimplemented,
            429 | 502..=504 => Self::Unavailable,
            _ => Self::Unknown,
        }
    }

    /// Of a stream that was reset with this code of HTTP/2 (gRPC's `doc/PROTOCOL-HTTP2.md`).
    fn of_reset(reason: h2::Reason) -> Self {
        match reason {
            h2::Reason::REFUSED_STREAM => Self::Unavailable,
            h2::Reason::CANCEL => Self::Cancelled,
            h2::Reason::ENHANCE_YOUR_CALM => Self::ResourceExhausted,
            h2::Reason::INADEQUATE_SECURITY => Self::PermissionDenied,
            _ => Self::Internal,
        }
    }

    /// Of an answer that broke off: by a reset, or with its connection.
    pub(crate) fn of_break(error: &(dyn Error + 'static)) -> Self {
        let mut cause = Some(error);
        while let Some(error) = cause {
            let reset = error.downcast_ref::<h2::Error>();
            if let Some(reason) = reset
                .filter(|error| error.is_reset())
                .and_then(h2::Error::reason)
            {
                return Self::of_reset(reason);
            }
            cause = error.source();
        }
        Self::Unavailable
    }
}

impl From<GrpcStatus> for HeaderValue {
    fn from(status: GrpcStatus) -> Self {
        (status as u16).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_is_read_by_its_number_and_what_is_none_is_unknown() {
        let said = |value: &'static str| {
            let pairs = [(GRPC_STATUS, HeaderValue::from_static(value))];
            GrpcStatus::said(&pairs.into_iter().collect())
        };
        for (number, (status, name)) in ALL.iter().enumerate() {
            assert_eq!((*status as usize, status.name()), (number, *name));
        }
        assert_eq!(said("0"), Some(GrpcStatus::Ok));
        assert_eq!(said("16"), Some(GrpcStatus::Unauthenticated));
        for nonsense in ["17", "-1", "", "OK", "99999999999999999999"] {
            assert_eq!(said(nonsense), Some(GrpcStatus::Unknown), "{nonsense:?}");
        }
        assert_eq!(GrpcStatus::said(&HeaderMap::new()), None);
    }

    #[test]
    fn what_was_not_said_is_what_a_client_makes_of_the_end() {
        let of_http = |status| GrpcStatus::of_http(StatusCode::from_u16(status).unwrap());
        assert_eq!(of_http(200), GrpcStatus::Unknown);
        assert_eq!(of_http(404), GrpcStatus::Unimplemented);
        assert_eq!(of_http(503), GrpcStatus::Unavailable);
        let reset = |reason: h2::Reason| GrpcStatus::of_reset(reason);
        assert_eq!(reset(h2::Reason::CANCEL), GrpcStatus::Cancelled);
        assert_eq!(reset(h2::Reason::NO_ERROR), GrpcStatus::Internal);
        let broken = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert_eq!(GrpcStatus::of_break(&broken), GrpcStatus::Unavailable);
    }
}
