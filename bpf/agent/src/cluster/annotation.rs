//! `seine.dev/enrolled` on every pod of the node: since when, or why not. What should be written is a pure
//! function of the objects and of the keeper's status; what was written and must wait is kept in a
//! [`Ledger`] without clock or network of its own.

use std::collections::HashMap;
use std::collections::HashSet;
use std::time::Duration;
use std::time::Instant;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use seine_objects::Enrolment;
use seine_objects::EnrolmentSettings;
use seine_objects::ObjectKey;
use seine_objects::ObjectSet;
use seine_objects::enrolment;
use seine_objects::pods;

use crate::served::PodStatus;
use crate::served::State;

/// The annotation.
pub const ENROLLED: &str = "seine.dev/enrolled";
/// How its value begins where a pod that opted in is not enrolled.
pub const REFUSED: &str = "refused: ";

/// Values are for people.
const MAX_REASON: usize = 500;
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

/// What a pod's annotation should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// As it is: the pod is on its way to another state, or will never run again.
    Same,
    /// Not there.
    Absent,
    /// This.
    Value(String),
}

/// Decides for one pod of the node.
pub(super) fn wanted(
    objects: &ObjectSet,
    key: &ObjectKey,
    pod: &Pod,
    status: Option<&PodStatus>,
    settings: &EnrolmentSettings,
) -> Wanted {
    if pods::is_finished(pod) || pods::is_terminating(pod) {
        return Wanted::Same;
    }
    // Without its namespace nobody knows whether it is opted in.
    if objects.namespace(&key.namespace).is_none() {
        return Wanted::Same;
    }
    let enrolled = status.and_then(|status| status.enrolled_since);
    match (enrolment(objects, &key.namespace, pod, settings), enrolled) {
        (Enrolment::Enrolled, Some(since)) => match rfc3339(since) {
            Some(since) => Wanted::Value(since),
            None => Wanted::Same,
        },
        (Enrolment::Enrolled, None) => match status {
            Some(status) if status.state == State::Failing => {
                refused(status.reason.as_deref().unwrap_or("see the agent's log"))
            }
            // It starts, or is not found yet.
            _ => Wanted::Same,
        },
        // Until it is released.
        (Enrolment::NotOptedIn | Enrolment::Refused(_), Some(_)) => Wanted::Same,
        (Enrolment::NotOptedIn, None) => Wanted::Absent,
        (Enrolment::Refused(refusal), None) => refused(&refusal.to_string()),
    }
}

fn refused(reason: &str) -> Wanted {
    let cut: String = reason.chars().take(MAX_REASON).collect();
    Wanted::Value(format!("{REFUSED}{cut}"))
}

fn rfc3339(seconds: u64) -> Option<String> {
    let time = Timestamp::from_second(i64::try_from(seconds).ok()?).ok()?;
    Some(time.to_string())
}

/// One annotation to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Write {
    /// The pod.
    pub(super) key: ObjectKey,
    /// A later pod of that name is not meant.
    pub(super) uid: String,
    /// What the pod has.
    pub(super) before: Option<String>,
    /// What it is to have; nothing removes it.
    pub(super) after: Option<String>,
}

/// What was written and has not come back yet, and what failed and waits.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pods: HashMap<String, Entry>,
}

#[derive(Debug, Default)]
struct Entry {
    /// Before and after of the last write that succeeded, until the objects show it.
    written: Option<(Option<String>, Option<String>)>,
    failures: u32,
    not_before: Option<Instant>,
}

impl Ledger {
    /// What is to be written now, and when to look again if nothing changes.
    pub(super) fn due(
        &mut self,
        objects: &ObjectSet,
        node: &str,
        status: &[PodStatus],
        settings: &EnrolmentSettings,
        now: Instant,
    ) -> (Vec<Write>, Option<Instant>) {
        let by_uid: HashMap<_, _> = status.iter().map(|s| (s.uid.as_str(), s)).collect();
        let (mut writes, mut later) = (Vec::new(), None::<Instant>);
        let mut there = HashSet::new();
        for (key, pod) in &objects.pods {
            // One without a UID is of a hand-written file, where nobody reads annotations.
            let Some(uid) = &pod.metadata.uid else {
                continue;
            };
            if pods::node(pod) != Some(node) {
                continue;
            }
            there.insert(uid.as_str());
            let status = pods::node_uid(pod).and_then(|uid| by_uid.get(uid).copied());
            let after = match wanted(objects, key, pod, status, settings) {
                Wanted::Same => continue,
                Wanted::Absent => None,
                Wanted::Value(value) => Some(value),
            };
            let annotations = pod.metadata.annotations.as_ref();
            let mut current = annotations.and_then(|a| a.get(ENROLLED)).cloned();
            if let Some(entry) = self.pods.get_mut(uid) {
                match &entry.written {
                    // Not seen yet.
                    Some((before, after)) if current == *before => current.clone_from(after),
                    Some(_) => entry.written = None,
                    None => {}
                }
            }
            if current == after {
                continue;
            }
            if let Some(at) = self.pods.get(uid).and_then(|e| e.not_before)
                && at > now
            {
                later = Some(later.map_or(at, |earlier| earlier.min(at)));
                continue;
            }
            writes.push(Write {
                key: key.clone(),
                uid: uid.clone(),
                before: current,
                after,
            });
        }
        self.pods.retain(|uid, _| there.contains(uid.as_str()));
        (writes, later)
    }

    /// It is written.
    pub(super) fn done(&mut self, write: &Write) {
        let entry = self.pods.entry(write.uid.clone()).or_default();
        let before = match entry.written.take() {
            // The objects may still show what was there before the write before.
            Some((before, _)) => before,
            None => write.before.clone(),
        };
        *entry = Entry {
            written: Some((before, write.after.clone())),
            ..Entry::default()
        };
    }

    /// It could not be written: not before a while, that grows, and whose end it returns. `jitter` is
    /// from 0 to 1.
    pub(super) fn failed(&mut self, write: &Write, now: Instant, jitter: f64) -> Instant {
        let entry = self.pods.entry(write.uid.clone()).or_default();
        let pause = FIRST_RETRY * 2_u32.saturating_pow(entry.failures.min(10));
        entry.failures += 1;
        let at = now + pause.min(LAST_RETRY).mul_f64(0.5 + jitter / 2.0);
        entry.not_before = Some(at);
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECTS: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {seine.dev/mesh: enabled}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: plain}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, uid: u-web}, spec: {nodeName: n1, containers: []}}
---
{apiVersion: v1, kind: Pod, metadata: {name: host, namespace: shop, uid: u-host}, spec: {nodeName: n1, hostNetwork: true, containers: []}}
---
{apiVersion: v1, kind: Pod, metadata: {name: left, namespace: plain, uid: u-left, annotations: {seine.dev/enrolled: "2026-01-01T00:00:00Z"}}, spec: {nodeName: n1, containers: []}}
---
{apiVersion: v1, kind: Pod, metadata: {name: never, namespace: plain, uid: u-never}, spec: {nodeName: n1, containers: []}}
---
{apiVersion: v1, kind: Pod, metadata: {name: job, namespace: shop, uid: u-job}, spec: {nodeName: n1, containers: []}, status: {phase: Succeeded}}
---
{apiVersion: v1, kind: Pod, metadata: {name: elsewhere, namespace: shop, uid: u-elsewhere}, spec: {nodeName: n2, hostNetwork: true, containers: []}}
"#;

    fn objects(change: &[(&str, &str)]) -> ObjectSet {
        let text = change.iter().fold(OBJECTS.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        });
        let (objects, problems) = ObjectSet::from_yaml(&text);
        assert!(problems.is_empty(), "{problems:?}");
        objects
    }

    fn status(uid: &str, state: State, since: Option<u64>, reason: Option<&str>) -> PodStatus {
        PodStatus {
            uid: uid.into(),
            namespace: "shop".into(),
            name: "web".into(),
            state,
            reason: reason.map(Into::into),
            since: 1,
            enrolled_since: since,
            netns_cookie: 1,
            listeners: 0,
            older_connections: 0,
            older_connections_reset: 0,
            warnings: Vec::new(),
            terminating: false,
        }
    }

    fn due(
        ledger: &mut Ledger,
        objects: &ObjectSet,
        status: &[PodStatus],
        now: Instant,
    ) -> Vec<(String, Option<String>)> {
        let settings = EnrolmentSettings::default();
        let (writes, _) = ledger.due(objects, "n1", status, &settings, now);
        writes
            .into_iter()
            .map(|write| (write.key.name, write.after))
            .collect()
    }

    #[test]
    fn each_pod_of_the_node_gets_what_it_is() {
        let enrolled = status("u-web", State::Enrolled, Some(1_700_000_000), None);
        let now = Instant::now();
        let host = (
            "host".to_owned(),
            Some(
                "refused: the pod uses the host's network namespace, which is never enrolled"
                    .to_owned(),
            ),
        );
        let left = ("left".to_owned(), None);
        let mut ledger = Ledger::default();
        assert_eq!(
            due(&mut ledger, &objects(&[]), &[enrolled], now),
            [
                left.clone(),
                host.clone(),
                ("web".into(), Some("2023-11-14T22:13:20Z".into()))
            ]
        );
        let failing = status("u-web", State::Failing, None, Some("no bpffs"));
        assert_eq!(
            due(&mut ledger, &objects(&[]), &[failing], now)[2]
                .1
                .as_deref(),
            Some("refused: no bpffs")
        );
        // One that is enrolled and can't be changed is enrolled.
        let changing = status("u-web", State::Failing, Some(0), Some("no bpffs"));
        assert_eq!(
            due(&mut ledger, &objects(&[]), &[changing], now)[2]
                .1
                .as_deref(),
            Some("1970-01-01T00:00:00Z")
        );
        // Nobody knows it yet.
        assert_eq!(due(&mut ledger, &objects(&[]), &[], now), [left, host]);
    }

    #[test]
    fn a_pod_that_is_not_released_yet_keeps_its_annotation() {
        let off = objects(&[("seine.dev/mesh: enabled", "seine.dev/mesh: disabled")]);
        let annotated = (
            "uid: u-web}",
            "uid: u-web, annotations: {seine.dev/enrolled: x}}",
        );
        let off_annotated = objects(&[
            ("seine.dev/mesh: enabled", "seine.dev/mesh: disabled"),
            annotated,
        ]);
        let mut ledger = Ledger::default();
        let now = Instant::now();
        let still = status("u-web", State::Enrolled, Some(5), None);
        let names = |found: Vec<(String, Option<String>)>| {
            found.into_iter().map(|(name, _)| name).collect::<Vec<_>>()
        };
        assert_eq!(
            names(due(&mut ledger, &off_annotated, &[still], now)),
            ["left"]
        );
        let released = status("u-web", State::NotEnrolled, None, Some("not opted in"));
        assert_eq!(
            names(due(
                &mut ledger,
                &off_annotated,
                std::slice::from_ref(&released),
                now
            )),
            ["left", "web"]
        );
        assert_eq!(names(due(&mut ledger, &off, &[released], now)), ["left"]);
    }

    #[test]
    fn nothing_is_written_twice_and_what_another_changes_is_written_again() {
        let settings = EnrolmentSettings::default();
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let before = objects(&[]);
        let (writes, _) = ledger.due(&before, "n1", &[], &settings, now);
        for write in &writes {
            ledger.done(write);
        }
        assert!(
            ledger.due(&before, "n1", &[], &settings, now).0.is_empty(),
            "on its way"
        );
        let echoed = objects(&[
            (
                ", annotations: {seine.dev/enrolled: \"2026-01-01T00:00:00Z\"}",
                "",
            ),
            (
                "uid: u-host}",
                "uid: u-host, annotations: {seine.dev/enrolled: \"refused: the pod uses the host's network namespace, which is never enrolled\"}}",
            ),
        ]);
        assert!(ledger.due(&echoed, "n1", &[], &settings, now).0.is_empty());
        let (again, _) = ledger.due(&before, "n1", &[], &settings, now);
        assert_eq!(again.len(), 2, "the object is the truth: {again:?}");
    }

    #[test]
    fn what_fails_waits_longer_each_time_and_ends_with_the_pod() {
        let settings = EnrolmentSettings::default();
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        let set = objects(&[]);
        let (writes, later) = ledger.due(&set, "n1", &[], &settings, start);
        assert_eq!((writes.len(), later), (2, None));
        let mut now = start;
        let mut pauses = Vec::new();
        for _ in 0..9 {
            for write in &writes {
                ledger.failed(write, now, 1.0);
            }
            let (none, later) = ledger.due(&set, "n1", &[], &settings, now);
            assert!(none.is_empty());
            pauses.push((later.unwrap() - now).as_secs());
            now = later.unwrap();
            assert_eq!(ledger.due(&set, "n1", &[], &settings, now).0.len(), 2);
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        let (writes, later) = ledger.due(&ObjectSet::default(), "n1", &[], &settings, now);
        assert_eq!((writes.len(), later), (0, None));
        assert!(ledger.pods.is_empty());
    }
}
