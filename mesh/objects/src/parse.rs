//! From the text of a file to valid, typed objects.

use std::{path::PathBuf, sync::Arc};

use k8s_openapi::{Metadata, api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    ObjectKey,
    document::{Document, split},
    gateway::{BackendTlsPolicy, Gateway, Route, RouteRule},
    istio::{self, PeerAuthentication},
    kind::{Kind, Object},
    pods,
    policy::{
        self, AuthorizationPolicy, FieldError, MeshTls, RequestAuthentication, TrafficPolicy,
    },
    problem::{InForce, Invalid, Problem},
    tls_secret::TlsSecret,
};

/// What a file's text holds.
#[derive(Clone, Debug, Default)]
pub struct ParsedFile {
    /// The valid objects with their lines, in order.
    pub objects: Vec<(ObjectKey, Object, u64)>,
    /// What was wrong; `file` is what [`parse_text`] was given.
    pub problems: Vec<Problem>,
    /// Objects that are there and invalid: their last good version should stay.
    pub(crate) invalid: Vec<(Kind, ObjectKey)>,
    /// A part could not be read far enough to say which object it is: it may be any of those that
    /// the file had before.
    pub(crate) unreadable: bool,
}

/// Parses YAML (or JSON, which is YAML): any number of documents, `List`s too. Kinds that Seine
/// doesn't read are left out in silence.
pub fn parse_text(file: impl Into<PathBuf>, text: &str) -> ParsedFile {
    let mut parsing = Parsing {
        file: file.into(),
        parsed: ParsedFile::default(),
    };
    for (before, part) in split(text) {
        match Document::parse(part, before) {
            Ok(None) => {}
            Ok(Some(document)) => parsing.object(&document, document.value(), ""),
            Err(error) => {
                parsing.parsed.unreadable = true;
                parsing.problem(error.line.or(Some(before + 1)), None, None, error.message);
            }
        }
    }
    parsing.parsed
}

/// One object of a known kind, as the API server or a file has it: cut to the fields that are
/// [kept](Kind::kept), typed and validated.
///
/// # Errors
///
/// Everything that is wrong with it.
pub fn parse_object(kind: Kind, mut value: Value) -> Result<(ObjectKey, Object), Invalid> {
    kind.kept().prune(&mut value);
    let invalid = |key, field: &str, message: String| Invalid {
        kind,
        key,
        stand_in: None,
        errors: vec![FieldError {
            field: field.into(),
            message,
        }],
    };
    let metadata = &mut value["metadata"];
    let Some(name) = metadata["name"].as_str().filter(|name| !name.is_empty()) else {
        return Err(invalid(None, "metadata.name", "is missing".into()));
    };
    let namespace = match kind.is_namespaced() {
        true => metadata["namespace"]
            .as_str()
            .filter(|name| !name.is_empty())
            .unwrap_or("default"),
        false => "",
    };
    let key = ObjectKey::new(namespace, name);
    // Keys are built into names of resources: a slash in one would make it another's.
    let bad_name = match (policy::is_name(name), namespace) {
        (false, _) => Some(("metadata.name", name)),
        (true, "") => None,
        (true, namespace) if policy::is_name(namespace) => None,
        (true, namespace) => Some(("metadata.namespace", namespace)),
    };
    if let Some((field, text)) = bad_name {
        return Err(invalid(Some(key), field, not_a_name(text)));
    }
    if kind.is_namespaced() {
        metadata["namespace"] = Value::String(key.namespace.clone());
    }
    if let Some(metadata) = metadata.as_object_mut() {
        // It changes with every write, also of what is not kept.
        metadata.remove("resourceVersion");
    }
    match build(kind, &value) {
        Ok(object) => Ok((key, object)),
        Err(errors) => Err(Invalid {
            kind,
            key: Some(key),
            errors,
            stand_in: policy::stand_in(kind, &value),
        }),
    }
}

struct Parsing {
    file: PathBuf,
    parsed: ParsedFile,
}

impl Parsing {
    fn problem(
        &mut self,
        line: Option<u64>,
        object: Option<String>,
        field: Option<String>,
        message: String,
    ) {
        let file = self.file.clone();
        let problem = Problem {
            file,
            line,
            object,
            generation: None,
            field,
            message,
            in_force: InForce::Nothing,
        };
        self.parsed.problems.push(problem);
    }

    /// `at` is the path of `value` in the document: empty but for items of a `List`.
    fn object(&mut self, document: &Document, mut value: Value, at: &str) {
        let text = |value: &Value, field: &str| value[field].as_str().map(str::to_owned);
        let line = document.line_of(at);
        let (Some(api_version), Some(kind)) = (text(&value, "apiVersion"), text(&value, "kind"))
        else {
            self.parsed.unreadable = true;
            let message = "no Kubernetes object: apiVersion or kind is missing".to_owned();
            return self.problem(Some(line), None, None, message);
        };
        if kind == "List" && api_version == "v1" {
            let items = match value.get_mut("items").map(Value::take) {
                Some(Value::Array(items)) => items,
                _ => Vec::new(),
            };
            for (index, item) in items.into_iter().enumerate() {
                self.object(document, item, &format!("{at}items[{index}]."));
            }
            return;
        }
        let Some(kind) = Kind::known(&api_version, &kind) else {
            tracing::debug!(file = %self.file.display(), line, api_version, kind, "kind is not read");
            return;
        };
        let generation = value["metadata"]["generation"].as_i64();
        match parse_object(kind, value) {
            Ok((key, object)) => self.parsed.objects.push((key, object, line)),
            Err(invalid) => {
                let object = invalid.name();
                for FieldError { field, message } in invalid.errors {
                    let line = document.line_of(&format!("{at}{field}"));
                    let field = Some(field);
                    self.problem(Some(line), Some(object.clone()), field, message);
                    if let Some(problem) = self.parsed.problems.last_mut() {
                        problem.generation = generation;
                    }
                }
                match invalid.key {
                    Some(key) => self.parsed.invalid.push((kind, key)),
                    None => self.parsed.unreadable = true,
                }
            }
        }
    }
}

fn build(kind: Kind, value: &Value) -> Result<Object, Vec<FieldError>> {
    Ok(match kind {
        Kind::Namespace => Object::Namespace(core(value)?),
        Kind::Node => Object::Node(core(value)?),
        Kind::Pod => {
            let pod = core(value)?;
            check(bad_account(&pod).into_iter().collect())?;
            Object::Pod(pod)
        }
        Kind::Service => Object::Service(core(value)?),
        Kind::EndpointSlice => Object::EndpointSlice(core(value)?),
        Kind::ServiceAccount => Object::ServiceAccount(core(value)?),
        Kind::NetworkPolicy => Object::NetworkPolicy(core(value)?),
        Kind::RuntimeClass => Object::RuntimeClass(core(value)?),
        Kind::Secret => Object::Secret(Arc::new(TlsSecret::read(value)?)),
        Kind::ConfigMap => Object::ConfigMap(Arc::new(typed(value)?)),
        Kind::Gateway => {
            let mut gateway: Gateway = typed(value)?;
            gateway.given = value.clone();
            Object::Gateway(Arc::new(gateway))
        }
        Kind::HttpRoute => Object::HttpRoute(route(value)?),
        Kind::GrpcRoute => Object::GrpcRoute(route(value)?),
        Kind::TlsRoute => Object::TlsRoute(route(value)?),
        Kind::TcpRoute => Object::TcpRoute(route(value)?),
        Kind::BackendTlsPolicy => {
            let mut policy: BackendTlsPolicy = typed(value)?;
            policy.given = value.clone();
            Object::BackendTlsPolicy(Arc::new(policy))
        }
        Kind::ReferenceGrant => Object::ReferenceGrant(Arc::new(typed(value)?)),
        Kind::AuthorizationPolicy => {
            let policy: AuthorizationPolicy = typed(value)?;
            check(policy.validate())?;
            Object::AuthorizationPolicy(Arc::new(policy))
        }
        Kind::MeshTls => {
            let policy: MeshTls = typed(value)?;
            check(policy.validate())?;
            Object::MeshTls(Arc::new(policy))
        }
        Kind::TrafficPolicy => {
            let policy: TrafficPolicy = typed(value)?;
            check(policy.validate())?;
            Object::TrafficPolicy(Arc::new(policy))
        }
        Kind::RequestAuthentication => {
            let policy: RequestAuthentication = typed(value)?;
            check(policy.validate())?;
            Object::RequestAuthentication(Arc::new(policy))
        }
        Kind::IstioAuthorizationPolicy => {
            let policy: istio::AuthorizationPolicy = typed(value)?;
            check(policy.validate())?;
            Object::IstioAuthorizationPolicy(Arc::new(policy))
        }
        Kind::PeerAuthentication => {
            let policy: PeerAuthentication = typed(value)?;
            check(policy.validate())?;
            Object::PeerAuthentication(Arc::new(policy))
        }
        Kind::IstioRequestAuthentication => {
            let policy: istio::RequestAuthentication = typed(value)?;
            check(policy.validate())?;
            Object::IstioRequestAuthentication(Arc::new(policy))
        }
    })
}

/// It becomes a part of the pod's identity.
fn bad_account(pod: &Pod) -> Option<FieldError> {
    let account = pods::service_account(pod);
    (!policy::is_name(account)).then(|| FieldError {
        field: "spec.serviceAccountName".into(),
        message: not_a_name(account),
    })
}

fn not_a_name(text: &str) -> String {
    format!("{text:?} is no lowercase RFC 1123 name")
}

fn route<R: RouteRule>(value: &Value) -> Result<Arc<Route<R>>, Vec<FieldError>> {
    let mut route: Route<R> = typed(value)?;
    check(route.validate())?;
    route.given = value.clone();
    Ok(Arc::new(route))
}

fn core<T: DeserializeOwned + Metadata<Ty = ObjectMeta>>(
    value: &Value,
) -> Result<Arc<T>, Vec<FieldError>> {
    typed(value).map(Arc::new)
}

fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, Vec<FieldError>> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let field = match error.path().to_string() {
            path if path == "." => String::new(),
            path => path,
        };
        vec![FieldError {
            field,
            message: error.into_inner().to_string(),
        }]
    })
}

fn check(errors: Vec<FieldError>) -> Result<(), Vec<FieldError>> {
    if errors.is_empty() {
        Ok(())
    } else {
        Err(errors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_object_is_named_by_line_and_field_and_the_others_are_read() {
        let text = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: skipped}
---
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec:
  containers:
  - name: web
    ports:
    - containerPort: eighty
---
apiVersion: policy.seine.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: db, namespace: shop}
spec:
  rules:
  - from:
    - ipBlocks:
      - 10.0.0.0/8
      - 10.0.0.0/64
---
apiVersion: policy.seine.dev/v1alpha1
kind: MeshTLS
metadata: {name: default}
spec: {mode: Strict, port: 1}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web}
";
        let parsed = parse_text("a.yaml", text);
        let keys: Vec<_> = parsed
            .objects
            .iter()
            .map(|(key, object, _)| format!("{} {key}", object.kind()))
            .collect();
        assert_eq!(keys, ["Namespace shop", "ServiceAccount default/web"]);
        let problems: Vec<_> = parsed
            .problems
            .iter()
            .map(|p| {
                (
                    p.line.unwrap(),
                    p.object.as_deref().unwrap(),
                    p.field.as_deref().unwrap(),
                )
            })
            .collect();
        assert_eq!(
            problems[0],
            (
                16,
                "Pod shop/web",
                "spec.containers[0].ports[0].containerPort"
            )
        );
        assert_eq!(
            problems[1],
            (
                26,
                "AuthorizationPolicy shop/db",
                "spec.rules[0].from[0].ipBlocks[1]"
            )
        );
        assert_eq!(
            (problems[2].0, problems[2].1),
            (31, "MeshTLS default/default")
        );
        assert_eq!(problems.len(), 3);
        assert_eq!(parsed.invalid.len(), 3);
        assert!(!parsed.unreadable);
        assert!(
            parsed.problems[0]
                .to_string()
                .starts_with("a.yaml:16: Pod shop/web: spec.")
        );
    }

    #[test]
    fn names_that_an_api_server_would_refuse_are_told_by_field() {
        let pod = |namespace: &str, name: &str, account: &str| {
            let text = format!(
                "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
                 spec: {{serviceAccountName: {account}, containers: []}}\n"
            );
            let problems = parse_text("a.yaml", &text).problems;
            problems.first().and_then(|problem| problem.field.clone())
        };
        assert_eq!(pod("shop", "web-0.a", "web"), None);
        for (namespace, name, account, field) in [
            ("shop", "a/b", "web", "metadata.name"),
            ("Shop", "a", "web", "metadata.namespace"),
            ("shop", "a", "we`", "spec.serviceAccountName"),
            ("shop", "a", "a/sa/b", "spec.serviceAccountName"),
        ] {
            assert_eq!(pod(namespace, name, account).as_deref(), Some(field));
        }
    }

    #[test]
    fn the_items_of_a_list_are_objects() {
        let text = "
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Node, metadata: {name: a}}
- apiVersion: v1
  kind: Service
  metadata: {name: b}
  spec: {ports: [{port: x}]}
";
        let parsed = parse_text("a.yaml", text);
        assert_eq!(parsed.objects[0].0, ObjectKey::cluster("a"));
        assert_eq!(parsed.problems[0].line, Some(9));
    }

    #[test]
    fn what_is_no_object_is_a_problem() {
        let parsed = parse_text(
            "a.yaml",
            "just: a map\n---\n- a\n---\nkind: Pod\napiVersion: v1\n",
        );
        assert_eq!(parsed.problems.len(), 3);
        assert!(parsed.unreadable);
    }
}
