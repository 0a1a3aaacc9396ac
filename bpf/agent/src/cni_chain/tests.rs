//! The thread on real folders.

use std::fs;
use std::path::Path;

use prometheus_client::registry::Registry;
use serde_json::Value;
use serde_json::json;

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);
const FIRST: &[&str] = &["redirection"];

struct Node {
    folder: tempfile::TempDir,
    readiness: Readiness,
    metrics: Metrics,
}

impl Node {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["bin", "net.d"] {
            fs::create_dir(folder.path().join(name)).unwrap();
        }
        fs::write(folder.path().join("image"), "the program").unwrap();
        Self {
            folder,
            readiness: Readiness::default(),
            metrics: Metrics::register(&mut Registry::default()),
        }
    }

    fn settings(&self) -> ChainSettings {
        ChainSettings {
            program: self.folder.path().join("image"),
            bin_dir: self.folder.path().join("bin"),
            conf_dir: self.folder.path().join("net.d"),
            entry: PluginEntry::default(),
        }
    }

    fn start(&self) -> Installer {
        Installer::start(
            self.settings(),
            self.readiness.clone(),
            FIRST,
            self.metrics.clone(),
        )
        .unwrap()
    }

    fn write(&self, name: &str, content: &Value) {
        // As most of them do it: beside it, and renamed.
        let path = self.folder.path().join("net.d").join(name);
        let beside = path.with_extension("tmp");
        fs::write(&beside, content.to_string()).unwrap();
        fs::rename(beside, path).unwrap();
    }

    fn plugins(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.folder.path().join("net.d").join(name));
        let root: Value = serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default();
        let plugins = root["plugins"].as_array().cloned().unwrap_or_default();
        plugins
            .iter()
            .map(|p| p["type"].as_str().unwrap().to_owned())
            .collect()
    }

    fn program(&self) -> Option<String> {
        fs::read_to_string(self.folder.path().join("bin/seine-cni")).ok()
    }
}

fn list(main: &str) -> Value {
    json!({"cniVersion": "1.0.0", "name": "k8s", "plugins": [{"type": main}]})
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn it_waits_for_redirection_and_for_a_configuration_and_is_ready_after_both() {
    let node = Node::new();
    node.readiness.pending("redirection", "not yet");
    let installer = node.start();
    node.write("10-a.conflist", &list("bridge"));
    // As long as the thread has done nothing, the program is not there either.
    thread::sleep(Duration::from_millis(150));
    assert_eq!(node.program(), None);
    assert_eq!(node.plugins("10-a.conflist"), ["bridge"]);
    fs::remove_file(node.folder.path().join("net.d/10-a.conflist")).unwrap();

    node.readiness.done("redirection");
    let status = installer.status();
    eventually("it says what it waits for", || {
        let waiting = status.borrow().waiting.clone();
        waiting.is_some_and(|why| why.contains("no network configuration"))
    });
    assert!(!node.readiness.is_ready());
    assert_eq!(node.program().as_deref(), Some("the program"));

    node.write("10-a.conflist", &list("bridge"));
    eventually("it is in the chain", || node.readiness.is_ready());
    assert_eq!(node.plugins("10-a.conflist"), ["bridge", "seine-cni"]);
    assert_eq!(status.borrow().file.as_deref(), Some("10-a.conflist"));
    assert_eq!(status.borrow().repairs, 0, "installing is no repair");
}

#[test]
fn what_another_program_rewrites_is_repaired_and_counted() {
    let node = Node::new();
    node.write("10-a.conflist", &list("bridge"));
    let installer = node.start();
    let status = installer.status();
    eventually("it is in the chain", || node.readiness.is_ready());

    node.write("10-a.conflist", &list("bridge-of-a-new-version"));
    eventually("it is in again", || status.borrow().repairs == 1);
    assert_eq!(
        node.plugins("10-a.conflist"),
        ["bridge-of-a-new-version", "seine-cni"]
    );
    let said = status.borrow().last_repair.clone().unwrap();
    assert!(said.contains("10-a.conflist"), "{said}");

    fs::remove_file(node.folder.path().join("bin/seine-cni")).unwrap();
    eventually("the program is there again", || {
        status.borrow().repairs == 2
    });
    assert_eq!(node.program().as_deref(), Some("the program"));
    assert_eq!(node.metrics.cni_repairs.get(), 2);
}

#[test]
fn another_cni_that_comes_with_a_lower_name_gets_it_too() {
    let node = Node::new();
    node.write("10-a.conflist", &list("bridge"));
    let installer = node.start();
    let status = installer.status();
    eventually("it is in the chain", || node.readiness.is_ready());
    node.write(
        "00-multus.conf",
        &json!({"cniVersion": "1.0.0", "name": "m", "type": "multus"}),
    );
    eventually("the first file has it", || {
        status.borrow().file.as_deref() == Some("00-multus.conf.conflist")
    });
    assert_eq!(
        names(&node.settings().conf_dir),
        ["00-multus.conf.conflist", "10-a.conflist"]
    );
    assert_eq!(node.plugins("10-a.conflist"), ["bridge", "seine-cni"]);

    drop(installer);
    remove(&node.settings()).unwrap();
    assert_eq!(node.program(), None);
    assert_eq!(node.plugins("10-a.conflist"), ["bridge"]);
    assert_eq!(
        names(&node.settings().conf_dir),
        ["00-multus.conf", "10-a.conflist"]
    );
}

#[test]
fn a_broken_first_file_is_not_touched_and_makes_the_agent_unready_until_it_is_right() {
    let node = Node::new();
    node.write("10-a.conflist", &list("bridge"));
    let _installer = node.start();
    eventually("it is in the chain", || node.readiness.is_ready());
    let path = node.folder.path().join("net.d/05-b.conflist");
    fs::write(&path, "{\"name\": \"b\", \"plug").unwrap();
    eventually("it is not ready", || !node.readiness.is_ready());
    assert_eq!(
        fs::read_to_string(&path).unwrap(),
        "{\"name\": \"b\", \"plug"
    );
    fs::write(&path, list("b").to_string()).unwrap();
    eventually("it is ready again", || node.readiness.is_ready());
    assert_eq!(node.plugins("05-b.conflist"), ["b", "seine-cni"]);
}

#[test]
fn a_folder_that_is_made_anew_is_watched_again() {
    let node = Node::new();
    node.write("10-a.conflist", &list("bridge"));
    let _installer = node.start();
    eventually("it is in the chain", || node.readiness.is_ready());
    fs::remove_dir_all(node.settings().conf_dir).unwrap();
    eventually("it is not ready", || !node.readiness.is_ready());
    fs::create_dir(node.settings().conf_dir).unwrap();
    node.write("10-a.conflist", &list("bridge"));
    eventually("it is ready again", || node.readiness.is_ready());
    assert_eq!(node.plugins("10-a.conflist"), ["bridge", "seine-cni"]);
}

#[test]
fn the_end_of_the_agent_leaves_the_chain_and_a_removal_names_what_it_can_not_read() {
    let node = Node::new();
    node.write("10-a.conflist", &list("bridge"));
    drop({
        let installer = node.start();
        eventually("it is in the chain", || node.readiness.is_ready());
        installer
    });
    assert_eq!(node.plugins("10-a.conflist"), ["bridge", "seine-cni"]);
    let broken = node.folder.path().join("net.d/20-b.conflist");
    fs::write(&broken, "{\"type\": \"seine-cni\"").unwrap();
    fs::write(node.folder.path().join("net.d/30-c.conflist"), "{").unwrap();
    let error = remove(&node.settings()).unwrap_err().to_string();
    assert!(
        error.contains("20-b.conflist") && !error.contains("30-c"),
        "{error}"
    );
    assert!(node.program().is_some(), "the chain may still need it");
    assert_eq!(node.plugins("10-a.conflist"), ["bridge"]);
    fs::remove_file(broken).unwrap();
    remove(&node.settings()).unwrap();
    assert_eq!(node.program(), None);
}
