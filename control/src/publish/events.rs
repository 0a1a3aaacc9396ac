//! Events on the user's object: when a condition turns bad, and when it is good again.
//!
//! [`Announcer`] decides without I/O, [`send`] writes. The Event's name follows from what it says,
//! so the same one is the same object whoever leads: it raises its count until the API server
//! forgets it, an hour after it was last seen.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::{Event, EventSeries};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};

/// Who reports.
const CONTROLLER: &str = "seine.dev/control";

/// Proxies need a moment; a rollout is no news.
const PATIENCE: Duration = Duration::from_secs(30);

/// The API's limit of a note, in bytes.
const NOTE: usize = 1024;

/// Something to tell the user.
#[derive(Clone, Debug, PartialEq)]
pub struct Announcement {
    /// On which object.
    pub regarding: ObjectReference,
    /// A warning.
    pub bad: bool,
    /// One word.
    pub reason: String,
    /// A sentence.
    pub note: String,
    /// Since when it is so: an Event that was seen later has said it.
    pub since: Option<Timestamp>,
    uid: String,
    condition: String,
}

/// Knows what was told.
#[derive(Debug, Default)]
pub struct Announcer {
    told: HashMap<(String, String), Told>,
}

#[derive(Clone, Debug, PartialEq)]
struct Told {
    bad: bool,
    reason: String,
}

impl Announcer {
    /// What is to be told of these objects, which are all that there are. Each is due until
    /// [`Announcer::told`] it.
    pub fn due<'a>(
        &mut self,
        objects: impl IntoIterator<Item = (ObjectReference, &'a [Condition])>,
        now: Timestamp,
    ) -> Vec<Announcement> {
        let mut due = Vec::new();
        let mut seen = HashMap::new();
        for (regarding, conditions) in objects {
            let uid = regarding.uid.clone().unwrap_or_default();
            for condition in conditions {
                let key = (uid.clone(), condition.type_.clone());
                let told = self.told.remove(&key);
                let bad = condition.status == "False";
                let since = condition.last_transition_time.0;
                let news = match &told {
                    Some(told) if bad => !told.bad || told.reason != condition.reason,
                    Some(told) => told.bad,
                    None => bad,
                };
                let waits = bad && now < since + patience(&condition.type_);
                if news && !waits {
                    due.push(Announcement {
                        regarding: regarding.clone(),
                        bad,
                        reason: condition.reason.clone(),
                        note: note(condition),
                        since: Some(since),
                        uid: uid.clone(),
                        condition: condition.type_.clone(),
                    });
                }
                if let Some(told) = told {
                    seen.insert(key, told);
                }
            }
        }
        // Objects that are gone need nothing.
        self.told = seen;
        due
    }

    /// It need not be told again.
    pub fn told(&mut self, announcement: &Announcement) {
        let key = (announcement.uid.clone(), announcement.condition.clone());
        let told = Told {
            bad: announcement.bad,
            reason: announcement.reason.clone(),
        };
        self.told.insert(key, told);
    }
}

fn patience(condition: &str) -> Duration {
    match condition {
        "Programmed" | "Enforced" => PATIENCE,
        _ => Duration::ZERO,
    }
}

fn note(condition: &Condition) -> String {
    let mut note = format!("{}: {}", condition.type_, condition.message);
    if note.len() > NOTE {
        let end = (0..=NOTE - 3).rev().find(|at| note.is_char_boundary(*at));
        note.truncate(end.unwrap_or_default());
        note.push('…');
    }
    note
}

/// Writes the Event, or raises the count of the one that says the same.
///
/// # Errors
///
/// The API server's.
pub async fn send(
    client: Client,
    reporter: &str,
    announcement: &Announcement,
) -> Result<(), kube::Error> {
    let regarding = &announcement.regarding;
    let namespace = regarding.namespace.as_deref().unwrap_or("default");
    let events = Api::<Event>::namespaced(client, namespace);
    let name = name(announcement);
    let now = Timestamp::now();
    if let Some(event) = events.get_opt(&name).await? {
        let last = match &event.series {
            Some(series) => Some(series.last_observed_time.0),
            None => event.event_time.as_ref().map(|time| time.0),
        };
        if let (Some(last), Some(since)) = (last, announcement.since)
            && last >= since
        {
            // A leader before us told it.
            return Ok(());
        }
        let count = event
            .series
            .map_or(1, |series| series.count)
            .saturating_add(1);
        let series = EventSeries {
            count,
            last_observed_time: MicroTime(now),
        };
        let patch = serde_json::json!({"series": series, "note": announcement.note});
        events
            .patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
            .await?;
        return Ok(());
    }
    let event = Event {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: Some(namespace.into()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        type_: Some(
            if announcement.bad {
                "Warning"
            } else {
                "Normal"
            }
            .into(),
        ),
        action: Some("Reconcile".into()),
        reason: Some(announcement.reason.clone()),
        note: Some(announcement.note.clone()),
        regarding: Some(regarding.clone()),
        reporting_controller: Some(CONTROLLER.into()),
        reporting_instance: Some(reporter.into()),
        ..Event::default()
    };
    events.create(&PostParams::default(), &event).await?;
    Ok(())
}

/// Of the object, and of what is said.
fn name(announcement: &Announcement) -> String {
    let said = [
        &*announcement.uid,
        &*announcement.condition,
        &*announcement.reason,
        if announcement.bad { "bad" } else { "good" },
    ];
    let hash = super::held::fnv(said.iter().flat_map(|part| part.bytes().chain([0])));
    let object = announcement.regarding.name.as_deref().unwrap_or("seine");
    // A name has 253 bytes, and is ASCII.
    format!("{}.{hash:016x}", &object[..object.len().min(236)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake_api::FakeApi;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn object() -> ObjectReference {
        ObjectReference {
            api_version: Some("policy.seine.dev/v1alpha1".into()),
            kind: Some("MeshTLS".into()),
            namespace: Some("shop".into()),
            name: Some("p".into()),
            uid: Some("u".into()),
            ..ObjectReference::default()
        }
    }

    fn condition(kind: &str, holds: bool, since: Timestamp) -> Condition {
        Condition {
            type_: kind.into(),
            status: if holds { "True" } else { "False" }.into(),
            reason: if holds { "Fine" } else { "Broken" }.into(),
            message: "é".repeat(2000),
            observed_generation: None,
            last_transition_time: Time(since),
        }
    }

    #[test]
    fn a_condition_is_told_when_it_turns_bad_and_when_it_is_good_again() {
        let start = Timestamp::from_second(1000).unwrap();
        let mut announcer = Announcer::default();
        let mut due = |kind: &str, holds, after: u64, tell: bool| {
            let conditions = [condition(kind, holds, start)];
            let now = start + Duration::from_secs(after);
            let due = announcer.due([(object(), &conditions[..])], now);
            if tell {
                due.iter().for_each(|one| announcer.told(one));
            }
            due.iter().map(|one| one.bad).collect::<Vec<_>>()
        };
        // Good from the start, or bad for a moment: no news.
        assert!(due("Programmed", true, 0, true).is_empty());
        assert!(due("Programmed", false, 10, true).is_empty());
        assert!(due("Programmed", true, 12, true).is_empty());
        // Bad for longer: told once it could be, and once.
        assert_eq!(due("Programmed", false, 31, false), [true]);
        assert_eq!(due("Programmed", false, 32, true), [true]);
        assert!(due("Programmed", false, 33, true).is_empty());
        assert_eq!(due("Programmed", true, 40, true), [false]);
        assert!(due("Programmed", true, 41, true).is_empty());
        assert_eq!(due("Accepted", false, 50, true), [true]);
    }

    #[tokio::test]
    async fn the_same_event_raises_its_count_and_another_leader_does_not_repeat_it() {
        let api = FakeApi::default();
        let told = |since| {
            let conditions = [condition("Accepted", false, since)];
            let mut announcer = Announcer::default();
            let due = announcer.due([(object(), &conditions[..])], Timestamp::now());
            due.into_iter().next().unwrap()
        };
        let first = told(Timestamp::now() - Duration::from_secs(60));
        assert!(first.note.len() <= NOTE);
        send(api.client(), "pod-1", &first).await.unwrap();
        send(api.client(), "pod-2", &first).await.unwrap();
        let path = format!(
            "/apis/events.k8s.io/v1/namespaces/shop/events/{}",
            name(&first)
        );
        let event = api.get(&path);
        assert!(event["series"].is_null());
        assert_eq!(
            (&event["type"], &event["reason"]),
            (&"Warning".into(), &"Broken".into())
        );
        assert_eq!(event["regarding"]["uid"], "u");

        // It was good in between.
        send(api.client(), "pod-2", &told(Timestamp::now()))
            .await
            .unwrap();
        assert_eq!(api.get(&path)["series"]["count"], 2);
        assert_eq!(api.take_writes().len(), 2);
    }
}
