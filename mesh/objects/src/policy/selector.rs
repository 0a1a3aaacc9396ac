//! A label selector that refuses fields it doesn't know: with `matchLabel` for `matchLabels`, the
//! API's own type would select everything.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Errors;

/// Selects pods by their labels: every label and every expression must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "(has(self.matchLabels) && size(self.matchLabels) > 0) || (has(self.matchExpressions) && size(self.matchExpressions) > 0)",
    "message": "selects nothing in particular: leave it out to mean the whole namespace",
}]))]
pub struct Selector {
    /// Labels that the pod must have with these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Conditions on the pod's labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Requirement>,
}

/// One condition on a label.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "(self.operator in ['In', 'NotIn']) == (has(self.values) && size(self.values) > 0)",
    "message": "In and NotIn need at least one value, Exists and DoesNotExist take none",
}]))]
pub struct Requirement {
    /// The label's name.
    #[schemars(length(min = 1))]
    pub key: String,
    /// How its value is compared.
    pub operator: Operator,
    /// For `In` and `NotIn` alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// How a label is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Operator {
    /// The label has one of the values.
    In,
    /// The label has none of the values, or is missing.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is missing.
    DoesNotExist,
}

impl Selector {
    /// Whether it selects something with these labels. An empty selector selects everything.
    pub fn matches(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        let value = |key: &str| labels.and_then(|labels| labels.get(key));
        self.match_labels
            .iter()
            .all(|(key, wanted)| value(key) == Some(wanted))
            && self.match_expressions.iter().all(|requirement| {
                let value = value(&requirement.key);
                match requirement.operator {
                    Operator::In => value.is_some_and(|value| requirement.values.contains(value)),
                    Operator::NotIn => {
                        value.is_none_or(|value| !requirement.values.contains(value))
                    }
                    Operator::Exists => value.is_some(),
                    Operator::DoesNotExist => value.is_none(),
                }
            })
    }

    pub(super) fn validate(&self, path: &str, errors: &mut Errors) {
        if self.match_labels.is_empty() && self.match_expressions.is_empty() {
            errors.add(
                path,
                "selects nothing in particular: leave it out to mean the whole namespace",
            );
        }
        for key in self.match_labels.keys().filter(|key| key.is_empty()) {
            errors.add(
                format!("{path}.matchLabels"),
                format!("{key:?} is no label name"),
            );
        }
        for (index, requirement) in self.match_expressions.iter().enumerate() {
            let path = format!("{path}.matchExpressions[{index}]");
            let wants_values = matches!(requirement.operator, Operator::In | Operator::NotIn);
            if wants_values == requirement.values.is_empty() {
                let message = match wants_values {
                    true => "In and NotIn need at least one value",
                    false => "Exists and DoesNotExist take no values",
                };
                errors.add(format!("{path}.values"), message);
            }
            if requirement.key.is_empty() {
                errors.add(format!("{path}.key"), "is empty");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(yaml: &str) -> Selector {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn every_operator_judges_present_and_missing_labels() {
        let labels = BTreeMap::from([("app".to_owned(), "db".to_owned())]);
        let cases = [
            ("matchLabels: {app: db}", true, false),
            ("matchLabels: {app: web}", false, false),
            (
                "matchExpressions: [{key: app, operator: In, values: [db, web]}]",
                true,
                false,
            ),
            (
                "matchExpressions: [{key: app, operator: NotIn, values: [db]}]",
                false,
                true,
            ),
            (
                "matchExpressions: [{key: app, operator: Exists}]",
                true,
                false,
            ),
            (
                "matchExpressions: [{key: app, operator: DoesNotExist}]",
                false,
                true,
            ),
        ];
        for (yaml, with, without) in cases {
            assert_eq!(selector(yaml).matches(Some(&labels)), with, "{yaml}");
            assert_eq!(selector(yaml).matches(None), without, "{yaml}");
        }
    }

    #[test]
    fn a_misspelt_field_is_an_error() {
        assert!(serde_saphyr::from_str::<Selector>("matchLabel: {app: db}").is_err());
    }
}
