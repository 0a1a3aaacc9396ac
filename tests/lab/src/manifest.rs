//! Reading manifests: many YAML documents in a file, many files in a directory.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What names an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// `Deployment`.
    pub kind: String,
    /// Empty for what belongs to no namespace.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.to_lowercase(), self.name)?;
        if !self.namespace.is_empty() {
            write!(f, " in namespace {}", self.namespace)?;
        }
        Ok(())
    }
}

impl Key {
    /// The key of a namespaced object.
    pub fn namespaced(kind: &str, namespace: &str, name: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }

    /// The key of `object`, in namespace `default` unless it names one.
    pub fn of(object: &Value) -> Result<Self> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let kind = text("/kind").context("field 'kind' is missing")?;
        text("/apiVersion").context("field 'apiVersion' is missing")?;
        let name = text("/metadata/name").context("field 'metadata.name' is missing")?;
        if !is_name(name) {
            bail!("metadata.name '{name}' is not a DNS name");
        }
        let namespace = text("/metadata/namespace").unwrap_or("default");
        if !is_name(namespace) {
            bail!("metadata.namespace '{namespace}' is not a DNS name");
        }
        let namespace = if is_cluster_scoped(kind) {
            ""
        } else {
            namespace
        };
        Ok(Self::namespaced(kind, namespace, name))
    }

    /// The name of the file that holds the object in the lab's directory.
    pub fn file_name(&self) -> String {
        let Self {
            kind,
            namespace,
            name,
        } = self;
        format!("{}.{namespace}.{name}.yaml", kind.to_lowercase())
    }
}

/// Names become parts of paths: nothing but what Kubernetes allows.
fn is_name(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    !text.is_empty()
        && text.len() <= 253
        && text.bytes().all(good)
        && text.as_bytes()[0].is_ascii_alphanumeric()
}

fn is_cluster_scoped(kind: &str) -> bool {
    matches!(
        kind,
        "Namespace"
            | "Node"
            | "ClusterRole"
            | "ClusterRoleBinding"
            | "CustomResourceDefinition"
            | "GatewayClass"
            | "PersistentVolume"
            | "StorageClass"
            | "PriorityClass"
    )
}

/// Reads files and, of directories, every `.yaml`, `.yml` and `.json` in them (not below).
/// Objects come in the order of the files' names.
pub fn read(paths: &[PathBuf]) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    for path in paths {
        if path.is_dir() {
            let mut files: Vec<PathBuf> = fs::read_dir(path)
                .with_context(|| format!("reading directory {}", path.display()))?
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|file| {
                    file.extension()
                        .is_some_and(|e| e == "yaml" || e == "yml" || e == "json")
                })
                .collect();
            if files.is_empty() {
                bail!(
                    "{} has no manifests (files named *.yaml, *.yml or *.json)",
                    path.display()
                );
            }
            files.sort();
            for file in files {
                objects.extend(read_file(&file)?);
            }
        } else {
            objects.extend(read_file(path)?);
        }
    }
    Ok(objects)
}

fn read_file(path: &Path) -> Result<Vec<Value>> {
    let text = if path == Path::new("-") {
        std::io::read_to_string(std::io::stdin()).context("reading standard input")?
    } else {
        fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?
    };
    parse(&text).with_context(|| path.display().to_string())
}

/// The objects of a text of YAML documents; a `List` counts as its items.
pub fn parse(text: &str) -> Result<Vec<Value>> {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(text).map_err(|error| anyhow!("{error}"))?;
    let mut objects = Vec::new();
    for (index, document) in documents.into_iter().enumerate() {
        let items = match document {
            Value::Null => continue,
            Value::Object(mut list) if list.get("kind").is_some_and(|k| k == "List") => {
                match list.remove("items") {
                    Some(Value::Array(items)) => items,
                    _ => bail!("document {}: a List without items", index + 1),
                }
            }
            object => vec![object],
        };
        for item in items {
            Key::of(&item).with_context(|| format!("document {}", index + 1))?;
            objects.push(item);
        }
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_lists_become_objects_in_order() {
        let text = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n# nothing\n\
            ---\napiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: a, namespace: shop}\n";
        let keys: Vec<_> = parse(text)
            .unwrap()
            .iter()
            .map(|o| Key::of(o).unwrap().to_string())
            .collect();
        assert_eq!(keys, ["namespace/shop", "pod/a in namespace shop"]);
    }

    #[test]
    fn a_name_that_would_leave_the_directory_is_refused() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: ../../etc/passwd}\n";
        let error = format!("{:#}", parse(text).unwrap_err());
        assert!(
            error.contains("document 1") && error.contains("not a DNS name"),
            "{error}"
        );
    }

    #[test]
    fn broken_yaml_is_reported_with_its_line() {
        let error = format!("{:#}", parse("kind: Pod\nmetadata: [\n").unwrap_err());
        assert!(error.contains("line"), "{error}");
    }
}
