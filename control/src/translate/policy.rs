//! `AuthorizationPolicy` to the wire.
//!
//! Each source of a rule becomes a rule of its own, since the wire can't say "or" above "and";
//! each field becomes a clause. Service accounts and namespaces become principals of the mesh's
//! own trust domain: the wire's own matches of them ignore the trust domain.
//!
//! A policy that is attached to services is about the ports that they lead to, which differ from pod
//! to pod: it is one resource for each set of ports. And what an `Allow` is not about it must not
//! deny, as on the wire every `Allow` does: on a pod that only attached ones are about, one more `Allow`
//! lets everyone to the other ports, and one in dry-run where dry-run ones are about others still. Where such a service is bound to a waypoint, see [`super::request`].

use std::collections::{BTreeMap, BTreeSet};

use seine_objects::{
    ObjectKey, ObjectSet, gateway,
    policy::{Action, AuthorizationPolicy, Operation, Selector, Source},
};
use seine_proto::{
    extensions::AuthorizationExtension,
    security::{self, Address, Authorization, Clause, Extension, Match, Scope, StringMatch},
};

use super::{PolicyFinding, Resources, Settings, any, istio, request, service, workload::Pods};
use crate::{ip_bytes, translate::workload::TranslatedPod};

/// Name of the extension that carries [`AuthorizationExtension`].
pub const AUTHORIZATION_EXTENSION: &str = "seine.dev/authorization";

/// A policy of whatever kind, in the wire's terms.
pub(super) struct Lowered<'a> {
    pub(super) key: &'a ObjectKey,
    /// Within the namespace.
    pub(super) name: String,
    /// Its policies without a selector hold for the mesh.
    pub(super) root_namespace: &'a str,
    pub(super) action: security::Action,
    pub(super) dry_run: bool,
    pub(super) selector: Option<Selector>,
    /// Services that it is attached to; not together with a selector.
    pub(super) services: Option<Vec<&'a service::Translated>>,
    pub(super) rules: Vec<security::Rule>,
    /// What is known already.
    pub(super) finding: PolicyFinding,
}

/// Adds every policy, and its name to the workloads that it selects.
pub(super) fn translate(
    objects: &ObjectSet,
    services: &mut BTreeMap<ObjectKey, service::Translated>,
    pods: &Pods,
    settings: &Settings,
    resources: &mut Resources,
) {
    // By the pod's uid.
    let mut allowed = BTreeMap::new();
    for (key, policy) in &objects.authorization_policies {
        let at_waypoints = request::translate(key, policy, objects, services, settings, resources);
        let mut lowered = lower(key, policy, objects, services, settings);
        lowered.finding.resources = at_waypoints;
        let finding = place(lowered, pods, &mut allowed, resources);
        let findings = &mut resources.findings.authorization_policies;
        findings.insert(key.clone(), finding);
    }
    if let Some(root) = &settings.istio_root_namespace {
        for (key, policy) in &objects.istio_authorization_policies {
            let at_waypoints = istio::at_waypoints(key, policy, services, settings, resources);
            let mut lowered = istio::lower(key, policy, services, root, settings);
            lowered.finding.resources = at_waypoints;
            let finding = place(lowered, pods, &mut allowed, resources);
            let findings = &mut resources.findings.istio_authorization_policies;
            findings.insert(key.clone(), finding);
        }
    }
    for (uid, about) in allowed {
        for authorization in about.exceptions(settings) {
            let name = format!("{}/{}", settings.root_namespace, authorization.name);
            list(&name, vec![uid], resources);
            resources.authorizations.insert(name, authorization);
        }
    }
}

/// Adds one, and notes by the pod's uid what the Allows are about.
fn place<'p>(
    lowered: Lowered<'_>,
    pods: &'p Pods,
    allowed: &mut BTreeMap<&'p str, Allowed>,
    resources: &mut Resources,
) -> PolicyFinding {
    let mut finding = lowered.finding.clone();
    let target = Target::of(&lowered);
    // The pods by the ports that the policy is about there.
    let mut pods_by_ports: BTreeMap<Option<Ports>, Vec<&str>> = BTreeMap::new();
    for pod in &pods.list {
        let Some(ports) = target.ports_of(pod, resources) else {
            continue;
        };
        if !pod.enrolled {
            finding.not_enrolled += 1;
            continue;
        }
        finding.enrolled += 1;
        if lowered.action == security::Action::Allow {
            let about = allowed.entry(&pod.uid).or_default();
            about.audited.add(ports.as_ref());
            if !lowered.dry_run {
                about.enforced.add(ports.as_ref());
            }
        }
        pods_by_ports.entry(ports).or_default().push(&pod.uid);
    }
    // Of no pod yet, unless waypoints alone enforce it.
    if pods_by_ports.is_empty() && finding.resources.is_empty() {
        pods_by_ports.insert(target.of_nothing(), Vec::new());
    }
    let many = pods_by_ports.len() > 1;
    for (ports, uids) in pods_by_ports {
        let mut authorization = compile(&lowered, target.scope(), ports.as_ref());
        if let (true, Some(ports)) = (many, &ports) {
            authorization.name = format!("{}_on{}", lowered.name, joined(ports));
        }
        let name = format!("{}/{}", lowered.key.namespace, authorization.name);
        if target.scope() == Scope::WorkloadSelector {
            list(&name, uids, resources);
        }
        finding.resources.insert(name.clone());
        resources.authorizations.insert(name, authorization);
    }
    finding
}

/// Ports on which pods listen.
type Ports = BTreeSet<u32>;

/// Has workloads name a policy.
fn list(policy: &str, uids: Vec<&str>, resources: &mut Resources) {
    for uid in uids {
        if let Some(workload) = resources.workloads.get_mut(uid) {
            workload.authorization_policies.push(policy.to_owned());
        }
    }
}

/// What of a pod Allows are about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum About {
    #[default]
    Nothing,
    Ports(Ports),
    Everything,
}

impl About {
    /// One more Allow: about these ports, or all.
    fn add(&mut self, ports: Option<&Ports>) {
        *self = match (std::mem::take(self), ports) {
            (Self::Everything, _) | (_, None) => Self::Everything,
            (Self::Nothing, Some(ports)) => Self::Ports(ports.clone()),
            (Self::Ports(others), Some(ports)) => Self::Ports(&others | ports),
        };
    }
}

/// What of a pod the Allows are about.
#[derive(Debug, Default)]
struct Allowed {
    /// Those that are enforced.
    enforced: About,
    /// Those in dry-run too.
    audited: About,
}

impl Allowed {
    /// What leaves the pod's other ports alone. A dry-run Allow may be about more ports than the enforced ones: then what is
    /// enforced differs from what would be, and each is said apart.
    fn exceptions(&self, settings: &Settings) -> Vec<Authorization> {
        let alike = self.enforced == self.audited;
        let mut exceptions = Vec::new();
        if let About::Ports(ports) = &self.enforced {
            exceptions.push(match alike {
                true => allow_except(ports, Exception::Plain, settings),
                false => allow_except(ports, Exception::Enforced, settings),
            });
        }
        if let (About::Ports(ports), false) = (&self.audited, alike) {
            exceptions.push(allow_except(ports, Exception::DryRun, settings));
        }
        exceptions
    }
}

/// For what an exception counts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Exception {
    /// For what is enforced and what would be.
    Plain,
    /// For what is enforced.
    Enforced,
    /// For what would be enforced, were the dry-run policies.
    DryRun,
}

/// Everyone may connect to all ports but these. Named by what it says, so that all pods with the same ports
/// share it; the name is none that an object can have.
fn allow_except(ports: &Ports, exception: Exception, settings: &Settings) -> Authorization {
    let clauses = match ports.is_empty() {
        true => Vec::new(),
        false => vec![clause(Match {
            not_destination_ports: ports.iter().copied().collect(),
            ..Default::default()
        })],
    };
    let of = match exception {
        Exception::Plain => "",
        Exception::Enforced => "_enforced",
        Exception::DryRun => "_dry_run",
    };
    Authorization {
        name: format!("allow_except{}{of}", joined(ports)),
        namespace: settings.root_namespace.clone(),
        scope: Scope::WorkloadSelector.into(),
        action: security::Action::Allow.into(),
        rules: vec![security::Rule { clauses }],
        dry_run: exception == Exception::DryRun,
        extensions: extensions(AuthorizationExtension {
            enforced_only: exception == Exception::Enforced,
            ..Default::default()
        }),
    }
}

/// None where there is nothing to say.
pub(super) fn extensions(ours: AuthorizationExtension) -> Vec<Extension> {
    if ours == AuthorizationExtension::default() {
        return Vec::new();
    }
    vec![Extension {
        name: AUTHORIZATION_EXTENSION.into(),
        config: Some(any("seine.workload.v1.AuthorizationExtension", &ours)),
    }]
}

fn joined(ports: &Ports) -> String {
    ports.iter().map(|port| format!("_{port}")).collect()
}

/// The pods that a policy holds for.
enum Target<'a> {
    Mesh,
    Namespace(&'a str),
    Selected {
        namespace: Option<&'a str>,
        selector: &'a Selector,
    },
    /// The pods behind these services.
    Services(&'a [&'a service::Translated]),
}

impl<'a> Target<'a> {
    fn of(lowered: &'a Lowered<'_>) -> Self {
        if let Some(services) = &lowered.services {
            return Self::Services(services);
        }
        let namespace = &*lowered.key.namespace;
        match (&lowered.selector, namespace == lowered.root_namespace) {
            (Some(selector), root) => Self::Selected {
                namespace: (!root).then_some(namespace),
                selector,
            },
            (None, true) => Self::Mesh,
            (None, false) => Self::Namespace(namespace),
        }
    }

    fn scope(&self) -> Scope {
        match self {
            Self::Mesh => Scope::Global,
            Self::Namespace(_) => Scope::Namespace,
            Self::Selected { .. } | Self::Services(_) => Scope::WorkloadSelector,
        }
    }

    /// The ports of the pod that the policy is about; `Some(None)`: all of them; `None`: it doesn't
    /// select the pod.
    fn ports_of(&self, pod: &TranslatedPod, resources: &Resources) -> Option<Option<Ports>> {
        let selected = match self {
            Self::Mesh => true,
            Self::Namespace(namespace) => pod.key.namespace == **namespace,
            Self::Selected {
                namespace,
                selector,
            } => {
                namespace.is_none_or(|namespace| pod.key.namespace == *namespace)
                    && selector.matches(pod.object.metadata.labels.as_ref())
            }
            Self::Services(services) => {
                // By selectors and by slices, as for whoever connects to them.
                let led_to = &resources.workloads.get(&pod.uid)?.services;
                let mut lists = services
                    .iter()
                    .filter_map(|service| led_to.get(&service.key))
                    .peekable();
                lists.peek()?;
                let ports = lists.flat_map(|list| &list.ports);
                return Some(Some(ports.map(|port| port.target_port).collect()));
            }
        };
        selected.then_some(None)
    }

    /// As [`Self::ports_of`] where there is no pod.
    fn of_nothing(&self) -> Option<Ports> {
        matches!(self, Self::Services(_)).then(Ports::new)
    }
}

/// The policy's wire form.
///
/// `ports`: the policy is attached to services that lead to these ports, and covers them alone.
fn compile(lowered: &Lowered<'_>, scope: Scope, ports: Option<&Ports>) -> Authorization {
    let mut rules = lowered.rules.clone();
    match ports {
        // Nothing is behind the services: there is nothing that a rule could be about.
        Some(ports) if ports.is_empty() => rules.clear(),
        Some(ports) => {
            for rule in &mut rules {
                rule.clauses.push(clause(Match {
                    destination_ports: ports.iter().copied().collect(),
                    ..Default::default()
                }));
            }
        }
        None => {}
    }
    Authorization {
        name: lowered.name.clone(),
        namespace: lowered.key.namespace.clone(),
        scope: scope.into(),
        action: lowered.action.into(),
        rules,
        dry_run: lowered.dry_run,
        extensions: extensions(AuthorizationExtension {
            unenforced_fields: lowered.finding.unenforced.clone(),
            ..Default::default()
        }),
    }
}

/// One of our own.
fn lower<'a>(
    key: &'a ObjectKey,
    policy: &AuthorizationPolicy,
    objects: &ObjectSet,
    services: &'a BTreeMap<ObjectKey, service::Translated>,
    settings: &'a Settings,
) -> Lowered<'a> {
    let spec = &policy.spec;
    let mut finding = PolicyFinding::default();
    let provider = spec.provider.as_ref();
    let unresolved =
        provider.and_then(|provider| request::unresolved_provider(provider, key, services));
    finding.unresolved.extend(unresolved);
    let (mut found, mut bound) = (Vec::new(), false);
    for target in &spec.target_refs {
        let of = ObjectKey::new(&key.namespace, &target.name);
        let service = services.get(&of);
        match (target.group.as_str(), target.kind.as_str(), service) {
            // Its waypoint enforces it, and whoever reaches the pods came from there.
            ("" | "core", "Service", Some(service)) if service.waypoint.is_some() => bound = true,
            ("" | "core", "Service", Some(service)) => {
                found.push(service);
            }
            ("" | "core", "Service", None) => finding.unresolved.push(no_service(&target.name)),
            (gateway::GROUP, "Gateway", service) => {
                match request::is_ingress(objects, &of) && service.is_some() {
                    true => bound = true,
                    false => finding.unresolved.push(no_gateway(&of)),
                }
            }
            (group, kind, _) => finding.unresolved.push(no_target(group, kind)),
        }
    }
    if spec.action == Action::External {
        finding.unenforced.push("spec.action External".into());
    }
    let mut rules = Vec::new();
    for (index, rule) in spec.rules.iter().enumerate() {
        let path = format!("spec.rules[{index}]");
        for (to, operation) in rule.to.iter().enumerate() {
            let fields = operation.l7_fields().into_iter();
            let fields = fields.map(|field| format!("{path}.to[{to}].{field}"));
            finding.unenforced.extend(fields);
        }
        for (from, source) in rule.from.iter().enumerate() {
            let fields = source.l7_fields().into_iter();
            let fields = fields.map(|field| format!("{path}.from[{from}].{field}"));
            finding.unenforced.extend(fields);
        }
        let Some(to) = operations(&rule.to, spec.action) else {
            continue;
        };
        let judged =
            |source: &&Source| spec.action != Action::Allow || source.l7_fields().is_empty();
        let judged: Vec<&Source> = rule.from.iter().filter(judged).collect();
        // Without the sources that can't be judged it would be about everybody.
        if judged.is_empty() && !rule.from.is_empty() {
            continue;
        }
        let namespace = &key.namespace;
        rules.extend(from_each(&judged, to, |source| {
            from(source, namespace, &settings.trust_domain)
        }));
    }
    if bound && found.is_empty() {
        // Where all of it is at waypoints, all of it is enforced.
        finding.unenforced.clear();
    }
    Lowered {
        key,
        name: key.name.clone(),
        root_namespace: &settings.root_namespace,
        action: enforced_as(spec.action),
        dry_run: spec.dry_run || spec.action == Action::Audit,
        selector: spec.selector.clone(),
        services: (!spec.target_refs.is_empty()).then_some(found),
        rules,
        finding,
    }
}

/// An audit is a denial that is not carried out.
pub(super) fn enforced_as(action: Action) -> security::Action {
    match action {
        Action::Allow => security::Action::Allow,
        // Who can't ask the provider denies.
        Action::Deny | Action::Audit | Action::External => security::Action::Deny,
    }
}

/// A rule for each of the sources, any of which may be it; without one, a rule for everybody.
pub(super) fn from_each(
    sources: &[&Source],
    to: Vec<Clause>,
    from: impl Fn(&Source) -> Vec<Clause>,
) -> Vec<security::Rule> {
    if sources.is_empty() {
        return vec![security::Rule { clauses: to }];
    }
    let rules = sources.iter().map(|source| {
        let mut clauses = from(source);
        clauses.extend(to.iter().cloned());
        security::Rule { clauses }
    });
    rules.collect()
}

pub(super) fn no_gateway(key: &ObjectKey) -> String {
    format!(
        "there is no Gateway {key} of class {} with a Service of its own",
        gateway::INGRESS_CLASS
    )
}

pub(super) fn no_target(group: &str, kind: &str) -> String {
    format!(
        "kind {kind:?} of group {group:?} can't be a target: use Service, or Gateway of group {}",
        gateway::GROUP
    )
}

pub(super) fn no_service(name: &str) -> String {
    format!("there is no Service {name:?} with pods behind it")
}

/// The clauses for a rule's `to`; `None`: nothing can match the rule.
///
/// A field that needs L7 can't be judged here. What it restricts is therefore denied: an `Allow`
/// loses the operation, a `Deny` loses only the field.
fn operations(operations: &[Operation], action: Action) -> Option<Vec<Clause>> {
    if operations.is_empty() {
        return Some(Vec::new());
    }
    let judged: Vec<&Operation> = operations
        .iter()
        .filter(|operation| action != Action::Allow || operation.l7_fields().is_empty())
        .collect();
    if judged.is_empty() {
        return None;
    }
    // An operation without ports covers every connection, and then the others don't matter.
    if judged
        .iter()
        .any(|operation| operation.ports.is_empty() && operation.not_ports.is_empty())
    {
        return Some(Vec::new());
    }
    let matches = judged
        .into_iter()
        .map(|operation| Match {
            destination_ports: operation
                .ports
                .iter()
                .map(|port| u32::from(*port))
                .collect(),
            not_destination_ports: operation
                .not_ports
                .iter()
                .map(|port| u32::from(*port))
                .collect(),
            ..Default::default()
        })
        .collect();
    Some(vec![Clause { matches }])
}

/// What a connection has to be, for a source; what of it is about requests is left out.
pub(super) fn from(source: &Source, namespace: &str, trust_domain: &str) -> Vec<Clause> {
    let principal = |text: &String| string_match(text.strip_prefix("spiffe://").unwrap_or(text));
    let account = |text: &String| {
        let (namespace, name) = text.split_once('/').unwrap_or((namespace, text));
        exact(format!("{trust_domain}/ns/{namespace}/sa/{name}"))
    };
    let of_namespace = |text: &String| {
        prefix(match text.strip_suffix('*') {
            Some(start) => format!("{trust_domain}/ns/{start}"),
            None => format!("{trust_domain}/ns/{text}/sa/"),
        })
    };
    let mut clauses = Vec::new();
    let mut principals = |positive: Vec<StringMatch>, negative: Vec<StringMatch>| {
        if !(positive.is_empty() && negative.is_empty()) {
            clauses.push(clause(Match {
                principals: positive,
                not_principals: negative,
                ..Default::default()
            }));
        }
    };
    principals(
        source.principals.iter().map(principal).collect(),
        source.not_principals.iter().map(principal).collect(),
    );
    principals(
        source.service_accounts.iter().map(account).collect(),
        source.not_service_accounts.iter().map(account).collect(),
    );
    principals(
        source.namespaces.iter().map(of_namespace).collect(),
        source.not_namespaces.iter().map(of_namespace).collect(),
    );
    let (blocks, not_blocks) = source.blocks();
    if !(blocks.is_empty() && not_blocks.is_empty()) {
        let address = |block: ipnet::IpNet| Address {
            address: ip_bytes(block.network()),
            length: block.prefix_len().into(),
        };
        clauses.push(clause(Match {
            source_ips: blocks.into_iter().map(address).collect(),
            not_source_ips: not_blocks.into_iter().map(address).collect(),
            ..Default::default()
        }));
    }
    clauses
}

pub(super) fn clause(one: Match) -> Clause {
    Clause { matches: vec![one] }
}

/// `*` is presence, `*x` a suffix, `x*` a prefix, nothing else is special.
pub(super) fn string_match(text: &str) -> StringMatch {
    match (text, text.strip_prefix('*'), text.strip_suffix('*')) {
        ("*", _, _) => presence(),
        (_, Some(end), _) => matching(security::string_match::MatchType::Suffix(end.into())),
        (_, _, Some(start)) => prefix(start.into()),
        _ => exact(text.into()),
    }
}

pub(super) fn exact(text: String) -> StringMatch {
    matching(security::string_match::MatchType::Exact(text))
}

pub(super) fn prefix(text: String) -> StringMatch {
    matching(security::string_match::MatchType::Prefix(text))
}

/// Any identity.
pub(super) fn presence() -> StringMatch {
    matching(security::string_match::MatchType::Presence(()))
}

fn matching(match_type: security::string_match::MatchType) -> StringMatch {
    StringMatch {
        match_type: Some(match_type),
    }
}
