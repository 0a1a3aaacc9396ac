//! From the reports of all watches to sets of objects.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use seine_objects::{InForce, Invalid, Kind, ObjectKey, ObjectSet, Problem};
use tokio::sync::{mpsc::Receiver, watch::Sender};
use tokio::time::{Instant, timeout_at};
use tracing::{info, warn};

use crate::watch::Report;

/// Reports are gathered until none came for this long …
const QUIET: Duration = Duration::from_millis(20);
/// … but never longer than this.
const AT_MOST: Duration = Duration::from_millis(200);

/// What is known of the cluster.
#[derive(Debug, Default)]
pub(crate) struct Gathering {
    objects: Arc<ObjectSet>,
    problems: BTreeMap<(Kind, ObjectKey), Vec<Problem>>,
    /// What the lists that are under way have named.
    listing: BTreeMap<Kind, BTreeSet<ObjectKey>>,
    /// The kinds that no list has been complete of.
    unlisted: BTreeSet<Kind>,
}

impl Gathering {
    pub(crate) fn new(kinds: &[Kind]) -> Self {
        Self {
            unlisted: kinds.iter().copied().collect(),
            ..Self::default()
        }
    }

    /// Takes reports until the watches are gone.
    pub(crate) async fn run(
        mut self,
        mut reports: Receiver<(Kind, Report)>,
        objects: Sender<Arc<ObjectSet>>,
        problems: Sender<Arc<Vec<Problem>>>,
    ) {
        let mut published = false;
        while let Some((kind, report)) = reports.recv().await {
            self.take(kind, report);
            let deadline = Instant::now() + AT_MOST;
            while Instant::now() < deadline {
                let quiet = deadline.min(Instant::now() + QUIET);
                let Ok(Some((kind, report))) = timeout_at(quiet, reports.recv()).await else {
                    break;
                };
                self.take(kind, report);
            }
            if !self.unlisted.is_empty() {
                continue;
            }
            problems.send_if_modified(|held| {
                let new: Vec<_> = self.problems.values().flatten().cloned().collect();
                let changed = **held != new;
                if changed {
                    *held = Arc::new(new);
                }
                changed
            });
            objects.send_if_modified(|held| {
                let changed = !published || !Arc::ptr_eq(held, &self.objects);
                *held = self.objects.clone();
                changed
            });
            published = true;
        }
    }

    fn take(&mut self, kind: Kind, report: Report) {
        match report {
            Report::Listing => drop(self.listing.insert(kind, BTreeSet::new())),
            Report::Listed => {
                let listed = self.listing.remove(&kind).unwrap_or_default();
                self.keep_only(kind, &listed);
                self.is_listed(kind);
            }
            Report::Unknown => {
                self.listing.remove(&kind);
                self.keep_only(kind, &BTreeSet::new());
                self.is_listed(kind);
            }
            Report::Is(key, object) => {
                self.name(kind, &key);
                if self.problems.remove(&(kind, key.clone())).is_some() {
                    info!(object = %format_args!("{kind} {key}"), "is valid again");
                }
                if !self.objects.holds(&key, &object) {
                    Arc::make_mut(&mut self.objects).insert(key, object);
                }
            }
            Report::Invalid(invalid, generation) => self.take_invalid(invalid, generation),
            Report::Gone(key) => self.forget(kind, &key),
        }
    }

    fn take_invalid(&mut self, invalid: Invalid, generation: Option<i64>) {
        let key = invalid.key.clone().unwrap_or_default();
        self.name(invalid.kind, &key);
        let id = (invalid.kind, key);
        let stands_in = self.problems.get(&id).is_some_and(|problems| {
            let first = problems.first();
            first.is_some_and(|problem| problem.in_force == InForce::StandIn)
        });
        let in_force = match &invalid.stand_in {
            _ if self.objects.contains(id.0, &id.1) && !stands_in => InForce::LastGood,
            // There may have been a good version before this process watched, and what it denied must
            // not be allowed now.
            Some(object) => {
                if !self.objects.holds(&id.1, object) {
                    Arc::make_mut(&mut self.objects).insert(id.1.clone(), object.clone());
                }
                InForce::StandIn
            }
            None => {
                if stands_in {
                    Arc::make_mut(&mut self.objects).remove(id.0, &id.1);
                }
                InForce::Nothing
            }
        };
        let problems: Vec<_> = invalid.problems(generation, in_force).collect();
        let held = self.problems.entry(id).or_default();
        if *held != problems {
            for problem in &problems {
                warn!("{problem}");
            }
            *held = problems;
        }
    }

    /// The list under way, if there is one, has it.
    fn name(&mut self, kind: Kind, key: &ObjectKey) {
        if let Some(listing) = self.listing.get_mut(&kind) {
            listing.insert(key.clone());
        }
    }

    fn keep_only(&mut self, kind: Kind, listed: &BTreeSet<ObjectKey>) {
        let of_problems = self.problems.keys().filter(|(of, _)| *of == kind);
        let known = self
            .objects
            .keys(kind)
            .chain(of_problems.map(|(_, key)| key));
        let gone: Vec<_> = known.filter(|key| !listed.contains(key)).cloned().collect();
        for key in &gone {
            self.forget(kind, key);
        }
    }

    fn forget(&mut self, kind: Kind, key: &ObjectKey) {
        self.problems.remove(&(kind, key.clone()));
        if self.objects.contains(kind, key) {
            Arc::make_mut(&mut self.objects).remove(kind, key);
        }
    }

    fn is_listed(&mut self, kind: Kind) {
        if self.unlisted.remove(&kind) && self.unlisted.is_empty() {
            info!("every kind has been listed");
        }
    }
}

#[cfg(test)]
mod tests {
    use seine_objects::{parse_object, policy::Mode};
    use serde_json::{Value, json};
    use tokio::sync::{mpsc, watch};
    use tokio::time::{sleep, timeout};

    use super::*;

    fn namespace(name: &str, labels: &Value) -> Report {
        let object = json!({"metadata": {"name": name, "labels": labels}});
        let (key, object) = parse_object(Kind::Namespace, object).unwrap();
        Report::Is(key, object)
    }

    fn mode(name: &str, mode: &str) -> Report {
        let object = json!({
            "apiVersion": "policy.seine.dev/v1alpha1", "kind": "MeshTLS",
            "metadata": {"name": name, "namespace": "shop", "generation": 2},
            "spec": {"mode": mode},
        });
        match parse_object(Kind::MeshTls, object) {
            Ok((key, object)) => Report::Is(key, object),
            Err(invalid) => Report::Invalid(invalid, Some(2)),
        }
    }

    struct Bed {
        reports: mpsc::Sender<(Kind, Report)>,
        objects: watch::Receiver<Arc<ObjectSet>>,
        problems: watch::Receiver<Arc<Vec<Problem>>>,
    }

    impl Bed {
        fn new(kinds: &[Kind]) -> Self {
            let (reports, reported) = mpsc::channel(16);
            let (objects_out, objects) = watch::channel(Arc::default());
            let (problems_out, problems) = watch::channel(Arc::default());
            tokio::spawn(Gathering::new(kinds).run(reported, objects_out, problems_out));
            Self {
                reports,
                objects,
                problems,
            }
        }

        async fn namespaces(&self, reports: Vec<Report>) {
            for report in reports {
                self.reports.send((Kind::Namespace, report)).await.unwrap();
            }
        }

        async fn tls(&self, report: Report) {
            self.reports.send((Kind::MeshTls, report)).await.unwrap();
        }

        /// The next set, if there is one.
        async fn next(&mut self) -> Option<Arc<ObjectSet>> {
            let changed = timeout(Duration::from_secs(5), self.objects.changed());
            changed.await.ok()?.unwrap();
            Some(self.objects.borrow().clone())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_set_waits_for_every_kind_and_a_repeated_list_publishes_nothing() {
        let mut bed = Bed::new(&[Kind::Namespace, Kind::MeshTls]);
        let none = json!({});
        let list = || {
            vec![
                Report::Listing,
                namespace("a", &none),
                namespace("b", &none),
                Report::Listed,
            ]
        };
        bed.namespaces(list()).await;
        assert!(bed.next().await.is_none());
        bed.tls(Report::Unknown).await;
        let first = bed.next().await.unwrap();
        assert_eq!(first.namespaces.len(), 2);

        bed.namespaces(list()).await;
        assert!(bed.next().await.is_none(), "nothing is new");
        // A list without one of them, with a change of the other.
        let other = namespace("a", &json!({"x": "y"}));
        bed.namespaces(vec![Report::Listing, other, Report::Listed])
            .await;
        let next = bed.next().await.unwrap();
        assert_eq!(next.namespaces.len(), 1);
        assert!(next.namespace("a").unwrap().metadata.labels.is_some());
        bed.namespaces(vec![Report::Gone(ObjectKey::cluster("a"))])
            .await;
        assert!(bed.next().await.unwrap().namespaces.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn an_empty_cluster_is_published_too() {
        let mut bed = Bed::new(&[Kind::Namespace]);
        bed.namespaces(vec![Report::Listing, Report::Listed]).await;
        assert_eq!(*bed.next().await.unwrap(), ObjectSet::default());
    }

    #[tokio::test(start_paused = true)]
    async fn an_invalid_object_is_its_last_good_version_or_a_stand_in() {
        let mut bed = Bed::new(&[Kind::MeshTls]);
        for report in [
            Report::Listing,
            mode("a", "Strict"),
            mode("b", "Odd"),
            Report::Listed,
        ] {
            bed.tls(report).await;
        }
        let first = bed.next().await.unwrap();
        // Nobody knows what `b` was before: it is the strictest that it can have been.
        let stand_in = &first.mesh_tls[&ObjectKey::new("shop", "b")];
        assert_eq!(stand_in.spec.mode, Some(Mode::Strict));
        let problem = bed.problems.borrow_and_update()[0].clone();
        assert_eq!(problem.object.as_deref(), Some("MeshTLS shop/b"));
        assert_eq!(
            (problem.generation, problem.in_force),
            (Some(2), InForce::StandIn)
        );

        bed.tls(mode("a", "Odd")).await;
        assert!(bed.next().await.is_none());
        bed.tls(mode("b", "Odder")).await;
        assert!(bed.next().await.is_none());
        let kept: Vec<_> = bed.problems.borrow().iter().map(|p| p.in_force).collect();
        assert_eq!(kept, [InForce::LastGood, InForce::StandIn]);

        bed.tls(mode("b", "Permissive")).await;
        let valid = bed.next().await.unwrap();
        let mode = valid.mesh_tls[&ObjectKey::new("shop", "b")].spec.mode;
        assert_eq!((valid.mesh_tls.len(), mode), (2, Some(Mode::Permissive)));
        bed.tls(Report::Unknown).await;
        assert!(bed.next().await.unwrap().mesh_tls.is_empty());
        assert!(bed.problems.borrow().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_storm_is_gathered_into_few_sets_and_none_is_long_in_coming() {
        let mut bed = Bed::new(&[Kind::Namespace]);
        bed.namespaces(vec![Report::Listing, Report::Listed]).await;
        bed.next().await.unwrap();
        let reports = bed.reports.clone();
        let storm = tokio::spawn(async move {
            for number in 0..1000 {
                let report = namespace(&format!("n{number}"), &json!({}));
                reports.send((Kind::Namespace, report)).await.unwrap();
                sleep(Duration::from_millis(2)).await;
            }
        });
        let mut sets = 0;
        while let Some(set) = bed.next().await {
            sets += 1;
            if set.namespaces.len() == 1000 {
                break;
            }
        }
        storm.await.unwrap();
        assert!((9..=30).contains(&sets), "{sets} sets");
    }
}
