//! What a user is told of a Service that is bound to waypoints.

use seine_objects::ObjectKey;
use seine_objects::gateway::{NoWaypoint, WAYPOINT_CLASS};

use super::{Condition, condition};
use crate::translate::BindingFinding;

/// The type of the condition. On the object it stands after `seine.dev/`, beside those of others.
pub const WAYPOINT_BOUND: &str = "WaypointBound";

/// False if nobody reaches the Service.
pub fn waypoint_bound(key: &ObjectKey, finding: &BindingFinding) -> Condition {
    let binding = &finding.binding;
    let first = &binding.waypoint;
    let why = |waypoint: &ObjectKey| Some(unusable(waypoint, *finding.missing.get(waypoint)?, key));
    let canary = binding.canary.as_ref();
    let (holds, reason, message) = match (why(first), canary.map(|canary| why(&canary.waypoint))) {
        (Some((reason, why)), None | Some(Some(_))) => {
            (false, reason, format!("{why}: nobody reaches the Service"))
        }
        (Some((reason, why)), Some(None)) => (
            true,
            reason,
            format!("{why}: every connection goes to its canary"),
        ),
        (None, Some(Some((reason, why)))) => (
            true,
            reason,
            format!("{why}: the canary gets no connection"),
        ),
        (None, None) => (true, "Bound", format!("connections go to waypoint {first}")),
        (None, Some(None)) => {
            let canary = canary.map(|canary| (&canary.waypoint, canary.percent));
            match canary {
                Some((canary, Some(percent))) => {
                    let message = format!(
                        "of 100 connections {percent} go to waypoint {canary}, the others to {first}"
                    );
                    (true, "Bound", message)
                }
                _ => {
                    let message = format!(
                        "seine.dev/canary-percent is no number from 0 to 100: the canary gets no connection, waypoint {first} all"
                    );
                    (true, "BadPercent", message)
                }
            }
        }
    };
    condition(WAYPOINT_BOUND, holds, reason, message, None)
}

fn unusable(waypoint: &ObjectKey, why: NoWaypoint, service: &ObjectKey) -> (&'static str, String) {
    match why {
        NoWaypoint::Missing => (
            "NoWaypoint",
            format!(
                "a label of the Service, or of its namespace, names waypoint {waypoint}, and there is no Gateway {waypoint} of class {WAYPOINT_CLASS}"
            ),
        ),
        NoWaypoint::NotAllowed => (
            "NotAllowedByListeners",
            format!(
                "Gateway {waypoint} takes nothing for namespace {}: allowedRoutes of its listener must admit it",
                service.namespace
            ),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use seine_objects::gateway::{Binding, Canary};

    #[test]
    fn it_is_false_only_if_neither_waypoint_takes_anything() {
        let key = |name: &str| ObjectKey::new("shop", name);
        let said = |percent: Option<Option<u8>>, missing: &[(&str, NoWaypoint)]| {
            let binding = Binding {
                waypoint: key("a"),
                canary: percent.map(|percent| Canary {
                    waypoint: key("b"),
                    percent,
                }),
            };
            let missing = missing.iter().map(|(name, why)| (key(name), *why));
            let finding = BindingFinding {
                binding,
                missing: missing.collect(),
            };
            let found = waypoint_bound(&key("web"), &finding);
            (found.status, found.reason)
        };
        let (none, not) = (NoWaypoint::Missing, NoWaypoint::NotAllowed);
        assert_eq!(said(None, &[]), ("True", "Bound"));
        assert_eq!(said(None, &[("a", none)]), ("False", "NoWaypoint"));
        assert_eq!(
            said(None, &[("a", not)]),
            ("False", "NotAllowedByListeners")
        );
        assert_eq!(said(Some(Some(5)), &[]), ("True", "Bound"));
        assert_eq!(said(Some(None), &[]), ("True", "BadPercent"));
        assert_eq!(said(Some(Some(5)), &[("a", none)]), ("True", "NoWaypoint"));
        assert_eq!(
            said(Some(Some(5)), &[("b", not)]),
            ("True", "NotAllowedByListeners")
        );
        assert_eq!(
            said(Some(Some(5)), &[("a", none), ("b", none)]),
            ("False", "NoWaypoint")
        );
    }
}
