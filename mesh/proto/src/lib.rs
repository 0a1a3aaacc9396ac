//! The wire schemas that Seine shares with its peers, and its own extensions of them.
//!
//! Nothing here interprets a message: each crate that receives one parses it at its border into
//! types of its own.

#![forbid(unsafe_code)]

#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto files carry the documentation"
)]
mod generated {
    pub mod istio {
        pub mod workload {
            tonic::include_proto!("istio.workload");
            pub mod zds {
                tonic::include_proto!("istio.workload.zds");
            }
        }
        pub mod security {
            tonic::include_proto!("istio.security");
        }
        pub mod v1 {
            pub mod auth {
                tonic::include_proto!("istio.v1.auth");
            }
        }
    }
    pub mod envoy {
        pub mod config {
            pub mod core {
                pub mod v3 {
                    tonic::include_proto!("envoy.config.core.v3");
                }
            }
        }
        pub mod service {
            pub mod auth {
                pub mod v3 {
                    tonic::include_proto!("envoy.service.auth.v3");
                }
            }
            pub mod discovery {
                pub mod v3 {
                    tonic::include_proto!("envoy.service.discovery.v3");
                }
            }
        }
    }
    pub mod google {
        pub mod rpc {
            tonic::include_proto!("google.rpc");
        }
    }
    pub mod seine {
        pub mod handover {
            pub mod v1 {
                tonic::include_proto!("seine.handover.v1");
            }
        }
        pub mod listeners {
            pub mod v1 {
                tonic::include_proto!("seine.listeners.v1");
            }
        }
        pub mod waypoint {
            pub mod v1 {
                tonic::include_proto!("seine.waypoint.v1");
            }
        }
        pub mod workload {
            pub mod v1 {
                tonic::include_proto!("seine.workload.v1");
            }
        }
    }
}

pub use generated::envoy::config::core::v3 as core;
pub use generated::envoy::service::auth::v3 as external_auth;
pub use generated::envoy::service::discovery::v3 as discovery;
pub use generated::google::rpc;
pub use generated::istio::security;
pub use generated::istio::v1::auth as ca;
pub use generated::istio::workload;
pub use generated::istio::workload::zds;
pub use generated::seine::handover::v1 as handover;
pub use generated::seine::listeners::v1 as listeners;
pub use generated::seine::waypoint::v1 as waypoint;
pub use generated::seine::workload::v1 as extensions;

impl std::fmt::Debug for waypoint::Certificate {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let chain = self.chain.len();
        f.debug_struct("Certificate")
            .field("chain", &chain)
            .finish_non_exhaustive()
    }
}

/// Type URL of [`workload::Address`] resources.
pub const ADDRESS_TYPE: &str = "type.googleapis.com/istio.workload.Address";
/// Type URL of [`security::Authorization`] resources.
pub const AUTHORIZATION_TYPE: &str = "type.googleapis.com/istio.security.Authorization";
/// Type URL of [`waypoint::RouteRule`] resources.
pub const ROUTE_RULE_TYPE: &str = "type.googleapis.com/seine.waypoint.v1.RouteRule";
/// Type URL of [`waypoint::TrafficPolicy`] resources.
pub const TRAFFIC_POLICY_TYPE: &str = "type.googleapis.com/seine.waypoint.v1.TrafficPolicy";
/// Type URL of [`waypoint::RequestAuthentication`] resources.
pub const AUTHENTICATION_TYPE: &str = "type.googleapis.com/seine.waypoint.v1.RequestAuthentication";
/// Type URL of [`waypoint::Listener`] resources.
pub const LISTENER_TYPE: &str = "type.googleapis.com/seine.waypoint.v1.Listener";
/// Type URL of [`extensions::RefusedResources`].
pub const REFUSED_RESOURCES_TYPE: &str = "type.googleapis.com/seine.workload.v1.RefusedResources";
