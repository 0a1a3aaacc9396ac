//! From the report to what is written: pure.
//!
//! A condition keeps its time while its status stays, and nothing is written that differs in
//! nothing else.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use seine_objects::{Kind, ObjectKey};
use serde_json::Value;

use crate::status::{self, ObjectStatus};

/// Kind and key of an object with a status.
pub type Target = (String, ObjectKey);

/// What the API server has of one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    /// Of the object; another object of the same name has another.
    pub uid: String,
    /// Of its specification.
    pub generation: i64,
    /// Ours, as in its status.
    pub conditions: Vec<Condition>,
    /// Somebody else's, as they are.
    pub others: Vec<Value>,
    /// Of the version that has these.
    pub resource_version: String,
}

/// The conditions to write: of objects that the API server has and where it has others.
pub fn due(
    report: &[ObjectStatus],
    known: &HashMap<Target, Known>,
    now: Timestamp,
) -> BTreeMap<Target, Vec<Condition>> {
    let mut wanted: BTreeMap<Target, Vec<Condition>> = BTreeMap::new();
    for object in report {
        let key = ObjectKey::new(&object.namespace, &object.name);
        let target = (object.kind.clone(), key);
        let Some(known) = known.get(&target) else {
            continue;
        };
        let conditions = wanted.entry(target).or_default();
        for condition in &object.conditions {
            let condition = with_time(condition, known, now);
            // An object that became invalid is in the report twice: its last good version, and
            // then what is wrong with the newest.
            conditions.retain(|other| other.type_ != condition.type_);
            conditions.push(condition);
        }
    }
    // Of a Service that is bound to nothing any more there is nothing to say.
    let unbound = known.iter().filter(|(target, known)| {
        target.0 == Kind::Service.to_string() && !known.conditions.is_empty()
    });
    for (target, _) in unbound {
        wanted.entry(target.clone()).or_default();
    }
    wanted.retain(|target, conditions| {
        let known = &known[target];
        conditions.sort_by_key(|condition| order(&condition.type_));
        !is_same(conditions, &known.conditions) && !is_older(conditions, &known.conditions)
    });
    wanted
}

fn with_time(condition: &status::Condition, known: &Known, now: Timestamp) -> Condition {
    let before = known
        .conditions
        .iter()
        .find(|before| before.type_ == condition.kind);
    let since = match before {
        Some(before) if before.status == condition.status => before.last_transition_time.clone(),
        _ => Time(now),
    };
    Condition {
        type_: condition.kind.into(),
        status: condition.status.into(),
        reason: condition.reason.into(),
        message: condition.message.clone(),
        // An invalid object was never numbered by the model; what is wrong is of the newest.
        observed_generation: Some(condition.observed_generation.unwrap_or(known.generation)),
        last_transition_time: since,
    }
}

/// The order in which they come to hold.
fn order(kind: &str) -> usize {
    let kinds = ["Accepted", "ResolvedRefs", "Programmed", "Enforced"];
    kinds
        .iter()
        .position(|known| *known == kind)
        .unwrap_or(kinds.len())
}

fn is_same(wanted: &[Condition], known: &[Condition]) -> bool {
    let has = |wanted: &Condition| known.iter().any(|known| known == wanted);
    wanted.len() == known.len() && wanted.iter().all(has)
}

/// The model is behind: another leader has seen a newer generation already.
fn is_older(wanted: &[Condition], known: &[Condition]) -> bool {
    let newest = |conditions: &[Condition]| {
        conditions
            .iter()
            .filter_map(|condition| condition.observed_generation)
            .max()
    };
    !wanted.is_empty() && newest(wanted) < newest(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(kind: &'static str, holds: bool, generation: Option<i64>) -> ObjectStatus {
        ObjectStatus {
            kind: "MeshTLS".into(),
            namespace: "shop".into(),
            name: "p".into(),
            conditions: vec![status::Condition {
                kind,
                status: if holds { "True" } else { "False" },
                reason: "R",
                message: "m".into(),
                observed_generation: generation,
            }],
        }
    }

    fn target() -> Target {
        ("MeshTLS".into(), ObjectKey::new("shop", "p"))
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn known(conditions: &[Condition]) -> HashMap<Target, Known> {
        let known = Known {
            uid: "u".into(),
            generation: 3,
            conditions: conditions.to_vec(),
            ..Known::default()
        };
        [(target(), known)].into()
    }

    #[test]
    fn a_condition_keeps_its_time_until_its_status_changes_and_nothing_equal_is_written() {
        let report = [status("Accepted", true, Some(3))];
        let first = due(&report, &known(&[]), at(10)).remove(&target()).unwrap();
        assert_eq!(first[0].last_transition_time, Time(at(10)));
        assert!(due(&report, &known(&first), at(20)).is_empty());

        let mut other = report.clone();
        other[0].conditions[0].message = "another".into();
        let second = due(&other, &known(&first), at(20))
            .remove(&target())
            .unwrap();
        assert_eq!(second[0].last_transition_time, Time(at(10)));

        let bad = [status("Accepted", false, Some(3))];
        let third = due(&bad, &known(&second), at(30))
            .remove(&target())
            .unwrap();
        assert_eq!(third[0].last_transition_time, Time(at(30)));
    }

    #[test]
    fn what_the_api_server_does_not_have_or_has_newer_is_not_written() {
        assert!(due(&[status("Accepted", true, None)], &HashMap::new(), at(1)).is_empty());
        let newer = due(&[status("Accepted", true, Some(4))], &known(&[]), at(1));
        let newer = known(&newer[&target()]);
        assert!(due(&[status("Accepted", true, Some(3))], &newer, at(2)).is_empty());
    }

    #[test]
    fn what_is_wrong_with_the_newest_version_stands_beside_what_the_last_good_one_does() {
        let report = [
            status("Enforced", true, Some(2)),
            status("Accepted", true, Some(2)),
            status("Accepted", false, None),
        ];
        let conditions = due(&report, &known(&[]), at(1)).remove(&target()).unwrap();
        let seen: Vec<_> = conditions
            .iter()
            .map(|found| (&*found.type_, &*found.status, found.observed_generation))
            .collect();
        let expected = [
            ("Accepted", "False", Some(3)),
            ("Enforced", "True", Some(2)),
        ];
        assert_eq!(seen, expected);
    }
}
