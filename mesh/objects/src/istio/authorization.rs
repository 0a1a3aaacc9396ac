//! Istio's `AuthorizationPolicy`.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{IstioObject, WorkloadSelector};
use crate::policy::{Errors, FieldError, Selector, is_name, parse_ip_block};

/// `true` (as Go's `strconv.ParseBool` reads it): the policy is judged and reported, and not enforced.
const DRY_RUN: &str = "istio.io/dry-run";

/// Allows or denies connections and requests.
pub type AuthorizationPolicy = IstioObject<AuthorizationPolicySpec>;

/// What an [`AuthorizationPolicy`] says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AuthorizationPolicySpec {
    /// Pods of this namespace, of the root namespace: of every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// As one of `target_refs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// What the policy is attached to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub target_refs: Vec<TargetRef>,
    /// The policy matches if any rule does.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// What a match means.
    #[serde(default)]
    pub action: Action,
    /// Who decides, of `CUSTOM`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<Provider>,
}

/// What a match means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// Allowed; what no such policy matches is not.
    #[default]
    Allow,
    /// Denied.
    Deny,
    /// Logged.
    Audit,
    /// Asked of an external service.
    Custom,
}

/// An external service that authorizes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Provider {
    /// Its name in Istio's mesh configuration.
    #[serde(default)]
    pub name: String,
}

/// What a policy is attached to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TargetRef {
    /// API group; empty for the core group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// `Service`, `ServiceEntry`, `Gateway` or `GatewayClass`.
    pub kind: String,
    /// The object's name.
    pub name: String,
    /// Must be empty: the policy's own.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
}

/// Matches if any of `from`, any of `to` and every one of `when` does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Where it comes from; none: from anywhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<From>,
    /// What it is for; none: for anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<To>,
    /// Further conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub when: Vec<Condition>,
}

/// One of a rule's `from`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct From {
    /// The client.
    #[serde(default)]
    pub source: Source,
}

/// One of a rule's `to`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct To {
    /// What is asked of the server.
    #[serde(default)]
    pub operation: Operation,
}

/// A client; every field that is set must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs, reason = "each is Istio's field of that name")]
pub struct Source {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub principals: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_principals: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub request_principals: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_request_principals: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_service_accounts: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ip_blocks: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_ip_blocks: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remote_ip_blocks: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_remote_ip_blocks: Vec<String>,
}

/// What is asked of the server; every field that is set must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs, reason = "each is Istio's field of that name")]
pub struct Operation {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_ports: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_hosts: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_methods: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_paths: Vec<String>,
}

/// A condition on an attribute.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Condition {
    /// The attribute, such as `source.ip` or `request.headers[x]`.
    pub key: String,
    /// Any of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    /// None of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_values: Vec<String>,
}

impl Source {
    /// Names of the fields that are set and can't be judged on a connection: by a token, or by an address that an HTTP
    /// header or the PROXY protocol tells.
    pub fn l7_fields(&self) -> Vec<&'static str> {
        set([
            ("requestPrincipals", &self.request_principals),
            ("notRequestPrincipals", &self.not_request_principals),
            ("remoteIpBlocks", &self.remote_ip_blocks),
            ("notRemoteIpBlocks", &self.not_remote_ip_blocks),
        ])
    }
}

impl Operation {
    /// Names of the fields that are set and need HTTP.
    pub fn l7_fields(&self) -> Vec<&'static str> {
        set([
            ("hosts", &self.hosts),
            ("notHosts", &self.not_hosts),
            ("methods", &self.methods),
            ("notMethods", &self.not_methods),
            ("paths", &self.paths),
            ("notPaths", &self.not_paths),
        ])
    }
}

fn set<const N: usize>(fields: [(&'static str, &Vec<String>); N]) -> Vec<&'static str> {
    let set = fields.into_iter().filter(|(_, values)| !values.is_empty());
    set.map(|(name, _)| name).collect()
}

impl AuthorizationPolicy {
    /// It is judged and reported, and not enforced.
    pub fn is_dry_run(&self) -> bool {
        let annotations = self.metadata.annotations.as_ref();
        let value = annotations.and_then(|annotations| annotations.get(DRY_RUN));
        let trues = ["1", "t", "T", "TRUE", "true", "True"];
        value.is_some_and(|value| trues.contains(&value.as_str()))
    }

    /// What it is attached to, by either field.
    pub fn targets(&self) -> impl Iterator<Item = (String, &TargetRef)> {
        let one = self.spec.target_ref.iter();
        let many = self.spec.target_refs.iter().enumerate();
        one.map(|target| ("spec.targetRef".to_owned(), target))
            .chain(many.map(|(index, target)| (format!("spec.targetRefs[{index}]"), target)))
    }

    /// The labels that pods must have; none: every pod of the namespace.
    pub fn selector(&self) -> Option<Selector> {
        Some(self.spec.selector.as_ref()?.to_selector())
    }

    /// Everything that is wrong with it.
    pub fn validate(&self) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = &self.spec;
        if let Some(selector) = &spec.selector {
            selector.validate("spec.selector", &mut errors);
        }
        let ways = [
            spec.selector.is_some(),
            spec.target_ref.is_some(),
            !spec.target_refs.is_empty(),
        ];
        if ways.into_iter().filter(|set| *set).count() > 1 {
            errors.add("spec", "only one of selector, targetRef and targetRefs");
        }
        for (path, target) in self.targets() {
            if !is_name(&target.name) || target.kind.is_empty() {
                errors.add(&path, "names no object: kind and name");
            }
            if !target.namespace.is_empty() {
                errors.add(format!("{path}.namespace"), "only the policy's own");
            }
        }
        for (index, rule) in spec.rules.iter().enumerate() {
            let path = format!("spec.rules[{index}]");
            for (from, found) in rule.from.iter().enumerate() {
                let path = format!("{path}.from[{from}].source");
                found.source.validate(&path, &mut errors);
            }
            for (to, found) in rule.to.iter().enumerate() {
                let path = format!("{path}.to[{to}].operation");
                found.operation.validate(&path, &mut errors);
            }
            for (when, found) in rule.when.iter().enumerate() {
                found.validate(&format!("{path}.when[{when}]"), &mut errors);
            }
        }
        errors.0
    }
}

impl Source {
    fn validate(&self, path: &str, errors: &mut Errors) {
        if *self == Self::default() {
            errors.add(
                path,
                "names no client: leave `from` out to mean every client",
            );
        }
        for (field, values) in [
            ("principals", &self.principals),
            ("notPrincipals", &self.not_principals),
        ] {
            let path = format!("{path}.{field}");
            each(values, &path, errors, is_principal, NO_PRINCIPAL);
        }
        for (field, values) in [
            ("requestPrincipals", &self.request_principals),
            ("notRequestPrincipals", &self.not_request_principals),
            ("namespaces", &self.namespaces),
            ("notNamespaces", &self.not_namespaces),
        ] {
            each(values, &format!("{path}.{field}"), errors, |_| true, "");
        }
        for (field, values) in [
            ("serviceAccounts", &self.service_accounts),
            ("notServiceAccounts", &self.not_service_accounts),
        ] {
            let what = "is neither `name` nor `namespace/name`";
            each(values, &format!("{path}.{field}"), errors, is_account, what);
        }
        for (field, values) in [
            ("ipBlocks", &self.ip_blocks),
            ("notIpBlocks", &self.not_ip_blocks),
            ("remoteIpBlocks", &self.remote_ip_blocks),
            ("notRemoteIpBlocks", &self.not_remote_ip_blocks),
        ] {
            each(
                values,
                &format!("{path}.{field}"),
                errors,
                is_block,
                NO_BLOCK,
            );
        }
    }
}

impl Operation {
    fn validate(&self, path: &str, errors: &mut Errors) {
        if *self == Self::default() {
            errors.add(path, "names nothing: leave `to` out to mean everything");
        }
        for (field, values) in [("ports", &self.ports), ("notPorts", &self.not_ports)] {
            each(values, &format!("{path}.{field}"), errors, is_port, NO_PORT);
        }
    }
}

impl Condition {
    fn validate(&self, path: &str, errors: &mut Errors) {
        if self.key.is_empty() {
            errors.add(format!("{path}.key"), "is empty");
        }
        if self.values.is_empty() && self.not_values.is_empty() {
            errors.add(path, "says nothing: set values or notValues");
        }
        for (field, values) in [("values", &self.values), ("notValues", &self.not_values)] {
            let path = format!("{path}.{field}");
            match self.key.as_str() {
                "source.ip" | "destination.ip" | "remote.ip" => {
                    each(values, &path, errors, is_block, NO_BLOCK);
                }
                "source.principal" => each(values, &path, errors, is_principal, NO_PRINCIPAL),
                "destination.port" => each(values, &path, errors, is_port, NO_PORT),
                "source.serviceAccount" => {
                    let what = "is neither `name` nor `namespace/name`";
                    each(values, &path, errors, is_account, what);
                }
                _ => each(values, &path, errors, |_| true, ""),
            }
        }
    }
}

const NO_BLOCK: &str = "is neither an IP address nor a CIDR block";
const NO_PRINCIPAL: &str = "names nobody: write trust-domain/ns/NAMESPACE/sa/NAME";
const NO_PORT: &str = "is no port: use 1 to 65535";

fn each(
    values: &[String],
    path: &str,
    errors: &mut Errors,
    is_good: impl Fn(&str) -> bool,
    what: &str,
) {
    for (index, value) in values.iter().enumerate() {
        let path = format!("{path}[{index}]");
        match value.as_str() {
            "" => errors.add(path, "is empty"),
            value if !is_good(value) => errors.add(path, format!("{value:?} {what}")),
            _ => {}
        }
    }
}

fn is_block(text: &str) -> bool {
    parse_ip_block(text).is_some()
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok_and(|port| port != 0)
}

fn is_principal(text: &str) -> bool {
    text != "spiffe://"
}

fn is_account(text: &str) -> bool {
    let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
    is_name(namespace) && is_name(name)
}

/// The blocks of a valid list.
pub fn blocks(texts: &[String]) -> Vec<IpNet> {
    let texts = texts.iter();
    texts.filter_map(|text| parse_ip_block(text)).collect()
}

/// The ports of a valid list.
pub fn ports(texts: &[String]) -> Vec<u32> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(spec: &str) -> Result<AuthorizationPolicy, String> {
        let spec = serde_saphyr::from_str(spec).map_err(|error| error.to_string())?;
        Ok(AuthorizationPolicy {
            spec,
            ..Default::default()
        })
    }

    fn errors(spec: &str) -> Vec<String> {
        let errors = policy(spec).unwrap().validate().into_iter();
        errors.map(|error| error.field).collect()
    }

    #[test]
    fn a_policy_with_everything_is_valid() {
        let spec = "
selector: {matchLabels: {app: db}}
action: DENY
rules:
- from:
  - source: {principals: ['*/sa/x', cluster.local/ns/a/sa/b], notNamespaces: ['*-test'], remoteIpBlocks: [10.0.0.0/8]}
  - source: {serviceAccounts: [a, b/c], requestPrincipals: ['*']}
  to:
  - operation: {ports: ['80'], notPaths: [/healthz], methods: [GET]}
  when:
  - {key: 'request.headers[x]', values: [a]}
  - {key: source.ip, notValues: [10.0.0.1, 'fd00::/8']}
";
        assert_eq!(errors(spec), [""; 0]);
        assert_eq!(errors("{}"), [""; 0]);
        assert_eq!(errors("{rules: [{}]}"), [""; 0]);
    }

    #[test]
    fn every_error_names_its_field() {
        let spec = "
selector: {matchLabels: {app: 'a*'}}
targetRef: {kind: Service, name: '', namespace: other}
rules:
- from: [{source: {}}, {source: {ipBlocks: [x], serviceAccounts: [a/b/c], principals: ['', 'spiffe://']}}]
  to: [{}, {operation: {ports: [http], notPorts: ['0']}}]
  when: [{key: '', values: [a]}, {key: source.ip}, {key: destination.port, values: [x]}]
";
        let expected = [
            "spec.selector.matchLabels",
            "spec",
            "spec.targetRef",
            "spec.targetRef.namespace",
            "spec.rules[0].from[0].source",
            "spec.rules[0].from[1].source.principals[0]",
            "spec.rules[0].from[1].source.principals[1]",
            "spec.rules[0].from[1].source.serviceAccounts[0]",
            "spec.rules[0].from[1].source.ipBlocks[0]",
            "spec.rules[0].to[0].operation",
            "spec.rules[0].to[1].operation.ports[0]",
            "spec.rules[0].to[1].operation.notPorts[0]",
            "spec.rules[0].when[0].key",
            "spec.rules[0].when[1]",
            "spec.rules[0].when[2].values[0]",
        ];
        assert_eq!(errors(spec), expected);
    }

    #[test]
    fn a_field_that_is_not_known_is_an_error() {
        for spec in [
            "{rule: []}",
            "{rules: [{from: [{source: {tomorrow: [x]}}]}]}",
            "{rules: [{unless: []}]}",
            "{action: LIMIT}",
        ] {
            assert!(policy(spec).is_err(), "{spec}");
        }
    }

    #[test]
    fn a_dry_run_is_asked_for_as_go_reads_a_boolean() {
        for (value, expected) in [
            ("true", true),
            ("T", true),
            ("yes", false),
            ("false", false),
        ] {
            let mut policy = policy("{}").unwrap();
            let annotations = [(DRY_RUN.to_owned(), value.to_owned())];
            policy.metadata.annotations = Some(annotations.into());
            assert_eq!(policy.is_dry_run(), expected, "{value}");
        }
    }
}
