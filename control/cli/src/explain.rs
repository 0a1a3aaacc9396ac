//! Whether a connection would be allowed, by which policies, at each pod that may take it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use seine_identity::Identity;
use seine_policy::{Action, Applicable, Connection, Decision, PolicyStep, Scope, explain};
use seine_workload::{Service, ServiceKey, TunnelProtocol, Workload};
use serde::Serialize;

use crate::{
    asked::Asked,
    at_waypoint::{AtWaypoint, Waypoint},
    party::{Destination, Name, Source},
    world::World,
};

/// Stands for a client's port, which no policy judges.
pub(crate) const CLIENT_PORT: u16 = 40000;
const NO_WAYPOINT: &str = "no waypoint stands between: requests are not judged, and --method, --path, --host, --header and --claim don't count";

/// What would become of a connection, or of a request on it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Who connects.
    pub source: Client,
    /// Where to, as it was understood.
    pub destination: String,
    /// What holds for all endpoints together.
    pub verdict: Verdict,
    /// What the waypoint between them does, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waypoint: Option<AtWaypoint>,
    /// One for each pod that may take the connection.
    pub endpoints: Vec<Endpoint>,
    /// What else is to be known, each a sentence.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// The verdict on all endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// Every endpoint takes it.
    Allowed,
    /// No endpoint takes it.
    Denied,
    /// Some endpoints take it.
    Mixed,
    /// A waypoint answers it with an error.
    Failed,
    /// Nothing would take it.
    NoEndpoint,
}

/// Who connects.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Client {
    /// `namespace/name` of the pod; none for an address that the mesh doesn't know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Its address.
    pub address: String,
    /// Its connections are captured.
    pub in_mesh: bool,
    /// What it proves to be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
}

/// A pod, and the verdict there.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// `namespace/name`; none for an address outside of the mesh's knowledge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Address and port of the pod.
    pub address: String,
    /// The service, where a route leads to another one than was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// `mutualTls` or `plaintext`.
    pub transport: Transport,
    /// Whether the connection may go on.
    pub allowed: bool,
    /// Why, or why not.
    pub because: String,
    /// Every policy that was judged.
    pub policies: Vec<Policy>,
    /// What would hold with the dry-run policies in force, where there are some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub with_dry_run: Option<WithDryRun>,
}

/// How the connection travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Transport {
    /// Both sides are in the mesh.
    MutualTls,
    /// One of them isn't.
    Plaintext,
}

/// What one policy contributed.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Policy {
    /// `namespace/name`, as the proxies know it.
    pub policy: String,
    /// The `MeshTLS` objects that it may stem from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<String>,
    /// `allow` or `deny`.
    pub action: &'static str,
    /// `mesh`, `namespace` or `workload`.
    pub scope: &'static str,
    /// Judged, never enforced.
    pub dry_run: bool,
    /// Index of the rule that matches.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub matched_rule: Option<usize>,
    /// All of that in words.
    pub text: String,
}

/// A verdict that includes dry-run policies.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WithDryRun {
    /// Whether the connection would go on.
    pub allowed: bool,
    /// Why, or why not.
    pub because: String,
}

impl World {
    /// Explains a connection between two names, or a request on it; names without a namespace are in `namespace`.
    pub fn explain(
        &self,
        source: &Name,
        destination: &Name,
        namespace: &str,
        asked: &Asked,
    ) -> anyhow::Result<Explanation> {
        let source = self.source(source, namespace)?;
        let own = source.workload.as_ref();
        let namespace = own.map_or(namespace, |workload| &*workload.namespace);
        let destination = self.destination(destination, namespace)?;
        let mut notes = Vec::new();
        if source.pods > 1 {
            notes.push(format!(
                "the source's name means {} pods: the first stands for them",
                source.pods
            ));
        }
        let mut waypoint = None;
        let (named, endpoints) = match &destination {
            Destination::Outside(address, port) => {
                let address = SocketAddr::new(*address, *port);
                notes.push("the mesh doesn't know the destination: it is left alone".to_owned());
                (format!("address {address}"), vec![Self::outside(address)])
            }
            Destination::Pods(pods, port) => {
                let judged = pods
                    .iter()
                    .map(|pod| self.to_pod(&source, pod, *port, asked, &mut notes));
                let judged = judged.collect::<anyhow::Result<Vec<_>>>()?;
                let (at, endpoints): (Vec<_>, Vec<_>) = judged.into_iter().unzip();
                waypoint = at.into_iter().flatten().next();
                let name = pods.first().map_or("", |pod| &*pod.name);
                (
                    format!("pod {name}, port {port}"),
                    endpoints.into_iter().flatten().collect(),
                )
            }
            Destination::Service(service, port) => {
                let named = format!("service {}, port {port}", service.key);
                let (at, endpoints) =
                    self.to_service(&source, (service, *port), asked, &mut notes)?;
                waypoint = at;
                (named, endpoints)
            }
        };
        if waypoint.is_none() && asked.request("")?.is_some() {
            notes.push(NO_WAYPOINT.to_owned());
        }
        Ok(Explanation {
            source: Client {
                pod: own.map(|workload| pod_name(workload)),
                address: source.address.to_string(),
                in_mesh: own.is_some_and(|workload| is_meshed(workload)),
                identity: own.map(|workload| workload.identity.to_string()),
            },
            destination: named,
            verdict: verdict(waypoint.as_ref(), &endpoints),
            waypoint,
            endpoints,
            notes,
        })
    }

    /// By the service's waypoint, if it has one and the client is in the mesh: nobody else's connections are sent there.
    fn to_service(
        &self,
        source: &Source,
        (service, port): (&Arc<Service>, u16),
        asked: &Asked,
        notes: &mut Vec<String>,
    ) -> anyhow::Result<(Option<AtWaypoint>, Vec<Endpoint>)> {
        let client = source.workload.as_ref().filter(|client| is_meshed(client));
        let waypoints = self.waypoints_of(service);
        let Some(client) = client.filter(|_| !waypoints.is_empty()) else {
            let endpoints = self.at_pods(source, None, (&service.key, port), notes);
            return Ok((None, endpoints));
        };
        let services = [(service.clone(), port)];
        let at = self.at_waypoint(client, source.address, (&services, false), asked, notes)?;
        if !at.allowed {
            return Ok((Some(at), Vec::new()));
        }
        let route = at.route.as_ref();
        if route.is_some_and(|route| route.answer.is_some()) {
            return Ok((Some(at), Vec::new()));
        }
        let mut endpoints = Vec::new();
        let backends = route.map(|route| &*route.backends).unwrap_or_default();
        for backend in backends
            .iter()
            .filter(|backend| backend.weight > 0 && backend.refused.is_none())
        {
            let Some((namespace, hostname)) = backend.service.split_once('/') else {
                continue;
            };
            let key = ServiceKey {
                namespace: namespace.into(),
                hostname: hostname.into(),
            };
            let mut judged = self.at_pods(source, Some(&waypoints), (&key, backend.port), notes);
            if key != service.key {
                for endpoint in &mut judged {
                    endpoint.backend = Some(format!("service {key}, port {}", backend.port));
                }
            }
            endpoints.extend(judged);
        }
        if backends.is_empty() {
            endpoints = self.at_pods(source, Some(&waypoints), (&service.key, port), notes);
        }
        Ok((Some(at), endpoints))
    }

    /// By its own waypoint, if it has one.
    fn to_pod(
        &self,
        source: &Source,
        pod: &Arc<Workload>,
        port: u16,
        asked: &Asked,
        notes: &mut Vec<String>,
    ) -> anyhow::Result<(Option<AtWaypoint>, Option<Endpoint>)> {
        let client = source.workload.as_ref().filter(|client| is_meshed(client));
        let leading = || {
            let ports = pod.services.iter().flat_map(|(key, ports)| {
                let ports = ports.iter().filter(|found| found.target_port == port);
                ports.map(move |found| (key, found.service_port))
            });
            let services = ports.filter_map(|(key, port)| Some((self.store.service(key)?, port)));
            let bound = services.filter(|(service, _)| !self.waypoints_of(service).is_empty());
            bound.collect::<Vec<_>>()
        };
        let services = match (client, pod.own_waypoint(port)) {
            (Some(_), Some(_)) => leading(),
            _ => Vec::new(),
        };
        let (Some(client), Some((first, _))) = (client, services.first()) else {
            return Ok((None, Some(self.judge(source, None, pod, port))));
        };
        let waypoints = self.waypoints_of(first);
        let at = self.at_waypoint(client, source.address, (&services, true), asked, notes)?;
        let judged = at
            .allowed
            .then(|| self.judge(source, Some(&waypoints), pod, port));
        Ok((Some(at), judged))
    }

    /// At each pod behind a service.
    fn at_pods(
        &self,
        source: &Source,
        through: Option<&[Waypoint]>,
        (service, port): (&ServiceKey, u16),
        notes: &mut Vec<String>,
    ) -> Vec<Endpoint> {
        let mut judged = Vec::new();
        for pod in &self.store.endpoints(service) {
            let Some(target) = pod.target_port(service, port) else {
                notes.push(format!("{} doesn't have that port", pod.name));
                continue;
            };
            if !pod.healthy {
                notes.push(format!(
                    "{} is not ready: it gets no new connection",
                    pod.name
                ));
            }
            judged.push(self.judge(source, through, pod, target));
        }
        judged.sort_by(|a, b| a.pod.cmp(&b.pod));
        judged
    }

    fn outside(address: SocketAddr) -> Endpoint {
        Endpoint {
            pod: None,
            address: address.to_string(),
            backend: None,
            transport: Transport::Plaintext,
            allowed: true,
            because: "nothing of the mesh judges it".to_owned(),
            policies: Vec::new(),
            with_dry_run: None,
        }
    }

    /// As the destination's proxy does; `through` whom the connection comes.
    fn judge(
        &self,
        source: &Source,
        through: Option<&[Waypoint]>,
        pod: &Arc<Workload>,
        port: u16,
    ) -> Endpoint {
        let address = pod.addresses.first().copied();
        let address = SocketAddr::new(address.unwrap_or(source.address), port);
        let client = source.workload.as_ref();
        let identity = client
            .filter(|client| is_meshed(client) && is_meshed(pod))
            .map(|client| &client.identity);
        let transport = match identity {
            Some(_) => Transport::MutualTls,
            None => Transport::Plaintext,
        };
        let mut endpoint = Endpoint {
            pod: Some(pod_name(pod)),
            address: address.to_string(),
            backend: None,
            transport,
            allowed: true,
            because: "the pod is not in the mesh: nothing judges what comes to it".to_owned(),
            policies: Vec::new(),
            with_dry_run: None,
        };
        if !is_meshed(pod) {
            return endpoint;
        }
        let (admitted, identity, from) = match through {
            None => {
                let admitted = self.store.admits(pod, port, identity, source.address);
                (admitted, identity, source.address)
            }
            Some(waypoints) => as_seen(pod, port, waypoints, identity, source.address),
        };
        let decision = if !admitted {
            Decision::bound_to_waypoint(port)
        } else {
            match self.store.policies_for(&pod.uid) {
                Applicable::Missing(names) => Decision::missing(names),
                Applicable::Ready(policies) => {
                    let connection = Connection {
                        source: SocketAddr::new(from, CLIENT_PORT),
                        destination: address,
                        identity,
                        request: None,
                    };
                    let explained = explain(&policies, &connection);
                    let steps = explained.steps.iter();
                    endpoint.policies = steps.map(|step| self.policy(step, pod)).collect();
                    explained.decision
                }
            }
        };
        endpoint.allowed = decision.allowed;
        endpoint.because = decision.because.to_string();
        endpoint.with_dry_run = decision.audit.map(|audit| WithDryRun {
            allowed: audit.allowed,
            because: audit.because.to_string(),
        });
        endpoint
    }

    pub(crate) fn policy(&self, step: &PolicyStep, pod: &Workload) -> Policy {
        let policy = &step.policy;
        let name = policy.key.to_string();
        let modes = self.findings.mesh_tls.iter();
        let from = modes
            .filter(|(key, finding)| {
                let near = key.namespace == *pod.namespace
                    || key.namespace == self.settings.root_namespace;
                near && finding.resources.contains(&name)
            })
            .map(|(key, _)| key.to_string())
            .collect();
        Policy {
            policy: name,
            from,
            action: match policy.action {
                Action::Allow => "allow",
                Action::Deny => "deny",
            },
            scope: match policy.scope {
                Scope::Global => "mesh",
                Scope::Namespace => "namespace",
                Scope::Workload => "workload",
            },
            dry_run: policy.dry_run,
            matched_rule: step.matched,
            text: step.to_string(),
        }
    }
}

fn verdict(waypoint: Option<&AtWaypoint>, endpoints: &[Endpoint]) -> Verdict {
    let route = waypoint.and_then(|at| at.route.as_ref());
    if waypoint.is_some_and(|at| !at.allowed) {
        return Verdict::Denied;
    }
    if let Some(route) = route.filter(|route| route.answer.is_some()) {
        return match route.failed {
            true => Verdict::Failed,
            false => Verdict::Allowed,
        };
    }
    let refused = route.is_some_and(|route| {
        let mut backends = route.backends.iter();
        backends.any(|backend| backend.weight > 0 && backend.refused.is_some())
    });
    let allowed = endpoints.iter().filter(|endpoint| endpoint.allowed).count();
    match (allowed, endpoints.len()) {
        (_, 0) if refused => Verdict::Failed,
        (_, 0) => Verdict::NoEndpoint,
        (0, _) => Verdict::Denied,
        (some, all) if some == all && !refused => Verdict::Allowed,
        _ => Verdict::Mixed,
    }
}

/// Whether the proxy of a pod admits what one of these waypoints sends, and as whose it judges that: the first client's where the
/// port is bound to the waypoint, else the waypoint's own.
fn as_seen<'a>(
    pod: &Workload,
    port: u16,
    waypoints: &'a [Waypoint],
    client: Option<&'a Identity>,
    address: IpAddr,
) -> (bool, Option<&'a Identity>, IpAddr) {
    match pod.bound_to(port) {
        Some(bound) => {
            let mut waypoints = waypoints.iter();
            let admitted = waypoints.all(|waypoint| bound.contains(&waypoint.identity));
            (admitted, client, address)
        }
        None => {
            let waypoint = waypoints.first();
            let workload = waypoint.and_then(|waypoint| waypoint.workload.as_ref());
            let own = workload.and_then(|workload| workload.addresses.first());
            let identity = waypoint.map(|waypoint| &waypoint.identity);
            (true, identity, own.copied().unwrap_or(address))
        }
    }
}

fn is_meshed(workload: &Workload) -> bool {
    workload.tunnel_protocol == TunnelProtocol::Hbone
}

fn pod_name(workload: &Workload) -> String {
    format!("{}/{}", workload.namespace, workload.name)
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = &self.source;
        match &source.pod {
            Some(pod) => write!(f, "from  pod {pod} ({})", source.address)?,
            None => write!(f, "from  address {}", source.address)?,
        }
        match (&source.identity, source.in_mesh) {
            (Some(identity), true) => writeln!(f, ", in the mesh as {identity}")?,
            _ => writeln!(f, ", not in the mesh")?,
        }
        writeln!(f, "to    {}", self.destination)?;
        if let Some(waypoint) = &self.waypoint {
            waypoint.fmt(f)?;
        }
        for endpoint in &self.endpoints {
            let transport = match endpoint.transport {
                Transport::MutualTls => "mutual TLS",
                Transport::Plaintext => "plaintext",
            };
            match &endpoint.pod {
                Some(pod) => writeln!(f, "\nat pod {pod} ({}), {transport}", endpoint.address)?,
                None => writeln!(f, "\nat {}, {transport}", endpoint.address)?,
            }
            if let Some(backend) = &endpoint.backend {
                writeln!(f, "  of {backend}")?;
            }
            for policy in &endpoint.policies {
                write!(f, "  {}", policy.text)?;
                if !policy.from.is_empty() {
                    write!(f, " [MeshTLS {}]", policy.from.join(", "))?;
                }
                writeln!(f)?;
            }
            let allowed = |allowed| if allowed { "ALLOWED" } else { "DENIED" };
            writeln!(f, "  {}: {}", allowed(endpoint.allowed), endpoint.because)?;
            if let Some(audit) = &endpoint.with_dry_run {
                let verdict = allowed(audit.allowed);
                writeln!(
                    f,
                    "  with dry-run policies in force {verdict}: {}",
                    audit.because
                )?;
            }
        }
        let verdict = match self.verdict {
            Verdict::Allowed => "allowed",
            Verdict::Denied => "denied",
            Verdict::Mixed => "allowed at some of the pods only",
            Verdict::Failed => "answered with an error",
            Verdict::NoEndpoint => "nothing is there that would take it",
        };
        writeln!(f, "\n{verdict}")?;
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}
