use std::fs;

use super::*;
use crate::{InForce, ObjectKey};

const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";

fn service(name: &str, ports: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{{port: {ports}}}]}}\n"
    )
}

fn open(directory: &Path) -> DirectorySource {
    let options = DirectoryOptions {
        rescan: Duration::from_secs(60),
        ..Default::default()
    };
    DirectorySource::open(directory, options).unwrap()
}

fn names(set: &ObjectSet) -> Vec<&str> {
    set.services.keys().map(|key| key.name.as_str()).collect()
}

async fn until(source: &DirectorySource, holds: impl Fn(&ObjectSet) -> bool) -> Arc<ObjectSet> {
    let mut objects = source.subscribe();
    let found = objects.wait_for(|set| holds(set));
    tokio::time::timeout(Duration::from_secs(10), found)
        .await
        .unwrap()
        .unwrap()
        .clone()
}

async fn until_problems(source: &DirectorySource, count: usize) -> Arc<Vec<Problem>> {
    let mut problems = source.subscribe_problems();
    let found = problems.wait_for(|problems| problems.len() == count);
    tokio::time::timeout(Duration::from_secs(10), found)
        .await
        .unwrap()
        .unwrap()
        .clone()
}

#[tokio::test]
async fn files_that_come_change_and_go_are_followed() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(
        directory.path().join("a.yaml"),
        format!("{NAMESPACE}{}", service("a", "1")),
    )
    .unwrap();
    let source = open(directory.path());
    assert!(source.objects().namespace("shop").is_some());
    let namespace = source.objects().namespaces[&ObjectKey::cluster("shop")].clone();

    fs::create_dir(directory.path().join("below")).unwrap();
    let below = directory.path().join("below/b.yaml");
    fs::write(&below, service("b", "1")).unwrap();
    let set = until(&source, |set| names(set) == ["a", "b"]).await;
    assert!(Arc::ptr_eq(
        &namespace,
        &set.namespaces[&ObjectKey::cluster("shop")]
    ));

    fs::write(&below, service("c", "1")).unwrap();
    until(&source, |set| names(set) == ["a", "c"]).await;

    fs::write(directory.path().join(".b.yaml"), service("hidden", "1")).unwrap();
    fs::write(directory.path().join("notes.txt"), "{").unwrap();
    fs::remove_file(&below).unwrap();
    until(&source, |set| names(set) == ["a"]).await;
    assert_eq!(source.problems().len(), 0);
}

#[tokio::test]
async fn an_invalid_object_keeps_its_last_good_version_and_the_others_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, service("a", "1") + &service("b", "1")).unwrap();
    let source = open(directory.path());
    assert_eq!(names(&source.objects()), ["a", "b"]);

    // `a` becomes invalid, `b` goes, `c` comes.
    fs::write(&file, service("a", "x") + &service("c", "1")).unwrap();
    let set = until(&source, |set| names(set) == ["a", "c"]).await;
    assert_eq!(
        set.services[&ObjectKey::new("shop", "a")]
            .spec
            .as_ref()
            .unwrap()
            .ports
            .as_ref()
            .unwrap()[0]
            .port,
        1
    );
    let problems = source.problems();
    assert_eq!(problems[0].object.as_deref(), Some("Service shop/a"));
    assert_eq!(problems[0].field.as_deref(), Some("spec.ports[0].port"));
    assert_eq!(problems[0].line, Some(5));
    assert_eq!(problems[0].in_force, InForce::LastGood);

    fs::write(&file, service("a", "2")).unwrap();
    until(&source, |set| names(set) == ["a"]).await;
    until_problems(&source, 0).await;
}

#[tokio::test]
async fn a_file_broken_halfway_takes_nothing_away() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(
        &file,
        service("a", "1") + &service("b", "1") + &service("c", "1"),
    )
    .unwrap();
    let source = open(directory.path());

    fs::write(
        &file,
        service("a", "2") + "---\nkind: [\n" + &service("d", "1"),
    )
    .unwrap();
    let set = until(&source, |set| names(set) == ["a", "b", "c", "d"]).await;
    let port = |name: &str| {
        let key = ObjectKey::new("shop", name);
        set.services[&key]
            .spec
            .as_ref()
            .unwrap()
            .ports
            .as_ref()
            .unwrap()[0]
            .port
    };
    assert_eq!((port("a"), port("b")), (2, 1));
    let problems = until_problems(&source, 1).await;
    assert_eq!(problems[0].in_force, InForce::LastGood);
    assert!(
        problems[0].line.is_some_and(|line| (6..=8).contains(&line)),
        "{problems:?}"
    );

    fs::write(&file, service("a", "2")).unwrap();
    until(&source, |set| names(set) == ["a"]).await;
}

#[tokio::test]
async fn of_two_definitions_the_first_file_counts_and_the_other_is_reported() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), service("a", "1")).unwrap();
    fs::write(directory.path().join("b.yaml"), service("a", "2")).unwrap();
    let source = open(directory.path());
    let set = source.objects();
    let ports = set.services[&ObjectKey::new("shop", "a")]
        .spec
        .as_ref()
        .unwrap()
        .ports
        .as_ref();
    assert_eq!(ports.unwrap()[0].port, 1);
    assert!(source.problems()[0].file.ends_with("b.yaml"));
}

#[test]
fn a_folder_that_is_not_there_is_an_error() {
    let error = DirectorySource::open("/nowhere/at/all", DirectoryOptions::default()).unwrap_err();
    assert!(error.to_string().contains("/nowhere/at/all"));
}

#[test]
fn what_is_invalid_at_the_start_is_as_an_earlier_start_knew_it() {
    let directory = tempfile::tempdir().unwrap();
    let memory = tempfile::tempdir().unwrap();
    let start = || {
        let memory = Memory::open(memory.path().into()).unwrap();
        let mut state = DirectoryState::new(directory.path().into(), Some(memory)).unwrap();
        state.rescan(&[]);
        (names(&state.objects()).join(" "), state.problems())
    };
    let below = directory.path().join("below");
    fs::create_dir(&below).unwrap();
    let (one, other) = (directory.path().join("a.yaml"), below.join("b.yaml"));
    fs::write(&one, service("a", "1") + &service("b", "1")).unwrap();
    fs::write(&other, service("c", "1")).unwrap();
    assert_eq!(start().0, "a b c");

    // An invalid object that was never a good one has nothing to stay.
    fs::write(&one, service("a", "x") + &service("d", "x")).unwrap();
    fs::write(&other, "kind: [").unwrap();
    for _ in 0..2 {
        let (names, problems) = start();
        assert_eq!(names, "a c");
        let in_force: Vec<_> = problems.iter().map(|problem| problem.in_force).collect();
        let kept = InForce::LastGood;
        assert_eq!(in_force, [kept, InForce::Nothing, kept]);
    }

    fs::remove_file(&other).unwrap();
    fs::write(&one, service("d", "1")).unwrap();
    assert_eq!(start().0, "d");
    fs::write(&one, "kind: [").unwrap();
    fs::write(&other, "kind: [").unwrap();
    assert_eq!(
        start().0,
        "d",
        "what was gone in between does not come back"
    );
}

#[test]
fn a_folder_that_vanishes_takes_nothing_away() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), service("a", "1")).unwrap();
    let mut state = DirectoryState::new(directory.path().into(), None).unwrap();
    state.rescan(&[]);
    directory.close().unwrap();
    state.rescan(&[]);
    assert_eq!(names(&state.objects()), ["a"]);
    assert_eq!(state.problems().len(), 1);
}
