//! Why a request was not answered by a backend: what the client is told, whose fault it was, and the flag of the log.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use http::StatusCode;
use seine_hbone::{Fault, OpenError};
use seine_policy::Reason;

use crate::grpc::GrpcStatus;
use crate::head::BadHead;
use crate::token::TokenError;
use crate::traffic_policy::Breaker;

/// What went wrong with a request or a connection.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A request that two readers could understand in two ways.
    #[error("{0}")]
    BadRequest(#[from] BadHead),
    /// The client's body.
    #[error("the request's body broke off, or is malformed")]
    Body,
    /// In this time the client has not sent its body, and the backend waits for it.
    #[error("the client's body has not come within {0:?}")]
    SlowBody(Duration),
    /// A token that is not valid.
    #[error("{0}")]
    Token(#[from] TokenError),
    /// The token's issuer can't be asked for its keys.
    #[error("the keys of {0} can't be had")]
    Keys(String),
    /// Policy, or the absence of it.
    #[error("{0}")]
    Denied(Reason),
    /// More requests than a policy lets clients make; after this time there may be another.
    #[error("more requests than the service's rateLimit allows: the next one in {0:?}")]
    Limited(Duration),
    /// A policy's provider says no. The client gets its answer.
    #[error("{provider} refuses it, by policy {policy}")]
    Refused {
        /// The policy.
        policy: String,
        /// Who was asked.
        provider: String,
    },
    /// A policy's provider says nothing that makes sense.
    #[error("{provider}, whom policy {policy} asks: {reason}")]
    External {
        /// The policy.
        policy: String,
        /// Who was asked.
        provider: String,
        /// What is wrong.
        reason: String,
    },
    /// No rule matches.
    #[error("no route matches")]
    NoRoute,
    /// In TLS for another host's listener.
    #[error("TLS is for another listener than the one that takes requests to this host")]
    Misdirected,
    /// A rule that can't be obeyed, or one without a backend that takes requests.
    #[error("route {rule}: {reason}")]
    Route {
        /// The rule.
        rule: String,
        /// What is wrong with it.
        reason: String,
    },
    /// More requests are under way than a policy allows.
    #[error("{0}")]
    Overloaded(Overload),
    /// Nothing can take the request.
    #[error("{0}")]
    Unavailable(String),
    /// A backend that is not meshed does not accept.
    #[error("can't connect to {to}: {source}")]
    Connect {
        /// The backend.
        to: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// No stream to the destination's proxy.
    #[error("{0}")]
    Tunnel(#[from] OpenError),
    /// This waypoint has no certificate.
    #[error("no certificate for {identity}: {reason}")]
    NoCertificate {
        /// Its identity.
        identity: String,
        /// What the certificate manager said.
        reason: String,
    },
    /// The backend's answer is not HTTP, or it broke off.
    #[error("the backend did not answer: {0}")]
    Upstream(hyper::Error),
    /// The backend's answer began and did not end.
    #[error("the backend's answer broke off: {reason}")]
    Broken {
        /// What HTTP says of it.
        reason: String,
        /// What that is to a client of gRPC.
        grpc: GrpcStatus,
    },
    /// The backend's answer makes no sense.
    #[error("the backend answered {0}")]
    Answer(&'static str),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

/// What of a backend's policy allows no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Overload {
    /// Its circuit breaker: requests.
    #[error(
        "{} requests are under way and {} wait, which is all that the backend's circuitBreaker allows",
        .0.max_requests, .0.max_pending
    )]
    Requests(Breaker),
    /// Its circuit breaker: connections.
    #[error(
        "{0} connections stand and none is idle, which is all that the backend's circuitBreaker allows"
    )]
    Connections(usize),
    /// What it can take now.
    #[error("{0} requests are under way, which is all that adaptiveConcurrency allows now")]
    Concurrency(usize),
}

impl Failure {
    /// What the client is told.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) | Self::Body => StatusCode::BAD_REQUEST,
            Self::SlowBody(_) => StatusCode::REQUEST_TIMEOUT,
            // RFC 6750, section 3.1.
            Self::Token(TokenError::Several) => StatusCode::BAD_REQUEST,
            Self::Token(_) => StatusCode::UNAUTHORIZED,
            Self::Denied(_) | Self::Refused { .. } => StatusCode::FORBIDDEN,
            Self::Limited(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Self::Route { .. } => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Keys(_)
            | Self::External { .. }
            | Self::Unavailable(_)
            | Self::Overloaded(_)
            | Self::Connect { .. }
            | Self::Tunnel(_)
            | Self::NoCertificate { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Upstream(_) | Self::Broken { .. } | Self::Answer(_) => StatusCode::BAD_GATEWAY,
            Self::Timeout(_) => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// What a client of gRPC is told, by the names of its codes.
    pub fn grpc_status(&self) -> GrpcStatus {
        match self {
            Self::BadRequest(_) | Self::Body => GrpcStatus::Internal,
            Self::SlowBody(_) => GrpcStatus::Cancelled,
            Self::Token(_) => GrpcStatus::Unauthenticated,
            Self::Denied(_) | Self::Refused { .. } => GrpcStatus::PermissionDenied,
            Self::Limited(_) => GrpcStatus::ResourceExhausted,
            Self::NoRoute => GrpcStatus::Unimplemented,
            Self::Timeout(_) => GrpcStatus::DeadlineExceeded,
            Self::Upstream(error) => GrpcStatus::of_break(error),
            Self::Broken { grpc, .. } => *grpc,
            _ => GrpcStatus::Unavailable,
        }
    }

    /// Whether another attempt may be made where a route asks for it.
    pub fn is_of_backend(&self) -> bool {
        matches!(
            self,
            Self::Connect { .. }
                | Self::Tunnel(_)
                | Self::Upstream(_)
                | Self::Answer(_)
                | Self::Timeout(_)
        )
    }

    /// One word for logs and metrics.
    pub fn flag(&self) -> &'static str {
        match self {
            Self::BadRequest(_) | Self::Body => "BAD_REQUEST",
            Self::SlowBody(_) => "SLOW_CLIENT",
            Self::Token(_) => "TOKEN",
            Self::Denied(_) | Self::Refused { .. } => "DENY",
            Self::External { .. } => "EXTERNAL",
            Self::Limited(_) => "RATE_LIMITED",
            Self::Overloaded(_) => "OVERLOADED",
            Self::Keys(_) => "KEYS",
            Self::NoRoute => "NO_ROUTE",
            Self::Misdirected => "MISDIRECTED",
            Self::Route { .. } => "ROUTE",
            Self::Unavailable(_) => "NO_ENDPOINT",
            Self::Connect { .. } | Self::Tunnel(_) => "CONNECT",
            Self::NoCertificate { .. } => "IDENTITY",
            Self::Upstream(_) | Self::Broken { .. } | Self::Answer(_) => "UPSTREAM",
            Self::Timeout(_) => "TIMEOUT",
        }
    }

    /// Whose fault it was.
    pub fn fault(&self) -> Fault {
        match self {
            Self::BadRequest(_)
            | Self::Body
            | Self::SlowBody(_)
            | Self::Token(_)
            | Self::Denied(_)
            | Self::Refused { .. }
            | Self::Limited(_)
            | Self::NoRoute
            | Self::Misdirected => Fault::Downstream,
            Self::Route { .. } | Self::NoCertificate { .. } => Fault::Internal,
            Self::Keys(_)
            | Self::External { .. }
            | Self::Unavailable(_)
            | Self::Overloaded(_)
            | Self::Connect { .. }
            | Self::Tunnel(_)
            | Self::Upstream(_)
            | Self::Broken { .. }
            | Self::Answer(_)
            | Self::Timeout(_) => Fault::Upstream,
        }
    }

    /// Whether the backend has certainly seen nothing, so that another one may be asked.
    pub fn left_no_trace(&self) -> bool {
        match self {
            Self::Connect { .. } => true,
            Self::Tunnel(error) => error.retryable(),
            _ => false,
        }
    }
}

/// As logs name it.
pub fn fault_name(fault: Fault) -> &'static str {
    match fault {
        Fault::Upstream => "upstream",
        Fault::Downstream => "downstream",
        Fault::Internal => "internal",
    }
}
