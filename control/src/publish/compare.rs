//! Whether the API server has what is wanted. Pure.

use serde_json::Value;

/// Whether all that is wanted is there; others may have added to it.
pub(super) fn contains(is: &Value, wanted: &Value) -> bool {
    match (is, wanted) {
        (Value::Object(is), Value::Object(wanted)) => wanted.iter().all(|(name, wanted)| {
            let is = is.get(name);
            // Of a list's items; and what is empty is not stored.
            let unsaid = matches!(name.as_str(), "apiVersion" | "kind") && is.is_none();
            unsaid || is.map_or_else(|| is_empty(wanted), |is| contains(is, wanted))
        }),
        (Value::Array(is), Value::Array(wanted)) => wanted
            .iter()
            .all(|wanted| is.iter().any(|is| contains(is, wanted))),
        (is, wanted) => is == wanted,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_others_add_is_no_difference_and_what_is_missing_or_another_is() {
        let is = json!({"a": {"b": 1, "theirs": 2}, "list": [{"name": "theirs"}, {"name": "x", "theirs": 1}]});
        for same in [
            json!({"a": {"b": 1}}),
            json!({"list": [{"name": "x"}]}),
            json!({"none": [], "nothing": {}, "empty": null}),
        ] {
            assert!(contains(&is, &same), "{same}");
        }
        for other in [
            json!({"a": {"b": 2}}),
            json!({"list": [{"name": "y"}]}),
            json!({"c": 1}),
        ] {
            assert!(!contains(&is, &other), "{other}");
        }
    }
}
