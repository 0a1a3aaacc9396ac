//! Objects from manifests, as they would be in a cluster.
//!
//! Manifests have Deployments where a cluster has pods. Each workload's template becomes one pod
//! here, with an address of the range for benchmarks (RFC 2544), and each service without an
//! address gets one, so that everything after it is what it is in a cluster.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, bail};
use seine_objects::{InForce, Object, ObjectKey, ObjectSet, Problem, parse_text};
use serde_json::{Value, json};

/// What was found in files or in a cluster.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// What Seine reads.
    pub set: ObjectSet,
    /// Invalid objects.
    pub problems: Vec<Problem>,
    /// They are from files: addresses and nodes are made up, and what isn't there may be elsewhere.
    pub from_files: bool,
}

/// Kinds whose objects make pods, and where their template is.
const TEMPLATES: [(&str, &str); 7] = [
    ("Deployment", "/spec/template"),
    ("StatefulSet", "/spec/template"),
    ("DaemonSet", "/spec/template"),
    ("ReplicaSet", "/spec/template"),
    ("ReplicationController", "/spec/template"),
    ("Job", "/spec/template"),
    ("CronJob", "/spec/jobTemplate/spec/template"),
];

/// Reads files, and folders with all that is below them; `-` is standard input.
pub fn read(paths: &[PathBuf]) -> anyhow::Result<Objects> {
    let mut files = Vec::new();
    for path in paths {
        collect(path, true, &mut files)?;
    }
    if files.is_empty() {
        bail!("no *.yaml, *.yml or *.json file is there");
    }
    let mut objects = Objects {
        from_files: true,
        ..Objects::default()
    };
    let mut made = Made::default();
    for file in files {
        let text = if file == Path::new("-") {
            std::io::read_to_string(std::io::stdin())
        } else {
            fs::read_to_string(&file)
        };
        let text = text.with_context(|| file.display().to_string())?;
        objects.add_file(&file, &text, &mut made);
    }
    made.finish(&mut objects.set);
    Ok(objects)
}

fn collect(path: &Path, given: bool, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    if path == Path::new("-") {
        files.push(path.to_owned());
        return Ok(());
    }
    let is_hidden = path
        .file_name()
        .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let context = || path.display().to_string();
    if fs::metadata(path).with_context(context)?.is_dir() {
        if is_hidden && !given {
            return Ok(());
        }
        let entries = fs::read_dir(path).with_context(context)?;
        let mut entries = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<Vec<_>, _>>()
            .with_context(context)?;
        entries.sort();
        for entry in entries {
            collect(&entry, false, files)?;
        }
        return Ok(());
    }
    let manifest = path
        .extension()
        .is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
    if given || (manifest && !is_hidden) {
        files.push(path.to_owned());
    }
    Ok(())
}

impl Objects {
    fn add_file(&mut self, file: &Path, text: &str, made: &mut Made) {
        let parsed = parse_text(file, text);
        self.problems.extend(parsed.problems);
        for (key, object, _) in parsed.objects {
            self.set.insert(key, object);
        }
        // What can't be parsed is among the problems already.
        let options = serde_saphyr::options! { strict_booleans: true };
        let Ok(documents) = serde_saphyr::from_multiple_with_options::<Value>(text, options) else {
            return;
        };
        for document in documents {
            self.add_document(file, document, made);
        }
    }

    fn add_document(&mut self, file: &Path, mut document: Value, made: &mut Made) {
        let kind = document["kind"].as_str().unwrap_or_default().to_owned();
        if kind == "List" {
            if let Some(Value::Array(items)) = document.get_mut("items").map(Value::take) {
                for item in items {
                    self.add_document(file, item, made);
                }
            }
            return;
        }
        let Some((_, template)) = TEMPLATES.iter().find(|(known, _)| *known == kind) else {
            return;
        };
        let name = name_of(&document);
        match made.pod(&kind, &document, template) {
            Some(Ok((key, pod))) => self.set.insert(key, pod),
            Some(Err(error)) => self.problem(file, &format!("{kind} {name}"), &error),
            None => {}
        }
    }

    fn problem(&mut self, file: &Path, object: &str, error: &serde_json::Error) {
        self.problems.push(Problem {
            file: file.to_owned(),
            line: None,
            object: Some(object.to_owned()),
            generation: None,
            field: None,
            message: error.to_string(),
            in_force: InForce::Nothing,
        });
    }
}

fn name_of(document: &Value) -> ObjectKey {
    let text = |pointer: &str| document.pointer(pointer).and_then(Value::as_str);
    ObjectKey::new(
        text("/metadata/namespace").unwrap_or("default"),
        text("/metadata/name").unwrap_or_default(),
    )
}

/// What is made up.
#[derive(Default)]
struct Made {
    addresses: u32,
}

impl Made {
    /// The next address of 198.18.0.0/15, which no real pod has.
    fn address(&mut self) -> String {
        self.addresses += 1;
        let first = u32::from(Ipv4Addr::new(198, 18, 0, 0));
        Ipv4Addr::from(first + self.addresses % (1 << 17)).to_string()
    }

    /// The pod that a workload makes; none without a template.
    fn pod(
        &mut self,
        kind: &str,
        document: &Value,
        template: &str,
    ) -> Option<Result<(ObjectKey, Object), serde_json::Error>> {
        let template = document.pointer(template)?;
        let owner = name_of(document);
        // A StatefulSet's pods have names that others may rely on.
        let name = match kind {
            "StatefulSet" => format!("{}-0", owner.name),
            _ => format!("{}-*", owner.name),
        };
        let mut metadata = template["metadata"].clone();
        if !metadata.is_object() {
            metadata = json!({});
        }
        metadata["name"] = json!(name);
        metadata["namespace"] = json!(owner.namespace);
        metadata["ownerReferences"] = json!([{
            "apiVersion": document["apiVersion"], "kind": kind, "name": owner.name,
            "uid": "", "controller": true,
        }]);
        let pod = json!({"metadata": metadata, "spec": template["spec"]});
        let pod = serde_json::from_value(pod);
        Some(pod.map(|pod| {
            let key = ObjectKey::new(owner.namespace, name);
            (key, Object::Pod(Arc::new(pod)))
        }))
    }

    /// Gives everything that lacks one an address, and lets the pods be ready.
    fn finish(&mut self, set: &mut ObjectSet) {
        for pod in set.pods.values_mut() {
            if !seine_objects::pods::addresses(pod).is_empty() {
                continue;
            }
            let pod = Arc::make_mut(pod);
            let status = pod.status.get_or_insert_default();
            status.pod_ip = Some(self.address());
            status.phase.get_or_insert_with(|| "Running".to_owned());
            status.conditions.get_or_insert_default().push(
                k8s_openapi::api::core::v1::PodCondition {
                    type_: "Ready".to_owned(),
                    status: "True".to_owned(),
                    ..Default::default()
                },
            );
        }
        for service in set.services.values_mut() {
            let Some(spec) = &service.spec else { continue };
            if spec.cluster_ip.is_some() || spec.type_.as_deref() == Some("ExternalName") {
                continue;
            }
            let address = self.address();
            if let Some(spec) = &mut Arc::make_mut(service).spec {
                spec.cluster_ip = Some(address);
            }
        }
    }
}
