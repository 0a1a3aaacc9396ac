//! Whether a connection would be allowed, by which policies, at each pod that may take it.

use std::{fmt, net::SocketAddr, sync::Arc};

use seine_policy::{Action, Applicable, Connection, Decision, PolicyStep, Scope, explain};
use seine_workload::{TunnelProtocol, Workload};
use serde::Serialize;

use crate::{
    party::{Destination, Name, Source},
    world::World,
};

/// Stands for a client's port, which no policy judges.
const CLIENT_PORT: u16 = 40000;

/// What would become of a connection.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// Who connects.
    pub source: Client,
    /// Where to, as it was understood.
    pub destination: String,
    /// What holds for all endpoints together.
    pub verdict: Verdict,
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
    /// Explains a connection between two names; those without a namespace are in `namespace`.
    pub fn explain(
        &self,
        source: &Name,
        destination: &Name,
        namespace: &str,
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
        let (named, endpoints) = match &destination {
            Destination::Outside(address, port) => {
                let address = SocketAddr::new(*address, *port);
                notes.push("the mesh doesn't know the destination: it is left alone".to_owned());
                (format!("address {address}"), vec![Self::outside(address)])
            }
            Destination::Pods(pods, port) => {
                let judged = pods.iter().map(|pod| self.judge(&source, pod, *port));
                let name = pods.first().map_or("", |pod| &*pod.name);
                (format!("pod {name}, port {port}"), judged.collect())
            }
            Destination::Service(service, port) => {
                let named = format!("service {}, port {port}", service.key);
                let endpoints = self.store.endpoints(&service.key);
                let mut judged = Vec::new();
                for pod in &endpoints {
                    let ports = pod.services.iter().find(|(key, _)| *key == service.key);
                    let ports = ports.map_or(&[][..], |(_, ports)| ports);
                    let Some(found) = ports.iter().find(|found| found.service_port == *port) else {
                        notes.push(format!("{} doesn't have that port", pod.name));
                        continue;
                    };
                    if !pod.healthy {
                        notes.push(format!(
                            "{} is not ready: it gets no new connection",
                            pod.name
                        ));
                    }
                    judged.push(self.judge(&source, pod, found.target_port));
                }
                judged.sort_by(|a, b| a.pod.cmp(&b.pod));
                (named, judged)
            }
        };
        let allowed = endpoints.iter().filter(|endpoint| endpoint.allowed).count();
        let verdict = match (allowed, endpoints.len()) {
            (_, 0) => Verdict::NoEndpoint,
            (0, _) => Verdict::Denied,
            (some, all) if some == all => Verdict::Allowed,
            _ => Verdict::Mixed,
        };
        Ok(Explanation {
            source: Client {
                pod: own.map(|workload| pod_name(workload)),
                address: source.address.to_string(),
                in_mesh: own.is_some_and(|workload| is_meshed(workload)),
                identity: own.map(|workload| workload.identity.to_string()),
            },
            destination: named,
            verdict,
            endpoints,
            notes,
        })
    }

    fn outside(address: SocketAddr) -> Endpoint {
        Endpoint {
            pod: None,
            address: address.to_string(),
            transport: Transport::Plaintext,
            allowed: true,
            because: "nothing of the mesh judges it".to_owned(),
            policies: Vec::new(),
            with_dry_run: None,
        }
    }

    /// As the destination's proxy does.
    fn judge(&self, source: &Source, pod: &Arc<Workload>, port: u16) -> Endpoint {
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
            transport,
            allowed: true,
            because: "the pod is not in the mesh: nothing judges what comes to it".to_owned(),
            policies: Vec::new(),
            with_dry_run: None,
        };
        if !is_meshed(pod) {
            return endpoint;
        }
        let decision = if !self.store.admits(pod, port, identity, source.address) {
            Decision::bound_to_waypoint(port)
        } else {
            match self.store.policies_for(&pod.uid) {
                Applicable::Missing(names) => Decision::missing(names),
                Applicable::Ready(policies) => {
                    let connection = Connection {
                        source: SocketAddr::new(source.address, CLIENT_PORT),
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

    fn policy(&self, step: &PolicyStep, pod: &Workload) -> Policy {
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
        for endpoint in &self.endpoints {
            let transport = match endpoint.transport {
                Transport::MutualTls => "mutual TLS",
                Transport::Plaintext => "plaintext",
            };
            match &endpoint.pod {
                Some(pod) => writeln!(f, "\nat pod {pod} ({}), {transport}", endpoint.address)?,
                None => writeln!(f, "\nat {}, {transport}", endpoint.address)?,
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
            Verdict::NoEndpoint => "nothing is there that would take it",
        };
        writeln!(f, "\n{verdict}")?;
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}
