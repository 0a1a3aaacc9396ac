//! Authorization policies.

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use prost::Message;
use seine_policy::{
    Action, ClaimMatch, Clause, HeaderMatch, Match, Policy, PolicyKey, Provider, ProviderProtocol,
    RequestMatch, Rule, Scope, ServiceAccountMatch, StringMatch, TokenMatch,
};
use seine_proto::{extensions, security as proto};

use super::{
    AUTHORIZATION_EXTENSION, ParseError, REQUEST_EXTENSION, TOKEN_EXTENSION, block, port, required,
    unknown_value,
};
use crate::intern::Interner;

/// Parses a policy, sharing names through the interner.
pub(crate) fn parse_policy(
    message: &proto::Authorization,
    interner: &mut Interner,
) -> Result<Policy, ParseError> {
    let key = PolicyKey {
        namespace: interner.get(required(&message.namespace, "namespace")?),
        name: interner.get(required(&message.name, "name")?),
    };
    let scope = match proto::Scope::try_from(message.scope) {
        Ok(proto::Scope::Global) => Scope::Global,
        Ok(proto::Scope::Namespace) => Scope::Namespace,
        Ok(proto::Scope::WorkloadSelector) => Scope::Workload,
        Err(_) => return Err(unknown_value("scope", message.scope)),
    };
    let action = match proto::Action::try_from(message.action) {
        Ok(proto::Action::Allow) => Action::Allow,
        Ok(proto::Action::Deny) => Action::Deny,
        Err(_) => return Err(unknown_value("action", message.action)),
    };
    let rules = each(&message.rules, "rules", parse_rule)?;
    let mut ours = extensions::AuthorizationExtension::default();
    for extension in message
        .extensions
        .iter()
        .filter(|e| e.name == AUTHORIZATION_EXTENSION)
    {
        let value = extension
            .config
            .as_ref()
            .map_or(&[][..], |config| &config.value);
        ours = extensions::AuthorizationExtension::decode(value)
            .map_err(|error| ParseError::new("extensions", error.to_string()))?;
    }
    let dry_run = message.dry_run;
    Ok(Policy {
        key,
        scope,
        action,
        dry_run,
        enforced_only: ours.enforced_only,
        rules,
        provider: ours.external.as_ref().map(parse_provider).transpose()?,
        unenforced_fields: ours.unenforced_fields,
    })
}

fn parse_provider(message: &extensions::ExternalProvider) -> Result<Arc<Provider>, ParseError> {
    use extensions::external_provider::Protocol;
    let texts = |texts: &[String]| texts.iter().map(|text| text.as_str().into()).collect();
    let within = |error: ParseError| error.within(|| "external".to_owned());
    let provider = || -> Result<Provider, ParseError> {
        Ok(Provider {
            namespace: required(&message.namespace, "namespace")?.into(),
            hostname: required(&message.hostname, "hostname")?.into(),
            port: port(message.port, "port")?,
            protocol: match Protocol::try_from(message.protocol) {
                Ok(Protocol::Grpc) => ProviderProtocol::Grpc,
                Ok(Protocol::Http) => ProviderProtocol::Http,
                Ok(Protocol::Unknown) | Err(_) => {
                    return Err(unknown_value("protocol", message.protocol));
                }
            },
            timeout: Duration::from_millis(message.timeout_ms),
            fail_open: message.fail_open,
            path_prefix: message.path_prefix.as_str().into(),
            request_headers: texts(&message.request_headers),
            to_backend: texts(&message.to_backend),
            to_client: texts(&message.to_client),
        })
    };
    provider().map(Arc::new).map_err(within)
}

fn parse_rule(message: &proto::Rule) -> Result<Rule, ParseError> {
    Ok(Rule {
        clauses: each(&message.clauses, "clauses", parse_clause)?,
    })
}

fn parse_clause(message: &proto::Clause) -> Result<Clause, ParseError> {
    Ok(Clause {
        matches: each(&message.matches, "matches", parse_match)?,
    })
}

fn parse_match(message: &proto::Match) -> Result<Match, ParseError> {
    Ok(Match {
        namespaces: strings(&message.namespaces, "namespaces")?,
        not_namespaces: strings(&message.not_namespaces, "not_namespaces")?,
        principals: principals(&message.principals, "principals")?,
        not_principals: principals(&message.not_principals, "not_principals")?,
        source_ips: blocks(&message.source_ips, "source_ips")?,
        not_source_ips: blocks(&message.not_source_ips, "not_source_ips")?,
        destination_ips: blocks(&message.destination_ips, "destination_ips")?,
        not_destination_ips: blocks(&message.not_destination_ips, "not_destination_ips")?,
        destination_ports: each(&message.destination_ports, "destination_ports", parse_port)?,
        not_destination_ports: each(
            &message.not_destination_ports,
            "not_destination_ports",
            parse_port,
        )?,
        service_accounts: accounts(&message.service_accounts, "service_accounts")?,
        not_service_accounts: accounts(&message.not_service_accounts, "not_service_accounts")?,
        request: parse_request(message)?,
        token: parse_token(message)?,
        unknown_condition: message
            .extensions
            .iter()
            .any(|extension| ![REQUEST_EXTENSION, TOKEN_EXTENSION].contains(&&*extension.name)),
    })
}

fn parse_request(message: &proto::Match) -> Result<Option<Box<RequestMatch>>, ParseError> {
    let Some(request) = condition::<extensions::RequestMatch>(message, REQUEST_EXTENSION)? else {
        return Ok(None);
    };
    let texts = |values: &[String]| values.iter().map(|value| value.as_str().into()).collect();
    let headers = each(&request.headers, "headers", |header| {
        Ok(HeaderMatch {
            name: required(&header.name, "name")?.into(),
            values: strings(&header.values, "values")?,
        })
    })?;
    Ok(Some(Box::new(RequestMatch {
        methods: texts(&request.methods),
        not_methods: texts(&request.not_methods),
        paths: strings(&request.paths, "paths")?,
        not_paths: strings(&request.not_paths, "not_paths")?,
        hosts: strings(&request.hosts, "hosts")?,
        not_hosts: strings(&request.not_hosts, "not_hosts")?,
        headers,
    })))
}

fn parse_token(message: &proto::Match) -> Result<Option<Box<TokenMatch>>, ParseError> {
    let Some(token) = condition::<extensions::TokenMatch>(message, TOKEN_EXTENSION)? else {
        return Ok(None);
    };
    let claims = each(&token.claims, "claims", |claim| {
        if claim.path.is_empty() {
            return Err(ParseError::new("path", "is empty"));
        }
        Ok(ClaimMatch {
            path: claim.path.iter().map(|name| name.as_str().into()).collect(),
            values: strings(&claim.values, "values")?,
            not_values: strings(&claim.not_values, "not_values")?,
        })
    })?;
    Ok(Some(Box::new(TokenMatch {
        principals: strings(&token.principals, "principals")?,
        not_principals: strings(&token.not_principals, "not_principals")?,
        claims,
    })))
}

/// The extension of that name, of which there may be one.
fn condition<T: Message + Default>(
    message: &proto::Match,
    name: &str,
) -> Result<Option<T>, ParseError> {
    let mut found = message
        .extensions
        .iter()
        .filter(|extension| extension.name == name);
    let Some(extension) = found.next() else {
        return Ok(None);
    };
    let bad = |problem: String| ParseError::new(format!("extensions[{name}]"), problem);
    if found.next().is_some() {
        return Err(bad("occurs twice".into()));
    }
    let config = extension.config.as_ref();
    let config = config.ok_or_else(|| bad("is empty".into()))?;
    let decoded = T::decode(&*config.value).map_err(|error| bad(error.to_string()))?;
    Ok(Some(decoded))
}

fn strings(values: &[proto::StringMatch], field: &str) -> Result<Vec<StringMatch>, ParseError> {
    each(values, field, |value| {
        use proto::string_match::MatchType;
        match &value.match_type {
            Some(MatchType::Exact(text)) => Ok(StringMatch::Exact(text.as_str().into())),
            Some(MatchType::Prefix(text)) => Ok(StringMatch::Prefix(text.as_str().into())),
            Some(MatchType::Suffix(text)) => Ok(StringMatch::Suffix(text.as_str().into())),
            Some(MatchType::Presence(())) => Ok(StringMatch::Presence),
            None => Err(ParseError::new("match_type", "is missing")),
        }
    })
}

/// Principals are matched without `spiffe://`; a value that has it means the same without.
fn principals(values: &[proto::StringMatch], field: &str) -> Result<Vec<StringMatch>, ParseError> {
    let bare = |text: Box<str>| match text.strip_prefix("spiffe://") {
        Some(bare) => bare.into(),
        None => text,
    };
    let matches = strings(values, field)?
        .into_iter()
        .map(|value| match value {
            StringMatch::Exact(text) => StringMatch::Exact(bare(text)),
            StringMatch::Prefix(text) => StringMatch::Prefix(bare(text)),
            other => other,
        });
    Ok(matches.collect())
}

fn blocks(values: &[proto::Address], field: &str) -> Result<Vec<IpNet>, ParseError> {
    each(values, field, |value| {
        block(&value.address, Some(value.length))
    })
}

fn parse_port(number: &u32) -> Result<u16, ParseError> {
    port(*number, "")
}

fn accounts(
    values: &[proto::ServiceAccountMatch],
    field: &str,
) -> Result<Vec<ServiceAccountMatch>, ParseError> {
    each(values, field, |value| {
        Ok(ServiceAccountMatch {
            namespace: required(&value.namespace, "namespace")?.into(),
            name: required(&value.service_account, "service_account")?.into(),
        })
    })
}

/// Parses every element; an error names its index.
fn each<T, U>(
    values: &[T],
    field: &str,
    mut parse: impl FnMut(&T) -> Result<U, ParseError>,
) -> Result<Vec<U>, ParseError> {
    let parsed = values.iter().enumerate().map(|(index, value)| {
        parse(value).map_err(|error| error.within(|| format!("{field}[{index}]")))
    });
    parsed.collect()
}
