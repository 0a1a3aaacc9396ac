//! Istio's `RequestAuthentication`.

use serde::{Deserialize, Serialize};

use super::{IstioObject, TargetRef, WorkloadSelector};
use crate::policy::{ClaimToHeader, Errors, FieldError, JwtRule, TokenHeader, is_name};

/// Where Istio looks for a token that no rule says the place of: beside `Authorization: Bearer`.
const DEFAULT_PARAMETER: &str = "access_token";

/// Whose tokens requests may carry.
pub type RequestAuthentication = IstioObject<RequestAuthenticationSpec>;

/// What a [`RequestAuthentication`] says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RequestAuthenticationSpec {
    /// Pods of this namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// As one of `target_refs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// What it is attached to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub target_refs: Vec<TargetRef>,
    /// Issuers; without any it says nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub jwt_rules: Vec<Rule>,
}

/// An issuer, its keys, and where its tokens are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[allow(missing_docs, reason = "each is Istio's field of that name")]
pub struct Rule {
    pub issuer: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub audiences: Vec<String>,
    #[serde(alias = "jwks_uri", skip_serializing_if = "String::is_empty")]
    pub jwks_uri: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub jwks: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from_headers: Vec<TokenHeader>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from_params: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub from_cookies: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub output_payload_to_header: String,
    pub forward_original_token: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub output_claim_to_headers: Vec<OutputClaim>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub timeout: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub space_delimited_claims: Vec<String>,
}

/// A header for a claim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OutputClaim {
    /// The header's name.
    pub header: String,
    /// The claim; names within names are divided by dots.
    pub claim: String,
}

impl Rule {
    /// In our own terms.
    fn to_own(&self) -> JwtRule {
        let some = |text: &String| (!text.is_empty()).then(|| text.clone());
        let outputs = self.output_claim_to_headers.iter();
        let mut own = JwtRule {
            issuer: self.issuer.clone(),
            audiences: self.audiences.clone(),
            jwks: some(&self.jwks),
            jwks_uri: some(&self.jwks_uri),
            from_headers: self.from_headers.clone(),
            from_params: self.from_params.clone(),
            forward_original_token: self.forward_original_token,
            output_claim_to_headers: outputs
                .map(|output| ClaimToHeader {
                    header: output.header.clone(),
                    path: output.claim.split('.').map(str::to_owned).collect(),
                })
                .collect(),
        };
        if own.from_headers.is_empty() && own.from_params.is_empty() {
            own.from_headers.push(TokenHeader {
                name: "Authorization".into(),
                prefix: "Bearer ".into(),
            });
            own.from_params.push(DEFAULT_PARAMETER.into());
        }
        own
    }

    /// Names of the fields that no waypoint obeys, and without which it would check less, or tell the service less.
    fn unobeyed(&self) -> Vec<&'static str> {
        let fields = [
            ("fromCookies", !self.from_cookies.is_empty()),
            (
                "outputPayloadToHeader",
                !self.output_payload_to_header.is_empty(),
            ),
            (
                "spaceDelimitedClaims",
                !self.space_delimited_claims.is_empty(),
            ),
            (
                "issuer without jwks or jwksUri",
                self.jwks.is_empty() && self.jwks_uri.is_empty(),
            ),
        ];
        let set = fields.into_iter().filter(|(_, set)| *set);
        set.map(|(name, _)| name).collect()
    }
}

impl RequestAuthentication {
    /// What it is attached to, by either field.
    pub fn targets(&self) -> impl Iterator<Item = (String, &TargetRef)> {
        let one = self.spec.target_ref.iter();
        let many = self.spec.target_refs.iter().enumerate();
        one.map(|target| ("spec.targetRef".to_owned(), target))
            .chain(many.map(|(index, target)| (format!("spec.targetRefs[{index}]"), target)))
    }

    /// Its rules in our own terms, which mean the same.
    pub fn rules(&self) -> Vec<JwtRule> {
        self.spec.jwt_rules.iter().map(Rule::to_own).collect()
    }

    /// Paths of the fields that no waypoint obeys: what has one of these accepts no request.
    pub fn unobeyed(&self) -> Vec<String> {
        let rules = self.spec.jwt_rules.iter().enumerate();
        rules
            .flat_map(|(index, rule)| {
                let fields = rule.unobeyed().into_iter();
                fields.map(move |field| format!("spec.jwtRules[{index}].{field}"))
            })
            .collect()
    }

    /// It stands in for one that is not valid, and of which nobody knows the rules. With neither targets nor a selector it is for
    /// every Service of its namespace.
    pub fn is_stand_in(&self) -> bool {
        self.spec
            .jwt_rules
            .iter()
            .any(|rule| rule.issuer.is_empty())
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
        for (index, rule) in spec.jwt_rules.iter().enumerate() {
            let path = format!("spec.jwtRules[{index}]");
            let mut own = rule.to_own();
            if rule.jwks.is_empty() && rule.jwks_uri.is_empty() {
                // It is no mistake, and not obeyed.
                own.jwks_uri = Some("https://unknown.invalid/".into());
            }
            own.validate(&path, &mut errors);
        }
        errors.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(spec: &str) -> Result<RequestAuthentication, String> {
        let spec = serde_saphyr::from_str(spec).map_err(|error| error.to_string())?;
        Ok(RequestAuthentication {
            spec,
            ..Default::default()
        })
    }

    #[test]
    fn a_full_rule_is_read_and_what_is_not_obeyed_is_named() {
        let full = policy(
            "targetRefs: [{kind: Service, name: web}]
jwtRules:
- issuer: https://a
  audiences: [web]
  jwksUri: https://a/keys
  fromHeaders: [{name: X-Token, prefix: 'T '}]
  forwardOriginalToken: true
  outputClaimToHeaders: [{header: X-Role, claim: realm.role}]
  timeout: 5s
- {issuer: https://b, jwks_uri: https://b/keys}
- {issuer: https://c, fromCookies: [t], outputPayloadToHeader: x, spaceDelimitedClaims: [s]}",
        )
        .unwrap();
        assert_eq!(full.validate(), []);
        let [first, second, _] = &full.rules()[..] else {
            panic!("three rules");
        };
        assert_eq!(first.output_claim_to_headers[0].path, ["realm", "role"]);
        assert_eq!((first.from_headers.len(), first.from_params.len()), (1, 0));
        // Where Istio looks by default.
        assert_eq!(second.from_headers[0].prefix, "Bearer ");
        assert_eq!(second.from_params, ["access_token"]);
        assert_eq!(
            full.unobeyed(),
            [
                "spec.jwtRules[2].fromCookies",
                "spec.jwtRules[2].outputPayloadToHeader",
                "spec.jwtRules[2].spaceDelimitedClaims",
                "spec.jwtRules[2].issuer without jwks or jwksUri",
            ]
        );
        assert_eq!(policy("{}").unwrap().validate(), []);
    }

    #[test]
    fn every_error_names_its_field() {
        for (spec, field) in [
            (
                "jwtRules: [{jwksUri: 'https://a'}]",
                "spec.jwtRules[0].issuer",
            ),
            (
                "jwtRules: [{issuer: a, jwksUri: 'ftp://a'}]",
                "spec.jwtRules[0].jwksUri",
            ),
            (
                "jwtRules: [{issuer: a, jwks: '{}', jwksUri: 'https://a'}]",
                "spec.jwtRules[0].jwks",
            ),
            ("targetRef: {kind: Service, name: ''}", "spec.targetRef"),
            (
                "{targetRef: {kind: Service, name: a}, selector: {}}",
                "spec",
            ),
        ] {
            let errors = policy(spec).unwrap().validate();
            let fields: Vec<_> = errors.iter().map(|error| &*error.field).collect();
            assert_eq!(fields, [field], "{spec}");
        }
        assert!(policy("jwtRules: [{issuer: a, tomorrow: b}]").is_err());
    }
}
