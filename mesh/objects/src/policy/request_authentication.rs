//! `RequestAuthentication`: whose tokens the requests to a service may carry.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Errors, FieldError, PolicyStatus, TargetRef, jwks};

// For the API server; what validation asks for, too.
const KEYS_URI: &str = r"^https?://[^/?#@\s]+(/[^#\s]*)?$";
/// Longer ones are nobody's.
const MAX_TEXT: usize = 1024;
/// Headers that say how a message is framed, where it goes, or that proxies of the mesh alone set.
const RESERVED: [&str; 10] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-client-cert",
];

/// Checks the JSON Web Tokens that requests to a service carry, at the waypoint that the service is bound to.
///
/// A request with a token that is not valid is refused with 401. One without a token has no request identity, and
/// policies decide. A valid token is accepted if any of the rules accepts it, of all the `RequestAuthentication`s that
/// are attached to the service.
#[derive(
    CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema,
)]
#[kube(
    group = "policy.seine.dev",
    version = "v1alpha1",
    kind = "RequestAuthentication",
    plural = "requestauthentications",
    namespaced,
    status = "PolicyStatus",
    derive = "PartialEq",
    category = "seine",
    shortname = "rqa",
    printcolumn = r#"{"name":"Issuers","type":"string","jsonPath":".spec.jwtRules[*].issuer"}"#,
    printcolumn = r#"{"name":"Accepted","type":"string","jsonPath":".status.conditions[?(@.type=='Accepted')].status"}"#,
    printcolumn = r#"{"name":"Enforced","type":"string","jsonPath":".status.conditions[?(@.type=='Enforced')].status"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestAuthenticationSpec {
    /// Services of the policy's own namespace that it is attached to, each bound to a waypoint, or Gateways there.
    #[schemars(length(min = 1, max = 64))]
    pub target_refs: Vec<TargetRef>,
    /// Who may have issued a token.
    #[schemars(length(min = 1, max = 16))]
    pub jwt_rules: Vec<JwtRule>,
}

/// An issuer, its keys, and where its tokens are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "has(self.jwks) != has(self.jwksUri)",
    "message": "set either jwks or jwksUri",
}]))]
pub struct JwtRule {
    /// What the token's `iss` must be.
    #[schemars(length(min = 1, max = MAX_TEXT))]
    pub issuer: String,
    /// The token's `aud` must have one of these; without any it may have whatever it wants.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = MAX_TEXT)))]
    pub audiences: Vec<String>,
    /// The issuer's public keys: a JSON Web Key Set. Keys for RSA from 2048 bits, ECDSA with P-256 or P-384, and Ed25519
    /// are used, others left out. With a secret or private key among them it is not valid.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65536))]
    pub jwks: Option<String>,
    /// Where the issuer publishes them, in the place of `jwks`: `https`, or `http` for a Service of the mesh by its full name. The
    /// waypoint fetches them when a token needs them, and follows their rotation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = MAX_TEXT), regex(pattern = KEYS_URI))]
    pub jwks_uri: Option<String>,
    /// Headers with the token. Without these and `fromParams` it is `Authorization: Bearer TOKEN`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub from_headers: Vec<TokenHeader>,
    /// Query parameters with the token.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(min = 1, max = 128)))]
    pub from_params: Vec<String>,
    /// Leave the token in the request. By default the service does not see it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub forward_original_token: bool,
    /// Headers that tell the service what a valid token claims. Nobody else may set them: they are taken from every
    /// request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub output_claim_to_headers: Vec<ClaimToHeader>,
}

/// A header with a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenHeader {
    /// Its name.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// What stands before the token, such as `Bearer ` with its blank, in whatever case. A value that doesn't begin with
    /// it is no token.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 128))]
    pub prefix: String,
}

/// A header for a claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "self.header.lowerAscii() != 'host' && !self.header.lowerAscii().startsWith('x-seine-')",
    "message": "header: it says where a request goes, or is of the mesh's own proxies",
}]))]
pub struct ClaimToHeader {
    /// The header's name.
    #[schemars(length(min = 1, max = 128))]
    pub header: String,
    /// The names that lead to the claim: `[sub]`, or `[realm_access, roles]` for one within another. A text, a number or a
    /// truth value becomes the header's value; of a list each element makes a header.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 256)))]
    pub path: Vec<String>,
}

impl RequestAuthentication {
    /// Everything that is wrong with it.
    pub fn validate(&self) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = &self.spec;
        if spec.target_refs.is_empty() {
            errors.add("spec.targetRefs", "is empty: name the Services");
        }
        for (index, target) in spec.target_refs.iter().enumerate() {
            target.validate(&format!("spec.targetRefs[{index}]"), &mut errors);
        }
        if spec.jwt_rules.is_empty() {
            errors.add("spec.jwtRules", "is empty: name an issuer");
        }
        for (index, rule) in spec.jwt_rules.iter().enumerate() {
            rule.validate(&format!("spec.jwtRules[{index}]"), &mut errors);
        }
        errors.0
    }
}

impl JwtRule {
    pub(crate) fn validate(&self, path: &str, errors: &mut Errors) {
        text(&self.issuer, || format!("{path}.issuer"), errors);
        for (index, audience) in self.audiences.iter().enumerate() {
            text(audience, || format!("{path}.audiences[{index}]"), errors);
        }
        match (&self.jwks, &self.jwks_uri) {
            (Some(jwks), None) => {
                if let Err(problem) = jwks::check(jwks) {
                    errors.add(format!("{path}.jwks"), problem);
                }
            }
            (None, Some(uri)) if !is_keys_uri(uri) => {
                let why = format!("{uri:?} is no https://HOST[:PORT]/PATH (or http, in the mesh)");
                errors.add(format!("{path}.jwksUri"), why);
            }
            (None, Some(_)) => {}
            (None, None) | (Some(_), Some(_)) => {
                errors.add(format!("{path}.jwks"), "set either jwks or jwksUri");
            }
        }
        for (index, header) in self.from_headers.iter().enumerate() {
            let path = format!("{path}.fromHeaders[{index}]");
            if !is_header_name(&header.name) {
                let name = &header.name;
                errors.add(
                    format!("{path}.name"),
                    format!("{name:?} is no header's name"),
                );
            }
            let plain = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
            if !header.prefix.bytes().all(plain) {
                errors.add(format!("{path}.prefix"), "can't be in a header");
            }
        }
        for (index, parameter) in self.from_params.iter().enumerate() {
            text(parameter, || format!("{path}.fromParams[{index}]"), errors);
        }
        for (index, output) in self.output_claim_to_headers.iter().enumerate() {
            let path = format!("{path}.outputClaimToHeaders[{index}]");
            let name = output.header.to_ascii_lowercase();
            if !is_header_name(&name) {
                errors.add(
                    format!("{path}.header"),
                    format!("{name:?} is no header's name"),
                );
            } else if RESERVED.contains(&&*name) || name.starts_with("x-seine-") {
                errors.add(
                    format!("{path}.header"),
                    format!("{name:?} is not for claims: proxies set it"),
                );
            }
            claim_path(&output.path, &path, errors);
        }
    }
}

/// The names that lead to a claim.
pub(super) fn claim_path(names: &[String], path: &str, errors: &mut Errors) {
    if names.is_empty() {
        errors.add(format!("{path}.path"), "is empty: name a claim");
    }
    for (index, name) in names.iter().enumerate() {
        text(name, || format!("{path}.path[{index}]"), errors);
    }
}

/// As [`KEYS_URI`] has it.
fn is_keys_uri(text: &str) -> bool {
    let rest = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"));
    let Some(rest) = rest else { return false };
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    let good = |text: &str, not: &[char]| {
        text.chars()
            .all(|found| found.is_ascii_graphic() && !not.contains(&found))
    };
    !host.is_empty()
        && good(host, &['#', '@'])
        && good(rest, &['#'])
        && rest[host.len()..]
            .chars()
            .next()
            .is_none_or(|next| next == '/')
}

fn text(value: &str, field: impl Fn() -> String, errors: &mut Errors) {
    if value.is_empty() {
        errors.add(field(), "is empty");
    } else if value.len() > MAX_TEXT {
        errors.add(field(), format!("is longer than {MAX_TEXT} bytes"));
    }
}

/// A token in the sense of RFC 9110, section 5.6.2.
pub(super) fn is_header_name(text: &str) -> bool {
    let of_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(of_token)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = r#"{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}"#;

    fn errors(rules: &str) -> Vec<String> {
        let spec = format!("targetRefs: [{{kind: Service, name: web}}]\njwtRules: {rules}");
        let spec = serde_saphyr::from_str(&spec).unwrap();
        let policy = RequestAuthentication::new("p", spec);
        let errors = policy.validate().into_iter();
        errors.map(|error| error.field).collect()
    }

    fn rule(more: &str) -> String {
        format!("[{{issuer: 'https://a', jwks: '{{\"keys\":[{KEY}]}}', {more}}}]")
    }

    #[test]
    fn a_full_rule_is_valid_and_every_error_names_its_field() {
        let full = "audiences: [web], fromHeaders: [{name: X-Token, prefix: 'Bearer '}], fromParams: [t], forwardOriginalToken: true, outputClaimToHeaders: [{header: X-User, path: [sub]}]";
        assert_eq!(errors(&rule(full)), [""; 0]);
        let at = |field: &str| format!("spec.jwtRules[0].{field}");
        for (more, field) in [
            ("audiences: ['']", "audiences[0]"),
            ("fromHeaders: [{name: 'a b'}]", "fromHeaders[0].name"),
            (
                "fromHeaders: [{name: a, prefix: \"b\\n\"}]",
                "fromHeaders[0].prefix",
            ),
            ("fromParams: ['']", "fromParams[0]"),
            (
                "outputClaimToHeaders: [{header: Host, path: [sub]}]",
                "outputClaimToHeaders[0].header",
            ),
            (
                "outputClaimToHeaders: [{header: X-Seine-A, path: [sub]}]",
                "outputClaimToHeaders[0].header",
            ),
            (
                "outputClaimToHeaders: [{header: a, path: []}]",
                "outputClaimToHeaders[0].path",
            ),
        ] {
            assert_eq!(errors(&rule(more)), [at(field)], "{more}");
        }
        assert_eq!(
            errors("[{issuer: '', jwks: '{}'}]"),
            [at("issuer"), at("jwks")]
        );
        for (keys, field) in [
            ("jwksUri: 'https://a.example:8443/keys?x=y'", None),
            ("jwksUri: 'http://a.shop.svc.cluster.local'", None),
            ("jwksUri: 'ftp://a/b'", Some("jwksUri")),
            ("jwksUri: 'https://user@a/b'", Some("jwksUri")),
            ("jwksUri: 'https://a/b#c'", Some("jwksUri")),
            ("jwksUri: 'https:///b'", Some("jwksUri")),
            ("jwksUri: 'https://a?b'", Some("jwksUri")),
            ("jwksUri: 'https://a/b', jwks: '{}'", Some("jwks")),
            ("audiences: [a]", Some("jwks")),
        ] {
            let found = errors(&format!("[{{issuer: a, {keys}}}]"));
            let expected: Vec<_> = field.map(at).into_iter().collect();
            assert_eq!(found, expected, "{keys}");
        }
        assert_eq!(errors("[]"), ["spec.jwtRules"]);
        assert!(serde_saphyr::from_str::<JwtRule>("{issuer: a, jwk: b}").is_err());
    }
}
