//! From types back to the wire, for the last good configuration on disk. What is parsed again is
//! equal to what was encoded.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use prost::Message;
use seine_policy::{
    Action, Match, Policy, Provider, ProviderProtocol, RequestMatch, Scope, ServiceAccountMatch,
    StringMatch, TokenMatch,
};
use seine_proto::{extensions, security, workload as proto};

use crate::model::{
    AppProtocol, GatewayAddress, GatewayDestination, HealthPolicy, IpFamilies, LoadBalancing, Mode,
    NetworkAddress, Port, RoutingScope, Service, TunnelProtocol, Workload, WorkloadType,
};
use crate::parse::{
    AUTHORIZATION_EXTENSION, REQUEST_EXTENSION, SERVICE_EXTENSION, TOKEN_EXTENSION,
    WORKLOAD_EXTENSION,
};

/// A workload as the control plane would send it.
pub(crate) fn workload(from: &Workload) -> proto::Workload {
    proto::Workload {
        name: from.name.to_string(),
        namespace: from.namespace.to_string(),
        addresses: from.addresses.iter().copied().map(ip).collect(),
        network: from.network.to_string(),
        tunnel_protocol: match from.tunnel_protocol {
            TunnelProtocol::None => proto::TunnelProtocol::None,
            TunnelProtocol::Hbone => proto::TunnelProtocol::Hbone,
            TunnelProtocol::LegacyMtls => proto::TunnelProtocol::LegacyIstioMtls,
        }
        .into(),
        trust_domain: from.identity.trust_domain().to_string(),
        service_account: from.identity.service_account().to_owned(),
        waypoint: from.waypoint.as_deref().map(gateway),
        node: from.node.to_string(),
        canonical_name: from.canonical_name.to_string(),
        canonical_revision: from.canonical_revision.to_string(),
        workload_type: match from.workload_type {
            WorkloadType::Deployment => proto::WorkloadType::Deployment,
            WorkloadType::CronJob => proto::WorkloadType::Cronjob,
            WorkloadType::Pod => proto::WorkloadType::Pod,
            WorkloadType::Job => proto::WorkloadType::Job,
        }
        .into(),
        workload_name: from.workload_name.to_string(),
        native_tunnel: from.native_tunnel,
        authorization_policies: from.policies.iter().map(|name| name.to_string()).collect(),
        status: match from.healthy {
            true => proto::WorkloadStatus::Healthy,
            false => proto::WorkloadStatus::Unhealthy,
        }
        .into(),
        cluster_id: from.cluster_id.to_string(),
        network_gateway: from.network_gateway.as_deref().map(gateway),
        uid: from.uid.to_string(),
        hostname: from.hostname.to_string(),
        services: (from.services.iter())
            .map(|(key, of)| (key.to_string(), proto::PortList { ports: ports(of) }))
            .collect(),
        application_tunnel: from
            .proxy_protocol_port
            .map(|port| proto::ApplicationTunnel {
                protocol: proto::application_tunnel::Protocol::Proxy.into(),
                port: port.into(),
            }),
        locality: Some(proto::Locality {
            region: from.locality.region.to_string(),
            zone: from.locality.zone.to_string(),
            subzone: from.locality.subzone.to_string(),
        }),
        network_mode: match from.host_network {
            true => proto::NetworkMode::HostNetwork,
            false => proto::NetworkMode::Standard,
        }
        .into(),
        extensions: (from.extension.iter())
            .map(|extension| {
                let message = extensions::WorkloadExtension {
                    bound_ports: (extension.bound_ports.iter())
                        .map(|bound| extensions::BoundPort {
                            target_port: bound.target_port.into(),
                            waypoint_identities: (bound.waypoints.iter())
                                .map(|identity| identity.to_string())
                                .collect(),
                        })
                        .collect(),
                    pod_hostname: extension.pod_hostname.to_string(),
                    pod_subdomain: extension.pod_subdomain.to_string(),
                    dns_opt_out: extension.dns_opt_out,
                };
                let config = any("seine.workload.v1.WorkloadExtension", &message);
                proto::Extension {
                    name: WORKLOAD_EXTENSION.to_owned(),
                    config: Some(config),
                }
            })
            .collect(),
        capacity: Some(from.capacity),
    }
}

/// A service as the control plane would send it.
pub(crate) fn service(from: &Service) -> proto::Service {
    proto::Service {
        name: from.name.to_string(),
        namespace: from.key.namespace.to_string(),
        hostname: from.key.hostname.to_string(),
        addresses: (from.addresses.iter())
            .map(|address| proto::NetworkAddress {
                network: address.network.to_string(),
                address: ip(address.block.addr()),
                length: Some(address.block.prefix_len().into()),
            })
            .collect(),
        ports: ports(&from.ports),
        subject_alt_names: from
            .accepted_identities
            .iter()
            .map(|id| id.to_string())
            .collect(),
        waypoint: from.waypoint.as_deref().map(gateway),
        load_balancing: Some(load_balancing(&from.load_balancing)),
        ip_families: match from.ip_families {
            IpFamilies::Automatic => proto::IpFamilies::Automatic,
            IpFamilies::Ipv4Only => proto::IpFamilies::Ipv4Only,
            IpFamilies::Ipv6Only => proto::IpFamilies::Ipv6Only,
            IpFamilies::Dual => proto::IpFamilies::Dual,
        }
        .into(),
        extensions: service_extension(from).into_iter().collect(),
        canonical: from.canonical,
        ingress_use_waypoint: from.ingress_use_waypoint,
        weighted_waypoints: (from.weighted_waypoints.iter())
            .map(|waypoint| proto::WeightedWaypoint {
                destination: Some(gateway(&waypoint.destination)),
                weight: waypoint.weight,
            })
            .collect(),
        visibility: match from.namespace_private {
            true => proto::Visibility::Namespace,
            false => proto::Visibility::Public,
        }
        .into(),
    }
}

/// None where there is nothing to say.
fn service_extension(from: &Service) -> Option<proto::Extension> {
    let names = |names: &[Arc<str>]| names.iter().map(ToString::to_string).collect();
    let port_names = from.port_names.iter();
    let message = extensions::ServiceExtension {
        port_names: port_names
            .map(|(n, name)| ((*n).into(), name.to_string()))
            .collect(),
        policies: names(&from.policies),
        authentications: names(&from.authentications),
    };
    (message != extensions::ServiceExtension::default()).then(|| proto::Extension {
        name: SERVICE_EXTENSION.to_owned(),
        config: Some(any("seine.workload.v1.ServiceExtension", &message)),
    })
}

/// A policy as the control plane would send it.
pub(crate) fn policy(from: &Policy) -> security::Authorization {
    let rules = from.rules.iter().map(|rule| security::Rule {
        clauses: (rule.clauses.iter())
            .map(|clause| security::Clause {
                matches: clause.matches.iter().map(policy_match).collect(),
            })
            .collect(),
    });
    let message = extensions::AuthorizationExtension {
        unenforced_fields: from.unenforced_fields.clone(),
        enforced_only: from.enforced_only,
        external: from.provider.as_deref().map(provider),
    };
    let extension = (message != extensions::AuthorizationExtension::default()).then(|| {
        let config = any("seine.workload.v1.AuthorizationExtension", &message);
        security::Extension {
            name: AUTHORIZATION_EXTENSION.to_owned(),
            config: Some(config),
        }
    });
    security::Authorization {
        name: from.key.name.to_string(),
        namespace: from.key.namespace.to_string(),
        scope: match from.scope {
            Scope::Global => security::Scope::Global,
            Scope::Namespace => security::Scope::Namespace,
            Scope::Workload => security::Scope::WorkloadSelector,
        }
        .into(),
        action: match from.action {
            Action::Allow => security::Action::Allow,
            Action::Deny => security::Action::Deny,
        }
        .into(),
        rules: rules.collect(),
        dry_run: from.dry_run,
        extensions: extension.into_iter().collect(),
    }
}

fn provider(from: &Provider) -> extensions::ExternalProvider {
    use extensions::external_provider::Protocol;
    let texts = |texts: &[Box<str>]| texts.iter().map(ToString::to_string).collect();
    extensions::ExternalProvider {
        namespace: from.namespace.to_string(),
        hostname: from.hostname.to_string(),
        port: from.port.into(),
        protocol: match from.protocol {
            ProviderProtocol::Grpc => Protocol::Grpc,
            ProviderProtocol::Http => Protocol::Http,
        }
        .into(),
        timeout_ms: u64::try_from(from.timeout.as_millis()).unwrap_or(u64::MAX),
        fail_open: from.fail_open,
        path_prefix: from.path_prefix.to_string(),
        request_headers: texts(&from.request_headers),
        to_backend: texts(&from.to_backend),
        to_client: texts(&from.to_client),
    }
}

fn policy_match(from: &Match) -> security::Match {
    security::Match {
        namespaces: strings(&from.namespaces),
        not_namespaces: strings(&from.not_namespaces),
        principals: strings(&from.principals),
        not_principals: strings(&from.not_principals),
        source_ips: blocks(&from.source_ips),
        not_source_ips: blocks(&from.not_source_ips),
        destination_ips: blocks(&from.destination_ips),
        not_destination_ips: blocks(&from.not_destination_ips),
        destination_ports: from
            .destination_ports
            .iter()
            .map(|port| (*port).into())
            .collect(),
        not_destination_ports: (from.not_destination_ports.iter())
            .map(|port| (*port).into())
            .collect(),
        service_accounts: accounts(&from.service_accounts),
        not_service_accounts: accounts(&from.not_service_accounts),
        extensions: (from.request.as_deref().map(request).into_iter())
            .chain(from.token.as_deref().map(token))
            .chain(from.unknown_condition.then(|| security::Extension {
                name: "unknown".to_owned(),
                config: None,
            }))
            .collect(),
    }
}

fn request(from: &RequestMatch) -> security::Extension {
    let texts = |values: &[Box<str>]| values.iter().map(ToString::to_string).collect();
    let message = extensions::RequestMatch {
        methods: texts(&from.methods),
        not_methods: texts(&from.not_methods),
        paths: strings(&from.paths),
        not_paths: strings(&from.not_paths),
        hosts: strings(&from.hosts),
        not_hosts: strings(&from.not_hosts),
        headers: (from.headers.iter())
            .map(|header| extensions::HeaderMatch {
                name: header.name.to_string(),
                values: strings(&header.values),
            })
            .collect(),
    };
    security::Extension {
        name: REQUEST_EXTENSION.to_owned(),
        config: Some(any("seine.workload.v1.RequestMatch", &message)),
    }
}

fn token(from: &TokenMatch) -> security::Extension {
    let message = extensions::TokenMatch {
        principals: strings(&from.principals),
        not_principals: strings(&from.not_principals),
        claims: (from.claims.iter())
            .map(|claim| extensions::ClaimMatch {
                path: claim.path.iter().map(ToString::to_string).collect(),
                values: strings(&claim.values),
                not_values: strings(&claim.not_values),
            })
            .collect(),
    };
    security::Extension {
        name: TOKEN_EXTENSION.to_owned(),
        config: Some(any("seine.workload.v1.TokenMatch", &message)),
    }
}

fn strings(from: &[StringMatch]) -> Vec<security::StringMatch> {
    use security::string_match::MatchType;
    let one = |from: &StringMatch| security::StringMatch {
        match_type: Some(match from {
            StringMatch::Exact(text) => MatchType::Exact(text.to_string()),
            StringMatch::Prefix(text) => MatchType::Prefix(text.to_string()),
            StringMatch::Suffix(text) => MatchType::Suffix(text.to_string()),
            StringMatch::Presence => MatchType::Presence(()),
        }),
    };
    from.iter().map(one).collect()
}

fn blocks(from: &[IpNet]) -> Vec<security::Address> {
    let one = |block: &IpNet| security::Address {
        address: ip(block.addr()),
        length: block.prefix_len().into(),
    };
    from.iter().map(one).collect()
}

fn accounts(from: &[ServiceAccountMatch]) -> Vec<security::ServiceAccountMatch> {
    let one = |from: &ServiceAccountMatch| security::ServiceAccountMatch {
        namespace: from.namespace.to_string(),
        service_account: from.name.to_string(),
    };
    from.iter().map(one).collect()
}

fn ports(from: &[Port]) -> Vec<proto::Port> {
    let one = |port: &Port| proto::Port {
        service_port: port.service_port.into(),
        target_port: port.target_port.into(),
        app_protocol: match port.app_protocol {
            AppProtocol::Unknown => proto::AppProtocol::Unknown,
            AppProtocol::Http11 => proto::AppProtocol::Http11,
            AppProtocol::Http2 => proto::AppProtocol::Http2,
            AppProtocol::Grpc => proto::AppProtocol::Grpc,
            AppProtocol::Tcp => proto::AppProtocol::Tcp,
            AppProtocol::Tls => proto::AppProtocol::Tls,
        }
        .into(),
    };
    from.iter().map(one).collect()
}

fn gateway(from: &GatewayAddress) -> proto::GatewayAddress {
    use proto::gateway_address::Destination;
    let destination = match &from.destination {
        GatewayDestination::Service(key) => Destination::Hostname(proto::NamespacedHostname {
            namespace: key.namespace.to_string(),
            hostname: key.hostname.to_string(),
        }),
        GatewayDestination::Address(NetworkAddress { network, address }) => {
            Destination::Address(proto::NetworkAddress {
                network: network.to_string(),
                address: ip(*address),
                length: None,
            })
        }
    };
    proto::GatewayAddress {
        destination: Some(destination),
        hbone_mtls_port: from.hbone_port.into(),
    }
}

fn load_balancing(from: &LoadBalancing) -> proto::LoadBalancing {
    use proto::load_balancing as wire;
    let scope = |scope: &RoutingScope| match scope {
        RoutingScope::Region => wire::Scope::Region,
        RoutingScope::Zone => wire::Scope::Zone,
        RoutingScope::Subzone => wire::Scope::Subzone,
        RoutingScope::Node => wire::Scope::Node,
        RoutingScope::Cluster => wire::Scope::Cluster,
        RoutingScope::Network => wire::Scope::Network,
    };
    proto::LoadBalancing {
        routing_preference: from.scopes.iter().map(|s| scope(s).into()).collect(),
        mode: match from.mode {
            Mode::Standard => wire::Mode::UnspecifiedMode,
            Mode::Strict => wire::Mode::Strict,
            Mode::Failover => wire::Mode::Failover,
            Mode::Passthrough => wire::Mode::Passthrough,
        }
        .into(),
        health_policy: match from.health_policy {
            HealthPolicy::OnlyHealthy => wire::HealthPolicy::OnlyHealthy,
            HealthPolicy::AllowAll => wire::HealthPolicy::AllowAll,
        }
        .into(),
    }
}

fn ip(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn any(name: &str, message: &impl Message) -> prost_types::Any {
    let type_url = format!("type.googleapis.com/{name}");
    prost_types::Any {
        type_url,
        value: message.encode_to_vec(),
    }
}
