//! What kube-proxy does on each node, for pods that are not in the mesh: service addresses
//! become those of endpoints, chosen at random, by nftables in the node's namespace. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use serde_json::Value;

use crate::manifest::Key;
use crate::names::Addresses;

/// One service port of one family, and where it leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Route {
    address: IpAddr,
    port: u16,
    protocol: String,
    endpoints: Vec<(IpAddr, u16)>,
}

/// The rules of every node, as input for `nft -f -`. They replace those before in one step.
pub fn rules<'a>(
    addresses: Addresses,
    services: impl Iterator<Item = (&'a Key, &'a Service)>,
    slices: &[(Key, Value)],
) -> String {
    let mut by_service: BTreeMap<(&str, &str), Vec<&Value>> = BTreeMap::new();
    for (key, slice) in slices {
        if let Some(service) = slice
            .pointer("/metadata/labels/kubernetes.io~1service-name")
            .and_then(Value::as_str)
        {
            by_service
                .entry((&key.namespace, service))
                .or_default()
                .push(slice);
        }
    }
    let mut routes = Vec::new();
    for (key, service) in services {
        let slices = by_service.get(&(key.namespace.as_str(), key.name.as_str()));
        routes.extend(routes_of(service, slices.map_or(&[][..], Vec::as_slice)));
    }
    write_rules(addresses, &routes)
}

fn routes_of(service: &Service, slices: &[&Value]) -> Vec<Route> {
    let Some(spec) = &service.spec else {
        return Vec::new();
    };
    let mut routes = Vec::new();
    let ips = spec
        .cluster_ips
        .iter()
        .flatten()
        .filter_map(|ip| ip.parse::<IpAddr>().ok());
    for address in ips {
        let family = if address.is_ipv6() { "IPv6" } else { "IPv4" };
        for port in spec.ports.iter().flatten() {
            let mut endpoints = Vec::new();
            for slice in slices.iter().filter(|slice| slice["addressType"] == family) {
                let name = port.name.as_deref().unwrap_or_default();
                let number = slice["ports"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .find_map(|p| {
                        let own = p["name"].as_str().unwrap_or_default();
                        (own == name).then(|| u16::try_from(p["port"].as_u64()?).ok())?
                    });
                let Some(number) = number else { continue };
                for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
                    let ready = endpoint["conditions"]["ready"].as_bool().unwrap_or(true);
                    let ip = endpoint["addresses"][0]
                        .as_str()
                        .and_then(|ip| ip.parse().ok());
                    if let (true, Some(ip)) = (ready, ip) {
                        endpoints.push((ip, number));
                    }
                }
            }
            routes.push(Route {
                address,
                port: u16::try_from(port.port).unwrap_or_default(),
                protocol: port.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
                endpoints,
            });
        }
    }
    routes
}

fn write_rules(addresses: Addresses, routes: &[Route]) -> String {
    let mut translate = String::new();
    let mut hairpin = String::new();
    for Route {
        address,
        port,
        protocol,
        endpoints,
    } in routes
    {
        if endpoints.is_empty() || !matches!(protocol.as_str(), "tcp" | "udp") {
            continue;
        }
        let family = if address.is_ipv6() { "ip6" } else { "ip" };
        let targets: Vec<String> = endpoints
            .iter()
            .enumerate()
            .map(|(index, (ip, port))| format!("{index} : {ip} . {port}"))
            .collect();
        let _ = writeln!(
            translate,
            "    {family} daddr {address} {protocol} dport {port} \
             dnat {family} to numgen random mod {} map {{ {} }}",
            endpoints.len(),
            targets.join(", ")
        );
        for (ip, _) in endpoints {
            let rule =
                format!("    ct status dnat {family} saddr {ip} {family} daddr {ip} masquerade\n");
            if !hairpin.contains(&rule) {
                hairpin += &rule;
            }
        }
    }
    let (dns_v4, dns_v6) = addresses.dns();
    let (v4, v6) = (addresses.services_v4(), addresses.services_v6());
    // Adding the table first makes deleting it no error the first time.
    format!(
        "add table inet services\n\
         delete table inet services\n\
         table inet services {{\n\
         \x20 chain translate {{\n{translate}  }}\n\
         \x20 chain prerouting {{\n    type nat hook prerouting priority -100;\n    jump translate\n  }}\n\
         \x20 chain output {{\n    type nat hook output priority -100;\n    jump translate\n  }}\n\
         \x20 chain postrouting {{\n    type nat hook postrouting priority 100;\n{hairpin}  }}\n\
         \x20 chain unanswered {{\n\
         \x20   ip daddr {dns_v4} accept\n    ip6 daddr {dns_v6} accept\n\
         \x20   ip daddr {v4} reject\n    ip6 daddr {v6} reject\n  }}\n\
         \x20 chain forward {{\n    type filter hook forward priority filter;\n    jump unanswered\n  }}\n\
         \x20 chain local {{\n    type filter hook output priority filter;\n    jump unanswered\n  }}\n\
         }}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ready_endpoints_of_the_right_port_and_family_are_chosen_from() {
        let key = Key::namespaced("Service", "x", "a");
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "a"},
            "spec": {"clusterIPs": ["10.42.128.20"], "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]},
        }))
        .unwrap();
        let slice = json!({
            "metadata": {"labels": {"kubernetes.io/service-name": "a"}},
            "addressType": "IPv4",
            "ports": [{"name": "other", "port": 1}, {"name": "http", "port": 8080}],
            "endpoints": [
                {"addresses": ["10.42.65.2"], "conditions": {"ready": true}},
                {"addresses": ["10.42.65.3"], "conditions": {"ready": false}},
                {"addresses": ["10.42.66.2"], "conditions": {"ready": true}},
            ],
        });
        let slices = [(Key::namespaced("EndpointSlice", "x", "a-1"), slice)];
        let rules = rules(
            Addresses { block: 42 },
            [(&key, &service)].into_iter(),
            &slices,
        );
        assert!(
            rules.contains(
                "ip daddr 10.42.128.20 tcp dport 80 dnat ip to numgen random mod 2 \
                 map { 0 : 10.42.65.2 . 8080, 1 : 10.42.66.2 . 8080 }"
            ),
            "{rules}"
        );
        assert!(!rules.contains("10.42.65.3"), "{rules}");
    }
}
