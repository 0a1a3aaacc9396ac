//! `AuthorizationPolicy`: who may open which connections.

use ipnet::IpNet;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::provider::Provider;
use super::request_authentication::claim_path;
use super::target_ref::TargetRef;
use super::{Errors, FieldError, PolicyStatus, Selector};

// For the API server, which refuses by them what validation would refuse: never more than that, but less where a
// pattern can't say it.
const PRINCIPAL: &str = r"^(spiffe://)?(\*[^*]*|[^*]+\*|[^*]*/[^*]*)$";
const SERVICE_ACCOUNT: &str = r"^([a-z0-9.-]+/)?[a-z0-9.-]+$";
const NAMESPACE: &str = r"^(\*|[a-z0-9.-]+\*?)$";
const IP_BLOCK: &str = r"^[0-9a-fA-F:.]+(/[0-9]{1,3})?$";

/// Allows or denies connections to the pods that it selects.
///
/// A connection is denied if any `Deny` policy matches it; else allowed if no `Allow` policy
/// selects the pod or any of them matches; else denied. Without `selector` and `targetRefs` a
/// policy holds for its namespace, and in `seine-system` for the mesh.
#[derive(
    CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema,
)]
#[kube(
    group = "policy.seine.dev",
    version = "v1alpha1",
    kind = "AuthorizationPolicy",
    plural = "authorizationpolicies",
    namespaced,
    status = "PolicyStatus",
    derive = "PartialEq",
    category = "seine",
    shortname = "azp",
    printcolumn = r#"{"name":"Action","type":"string","jsonPath":".spec.action"}"#,
    printcolumn = r#"{"name":"Dry-Run","type":"boolean","jsonPath":".spec.dryRun","priority":1}"#,
    printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.conditions[?(@.type=='Accepted')].status"}"#,
    printcolumn = r#"{"name":"Enforced","type":"string","jsonPath":".status.conditions[?(@.type=='Enforced')].status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "!has(self.selector) || !has(self.targetRefs) || size(self.targetRefs) == 0",
    "message": "targetRefs: not together with selector",
}, {
    "rule": "(has(self.action) && self.action == 'External') == has(self.provider)",
    "message": "provider: with action External, and with no other",
}, {
    "rule": "!has(self.provider) || (has(self.targetRefs) && size(self.targetRefs) > 0 && !has(self.dryRun))",
    "message": "action External needs targetRefs, and there is no dryRun of it",
}]))]
pub struct AuthorizationPolicySpec {
    /// What becomes of a connection that a rule matches.
    #[serde(default)]
    pub action: Action,
    /// Judge, count and log, but don't enforce. For trying an `Allow` or `Deny` out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// Whom to ask, for action `External`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Provider>,
    /// Pods of this namespace (in `seine-system`: of every namespace).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<Selector>,
    /// Objects that it is attached to; not together with `selector`. A `Service` stands for the
    /// pods behind it, and each rule then covers the ports that the service leads to. A `Gateway` of class
    /// `seine` stands for what comes in at its listeners.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub target_refs: Vec<TargetRef>,
    /// The policy matches if any rule does; without rules it matches nothing, so that an `Allow`
    /// policy without rules allows nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
}

/// What a policy does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Action {
    /// What matches is allowed; everything else that no other `Allow` policy matches is not.
    #[default]
    Allow,
    /// What matches is denied, whatever else allows it.
    Deny,
    /// What matches is counted and logged as a connection that `Deny` would have denied.
    Audit,
    /// About a request that matches, and that is allowed otherwise, `provider` is asked. Where no waypoint can ask, what matches is
    /// denied.
    External,
}

/// Matches if any of `from` matches (or there is none) and any of `to` does (or there is none).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Where the connection comes from.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Source>,
    /// What it is for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<Operation>,
}

/// A client. Every field that is set must hold; of a field's values any, of a `not` field's none.
///
/// The fields about the request's token need a waypoint, as those of an HTTP operation do. A request without a token
/// matches none of the positive ones, and every negative one.
///
/// Namespaces and service accounts are those of the mesh's own trust domain. A connection in
/// plaintext has no principal: it matches none of the positive fields but `ipBlocks`, and every
/// negative one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub struct Source {
    /// SPIFFE ids, with or without `spiffe://`; `*` for any, `*x` and `x*` for an end or a start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(regex(pattern = PRINCIPAL)))]
    pub principals: Vec<String>,
    /// As `principals`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(regex(pattern = PRINCIPAL)))]
    pub not_principals: Vec<String>,
    /// `name` of the policy's own namespace, or `namespace/name`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(regex(pattern = SERVICE_ACCOUNT)))]
    pub service_accounts: Vec<String>,
    /// As `serviceAccounts`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(regex(pattern = SERVICE_ACCOUNT)))]
    pub not_service_accounts: Vec<String>,
    /// Names; `*` for any, `x*` for a start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(regex(pattern = NAMESPACE)))]
    pub namespaces: Vec<String>,
    /// As `namespaces`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(regex(pattern = NAMESPACE)))]
    pub not_namespaces: Vec<String>,
    /// Addresses or CIDR blocks of the client.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(regex(pattern = IP_BLOCK)))]
    pub ip_blocks: Vec<String>,
    /// As `ipBlocks`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(regex(pattern = IP_BLOCK)))]
    pub not_ip_blocks: Vec<String>,
    /// `ISSUER/SUBJECT` of the request's token, which a `RequestAuthentication` verifies; `*` for any, `*x` and `x*` for an
    /// end or a start. Needs a waypoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(length(min = 1)))]
    pub request_principals: Vec<String>,
    /// As `requestPrincipals`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(length(min = 1)))]
    pub not_request_principals: Vec<String>,
    /// What the request's token claims; each must hold. Needs a waypoint.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<ClaimMatch>,
}

/// A claim that must have one of the values, and none of those excluded. Of a list any element counts, of `scope` any word.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "(has(self.values) && size(self.values) > 0) || (has(self.notValues) && size(self.notValues) > 0)",
    "message": "says nothing: set values or notValues",
}]))]
pub struct ClaimMatch {
    /// The names that lead to the claim: `[groups]`, or `[realm_access, roles]` for one within another.
    #[schemars(length(min = 1), inner(length(min = 1)))]
    pub path: Vec<String>,
    /// Any of these; `*` as in `principals`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_values: Vec<String>,
}

/// What a connection or request is for. Every field that is set must hold.
///
/// The fields below the ports need a waypoint, to which the Service in `targetRefs` is bound, or a Gateway there. Anywhere else an
/// `Allow` rule with such a field allows nothing, and a `Deny` rule with one denies as if the field were not there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("minProperties" = 1))]
pub struct Operation {
    /// Ports on which the pod listens (not the service's).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(range(min = 1)))]
    pub ports: Vec<u16>,
    /// As `ports`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(inner(range(min = 1)))]
    pub not_ports: Vec<u16>,
    /// HTTP methods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// As `methods`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_methods: Vec<String>,
    /// HTTP paths; `*` as in `principals`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// As `paths`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_paths: Vec<String>,
    /// HTTP hosts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// As `hosts`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_hosts: Vec<String>,
    /// HTTP headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
}

/// An HTTP header that must have one of the values.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HeaderMatch {
    /// The header's name.
    #[schemars(length(min = 1))]
    pub name: String,
    /// Any of these; `*` as in `principals`.
    #[schemars(length(min = 1))]
    pub values: Vec<String>,
}

impl Operation {
    /// Names of the fields that are set and need L7.
    pub fn l7_fields(&self) -> Vec<&'static str> {
        named([
            ("methods", self.methods.is_empty()),
            ("notMethods", self.not_methods.is_empty()),
            ("paths", self.paths.is_empty()),
            ("notPaths", self.not_paths.is_empty()),
            ("hosts", self.hosts.is_empty()),
            ("notHosts", self.not_hosts.is_empty()),
            ("headers", self.headers.is_empty()),
        ])
    }

    fn validate(&self, path: &str, errors: &mut Errors) {
        if *self == Self::default() {
            errors.add(
                path,
                "names nothing: leave `to` out to mean every connection",
            );
        }
        for (field, ports) in [("ports", &self.ports), ("notPorts", &self.not_ports)] {
            for (index, port) in ports.iter().enumerate() {
                errors.port(format!("{path}.{field}[{index}]"), *port);
            }
        }
        for (index, header) in self.headers.iter().enumerate() {
            if header.name.is_empty() {
                errors.add(format!("{path}.headers[{index}].name"), "is empty");
            }
            if header.values.is_empty() {
                errors.add(format!("{path}.headers[{index}].values"), "is empty");
            }
        }
    }
}

/// Those that are not empty.
fn named<const N: usize>(fields: [(&'static str, bool); N]) -> Vec<&'static str> {
    let fields = fields.into_iter();
    fields
        .filter_map(|(name, empty)| (!empty).then_some(name))
        .collect()
}

/// Parses a CIDR block, or an address as the block that holds it alone. Host bits are cleared.
pub(crate) fn parse_ip_block(text: &str) -> Option<IpNet> {
    match text.parse::<IpNet>() {
        Ok(net) => Some(net.trunc()),
        Err(_) => text.parse::<std::net::IpAddr>().ok().map(IpNet::from),
    }
}

impl Source {
    /// The blocks of `ipBlocks` and `notIpBlocks`.
    pub fn blocks(&self) -> (Vec<IpNet>, Vec<IpNet>) {
        let parse = |texts: &[String]| {
            texts
                .iter()
                .filter_map(|text| parse_ip_block(text))
                .collect()
        };
        (parse(&self.ip_blocks), parse(&self.not_ip_blocks))
    }

    /// Names of the fields that are set and need L7.
    pub fn l7_fields(&self) -> Vec<&'static str> {
        named([
            ("requestPrincipals", self.request_principals.is_empty()),
            (
                "notRequestPrincipals",
                self.not_request_principals.is_empty(),
            ),
            ("claims", self.claims.is_empty()),
        ])
    }

    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn validate(&self, path: &str, errors: &mut Errors) {
        if self.is_empty() {
            errors.add(
                path,
                "names no client: leave `from` out to mean every client",
            );
        }
        for (field, values) in [
            ("principals", &self.principals),
            ("notPrincipals", &self.not_principals),
        ] {
            each(values, path, field, errors, |value| {
                let value = value.strip_prefix("spiffe://").unwrap_or(value);
                match pattern(value) {
                    Some(rest) if rest.contains("://") => {
                        Some("has a scheme that is not spiffe".into())
                    }
                    Some(rest) if rest == value && !value.contains('/') => Some(format!(
                        "{value:?} is no SPIFFE id: write trust-domain/ns/NAMESPACE/sa/NAME"
                    )),
                    Some(_) => None,
                    None => Some(format!(
                        "{value:?}: `*` may stand alone, first or last only"
                    )),
                }
            });
        }
        for (field, values) in [
            ("serviceAccounts", &self.service_accounts),
            ("notServiceAccounts", &self.not_service_accounts),
        ] {
            each(values, path, field, errors, |value| {
                let (namespace, name) = value.split_once('/').unwrap_or(("default", value));
                let good = is_name(namespace) && is_name(name);
                (!good).then(|| format!("{value:?} is neither `name` nor `namespace/name`"))
            });
        }
        for (field, values) in [
            ("namespaces", &self.namespaces),
            ("notNamespaces", &self.not_namespaces),
        ] {
            each(values, path, field, errors, |value| {
                let start = value.strip_suffix('*').unwrap_or(value);
                let good = value == "*" || is_name(start.trim_end_matches('-'));
                (!good).then(|| format!("{value:?} is no namespace, `*` or `start*`"))
            });
        }
        for (field, values) in [
            ("ipBlocks", &self.ip_blocks),
            ("notIpBlocks", &self.not_ip_blocks),
        ] {
            each(values, path, field, errors, |value| {
                parse_ip_block(value)
                    .is_none()
                    .then(|| format!("{value:?} is neither an IP address nor a CIDR block"))
            });
        }
        for (field, values) in [
            ("requestPrincipals", &self.request_principals),
            ("notRequestPrincipals", &self.not_request_principals),
        ] {
            each(values, path, field, errors, misplaced_star);
        }
        for (index, claim) in self.claims.iter().enumerate() {
            let path = format!("{path}.claims[{index}]");
            claim_path(&claim.path, &path, errors);
            if claim.values.is_empty() && claim.not_values.is_empty() {
                errors.add(&path, "says nothing: set values or notValues");
            }
            for (field, values) in [("values", &claim.values), ("notValues", &claim.not_values)] {
                each(values, &path, field, errors, misplaced_star);
            }
        }
    }
}

impl AuthorizationPolicy {
    /// Everything that is wrong with it.
    pub fn validate(&self) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = &self.spec;
        if let Some(selector) = &spec.selector {
            selector.validate("spec.selector", &mut errors);
            if !spec.target_refs.is_empty() {
                errors.add("spec.targetRefs", "not together with selector");
            }
        }
        for (index, target) in spec.target_refs.iter().enumerate() {
            target.validate(&format!("spec.targetRefs[{index}]"), &mut errors);
        }
        let is_external = spec.action == Action::External;
        match &spec.provider {
            Some(provider) if is_external => provider.validate(&mut errors),
            Some(_) => errors.add("spec.provider", "is for action External alone"),
            None if is_external => errors.add("spec.provider", "is missing: name whom to ask"),
            None => {}
        }
        if is_external && spec.target_refs.is_empty() {
            errors.add(
                "spec.targetRefs",
                "is empty: action External needs Services",
            );
        }
        if is_external && spec.dry_run {
            errors.add("spec.dryRun", "there is none of action External");
        }
        for (index, rule) in spec.rules.iter().enumerate() {
            for (from, source) in rule.from.iter().enumerate() {
                source.validate(&format!("spec.rules[{index}].from[{from}]"), &mut errors);
            }
            for (to, operation) in rule.to.iter().enumerate() {
                operation.validate(&format!("spec.rules[{index}].to[{to}]"), &mut errors);
            }
        }
        errors.0
    }
}

fn each(
    values: &[String],
    path: &str,
    field: &str,
    errors: &mut Errors,
    wrong: impl Fn(&str) -> Option<String>,
) {
    for (index, value) in values.iter().enumerate() {
        let message = match value.is_empty() {
            true => Some("is empty".to_owned()),
            false => wrong(value),
        };
        if let Some(message) = message {
            errors.add(format!("{path}.{field}[{index}]"), message);
        }
    }
}

fn misplaced_star(value: &str) -> Option<String> {
    let good = pattern(value).is_some();
    (!good).then(|| format!("{value:?}: `*` may stand alone, first or last only"))
}

/// The pattern without its `*`; `None` where a `*` stands elsewhere or there are two.
fn pattern(value: &str) -> Option<&str> {
    let rest = value
        .strip_prefix('*')
        .or_else(|| value.strip_suffix('*'))
        .unwrap_or(value);
    (!rest.contains('*')).then_some(rest)
}

/// An RFC 1123 subdomain, as Kubernetes wants for names.
pub(crate) fn is_name(text: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= 253
        && bytes.first().is_some_and(|byte| alphanumeric(*byte))
        && bytes.last().is_some_and(|byte| alphanumeric(*byte))
        && bytes
            .iter()
            .all(|byte| alphanumeric(*byte) || matches!(byte, b'-' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(spec: &str) -> Vec<String> {
        let spec: AuthorizationPolicySpec = serde_saphyr::from_str(spec).unwrap();
        AuthorizationPolicy::new("p", spec)
            .validate()
            .into_iter()
            .map(|error| error.field)
            .collect()
    }

    #[test]
    fn a_full_policy_is_valid() {
        let none: Vec<String> = Vec::new();
        assert_eq!(
            errors(
                "
action: Deny
selector: {matchLabels: {app: db}}
rules:
- from:
  - principals: ['spiffe://cluster.local/ns/a/sa/b', '*/sa/x', 'cluster.local/ns/a*', '*']
    notServiceAccounts: [api, other/api]
    namespaces: [shop, 'team-*', '*']
    ipBlocks: [10.0.0.0/8, 'fd00::1']
    requestPrincipals: ['https://issuer.example/alice', 'https://*', '*']
    claims: [{path: [realm_access, roles], values: [admin, 'team-*'], notValues: [guest]}]
  to:
  - ports: [5432]
    methods: [GET]
"
            ),
            none
        );
    }

    #[test]
    fn every_error_names_its_field() {
        assert_eq!(
            errors(
                "
selector: {}
targetRefs: [{kind: Service, name: ''}]
rules:
- from:
  - {}
  - principals: ['a*b', nonsense, 'http://x/y']
    serviceAccounts: [a/b/c, '']
    namespaces: ['*x', Big]
    notIpBlocks: [10.0.0.0/33]
  - notRequestPrincipals: ['a*b']
    claims: [{path: [], values: ['']}, {path: [a]}]
  to:
  - {}
  - notPorts: [80, 0]
  - headers: [{name: '', values: []}]
"
            ),
            [
                "spec.selector",
                "spec.targetRefs",
                "spec.targetRefs[0].name",
                "spec.rules[0].from[0]",
                "spec.rules[0].from[1].principals[0]",
                "spec.rules[0].from[1].principals[1]",
                "spec.rules[0].from[1].principals[2]",
                "spec.rules[0].from[1].serviceAccounts[0]",
                "spec.rules[0].from[1].serviceAccounts[1]",
                "spec.rules[0].from[1].namespaces[0]",
                "spec.rules[0].from[1].namespaces[1]",
                "spec.rules[0].from[1].notIpBlocks[0]",
                "spec.rules[0].from[2].notRequestPrincipals[0]",
                "spec.rules[0].from[2].claims[0].path",
                "spec.rules[0].from[2].claims[0].values[0]",
                "spec.rules[0].from[2].claims[1]",
                "spec.rules[0].to[0]",
                "spec.rules[0].to[1].notPorts[1]",
                "spec.rules[0].to[2].headers[0].name",
                "spec.rules[0].to[2].headers[0].values",
            ]
        );
    }

    #[test]
    fn whom_to_ask_is_said_with_action_external_and_with_no_other() {
        let external = |more: &str| {
            errors(&format!(
                "action: External\ntargetRefs: [{{kind: Service, name: web}}]\n{more}"
            ))
        };
        let at = |field: &str| vec![format!("spec.provider{field}")];
        let none: Vec<String> = Vec::new();
        for (provider, expected) in [
            (
                "{service: authz, port: 9000, protocol: Grpc, timeout: 200ms, failOpen: true}",
                none.clone(),
            ),
            (
                "{service: a, port: 1, protocol: Http, pathPrefix: /check, requestHeaders: [cookie], headersToBackend: [x-a], headersToClient: [x-b]}",
                none,
            ),
            ("{service: a, port: 0, protocol: Grpc}", at(".port")),
            ("{service: A, port: 1, protocol: Grpc}", at(".service")),
            (
                "{service: a, port: 1, protocol: Grpc, timeout: soon}",
                at(".timeout"),
            ),
            (
                "{service: a, port: 1, protocol: Grpc, timeout: 0s}",
                at(".timeout"),
            ),
            (
                "{service: a, port: 1, protocol: Grpc, pathPrefix: /a}",
                at(".pathPrefix"),
            ),
            (
                "{service: a, port: 1, protocol: Grpc, headersToClient: [a]}",
                at(".headersToClient"),
            ),
            (
                "{service: a, port: 1, protocol: Http, pathPrefix: a}",
                at(".pathPrefix"),
            ),
            (
                "{service: a, port: 1, protocol: Http, requestHeaders: ['a b']}",
                at(".requestHeaders[0]"),
            ),
        ] {
            assert_eq!(
                external(&format!("provider: {provider}")),
                expected,
                "{provider}"
            );
        }
        assert_eq!(external(""), at(""));
        let good = "provider: {service: a, port: 1, protocol: Grpc}";
        assert_eq!(errors(&format!("action: Deny\n{good}")), at(""));
        assert_eq!(
            errors(&format!("action: External\n{good}")),
            ["spec.targetRefs"]
        );
        assert_eq!(external(&format!("dryRun: true\n{good}")), ["spec.dryRun"]);
    }

    #[test]
    fn a_misspelt_field_is_an_error() {
        assert!(serde_saphyr::from_str::<AuthorizationPolicySpec>("rule: []").is_err());
    }
}
