//! Why a connection was not made or did not end in order: what failed, whose fault it was, and the flag that logs and
//! metrics carry.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use seine_hbone::{CopyEnd, Ended, Fault, OpenError, Role};
use seine_policy::Reason;

/// What went wrong with a connection.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Policy, or the absence of it.
    #[error("{}", denial(.0))]
    Denied(Reason),
    /// A change of policy or identity ended a live connection.
    #[error("closed, as a change of policy no longer allows it: {}", denial(.0))]
    Revoked(Reason),
    /// The trust bundles changed, and no longer lead to the peer's certificate.
    #[error("closed, as its peer is no longer trusted: {0}")]
    Distrusted(Arc<str>),
    /// Nobody redirected the connection: somebody talks to the proxy's port itself.
    #[error("{0} has no original destination: nothing redirected it here")]
    NoOriginalDestination(SocketAddr),
    /// To a port of the proxy's own, or to loopback.
    #[error("{0} is the proxy's own, or loopback")]
    OwnAddress(SocketAddr),
    /// The CONNECT's authority is no address of this pod, nor a service that it backs.
    #[error("{authority} is not an address of pod {pod}, nor a service that it backs")]
    NotThisPod {
        /// What was asked for.
        authority: String,
        /// The pod's name.
        pod: String,
    },
    /// Nothing can take the connection.
    #[error("{0}")]
    Unavailable(String),
    /// The pod has as many connections as it may.
    #[error(
        "the pod has reached its limit of connections, or its share of the proxy's file descriptors"
    )]
    Limit,
    /// The connection held more of the pod's memory than is left.
    #[error(
        "its reader took nothing, and such connections of the pod held as much memory as they may (--max-stalled-memory)"
    )]
    Stalled(Fault),
    /// The application, or an unmeshed destination, does not accept.
    #[error("can't connect to {to}: {source}")]
    Connect {
        /// The destination.
        to: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// No stream to the other proxy.
    #[error("{0}")]
    Tunnel(#[from] OpenError),
    /// This pod has no certificate.
    #[error("no certificate for {identity}: {reason}")]
    NoCertificate {
        /// Whose.
        identity: String,
        /// What the certificate manager said.
        reason: String,
    },
    /// The client gave up before the connection stood.
    #[error("the client gave up before it was connected")]
    GivenUp,
    /// It stood, and broke.
    #[error("{text}")]
    Broken {
        /// How.
        text: String,
        /// Whose fault it was.
        fault: Fault,
    },
    /// The proxy or the pod ended.
    #[error("cut when the {0} ended")]
    Cut(&'static str),
}

impl Failure {
    /// The failure in the end of a connection that stood; none if the end was in order.
    pub fn of_copy(end: &CopyEnd, role: Role) -> Option<Self> {
        let fault = end.fault(role)?;
        let text = match &end.how {
            Ended::Finished => return None,
            Ended::Tcp(_, error) => format!("the TCP connection failed: {error}"),
            Ended::Stream(error) => error.to_string(),
            Ended::Idle(limit) => idle(*limit),
            Ended::HalfClosed(limit) => format!("half closed, and {}", idle(*limit)),
            Ended::Stalled(_) => return Some(Self::Stalled(fault)),
        };
        Some(Self::Broken { text, fault })
    }

    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Denied(_)
            | Self::Revoked(_)
            | Self::Distrusted(_)
            | Self::NoOriginalDestination(_)
            | Self::OwnAddress(_)
            | Self::NotThisPod { .. }
            | Self::Limit
            | Self::GivenUp => Fault::Downstream,
            Self::Unavailable(_) | Self::Connect { .. } => Fault::Upstream,
            Self::Tunnel(error) => error.fault(),
            Self::Broken { fault, .. } | Self::Stalled(fault) => *fault,
            Self::NoCertificate { .. } | Self::Cut(_) => Fault::Internal,
        }
    }

    /// `response_flags` of logs and metrics.
    pub fn flag(&self) -> &'static str {
        match self {
            Self::Denied(_) | Self::Revoked(_) => "DENY",
            Self::NoOriginalDestination(_) | Self::OwnAddress(_) | Self::NotThisPod { .. } => {
                "REFUSED"
            }
            Self::Unavailable(_) => "NO_ENDPOINT",
            Self::Limit | Self::Stalled(_) => "LIMIT",
            Self::NoCertificate { .. } => "IDENTITY",
            Self::Connect { .. } => "CONNECT",
            Self::Distrusted(_) => "TLS_FAILURE",
            Self::Tunnel(error) => tunnel_flag(error),
            Self::GivenUp => "CLIENT_GONE",
            Self::Broken { .. } => "BROKEN",
            Self::Cut(_) => "CUT",
        }
    }

    /// Whether it is somebody's attempt to do what isn't allowed, to be logged as a warning.
    pub fn is_denial(&self) -> bool {
        matches!(self.flag(), "DENY" | "REFUSED")
    }
}

fn tunnel_flag(error: &OpenError) -> &'static str {
    match error {
        OpenError::Status { status, .. } => match status.as_u16() {
            401 => "DENY",
            503 => "CONNECT",
            _ => "HTTP2_FAILURE",
        },
        OpenError::Handshake { .. } | OpenError::Identity { .. } => "TLS_FAILURE",
        OpenError::Connect { source, .. } => {
            // A tunnel within a gateway's: it is the outer one that was not made.
            let outer = source.get_ref().and_then(|inner| inner.downcast_ref());
            outer.map_or("CONNECT", tunnel_flag)
        }
        OpenError::ConnectTimeout { .. } => "CONNECT",
        _ => "HTTP2_FAILURE",
    }
}

/// Name of a fault in logs and metrics.
pub fn fault_name(fault: Fault) -> &'static str {
    match fault {
        Fault::Upstream => "upstream",
        Fault::Downstream => "downstream",
        Fault::Internal => "internal",
    }
}

fn idle(limit: Duration) -> String {
    format!("nothing moved for {limit:?}")
}

fn denial(reason: &Reason) -> String {
    match reason {
        Reason::Denied { policy, rule } => format!("denied by policy {policy} (rule {rule})"),
        Reason::NoAllowMatched {
            policy,
            policies: 1,
        } => {
            format!("no allow policy matched: {policy} applies")
        }
        Reason::NoAllowMatched { policy, policies } => {
            format!(
                "no allow policy matched: {policy} and {} more apply",
                policies - 1
            )
        }
        Reason::PoliciesMissing { names } => {
            format!("policies not yet received: {}", names.join(", "))
        }
        Reason::BoundToWaypoint { port } => {
            format!("port {port} is bound to a waypoint, and the connection did not come from it")
        }
        // Not reasons of a denial.
        Reason::NoAllowPolicy => "no policy applies".to_owned(),
        Reason::Allowed { policy, rule } => format!("allowed by policy {policy} (rule {rule})"),
    }
}

#[cfg(test)]
mod tests {
    use http::StatusCode;
    use seine_hbone::StreamError;
    use seine_policy::PolicyKey;

    use super::*;

    fn tunnel(error: fn(SocketAddr, Arc<io::Error>) -> OpenError) -> Failure {
        let source = Arc::new(io::Error::other("x"));
        Failure::Tunnel(error(([10, 0, 0, 2], 15008).into(), source))
    }

    fn status(status: StatusCode) -> Failure {
        let peer = ([10, 0, 0, 2], 15008).into();
        Failure::Tunnel(OpenError::Status { peer, status })
    }

    /// What dashboards, alerts and people go by, each with whose fault it is and whether it is a denial.
    #[test]
    fn every_failure_has_its_flag_and_somebody_whose_fault_it_is() {
        use Fault::{Downstream, Internal, Upstream};
        let at: SocketAddr = ([10, 0, 0, 2], 80).into();
        let limit = Duration::from_secs(1);
        let denied = || Reason::Denied {
            policy: PolicyKey {
                namespace: "shop".into(),
                name: "no".into(),
            },
            rule: 0,
        };
        let lost = || StreamError::TunnelLost("x".into());
        for (failure, flag, fault, denial) in [
            (Failure::Denied(denied()), "DENY", Downstream, true),
            (Failure::Revoked(denied()), "DENY", Downstream, true),
            (
                Failure::Distrusted("x".into()),
                "TLS_FAILURE",
                Downstream,
                false,
            ),
            (
                Failure::NoOriginalDestination(at),
                "REFUSED",
                Downstream,
                true,
            ),
            (Failure::OwnAddress(at), "REFUSED", Downstream, true),
            (
                Failure::NotThisPod {
                    authority: at.to_string(),
                    pod: "b".into(),
                },
                "REFUSED",
                Downstream,
                true,
            ),
            (
                Failure::Unavailable("x".into()),
                "NO_ENDPOINT",
                Upstream,
                false,
            ),
            (Failure::Limit, "LIMIT", Downstream, false),
            (Failure::Stalled(Upstream), "LIMIT", Upstream, false),
            (
                Failure::Connect {
                    to: at,
                    source: io::ErrorKind::ConnectionRefused.into(),
                },
                "CONNECT",
                Upstream,
                false,
            ),
            (
                Failure::NoCertificate {
                    identity: "x".into(),
                    reason: "x".into(),
                },
                "IDENTITY",
                Internal,
                false,
            ),
            (Failure::GivenUp, "CLIENT_GONE", Downstream, false),
            (
                Failure::Broken {
                    text: "x".into(),
                    fault: Upstream,
                },
                "BROKEN",
                Upstream,
                false,
            ),
            (Failure::Cut("pod"), "CUT", Internal, false),
            (status(StatusCode::UNAUTHORIZED), "DENY", Upstream, true),
            (
                status(StatusCode::SERVICE_UNAVAILABLE),
                "CONNECT",
                Upstream,
                false,
            ),
            (
                status(StatusCode::BAD_REQUEST),
                "HTTP2_FAILURE",
                Upstream,
                false,
            ),
            (
                tunnel(|peer, source| OpenError::Handshake { peer, source }),
                "TLS_FAILURE",
                Upstream,
                false,
            ),
            (
                tunnel(|peer, _| OpenError::Identity {
                    peer,
                    found: "x".into(),
                }),
                "TLS_FAILURE",
                Upstream,
                false,
            ),
            (
                tunnel(|peer, source| OpenError::Connect { peer, source }),
                "CONNECT",
                Upstream,
                false,
            ),
            (
                Failure::Tunnel(OpenError::ConnectTimeout { peer: at, limit }),
                "CONNECT",
                Upstream,
                false,
            ),
            (
                Failure::Tunnel(OpenError::ResponseTimeout { peer: at, limit }),
                "HTTP2_FAILURE",
                Upstream,
                false,
            ),
            (
                Failure::Tunnel(OpenError::Tunnel {
                    peer: at,
                    source: lost(),
                    unsent: true,
                }),
                "HTTP2_FAILURE",
                Upstream,
                false,
            ),
            (
                Failure::Tunnel(OpenError::Draining),
                "HTTP2_FAILURE",
                Internal,
                false,
            ),
        ] {
            assert_eq!(
                (failure.flag(), failure.fault(), failure.is_denial()),
                (flag, fault, denial),
                "{failure:?}"
            );
            assert!(!failure.to_string().is_empty());
        }
    }

    #[test]
    fn an_end_in_order_is_no_failure_and_a_reset_is_whose_side_it_was() {
        let end = |how| CopyEnd {
            how,
            forth: 0,
            back: 0,
        };
        assert!(Failure::of_copy(&end(Ended::Finished), Role::Outbound).is_none());
        let idle = Ended::Idle(Duration::from_secs(60));
        let failure = Failure::of_copy(&end(idle), Role::Outbound).unwrap();
        assert_eq!(failure.flag(), "BROKEN");
        assert!(
            failure.to_string().contains("nothing moved for 60s"),
            "{failure}"
        );
    }
}
