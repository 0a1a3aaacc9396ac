//! How source and destination are named, and which workloads the names mean.

use std::{fmt, net::IpAddr, str::FromStr, sync::Arc};

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::Pod;
use seine_objects::{ObjectKey, pods};
use seine_workload::{Service, Workload};

use crate::world::World;

/// A name as given: `IP`, `[KIND/]NAME[.NAMESPACE]`, or a service's DNS name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    kind: Kind,
    /// Without the kind.
    text: String,
    /// After the last colon.
    pub port: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Whatever has that name.
    Any,
    Address(IpAddr),
    Pod,
    Service,
    ServiceAccount,
    /// What makes pods.
    Owner(&'static str),
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.parse::<std::net::SocketAddr>() {
            return Ok(Self::address(address.ip(), Some(address.port())));
        }
        if let Ok(address) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
            return Ok(Self::address(address, None));
        }
        let (rest, port) = match text.rsplit_once(':') {
            Some((rest, port)) => {
                let port = port.parse::<u16>().ok().filter(|port| *port > 0);
                let port =
                    port.ok_or_else(|| format!("{text:?}: after the colon stands no port"))?;
                (rest, Some(port))
            }
            None => (text, None),
        };
        let (kind, name) = match rest.split_once('/') {
            Some((kind, name)) => (Self::kind(kind)?, name),
            None => (Kind::Any, rest),
        };
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-.*_".contains(c);
        if name.is_empty() || !name.chars().all(is_name) {
            return Err(format!(
                "{text:?} is no name: use IP, [KIND/]NAME[.NAMESPACE] or a service's DNS name"
            ));
        }
        Ok(Self {
            kind,
            text: name.to_owned(),
            port,
        })
    }
}

impl Name {
    fn address(address: IpAddr, port: Option<u16>) -> Self {
        Self {
            kind: Kind::Address(address),
            text: address.to_string(),
            port,
        }
    }

    fn kind(text: &str) -> Result<Kind, String> {
        Ok(match text.to_ascii_lowercase().as_str() {
            "pod" | "pods" | "po" => Kind::Pod,
            "service" | "services" | "svc" => Kind::Service,
            "serviceaccount" | "serviceaccounts" | "sa" => Kind::ServiceAccount,
            "deployment" | "deployments" | "deploy" => Kind::Owner("Deployment"),
            "statefulset" | "statefulsets" | "sts" => Kind::Owner("StatefulSet"),
            "daemonset" | "daemonsets" | "ds" => Kind::Owner("DaemonSet"),
            "replicaset" | "replicasets" | "rs" => Kind::Owner("ReplicaSet"),
            "cronjob" | "cronjobs" | "cj" => Kind::Owner("CronJob"),
            "job" | "jobs" => Kind::Owner("Job"),
            _ => {
                return Err(format!(
                    "{text:?} is no kind that connects: use pod, service, serviceaccount, deployment, statefulset, daemonset, job or cronjob"
                ));
            }
        })
    }

    /// Name and namespace, where only those are meant: `NAME[.NAMESPACE]`.
    fn key(&self, default: &str) -> ObjectKey {
        match self.text.split_once('.') {
            Some((name, namespace)) => ObjectKey::new(namespace, name),
            None => ObjectKey::new(default, &self.text),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Who connects.
#[derive(Clone, Debug)]
pub struct Source {
    /// The pod; none for an address that the mesh doesn't know.
    pub workload: Option<Arc<Workload>>,
    /// Its address.
    pub address: IpAddr,
    /// So many pods are meant by the name; the first stands for them.
    pub pods: usize,
}

/// Where to.
#[derive(Clone, Debug)]
pub enum Destination {
    /// A service and its port.
    Service(Arc<Service>, u16),
    /// Pods and their port.
    Pods(Vec<Arc<Workload>>, u16),
    /// An address that the mesh doesn't know.
    Outside(IpAddr, u16),
}

impl World {
    /// Who a name means as a source.
    pub fn source(&self, name: &Name, namespace: &str) -> anyhow::Result<Source> {
        if let Kind::Address(address) = name.kind {
            let workload = self.store.workload_at(address);
            return Ok(Source {
                workload,
                address,
                pods: 1,
            });
        }
        if name.kind == Kind::Service {
            bail!("service {name} connects to nobody: name one of its pods, or what makes them");
        }
        let found = self.pods(name, namespace);
        let pods = found.len();
        let workload = found.into_iter().next().with_context(|| {
            format!(
                "there is no pod of that name in namespace {}: {name}",
                name.key(namespace).namespace
            )
        })?;
        let address = workload.addresses.first();
        let address = *address.with_context(|| format!("{} has no address", workload.name))?;
        Ok(Source {
            workload: Some(workload),
            address,
            pods,
        })
    }

    /// Where a name and its port lead.
    pub fn destination(&self, name: &Name, namespace: &str) -> anyhow::Result<Destination> {
        if let Kind::Address(address) = name.kind {
            if let Some(service) = self.store.service_at(address, Some(namespace)) {
                let port = service_port(&service, name.port)?;
                return Ok(Destination::Service(service, port));
            }
            if let Some(workload) = self.store.workload_at(address) {
                return self.to_pods(vec![workload], name.port);
            }
            let port = name.port.context("which port? Add :PORT")?;
            return Ok(Destination::Outside(address, port));
        }
        if matches!(name.kind, Kind::Any | Kind::Service)
            && let Some(service) = self.service(name, namespace)
        {
            let port = service_port(&service, name.port)?;
            return Ok(Destination::Service(service, port));
        }
        let found = match name.kind {
            Kind::Service => Vec::new(),
            _ => self.pods(name, namespace),
        };
        if found.is_empty() {
            bail!(
                "there is no service or pod of that name in namespace {}: {name}",
                name.key(namespace).namespace
            );
        }
        self.to_pods(found, name.port)
    }

    fn to_pods(&self, pods: Vec<Arc<Workload>>, port: Option<u16>) -> anyhow::Result<Destination> {
        if let Some(port) = port {
            return Ok(Destination::Pods(pods, port));
        }
        let object = pods.first().and_then(|workload| self.pod_of(workload));
        let declared: Vec<u16> = object
            .and_then(|pod| pod.spec.as_ref())
            .into_iter()
            .flat_map(|spec| &spec.containers)
            .flat_map(|container| container.ports.iter().flatten())
            .filter_map(|port| u16::try_from(port.container_port).ok())
            .collect();
        match declared[..] {
            [port] => Ok(Destination::Pods(pods, port)),
            _ => bail!("which port? Add :PORT{}", ports_hint(&declared)),
        }
    }

    /// `NAME`, `NAME.NAMESPACE`, and the longer forms of a DNS name.
    fn service(&self, name: &Name, namespace: &str) -> Option<Arc<Service>> {
        let domain = &self.settings.dns_domain;
        let parts: Vec<&str> = name.text.split('.').collect();
        let full = match parts[..] {
            [name] => format!("{name}.{namespace}.svc.{domain}"),
            [name, namespace] | [name, namespace, "svc"] => {
                format!("{name}.{namespace}.svc.{domain}")
            }
            _ => name.text.trim_end_matches('.').to_owned(),
        };
        let full = full.to_ascii_lowercase();
        self.store.service_named(&full, Some(namespace))
    }

    /// The pods in order of their names: the pod of that name, else those that it makes.
    fn pods(&self, name: &Name, namespace: &str) -> Vec<Arc<Workload>> {
        let key = name.key(namespace);
        let workload = |key: &ObjectKey| {
            let cluster = &self.settings.cluster_id;
            self.store.pod(cluster, &key.namespace, &key.name)
        };
        if matches!(name.kind, Kind::Any | Kind::Pod)
            && let Some(found) = workload(&key)
        {
            return vec![found];
        }
        let of_namespace = self
            .objects
            .pods
            .iter()
            .filter(|(pod, _)| pod.namespace == key.namespace);
        let is_meant = |pod: &Pod| match name.kind {
            Kind::Any => owner(pod).is_some_and(|(_, name)| name == key.name),
            Kind::Owner(kind) => owner(pod).is_some_and(|owner| owner == (kind, key.name.clone())),
            Kind::ServiceAccount => pods::service_account(pod) == key.name,
            Kind::Pod | Kind::Service | Kind::Address(_) => false,
        };
        of_namespace
            .filter(|(_, pod)| is_meant(pod))
            .filter_map(|(key, _)| workload(key))
            .collect()
    }

    /// The object that a workload was made of.
    pub fn pod_of(&self, workload: &Workload) -> Option<&Pod> {
        self.objects.pod(&workload.namespace, &workload.name)
    }
}

/// What made a pod, as people name it: the Deployment, not its ReplicaSet.
pub fn owner(pod: &Pod) -> Option<(&str, String)> {
    let owners = pod.metadata.owner_references.as_deref()?;
    let owner = owners.iter().find(|owner| owner.controller == Some(true))?;
    if owner.kind == "ReplicaSet" {
        let labels = pod.metadata.labels.as_ref();
        let hash = labels.and_then(|labels| labels.get("pod-template-hash"));
        let deployment = hash.and_then(|hash| {
            let name = owner.name.strip_suffix(hash.as_str())?;
            name.strip_suffix('-')
        });
        if let Some(name) = deployment {
            return Some(("Deployment", name.to_owned()));
        }
    }
    Some((&owner.kind, owner.name.clone()))
}

fn service_port(service: &Service, port: Option<u16>) -> anyhow::Result<u16> {
    let ports: Vec<u16> = service.ports.iter().map(|port| port.service_port).collect();
    match (port, &ports[..]) {
        (Some(port), _) if ports.contains(&port) => Ok(port),
        (Some(port), _) => bail!(
            "service {} has no TCP port {port}{}",
            service.key,
            ports_hint(&ports)
        ),
        (None, [port]) => Ok(*port),
        (None, _) => bail!("which port? Add :PORT{}", ports_hint(&ports)),
    }
}

fn ports_hint(ports: &[u16]) -> String {
    if ports.is_empty() {
        return String::new();
    }
    let list: Vec<String> = ports.iter().map(u16::to_string).collect();
    format!("; there are {}", list.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_told_apart() {
        let parse = |text: &str| text.parse::<Name>();
        let name = parse("svc/postgres.shop:5432").unwrap();
        assert_eq!((name.kind, name.port), (Kind::Service, Some(5432)));
        assert_eq!(name.key("default"), ObjectKey::new("shop", "postgres"));
        let address = "10.0.0.1".parse().unwrap();
        assert_eq!(parse("10.0.0.1:80").unwrap().kind, Kind::Address(address));
        let v6 = parse("[fd00::1]:80").unwrap();
        assert_eq!(v6.kind, Kind::Address("fd00::1".parse().unwrap()));
        assert_eq!(v6.port, Some(80));
        assert_eq!(parse("fd00::1").unwrap().port, None);
        for bad in ["", "pod/", "frog/x", "web:0", "web:http", "a b"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
