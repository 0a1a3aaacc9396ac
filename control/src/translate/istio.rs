//! Istio's `AuthorizationPolicy` to the wire, as `docs/ISTIO.md` says.
//!
//! The wire was made for these, so most of it is word for word. What isn't: names of namespaces and service accounts
//! mean the mesh's own trust domain; `cluster.local` in a principal means it too, as in Istio; what can't be judged
//! here is denied, where Istio leaves the policy out (`CUSTOM`) or to a waypoint (`targetRefs`).
//!
//! At a waypoint of ours what is about requests can be judged ([`http`]); the rest is as on a connection.

mod http;

use std::collections::{BTreeMap, BTreeSet};

use seine_objects::{
    ObjectKey,
    istio::{Action, AuthorizationPolicy, Condition, Operation, Source, blocks, ports},
};
use seine_proto::security::{self, Address, Authorization, Clause, Match, Scope, StringMatch};

use super::{
    PolicyFinding, Resources, Settings,
    policy::{Lowered, clause, exact, no_service, prefix, string_match},
    request::{self, Targets},
    service,
};
use crate::ip_bytes;

/// The trust domain by which Istio's users mean whatever their own is.
const OWN_DOMAIN: &str = "cluster.local";

pub(super) fn lower<'a>(
    key: &'a ObjectKey,
    policy: &AuthorizationPolicy,
    services: &'a BTreeMap<ObjectKey, service::Translated>,
    root_namespace: &'a str,
    settings: &Settings,
) -> Lowered<'a> {
    let spec = &policy.spec;
    let mut finding = PolicyFinding::default();
    let mut found = Vec::new();
    let mut bound = false;
    for (path, target) in policy.targets() {
        let service = services.get(&ObjectKey::new(&key.namespace, &target.name));
        match (target.group.as_str(), target.kind.as_str(), service) {
            // Its waypoint enforces it, and whoever reaches the pods came from there.
            ("" | "core", "Service", Some(service)) if service.waypoint.is_some() => bound = true,
            ("" | "core", "Service", Some(service)) => found.push(service),
            ("" | "core", "Service", None) => finding.unresolved.push(no_service(&target.name)),
            (_, kind, _) => finding.elsewhere.push(format!(
                "{path}: what is for {kind} {} is enforced by its own proxy or by none",
                target.name
            )),
        }
    }
    if spec.action == Action::Custom {
        finding.unenforced.push("spec.action CUSTOM".into());
    }
    let lowering = Lowering::new(key, spec.action, settings, None);
    let rules = spec.rules.iter().flat_map(|rule| lowering.rule(rule));
    let rules = rules.collect();
    if bound {
        // Which of the service's ports lead where doesn't change what can be judged.
        let nowhere = Targets::default();
        let at_waypoint = Lowering::new(key, spec.action, settings, Some(&nowhere));
        at_waypoint.not_judged(policy, &mut finding.unenforced);
    }
    // Where all of it is at waypoints, the pods' proxies judge nothing of it.
    if !bound || !found.is_empty() {
        lowering.not_judged(policy, &mut finding.unenforced);
        finding.unenforced.sort();
        finding.unenforced.dedup();
    }
    Lowered {
        key,
        // No object has it, so one of ours of the same name is another resource.
        name: format!("istio_{}", key.name),
        root_namespace,
        action: enforced_as(spec.action),
        dry_run: policy.is_dry_run() || spec.action == Action::Audit,
        selector: policy.selector(),
        services: policy.targets().next().is_some().then_some(found),
        rules,
        finding,
    }
}

/// Adds the policy for each service bound to a waypoint that it is attached to, as [`request::translate`] does with ours, and
/// gives the names of what was made.
pub(super) fn at_waypoints(
    key: &ObjectKey,
    policy: &AuthorizationPolicy,
    services: &mut BTreeMap<ObjectKey, service::Translated>,
    settings: &Settings,
    resources: &mut Resources,
) -> BTreeSet<String> {
    let spec = &policy.spec;
    let mut made = BTreeSet::new();
    for (_, target) in policy.targets() {
        let of = ObjectKey::new(&key.namespace, &target.name);
        let is_service = matches!(target.group.as_str(), "" | "core") && target.kind == "Service";
        let Some(service) = services.get_mut(&of).filter(|_| is_service) else {
            continue;
        };
        if service.waypoint.is_none() {
            continue;
        }
        let targets = request::targets(&service.key, resources);
        let lowering = Lowering::new(key, spec.action, settings, Some(&targets));
        let authorization = Authorization {
            name: format!("istio_{}_at_{}", key.name, target.name),
            namespace: key.namespace.clone(),
            scope: Scope::WorkloadSelector.into(),
            action: enforced_as(spec.action).into(),
            rules: spec
                .rules
                .iter()
                .flat_map(|rule| lowering.rule(rule))
                .collect(),
            dry_run: policy.is_dry_run() || spec.action == Action::Audit,
            extensions: Vec::new(),
        };
        let name = format!("{}/{}", key.namespace, authorization.name);
        if !service.policies.contains(&name) {
            service.policies.push(name.clone());
        }
        made.insert(name.clone());
        resources.authorizations.insert(name, authorization);
    }
    made
}

fn enforced_as(action: Action) -> security::Action {
    match action {
        Action::Allow => security::Action::Allow,
        Action::Deny | Action::Audit | Action::Custom => security::Action::Deny,
    }
}

struct Lowering<'a> {
    namespace: &'a str,
    trust_domain: &'a str,
    action: Action,
    /// What can't be judged doesn't match; else it does.
    allow: bool,
    /// At a waypoint, which sees requests: where the service's ports lead.
    waypoint: Option<&'a Targets>,
}

impl<'a> Lowering<'a> {
    fn new(
        key: &'a ObjectKey,
        action: Action,
        settings: &'a Settings,
        waypoint: Option<&'a Targets>,
    ) -> Self {
        Self {
            namespace: &key.namespace,
            trust_domain: &settings.trust_domain,
            action,
            allow: action == Action::Allow,
            waypoint,
        }
    }

    /// Paths of the fields that can't be judged.
    fn not_judged(&self, policy: &AuthorizationPolicy, found: &mut Vec<String>) {
        for (index, rule) in policy.spec.rules.iter().enumerate() {
            let path = format!("spec.rules[{index}]");
            for (from, one) in rule.from.iter().enumerate() {
                let fields = self.fields_of_source(&one.source).into_iter();
                found.extend(fields.map(|field| format!("{path}.from[{from}].source.{field}")));
            }
            for (to, one) in rule.to.iter().enumerate() {
                let fields = self.fields_of_operation(&one.operation).into_iter();
                found.extend(fields.map(|field| format!("{path}.to[{to}].operation.{field}")));
            }
            for (when, one) in rule.when.iter().enumerate() {
                if self.condition(one).is_none() {
                    found.push(format!("{path}.when[{when}] ({})", one.key));
                }
            }
        }
    }

    /// Names of the fields of a source that can't be judged here.
    fn fields_of_source(&self, source: &Source) -> Vec<&'static str> {
        let mut fields = source.l7_fields();
        // Tokens a waypoint sees, and not what others have written into a header.
        fields.retain(|field| self.waypoint.is_none() || field.ends_with("emoteIpBlocks"));
        fields
    }

    /// The same of an operation.
    fn fields_of_operation(&self, operation: &Operation) -> Vec<&'static str> {
        let mut fields = operation.l7_fields();
        if self.waypoint.is_some() {
            fields.retain(|field| !http::can_judge(operation, field));
        }
        fields
    }

    /// One rule of the wire for each source.
    fn rule(&self, rule: &seine_objects::istio::Rule) -> Vec<security::Rule> {
        let mut shared = Vec::new();
        match self.operations(&rule.to.iter().map(|to| &to.operation).collect::<Vec<_>>()) {
            Some(clauses) => shared.extend(clauses),
            None => return Vec::new(),
        }
        for condition in &rule.when {
            match self.condition(condition) {
                Some(clauses) => shared.extend(clauses),
                None if self.allow => return Vec::new(),
                None => {}
            }
        }
        if rule.from.is_empty() {
            return vec![security::Rule { clauses: shared }];
        }
        let sources = rule.from.iter().map(|from| &from.source);
        let judged =
            sources.filter(|source| !self.allow || self.fields_of_source(source).is_empty());
        judged
            .map(|source| {
                let mut clauses = self.source(source);
                clauses.extend(shared.iter().cloned());
                security::Rule { clauses }
            })
            .collect()
    }

    /// `None`: nothing can match the rule.
    fn operations(&self, operations: &[&Operation]) -> Option<Vec<Clause>> {
        let judged = operations
            .iter()
            .filter(|operation| !self.allow || self.fields_of_operation(operation).is_empty());
        let matches: Vec<Match> = judged
            .filter_map(|operation| match self.waypoint {
                Some(targets) => {
                    let not_judged = self.fields_of_operation(operation);
                    http::operation(operation, &not_judged, self.action, targets)
                }
                None => Some(Match {
                    destination_ports: ports(&operation.ports),
                    not_destination_ports: ports(&operation.not_ports),
                    ..Default::default()
                }),
            })
            .collect();
        if matches.is_empty() && !operations.is_empty() {
            return None;
        }
        // An operation without ports covers every connection, and then the others don't matter.
        if matches.is_empty() || matches.contains(&Match::default()) {
            return Some(Vec::new());
        }
        Some(vec![Clause { matches }])
    }

    /// Every field of it that can be judged.
    fn source(&self, source: &Source) -> Vec<Clause> {
        [
            self.principals(&source.principals, &source.not_principals),
            self.namespaces(&source.namespaces, &source.not_namespaces),
            self.accounts(&source.service_accounts, &source.not_service_accounts),
            source_ips(&source.ip_blocks, &source.not_ip_blocks),
            self.waypoint
                .and_then(|_| http::token(source))
                .into_iter()
                .collect(),
        ]
        .concat()
    }

    /// `None`: it can't be judged.
    fn condition(&self, condition: &Condition) -> Option<Vec<Clause>> {
        let (values, not_values) = (&condition.values, &condition.not_values);
        if let Some(targets) = self.waypoint {
            match http::condition(condition, self.action, targets) {
                http::Judged::Here(clauses) => return clauses,
                http::Judged::AsOnAConnection => {}
            }
        }
        Some(match condition.key.as_str() {
            "source.ip" => source_ips(values, not_values),
            "source.namespace" => self.namespaces(values, not_values),
            "source.principal" => self.principals(values, not_values),
            "source.serviceAccount" => self.accounts(values, not_values),
            "destination.ip" => both(
                Match {
                    destination_ips: addresses(values),
                    ..Default::default()
                },
                Match {
                    not_destination_ips: addresses(not_values),
                    ..Default::default()
                },
            ),
            "destination.port" => both(
                Match {
                    destination_ports: ports(values),
                    ..Default::default()
                },
                Match {
                    not_destination_ports: ports(not_values),
                    ..Default::default()
                },
            ),
            _ => return None,
        })
    }

    fn principals(&self, values: &[String], not_values: &[String]) -> Vec<Clause> {
        principals(self.patterns(values), self.patterns(not_values))
    }

    fn patterns(&self, values: &[String]) -> Vec<StringMatch> {
        let mut patterns = Vec::new();
        for value in values {
            let value = value.strip_prefix("spiffe://").unwrap_or(value);
            patterns.push(string_match(value));
            if let Some((OWN_DOMAIN, path)) = value.split_once('/')
                && self.trust_domain != OWN_DOMAIN
            {
                patterns.push(string_match(&format!("{}/{path}", self.trust_domain)));
            }
        }
        patterns
    }

    /// Of the own trust domain: another's namespace of that name is another.
    fn namespaces(&self, values: &[String], not_values: &[String]) -> Vec<Clause> {
        let own = || vec![prefix(format!("{}/", self.trust_domain))];
        let patterns = |values: &[String]| values.iter().map(|value| string_match(value)).collect();
        let mut clauses = Vec::new();
        if !values.is_empty() {
            clauses.push(clause(Match {
                namespaces: patterns(values),
                principals: own(),
                ..Default::default()
            }));
        }
        if !not_values.is_empty() {
            let matches = vec![
                Match {
                    not_namespaces: patterns(not_values),
                    ..Default::default()
                },
                Match {
                    not_principals: own(),
                    ..Default::default()
                },
            ];
            clauses.push(Clause { matches });
        }
        clauses
    }

    fn accounts(&self, values: &[String], not_values: &[String]) -> Vec<Clause> {
        let account = |text: &String| {
            let (namespace, name) = text.split_once('/').unwrap_or((self.namespace, text));
            exact(format!("{}/ns/{namespace}/sa/{name}", self.trust_domain))
        };
        principals(
            values.iter().map(account).collect(),
            not_values.iter().map(account).collect(),
        )
    }
}

fn principals(principals: Vec<StringMatch>, not_principals: Vec<StringMatch>) -> Vec<Clause> {
    both(
        Match {
            principals,
            ..Default::default()
        },
        Match {
            not_principals,
            ..Default::default()
        },
    )
}

fn source_ips(values: &[String], not_values: &[String]) -> Vec<Clause> {
    both(
        Match {
            source_ips: addresses(values),
            ..Default::default()
        },
        Match {
            not_source_ips: addresses(not_values),
            ..Default::default()
        },
    )
}

/// Both must hold; one that says nothing is left out.
fn both(positive: Match, negative: Match) -> Vec<Clause> {
    let all = [positive, negative].into_iter();
    all.filter(|one| *one != Match::default())
        .map(clause)
        .collect()
}

fn addresses(values: &[String]) -> Vec<Address> {
    let address = |block: ipnet::IpNet| Address {
        address: ip_bytes(block.network()),
        length: block.prefix_len().into(),
    };
    blocks(values).into_iter().map(address).collect()
}
