//! Cluster DNS: a small server on the service address that pods find in `/etc/resolv.conf`.
//!
//! It answers for services, headless services and the pods of StatefulSets below
//! `cluster.local`, over UDP and TCP, and knows no other names: a lab has no way out. The
//! supervisor replaces the [`Zone`] as a whole; readers keep the one they have.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, RwLock};

use anyhow::{Context, Result};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, SRV};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::Service;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use crate::manifest::Key;
use crate::netns::Netns;
use crate::pod::PodView;
use crate::services::{named_port, selects};

const DOMAIN: &str = "cluster.local";
const TTL: u32 = 5;

/// The names that exist and their records.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Zone {
    addresses: BTreeMap<String, BTreeSet<IpAddr>>,
    services: BTreeMap<String, BTreeSet<(u16, String)>>,
}

impl Zone {
    /// The names of completed services and of the pods behind the headless ones.
    pub fn of<'a>(
        services: impl Iterator<Item = (&'a Key, &'a Service)>,
        pods: &[PodView],
    ) -> Self {
        let mut zone = Self::default();
        zone.addresses.insert(DOMAIN.to_owned(), BTreeSet::new());
        for (key, service) in services {
            zone.add_service(key, service, pods);
        }
        zone
    }

    fn add_service(&mut self, key: &Key, service: &Service, pods: &[PodView]) {
        let Some(spec) = &service.spec else { return };
        let host = format!("{}.{}.svc.{DOMAIN}", key.name, key.namespace);
        let ips: Vec<IpAddr> = spec
            .cluster_ips
            .iter()
            .flatten()
            .filter_map(|ip| ip.parse().ok())
            .collect();
        self.addresses
            .entry(host.clone())
            .or_default()
            .extend(ips.iter().copied());
        let ports = || spec.ports.iter().flatten();
        let srv_name = |name: &Option<String>, protocol: &Option<String>| {
            let protocol = protocol.as_deref().unwrap_or("TCP").to_lowercase();
            name.as_ref()
                .map(|name| format!("_{name}._{protocol}.{host}"))
        };
        if !ips.is_empty() {
            for port in ports() {
                if let (Some(name), Ok(number)) = (
                    srv_name(&port.name, &port.protocol),
                    u16::try_from(port.port),
                ) {
                    self.services
                        .entry(name)
                        .or_default()
                        .insert((number, host.clone()));
                }
            }
            return;
        }
        let selector = spec.selector.clone().unwrap_or_default();
        let always = spec.publish_not_ready_addresses == Some(true);
        let families = spec.ip_families.clone().unwrap_or_default();
        for pod in pods.iter().filter(|pod| {
            pod.desired.namespace == key.namespace
                && selects(&selector, &pod.desired.labels)
                && (always || (pod.ready() && !pod.terminating))
        }) {
            let addresses: Vec<IpAddr> = families
                .iter()
                .filter_map(|family| pod.address(family == "IPv6"))
                .collect();
            self.addresses
                .entry(host.clone())
                .or_default()
                .extend(&addresses);
            let pods_spec = &pod.desired.spec;
            let hostname = match (&pods_spec.hostname, &pods_spec.subdomain) {
                (Some(hostname), Some(subdomain)) if *subdomain == key.name => hostname.clone(),
                _ => pod.v4.to_string().replace('.', "-"),
            };
            let target = format!("{hostname}.{host}");
            self.addresses
                .entry(target.clone())
                .or_default()
                .extend(&addresses);
            for port in ports() {
                let number = match &port.target_port {
                    Some(k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::String(n)) => {
                        named_port(n, &pods_spec.containers)
                    }
                    _ => u16::try_from(port.port).ok(),
                };
                if let (Some(name), Some(number)) = (srv_name(&port.name, &port.protocol), number) {
                    self.services
                        .entry(name)
                        .or_default()
                        .insert((number, target.clone()));
                }
            }
        }
    }

    /// A name exists, too, where only longer ones have records.
    fn exists(&self, name: &str) -> bool {
        let below = format!(".{name}");
        let mut names = self.addresses.keys().chain(self.services.keys());
        names.any(|known| known == name || known.ends_with(&below))
    }

    /// The answer to a query.
    pub fn answer(&self, query: &Message) -> Message {
        let mut response = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
        response.metadata.recursion_desired = query.metadata.recursion_desired;
        response.metadata.recursion_available = true;
        response.metadata.authoritative = true;
        let [question] = query.queries.as_slice() else {
            response.metadata.response_code = ResponseCode::FormErr;
            return response;
        };
        response.add_query(question.clone());
        let name = question
            .name()
            .to_ascii()
            .trim_end_matches('.')
            .to_lowercase();
        if !self.exists(&name) {
            response.metadata.response_code = ResponseCode::NXDomain;
            return response;
        }
        for record in self.records(&name, question.query_type()) {
            response.add_answer(Record::from_rdata(question.name().clone(), TTL, record));
        }
        response
    }

    fn records(&self, name: &str, kind: RecordType) -> Vec<RData> {
        let addresses = self.addresses.get(name).into_iter().flatten();
        match kind {
            RecordType::A => addresses
                .filter_map(|ip| match ip {
                    IpAddr::V4(v4) => Some(RData::A(A(*v4))),
                    IpAddr::V6(_) => None,
                })
                .collect(),
            RecordType::AAAA => addresses
                .filter_map(|ip| match ip {
                    IpAddr::V6(v6) => Some(RData::AAAA(AAAA(*v6))),
                    IpAddr::V4(_) => None,
                })
                .collect(),
            RecordType::SRV => self
                .services
                .get(name)
                .into_iter()
                .flatten()
                .filter_map(|(port, target)| {
                    let target = Name::from_str(&format!("{target}.")).ok()?;
                    Some(RData::SRV(SRV::new(0, 1, *port, target)))
                })
                .collect(),
            _ => Vec::new(),
        }
    }
}

/// The zone that is served, replaced as a whole.
pub type Shared = Arc<RwLock<Arc<Zone>>>;

/// The most that a client without EDNS takes over UDP, and that one with it gets.
const UDP_LIMITS: (u16, u16) = (512, 4096);

/// Serves `zone` on port 53 of `addresses` in the namespace, until the process ends.
pub fn serve(netns: &Netns, addresses: &[IpAddr], zone: &Shared) -> Result<()> {
    for &ip in addresses {
        let address = SocketAddr::new(ip, 53);
        let (udp, tcp) = netns.run(move || {
            let udp = std::net::UdpSocket::bind(address).context("binding UDP")?;
            let tcp = std::net::TcpListener::bind(address).context("binding TCP")?;
            udp.set_nonblocking(true)?;
            tcp.set_nonblocking(true)?;
            Ok((udp, tcp))
        })?;
        tokio::spawn(serve_udp(UdpSocket::from_std(udp)?, zone.clone()));
        tokio::spawn(serve_tcp(TcpListener::from_std(tcp)?, zone.clone()));
    }
    Ok(())
}

/// The answer, and how long it may be over UDP.
fn respond(zone: &Shared, packet: &[u8]) -> Option<(Message, usize)> {
    let query = Message::from_vec(packet).ok()?;
    if query.metadata.message_type != MessageType::Query {
        return None;
    }
    let (least, most) = UDP_LIMITS;
    let takes = query.edns.as_ref().map_or(least, Edns::max_payload);
    let zone = zone.read().expect("no holder panics").clone();
    Some((zone.answer(&query), takes.clamp(least, most).into()))
}

async fn serve_udp(socket: UdpSocket, zone: Shared) {
    let mut buffer = vec![0; 4096];
    loop {
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let Some((mut response, limit)) = respond(&zone, &buffer[..length]) else {
            continue;
        };
        let Ok(mut bytes) = response.to_vec() else {
            continue;
        };
        if bytes.len() > limit {
            response.answers.clear();
            response.metadata.truncation = true;
            bytes = response.to_vec().unwrap_or_default();
        }
        let _ = socket.send_to(&bytes, peer).await;
    }
}

async fn serve_tcp(listener: TcpListener, zone: Shared) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            continue;
        };
        let zone = zone.clone();
        tokio::spawn(async move {
            let _ = serve_stream(stream, &zone).await;
        });
    }
}

async fn serve_stream(mut stream: TcpStream, zone: &Shared) -> std::io::Result<()> {
    loop {
        let length = stream.read_u16().await?;
        let mut packet = vec![0; usize::from(length)];
        stream.read_exact(&mut packet).await?;
        let Some(bytes) = respond(zone, &packet).and_then(|(response, _)| response.to_vec().ok())
        else {
            return Ok(());
        };
        let Ok(length) = u16::try_from(bytes.len()) else {
            return Ok(());
        };
        stream.write_u16(length).await?;
        stream.write_all(&bytes).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Query;
    use serde_json::json;

    fn ask(zone: &Zone, name: &str, kind: RecordType) -> (ResponseCode, usize) {
        let mut query = Message::new(7, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(Name::from_str(name).unwrap(), kind));
        let answer = zone.answer(&query);
        assert_eq!(answer.metadata.id, 7);
        (answer.metadata.response_code, answer.answers.len())
    }

    #[test]
    fn services_have_addresses_and_named_ports_and_other_names_do_not_exist() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "db"},
            "spec": {"clusterIPs": ["10.42.128.20"], "ports": [{"name": "sql", "port": 5432}]},
        }))
        .unwrap();
        let key = Key::namespaced("Service", "shop", "db");
        let zone = Zone::of([(&key, &service)].into_iter(), &[]);
        let ok = ResponseCode::NoError;
        assert_eq!(
            ask(&zone, "db.shop.svc.cluster.local.", RecordType::A),
            (ok, 1)
        );
        assert_eq!(
            ask(&zone, "DB.shop.svc.cluster.local.", RecordType::A),
            (ok, 1)
        );
        assert_eq!(
            ask(&zone, "db.shop.svc.cluster.local.", RecordType::AAAA),
            (ok, 0)
        );
        assert_eq!(
            ask(
                &zone,
                "_sql._tcp.db.shop.svc.cluster.local.",
                RecordType::SRV
            ),
            (ok, 1)
        );
        assert_eq!(ask(&zone, "svc.cluster.local.", RecordType::A), (ok, 0));
        let none = (ResponseCode::NXDomain, 0);
        assert_eq!(ask(&zone, "x.shop.svc.cluster.local.", RecordType::A), none);
        assert_eq!(ask(&zone, "example.com.", RecordType::A), none);
    }
}
