//! What is wrong, or hardly meant, in the objects that users write. Pure: objects in, findings out.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use seine_control::{
    status::binding::waypoint_bound,
    translate::{PolicyFinding, TrafficFinding},
};
use seine_objects::{
    Kind, ObjectKey, enrolment,
    enrolment::{DISABLED, ENABLED, MESH_LABEL},
    gateway::{CANARY_LABEL, WAYPOINT_FOR_LABEL, WAYPOINT_LABEL},
    network_policy::{MeshPod, blocked},
    pods,
    policy::{Action, Source},
};

use crate::{
    files::Objects,
    finding::{Findings, Severity},
    world::World,
};

use Severity::{Error, Info, Warning};

/// Everything that is found in the objects.
pub fn analyze(world: &World, objects: &Objects) -> Findings {
    let mut found = Findings::default();
    for problem in &objects.problems {
        let about = problem.object.clone();
        let about = about.unwrap_or_else(|| problem.file.display().to_string());
        let message = problem.to_string();
        found.add(
            Error,
            "InvalidObject",
            about,
            message,
            "correct the object; until then it is not in force",
        );
    }
    labels(world, objects, &mut found);
    bindings(world, &mut found);
    policies(world, &mut found);
    accounts(world, objects, &mut found);
    for (key, refusal) in &world.findings.refused_pods {
        found.add(
            Warning,
            "CannotEnrol",
            format!("Pod {key}"),
            refusal.to_string(),
            format!("label the pod {MESH_LABEL}={DISABLED} if that is meant"),
        );
    }
    network_policies(world, objects, &mut found);
    found
}

/// Labels that look like an opt-in and are none.
fn labels(world: &World, objects: &Objects, found: &mut Findings) {
    let label = |metadata: &ObjectMeta| metadata.labels.as_ref()?.get(MESH_LABEL).cloned();
    for (key, namespace) in &world.objects.namespaces {
        match label(&namespace.metadata).as_deref() {
            None | Some(ENABLED | DISABLED) => {}
            Some(other) => found.add(
                Error,
                "UnknownLabelValue",
                format!("Namespace {key}"),
                format!("{MESH_LABEL}={other} means nothing: its pods are not in the mesh"),
                format!("use {ENABLED} or {DISABLED}"),
            ),
        }
    }
    let mut missing = BTreeSet::new();
    for (key, pod) in &world.objects.pods {
        if world.objects.namespace(&key.namespace).is_none() {
            missing.insert(&key.namespace);
        }
        match label(&pod.metadata).as_deref() {
            None | Some(DISABLED) => {}
            Some(ENABLED) => {
                let namespace = world.objects.namespace(&key.namespace);
                let opted_in = namespace.and_then(|namespace| label(&namespace.metadata));
                if opted_in.as_deref() != Some(ENABLED) {
                    found.add(
                        Warning,
                        "LabelWithoutEffect",
                        format!("Pod {key}"),
                        format!(
                            "{MESH_LABEL}={ENABLED} on a pod doesn't opt in: its namespace does"
                        ),
                        format!(
                            "kubectl label namespace {} {MESH_LABEL}={ENABLED}",
                            key.namespace
                        ),
                    );
                }
            }
            Some(other) => found.add(
                Error,
                "UnknownLabelValue",
                format!("Pod {key}"),
                format!("{MESH_LABEL}={other} means nothing"),
                format!("use {DISABLED} to opt the pod out"),
            ),
        }
    }
    if objects.from_files {
        for namespace in missing {
            found.add(
                Info,
                "NamespaceNotGiven",
                format!("Namespace {namespace}"),
                "it is in none of the files: its pods count as not opted in",
                "",
            );
        }
    }
}

/// Labels that name waypoints.
fn bindings(world: &World, found: &mut Findings) {
    for (key, finding) in &world.findings.bindings {
        let bound = waypoint_bound(key, finding);
        let severity = match (bound.status, bound.reason) {
            ("False", _) => Error,
            (_, "Bound") => continue,
            _ => Warning,
        };
        let remedy =
            format!("make the Gateway, or change the labels {WAYPOINT_LABEL} and {CANARY_LABEL}");
        found.add(
            severity,
            "NoWaypoint",
            format!("Service {key}"),
            bound.message,
            remedy,
        );
    }
    for (key, gateway) in &world.objects.gateways {
        if let Some(what) = gateway.unknown_use().filter(|_| gateway.is_waypoint()) {
            found.add(
                Error,
                "UnknownLabelValue",
                format!("Gateway {key}"),
                format!("{WAYPOINT_FOR_LABEL}={what} is nothing that a waypoint is for"),
                "use service or all",
            );
        }
    }
    for (key, pod) in &world.objects.pods {
        let labels = pod.metadata.labels.as_ref();
        if labels.is_some_and(|labels| labels.contains_key(WAYPOINT_LABEL)) {
            found.add(
                Warning,
                "LabelWithoutEffect",
                format!("Pod {key}"),
                format!("{WAYPOINT_LABEL} on a pod binds nothing"),
                "label its Service or Namespace",
            );
        }
    }
}

fn policies(world: &World, found: &mut Findings) {
    for (key, policy) in &world.objects.authorization_policies {
        let about = format!("AuthorizationPolicy {key}");
        if let Some(finding) = world.findings.authorization_policies.get(key) {
            effect(&about, finding, found);
            let denies_all = policy.spec.action == Action::Allow && policy.spec.rules.is_empty();
            if denies_all && finding.enrolled > 0 {
                found.add(
                    Info,
                    "AllowsNothing",
                    about,
                    "an Allow without rules: every connection to the selected pods is denied",
                    "",
                );
            }
        }
    }
    for (key, finding) in &world.findings.mesh_tls {
        effect(&format!("MeshTLS {key}"), finding, found);
    }
    for (key, finding) in &world.findings.traffic_policies {
        traffic(&format!("TrafficPolicy {key}"), finding, found);
    }
    let own = world.findings.request_authentications.iter();
    let own = own.map(|(key, finding)| (Kind::RequestAuthentication, key, finding));
    let istio = world.findings.istio_request_authentications.iter();
    let istio = istio.map(|(key, finding)| (Kind::IstioRequestAuthentication, key, finding));
    for (kind, key, finding) in own.chain(istio) {
        let about = format!("{kind} {key}");
        references(&about, finding, found);
        for unchecked in &finding.unenforced {
            let message = format!("nobody checks {unchecked}, which uses no waypoint");
            let remedy = format!("label the Service {WAYPOINT_LABEL}=NAME");
            found.add(Warning, "NeedsWaypoint", &about, message, remedy);
        }
    }
    for (key, finding) in &world.findings.istio_authorization_policies {
        let about = format!("{} {key}", Kind::IstioAuthorizationPolicy);
        effect(&about, finding, found);
    }
    for (key, finding) in &world.findings.peer_authentications {
        effect(
            &format!("{} {key}", Kind::PeerAuthentication),
            finding,
            found,
        );
    }
}

fn traffic(about: &str, finding: &TrafficFinding, found: &mut Findings) {
    for reference in &finding.unresolved {
        found.add(
            Error,
            "UnresolvedReference",
            about,
            reference,
            "correct the reference, or make what it names",
        );
    }
    for conflict in &finding.conflicts {
        let remedy = "say all of it in one policy for each Service";
        found.add(Warning, "Conflicted", about, conflict, remedy);
    }
    for unenforced in &finding.unenforced {
        let remedy = "have the Service use a waypoint";
        found.add(Warning, "NoWaypoint", about, unenforced, remedy);
    }
}

fn references(about: &str, finding: &PolicyFinding, found: &mut Findings) {
    for reference in &finding.unresolved {
        found.add(
            Error,
            "UnresolvedReference",
            about,
            reference,
            "correct the reference, or make what it names",
        );
    }
}

fn effect(about: &str, finding: &PolicyFinding, found: &mut Findings) {
    references(about, finding, found);
    if !finding.unenforced.is_empty() {
        found.add(
            Warning,
            "NeedsWaypoint",
            about,
            format!(
                "{} need a waypoint: what they restrict is denied until one enforces them",
                finding.unenforced.join(", ")
            ),
            "restrict by ports and identities, which ztunnel enforces",
        );
    }
    for elsewhere in &finding.elsewhere {
        found.add(
            Warning,
            "EnforcedElsewhere",
            about,
            elsewhere,
            "say it of the Services that are behind it",
        );
    }
    for note in &finding.notes {
        found.add(Warning, "Note", about, note, "");
    }
    match (finding.enrolled, finding.not_enrolled) {
        (0, 0) => found.add(
            Warning,
            "SelectsNothing",
            about,
            "it selects no pod",
            "compare its selector with the pods' labels",
        ),
        (0, out) => found.add(
            Warning,
            "NotInMesh",
            about,
            format!("none of the {out} pods that it selects is in the mesh: nothing enforces it"),
            format!("label their namespace {MESH_LABEL}={ENABLED}"),
        ),
        (_, 0) => {}
        (_, out) => found.add(
            Warning,
            "NotInMesh",
            about,
            format!(
                "{out} of the pods that it selects are not in the mesh, where nothing enforces it"
            ),
            "see why they are not: seine status",
        ),
    }
}

/// Service accounts and namespaces that policies name and that aren't there: a misspelt one is
/// never matched, which an `Allow` turns into a denial and a `Deny` into a hole.
fn accounts(world: &World, objects: &Objects, found: &mut Findings) {
    // In files, what isn't there may be elsewhere; of the namespaces that are there all is known.
    let is_known =
        |namespace: &str| !objects.from_files || world.objects.namespace(namespace).is_some();
    let mut known: BTreeSet<ObjectKey> = world.objects.service_accounts.keys().cloned().collect();
    for (key, pod) in &world.objects.pods {
        known.insert(ObjectKey::new(&key.namespace, pods::service_account(pod)));
    }
    for (key, policy) in &world.objects.authorization_policies {
        let about = format!("AuthorizationPolicy {key}");
        let sources = policy.spec.rules.iter().flat_map(|rule| &rule.from);
        for source in sources {
            let Source {
                service_accounts,
                not_service_accounts,
                namespaces,
                not_namespaces,
                ..
            } = source;
            for text in service_accounts.iter().chain(not_service_accounts) {
                let (namespace, name) = text.split_once('/').unwrap_or((&key.namespace, text));
                let account = ObjectKey::new(namespace, name);
                // `default` is made with its namespace.
                if name != "default" && is_known(namespace) && !known.contains(&account) {
                    found.add(
                        Warning,
                        "UnknownServiceAccount",
                        &about,
                        format!(
                            "there is no service account {account}: that source is never matched"
                        ),
                        "correct the name, or make the account",
                    );
                }
            }
            for namespace in namespaces.iter().chain(not_namespaces) {
                let is_pattern = namespace.contains('*');
                if !objects.from_files
                    && !is_pattern
                    && world.objects.namespace(namespace).is_none()
                {
                    found.add(
                        Warning,
                        "UnknownNamespace",
                        &about,
                        format!("there is no namespace {namespace}: that source is never matched"),
                        "correct the name",
                    );
                }
            }
        }
    }
}

fn network_policies(world: &World, objects: &Objects, found: &mut Findings) {
    let set = &world.objects;
    let mesh: Vec<MeshPod<'_>> = set
        .pods
        .iter()
        .filter(|(key, pod)| {
            !pods::is_finished(pod)
                && enrolment(set, &key.namespace, pod, &world.settings.enrolment).is_enrolled()
        })
        .map(|(key, pod)| MeshPod {
            key,
            pod,
            namespace: set.namespace(&key.namespace),
        })
        .collect();
    for (key, blocked) in blocked(&objects.set.network_policies, &mesh) {
        found.add(
            Error,
            "TunnelBlocked",
            format!("NetworkPolicy {key}"),
            blocked.to_string(),
            "the CNI sees the mesh's port alone; the original one is judged by an AuthorizationPolicy",
        );
    }
}
