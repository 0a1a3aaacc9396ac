//! The directory of objects that control plane, agents and lab read alike.
//!
//! One file per object, put there by a rename, so that a reader never sees half of one. What is
//! unchanged is not written again. Safe to use from several tasks.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::manifest::Key;
use crate::names::Layout;

/// Writes objects.
#[derive(Clone, Debug)]
pub struct ObjectDirectory {
    directory: PathBuf,
    scratch: PathBuf,
    written: Arc<Mutex<HashMap<Key, Value>>>,
}

impl ObjectDirectory {
    /// The directory of a lab; it exists.
    pub fn new(layout: &Layout) -> Self {
        Self {
            directory: layout.objects(),
            scratch: layout.scratch(),
            written: Arc::default(),
        }
    }

    /// Makes the object what it should be.
    pub fn put(&self, key: &Key, object: &Value) -> Result<()> {
        let mut written = self.written.lock().expect("no holder panics");
        if written.get(key) == Some(object) {
            return Ok(());
        }
        let name = key.file_name();
        let next = self.scratch.join(&name);
        let text = serde_saphyr::to_string(&without_nulls(object))
            .with_context(|| format!("writing {key}"))?;
        fs::write(&next, text)
            .and_then(|()| fs::rename(&next, self.directory.join(&name)))
            .with_context(|| format!("writing {key}"))?;
        written.insert(key.clone(), object.clone());
        Ok(())
    }

    /// Removes the object if it is there.
    pub fn remove(&self, key: &Key) {
        let mut written = self.written.lock().expect("no holder panics");
        if written.remove(key).is_some() {
            let _ = fs::remove_file(self.directory.join(key.file_name()));
        }
    }

    /// The keys of what is there, of one kind.
    pub fn keys(&self, kind: &str) -> Vec<Key> {
        let written = self.written.lock().expect("no holder panics");
        written
            .keys()
            .filter(|key| key.kind == kind)
            .cloned()
            .collect()
    }
}

/// A field that is null in JSON is one that isn't there.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(name, value)| (name.clone(), without_nulls(value)))
            .collect(),
        Value::Array(items) => items.iter().map(without_nulls).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::parse;
    use serde_json::json;

    #[test]
    fn what_is_written_reads_back_the_same_and_strings_stay_strings() {
        let directory = tempfile::tempdir().unwrap();
        let mut layout = Layout::new("a".parse().unwrap(), std::path::Path::new("/nowhere"));
        layout.state = directory.path().to_owned();
        fs::create_dir_all(layout.objects()).unwrap();
        fs::create_dir_all(layout.scratch()).unwrap();
        let objects = ObjectDirectory::new(&layout);
        let object = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "namespace": "x", "annotations": {
                "a": "true", "b": "15001", "c": "1e3", "d": "multi\nline: x\n", "e": "", "f": "null",
            }},
            "spec": {"containers": [{"args": ["-c", "- x", "#", "{a}", "'", "\"", "0x10", "~"]}]},
        });
        let key = Key::of(&object).unwrap();
        objects.put(&key, &object).unwrap();
        let text = fs::read_to_string(layout.objects().join("pod.x.p.yaml")).unwrap();
        assert_eq!(parse(&text).unwrap(), [object]);
        objects.remove(&key);
        assert!(!layout.objects().join("pod.x.p.yaml").exists());
    }
}
