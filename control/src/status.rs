//! What users are told of the objects that they wrote: conditions, as a report.
//!
//! The admin page `/status` shows them; where there is an API server, [`crate::publish`] writes
//! them there. One pure function of the model, of what the proxies hold, and of problems.

pub mod backend_tls;
pub mod binding;
mod features;
pub mod gateway;
pub mod ingress;
pub mod route;

use std::collections::BTreeMap;

use seine_objects::{
    InForce, Kind, ObjectKey, Problem, k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::Serialize;

use crate::{
    model::Model,
    publish::Totals,
    translate::{PolicyFinding, TrafficFinding},
};

type Found = BTreeMap<ObjectKey, PolicyFinding>;

/// One object and its conditions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectStatus {
    /// `AuthorizationPolicy`, `MeshTLS`, `TrafficPolicy`, `RequestAuthentication`, Istio's as [`Kind`] names them, `HTTPRoute`, `GRPCRoute`, `Pod`, `NetworkPolicy`, `Service`, or what an invalid object claims to be.
    pub kind: String,
    /// Empty where it isn't known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Empty where it isn't known.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// As in the API.
    pub conditions: Vec<Condition>,
}

/// One condition, as in the API but for its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// `Accepted`, `ResolvedRefs`, `Programmed`, `Enforced`, `Enrolled`, `AdmitsMesh` or `WaypointBound`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// `True` or `False`.
    pub status: &'static str,
    /// One word for machines.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
    /// Generation of the object that this is about, where it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Conditions of every policy, of every route that is not obeyed in full, of every invalid object, of every pod that opted in and can't be
/// enrolled, of every NetworkPolicy that cuts pods in the mesh off from one another, and of every Service whose waypoint is not there.
pub fn report(model: &Model, totals: &Totals, problems: &[Problem]) -> Vec<ObjectStatus> {
    let mut report = Vec::new();
    let (objects, findings) = (&model.objects, &model.findings);
    let mut add = |kind: Kind, key: &ObjectKey, metadata: &ObjectMeta, found: &Found| {
        if let Some(finding) = found.get(key) {
            let kind = kind.to_string();
            report.push(policy_status(&kind, key, metadata, finding, model, totals));
        }
    };
    for (key, policy) in &objects.authorization_policies {
        let found = &findings.authorization_policies;
        add(Kind::AuthorizationPolicy, key, &policy.metadata, found);
    }
    for (key, policy) in &objects.mesh_tls {
        add(Kind::MeshTls, key, &policy.metadata, &findings.mesh_tls);
    }
    for (key, policy) in &objects.request_authentications {
        let found = &findings.request_authentications;
        add(Kind::RequestAuthentication, key, &policy.metadata, found);
    }
    for (key, policy) in &objects.istio_authorization_policies {
        let found = &findings.istio_authorization_policies;
        add(Kind::IstioAuthorizationPolicy, key, &policy.metadata, found);
    }
    for (key, policy) in &objects.peer_authentications {
        let found = &findings.peer_authentications;
        add(Kind::PeerAuthentication, key, &policy.metadata, found);
    }
    for (key, policy) in &objects.istio_request_authentications {
        let found = &findings.istio_request_authentications;
        add(
            Kind::IstioRequestAuthentication,
            key,
            &policy.metadata,
            found,
        );
    }
    for (key, policy) in &objects.traffic_policies {
        if let Some(finding) = findings.traffic_policies.get(key) {
            report.push(traffic_status(key, &policy.metadata, finding));
        }
    }
    for ((kind, key), found) in &findings.routes {
        let metadata = objects.route(*kind, key).map(|route| route.metadata);
        let generation = metadata.and_then(|metadata| metadata.generation);
        let message = found.said.join("; ");
        let condition = condition("Programmed", false, "NotObeyed", message, generation);
        report.push(status(&kind.to_string(), key, vec![condition]));
    }
    for (key, refusal) in &model.findings.refused_pods {
        let message = refusal.to_string();
        let refused = condition("Enrolled", false, "Refused", message, None);
        report.push(status("Pod", key, vec![refused]));
    }
    for (key, blocked) in &model.findings.network_policies {
        let policy = model.objects.network_policies.get(key);
        let generation = policy.and_then(|policy| policy.metadata.generation);
        let message = blocked.to_string();
        let condition = condition("AdmitsMesh", false, "TunnelBlocked", message, generation);
        report.push(status("NetworkPolicy", key, vec![condition]));
    }
    for (key, finding) in &findings.bindings {
        let condition = binding::waypoint_bound(key, finding);
        report.push(status("Service", key, vec![condition]));
    }
    for problem in problems {
        let status = problem_status(problem);
        if problem.in_force == InForce::StandIn {
            // What the other conditions are about is not what its user wrote.
            let same = |other: &&mut ObjectStatus| {
                (&other.kind, &other.namespace, &other.name)
                    == (&status.kind, &status.namespace, &status.name)
            };
            for stand_in in report.iter_mut().filter(same) {
                let conditions = &mut stand_in.conditions;
                conditions.retain(|condition| condition.kind != "Accepted");
            }
        }
        report.push(status);
    }
    report
}

fn policy_status(
    kind: &str,
    key: &ObjectKey,
    metadata: &ObjectMeta,
    finding: &PolicyFinding,
    model: &Model,
    totals: &Totals,
) -> ObjectStatus {
    let generation = metadata.generation;
    let condition =
        |kind, holds, reason, message| condition(kind, holds, reason, message, generation);
    let mut accepted = "the policy is valid".to_owned();
    for note in &finding.notes {
        accepted += &format!("; it {note}");
    }
    let resolved = finding.unresolved.is_empty();
    let resolution = match resolved {
        true => "every reference leads to an object".into(),
        false => finding.unresolved.join("; "),
    };
    let holding = totals.holders(finding, &model.snapshot);
    let nodes = totals.proxies();
    let programmed = holding == nodes && nodes > 0;
    let of_tokens = [
        Kind::RequestAuthentication,
        Kind::IstioRequestAuthentication,
    ];
    let of_tokens = of_tokens.iter().any(|one| one.to_string() == kind);
    let (enforced, reason, enforcement) = match of_tokens {
        true => tokens_checked(finding, programmed, (holding, nodes)),
        false => enforced(finding, programmed, (holding, nodes)),
    };
    let conditions = vec![
        condition("Accepted", true, "Valid", accepted),
        condition(
            "ResolvedRefs",
            resolved,
            if resolved { "Resolved" } else { "NotFound" },
            resolution,
        ),
        condition(
            "Programmed",
            programmed,
            match (programmed, nodes) {
                (true, _) => "Accepted",
                (false, 0) => "NoProxies",
                (false, _) => "Pending",
            },
            format!("accepted by {holding} of {nodes} connected node proxies"),
        ),
        condition("Enforced", enforced, reason, enforcement),
    ];
    status(kind, key, conditions)
}

/// Of a `TrafficPolicy`. Which waypoints hold it is not said.
fn traffic_status(key: &ObjectKey, metadata: &ObjectMeta, found: &TrafficFinding) -> ObjectStatus {
    let TrafficFinding {
        unresolved,
        conflicts,
        unenforced,
    } = found;
    let said = |what: &[String], else_said: &str| match what {
        [] => else_said.to_owned(),
        what => what.join("; "),
    };
    let without = [conflicts.as_slice(), unenforced].concat();
    let (enforced, reason) = match (conflicts.is_empty(), unenforced.is_empty()) {
        _ if !unresolved.is_empty() => (false, "NotFound"),
        (false, _) => (false, "Conflicted"),
        (true, false) => (false, "NoWaypoint"),
        (true, true) => (true, "Enforced"),
    };
    let everywhere = match unresolved.is_empty() {
        true => "every waypoint that sends requests to the Services obeys it",
        false => "not of every reference there is an object",
    };
    let generation = metadata.generation;
    let condition =
        |kind, holds, reason, message| condition(kind, holds, reason, message, generation);
    let resolved = unresolved.is_empty();
    let conditions = vec![
        condition("Accepted", true, "Valid", "the policy is valid".to_owned()),
        condition(
            "ResolvedRefs",
            resolved,
            if resolved { "Resolved" } else { "NotFound" },
            said(unresolved, "every reference leads to an object"),
        ),
        condition("Enforced", enforced, reason, said(&without, everywhere)),
    ];
    status(&Kind::TrafficPolicy.to_string(), key, conditions)
}

/// Whether what a policy says of connections and requests holds: with the reason, and a sentence.
fn enforced(
    finding: &PolicyFinding,
    programmed: bool,
    (holding, nodes): (usize, usize),
) -> (bool, &'static str, String) {
    let mut enforcement = format!(
        "enforced by {holding} of {nodes} node proxies for {} pods",
        finding.enrolled
    );
    if finding.not_enrolled > 0 {
        enforcement += &format!(
            "; {} selected pods are not in the mesh, where nothing enforces it",
            finding.not_enrolled
        );
    }
    if !finding.unenforced.is_empty() {
        enforcement += &format!(
            "; {} need a waypoint, and what they restrict is denied until one enforces them",
            finding.unenforced.join(", ")
        );
    }
    for elsewhere in &finding.elsewhere {
        enforcement += &format!("; {elsewhere}");
    }
    match programmed {
        _ if !finding.unenforced.is_empty() => (false, "NeedsWaypoint", enforcement),
        _ if !finding.elsewhere.is_empty() => (false, "Elsewhere", enforcement),
        true => (true, "Enforced", enforcement),
        false => (false, "NotProgrammed", enforcement),
    }
}

/// The same of a `RequestAuthentication`, which waypoints alone enforce.
fn tokens_checked(
    finding: &PolicyFinding,
    programmed: bool,
    (holding, nodes): (usize, usize),
) -> (bool, &'static str, String) {
    let held = format!("enforced by waypoints: {holding} of {nodes} proxies have what is for them");
    let unchecked = finding.unenforced.join(", ");
    match (finding.authentications.is_empty(), programmed) {
        (false, _) if !finding.refused.is_empty() => {
            let fields = finding.refused.join(", ");
            let why = format!(
                "{fields}: no waypoint obeys that, and refuses every request to the Service"
            );
            (false, "NotObeyed", why)
        }
        (_, _) if !unchecked.is_empty() => {
            let why = format!("nobody checks {unchecked}, which uses no waypoint; {held}");
            (false, "NeedsWaypoint", why)
        }
        (_, _) if !finding.elsewhere.is_empty() => {
            let why = format!("{}; {held}", finding.elsewhere.join("; "));
            (false, "Elsewhere", why)
        }
        (true, _) => (
            false,
            "NoTarget",
            "there is no Service that it is about".into(),
        ),
        (false, true) => (true, "Enforced", held),
        (false, false) => (false, "NotProgrammed", held),
    }
}

fn problem_status(problem: &Problem) -> ObjectStatus {
    let object = problem.object.as_deref().unwrap_or("File");
    let (kind, name) = object.split_once(' ').unwrap_or((object, ""));
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    let key = ObjectKey::new(namespace, name);
    status(
        kind,
        &key,
        vec![condition(
            "Accepted",
            false,
            "Invalid",
            problem.to_string(),
            problem.generation,
        )],
    )
}

fn status(kind: &str, key: &ObjectKey, conditions: Vec<Condition>) -> ObjectStatus {
    ObjectStatus {
        kind: kind.into(),
        namespace: key.namespace.clone(),
        name: key.name.clone(),
        conditions,
    }
}

fn condition(
    kind: &'static str,
    holds: bool,
    reason: &'static str,
    message: String,
    observed_generation: Option<i64>,
) -> Condition {
    let status = if holds { "True" } else { "False" };
    Condition {
        kind,
        status,
        reason,
        message,
        observed_generation,
    }
}
